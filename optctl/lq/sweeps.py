"""The bare sweeps over a model, by the method that suits the machine: for loops that solve many models.

Neither checks nor derivatives; those are in `optctl.lq.solve`.
"""

from optctl.lq.kkt import Point
from optctl.lq.model import LQ
from optctl.lq.riccati import Factors
from optctl.lq.solution import module_of


def factor(lq: LQ) -> Factors:
    """Sweep backward over the matrices, which must be symmetric."""
    return module_of("auto").factor(lq)


def sweep(lq: LQ, factors: Factors, b: Point) -> Point:
    """Solve the optimality system (`lq/kkt.py`) with right-hand side b."""
    return module_of("auto").sweep(lq, factors, b)[0]
