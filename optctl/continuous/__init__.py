"""Time as a real number: ODEs, their solution, and the gradients of their solution."""

from optctl.continuous.gradient import ODEGradient, ode_gradient, ode_hessian_vector_product
from optctl.continuous.integrate import Trajectory, integrate
from optctl.continuous.neural import NeuralODE, neural_ode
from optctl.continuous.ode import ODE, Event, Signal

__all__ = [
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
]
