"""Optimal control, smoothing and learning with one costate engine.

Importing the package turns on JAX's 64-bit mode, unless the environment says JAX_ENABLE_X64=0.
"""

import os

import jax

if os.environ.get("JAX_ENABLE_X64", "1").lower() not in ("0", "false", "off"):
    jax.config.update("jax_enable_x64", True)

from optctl import costs, data, lq, plot, problems
from optctl._record import record
from optctl.adjoint import (
    CheckReport,
    CostateGrowth,
    Gradient,
    MemoryReport,
    check_adjoint,
    check_gradient,
    costate_growth,
    gradient,
    hessian_vector_product,
    memory_report,
)
from optctl.constraint import Soft
from optctl.continuous import (
    ODE,
    Event,
    MarchStatus,
    NeuralODE,
    ODEGradient,
    Signal,
    Trajectory,
    integrate,
    neural_ode,
    ode_gradient,
    ode_hessian_vector_product,
)
from optctl.control import MPC, MPCPlan, MPCRun
from optctl.dynamics import (
    AbstractDynamics,
    Adjoint,
    ClosedLoop,
    Dynamics,
    Labels,
    Layers,
    LinearDynamics,
    SimulatorDynamics,
    discretize,
    models,
    pde,
)
from optctl.dynamics.memory import Binomial
from optctl.estimation import (
    LinearGaussian,
    Posterior,
    kalman_filter,
    kalman_smoother,
    log_likelihood,
    smoothing_problem,
)
from optctl.lq import LQSolution, dare, dlqe, dlqr, lqr, to_cvxpy
from optctl.policies import MLP, TrainingResult, closed_loop, mlp, train, train_layers, train_policy
from optctl.problem import Problem
from optctl.refinement import Refinement, refine
from optctl.result import Status
from optctl.shooting import InteriorPoint
from optctl.solution import Certificate, History, Solution
from optctl.solvers import ILQR, Multistart, multistart, solve

__version__ = "0.1.0"

__all__ = [
    "ILQR",
    "MLP",
    "MPC",
    "ODE",
    "AbstractDynamics",
    "Adjoint",
    "Binomial",
    "Certificate",
    "CheckReport",
    "ClosedLoop",
    "CostateGrowth",
    "Dynamics",
    "Event",
    "Gradient",
    "History",
    "InteriorPoint",
    "LQSolution",
    "Labels",
    "Layers",
    "LinearDynamics",
    "LinearGaussian",
    "MPCPlan",
    "MPCRun",
    "MarchStatus",
    "MemoryReport",
    "Multistart",
    "NeuralODE",
    "ODEGradient",
    "Posterior",
    "Problem",
    "Refinement",
    "Signal",
    "SimulatorDynamics",
    "Soft",
    "Solution",
    "Status",
    "TrainingResult",
    "Trajectory",
    "check_adjoint",
    "check_gradient",
    "closed_loop",
    "costate_growth",
    "costs",
    "dare",
    "data",
    "discretize",
    "dlqe",
    "dlqr",
    "gradient",
    "hessian_vector_product",
    "integrate",
    "kalman_filter",
    "kalman_smoother",
    "log_likelihood",
    "lq",
    "lqr",
    "memory_report",
    "mlp",
    "models",
    "multistart",
    "neural_ode",
    "ode_gradient",
    "ode_hessian_vector_product",
    "pde",
    "plot",
    "problems",
    "record",
    "refine",
    "smoothing_problem",
    "solve",
    "to_cvxpy",
    "train",
    "train_layers",
    "train_policy",
]
