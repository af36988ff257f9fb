"""What moves: the kinds of dynamics and ready models."""

from optctl.dynamics import models, pde
from optctl.dynamics.base import AbstractDynamics, Adjoint, Dynamics, Labels
from optctl.dynamics.closed_loop import ClosedLoop
from optctl.dynamics.discretize import Discretized, discretize
from optctl.dynamics.layers import Layers
from optctl.dynamics.linear import LinearDynamics
from optctl.dynamics.simulator import SimulatorDynamics

__all__ = [
    "AbstractDynamics",
    "Adjoint",
    "ClosedLoop",
    "Discretized",
    "Dynamics",
    "Labels",
    "Layers",
    "LinearDynamics",
    "SimulatorDynamics",
    "discretize",
    "models",
    "pde",
]
