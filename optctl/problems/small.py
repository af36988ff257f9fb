"""Problems with known optimum, for tests, benchmarks, demos and first steps."""

from collections.abc import Callable
from typing import Any

import numpy as np

from optctl.costs import TerminalQuadratic, Tracking
from optctl.data import nile as nile_data
from optctl.dynamics import discretize, models
from optctl.estimation import LinearGaussian, smoothing_problem
from optctl.lq import dare
from optctl.problem import Problem

__all__ = [
    "OPTIMAL_COST",
    "acrobot_swing_up",
    "cartpole_balance",
    "cartpole_push",
    "cartpole_swing_up",
    "local_level",
    "nile",
]

OPTIMAL_COST = {
    "acrobot_swing_up": 44.5132851412,
    "cartpole_push": 136.21624429378,
    "cartpole_swing_up": 57.881880124637,
    "nile": 49.5608111225,
    "nile_huber": 46.5721564532,
}
"""Optimal costs on which several independent solvers agree."""


def acrobot_swing_up() -> Problem:
    """Swing an acrobot up from rest with a motor at its second joint; explicit Euler, 50 steps of 0.1 s.

    Optimal cost 44.5132851412, reached from zero inputs.
    """
    goal = np.array([np.pi, 0.0, 0.0, 0.0])
    eye = np.eye(4)
    return Problem(
        discretize(models.Acrobot(), 0.1, "euler"),
        stage_cost=Tracking(Q=0.1 * eye, R=[[0.01]], x_ref=goal),
        terminal_cost=TerminalQuadratic(Q=1000 * eye, x_ref=goal),
        horizon=50,
        x0=np.zeros(4),
    )


def cartpole_swing_up(weight: float = 1e4) -> Problem:
    """Swing a cart-pole up and 1 m aside with least effort; RK4, 100 steps of 0.02 s, force at most 20 N.

    The end state is asked for by a penalty, weight/2 |x_N - goal|^2. From zero inputs solvers reach the cost
    57.881880124637 (a slightly worse local optimum exists, too).

    References:
        Kelly (2017), An introduction to trajectory optimization, SIAM Review 59, section 6.
    """
    goal = np.array([1.0, np.pi, 0.0, 0.0])
    return Problem(
        discretize(models.CartPole(), 0.02),
        stage_cost=Tracking(Q=np.zeros((4, 4)), R=[[0.04]], x_ref=goal),
        terminal_cost=TerminalQuadratic(Q=weight * np.eye(4), x_ref=goal),
        horizon=100,
        x0=np.zeros(4),
        u_min=-20.0,
        u_max=20.0,
    )


def cartpole_push() -> Problem:
    """Swing a cart-pole towards upright within 1.25 s, at a price for force; explicit Euler, 25 steps of 0.05 s.

    Optimal cost 136.21624429378, reached from zero inputs. The force is so dear that the pole does not arrive.
    """
    goal = np.array([0.0, np.pi, 0.0, 0.0])
    weight = np.diag([0.2, 1.2, 0.2, 0.2])
    return Problem(
        discretize(models.CartPole(mc=0.1, mp=0.1, l=1.0, g=10.0), 0.05, "euler"),
        stage_cost=Tracking(Q=weight, R=[[0.6]], x_ref=goal),
        terminal_cost=TerminalQuadratic(Q=weight, x_ref=goal),
        horizon=25,
        x0=np.zeros(4),
    )


def cartpole_balance(horizon: int = 25) -> Problem:
    """Balance a cart-pole upright with the cart in the middle; RK4, steps of 0.02 s, x_0 at the goal.

    The terminal cost is the value function of the linearized problem over an infinite horizon, so that the short
    horizon does not matter. (Over a long one a poor controller lets the pole fall, a local minimum.)
    """
    goal = np.array([0.0, np.pi, 0.0, 0.0])
    dynamics = discretize(models.CartPole(), 0.02)
    Q, R = 0.02 * np.diag([1.0, 5.0, 0.1, 0.1]), 0.02 * np.array([[0.05]])
    A, B = dynamics.linearize(np.stack([goal, goal]), np.zeros((1, 1)))
    return Problem(
        dynamics,
        stage_cost=Tracking(Q, R, x_ref=goal),
        terminal_cost=TerminalQuadratic(dare(A[0], B[0], Q, R), x_ref=goal),
        horizon=horizon,
        x0=goal,
    )


def local_level(V: float = 15099.0, W: float = 1469.1, cov0: float = 1e7) -> LinearGaussian:
    """Return the local level model y = x + v, x+ = x + w, with prior N(0, cov0).

    The defaults are the estimates for the Nile of Durbin and Koopman (2012), section 2.2.
    """
    return LinearGaussian(A=[[1.0]], C=[[1.0]], W=[[W]], V=[[V]], mean0=[0.0], cov0=[[cov0]])


def nile(loss: Callable | None = None) -> Problem:
    """Smooth the annual flow of the Nile, 1871 to 1970, with the local level model.

    Optimal cost 49.5608111225; with `loss=costs.Huber(1.345)` 46.5721564532.
    """
    volumes: Any = nile_data()[1]
    return smoothing_problem(local_level(), volumes, loss=loss)
