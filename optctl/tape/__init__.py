"""Functions as tapes: flat programs of scalar instructions that compiled code runs for many stages at once.

expressions     scalar expressions, each made once, and simplified
walk            one walk through jaxprs, whatever elements of arrays stand for
unroll          from a jaxpr to expressions, a rule for each primitive
derivatives     of expressions, as expressions: one table of partials, sweeps up and down
program         from expressions to instructions, with slots for their results
polynomial      the degree of a function in some of its arguments, read from its jaxpr
"""

from optctl.tape.derivatives import adjoints, jacobian, pushed, tangents
from optctl.tape.polynomial import degree, depends
from optctl.tape.program import Graph, Tape, compile_tape, memories, memories_now, memory, run, trace
from optctl.tape.unroll import Unsupported

__all__ = [
    "Graph",
    "Tape",
    "Unsupported",
    "adjoints",
    "compile_tape",
    "degree",
    "depends",
    "jacobian",
    "memories",
    "memories_now",
    "memory",
    "pushed",
    "run",
    "tangents",
    "trace",
]
