"""optctl."""

import os

import jax

if os.environ.get("JAX_ENABLE_X64", "1").lower() not in ("0", "false", "off"):
    jax.config.update("jax_enable_x64", True)

from optctl import costs, lq
from optctl.adjoint.gradient import Gradient, gradient
from optctl.adjoint.growth import costate_growth
from optctl.adjoint.hessian import hessian_vector_product
from optctl.dynamics import *
from optctl.dynamics import models
from optctl.lq import dare, dlqr, lqr, to_cvxpy
from optctl.problem import Problem
from optctl.solvers import solve
