"""The engine: gradients by costates, Hessian-vector products, and the checks of both."""

from optctl.adjoint.check import CheckReport, check_adjoint, check_gradient
from optctl.adjoint.gradient import Gradient, gradient
from optctl.adjoint.growth import CostateGrowth, costate_growth
from optctl.adjoint.hessian import hessian_vector_product
from optctl.adjoint.memory_report import MemoryReport, memory_report

__all__ = [
    "CheckReport",
    "CostateGrowth",
    "Gradient",
    "MemoryReport",
    "check_adjoint",
    "check_gradient",
    "costate_growth",
    "gradient",
    "hessian_vector_product",
    "memory_report",
]
