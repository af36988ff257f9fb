"""Optimal control, smoothing and learning with one costate engine.

Importing the package turns on JAX's 64-bit mode, unless the environment says JAX_ENABLE_X64=0. It loads nothing else:
a room of the package is loaded when one of its names is used first.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

import jax

if os.environ.get("JAX_ENABLE_X64", "1").lower() not in ("0", "false", "off"):
    jax.config.update("jax_enable_x64", True)

if TYPE_CHECKING:
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
        hessian_vector_product,
    )
    from optctl.adjoint.gradient import gradient
    from optctl.adjoint.memory_report import memory_report
    from optctl.constraint import Soft
    from optctl.continuous import (
        ODE,
        Event,
        NeuralODE,
        ODEGradient,
        Signal,
        Trajectory,
        neural_ode,
        ode_gradient,
        ode_hessian_vector_product,
    )
    from optctl.continuous.integrate import integrate
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
        models,
        pde,
    )
    from optctl.dynamics.discretize import discretize
    from optctl.dynamics.memory import Binomial
    from optctl.estimation import (
        LinearGaussian,
        Posterior,
        kalman_filter,
        kalman_smoother,
        log_likelihood,
        smoothing_problem,
    )
    from optctl.lq import LQSolution, dare, dlqe, dlqr, to_cvxpy
    from optctl.lq.lqr import lqr
    from optctl.policies import MLP, TrainingResult, train_layers, train_policy
    from optctl.policies.closed_loop import closed_loop
    from optctl.policies.mlp import mlp
    from optctl.policies.train import train
    from optctl.problem import Problem
    from optctl.refinement import Refinement, refine
    from optctl.result import Result, Status
    from optctl.solution import Certificate, History, Solution, Violation
    from optctl.solvers import (
        CG,
        ILQR,
        LBFGS,
        LQ,
        GradientDescent,
        InteriorPoint,
        Multistart,
        NewtonCG,
    )
    from optctl.solvers.multistart import multistart
    from optctl.solvers.solve import solve

_ROOMS = {
    "_record": ("record",),
    "adjoint": (
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
    ),
    "constraint": ("Soft",),
    "continuous": (
        "ODE",
        "Event",
        "NeuralODE",
        "ODEGradient",
        "Signal",
        "Trajectory",
        "integrate",
        "neural_ode",
        "ode_gradient",
        "ode_hessian_vector_product",
    ),
    "control": ("MPC", "MPCPlan", "MPCRun"),
    "dynamics": (
        "AbstractDynamics",
        "Adjoint",
        "ClosedLoop",
        "Dynamics",
        "Labels",
        "Layers",
        "LinearDynamics",
        "SimulatorDynamics",
        "discretize",
    ),
    "dynamics.memory": ("Binomial",),
    "estimation": (
        "LinearGaussian",
        "Posterior",
        "kalman_filter",
        "kalman_smoother",
        "log_likelihood",
        "smoothing_problem",
    ),
    "lq": ("LQSolution", "dare", "dlqe", "dlqr", "lqr", "to_cvxpy"),
    "policies": ("MLP", "TrainingResult", "closed_loop", "mlp", "train", "train_layers", "train_policy"),
    "problem": ("Problem",),
    "refinement": ("Refinement", "refine"),
    "result": ("Result", "Status"),
    "solution": ("Certificate", "History", "Solution", "Violation"),
    "solvers": (
        "CG",
        "ILQR",
        "LBFGS",
        "LQ",
        "GradientDescent",
        "InteriorPoint",
        "Multistart",
        "NewtonCG",
        "multistart",
        "solve",
    ),
}
"""The public names of each room; the block above says the same to type checkers."""

_MODULES = ("costs", "data", "dynamics.models", "dynamics.pde", "lq", "plot", "problems")
"""Public names that are modules themselves."""

_HOMES = {name: f"optctl.{room}" for room, names in _ROOMS.items() for name in names}
_HOMES |= {path.split(".")[-1]: f"optctl.{path}" for path in _MODULES}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'optctl' has no attribute {name!r}")
    module = importlib.import_module(home)
    found = module if home.endswith(f".{name}") else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__


__version__ = "0.1.0"

__all__ = [
    "CG",
    "ILQR",
    "LBFGS",
    "LQ",
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
    "GradientDescent",
    "History",
    "InteriorPoint",
    "LQSolution",
    "Labels",
    "Layers",
    "LinearDynamics",
    "LinearGaussian",
    "MPCPlan",
    "MPCRun",
    "MemoryReport",
    "Multistart",
    "NeuralODE",
    "NewtonCG",
    "ODEGradient",
    "Posterior",
    "Problem",
    "Refinement",
    "Result",
    "Signal",
    "SimulatorDynamics",
    "Soft",
    "Solution",
    "Status",
    "TrainingResult",
    "Trajectory",
    "Violation",
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
