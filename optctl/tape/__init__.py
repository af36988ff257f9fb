"""Functions as tapes: flat programs of scalar instructions that compiled code runs for many stages at once.

expressions     scalar expressions, each made once, and simplified
walk            one walk through jaxprs, whatever elements of arrays stand for
unroll          from a jaxpr to expressions, a rule for each primitive
program         from expressions to instructions, with slots for their results
polynomial      the degree of a function in some of its arguments, read from its jaxpr
"""

from optctl.tape.polynomial import degree, depends
from optctl.tape.program import Tape, compile_tape, memories, memories_now, memory, run
from optctl.tape.unroll import Unsupported

__all__ = ["Tape", "Unsupported", "compile_tape", "degree", "depends", "memories", "memories_now", "memory", "run"]
