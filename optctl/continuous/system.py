"""An ODE as the loops see it: one flat state, anchors in time, and the data that derivatives are taken in."""

from typing import Any

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl.continuous.march import Mesh, march
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
    """

    z0: Any
    params: Any
    ts: Any
    signal: Signal | None

    @property
    def first_input(self) -> Any:
        """One value of the input signal, or None."""
        return None if self.signal is None else self.signal.values[0]

    @property
    def data(self) -> tuple[Any, Pieces | None]:
        """What f depends on beside state and time: parameters and the pieces of the input."""
        return self.params, None if self.signal is None else self.signal.pieces()


@record(static=("method", "max_steps"))
class System:
    """An ODE with everything about it that is not free.

    Attributes:
        ode: the ODE.
        event: the event, or None.
        running_cost: `l(z, t, params)` or `l(z, u, t, params)`, or None; its integral is one more component of the
            state.
        dt: longest step, or None.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: the scheme.
        max_steps: most steps.
    """

    ode: ODE
    event: Event | None
    dt: Any
    rtol: Any
    atol: Any
    running_cost: Any = None
    method: str = "tsit5"
    max_steps: int = 4096

    def start(self, free: Free) -> Any:
        """Return y0: z0 in one row of numbers, and a zero where there is a running cost."""
        y = jnp.ravel(free.z0)
        return y if self.running_cost is None else jnp.append(y, jnp.zeros((), y.dtype))

    def anchors(self, free: Free) -> tuple[Any, Any, Any]:
        """Return all times that end a step, where ts are among them, and the signal's piece in each interval.

        Knots beyond the ends move with them. A knot that meets an observation time comes after it.
        """
        ts, signal = free.ts, free.signal
        K = ts.shape[0]
        if signal is None:
            return ts, jnp.arange(K), jnp.zeros(K, jnp.int32)
        knots = signal.ts.astype(ts.dtype)
        knots = jnp.where(knots <= ts[0], ts[0], jnp.where(knots >= ts[-1], ts[-1], knots))
        every = jnp.concatenate([ts, knots])
        order = jnp.argsort(every, stable=True)
        passed = jnp.cumsum(order >= K)
        return every[order], jnp.argsort(order)[:K], jnp.clip(passed - 1, 0, signal.many - 1).astype(jnp.int32)

    def rate(self, shape: tuple[int, ...], y: Any, t: Any, piece: Any, data: tuple) -> Any:
        """Return dy/dt; `data` as in `Free.data`."""
        params, pieces = data
        size = y.shape[0] - (self.running_cost is not None)
        z = y[:size].reshape(shape)
        u = None if pieces is None else pieces(piece, t)
        dz = jnp.ravel(self.ode(z, u, t, params))
        if self.running_cost is None:
            return dz
        return jnp.append(dz, self.cost_rate(z, u, t, params))

    def cost_rate(self, z: Any, u: Any, t: Any, params: Any) -> Any:
        """Return the running cost."""
        return self.running_cost(z, t, params) if u is None else self.running_cost(z, u, t, params)

    def state(self, y: Any, shape: tuple[int, ...]) -> Any:
        """Return z, without the running cost."""
        size = y.shape[-1] - (self.running_cost is not None)
        return y[..., :size].reshape(*y.shape[:-1], *shape)

    def norm(self, y: Any, y_next: Any, error: Any) -> Any:
        """Return the root mean square of the error over its tolerance."""
        scale = self.atol + self.rtol * jnp.maximum(jnp.abs(y), jnp.abs(y_next))
        return jnp.sqrt(jnp.mean((error / scale) ** 2))

    def event_functions(self, shape: tuple[int, ...], params: Any) -> dict[str, Any]:
        """Return the event as the loops call it: `event(y, t)` and `reset(y, t)`."""
        event = self.event
        if event is None:
            return {"event": None, "reset": None}

        def reset(y: Any, t: Any, j: Any = None) -> Any:
            after = jnp.ravel(event.after(self.state(y, shape), t, params))
            return after if self.running_cost is None else jnp.append(after, y[-1])

        return {
            "event": lambda y, t, j=None: event.value(self.state(y, shape), t, params),
            "reset": None if event.reset is None else reset,
        }

    def march(self, free: Free, keep: str, sensitive: bool = False) -> Mesh:
        """Solve forward; `sensitive`: with step lengths that suit the solution's derivatives, too."""
        shape = free.z0.shape
        anchors, where, pieces = self.anchors(free)
        data = free.data
        y0 = self.start(free)

        def f(y: Any, t: Any, j: Any) -> Any:
            return self.rate(shape, y, t, pieces[j], data)

        norm = self.norm
        width = y0.shape[0]
        functions = self.event_functions(shape, free.params)
        if sensitive and self.method in PAIRS:
            y0, f, norm, functions = self._with_sensitivity(shape, pieces, data, y0, functions)
        event = self.event
        mesh = march(
            self.method, f, y0, anchors, norm=norm, dt=self.dt, last=where[-1], max_steps=self.max_steps, keep=keep,
            valid=jnp.all(jnp.diff(free.ts) > 0) & (True if self.dt is None else self.dt > 0),
            width=width, jumps=free.signal is not None, **functions,
            direction=0 if event is None else event.direction, max_events=0 if event is None else event.most,
        )  # fmt: skip
        fields = vars(mesh) | {"whole": mesh.y}  # without the sensitivity
        return Mesh(**fields)

    def _with_sensitivity(self, shape: tuple[int, ...], pieces: Any, data: tuple, y0: Any, functions: dict) -> tuple:
        """Put beside the state its derivative in one direction that favors no component."""
        m = y0.shape[0]
        along = jax.tree.map(_direction, data)

        def f(y: Any, t: Any, j: Any) -> Any:
            rate = lambda y, data: self.rate(shape, y, t, pieces[j], data)  # noqa: E731
            return jnp.concatenate(jax.jvp(rate, (y[:m], data), (y[m:], along)))

        def norm(y: Any, y_next: Any, error: Any) -> Any:
            size = jnp.maximum(jnp.max(jnp.abs(y[m:])), jnp.max(jnp.abs(y_next[m:])))
            of_tangent = error[m:] / (self.rtol * size + jnp.finfo(y.dtype).tiny)
            return jnp.maximum(self.norm(y[:m], y_next[:m], error[:m]), jnp.sqrt(jnp.mean(of_tangent**2)))

        def reset(y: Any, t: Any, j: Any) -> Any:
            return jnp.concatenate(jax.jvp(lambda y: functions["reset"](y, t), (y[:m],), (y[m:],)))

        wider = {
            "event": None if functions["event"] is None else lambda y, t, j: functions["event"](y[:m], t),
            "reset": None if functions["reset"] is None else reset,
        }
        return jnp.concatenate([y0, _direction(y0)]), f, norm, wider


def _direction(leaf: Any) -> Any:
    """Return numbers between -1 and 1 without a pattern."""
    return jnp.cos(1.0 + jnp.arange(leaf.size) ** 2).reshape(leaf.shape).astype(leaf.dtype)
