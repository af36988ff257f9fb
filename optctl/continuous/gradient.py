r"""Gradients of ODE solutions: of what was computed, exactly, or by the adjoint equation.

With the costate lambda(t) = dL/dz(t), continuous in time,

    lambda' = -f_z' lambda - l_z,   lambda(t1) = dL/dz(t1),   a jump by dL/dz(t_i) at each observation time,
    dL/dp = int f_p' lambda + l_p dt,    dL/dt1 = lambda(t1)'f + l,   dL/dt0 = -(lambda(t0)'f + l).

"exact" applies the discrete recursion to the accepted steps Phi, z_{n+1} = Phi(z_n, t_n, t_{n+1}):

    lambda_n = Phi_z' lambda_{n+1} (+ jump),    dL/dp = sum_n Phi_p' lambda_{n+1},    likewise for t_n and t_{n+1}.

It is the derivative of the numbers that were computed, to rounding, with the mesh between anchors held fixed (a fixed
scheme's mesh moves with its anchors). An event's time is a function of the state before it, by the implicit function
theorem. The mesh is chosen by the errors of the state and of its sensitivities: at an equilibrium the state alone would
see nothing. "continuous" solves the adjoint equation backward under its own error control.

References: Hager (2000), Runge-Kutta methods in optimal control and the transformed adjoint system, Numerische
Mathematik 87; Cao, Li, Petzold and Serban (2003), Adjoint sensitivity analysis for differential-algebraic equations,
SIAM Journal on Scientific Computing 24.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace
from optctl._record import record
from optctl._validate import as_float, check_choice, check_flag, check_like, check_scalar, check_tree, is_concrete
from optctl.adjoint.known import with_slope
from optctl.continuous.integrate import at_time, happened, prepare, warn_of_jump, why_it_failed, with_room
from optctl.continuous.loss import loss_by_jax, loss_by_tape
from optctl.continuous.march import ARRIVAL, EVENT, Mesh, chosen, march
from optctl.continuous.native import find_flow
from optctl.continuous.ode import ODE, STATE_INPUT_TIME, STATE_TIME, Event, Signal
from optctl.continuous.replay import (
    Replay,
    event_times,
    gather,
    jump_inside_steps,
    marched,
    observed,
    pull_back,
    reached_end,
)
from optctl.continuous.steps import rolled_step
from optctl.continuous.system import Free, System
from optctl.dynamics.memory import check_memory, take
from optctl.dynamics.stage import StageFunction, stage_function
from optctl.problem import once
from optctl.result import Result, Status

MODES = ("exact", "continuous", "forward")
CONTROLS = ("sensitivities", "states")


@record()
class ODEGradient(Result):
    """A loss of an ODE's solution, and its derivatives.

    Attributes:
        value: the loss, running cost included.
        zs: (K, ...) states at ts.
        z0: dL/dz0.
        params: dL/dparams, like the parameters.
        ts: (K,) dL/dts: t0, the observation times, t1.
        inputs: dL/dvalues of the input signal, or None.
        knots: dL/d(times of the knots) of the input signal, or None.
        jump_ts: dL/djump_ts, or None.
        costates: (K, ...) dL/dz at ts, its own share in the loss included; None in mode "forward".
        event_times: times of the events; of a list of events a list.
        jump_at: a time at which f seems to jump inside steps, NaN if none: that costs digits and derivatives.
        mismatch: in mode "continuous" with `reintegrate`, how far the state came back from z0, relative; else 0.
        steps: number of accepted steps, forward.
        status: a `Status`: SOLVED or EVENT where the end was reached.
        t: the last time reached.
        z: the state there.
    """

    value: Any
    zs: Any
    z0: Any
    params: Any
    ts: Any
    inputs: Any
    knots: Any
    jump_ts: Any
    costates: Any
    event_times: Any
    jump_at: Any
    mismatch: Any
    steps: Any
    status: Any
    t: Any
    z: Any

    @property
    def converged(self) -> Any:
        """True if the solution reached its end and the loss is finite."""
        return reached_end(self.status) & namespace(self.value).isfinite(self.value)

    @property
    def stage(self) -> Any:
        """The time tells where it failed; see `t`."""
        return np.full(np.shape(self.status), -1)

    def explanation(self) -> str:
        """Cause and remedy, with the time."""
        if reached_end(self.status) and not np.isfinite(float(self.value)):
            return f"the loss is {float(self.value)}, though the solution reached t = {float(self.t):g} s"
        return at_time(self)


def loss_slopes(system: System, loss: StageFunction, free: Free, mesh: Mesh) -> tuple[Any, Any, Any, Any]:
    """Return the loss and its slopes: at the anchors, at the end of the march, and in the mesh's times."""
    value, slopes = jax.value_and_grad(lambda *parts: loss_of(system, loss, free, mesh, *parts), (0, 1, 2))(
        mesh.at, mesh.y, mesh.ts
    )
    return value, *slopes


def loss_of(system: System, loss: StageFunction, free: Free, mesh: Mesh, at: Any, y: Any, ts: Any) -> Any:
    """Return the loss, running cost included, of states at the anchors and at the end, and of the mesh's times."""
    fields = vars(mesh) | {"at": at, "y": y, "ts": ts}
    solution = Mesh(**fields)
    value = jnp.asarray(loss(observed(system, free, solution), event_times(system, solution)))
    return value if system.running_cost is None else value + system.integral(y, free.z0.shape)


def exact(system: System, loss: StageFunction, free: Free, mesh: Mesh, memory: Any = "full") -> ODEGradient:
    """Step the costate back through the accepted steps."""
    value, *slopes = loss_slopes(system, loss, free, mesh)
    gat, gy, gts = slopes
    g, costates = pull_back(system, free, mesh, gat, gy, gts, memory=memory)
    return _result(system, free, mesh, value, g, costates)


def _result(
    system: System, free: Free, mesh: Mesh, value: Any, g: Free, costates: Any, seen: Any = None
) -> ODEGradient:
    """Return all together; `seen` is what was observed already: states, times of events, a jump."""
    if seen is None:
        jump_at = jump_inside_steps(system, free, mesh)
        seen = observed(system, free, mesh), event_times(system, mesh), jump_at
    zs, times, jump_at = seen
    inputs, knots = (None, None) if g.signal is None else (g.signal.values, g.signal.ts)
    return ODEGradient(
        value, zs, g.z0, g.params, g.ts, inputs, knots, g.jump_ts, costates, times, jump_at,
        namespace(mesh.y).zeros((), mesh.y.dtype), mesh.count,
        mesh.status, system.sign * mesh.t, system.state(mesh.y, free.z0.shape),
    )  # fmt: skip


def forward(system: System, loss: StageFunction, free: Free, mesh: Mesh) -> ODEGradient:
    """Carry one sensitivity for each free number forward through the accepted steps."""
    replay = Replay(system, free, mesh)

    def value(free: Free) -> Any:
        solution = replay.forward(free)
        return loss_of(system, loss, free, solution, solution.at, solution.y, solution.ts)

    return _result(system, free, mesh, value(free), jax.jacfwd(value)(free), None)


def continuous(system: System, loss: StageFunction, free: Free, mesh: Mesh, reintegrate: bool) -> ODEGradient:
    """Solve the adjoint equation backward, s = -t.

    The state comes from the stored steps, each started again from its own beginning, or is solved for backward, too.
    """
    shape = free.z0.shape
    grid = system.grid(free)
    anchors, where = grid.anchors, grid.where
    value, gat, gy_end, gtimes = loss_slopes(system, loss, free, mesh)
    data, unravel = jax.flatten_util.ravel_pytree(free.data)
    m, moved = mesh.y.shape[0], system.moved_by_f(shape)
    o = m if reintegrate else 0  # where lambda begins in the row (z, lambda, dL/ddata)
    if reintegrate:
        knots, many = anchors, where[-1]
        knot_of = interval = jnp.arange(anchors.shape[0], dtype=jnp.int32)
    else:
        knots, many, interval = mesh.ts, mesh.count, mesh.anchor
        steps = jnp.arange(mesh.anchor.shape[0], dtype=jnp.int32)
        row = jnp.where((mesh.end == ARRIVAL) & (steps < many), mesh.anchor + 1, anchors.shape[0])
        knot_of = jnp.zeros(anchors.shape[0], jnp.int32).at[row].set(steps + 1, mode="drop")
    index = jnp.arange(anchors.shape[0], dtype=jnp.int32)
    reached = index <= jnp.where(reintegrate, many, mesh.last)
    seen_at = jnp.where(reached, knot_of, knots.shape[0])
    arrival = jnp.full(knots.shape[0], -1, jnp.int32).at[seen_at].set(index, mode="drop")
    backward = -knots[jnp.clip(many - jnp.arange(knots.shape[0]), 0)]

    def rate(z: Any, t: Any, n: Any, data: Any) -> Any:
        return system.rate(shape, z, t, take(interval, n), grid, unravel(data))

    def inside(n: Any, t: Any) -> Any:
        """The state in step n."""
        begin = take(mesh.ts, n)
        return rolled_step(system.method, lambda z, t: rate(z, t, n, data), take(mesh.ys, n), begin, t - begin)

    def f(y: Any, s: Any, i: Any) -> Any:
        """The adjoint equation, in the i-th interval from the end."""
        n = jnp.clip(many - 1 - i, 0, interval.shape[0] - 1)
        z = y[:m] if reintegrate else inside(n, -s)
        slope, transpose = jax.vjp(lambda z, data: rate(z, -s, n, data), z, data)
        gz, gdata = transpose(y[o : o + m])
        return jnp.concatenate([-slope[:o], gz, gdata])

    def undo_event(y: Any, n: Any) -> Any:
        """The jump at the event that ends step n: a state off its path meets the surface tau later, and is then reset.

        Up to there it follows the flow before the event, from there back to the old time the flow after it.
        """
        t, after = take(mesh.ts, n + 1), take(mesh.ys, n + 1)
        before = inside(n, t)
        k = take(mesh.end, n) - EVENT
        ends = jnp.asarray([event.ends for event in system.events])[k]
        flow = rate(before, t, n, data)
        flow_after = jnp.where(ends, 0.0, rate(after, t, n, data))
        given = system.triggers(shape, free.params)
        _, closing = jax.jvp(lambda y, t: chosen(given, "value", k, y, t), (before, t), (flow, jnp.ones_like(t)))

        def across(z: Any, data: Any) -> tuple[Any, Any]:
            triggers = system.triggers(shape, unravel(data)[0])
            tau = -chosen(triggers, "value", k, z, t) / closing
            met = z + tau * flow
            return chosen(triggers, "reset", k, met, t + tau) - tau * flow_after, t + tau

        _, transpose = jax.vjp(across, before, data)
        gz, gdata = transpose((y[:m], take(gtimes, n + 1)))
        return jnp.concatenate([gz, y[m:] + gdata])

    def jump(k: Any) -> Any:
        """The loss's slope at knot k."""
        return jnp.where(take(arrival, k) >= 0, take(gat, jnp.maximum(take(arrival, k), 0)), 0.0)

    def arrive(y: Any, i: Any) -> Any:
        k = jnp.clip(many - i, 0)
        y = jnp.concatenate([y[:o], y[o : o + m] + jump(k), y[o + m :]])
        if not system.events:
            return y
        n = jnp.maximum(k - 1, 0)
        return jax.lax.cond((k > 0) & (take(mesh.end, n) >= EVENT), lambda: undo_event(y, n), lambda: y)

    def norm(y: Any, y_next: Any, error: Any) -> Any:
        size, tiny = jnp.maximum(jnp.abs(y), jnp.abs(y_next)), jnp.finfo(y.dtype).tiny
        c, d = slice(o, o + moved), slice(o + moved, None)  # of the state, and of all parameters
        of_costate, of_data = (jnp.max(part, initial=0.0) for part in (size[c], size[d]))
        blocks = [
            error[:o] / (system.atol + system.rtol * size[:o]),
            error[c] / (system.rtol * of_costate + tiny),
            error[d] / (system.rtol * (of_data + 1e-3 * of_costate) + tiny),
        ]
        return jnp.stack([jnp.sqrt(jnp.mean(b**2)) for b in blocks if b.size]).max()

    y1 = arrive(jnp.concatenate([mesh.y[:o], gy_end, jnp.zeros_like(data)]), 0)
    back = march(
        system.method, f, y1, backward, norm=norm, dt=system.dt, last=many, max_steps=8 * system.max_steps, keep="",
        width=o + m, arrive=arrive,
    )  # fmt: skip
    # Row i of back.at holds knot many - i; the first one is the end itself.
    costates = back.at[jnp.clip(many - knot_of, 0)][:, o:] * reached[:, None]
    # An anchor that comes later: longer by the flow before it, shorter by that after it.
    rate_at = jax.vmap(lambda z, t, j: system.rate(shape, z, t, j, grid, free.data))
    zs = jnp.where(reached[:, None], mesh.at, mesh.at[:1])
    before = rate_at(zs, anchors, jnp.maximum(index - 1, 0)) * (index > 0)[:, None]
    after = rate_at(zs, anchors, index) * (index != where[-1])[:, None]
    ganchors = jnp.sum(costates * before - (costates - gat) * after * reached[:, None], axis=1)
    gap, status = jnp.zeros((), back.whole.dtype), mesh.status
    if reintegrate:
        miss = jnp.abs(system.state(back.whole[:m], shape) - free.z0)
        gap = jnp.max(miss) / jnp.max(jnp.abs(mesh.at[where]))
        gap = jnp.where(back.status == Status.SOLVED, gap, jnp.inf)
    else:
        status = jnp.where(reached_end(status) & (back.status != Status.SOLVED), back.status, status)
    state = lambda y: system.state(y, shape)  # noqa: E731
    g = gather(system, free, costates[0], ganchors, unravel(back.whole[o + m :]))
    fields = vars(_result(system, free, mesh, value, g, state(costates[where])))
    return ODEGradient(**fields | {"mismatch": gap, "status": status})


def ode_gradient(
    ode: ODE,
    loss: Callable,
    z0: Any,
    ts: Any,
    params: Any = None,
    *,
    mode: str = "exact",
    inputs: Signal | None = None,
    event: Event | Sequence[Event] | None = None,
    jump_ts: Any = None,
    running_cost: Callable | None = None,
    method: str = "tsit5",
    dt: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    control: str = "sensitivities",
    memory: Any = "full",
    reintegrate: bool = False,
) -> ODEGradient:
    """Return a loss of an ODE's solution and its derivatives in z0, params, the times, the input signal and jump_ts.

    Args:
        ode: the ODE, or its function f.
        loss: `loss(zs)`, a scalar of the states (K, ...) at ts; with an event `loss(zs, event_times)`, (most,) times,
            inf where there were fewer, with a list of events a list of these.
        z0: initial state, any shape.
        ts: (K,) times in seconds, increasing or falling: t0, observation times, t1.
        params: any pytree.
        mode: "exact", the derivative of the numbers computed, to rounding; "continuous", the adjoint equation solved
            backward under its own error control; "forward", one sensitivity for each free number, for a few of them.
        inputs: u(t), where f takes an input.
        event: what interrupts the solution, an `Event` or a list of them; not with `reintegrate`.
        jump_ts: (J,) increasing times at which f jumps, as for `integrate`. `g.jump_ts` is the derivative in them; what
            depends on such a time through f alone does not see it.
        running_cost: `l(z, t, params)`, or `l(z, u, t, params)` where f takes an input; its integral from ts[0] to
            ts[-1] is added to the loss. Trailing arguments may be left out.
        method: as for `integrate`.
        dt: as for `integrate`.
        rtol: as for `integrate`.
        atol: as for `integrate`.
        max_steps: most steps forward; as for `integrate`.
        control: what the steps are chosen for: "sensitivities", the errors of the state and of a sensitivity, or
            "states" alone, which is cheaper, and blind at an equilibrium.
        memory: of mode "exact": "full" keeps the state of every step; "sqrt" and `Binomial(slots)` keep fewer and step
            forward again, as planned for the steps taken; under `jit` for max_steps, so keep that small there.
        reintegrate: in mode "continuous", solve the state backward, too, from its end, instead of keeping it. This is
            unstable for equations that forget their past; `mismatch` tells, and a large one raises.

    Returns:
        An `ODEGradient`; of NumPy arrays where compiled code found it, at once (explicit methods, modes "exact" and
        "forward", memory "full"). Works under `jit` and `vmap`.
        `jax.grad` passes through `value` only; that of other fields is NaN: use `ode_hessian_vector_product`.

    Raises:
        ValueError: for wrong shapes or options.
        RuntimeError: as `integrate`; if the loss waits for an event that never comes; if the reintegrated state misses
            z0 so far that the gradient is spoiled. Under `jit` the gradient is NaN instead.

    Example:
        >>> import optctl as oc
        >>> decay = oc.ODE(lambda z, t, rate: -rate * z)
        >>> g = oc.ode_gradient(decay, lambda zs: zs[-1, 0], [1.0], [0.0, 2.0], 0.5)
        >>> print(round(float(g.params), 6), g.z0.round(6), g.ts.round(6))
        -0.735759 [0.367879] [ 0.18394 -0.18394]

    References:
        Hager (2000), Runge-Kutta methods in optimal control and the transformed adjoint system, Numerische
        Mathematik 87; Cao, Li, Petzold and Serban (2003), SIAM Journal on Scientific Computing 24.
    """
    system, free, options = _prepared(
        ode, loss, z0, ts, params, mode, inputs, event, jump_ts, running_cost, method, dt, rtol, atol, max_steps,
        control, memory, reintegrate,
    )  # fmt: skip
    if not is_concrete((system, free)):
        still = jax.lax.stop_gradient(free)
        g = with_room(system, still, max_steps, lambda system: _gradient(system, still, *options))
        rest = {name: leaf for name, leaf in vars(g).items() if name != "value"}
        value, rest = with_slope(g.value, rest, free, _slope(g, free))
        return ODEGradient(value=value, **rest)
    by_flow = lambda system: _by_compiled_code(system, free, *options)  # noqa: E731
    g = with_room(system, free, max_steps, by_flow, lambda g: Status.SOLVED if g is None else g.status)
    if g is not None:
        return _checked(system, free, g, options)
    # Memory is planned for the steps taken, so these are found first.
    mesh = None
    if memory != "full":
        mesh = with_room(system, free, max_steps, lambda system: _steps(system, free, control)).leading()
    g = with_room(system, free, max_steps, lambda system: _gradient(system, free, *options, mesh))
    return _checked(system, free, g, options)


def _by_compiled_code(
    system: System, free: Free, loss: StageFunction, mode: str, control: str, memory: Any, reintegrate: bool
) -> ODEGradient | None:
    """Return the gradient by kernels, None where the definition is to do it.

    Mode "forward" differentiates what mode "exact" does, so that the same recursion gives its derivatives.
    """
    if mode == "continuous" or memory != "full":
        return None
    sensitive = control == "sensitivities"
    flow = find_flow(system, free, sensitive=sensitive, back=True)
    if flow is None:
        return None
    mesh, jump_at = flow.march(sensitive, stages=True)
    zs, times = observed(system, free, mesh), event_times(system, mesh)
    found = loss_by_tape(loss, zs, times) or loss_by_jax(loss, zs, times)
    value, gat, gy_end, gts = flow.slopes_of_loss(mesh, *found)
    slope, costates = flow.pull_back(mesh, gat, gy_end, gts)
    g = _result(system, free, mesh, value, slope, costates if mode == "exact" else None, (zs, times, jump_at))
    return g if g.converged else _masked(g)


def _slope(g: ODEGradient, free: Free) -> Free:
    """Return the gradient in the structure of what it is taken in."""
    signal = jax.tree.unflatten(
        jax.tree.structure(free.signal), [leaf for leaf in (g.knots, g.inputs) if leaf is not None]
    )
    return Free(g.z0, g.params, g.ts, signal, g.jump_ts)


def _prepared(
    ode: Any, loss: Any, z0: Any, ts: Any, params: Any, mode: str, inputs: Any, event: Any, jump_ts: Any,
    running_cost: Any, method: str, dt: Any, rtol: Any, atol: Any, max_steps: Any, control: str, memory: Any,
    reintegrate: bool,
) -> tuple[System, Free, tuple]:  # fmt: skip
    """Check everything."""
    check_choice(mode, "mode", MODES)
    check_choice(control, "control", CONTROLS)
    check_flag(reintegrate, "reintegrate")
    if check_memory(memory) != "full" and mode != "exact":
        raise ValueError(f"`memory` is {memory!r}; it is for mode 'exact'. Mode 'continuous' has reintegrate=True.")
    if reintegrate and mode != "continuous":
        raise ValueError("`reintegrate` is for mode 'continuous'.")
    if event is not None and reintegrate:
        raise ValueError("`event` is given; `reintegrate` cannot undo events: leave it out.")
    cost = running_cost
    if cost is not None:
        cost = stage_function(cost, "running_cost", STATE_TIME if inputs is None else STATE_INPUT_TIME, least=1)
    system, free = prepare(ode, z0, ts, params, inputs, event, jump_ts, cost, method, dt, rtol, atol, max_steps)
    loss = stage_function(loss, "loss", ("zs",) if event is None else ("zs", "event_times"), least=1)
    once(("a loss", loss, system, free), lambda: _check_loss(system, free, loss))
    return system, free, (loss, mode, control, memory, reintegrate)


def _check_loss(system: System, free: Free, loss: StageFunction) -> None:
    """Raise unless loss and running cost return a number."""
    zs = jax.ShapeDtypeStruct((free.ts.shape[0], *free.z0.shape), free.z0.dtype)
    times = [jax.ShapeDtypeStruct((one.most,), free.ts.dtype) for one in system.events]
    if not system.listed:
        times = times[0] if times else jax.ShapeDtypeStruct((0,), free.ts.dtype)  # type: ignore[assignment]
    check_scalar(loss, "loss", zs, times)
    if system.running_cost is not None:
        check_scalar(
            system.cost_rate, "running_cost", free.z0, free.first_input, free.ts[0], free.params, dtype=free.z0.dtype
        )


@functools.partial(jax.jit, static_argnames="control")
def _steps(system: System, free: Free, control: str) -> Mesh:
    return system.march(free, "times", control == "sensitivities")


@functools.partial(jax.jit, static_argnames=("mode", "control", "memory", "reintegrate"))
def _gradient(
    system: System, free: Free, loss: StageFunction, mode: str, control: str, memory: Any, reintegrate: bool,
    mesh: Mesh | None = None,
) -> ODEGradient:  # fmt: skip
    """Differentiate in the given mode, on the mesh of a march unless one is given."""
    if mesh is None:
        keep = "" if reintegrate else "full" if memory == "full" else "times"
        mesh = system.march(free, keep, control == "sensitivities")
    if mode == "exact":
        return _masked(exact(system, loss, free, mesh, memory))
    if mode == "forward":
        return _masked(forward(system, loss, free, mesh))
    return _masked(continuous(system, loss, free, mesh, reintegrate))


def _masked(g: ODEGradient) -> ODEGradient:
    """Replace the derivatives of a solution that failed by NaN."""
    spoil = namespace(g.value).where(g.converged, 1.0, np.nan)
    fields = vars(g)
    for name in ("value", "z0", "params", "ts", "inputs", "knots", "jump_ts", "costates"):
        fields = fields | {name: jax.tree.map(lambda leaf: leaf * spoil.astype(leaf.dtype), fields[name])}
    return ODEGradient(**fields)


def _checked(system: System, free: Free, g: ODEGradient, options: tuple) -> ODEGradient:
    """Raise what can be raised, and drop padding."""
    if not is_concrete(g) or np.ndim(g.status):
        return g
    loss = options[0]
    if not reached_end(g.status):
        raise RuntimeError(why_it_failed(g.status, g.t, g.z.reshape(-1), system, free.ts[-1]))
    finite = np.isfinite(np.concatenate([np.zeros(0), *map(np.asarray, jax.tree.leaves(g.event_times))]))
    if loss.takes("event_times") and not np.isfinite(float(g.value)) and not finite.all():
        raise RuntimeError(
            f"the loss is {float(g.value)}: it may wait for an event that never comes; there were {int(finite.sum())}"
            f" until t = {float(free.ts[-1]):g} s. Check `when` and `direction`, or integrate longer."
        )
    limit = min(1e4 * float(system.rtol), 0.1)
    if not float(g.mismatch) <= limit:
        raise RuntimeError(
            f"solved backward, the state misses z0 by {float(g.mismatch):.2g} of its size: the equation forgets its"
            " past, and the gradient is spoiled. Leave out `reintegrate`, or use mode 'exact' with memory='sqrt'."
        )
    warn_of_jump(g.jump_at)
    fields = vars(g) | {"event_times": happened(g.event_times)}
    return ODEGradient(**fields)


def ode_hessian_vector_product(
    ode: ODE,
    loss: Callable,
    z0: Any,
    ts: Any,
    params: Any = None,
    *,
    dz0: Any = None,
    dparams: Any = None,
    dts: Any = None,
    dinputs: Any = None,
    djump_ts: Any = None,
    mode: str = "exact",
    inputs: Signal | None = None,
    event: Event | Sequence[Event] | None = None,
    jump_ts: Any = None,
    running_cost: Callable | None = None,
    method: str = "tsit5",
    dt: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    control: str = "sensitivities",
) -> ODEGradient:
    """Return the derivative of every field of `ode_gradient` along (dz0, dparams, dts, dinputs, djump_ts).

    Args:
        ode: as for `ode_gradient`, as all that is not named here.
        loss: as for `ode_gradient`.
        z0: initial state.
        ts: (K,) times.
        params: parameters.
        dz0: direction in z0; None is zero, as for the other directions.
        dparams: direction in the parameters.
        dts: (K,) direction in the times.
        dinputs: direction in the values of the input signal.
        djump_ts: (J,) direction in jump_ts.
        mode: as for `ode_gradient`.
        inputs: as for `ode_gradient`.
        event: as for `ode_gradient`.
        jump_ts: as for `ode_gradient`.
        running_cost: as for `ode_gradient`.
        method: as for `integrate`.
        dt: as for `integrate`.
        rtol: as for `integrate`.
        atol: as for `integrate`.
        max_steps: as for `ode_gradient`.
        control: as for `ode_gradient`.

    Returns:
        An `ODEGradient` whose z0, params, ts and inputs are the Hessian times the direction.

    Raises:
        ValueError: as `ode_gradient`, and for directions of the wrong shape.
        RuntimeError: as `ode_gradient`.

    Example:
        >>> import optctl as oc
        >>> decay = oc.ODE(lambda z, t, rate: -rate * z)
        >>> hv = oc.ode_hessian_vector_product(decay, lambda zs: zs[-1, 0], [1.0], [0.0, 2.0], 0.5, dparams=1.0)
        >>> print(round(float(hv.params), 6))
        1.471518

    References:
        Griewank and Walther (2008), Evaluating Derivatives, section 5.3.
    """
    system, free, options = _prepared(
        ode, loss, z0, ts, params, mode, inputs, event, jump_ts, running_cost, method, dt, rtol, atol, max_steps,
        control, "full", False,
    )  # fmt: skip
    along = Free(
        _direction(dz0, "dz0", free.z0),
        _direction(dparams, "dparams", free.params),
        _direction(dts, "dts", free.ts),
        _input_direction(dinputs, free.signal),
        _jump_direction(djump_ts, free.jump_ts),
    )
    run = lambda system: _second_order(system, free, along, *options[:3])  # noqa: E731
    g, hv = with_room(system, free, max_steps, run, lambda pair: pair[0].status)
    _checked(system, free, g, options)
    return hv


def _jump_direction(given: Any, jump_ts: Any) -> Any:
    if jump_ts is None and given is not None:
        raise ValueError("`djump_ts` is given, but there are no `jump_ts`.")
    return None if jump_ts is None else _direction(given, "djump_ts", jump_ts)


def _direction(given: Any, name: str, point: Any) -> Any:
    """Return a direction in the structure, shapes and types of the point; zero if None."""
    if given is None:
        return jax.tree.map(jnp.zeros_like, point)
    given = check_tree(given, name) if isinstance(point, dict | list | tuple) else as_float(given, name)
    if jax.tree.structure(given) != jax.tree.structure(point):  # type: ignore[operator]
        raise ValueError(
            f"`{name}` has the structure {jax.tree.structure(given)}; expected that of what it is a direction in,"
            f" {jax.tree.structure(point)}."
        )
    check_like(given, name, point)
    return jax.tree.map(lambda d, p: jnp.asarray(d, p.dtype), given, point)


def _input_direction(given: Any, signal: Signal | None) -> Any:
    if signal is None:
        if given is not None:
            raise ValueError("`dinputs` is given, but there are no `inputs`.")
        return None
    parts = jnp.zeros_like(signal.ts), _direction(given, "dinputs", signal.values)
    return jax.tree.unflatten(jax.tree.structure(signal), parts)


@functools.partial(jax.jit, static_argnames=("mode", "control"))
def _second_order(
    system: System, free: Free, along: Free, loss: StageFunction, mode: str, control: str
) -> tuple[ODEGradient, ODEGradient]:
    def gradient(free: Free) -> ODEGradient:
        mesh = marched(system, free, control == "sensitivities")
        return _gradient(system, free, loss, mode, control, "full", False, mesh)

    return jax.jvp(gradient, (free,), (along,))
