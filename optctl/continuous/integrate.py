"""Integrate an ODE: the public call, its checks, and the trajectory it returns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl._validate import as_float, as_whole, check_scalar, check_tree, is_concrete, result_shape
from optctl.continuous.march import MarchStatus, Mesh
from optctl.continuous.ode import ODE, Event, Signal, increasing
from optctl.continuous.replay import Replay, event_times, observed, solved
from optctl.continuous.steps import METHODS, PAIRS
from optctl.continuous.system import Free, System


@record()
class Trajectory:
    """The solution of an ODE.

    Attributes:
        ts: (K,) the times asked for.
        zs: (K, ...) states there; beyond a terminal event the state at the event.
        t: the last time reached.
        event_times: times of the events (padded with inf under `jit`).
        steps: number of accepted steps.
        rejected: number of steps tried again, shorter.
        status: a `MarchStatus`; `raise_if_failed` tells it in words.
        system: what was integrated,
        free: from where and with which data,
        mesh: and the accepted steps.
    """

    ts: Any
    zs: Any
    t: Any
    event_times: Any
    steps: Any
    rejected: Any
    status: Any
    system: System
    free: Free
    mesh: Mesh

    def __call__(self, t: Any) -> Any:
        """Return z at times t, a number or (n,), by one step of the scheme from the stored time before each."""
        t = jnp.asarray(as_float(t, "t")).astype(self.ts.dtype)
        if t.ndim > 1:
            raise ValueError(f"`t` has shape {t.shape}; expected a number or (n,).")
        if np.ndim(self.status):
            raise ValueError("this is a batch of trajectories; take one of them, or call it inside vmap.")
        if is_concrete((t, self.ts)) and ((np.asarray(t) < self.ts[0]).any() or (np.asarray(t) > self.t).any()):
            raise ValueError(f"`t` leaves the solution, which goes from {float(self.ts[0]):g} to {float(self.t):g} s.")
        return _dense(self, t)

    def raise_if_failed(self) -> "Trajectory":
        """Return the trajectory itself if it reached its end.

        Raises:
            RuntimeError: if not, with the cause, the time and the state.
        """
        raise_if_failed(self.status, self.t, self.mesh.y, self.system, self.ts[-1])
        return self

    def __repr__(self) -> str:
        if np.ndim(self.status):
            return f"Trajectory: a batch of shape {np.shape(self.status)}, zs {self.zs.shape}"
        return (
            f"Trajectory: {MarchStatus(int(self.status)).words} at t = {float(self.t):g} s, {int(self.steps)} steps of"
            f" {self.system.method} ({int(self.rejected)} rejected), zs {self.zs.shape}"
        )


def integrate(
    ode: ODE,
    z0: Any,
    ts: Any,
    params: Any = None,
    *,
    inputs: Signal | None = None,
    event: Event | None = None,
    method: str = "tsit5",
    dt: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 4096,
) -> Trajectory:
    """Solve dz/dt = f from ts[0] to ts[-1].

    Args:
        ode: the ODE, or its function f.
        z0: initial state, any shape; (nz,) as a rule.
        ts: (K,) increasing times in seconds: t0, the times to observe, t1.
        params: what f gets as params, any pytree.
        inputs: u(t), where f takes an input.
        event: what interrupts the solution.
        method: under error control "tsit5", "dopri5", "dopri8" (for tight tolerances) or "kvaerno5" (implicit, for
            stiff equations); with fixed steps "euler", "midpoint", "rk4", "implicit_midpoint", "trapezoid".
        dt: longest step in seconds; a fixed scheme needs it.
        rtol: relative tolerance of a step, 1e-7 by default, 1e-4 in float32.
        atol: absolute tolerance, 1e-9 by default, 1e-6 in float32.
        max_steps: most steps; the mesh is kept.

    Returns:
        A `Trajectory`; call it for states in between. `jax.grad` passes through states, event times and `t`, to z0, ts,
        params and the input signal (in tolerances, dt and arrays inside f it gives NaN); for forward derivatives there
        is `ode_gradient`'s mode "forward".

    Raises:
        ValueError: for wrong shapes, times that do not increase, a missing input or dt.
        RuntimeError: where the solution cannot go on: a step below rounding (stiff), NaN from f, too many steps. Under
            `jit` and `vmap`, where nothing can be raised, `status` tells and later states are NaN.

    Example:
        >>> import optctl as oc
        >>> pendulum = oc.ODE(lambda z: [z[1], -z[0]])
        >>> print(oc.integrate(pendulum, [1.0, 0.0], [0.0, 1.0, 2.0]).zs[:, 0].round(6))
        [ 1.        0.540302 -0.416147]

    References:
        Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, section II.4.
    """
    system, free = prepare(ode, z0, ts, params, inputs, event, None, method, dt, rtol, atol, max_steps)
    try:
        return _finish(_integrate(system, free))
    except Exception as error:
        if type(error).__name__ != "CustomVJPException":
            raise
        raise ValueError(
            "a function closes over a value that is being differentiated; hand it over as params instead."
        ) from error


def _finish(trajectory: Trajectory) -> Trajectory:
    if not is_concrete(trajectory) or np.ndim(trajectory.status):
        return trajectory
    happened = np.asarray(trajectory.event_times)[: int(trajectory.mesh.events)]
    fields = vars(trajectory) | {"event_times": jnp.asarray(happened)}
    return Trajectory(**fields).raise_if_failed()


def prepare(
    ode: Any, z0: Any, ts: Any, params: Any, inputs: Any, event: Any, running_cost: Any, method: str, dt: Any,
    rtol: Any, atol: Any, max_steps: Any,
) -> tuple[System, Free]:  # fmt: skip
    """Check everything, and sort it into what is free and what is not."""
    ode = ode if isinstance(ode, ODE) else ODE(ode)
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}; expected one of {list(METHODS)}.")
    if method not in PAIRS and dt is None:
        raise ValueError(f"`dt` is missing: '{method}' has fixed steps; give their length in seconds.")
    z0 = jnp.asarray(as_float(z0, "z0"))
    ts = jnp.asarray(increasing(ts, "ts")).astype(z0.dtype)
    if not z0.size:
        raise ValueError(f"`z0` has shape {z0.shape}; expected at least one number.")
    if is_concrete(ts):
        increasing(ts, "ts")  # in the state's precision, too
    params = check_tree(params, "params")
    if dt is not None:
        dt = jnp.asarray(as_float(dt, "dt", ()), z0.dtype)
        if is_concrete(dt) and not dt > 0:
            raise ValueError(f"`dt` is {float(dt)}; expected a positive length in seconds.")
    if ode.takes_input != (inputs is not None):
        what = "f(z, u, t, params) takes an input: pass inputs=Signal(ts, values)"
        raise ValueError(f"`inputs` {'is missing: ' + what if inputs is None else 'is given, but f takes no input'}.")
    if inputs is not None and not isinstance(inputs, Signal):
        raise ValueError(f"`inputs` is a {type(inputs).__name__}; expected optctl.Signal.")
    if event is not None and not isinstance(event, Event):
        raise ValueError(f"`event` is a {type(event).__name__}; expected optctl.Event.")
    max_steps = as_whole(max_steps, "max_steps")
    single = z0.dtype == jnp.float32
    tolerances = []
    for name, value, default in (("rtol", rtol, 1e-4 if single else 1e-7), ("atol", atol, 1e-6 if single else 1e-9)):
        value = default if value is None else value
        if is_concrete(value) and not (np.ndim(value) == 0 and value > 0):
            raise ValueError(f"`{name}` is {value!r}; expected a positive number.")
        tolerances.append(jnp.asarray(value, z0.dtype))
    if inputs is not None:
        inputs = Signal(inputs.ts.astype(ts.dtype), inputs.values.astype(z0.dtype), inputs.kind)
    relative, absolute = tolerances
    system = System(ode, event, dt, relative, absolute, running_cost, method, max_steps)
    free = Free(z0, params, ts, inputs)
    _check_functions(system, free)
    return system, free


def _check_functions(system: System, free: Free) -> None:
    """Raise unless f returns the shape and type of z."""
    z, t = free.z0, free.ts[0]
    got = result_shape(system.ode, "f", z, free.first_input, t, free.params)
    if getattr(got, "shape", None) != z.shape:
        raise ValueError(
            f"`f` returns shape {getattr(got, 'shape', type(got).__name__)}; expected {z.shape}, that of z."
        )
    if got.dtype != z.dtype:
        raise ValueError(
            f"`f` returns {got.dtype} for a {z.dtype} state; constants inside f and the parameters must share the"
            " precision of z0."
        )
    if system.event is not None:
        check_scalar(system.event.value, "when", z, t, free.params, dtype=z.dtype)
        if system.event.reset is not None:
            got = result_shape(system.event.after, "reset", z, t, free.params)
            if got.shape != z.shape or got.dtype != z.dtype:
                raise ValueError(
                    f"`reset` returns {got.dtype} of shape {got.shape}; expected {z.dtype} of shape {z.shape}, as z."
                )


@jax.jit
def _integrate(system: System, free: Free) -> Trajectory:
    mesh = solved(system, free)
    return Trajectory(
        free.ts, observed(system, free, mesh), mesh.t, event_times(mesh), mesh.count, mesh.rejected, mesh.status,
        system, free, mesh,
    )  # fmt: skip


@jax.jit
def _dense(trajectory: Trajectory, t: Any) -> Any:
    system, free, mesh = trajectory.system, trajectory.free, trajectory.mesh
    replay = Replay(system, free, mesh)
    inside = jnp.arange(mesh.ts.shape[0]) <= mesh.count
    ts = jnp.where(inside, mesh.ts, jnp.inf)

    def at(t: Any) -> Any:
        n = jnp.clip(jnp.searchsorted(ts, t, side="right") - 1, 0, jnp.maximum(mesh.count - 1, 0))
        return system.state(replay.advance(n, mesh.ys[n], mesh.ts[n], t, free.data), free.z0.shape)

    zs = jax.vmap(at)(jnp.atleast_1d(t))
    known = (t >= mesh.ts[0]) & (t <= mesh.t)
    zs = zs * jnp.where(known, 1.0, jnp.nan).astype(zs.dtype).reshape(-1, *[1] * (zs.ndim - 1))
    return zs if t.ndim else zs[0]


def raise_if_failed(status: Any, t: Any, y: Any, system: System, t1: Any) -> None:
    """Raise RuntimeError with the cause, the time and the state, unless the march reached its end."""
    worst = int(np.max(np.asarray(status)))
    if worst in (MarchStatus.DONE, MarchStatus.EVENT):
        return
    first = int(np.argmax(np.asarray(status))) if np.ndim(status) else ()
    t, y = float(np.asarray(t)[first]), np.asarray(y)[first]
    end = np.max(np.asarray(t1))
    if t >= end:
        raise RuntimeError(
            f"the adjoint equation could not be solved backward from t = {t:.9g} s ({MarchStatus(worst).words}): use"
            " mode 'exact', or method='kvaerno5' if it is stiff."
        )
    where = f"at t = {t:.9g} s, z = {np.array2string(y[:8], precision=4)}{'...' if y.size > 8 else ''}"
    remedy = "use method='kvaerno5', or check f for a pole" if system.method != "kvaerno5" else "check f for a pole"
    more = "raise max_steps or dt" if system.method not in PAIRS else "raise max_steps, loosen rtol and atol"
    if system.method in PAIRS and system.method != "kvaerno5":
        more += ", or, if the equation is stiff, use method='kvaerno5'"
    raise RuntimeError(
        {
            MarchStatus.TOO_SHORT: f"the step length fell below rounding {where}: the equation is stiff or singular"
            f" there; {remedy}.",
            MarchStatus.NOT_FINITE: f"f{' or `when`' if system.event else ''} is not finite {where} or shortly after;"
            " check its domain there.",
            MarchStatus.MESH_FULL: f"{system.max_steps} steps ended {where}, before ts[-1] = {end:g} s; {more}.",
            MarchStatus.TOO_MANY_EVENTS: f"more than {system.event.most if system.event else 0} events {where}, or the"
            " state rests on the surface there; they may accumulate in a point: raise `most`, or end the integration"
            " before it.",
            MarchStatus.BAD_TIMES: "`ts` does not increase, or `dt` is not positive.",
        }[MarchStatus(worst)]
    )
