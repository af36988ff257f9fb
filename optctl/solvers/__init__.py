"""Who decides: the front door `solve`, its methods, and solves from many guesses.

solve        what is free, which method, the certificate
methods      the table of methods, and the choice among them
method       what a method is: a record of options that can check and run
objective    a problem as a function of what is free
"""

from optctl.solvers.cg import CG
from optctl.solvers.constrained import InteriorPoint
from optctl.solvers.descent import GradientDescent
from optctl.solvers.ilqr import ILQR
from optctl.solvers.lbfgs import LBFGS
from optctl.solvers.lq import LQ
from optctl.solvers.methods import METHODS
from optctl.solvers.multistart import Multistart, multistart
from optctl.solvers.newton_cg import NewtonCG
from optctl.solvers.solve import solve

__all__ = [
    "CG",
    "ILQR",
    "LBFGS",
    "LQ",
    "METHODS",
    "GradientDescent",
    "InteriorPoint",
    "Multistart",
    "NewtonCG",
    "multistart",
    "solve",
]
