"""The accepted steps as functions of what is free, and the discrete costate recursion back through them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace
from optctl.continuous.march import ARRIVAL, EVENT, MANY, Mesh, chosen
from optctl.continuous.steps import PAIRS, step
from optctl.continuous.system import Free, System
from optctl.dynamics.memory import put, reverse, schedule, take
from optctl.result import Status

SOLVED, EVENT_MET = int(Status.SOLVED), int(Status.EVENT)


def observed(system: System, free: Free, mesh: Mesh) -> Any:
    """Return the states at ts: at the event beyond a terminal one, NaN beyond a failure."""
    where = system.grid(free).where
    xp = namespace(mesh.y)
    beyond = mesh.y * xp.where(reached_end(mesh.status), 1.0, np.nan).astype(mesh.y.dtype)
    reached = where <= mesh.last
    return system.state(xp.where(reached[:, None], mesh.at[where], beyond), free.z0.shape)


def reached_end(status: Any) -> Any:
    """Tell whether a march reached its last time, or a terminal event."""
    return (status == SOLVED) | (status == EVENT_MET)


def event_times(system: System, mesh: Mesh) -> Any:
    """Return the times of the events, inf beyond the last: an array, or a list with one for each event of a list."""
    xp = namespace(mesh.ts)
    times = [
        xp.where(steps >= 0, system.sign * mesh.ts[xp.maximum(steps, 0) + 1], np.inf) for steps in mesh.event_steps
    ]
    if system.listed:
        return times
    return times[0] if times else xp.zeros(0, mesh.ts.dtype)


def jump_inside_steps(system: System, free: Free, mesh: Mesh) -> Any:
    """Return a time at which f seems to jump inside steps, NaN if there is none.

    That is where many steps were tried again, if f differs across the last of them by a hundred times what it differs
    across one as long before it: in time alone, or along the path.
    """
    place, grid, shape = mesh.suspect, system.grid(free), free.z0.shape
    place, data = jax.lax.stop_gradient((place, free.data))
    y, t, h = place.y, place.t, place.h
    rate = lambda y, t: system.rate(shape, y, t, place.j, grid, data)  # noqa: E731
    now = rate(y, t)
    in_time = rate(y, t + h) - now, now - rate(y, t - h)
    on_path = rate(y + h * now, t + h) - now, now - rate(y - h * now, t - h)
    floor = 1e3 * jnp.finfo(y.dtype).eps * jnp.max(jnp.abs(now))
    jumps = [
        jnp.max(jnp.abs(across)) > 100 * jnp.max(jnp.abs(before)) + 1e4 * system.rtol * floor + floor
        for across, before in (in_time, on_path)
    ]
    found = (place.count >= MANY) & (jumps[0] | jumps[1])
    return jnp.where(found, system.sign * (t + h / 2), jnp.nan)


class Replay:
    """The accepted steps as functions of what is free: what the derivatives are taken of."""

    def __init__(self, system: System, free: Free, mesh: Mesh) -> None:
        self.system, self.mesh = system, jax.lax.stop_gradient(mesh)
        self.shape = free.z0.shape
        self.grid = system.grid(free)

    def advance(self, n: Any, y: Any, t: Any, t_next: Any, data: tuple) -> Any:
        """Step n without an event."""
        j = take(self.mesh.anchor, n)
        rate = lambda y, t: self.system.rate(self.shape, y, t, j, self.grid, data)  # noqa: E731
        return step(self.system.method, rate, y, t, t_next - t)[0]

    def advance_to_event(self, n: Any, y: Any, t: Any, data: tuple) -> tuple[Any, Any]:
        """Step n up to its event, and the reset; the time is the implicit function of everything before."""
        triggers = self.system.triggers(self.shape, data[0])
        k = take(self.mesh.end, n) - EVENT

        def past_surface(h: Any) -> Any:
            return chosen(triggers, "value", k, self.advance(n, y, t, t + h, data), t + h)

        taken = self.mesh.ts[n + 1] - self.mesh.ts[n]
        h = jax.lax.custom_root(past_surface, taken, lambda _, h: h, lambda g, v: v / g(jnp.ones_like(v)))
        y = self.advance(n, y, t, t + h, data)
        return chosen(triggers, "reset", k, y, t + h), t + h

    def place(self, n: Any, anchors: Any) -> Any:
        """The time at which step n ends if not in an event."""
        j, end = take(self.mesh.anchor, n), take(self.mesh.end, n)
        held = take(self.mesh.ts, n + 1)
        if self.system.method not in PAIRS:
            start, stop = (take(jax.lax.stop_gradient(anchors), j + i) for i in (0, 1))
            share = (held - start) / jnp.where(stop > start, stop - start, 1.0)
            held = take(anchors, j) + share * (take(anchors, j + 1) - take(anchors, j))
        return jnp.where(end == ARRIVAL, take(anchors, j + 1), held)

    def move(self, n: Any, y: Any, t: Any, data: tuple, anchors: Any) -> tuple[Any, Any]:
        """Step n, whatever it ends in."""
        t_next = self.place(n, anchors)
        if not self.system.events:
            return self.advance(n, y, t, t_next, data), t_next
        return jax.lax.cond(
            self.mesh.end[n] >= EVENT,
            lambda: self.advance_to_event(n, y, t, data),
            lambda: (self.advance(n, y, t, t_next, data), t_next),
        )

    def forward(self, free: Free) -> Mesh:
        """Return the mesh with its times and states as functions of what is free."""
        data, anchors = free.data, self.system.grid(free).anchors
        mesh = self.mesh
        ys = jnp.zeros((mesh.ts.shape[0], mesh.at.shape[1]), mesh.at.dtype)

        def body(n: Any, carry: tuple) -> tuple:
            ts, ys, at, y, t = carry
            y, t = self.move(n, y, t, data, anchors)
            row = jnp.where(take(mesh.end, n) == ARRIVAL, take(mesh.anchor, n) + 1, at.shape[0] - 1)
            return put(ts, t, n + 1), put(ys, y, n + 1), put(at, y, row), y, t

        y0 = self.system.start(free)
        start = (mesh.ts.at[0].set(anchors[0]), ys.at[0].set(y0), with_spare_row(mesh.at).at[0].set(y0), y0, anchors[0])
        ts, ys, at, y, t = jax.lax.fori_loop(0, mesh.count, body, start)
        fields = vars(mesh) | {"ts": ts, "ys": ys, "at": at[:-1], "y": y, "t": t}
        return Mesh(**fields)


def with_spare_row(rows: Any) -> Any:
    """Add a row for what belongs to none."""
    return jnp.concatenate([rows, jnp.zeros_like(rows[:1])])


def pull_back(
    system: System, free: Free, mesh: Mesh, gat: Any, gy_end: Any, gts: Any, gys: Any = None, memory: Any = "full"
) -> tuple[Free, Any]:
    """Return the slope in what is free, and the costates at ts, from the slopes in a mesh.

    Args:
        system: the system.
        free: where the mesh came from.
        mesh: the accepted steps; if they depend on what is free (`Replay.forward`), so does the result, rightly.
        gat: (A, n) slope in the states at the anchors.
        gy_end: (n,) slope in the last state.
        gts: slope in the mesh's times, which is that in the times of events.
        gys: slope in the mesh's states, or None.
        memory: which states of the mesh are there.
    """
    replay = Replay(system, free, mesh)
    data, anchors, where = free.data, replay.grid.anchors, replay.grid.where
    zeros = jnp.zeros_like

    def visit(y: Any, n: Any, carry: tuple) -> tuple:
        costate, gt, ganchors, gdata, at_anchors = carry
        j, end = take(mesh.anchor, n), take(mesh.end, n)
        costate = costate + jnp.where(end == ARRIVAL, take(gat, j + 1), 0.0)
        at_anchors = put(at_anchors, costate, jnp.where(end == ARRIVAL, j + 1, anchors.shape[0]))
        gt = gt + take(gts, n + 1)
        if gys is not None:
            costate = costate + take(gys, n + 1)

        def stage(y: Any, t: Any, data: tuple, anchors: Any) -> tuple[Any, Any]:
            return replay.move(n, y, t, data, anchors)

        _, transpose = jax.vjp(stage, y, take(mesh.ts, n), data, anchors)
        gy, gt, gd, ga = transpose((costate, gt))
        return gy, gt, ganchors + ga, jax.tree.map(jnp.add, gdata, gd), at_anchors

    start = (
        gy_end, jnp.zeros((), anchors.dtype), zeros(anchors), jax.tree.map(zeros, data), zeros(with_spare_row(gat)),
    )  # fmt: skip
    if memory == "full":

        def back(i: Any, carry: tuple) -> tuple:
            n = mesh.count - 1 - i
            return visit(take(mesh.ys, n), n, carry)

        end = jax.lax.fori_loop(0, mesh.count, back, start)
    else:
        end = _recompute(replay, mesh, system.start(free), data, anchors, visit, start, memory)
    costate, gt, ganchors, gdata, at_anchors = end
    costate = costate + gat[0] if gys is None else costate + gat[0] + gys[0]
    ganchors = ganchors.at[0].add(gt + gts[0])
    at_anchors = at_anchors.at[0].set(costate)
    state = lambda y: system.state(y, free.z0.shape)  # noqa: E731
    return gather(system, free, costate, ganchors, gdata), state(at_anchors[where])


def gather(system: System, free: Free, gy0: Any, ganchors: Any, gdata: tuple) -> Free:
    """Return the slope in what is free from the slopes in y0, in the anchors and in what f depends on."""
    _, transpose = jax.vjp(lambda free: (system.start(free), system.grid(free).anchors, free.data), free)
    return transpose((gy0, ganchors, gdata))[0]


def _recompute(
    replay: Replay, mesh: Mesh, y0: Any, data: tuple, anchors: Any, visit: Callable, carry: Any, memory: Any
) -> Any:
    """Visit all rows of the mesh backward under a memory schedule; padding rows change nothing."""
    N = mesh.anchor.shape[0]
    plan = schedule(memory, N)

    def forward(y: Any, n: Any) -> Any:
        return jax.lax.cond(n < mesh.count, lambda: replay.move(n, y, mesh.ts[n], data, anchors)[0], lambda: y)

    def back(y: Any, n: Any, carry: Any) -> Any:
        return jax.lax.cond(n < mesh.count, lambda: visit(y, n, carry), lambda: carry)

    return reverse(plan.arrays(), plan.slots, forward, y0, lambda _, carry: carry, back, carry)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def marched(system: System, free: Free, sensitive: bool) -> Mesh:
    """Return the accepted steps, to be differentiated forward: as functions of what is free."""
    return system.march(free, "full", sensitive)


@marched.defjvp
def _marched_tangent(sensitive: bool, primals: tuple, tangents: tuple) -> tuple[Mesh, Mesh]:
    system, free = primals
    mesh = marched(system, free, sensitive)
    _, tangent = jax.jvp(Replay(system, free, mesh).forward, (free,), (tangents[1],))
    return mesh, tangent


@jax.custom_vjp
def solved(system: System, free: Free) -> Mesh:
    """Return the accepted steps, to be differentiated in reverse; then their lengths suit the sensitivities, too."""
    return system.march(free, "full")


def _solved_forward(system: System, free: Free) -> tuple[Mesh, tuple]:
    mesh = marched(system, free, True)
    return mesh, (system, free, mesh)


def _solved_backward(kept: tuple, g: Mesh) -> tuple[System, Free]:
    system, free, mesh = kept
    slope, _ = pull_back(system, free, mesh, g.at, g.y, g.ts.at[mesh.count].add(g.t), g.ys)
    unknown = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), system)  # in tolerances, steps, numbers inside f
    return unknown, slope


solved.defvjp(_solved_forward, _solved_backward)
