r"""From an ordinary differential equation dx/dt = f(x, u, t, params) to dynamics, u held constant over each step.

    euler               x+ = x + h f(x)                                            order 1, explicit
    midpoint            x+ = x + h f(x + h/2 f(x))                                 order 2, explicit
    rk4                 the classical Runge-Kutta scheme                           order 4, explicit
    implicit_midpoint   x+ = x + h f((x + x+)/2)                                   order 2, A-stable, symplectic
    trapezoid           x+ = x + h/2 (f(x) + f(x+))                                order 2, A-stable
    zoh                 exact for f = A x + B u + c:  exp(h [[A, B, c], [0, 0, 0]])

The implicit schemes solve F(x+; x, u) = 0 by Newton's method. Their derivative is that of the implicit function,
dF/dx+ dx+ = -dF, so nothing is differentiated through the Newton iterations and the costate recursion is exact for
the numbers computed. A Newton iteration that does not converge returns NaN, which every solver reports.

Reference: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I and II (1993, 1996).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import to_device
from optctl._record import record
from optctl._validate import as_float, as_whole, check_choice, default_float, is_concrete, result_shape, returned
from optctl.dynamics.base import AbstractDynamics, Labels, check_labels
from optctl.dynamics.linear import LinearDynamics
from optctl.dynamics.stage import StageFunction, stage_function

NEWTON_ITERATIONS = 50


def euler(f: Callable, x: Any, t: Any, h: Any) -> Any:
    """One explicit Euler step."""
    return x + h * f(x, t)


def midpoint(f: Callable, x: Any, t: Any, h: Any) -> Any:
    """One explicit midpoint step."""
    return x + h * f(x + h / 2 * f(x, t), t + h / 2)


def rk4(f: Callable, x: Any, t: Any, h: Any) -> Any:
    """One step of the classical Runge-Kutta scheme."""
    k1 = f(x, t)
    k2 = f(x + h / 2 * k1, t + h / 2)
    k3 = f(x + h / 2 * k2, t + h / 2)
    k4 = f(x + h * k3, t + h)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def implicit_midpoint(f: Callable, x: Any, t: Any, h: Any) -> Any:
    """One implicit midpoint step."""
    return newton(lambda x_next: x_next - x - h * f((x + x_next) / 2, t + h / 2), x)


def trapezoid(f: Callable, x: Any, t: Any, h: Any) -> Any:
    """One step of the trapezoidal rule."""
    return newton(lambda x_next: x_next - x - h / 2 * (f(x, t) + f(x_next, t + h)), x)


def newton(F: Callable, guess: Any) -> Any:
    """Return the root of F near `guess`, differentiable by the implicit function theorem; NaN if not found."""
    F, held = jax.closure_convert(F, guess)

    def solve(guess: Any, *held: Any) -> Any:
        eps = jnp.finfo(guess.dtype).eps
        scale = jnp.max(jnp.abs(guess))

        def step(carry: tuple) -> tuple:
            x, _, k, last = carry
            dx = jnp.linalg.solve(jax.jacfwd(F)(x, *held), F(x, *held))
            size, whole = jnp.max(jnp.abs(dx)), scale + jnp.max(jnp.abs(x))
            # Where the equation is stiff, rounding is more than that: small steps that shrink no more are all rounding.
            rounding = (size <= eps**0.5 * whole) & (size > 0.5 * last)
            return x - dx, ~((size <= 100 * eps * whole) | rounding), k + 1, size

        start = guess, True, 0, jnp.full_like(scale, jnp.inf)
        x, moving, *_ = jax.lax.while_loop(lambda c: c[1] & (c[2] < NEWTON_ITERATIONS), step, start)
        return jnp.where(moving, jnp.nan, x)

    return _root(F, jax.closure_convert(solve, guess, *held)[0], guess, *held)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _root(F: Callable, solve: Callable, guess: Any, *held: Any) -> Any:
    """Return x = solve(guess, held), where F(x, held) = 0."""
    return solve(guess, *held)


@_root.defjvp
def _tangent(F: Callable, solve: Callable, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """F_x dx = -F_held dheld."""
    x, held = _root(F, solve, *primals), primals[1:]
    dF = jax.jvp(lambda *held: F(x, *held), held, tangents[1:])[1]
    return x, -jnp.linalg.solve(jax.jacfwd(F)(x, *held), dF)


METHODS: dict[str, Callable] = {
    "euler": euler,
    "midpoint": midpoint,
    "rk4": rk4,
    "implicit_midpoint": implicit_midpoint,
    "trapezoid": trapezoid,
}
IMPLICIT = ("implicit_midpoint", "trapezoid")


@record(static=("method", "nx", "nu", "labels", "hold"))
class Discretized(AbstractDynamics):
    """An ODE stepped by a fixed scheme; made by `discretize`."""

    ode: StageFunction
    dt: Any
    method: str = "rk4"
    nx: int | None = None
    nu: int | None = None
    labels: Labels | None = None
    hold: str = "constant"

    @property
    def horizon(self) -> int | None:  # type: ignore[override]
        """Number of stages if dt is given per stage."""
        return self.dt.shape[0] if jnp.ndim(self.dt) else None

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """One step of the scheme; `t` is the stage index, the ODE sees seconds."""
        start, h = self.interval(t, x.dtype)
        if self.method == "zoh":
            return _zero_order_hold(lambda x, u: self.rate(x, u, start, params), x, u, h)
        held = self.held(u, start, h)
        return METHODS[self.method](lambda x, seconds: self.rate(x, held(seconds), seconds, params), x, start, h)

    def like_step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """An implicit step of an ODE is affine where an explicit one is."""
        if self.method not in IMPLICIT:
            return self.step(x, u, t, params)
        start, h = self.interval(t, x.dtype)
        held = self.held(u, start, h)
        return euler(lambda x, seconds: self.rate(x, held(seconds), seconds, params), x, start, h)

    def integral(self, rate: Callable) -> "RunningCost":
        """Return the stage cost that integrates `rate(x, u[, t[, params]])` by the scheme of these dynamics.

        Args:
            rate: cost per second, a scalar; t in seconds, u as the ODE sees it.

        Example:
            >>> import jax.numpy as jnp
            >>> import optctl as oc
            >>> dynamics = oc.discretize(lambda x, u: u, 0.5, nx=1, nu=1)
            >>> print(dynamics.integral(lambda x, u: x[0])(jnp.array([1.0]), jnp.array([2.0]), 0, None))
            0.75
        """
        if self.method == "zoh":
            raise ValueError(
                "`method` is 'zoh', which integrates linear models only; expected another for an integral."
            )
        return RunningCost(self, stage_function(rate, "rate"))

    def interval(self, t: Any, dtype: Any) -> tuple[Any, Any]:
        """Return start and length of step t in seconds."""
        if jnp.ndim(self.dt):
            h, start = self.dt[t], jnp.cumsum(self.dt)[t] - self.dt[t]
        else:
            h, start = self.dt, t * self.dt
        return jnp.asarray(start, dtype), jnp.asarray(h, dtype)  # a strongly typed step would turn float32 into float64

    def held(self, u: Any, start: Any, h: Any) -> Callable:
        """Return the input within a step as a function of seconds."""
        if self.hold == "constant":
            return lambda seconds: u
        first, last = jnp.split(u, 2)
        return lambda seconds: first + (seconds - start) / h * (last - first)

    def rehearse(self, x0: Any, us: Any, params: Any) -> None:
        """With "zoh", check that the ODE is linear at these parameters."""
        if self.method == "zoh" and is_concrete((self, x0, us, params)):
            _linear_part(self, x0.shape[0], us.shape[1], x0.dtype, params)

    def rate(self, x: Any, u: Any, seconds: Any, params: Any) -> Any:
        """Return dx/dt of the ODE; u as it sees it, t in seconds."""
        return self.ode(x, u, seconds, params)


@record()
class RunningCost:
    """The integral of a rate over each step, by the scheme of the dynamics; made by `Discretized.integral`."""

    dynamics: Discretized
    rate: StageFunction

    def __call__(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Return the cost of stage t."""
        dynamics = self.dynamics
        start, h = dynamics.interval(t, x.dtype)
        held = dynamics.held(u, start, h)

        def f(z: Any, seconds: Any) -> Any:
            now = held(seconds)
            rate = self.rate(z[:-1], now, seconds, params)
            return jnp.append(dynamics.rate(z[:-1], now, seconds, params), rate)

        return METHODS[dynamics.method](f, jnp.append(x, jnp.zeros((), x.dtype)), start, h)[-1]


def discretize(
    ode: Callable,
    dt: Any,
    method: str = "rk4",
    *,
    nx: int | None = None,
    nu: int | None = None,
    labels: Labels | None = None,
    hold: str = "constant",
) -> Discretized | LinearDynamics:
    """Turn an ODE into dynamics with inputs held constant over each step.

    Args:
        ode: `f(x, u)`, `f(x, u, t)` or `f(x, u, t, params)` returning dx/dt, shape (nx,), t in seconds;
            or a model from `optctl.models`.
        dt: step length in seconds, a number or (N,) for a mesh.
        method: "euler", "midpoint", "rk4", "implicit_midpoint", "trapezoid", or "zoh", which is exact for models
            linear in x and u (and constant in t).
        nx: number of states; None takes the model's, or leaves it to the data.
        nu: number of inputs; likewise ("zoh" needs both).
        labels: `Labels` with names and units for figures; None takes the model's.
        hold: "constant", u is held over each step; "linear", u moves from one value to another within each step, so
            that a stage's input is (u at its start, u at its end), 2 nu numbers. Optimal inputs are then found to
            second order in dt and their cost to fourth, where held ones give first and second.

    Returns:
        Dynamics; with "zoh" and no parameters, `LinearDynamics`.

    Raises:
        ValueError: for an unknown method or hold, dt not positive, or "zoh" on a model that is not linear.

    Example:
        >>> import optctl as oc
        >>> oscillator = oc.discretize(lambda x, u: [x[1], u[0] - x[0]], dt=0.1, nx=2, nu=1)
        >>> print(oscillator.rollout([1.0, 0.0], [[0.0]])[1].round(6))
        [ 0.995004 -0.099833]

    References:
        Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, section II.1.
    """
    check_choice(method, "method", (*METHODS, "zoh"))
    check_choice(hold, "hold", ("constant", "linear"))
    step = to_device(as_float(dt, "dt"))
    if np.ndim(step) > 1 or not np.size(step) or (is_concrete(step) and (np.asarray(step) <= 0).any()):
        raise ValueError(f"`dt` is {dt}; expected a positive step length in seconds, or (N,) of them.")
    nx = getattr(ode, "nx", None) if nx is None else nx
    nu = getattr(ode, "nu", None) if nu is None else nu
    nx = None if nx is None else as_whole(nx, "nx", "states")
    nu = None if nu is None else as_whole(nu, "nu", "inputs", least=0)
    labels = getattr(ode, "labels", None) if labels is None else labels
    check_labels(labels, nx, nu)
    if hold == "linear" and method == "zoh":
        raise ValueError(f"`hold` is {hold!r} with method '{method}'; expected 'constant', or 'linear' but with 'zoh'.")
    both = nu if nu is None or hold == "constant" else 2 * nu
    if both != nu and labels is not None:
        inputs = tuple(f"{name} at the {end}" for end in ("start", "end") for name in labels.inputs)
        labels = Labels(labels.states, inputs)
    dynamics = Discretized(stage_function(ode, "ode", vector=True), step, method, nx, both, labels, hold)
    if nx is not None and nu is not None and not dynamics.ode.takes("params"):
        dtype = default_float()
        got = result_shape(
            lambda x, u: dynamics.rate(x, u, np.zeros((), dtype), None), "ode", np.zeros(nx, dtype), np.zeros(nu, dtype)
        )
        if getattr(got, "shape", None) != (nx,):
            raise ValueError(f"`ode` returns {returned(got)}; expected ({nx},), dx/dt.")
        if method == "zoh":
            return _exact_linear(dynamics, nx, nu, dtype)
    if method == "zoh" and (nx is None or nu is None):
        raise ValueError("`nx` and `nu` are needed by method 'zoh'.")
    return dynamics


def _zero_order_hold(f: Callable, x: Any, u: Any, h: Any) -> Any:
    """exp(h [[A, B, c], [0]]) [x; u; 1], the first nx rows; A, B, c are the Jacobians and f(0, 0)."""
    zeros = jnp.zeros_like(x), jnp.zeros_like(u)
    A, B = jax.jacfwd(f, argnums=(0, 1))(*zeros)
    Ad, Bd, cd = _hold_matrices(A, B, f(*zeros), h)
    return Ad @ x + Bd @ u + cd


def _hold_matrices(A: Any, B: Any, c: Any, h: Any) -> tuple[Any, Any, Any]:
    nx, nu = B.shape
    block = jnp.zeros((nx + nu + 1, nx + nu + 1), A.dtype)
    block = block.at[:nx].set(jnp.concatenate([A, B, c[:, None]], axis=1))
    hold = jax.scipy.linalg.expm(h * block, max_squarings=48)
    return hold[:nx, :nx], hold[:nx, nx:-1], hold[:nx, -1]


LINEAR_PROBES = ((0.0, 1.0), (0.37, 1.0), (1.0, 30.0), (17.3, 1e-2))
"""Seconds and sizes of the points where "zoh" compares an ODE with its linear part."""


def _linear_part(dynamics: Discretized, nx: int, nu: int, dtype: Any, params: Any) -> tuple[Any, Any, Any]:
    """Return A, B, c of a linear ODE, checked at several points and times."""
    rng = np.random.default_rng(0)
    x, u = jnp.asarray(rng.normal(size=nx), dtype), jnp.asarray(rng.normal(size=nu), dtype)
    A, B, c, gaps, sizes = _probe_linear(dynamics.ode, x, u, params)
    if not is_concrete((gaps, sizes)):
        return A, B, c  # numbers of the model are being traced: there is nothing to compare
    for gap, size in zip(gaps.tolist(), sizes.tolist(), strict=True):
        if not gap <= 1e-5 * (1e-2 + size):
            raise ValueError(
                f"`ode` is not linear in x and u, or not constant in t: it departs from A x + B u + c by {gap:.3g};"
                " method 'zoh' is for linear models, use 'rk4'."
            )
    return A, B, c


@jax.jit
def _probe_linear(ode: StageFunction, x: Any, u: Any, params: Any) -> tuple[Any, ...]:
    """A, B, c at the origin; and at each probe the distance from A x + B u + c, and the size of that."""

    def f(x: Any, u: Any, seconds: Any = 0.0) -> Any:
        return ode(x, u, seconds, params)

    zeros = jnp.zeros_like(x), jnp.zeros_like(u)
    A, B = jax.jacfwd(f, argnums=(0, 1))(*zeros)
    c = f(*zeros)

    def compare(seconds: float, scale: float) -> tuple[Any, Any]:
        expected = A @ (scale * x) + B @ (scale * u) + c
        return jnp.max(jnp.abs(f(scale * x, scale * u, seconds) - expected)), jnp.max(jnp.abs(expected))

    gaps, sizes = zip(*(compare(*probe) for probe in LINEAR_PROBES), strict=True)
    return A, B, c, jnp.stack(gaps), jnp.stack(sizes)


def _exact_linear(dynamics: Discretized, nx: int, nu: int, dtype: Any) -> LinearDynamics:
    """Hold a linear ODE exactly."""
    A, B, c = _linear_part(dynamics, nx, nu, dtype, None)
    hold = jax.jit(_hold_matrices)
    if jnp.ndim(dynamics.dt):
        A, B, c = jax.vmap(hold, (None, None, None, 0))(A, B, c, dynamics.dt)
        return LinearDynamics(A, B, c, labels=dynamics.labels)
    A, B, c = hold(A, B, c, dynamics.dt)
    return LinearDynamics(A, B, c, labels=dynamics.labels, dt=dynamics.dt)
