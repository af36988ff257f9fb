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

from optctl._record import record
from optctl.continuous.march import Mesh, Trigger, march
from optctl.continuous.ode import ODE, Event, Pieces, Signal
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
        y = jnp.ravel(free.z0)
        parts = [y]
        if self.running_cost is not None:
            parts.append(jnp.zeros(1, y.dtype))
        if self.moving:
            parts.append(jax.flatten_util.ravel_pytree(free.params)[0].astype(y.dtype))
        return jnp.concatenate(parts) if len(parts) > 1 else y

    def moved_by_f(self, shape: tuple[int, ...]) -> int:
        """Return how many components come first in the state that f moves: z and the running cost."""
        return math.prod(shape) + (self.running_cost is not None)

    def grid(self, free: Free) -> Grid:
        """Return all times that end a step, and the signal's piece in each interval.

        Times beyond the ends move with them. A knot or jump that meets an observation time comes after it.
        """
        ts, signal, jumps = self.sign * free.ts, free.signal, free.jump_ts
        K = ts.shape[0]
        if signal is None and jumps is None:
            return Grid(ts, jnp.arange(K), jnp.zeros(K, jnp.int32), False)
        knots = jnp.zeros(0, ts.dtype) if signal is None else self.sign * signal.ts.astype(ts.dtype)
        extra = knots if jumps is None else jnp.concatenate([knots, self.sign * jumps.astype(ts.dtype)])
        extra = jnp.where(extra <= ts[0], ts[0], jnp.where(extra >= ts[-1], ts[-1], extra))
        every = jnp.concatenate([ts, extra])
        order = jnp.argsort(every, stable=True)
        many = knots.shape[0]
        passed = jnp.cumsum((order >= K) & (order < K + many))
        piece = jnp.where(self.sign > 0, passed - 1, many - 1 - passed)
        pieces = jnp.clip(piece, 0, 0 if signal is None else signal.many - 1).astype(jnp.int32)
        return Grid(every[order], jnp.argsort(order)[:K], pieces, jumps is not None)

    def rate(self, shape: tuple[int, ...], y: Any, s: Any, j: Any, grid: Grid, data: tuple) -> Any:
        """Return dy/ds in interval j; `data` as in `Free.data`."""
        z, params = self.split(y, shape, data[0])
        s = grid.inside(s, j)
        t, pieces = self.sign * s, data[1]
        u = None if pieces is None else pieces(grid.pieces[j], t)
        parts = [jnp.ravel(self.ode(z, u, t, params))]
        if self.running_cost is not None:
            parts.append(jnp.reshape(self.cost_rate(z, u, t, params), 1))
        rest = y.shape[0] - self.moved_by_f(shape)
        if rest:
            parts.append(jnp.zeros(rest, y.dtype))
        return self.sign.astype(y.dtype) * (jnp.concatenate(parts) if len(parts) > 1 else parts[0])

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
        return y[..., : math.prod(shape)].reshape(*y.shape[:-1], *shape)

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

    def _trigger(self, event: Event, shape: tuple[int, ...], given: Any) -> Trigger:
        def value(y: Any, s: Any, j: Any = None) -> Any:
            z, params = self.split(y, shape, given)
            return event.value(z, self.sign * s, params)

        def reset(y: Any, s: Any, j: Any = None) -> Any:
            z, params = self.split(y, shape, given)
            size = self.moved_by_f(shape)
            parts = [jnp.ravel(event.after(z, self.sign * s, params)), y[math.prod(shape) : size]]
            if self.moving:
                parts.append(jax.flatten_util.ravel_pytree(event.params_after(z, self.sign * s, params))[0])
            return jnp.concatenate([part.astype(y.dtype) for part in parts])

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
