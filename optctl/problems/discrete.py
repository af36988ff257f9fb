"""Discrete-time trajectory problems on whose optimum several independent solvers agree; there is no mesh question."""

from typing import Any

import numpy as np

from optctl._record import record
from optctl.costs import Tracking
from optctl.dynamics import discretize, models
from optctl.problem import Problem
from optctl.problems.known import KnownProblem


@record()
class Distance:
    """x - goal: zero at the goal, which is data."""

    goal: Any

    def __call__(self, x: Any) -> Any:
        """Return x - goal."""
        return x - self.goal


def cartpole_weak() -> KnownProblem:
    """Swing up a heavy cart-pole with at most 5 N: N = 50 Euler steps of 0.1 s, end state given.

    x = (position, angle, rates), from (0, 0.2, 0, -0.1) to (0, pi, 0, 0), sum of 0.1 |x - goal|^2 + 0.01 u^2. The guess
    is far from feasible, and the force bounds hem a solver in: the feasibility phase is needed.
    """
    goal, x0 = np.array([0.0, np.pi, 0.0, 0.0]), np.array([0.0, 0.2, 0.0, -0.1])
    problem = Problem(
        discretize(models.CartPole(mc=10.0, mp=1.0, l=0.5, g=9.81), 0.1, "euler"),
        stage_cost=Tracking(0.2 * np.eye(4), [[0.02]], x_ref=goal),
        terminal_equality=Distance(goal),
        horizon=50,
        x0=x0,
        u_min=-5.0,
        u_max=5.0,
    )
    return KnownProblem(problem, 66.8026196943, np.zeros((50, 1)), np.linspace(x0, goal, 51))


def cartpole_constrained(horizon: int = 100) -> KnownProblem:
    """Swing a cart-pole up and 1 m aside in 2 s with least effort, force at most 20 N, track 2 m to either side.

    RK4, end state given; the optimum holds for 100 steps.

    Args:
        horizon: number of steps.

    Example:
        >>> import optctl as oc
        >>> print(oc.problems.cartpole_constrained().solve().cost.round(8))
        58.88833599

    References:
        Kelly (2017), An introduction to trajectory optimization, SIAM Review 59, section 6.
    """
    goal, dt = np.array([1.0, np.pi, 0.0, 0.0]), 2.0 / horizon
    wide = np.array([2.0, np.inf, np.inf, np.inf])
    problem = Problem(
        discretize(models.CartPole(), dt),
        stage_cost=Tracking(np.zeros((4, 4)), [[2 * dt]], x_ref=goal),
        terminal_equality=Distance(goal),
        horizon=horizon,
        x0=np.zeros(4),
        u_min=-20.0,
        u_max=20.0,
        x_min=-wide,
        x_max=wide,
    )
    return KnownProblem(problem, 58.8883359880, np.zeros((horizon, 1)), np.linspace(np.zeros(4), goal, horizon + 1))
