"""Who decides: the front door `solve`, its methods, and solves from many guesses."""

from optctl.solvers.ilqr import ILQR
from optctl.solvers.multistart import Multistart, multistart
from optctl.solvers.solve import METHODS, solve

__all__ = ["ILQR", "METHODS", "Multistart", "multistart", "solve"]
