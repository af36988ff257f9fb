"""Where a step crosses an event's surface g(y, t) = 0.

A step is looked at several times, inside it on the cubic through both ends, and where g turns around between two looks;
a crossing seen there is checked and located by steps of the scheme itself. Where g is within the rounding errors of y
and t, the state counts as on the surface, and as on the side that it leaves to.

Reference: Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, section II.6.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LOOKS = 4
"""How often in a step, at even distances."""
LOCATE = 100
"""Most iterations in which an event is located inside a step."""


def look(event: Callable, y: Any, t: Any, slope: Any, scale: Any) -> tuple[Any, Any, Any]:
    """Return g at (y, t), 0 within its rounding, its rate along the slope, and that rounding.

    Args:
        event: g(y, t).
        y: (n,) state.
        t: seconds.
        slope: dy/dt.
        scale: (n,) size of what y was computed from.
    """
    g, (gy, gt) = jax.value_and_grad(event, (0, 1))(y, t)
    noise = 64 * jnp.finfo(y.dtype).eps * (jnp.abs(gy) @ scale + jnp.abs(gt * t))
    noise = jnp.where(jnp.isfinite(noise), noise, 0.0)  # the slope may be infinite, as that of sqrt at 0
    return jnp.where(jnp.abs(g) <= noise, 0.0, g), gy @ slope + gt, noise


def departure(event: Callable, y: Any, t: Any, slope: Any, scale: Any) -> Any:
    """Return the side that the state is on or, from the surface itself, leaves to; 0 if it rests there."""
    g, rate, _ = look(event, y, t, slope, scale)
    return jnp.sign(jnp.where(g == 0, rate, g))


def search(event: Callable, at: Callable, begin: tuple, end: tuple, side: Any, direction: int) -> tuple[Any, Any, Any]:
    """Return whether a step crosses the surface, a length within which it does so first, and g at its end.

    Args:
        event: g(y, t).
        at: `at(h)` is g after a step of length h.
        begin: time, state and slope at its start.
        end: time, state and slope at its end; g there is 0 within its rounding.
        side: the side it comes from.
        direction: the direction of crossings that count, 0 for both.
    """
    (t, y, slope), (t_end, y_end, slope_end) = begin, end
    h = t_end - t
    scale = jnp.maximum(jnp.abs(y), jnp.abs(y_end)) + jnp.abs(h * slope)
    g, rate, noise = look(event, y_end, t_end, slope_end, scale)
    shares, values = _looks(lambda s: event(_cubic(s, h, y, slope, y_end, slope_end), t + s * h), side)
    crossed = jnp.append(-side * values > noise, side * jnp.where(g == 0, rate, g) < 0) & (side != 0)
    seen = jnp.any(crossed) & ((direction == 0) | (side == -direction))
    share = jnp.append(shares, 1.0)[jnp.argmax(crossed)]
    inside = jax.lax.cond(seen & (share < 1), lambda: -side * at(share * h) > noise, lambda: False)
    hit = seen & (inside | crossed[-1])
    return hit, jnp.where(inside, share * h, h), g


def locate(g: Callable, h: Any, side: Any) -> Any:
    """Return the zero of g in (0, h], where g ceases to have the sign `side`, by Newton's method in a bracket."""

    def better(state: tuple) -> tuple:
        low, high, x, _, k = state
        value, slope = jax.jvp(g, (x,), (jnp.ones_like(x),))
        same = jnp.sign(value) == side
        low, high = jnp.where(same, x, low), jnp.where(same, high, x)
        newton = x - value / slope
        inside = (newton > low) & (newton < high)
        x_next = jnp.where(inside, newton, (low + high) / 2)
        return low, high, x_next, jnp.abs(x_next - x), k + 1

    tolerance = 4 * jnp.finfo(h.dtype).eps
    state = jnp.zeros_like(h), h, h / 2, h, 0
    _, _, x, _, _ = jax.lax.while_loop(lambda s: (s[3] > tolerance * s[2]) & (s[4] < LOCATE), better, state)
    return x


def _looks(g: Callable, side: Any) -> tuple[Any, Any]:
    """Return increasing shares of a step below 1, and g there: at even distances, and where it turns around."""
    even = jnp.linspace(0.0, 1.0, LOOKS + 1, dtype=side.dtype)
    values, slopes = jax.vmap(lambda s: jax.jvp(g, (s,), (jnp.ones_like(s),)))(even)
    turns = (side * slopes[:-1] < 0) & (side * slopes[1:] > 0)
    turn = even[:-1] + slopes[:-1] / jnp.where(turns, slopes[:-1] - slopes[1:], 1.0) / LOOKS
    turn = jnp.where(turns, turn, even[1:])
    shares = jnp.stack([turn, even[1:]], axis=1).ravel()
    return shares[:-1], jnp.stack([jax.vmap(g)(turn), values[1:]], axis=1).ravel()[:-1]


def _cubic(s: Any, h: Any, y: Any, slope: Any, y_end: Any, slope_end: Any) -> Any:
    """Return the cubic through both ends of a step, at the share s of it (Hermite)."""
    by_ends = (1 - s) * y + s * y_end
    return by_ends + s * (s - 1) * ((1 - 2 * s) * (y_end - y) + (s - 1) * h * slope + s * h * slope_end)
