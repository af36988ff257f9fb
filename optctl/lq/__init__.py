"""The quadratic model and its linear-time solution."""

from optctl.lq.export import to_cvxpy
from optctl.lq.lqr import lqr
from optctl.lq.model import LQ, is_linear_quadratic
from optctl.lq.riccati import Factors
from optctl.lq.solution import LQSolution, covariances, factor, solve
from optctl.lq.steady import dare, dlqe, dlqr

__all__ = [
    "LQ",
    "Factors",
    "LQSolution",
    "covariances",
    "dare",
    "dlqe",
    "dlqr",
    "factor",
    "is_linear_quadratic",
    "lqr",
    "solve",
    "to_cvxpy",
]
