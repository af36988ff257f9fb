r"""March through time: one compiled loop of steps, with the step length under error control or fixed.

Steps end exactly on the anchors: observation times, knots of input signals, and in the backward solution of the adjoint
equation the stored times. Of every accepted step the loop keeps its end; the exact gradient steps back through these.

The length of the next step follows from the estimated error of this one, measured by the caller's norm: above 1 the
step is tried again, shorter. A step that shrinks below rounding, a NaN and a full mesh end the march with a status.

Reference: Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, section II.4.
"""

import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optctl._native import unset
from optctl._record import record
from optctl.continuous.crossing import departure, locate, search
from optctl.continuous.steps import PAIRS, step
from optctl.dynamics.memory import put, take

INSIDE, ARRIVAL, EVENT = 0, 1, 2
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0


class MarchStatus(enum.IntEnum):
    """How a march ended."""

    DONE = 0
    EVENT = 1
    TOO_SHORT = 2
    NOT_FINITE = 3
    MESH_FULL = 4
    TOO_MANY_EVENTS = 5
    BAD_TIMES = 6

    @property
    def words(self) -> str:
        """The name in words."""
        return self.name.lower().replace("_", " ")


@record()
class Mesh:
    """Accepted steps, `count` of them; rows beyond are padding.

    Attributes:
        ts: (max_steps+1,) seconds; step n goes from ts[n] to ts[n+1].
        ys: (max_steps+1, n) states (one row if only times are kept), after a reset where the step ended in an event.
        anchor: (max_steps,) the interval between anchors that the step lies in.
        end: (max_steps,) what the step ended in: nothing (INSIDE), an anchor (ARRIVAL) or an EVENT.
        count: number of steps.
        rejected: number of steps tried again.
        status: a `MarchStatus`.
        at: (A, n) states at the anchors.
        last: index of the last anchor reached.
        t: the last time reached.
        y: the state there.
        whole: the last state with all its components.
        events: number of events.
        event_steps: (max_events,) the steps that ended in them.
    """

    ts: Any
    ys: Any
    anchor: Any
    end: Any
    count: Any
    rejected: Any
    status: Any
    at: Any
    last: Any
    t: Any
    y: Any
    whole: Any
    events: Any
    event_steps: Any

    def leading(self) -> "Mesh":
        """Drop padding, down to a power of two of steps, so that few programs are compiled."""
        rows = min(1 << max(int(self.count) - 1, 0).bit_length(), self.anchor.shape[0])
        fields = vars(self) | {"ts": self.ts[: rows + 1], "anchor": self.anchor[:rows], "end": self.end[:rows]}
        return Mesh(**fields)


def march(
    method: str,
    f: Callable,
    y0: Any,
    anchors: Any,
    *,
    norm: Callable,
    dt: Any = None,
    last: Any = None,
    max_steps: int,
    valid: Any = True,
    keep: str = "full",
    width: int | None = None,
    jumps: bool = False,
    arrive: Callable | None = None,
    event: Callable | None = None,
    reset: Callable | None = None,
    direction: int = 0,
    max_events: int = 0,
) -> Mesh:
    """Solve y' = f(y, t, j) through increasing anchors, j the interval that t lies in.

    Args:
        method: the scheme.
        f: `f(y, t, j)`.
        y0: (n,) at the first anchor.
        anchors: (A,) times.
        norm: `norm(y, y_next, error)`, at most 1 where the step is good; not used by fixed schemes.
        dt: longest step, None for any; a fixed scheme cuts each interval into equal ones.
        last: index of the last anchor; None is the last of the array.
        max_steps: most accepted steps.
        valid: False where the anchors do not increase: then no step is taken.
        keep: "full" keeps the mesh, "times" leaves out its states, "" keeps nothing.
        width: how many leading components of y to keep; None is all.
        jumps: whether f may jump at the anchors.
        arrive: `arrive(y, i)` returns the state that goes on from anchor i.
        event: `event(y, t, j)`, zero at an event.
        reset: `reset(y, t, j)` returns the state after an event; None ends there.
        direction: -1 for falling zeros only, 1 for rising, 0 for both.
        max_events: most events.
    """
    adaptive = method in PAIRS
    A = anchors.shape[0]
    last = A - 1 if last is None else last
    dtype = y0.dtype
    rows = max_steps if keep else 0
    width = y0.shape[0] if width is None else width
    tiny = 16 * jnp.finfo(dtype).eps

    def start_of_interval(j: Any) -> Any:
        """The length of its steps, for a fixed scheme."""
        length = anchors[jnp.minimum(j + 1, A - 1)] - anchors[jnp.minimum(j, A - 1)]
        many = jnp.maximum(jnp.ceil(length / dt * (1 - 1e-9)), 1)
        return length / many

    def try_step(y: Any, t: Any, h: Any, j: Any, slope: Any) -> tuple[Any, Any, Any]:
        end, error, slope_next = step(method, lambda y, t: f(y, t, j), y, t, h, slope)
        if not adaptive:
            return end, jnp.zeros((), dtype), slope
        return end, norm(y, end, error), slope_next

    def body(c: dict) -> dict:
        y, t, j = c["y"], c["t"], c["j"]
        t_end = take(anchors, j + 1)
        left = t_end - t
        if adaptive:
            h = c["h"] if dt is None else jnp.minimum(c["h"], dt)
            reaches = h >= left * (1 - 1e-6)
            h = jnp.where(reaches, left, jnp.where(2 * h > left, left / 2, h))
            t_next = jnp.where(reaches, t_end, t + h)
        else:
            whole = jnp.where(c["h"] > 0, c["h"], 1.0)
            k = jnp.round((t - anchors[j]) / whole - (0.5 - 1e-6)) + 1  # after an event: up to the next multiple
            t_next = anchors[j] + k * c["h"]
            reaches = t_next >= t_end - 1e-6 * c["h"]
            t_next = jnp.where(reaches, t_end, t_next)
        h = t_next - t
        slope = c["slope"] if adaptive else None
        y_next, size, slope_next = try_step(y, t, h, j, slope)
        finite, hit = jnp.all(jnp.isfinite(y_next)), jnp.asarray(False)
        if event is not None:
            side, surface = c["side"], lambda y, t: event(y, t, j)
            begins, ends = (slope, slope_next) if adaptive else (f(y, t, j), f(y_next, t_next, j))

            def at(h: Any) -> Any:
                return surface(try_step(y, t, h, j, slope)[0], t + h)

            hit, within, beyond = search(surface, at, (t, y, begins), (t_next, y_next, ends), side, direction)
            finite &= jnp.isfinite(beyond)
        size = jnp.where(finite, size, jnp.inf)
        accepted = size <= 1 if adaptive else jnp.isfinite(size)
        hit &= accepted
        c = dict(c)
        if event is not None:

            def to_event() -> tuple[Any, Any, Any]:
                length = locate(at, within, side)
                y_event = try_step(y, t, length, j, slope)[0]
                scale = jnp.maximum(jnp.abs(y), jnp.abs(y_event)) + jnp.abs(h * begins)
                if reset is not None:
                    y_event = reset(y_event, t + length, j)
                t_event = jnp.where(length == h, t_next, t + length)
                return y_event, t_event, departure(surface, y_event, t_event, f(y_event, t_event, j), scale)

            side_next = jnp.where(accepted & (beyond != 0), jnp.sign(beyond), side)
            y_next, t_next, c["side"] = jax.lax.cond(hit, to_event, lambda: (y_next, t_next, side_next))
            c["event_steps"] = put(c["event_steps"], c["n"], jnp.where(hit, c["events"], max_events))
            c["events"] = c["events"] + hit
        arrives = accepted & reaches & ~hit
        if arrive is not None:
            y_next = jnp.where(arrives, arrive(y_next, j + 1), y_next)
        if keep:
            n = c["n"]
            c["ts"] = put(c["ts"], t_next, n + 1)
            if keep == "full":
                c["ys"] = put(c["ys"], y_next[:width], n + 1)
            c["anchor"] = put(c["anchor"], j, n)
            c["end"] = put(c["end"], jnp.where(hit, EVENT, jnp.where(arrives, ARRIVAL, INSIDE)), n)
        c["at"] = put(c["at"], y_next[:width], jnp.where(arrives, j + 1, A))
        c["n"] = c["n"] + accepted
        c["rejected"] = c["rejected"] + ~accepted
        c["y"] = jnp.where(accepted, y_next, y)
        c["t"] = jnp.where(accepted, t_next, t)
        c["j"] = j + arrives
        if adaptive:
            if jumps or arrive is not None or event is not None:
                slope_next = jax.lax.cond(
                    arrives | hit, lambda: f(y_next, t_next, jnp.minimum(c["j"], A - 2)), lambda: slope_next
                )
            c["slope"] = jnp.where(accepted, jnp.asarray(slope_next), jnp.asarray(slope))
            c["h"] = _next_length(h, c["h"], size, accepted, PAIRS[method].order)
        else:
            c["h"] = jnp.where(arrives, start_of_interval(c["j"]), c["h"])
        short = ~accepted & (jnp.abs(h) <= tiny * jnp.maximum(jnp.abs(t), left))
        status = jnp.where(short, int(MarchStatus.TOO_SHORT), int(MarchStatus.DONE))
        status = jnp.where(~accepted & (short | (not adaptive)) & ~finite, int(MarchStatus.NOT_FINITE), status)
        status = jnp.where((c["n"] >= max_steps) & (c["j"] < last), int(MarchStatus.MESH_FULL), status)
        if event is not None:
            if reset is None:
                status = jnp.where(hit, int(MarchStatus.EVENT), status)
            else:
                endless = (c["events"] > max_events) | (hit & (c["side"] == 0))
                status = jnp.where(endless, int(MarchStatus.TOO_MANY_EVENTS), status)
        c["status"] = status.astype(jnp.int32)
        return c

    zero = jnp.zeros((), jnp.int32)
    slope = f(y0, anchors[0], zero)
    start = {
        "y": y0, "t": anchors[0], "j": zero, "n": zero, "rejected": zero, "events": zero,
        "status": jnp.where(valid, zero, int(MarchStatus.BAD_TIMES)),
        "event_steps": jnp.full(max_events + 1, -1, jnp.int32),
        "ts": put(unset((rows + 1,), anchors.dtype), anchors[0], 0),
        "ys": put(unset(((rows if keep == "full" else 0) + 1, width), dtype), y0[:width], 0),
        "anchor": jnp.zeros(rows, jnp.int32), "end": jnp.zeros(rows, jnp.int32),
        "at": jnp.zeros((A + 1, width), dtype).at[0].set(y0[:width]),
    }  # fmt: skip
    if event is not None:
        surface = lambda y, t: event(y, t, zero)  # noqa: E731
        start["side"] = departure(surface, y0, anchors[0], slope, jnp.abs(y0))
    if adaptive:
        start["slope"] = slope
        span = anchors[last] - anchors[0]
        first = _first_length(y0, slope, span, norm, lambda y, t: f(y, t, zero), anchors[0], method)
        start["h"] = jnp.asarray(first, dtype)
    else:
        start["h"] = start_of_interval(zero)
    done = jax.lax.while_loop(lambda c: (c["j"] < last) & (c["status"] == 0) & (c["n"] < max_steps), body, start)
    return Mesh(
        done["ts"], done["ys"], done["anchor"], done["end"], done["n"], done["rejected"], done["status"],
        done["at"][:-1], done["j"], done["t"], done["y"][:width], done["y"], done["events"], done["event_steps"][:-1],
    )  # fmt: skip


def _first_length(y: Any, slope: Any, span: Any, norm: Callable, f: Callable, t: Any, method: str) -> Any:
    """Guess a step whose error is the tolerance, from the sizes of y, y' and y'' (Hairer, Norsett, Wanner, II.4)."""
    y, slope = jax.lax.stop_gradient((y, slope))
    size, rate = norm(y, y, y), norm(y, y, slope)
    trial = jnp.where((size > 1e-5) & (rate > 1e-5), 0.01 * size / jnp.maximum(rate, 1e-30), 1e-6)
    trial = jnp.minimum(trial, span)
    bend = norm(y, y, jax.lax.stop_gradient(f(y + trial * slope, t + trial)) - slope) / trial
    largest = jnp.maximum(rate, bend)
    order = PAIRS[method].order
    h = jnp.where(largest > 1e-15, (0.01 / jnp.maximum(largest, 1e-30)) ** (1 / order), jnp.maximum(1e-6, 1e-3 * trial))
    h = jnp.minimum(jnp.minimum(100 * trial, h), span)
    return jnp.where(jnp.isfinite(h) & (h > 0), h, span * 1e-3)


def _next_length(h: Any, asked: Any, size: Any, accepted: Any, order: int) -> Any:
    """Return the length to try next, after a step of length h whose error over its tolerance was `size`."""
    size = jax.lax.stop_gradient(jnp.maximum(size, 1e-10))  # the mesh is held fixed by derivatives
    factor = SAFETY * size ** (-1.0 / order)
    factor = jnp.where(jnp.isfinite(size), jnp.clip(factor, SHRINK, jnp.where(accepted, GROW, 1.0)), SHRINK)
    # A step cut short to end on an anchor says little about the length that errors allow.
    cut = h < 0.999 * asked
    return jnp.where(accepted & cut, jnp.maximum(h * factor, asked), h * factor).astype(asked.dtype)
