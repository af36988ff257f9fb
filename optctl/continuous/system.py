"""An ODE as the loops see it: one flat state, anchors in time, and the data that derivatives are taken in.

The loops march in s = sign t, which increases also where `ts` fall; users' functions get t. The flat state is z, the
integral of the running cost where there is one, and the parameters where an event may change them.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace
from optctl._record import record
from optctl.continuous.march import Mesh, Trigger, march
from optctl.continuous.ode import ODE, Event, Signal
from optctl.continuous.pieces import Pieces
from optctl.continuous.steps import PAIRS


@record()
class Free:
    """What derivatives are taken in.

    Attributes:
        z0: the initial state.
        params: parameters.
        ts: (K,) t0, observation times, t1.
        signal: the input signal, or None.
        jump_ts: (J,) times where f jumps, or None.
    """

    z0: Any
    params: Any
    ts: Any
    signal: Signal | None
    jump_ts: Any = None

    @property
    def first_input(self) -> Any:
        """One value of the input signal, or None."""
        return None if self.signal is None else self.signal.values[0]

    @property
    def data(self) -> tuple[Any, Pieces | None]:
        """What f depends on beside state and time: parameters and the pieces of the input."""
        return self.params, None if self.signal is None else self.signal.pieces()


@record(static=("strict",))
class Grid:
    """All times that end a step, and what holds between them.

    Attributes:
        anchors: (A,) increasing, s = sign t.
        where: (K,) which of them are the ts.
        pieces: (A,) the signal's piece in the interval after each.
        strict: whether f is to be called inside the intervals only, since it jumps at their ends.
    """

    anchors: Any
    where: Any
    pieces: Any
    strict: bool

    def inside(self, s: Any, j: Any) -> Any:
        """Move a time at an end of interval j by one rounding into it, where that matters; its derivative is 1."""
        if not self.strict:
            return s
        anchors = jax.lax.stop_gradient(self.anchors)
        begin, end = anchors[j], anchors[jnp.minimum(j + 1, anchors.shape[0] - 1)]
        fixed = jax.lax.stop_gradient(s)
        moved = jnp.clip(fixed, jnp.nextafter(begin, jnp.inf), jnp.nextafter(end, -jnp.inf))
        return s + (moved - fixed)


@record(static=("method", "max_steps", "listed"))
class System:
    """An ODE with everything about it that is not free.

    Attributes:
        ode: the ODE.
        events: the events.
        sign: 1, or -1 where ts fall.
        running_cost: `l(z, t, params)` or `l(z, u, t, params)`, or None; its integral is one more component of the
            state.
        dt: longest step, or None.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: the scheme.
        max_steps: most steps.
        listed: whether the events came as a list.
    """

    ode: ODE
    events: tuple[Event, ...]
    sign: Any
    dt: Any
    rtol: Any
    atol: Any
    running_cost: Any = None
    method: str = "tsit5"
    max_steps: int = 4096
    listed: bool = False

    @property
    def moving(self) -> bool:
        """True if an event changes the parameters, which are then part of the state."""
        return any(event.reset_params is not None for event in self.events)

    @property
    def ends(self) -> bool:
        """True if an event ends the integration."""
        return any(event.ends for event in self.events)

    def start(self, free: Free) -> Any:
        """Return y0: z0 in one row of numbers, a zero where there is a running cost, parameters that move."""
        xp, y = namespace(free.z0), free.z0.reshape(-1)
        parts = [y]
        if self.running_cost is not None:
            parts.append(np.zeros(1, y.dtype))
        if self.moving:
            parts += [leaf.reshape(-1).astype(y.dtype) for leaf in jax.tree.leaves(free.params)]
        return xp.concatenate(parts) if len(parts) > 1 else y

    def size(self, free: Free) -> int:
        """Return the number of components of the state."""
        of_params = sum([leaf.size for leaf in jax.tree.leaves(free.params)]) if self.moving else 0
        return self.moved_by_f(free.z0.shape) + of_params

    def moved_by_f(self, shape: tuple[int, ...]) -> int:
        """Return how many components come first in the state that f moves: z and the running cost."""
        return math.prod(shape) + (self.running_cost is not None)

    def grid(self, free: Free) -> Grid:
        """Return all times that end a step, and the signal's piece in each interval.

        Times beyond the ends move with them. A knot or jump that meets an observation time comes after it.
        """
        ts, signal, jumps = self.sign * free.ts, free.signal, free.jump_ts
        xp, K = namespace(ts), ts.shape[0]
        if signal is None and jumps is None:
            return Grid(ts, np.arange(K), np.zeros(K, np.int32), False)
        extra, many = self._extra(free)
        extra = xp.where(extra <= ts[0], ts[0], xp.where(extra >= ts[-1], ts[-1], extra))
        every = xp.concatenate([ts, extra])
        order = xp.argsort(every, stable=True)
        passed = xp.cumsum((order >= K) & (order < K + many))
        piece = xp.where(self.sign > 0, passed - 1, many - 1 - passed)
        pieces = xp.clip(piece, 0, 0 if signal is None else signal.many - 1).astype(np.int32)
        return Grid(every[order], xp.argsort(order)[:K], pieces, jumps is not None)

    def _extra(self, free: Free) -> tuple[Any, int]:
        """Return the times of knots and jumps in s, also those beyond the ends, and how many of them are knots."""
        times = [] if free.signal is None else [free.signal.ts]
        times += [] if free.jump_ts is None else [free.jump_ts]
        parts = [self.sign * part.astype(free.ts.dtype) for part in times]
        return namespace(free.ts).concatenate(parts), 0 if free.signal is None else free.signal.ts.shape[0]

    def grid_slopes(self, free: Free, ganchors: np.ndarray) -> tuple[np.ndarray, Any, Any]:
        """Return the slopes in ts, knots and jump_ts, if there are any, from those in the anchors; on the host."""
        if free.signal is None and free.jump_ts is None:
            return self.sign * ganchors, None, None
        ts, (extra, many) = self.sign * free.ts, self._extra(free)
        before, beyond = extra <= ts[0], extra >= ts[-1]
        K, clipped = len(ts), np.where(before, ts[0], np.where(beyond, ts[-1], extra))
        every = np.empty_like(ganchors)
        every[np.argsort(np.concatenate([ts, clipped]), stable=True)] = ganchors
        gts, gextra = every[:K], every[K:]
        gts[0] += gextra[before].sum()
        gts[-1] += gextra[beyond & ~before].sum()
        gextra = self.sign * np.where(before | beyond, 0.0, gextra)
        gknots, gjumps = gextra[:many], gextra[many:]
        return self.sign * gts, None if free.signal is None else gknots, None if free.jump_ts is None else gjumps

    def rate(self, shape: tuple[int, ...], y: Any, s: Any, j: Any, grid: Grid, data: tuple) -> Any:
        """Return dy/ds in interval j; `data` as in `Free.data`."""
        s = grid.inside(s, j)
        t, pieces = self.sign * s, data[1]
        u = None if pieces is None else pieces(grid.pieces[j], t)
        return self.sign.astype(y.dtype) * self.slope(shape, y, u, t, data[0])

    def slope(self, shape: tuple[int, ...], y: Any, u: Any, t: Any, params: Any) -> Any:
        """Return dy/dt."""
        z, params = self.split(y, shape, params)
        parts = [jnp.ravel(self.ode(z, u, t, params))]
        if self.running_cost is not None:
            parts.append(jnp.reshape(self.cost_rate(z, u, t, params), 1))
        rest = y.shape[0] - self.moved_by_f(shape)
        if rest:
            parts.append(jnp.zeros(rest, y.dtype))
        return jnp.concatenate(parts) if len(parts) > 1 else parts[0]

    def cost_rate(self, z: Any, u: Any, t: Any, params: Any) -> Any:
        """Return the running cost."""
        return self.running_cost(z, t, params) if u is None else self.running_cost(z, u, t, params)

    def split(self, y: Any, shape: tuple[int, ...], params: Any) -> tuple[Any, Any]:
        """Return z and the parameters, which are those given unless they move."""
        if self.moving:
            params = jax.flatten_util.ravel_pytree(params)[1](y[self.moved_by_f(shape) :])
        return self.state(y, shape), params

    def state(self, y: Any, shape: tuple[int, ...]) -> Any:
        """Return z alone."""
        return y[..., : math.prod(shape)].reshape((*y.shape[:-1], *shape))

    def integral(self, y: Any, shape: tuple[int, ...]) -> Any:
        """Return the integral of the running cost."""
        return y[math.prod(shape)]

    def norm(self, y: Any, y_next: Any, error: Any) -> Any:
        """Return the root mean square of the error over its tolerance."""
        scale = self.atol + self.rtol * jnp.maximum(jnp.abs(y), jnp.abs(y_next))
        return jnp.sqrt(jnp.mean((error / scale) ** 2))

    def triggers(self, shape: tuple[int, ...], params: Any) -> tuple[Trigger, ...]:
        """Return the events as the loops call them, functions of y and s."""
        return tuple(self._trigger(event, shape, params) for event in self.events)

    def at_event(self, event: Event, shape: tuple[int, ...], y: Any, t: Any, params: Any) -> Any:
        """Return what is zero at an event."""
        z, params = self.split(y, shape, params)
        return event.value(z, t, params)

    def after_event(self, event: Event, shape: tuple[int, ...], y: Any, t: Any, params: Any) -> Any:
        """Return the state after an event."""
        z, params = self.split(y, shape, params)
        parts = [jnp.ravel(event.after(z, t, params)), y[math.prod(shape) : self.moved_by_f(shape)]]
        if self.moving:
            parts.append(jax.flatten_util.ravel_pytree(event.params_after(z, t, params))[0])
        return jnp.concatenate([part.astype(y.dtype) for part in parts])

    def _trigger(self, event: Event, shape: tuple[int, ...], given: Any) -> Trigger:
        def value(y: Any, s: Any, j: Any = None) -> Any:
            return self.at_event(event, shape, y, self.sign * s, given)

        def reset(y: Any, s: Any, j: Any = None) -> Any:
            return self.after_event(event, shape, y, self.sign * s, given)

        return Trigger(value, None if event.ends else reset, event.direction, event.most)

    def march(self, free: Free, keep: str, sensitive: bool = False) -> Mesh:
        """Solve forward; `sensitive`: with step lengths that suit the solution's derivatives, too."""
        shape = free.z0.shape
        grid = self.grid(free)
        data = free.data
        y0 = self.start(free)
        width, moved = y0.shape[0], self.moved_by_f(shape)

        def f(y: Any, s: Any, j: Any) -> Any:
            return self.rate(shape, y, s, j, grid, data)

        def norm(y: Any, y_next: Any, error: Any) -> Any:
            return self.norm(y[:moved], y_next[:moved], error[:moved])

        triggers = self.triggers(shape, free.params)
        if sensitive and self.method in PAIRS:
            y0, f, norm, triggers = self._with_sensitivity(shape, grid, data, y0, triggers)
        valid = jnp.all(jnp.diff(self.sign * free.ts) > 0) & (True if self.dt is None else self.dt > 0)
        mesh = march(
            self.method, f, y0, grid.anchors, norm=norm, dt=self.dt, last=grid.where[-1], max_steps=self.max_steps,
            keep=keep, valid=valid, width=width, jumps=free.signal is not None or grid.strict, triggers=triggers,
        )  # fmt: skip
        fields = vars(mesh) | {"whole": mesh.y}  # without the sensitivity
        return Mesh(**fields)

    def _with_sensitivity(
        self, shape: tuple[int, ...], grid: Grid, data: tuple, y0: Any, triggers: tuple[Trigger, ...]
    ) -> tuple:
        """Put beside the state its derivative in one direction that favors no component."""
        m, moved = y0.shape[0], self.moved_by_f(shape)
        along = jax.tree.map(_direction, data)

        def f(y: Any, s: Any, j: Any) -> Any:
            rate = lambda y, data: self.rate(shape, y, s, j, grid, data)  # noqa: E731
            return jnp.concatenate(jax.jvp(rate, (y[:m], data), (y[m:], along)))

        def norm(y: Any, y_next: Any, error: Any) -> Any:
            of_z, of_tangent = slice(moved), slice(m, m + moved)
            size = jnp.maximum(jnp.max(jnp.abs(y[of_tangent])), jnp.max(jnp.abs(y_next[of_tangent])))
            tangent = error[of_tangent] / (self.rtol * size + jnp.finfo(y.dtype).tiny)
            return jnp.maximum(self.norm(y[of_z], y_next[of_z], error[of_z]), jnp.sqrt(jnp.mean(tangent**2)))

        def wider(trigger: Trigger) -> Trigger:
            def reset(y: Any, s: Any, j: Any) -> Any:
                return jnp.concatenate(jax.jvp(lambda y: _call(trigger.reset, y, s), (y[:m],), (y[m:],)))

            of_state = lambda y, s, j: trigger.value(y[:m], s)  # noqa: E731
            return Trigger(of_state, None if trigger.reset is None else reset, trigger.direction, trigger.most)

        return jnp.concatenate([y0, _direction(y0)]), f, norm, tuple(map(wider, triggers))


def _call(reset: Callable | None, y: Any, s: Any) -> Any:
    return y if reset is None else reset(y, s)


def _direction(leaf: Any) -> Any:
    """Return numbers between -1 and 1 without a pattern."""
    return jnp.cos(1.0 + jnp.arange(leaf.size) ** 2).reshape(leaf.shape).astype(leaf.dtype)
