r"""Continuous-time problems with closed-form optima, discretized so finely that the mesh costs less than 1e-6.

Inputs move linearly within each step (`discretize(..., hold="linear")`) and costs are integrated by the scheme of the
dynamics (`dynamics.integral`), so that the optimal cost converges to fourth order where the optimal input is smooth,
and is exact where it is linear. Mesh errors measured: see each function.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from optctl.dynamics import Labels, discretize
from optctl.problem import Problem
from optctl.problems.known import KnownProblem

RAIL = Labels(("position [m]", "velocity [m/s]"), ("acceleration [m/s^2]",))
GRAVITY = 9.80665


def _integrator(x: Any, u: Any) -> Any:
    return [x[1], u[0]]


def _effort(x: Any, u: Any) -> Any:
    return 0.5 * u @ u


def _regulation(x: Any, u: Any) -> Any:
    return 0.5 * (x @ x + u @ u)


def _on_rails(horizon: int, x0: list[float], end: Callable, **constraints: Any) -> Problem:
    """Least 1/2 int u^2 dt of a double integrator over one second."""
    dynamics: Any = discretize(_integrator, 1.0 / horizon, nx=2, nu=1, labels=RAIL, hold="linear")
    return Problem(
        dynamics, dynamics.integral(_effort), horizon=horizon, x0=x0, terminal_equality=end, **constraints
    )  # fmt: skip


def brachistochrone(horizon: int = 60, tf: str = "state") -> KnownProblem:
    """Fall along the fastest wire from (0, 10) m to (10, 5) m: free final time, least 1.8016031224530815 s.

    x' = v sin(a), y' = -v cos(a), v' = g cos(a); the curve is a cycloid. Mesh error 7e-10 relative at 60 RK4 steps.

    Args:
        horizon: number of steps.
        tf: the final time is a constant "state" with a free initial value, or a parameter ("params").

    References:
        Bryson and Ho (1975), Applied Optimal Control, section 2.7.
    """
    labels = Labels(("x [m]", "y [m]", "speed [m/s]"), ("angle of descent [rad]",))
    s = np.linspace(0.0, 1.0, horizon + 1)
    guess = np.stack([10 * s, 10 - 5 * s, 9 * s], axis=1)
    bounds: dict[str, Any] = {"u_min": 0.0, "u_max": np.pi, "horizon": horizon, "terminal_equality": _landed}
    if tf == "params":
        dynamics = discretize(_falls_for, 1.0 / horizon, nx=3, nu=1, labels=labels, hold="linear")
        problem = Problem(
            dynamics, terminal_cost=_parameter, x0=guess[0], params=1.5, params_min=0.1, params_max=10.0, **bounds
        )  # fmt: skip
        return KnownProblem(problem, 1.8016031224530815, np.ones((horizon, 2)), guess, ("us", "params"))
    labels = Labels((*labels.states, "final time [s]"), labels.inputs)
    dynamics = discretize(_falls, 1.0 / horizon, nx=4, nu=1, labels=labels, hold="linear")
    problem = Problem(
        dynamics, terminal_cost=_last, x0_min=np.append(guess[0], 0.1), x0_max=np.append(guess[0], 10.0), **bounds
    )  # fmt: skip
    guess = np.column_stack([guess, np.full(horizon + 1, 1.5)])
    return KnownProblem(problem, 1.8016031224530815, np.ones((horizon, 2)), guess)


def _falls_for(x: Any, u: Any, t: Any, tf: Any) -> Any:
    a = u[0]
    return tf * jnp.array([x[2] * jnp.sin(a), -x[2] * jnp.cos(a), GRAVITY * jnp.cos(a)])


def _falls(x: Any, u: Any) -> Any:
    return jnp.append(_falls_for(x, u, 0.0, x[3]), 0.0 * x[3])


def _landed(x: Any) -> Any:
    return x[:2] - jnp.array([10.0, 5.0], x.dtype)


def _last(x: Any) -> Any:
    return x[-1]


def _parameter(x: Any, p: Any) -> Any:
    return p


def least_energy(horizon: int = 20) -> KnownProblem:
    """Move a mass by 1 m in 1 s from rest to rest with least 1/2 int u^2: 6, u = 6 - 12 t. No mesh error.

    Args:
        horizon: number of steps.

    References:
        Bryson and Ho (1975), Applied Optimal Control, section 2.
    """
    return KnownProblem(_on_rails(horizon, [0.0, 0.0], lambda x: x - jnp.array([1.0, 0.0], x.dtype)), 6.0)


def braking(horizon: int = 20) -> KnownProblem:
    """From (1, -2) to rest at the origin in 1 s: 2. No mesh error.

    Args:
        horizon: number of steps.
    """
    return KnownProblem(_on_rails(horizon, [1.0, -2.0], lambda x: x), 2.0)


def least_energy_bounded(horizon: int = 200) -> KnownProblem:
    """From (-1, 0) to the origin in 1 s with |u| <= 5, active outside [0.1127, 0.8873]: 6.04502775632113.

    Mesh error 1e-7 relative at 200 steps: the switches lie within steps.

    Args:
        horizon: number of steps.
    """
    problem = _on_rails(horizon, [-1.0, 0.0], lambda x: x, u_min=-5.0, u_max=5.0)
    return KnownProblem(problem, 6.04502775632113)


def least_time(horizon: int = 20, tf: str = "state") -> KnownProblem:
    """From (1, 0) to the origin with |u| <= 1 in least time: 2 s, one switch at 1 s. No mesh error for even horizons.

    Args:
        horizon: number of steps.
        tf: the final time is a constant "state" with a free initial value, or a parameter ("params").

    References:
        Bryson and Ho (1975), Applied Optimal Control, section 3.9.
    """
    bounds: dict[str, Any] = {"u_min": -1.0, "u_max": 1.0, "horizon": horizon}
    if tf == "params":
        dynamics = discretize(_rail_for, 1.0 / horizon, nx=2, nu=1, labels=RAIL)
        problem = Problem(
            dynamics, terminal_cost=_parameter, x0=[1.0, 0.0], params=1.0, params_min=0.1, params_max=10.0,
            terminal_equality=lambda x: x, **bounds,
        )  # fmt: skip
        return KnownProblem(problem, 2.0, free=("us", "params"))
    labels = Labels((*RAIL.states, "final time [s]"), RAIL.inputs)
    problem = Problem(
        discretize(_rail, 1.0 / horizon, nx=3, nu=1, labels=labels), terminal_cost=_last, x0_min=[1.0, 0.0, 0.1],
        x0_max=[1.0, 0.0, 10.0], terminal_equality=lambda x: x[:2], **bounds,
    )  # fmt: skip
    return KnownProblem(problem, 2.0, xs=np.tile([1.0, 0.0, 1.0], (horizon + 1, 1)))


def _rail_for(x: Any, u: Any, t: Any, tf: Any) -> Any:
    return tf * jnp.array([x[1], u[0]])


def _rail(x: Any, u: Any) -> Any:
    return x[2] * jnp.array([x[1], u[0], 0.0], x.dtype)


def bryson_denham(limit: float = 1 / 9, horizon: int = 60) -> KnownProblem:
    """From (0, 1) to (0, -1) in 1 s, position at most `limit` <= 1/6: 4 / (9 limit).

    Mesh error 3e-8 relative at 60 steps with limit 1/9, where the ends of the bounded arc, 3 limit and 1 - 3 limit, are
    on the mesh.

    Args:
        limit: largest position [m].
        horizon: number of steps.

    References:
        Bryson and Ho (1975), Applied Optimal Control, section 3.11.
    """
    ceiling = [limit, np.inf]
    problem = _on_rails(horizon, [0.0, 1.0], lambda x: x - jnp.array([0.0, -1.0], x.dtype), x_max=ceiling)
    return KnownProblem(problem, 4 / (9 * limit))


def transversality(horizon: int = 20) -> KnownProblem:
    """Be at 1 m after 1 s at any speed, from rest: 3/2, u = 3 - 3 t. No mesh error.

    Args:
        horizon: number of steps.
    """
    return KnownProblem(_on_rails(horizon, [0.0, 0.0], lambda x: x[:1] - 1.0), 1.5)


def hypersensitive(horizon: int = 200) -> KnownProblem:
    """X' = -x + u from 1.5 to 1 over 10 s, 1/2 int x^2 + u^2: 1.6730939784122. Mesh error 7e-8 relative at 200 steps.

    Args:
        horizon: number of steps.
    """
    dynamics: Any = discretize(lambda x, u: u - x, 10.0 / horizon, nx=1, nu=1, hold="linear")
    problem = Problem(
        dynamics, dynamics.integral(_regulation), horizon=horizon, x0=[1.5], terminal_equality=lambda x: x - 1.0
    )  # fmt: skip
    return KnownProblem(problem, 1.6730939784122)


def oscillator(horizon: int = 100) -> KnownProblem:
    """Regulate x'' = -x + u from (0, 1) over 5 s, Q = R = 1: 0.6739990459144. Mesh error 2e-7 relative at 100 steps.

    Args:
        horizon: number of steps.
    """
    dynamics: Any = discretize(lambda x, u: [x[1], u[0] - x[0]], 5.0 / horizon, nx=2, nu=1, hold="linear")
    problem = Problem(dynamics, dynamics.integral(_regulation), horizon=horizon, x0=[0.0, 1.0])
    return KnownProblem(problem, 0.6739990459144)


def scalar_regulator(horizon: int = 40) -> KnownProblem:
    """X' = u from 1 over 1 s, 1/2 int x^2 + u^2: tanh(1)/2. Mesh error 4e-9 relative at 40 steps.

    Args:
        horizon: number of steps.
    """
    dynamics: Any = discretize(lambda x, u: u, 1.0 / horizon, nx=1, nu=1, hold="linear")
    problem = Problem(dynamics, dynamics.integral(_regulation), horizon=horizon, x0=[1.0])
    return KnownProblem(problem, float(np.tanh(1.0) / 2))


def van_der_pol(horizon: int = 60) -> KnownProblem:
    """Damp a van der Pol oscillator from (1, 0) over 2 s: 1.04780690822. Mesh error 3e-8 relative at 60 steps.

    Args:
        horizon: number of steps.
    """

    def f(x: Any, u: Any) -> Any:
        return [x[1], (1 - x[0] ** 2) * x[1] - x[0] + u[0]]

    dynamics: Any = discretize(f, 2.0 / horizon, nx=2, nu=1, hold="linear")
    problem = Problem(dynamics, dynamics.integral(_regulation), horizon=horizon, x0=[1.0, 0.0])
    return KnownProblem(problem, 1.04780690822)
