r"""March through time: one compiled loop of steps, with the step length under error control or fixed.

Steps end exactly on the anchors: observation times, knots of input signals, and in the backward solution of the adjoint
equation the stored times. Of every accepted step the loop keeps its end; the exact gradient steps back through these.

The length of the next step follows from the estimated error of this one, measured by the caller's norm: above 1 the
step is tried again, shorter. A step that shrinks below rounding, a NaN and a full mesh end the march with a status.

Reference: Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, section II.4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optctl._native import unset
from optctl._record import record
from optctl.continuous.crossing import departure, locate, look, search
from optctl.continuous.steps import PAIRS, step
from optctl.dynamics.memory import put, take
from optctl.result import Status

INSIDE, ARRIVAL, EVENT = 0, 1, 2  # and EVENT + k the event k
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
MANY = 8  # steps tried again at one place


class Trigger(NamedTuple):
    """An event as the loop calls it.

    Attributes:
        value: `value(y, t, j)`, zero at the event.
        reset: `reset(y, t, j)` returns the state after it; None ends there.
        direction: -1 for falling zeros only, 1 for rising, 0 for both.
        most: the largest number of resets.
    """

    value: Callable
    reset: Callable | None
    direction: int
    most: int


@record()
class Suspect:
    """The place where most steps were tried again: as a rule where f is steep, or jumps.

    Attributes:
        count: how many.
        t: where the last of them began.
        h: how long it was.
        j: in which interval.
        y: the state there.
    """

    count: Any
    t: Any
    h: Any
    j: Any
    y: Any


@record()
class Mesh:
    """Accepted steps, `count` of them; rows beyond are padding.

    Attributes:
        ts: (max_steps+1,) seconds; step n goes from ts[n] to ts[n+1].
        ys: (max_steps+1, n) states (one row if only times are kept), after a reset where the step ended in an event.
        anchor: (max_steps,) the interval between anchors that the step lies in.
        end: (max_steps,) what the step ended in: nothing (INSIDE), an anchor (ARRIVAL) or event k (EVENT + k).
        count: number of steps.
        rejected: number of steps tried again.
        status: a `Status`.
        at: (A, n) states at the anchors.
        last: index of the last anchor reached.
        t: the last time reached.
        y: the state there.
        whole: the last state with all its components.
        events: (E,) how often each event happened.
        event_steps: for each of them (most,) the steps that ended in it, -1 beyond.
        suspect: where most steps were tried again.
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
    suspect: "Suspect"

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
    triggers: tuple[Trigger, ...] = (),
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
        triggers: the events.
    """
    adaptive = method in PAIRS
    A = anchors.shape[0]
    last = A - 1 if last is None else last
    dtype = y0.dtype
    rows = max_steps if keep else 0
    width = y0.shape[0] if width is None else width
    tiny = 16 * jnp.finfo(dtype).eps
    zero = jnp.zeros((), jnp.int32)
    most = jnp.asarray([one.most for one in triggers], jnp.int32)

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
        finite, hit, first = jnp.all(jnp.isfinite(y_next)), jnp.asarray(False), zero
        if triggers:
            side = c["side"]
            begins, ends = (slope, slope_next) if adaptive else (f(y, t, j), f(y_next, t_next, j))
            surfaces = [lambda y, t, value=one.value: value(y, t, j) for one in triggers]

            def after(surface: Callable) -> Callable:
                return lambda h: surface(try_step(y, t, h, j, slope)[0], t + h)

            found = [
                search(surface, after(surface), (t, y, begins), (t_next, y_next, ends), side[k], triggers[k].direction)
                for k, surface in enumerate(surfaces)
            ]
            hits, withins, beyonds = (jnp.stack(parts) for parts in zip(*found, strict=True))
            finite &= jnp.all(jnp.isfinite(beyonds))
            hit = jnp.any(hits)
        size = jnp.where(finite, size, jnp.inf)
        accepted = size <= 1 if adaptive else jnp.isfinite(size)
        hit &= accepted
        c = dict(c)
        if triggers:

            def length_to(k: int) -> Any:
                where = lambda: locate(after(surfaces[k]), withins[k], side[k])  # noqa: E731
                if len(triggers) == 1:
                    return where()
                return jax.lax.cond(hits[k], where, lambda: jnp.full_like(h, jnp.inf))

            def to_event() -> tuple[Any, Any, Any, Any]:
                """The first of the events; another one at the same time is still to come."""
                lengths = jnp.stack([length_to(k) for k in range(len(triggers))])
                first = jnp.argmin(lengths).astype(jnp.int32)
                length = lengths[first]
                y_event = try_step(y, t, length, j, slope)[0]
                scale = jnp.maximum(jnp.abs(y), jnp.abs(y_event)) + jnp.abs(h * begins)
                t_event = jnp.where(length == h, t_next, t + length)
                y_event = chosen(triggers, "reset", first, y_event, t + length, j)
                rate = f(y_event, t_event, j)

                def side_of(k: int) -> Any:
                    leaves = departure(surfaces[k], y_event, t_event, rate, scale)
                    if len(triggers) == 1:
                        return leaves
                    waits = hits[k] & (first != k) & (look(surfaces[k], y_event, t_event, rate, scale)[0] == 0)
                    return jnp.where(waits, side[k], leaves)

                return y_event, t_event, jnp.stack([side_of(k) for k in range(len(triggers))]), first

            side_next = jnp.where(accepted & (beyonds != 0), jnp.sign(beyonds), side)
            passed = lambda: (y_next, t_next, side_next, zero)  # noqa: E731
            y_next, t_next, c["side"], first = jax.lax.cond(hit, to_event, passed)
            happened = hit & (jnp.arange(len(triggers)) == first)
            c["event_steps"] = tuple(
                put(steps, c["n"], jnp.where(happened[k], c["events"][k], steps.shape[0] - 1))
                for k, steps in enumerate(c["event_steps"])
            )
            c["events"] = c["events"] + happened
        arrives = accepted & reaches & ~hit
        if arrive is not None:
            y_next = jnp.where(arrives, arrive(y_next, j + 1), y_next)
        if keep:
            n = c["n"]
            c["ts"] = put(c["ts"], t_next, n + 1)
            if keep == "full":
                c["ys"] = put(c["ys"], y_next[:width], n + 1)
            c["anchor"] = put(c["anchor"], j, n)
            c["end"] = put(c["end"], jnp.where(hit, EVENT + first, jnp.where(arrives, ARRIVAL, INSIDE)), n)
        c["at"] = put(c["at"], y_next[:width], jnp.where(arrives, j + 1, A))
        if adaptive:
            c["place"], c["suspect"] = _retried(c["place"], c["suspect"], accepted, Suspect(zero, t, h, j, y[:width]))
        c["n"] = c["n"] + accepted
        c["rejected"] = c["rejected"] + ~accepted
        c["y"] = jnp.where(accepted, y_next, y)
        c["t"] = jnp.where(accepted, t_next, t)
        c["j"] = j + arrives
        if adaptive:
            if jumps or arrive is not None or triggers:
                slope_next = jax.lax.cond(
                    arrives | hit, lambda: f(y_next, t_next, jnp.minimum(c["j"], A - 2)), lambda: slope_next
                )
            c["slope"] = jnp.where(accepted, jnp.asarray(slope_next), jnp.asarray(slope))
            c["h"] = _next_length(h, c["h"], size, accepted, PAIRS[method].order)
        else:
            c["h"] = jnp.where(arrives, start_of_interval(c["j"]), c["h"])
        short = ~accepted & (jnp.abs(h) <= tiny * jnp.maximum(jnp.abs(t), left))
        status = jnp.where(short, int(Status.STEP_TOO_SHORT), int(Status.SOLVED))
        status = jnp.where(~accepted & (short | (not adaptive)) & ~finite, int(Status.NON_FINITE), status)
        status = jnp.where((c["n"] >= max_steps) & (c["j"] < last), int(Status.MESH_FULL), status)
        if triggers:
            ends = jnp.asarray([one.reset is None for one in triggers])
            endless = jnp.any(~ends & ((c["events"] > most) | (happened & (c["side"] == 0))))
            status = jnp.where(endless, int(Status.TOO_MANY_EVENTS), status)
            status = jnp.where(jnp.any(happened & ends), int(Status.EVENT), status)
        c["status"] = status.astype(jnp.int32)
        return c

    slope = f(y0, anchors[0], zero)
    start = {
        "y": y0, "t": anchors[0], "j": zero, "n": zero, "rejected": zero,
        "events": jnp.zeros(len(triggers), jnp.int32),
        "status": jnp.where(valid, zero, int(Status.BAD_TIMES)),
        "event_steps": tuple(jnp.full(one.most + 1, -1, jnp.int32) for one in triggers),
        "ts": put(unset((rows + 1,), anchors.dtype), anchors[0], 0),
        "ys": put(unset(((rows if keep == "full" else 0) + 1, width), dtype), y0[:width], 0),
        "anchor": jnp.zeros(rows, jnp.int32), "end": jnp.zeros(rows, jnp.int32),
        "at": jnp.zeros((A + 1, width), dtype).at[0].set(y0[:width]),
    }  # fmt: skip
    if triggers:
        values = [lambda y, t, value=one.value: value(y, t, zero) for one in triggers]
        start["side"] = jnp.stack([departure(value, y0, anchors[0], slope, jnp.abs(y0)) for value in values])
    if adaptive:
        start["slope"] = slope
        span = anchors[last] - anchors[0]
        first = _first_length(y0, slope, span, norm, lambda y, t: f(y, t, zero), anchors[0], method)
        start["h"] = jnp.asarray(first, dtype)
        start["place"] = zero, anchors[0], jnp.zeros((), anchors.dtype)
    else:
        start["h"] = start_of_interval(zero)
    nowhere = jnp.zeros((), anchors.dtype)
    start["suspect"] = Suspect(zero, nowhere, nowhere, zero, y0[:width])
    done = jax.lax.while_loop(lambda c: (c["j"] < last) & (c["status"] == 0) & (c["n"] < max_steps), body, start)
    return Mesh(
        done["ts"], done["ys"], done["anchor"], done["end"], done["n"], done["rejected"], done["status"],
        done["at"][:-1], done["j"], done["t"], done["y"][:width], done["y"], done["events"],
        tuple(steps[:-1] for steps in done["event_steps"]), done["suspect"],
    )  # fmt: skip


def _retried(place: tuple, suspect: Suspect, accepted: Any, here: Suspect) -> tuple[tuple, Suspect]:
    """Count the steps tried again at one place: (count, where it begins, how long the first of them was)."""
    count, begin, length = place
    same = here.t - begin <= length
    count = jnp.where(accepted, count, jnp.where(same, count, 0) + 1)
    begin, length = (jnp.where(accepted | same, old, new) for old, new in ((begin, here.t), (length, here.h)))
    more = ~accepted & (count >= suspect.count)
    found = Suspect(count, here.t, here.h, here.j, here.y)
    return (count, begin, length), jax.tree.map(lambda new, old: jnp.where(more, new, old), found, suspect)


def chosen(triggers: tuple[Trigger, ...], name: str, k: Any, y: Any, t: Any, j: Any = None) -> Any:
    """Return `value` or `reset` of event k, the state itself where it ends there."""
    functions = [getattr(one, name) or (lambda y, t, j: y) for one in triggers]
    if len(functions) == 1:
        return functions[0](y, t, j)
    return jax.lax.switch(k, [lambda y, t, function=one: function(y, t, j) for one in functions], y, t)


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
