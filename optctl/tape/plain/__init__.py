"""Functions in plain NumPy: a front door of the graph, by NumPy's own protocols, without JAX.

arrays      arrays of expressions that look like NumPy's
elements, along, algebra, moving, making    what NumPy's functions do with them
names       what protocols do not reach: functions that make arrays, `math`, tables indexed by t
model       such a function as a primitive of JAX: traced, batched, differentiated and compiled like its own
"""

from optctl.tape.plain import algebra, along, elements, making, moving  # which fill the tables
from optctl.tape.plain.arrays import Mixed
from optctl.tape.plain.model import Model, bind

__all__ = ["Mixed", "Model", "algebra", "along", "bind", "elements", "making", "moving"]
