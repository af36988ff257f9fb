"""Who decides: the solvers and their one result type."""

from optctl.solvers.ilqr import ILQR
from optctl.solvers.interior_point import InteriorPoint
from optctl.solvers.mpc import MPC, MPCPlan, MPCRun
from optctl.solvers.multistart import Multistart, multistart
from optctl.solvers.solution import Certificate, History, Solution, Status
from optctl.solvers.solve import METHODS, solve

__all__ = [
    "ILQR",
    "METHODS",
    "MPC",
    "Certificate",
    "History",
    "InteriorPoint",
    "MPCPlan",
    "MPCRun",
    "Multistart",
    "Solution",
    "Status",
    "multistart",
    "solve",
]
