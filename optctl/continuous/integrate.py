"""Integrate an ODE: the public call, its checks, and the trajectory it returns."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _door
from optctl._arrays import namespace, on_host, own, to_host
from optctl._record import changed, record
from optctl._validate import (
    as_float,
    as_whole,
    cast,
    check_choice,
    check_positive,
    check_scalar,
    check_tree,
    is_concrete,
    result_shape,
    returned,
)
from optctl.continuous.linked import linked
from optctl.continuous.march import Mesh
from optctl.continuous.native import find_flow
from optctl.continuous.ode import ODE, Event, Signal, increasing
from optctl.continuous.replay import Replay, event_times, jump_inside_steps, observed, reached_end, solved
from optctl.continuous.steps import METHODS, PAIRS
from optctl.continuous.system import Free, System
from optctl.problem import once, warn_of_changes
from optctl.result import Result, Status

FIRST_STEPS = 4096
MEMORY = 1 << 28  # bytes, for the steps of one solution


@record()
class Trajectory(Result):
    """The solution of an ODE.

    Attributes:
        ts: (K,) the times asked for.
        zs: (K, ...) states there; beyond a terminal event the state at the event.
        t: the last time reached.
        event_times: times of the events (padded with inf under `jit`); of a list of events a list.
        jump_at: a time at which f seems to jump inside steps, NaN if none: that costs digits and derivatives.
        steps: number of accepted steps.
        rejected: number of steps tried again, shorter.
        status: a `Status`: SOLVED or EVENT where the end was reached.
        system: what was integrated,
        free: from where and with which data,
        mesh: and the accepted steps.
    """

    ts: Any
    zs: Any
    t: Any
    event_times: Any
    jump_at: Any
    steps: Any
    rejected: Any
    status: Any
    system: System
    free: Free
    mesh: Mesh

    def __call__(self, t: Any) -> Any:
        """Return z at times t, a number or (n,), by one step of the scheme from the stored time before each."""
        t = cast(_door.enter(as_float(t, "t"), natively=on_host(self.ts)), self.ts.dtype)
        if t.ndim > 1:
            raise ValueError(f"`t` has shape {t.shape}; expected a number or (n,).")
        if np.ndim(self.status):
            raise ValueError("this is a batch of trajectories; take one of them, or call it inside vmap.")
        if is_concrete((t, self.ts, self.t)) and self._leaves(np.asarray(t)):
            raise ValueError(f"`t` leaves the solution, which goes from {float(self.ts[0]):g} to {float(self.t):g} s.")
        flow = find_flow(self.system, self.free) if on_host(t) and on_host(self.mesh.ts) else None
        if flow is None:
            return _dense(self, t)
        zs = self.system.state(flow.between(self.mesh, self.system.sign * t.reshape(-1)), self.free.z0.shape)
        return zs if t.ndim else zs[0]

    def _leaves(self, t: Any) -> bool:
        low, high = sorted((float(self.ts[0]), float(self.t)))
        return bool((t < low).any() or (t > high).any())

    @property
    def converged(self) -> Any:
        """True if it reached its end."""
        return reached_end(self.status)

    @property
    def stage(self) -> Any:
        """The time tells where it failed; see `t`."""
        return np.full(np.shape(self.status), -1)

    def explanation(self) -> str:
        """Cause and remedy, with the time and the state."""
        if self.converged:
            return at_time(self)
        return why_it_failed(self.status, self.t, self.mesh.y, self.system, self.ts[-1])

    def __repr__(self) -> str:
        if np.ndim(self.status):
            return f"Trajectory: a batch of shape {np.shape(self.status)}, zs {self.zs.shape}"
        return (
            f"Trajectory: {Status(int(self.status)).message}; t = {float(self.t):g} s, {int(self.steps)} steps of"
            f" {self.system.method} ({int(self.rejected)} rejected), zs {self.zs.shape}"
        )


def integrate(
    ode: ODE,
    z0: Any,
    ts: Any,
    params: Any = None,
    *,
    inputs: Signal | None = None,
    event: Event | Sequence[Event] | None = None,
    jump_ts: Any = None,
    method: str = "tsit5",
    dt: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
) -> Trajectory:
    """Solve dz/dt = f from ts[0] to ts[-1], forward or backward in time.

    Args:
        ode: the ODE, or its function f.
        z0: initial state, any shape; (nz,) as a rule.
        ts: (K,) times in seconds, increasing or falling: t0, the times to observe, t1.
        params: what f gets as params, any pytree.
        inputs: u(t), where f takes an input.
        event: what interrupts the solution, an `Event` or a list of them.
        jump_ts: (J,) increasing times at which f jumps: steps end there, and f is called on their own side. Where f
            says `where(t < T, ...)` with T among the params, T belongs here, too: the derivative in T comes through it.
        method: under error control "tsit5", "dopri5", "dopri8" (for tight tolerances) or "kvaerno5" (implicit, for
            stiff equations); with fixed steps "euler", "midpoint", "rk4", "implicit_midpoint", "trapezoid".
        dt: longest step in seconds; a fixed scheme needs it.
        rtol: relative tolerance of a step, 1e-7 by default, 1e-4 in float32.
        atol: absolute tolerance, 1e-9 by default, 1e-6 in float32.
        max_steps: most steps, which are kept. None: as many as it takes, up to 256 MiB; under `jit` and `vmap`, where
            room cannot grow, 4096.

    Returns:
        A `Trajectory`, of NumPy arrays where compiled code found it (explicit methods); call it for states in between.
        `jax.grad` passes through states, event times and `t`, to z0, ts, params, jump_ts and the input signal (in
        tolerances, dt and arrays inside f it gives NaN); for forward derivatives use `ode_gradient`, mode "forward".

    Raises:
        ValueError: for wrong shapes, times that neither increase nor fall, a missing input or dt.
        RuntimeError: where the solution cannot go on: a step below rounding (stiff), NaN from f, too many steps. Under
            `jit` and `vmap`, where nothing can be raised, `status` tells and later states are NaN.

    Warns:
        UserWarning: where f seems to jump inside steps (`jump_at`).

    Example:
        >>> import optctl as oc
        >>> pendulum = oc.ODE(lambda z: [z[1], -z[0]])
        >>> print(oc.integrate(pendulum, [1.0, 0.0], [0.0, 1.0, 2.0]).zs[:, 0].round(6))
        [ 1.        0.540302 -0.416147]

    References:
        Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, section II.4.
    """
    system, free = prepare(ode, z0, ts, params, inputs, event, jump_ts, None, method, dt, rtol, atol, max_steps)
    try:
        return _finish(with_room(system, free, max_steps, lambda system: _solution(system, free)))
    except Exception as error:
        if type(error).__name__ != "CustomVJPException":
            raise
        raise ValueError(
            "a function closes over a value that is being differentiated; hand it over as params instead."
        ) from error


def _finish(trajectory: Trajectory) -> Trajectory:
    if not is_concrete(trajectory) or np.ndim(trajectory.status):
        return trajectory
    fields = vars(trajectory) | {"event_times": happened(trajectory.event_times)}
    trajectory = Trajectory(**fields).raise_if_failed()
    warn_of_jump(trajectory.jump_at)
    return trajectory


def happened(times: Any) -> Any:
    """Drop the padding of times of events."""
    return jax.tree.map(lambda one: one[np.isfinite(np.asarray(one))], times)


def warn_of_jump(at: Any) -> None:
    """Warn where f seems to jump inside steps."""
    if np.isfinite(float(at)):
        warnings.warn(
            f"f seems to jump inside steps, at about t = {float(at):.6g} s: this costs steps, digits and derivatives. A"
            " jump in time belongs into a Signal or into jump_ts, a jump in the state into an Event.",
            stacklevel=4,
        )


def with_room(
    system: System, free: Free, max_steps: int | None, run: Callable, status: Callable = lambda result: result.status
) -> Any:
    """Run with room for ever more steps until they suffice or fill the memory; on the host, if nobody said how many."""
    result = run(system)
    most = MEMORY // ((system.size(free) + 1) * free.z0.dtype.itemsize + 8)
    while max_steps is None and system.max_steps < most:
        ended = _door.numbers(status(result))  # also inside jax.grad
        if not is_concrete(ended) or int(np.max(np.asarray(ended))) != Status.MESH_FULL:
            break
        system = changed(system, max_steps=min(8 * system.max_steps, most))
        result = run(system)
    return result


def prepare(
    ode: Any, z0: Any, ts: Any, params: Any, inputs: Any, event: Any, jump_ts: Any, running_cost: Any, method: str,
    dt: Any, rtol: Any, atol: Any, max_steps: Any,
) -> tuple[System, Free]:  # fmt: skip
    """Check everything, and sort it into what is free and what is not."""
    ode = ode if isinstance(ode, ODE) else ODE(ode)
    ode = ode.without_input() if inputs is None else ode
    warn_of_changes(ode)
    check_choice(method, "method", METHODS)
    if method not in PAIRS and dt is None:
        raise ValueError(f"`dt` is missing: '{method}' has fixed steps; give their length in seconds.")
    z0 = as_float(z0, "z0")
    ts = cast(increasing(ts, "ts", falling=True), z0.dtype)
    if not z0.size:
        raise ValueError(f"`z0` has shape {z0.shape}; expected at least one number.")
    if is_concrete(ts):
        increasing(ts, "ts", falling=True)  # in the state's precision, too
    params = check_tree(params, "params")
    if dt is not None:
        dt = cast(as_float(dt, "dt", ()), z0.dtype)
        if is_concrete(dt) and not dt > 0:
            raise ValueError(f"`dt` is {float(dt)}; expected a positive length in seconds.")
    if ode.takes_input != (inputs is not None):
        what = "f(z, u, t, params) takes an input: pass inputs=Signal(ts, values)"
        raise ValueError(f"`inputs` {'is missing: ' + what if inputs is None else 'is given, but f takes no input'}.")
    if inputs is not None and not isinstance(inputs, Signal):
        raise ValueError(f"`inputs` is a {type(inputs).__name__}; expected optctl.Signal.")
    listed = isinstance(event, list | tuple)
    events = tuple(event) if listed else () if event is None else (event,)
    for one in events:
        if not isinstance(one, Event):
            of_list = " holding " if listed else ""
            what = f"{type(event).__name__}{of_list}{'a ' + type(one).__name__ if listed else ''}"
            raise ValueError(f"`event` is a {what}; expected optctl.Event, or a list of them.")
    if jump_ts is not None:
        jump_ts = cast(increasing(jump_ts, "jump_ts", least=1), ts.dtype)
    max_steps = FIRST_STEPS if max_steps is None else as_whole(max_steps, "max_steps")
    single = z0.dtype == np.float32
    tolerances = []
    for name, value, default in (("rtol", rtol, 1e-4 if single else 1e-7), ("atol", atol, 1e-6 if single else 1e-9)):
        value = default if value is None else value
        check_positive(value, name)
        tolerances.append(np.asarray(value, z0.dtype) if is_concrete(value) else jnp.asarray(value, z0.dtype))
    if inputs is not None:
        inputs = changed(inputs, ts=cast(inputs.ts, ts.dtype), values=cast(inputs.values, z0.dtype))
    relative, absolute = tolerances
    # the functions, too: what they hold must be numbers, of NumPy's or of JAX's, like all the rest
    # and its own: trajectories and derivatives are asked for later
    given = own((ode, events, running_cost, dt, relative, absolute, z0, params, ts, inputs, jump_ts))
    ode, events, running_cost, dt, relative, absolute, z0, params, ts, inputs, jump_ts = _door.enter(given)
    sign = namespace(ts).where(ts[-1] < ts[0], -1.0, 1.0).astype(ts.dtype)
    system = System(ode, events, sign, dt, relative, absolute, running_cost, method, max_steps, listed)
    free = Free(z0, params, ts, inputs, jump_ts)
    once(("an ODE", system, free), lambda: _check_functions(system, free))
    return system, free


def _check_functions(system: System, free: Free) -> None:
    """Raise unless f returns the shape and type of z."""
    z, t = free.z0, free.ts[0]
    got = result_shape(system.ode, "f", z, free.first_input, t, free.params)
    if getattr(got, "shape", None) != z.shape:
        raise ValueError(f"`f` returns {returned(got)}; expected {z.shape}, that of z.")
    if got.dtype != z.dtype:
        raise ValueError(
            f"`f` returns {got.dtype} for a {z.dtype} state; constants inside f and the parameters must share the"
            " precision of z0."
        )
    for event in system.events:
        check_scalar(event.value, "when", z, t, free.params, dtype=z.dtype)
        got = result_shape(event.after, "reset", z, t, free.params)
        if got.shape != z.shape or got.dtype != z.dtype:
            raise ValueError(
                f"`reset` returns {got.dtype} of shape {got.shape}; expected {z.dtype} of shape {z.shape}, as z."
            )
        got = result_shape(event.params_after, "reset_params", z, t, free.params)
        describe = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)  # noqa: E731
        if describe(got) != describe(free.params):
            raise ValueError(
                f"`reset_params` returns {got}; expected what params are: the same structure, shapes and types."
            )


def _solution(system: System, free: Free) -> Trajectory:
    """Return the solution by compiled code where that can be, else by the definition."""
    flow = find_flow(system, free)
    if flow is not None:
        mesh, jump_at = flow.march(sensitive=False)
        return _trajectory(system, free, mesh, jump_at)
    if _door.followed(free) and is_concrete(system):
        numbers = to_host((system, _door.numbers(free)))
        flow = find_flow(*numbers, sensitive=True, back=True)
        if flow is not None:
            mesh, jump_at = flow.march(sensitive=True, stages=True)
            zs, t, times, mesh = linked(flow, mesh, free)
            return Trajectory(
                free.ts, zs, t, times, jump_at, mesh.count, mesh.rejected, mesh.status, system, free, mesh
            )
    return _integrate(system, free)


@jax.jit
def _integrate(system: System, free: Free) -> Trajectory:
    mesh = solved(system, free)
    return _trajectory(system, free, mesh, jump_inside_steps(system, free, mesh))


def _trajectory(system: System, free: Free, mesh: Mesh, jump_at: Any) -> Trajectory:
    return Trajectory(
        free.ts, observed(system, free, mesh), system.sign * mesh.t, event_times(system, mesh), jump_at, mesh.count,
        mesh.rejected, mesh.status, system, free, mesh,
    )  # fmt: skip


@jax.jit
def _dense(trajectory: Trajectory, t: Any) -> Any:
    system, free, mesh = trajectory.system, trajectory.free, trajectory.mesh
    replay = Replay(system, free, mesh)
    inside = jnp.arange(mesh.ts.shape[0]) <= mesh.count
    ts = jnp.where(inside, mesh.ts, jnp.inf)

    s = system.sign * t

    def at(s: Any) -> Any:
        n = jnp.clip(jnp.searchsorted(ts, s, side="right") - 1, 0, jnp.maximum(mesh.count - 1, 0))
        return system.state(replay.advance(n, mesh.ys[n], mesh.ts[n], s, free.data), free.z0.shape)

    zs = jax.vmap(at)(jnp.atleast_1d(s))
    known = (s >= mesh.ts[0]) & (s <= mesh.t)
    zs = zs * jnp.where(known, 1.0, jnp.nan).astype(zs.dtype).reshape(-1, *[1] * (zs.ndim - 1))
    return zs if t.ndim else zs[0]


def at_time(result: Any) -> str:
    """Return how a solution ended, and when."""
    return f"{Status(int(result.status)).message} (t = {float(result.t):.9g} s)"


def why_it_failed(status: Any, t: Any, y: Any, system: System, t1: Any) -> str:
    """Return the cause, the time and the state of a march that did not reach its end."""
    worst = int(np.max(np.asarray(status)))
    first = int(np.argmax(np.asarray(status))) if np.ndim(status) else ()
    t, y, t1, sign = (np.asarray(one) for one in (t, y, t1, system.sign))
    t, y = float(t[first]), y[first]
    end = float(t1[first] if t1.ndim else t1)
    if (t - end) * float(sign[first] if sign.ndim else sign) >= 0:
        return (
            f"the adjoint equation could not be solved backward from t = {t:.9g} s ({Status(worst).message}): use"
            " mode 'exact', or method='kvaerno5' if it is stiff."
        )
    where = f"at t = {t:.9g} s, z = {np.array2string(y[:8], precision=4)}{'...' if y.size > 8 else ''}"
    remedy = "use method='kvaerno5', or check f for a pole" if system.method != "kvaerno5" else "check f for a pole"
    more = "raise max_steps or dt" if system.method not in PAIRS else "raise max_steps, loosen rtol and atol"
    if system.method in PAIRS and system.method != "kvaerno5":
        more += ", or, if the equation is stiff, use method='kvaerno5'"
    return {
        Status.STEP_TOO_SHORT: f"the step length fell below rounding {where}: the equation is stiff or singular"
        f" there; {remedy}.",
        Status.NON_FINITE: f"f{' or `when`' if system.events else ''} is not finite {where} or shortly after;"
        " check its domain there.",
        Status.MESH_FULL: f"{system.max_steps} steps ended {where}, before ts[-1] = {end:g} s; {more}.",
        Status.TOO_MANY_EVENTS: f"more than {' or '.join(str(one.most) for one in system.events)} events"
        f" {where}, or the state rests on the surface there; they may accumulate in a point: raise `most`, or end"
        " the integration before it.",
        Status.BAD_TIMES: "`ts` neither increases nor falls throughout, or `dt` is not positive.",
    }[Status(worst)]
