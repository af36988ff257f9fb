r"""One step of an ODE z' = f(z, t), by name: the fixed schemes of `discretize` and the embedded Runge-Kutta pairs.

    k_i = f(z + h sum_j a_ij k_j, t + c_i h),     z+ = z + h sum_i b_i k_i,     error = h sum_i e_i k_i.

In the implicit pair a_ii = gamma: each stage but the first solves an equation, by Newton's method to rounding, so that
its derivative is that of the implicit function.

Reference: Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, sections II.1 and II.4.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optctl.continuous import tableaus
from optctl.continuous.tableaus import Tableau
from optctl.dynamics.discretize import METHODS as FIXED
from optctl.dynamics.discretize import newton
from optctl.dynamics.memory import put

PAIRS: dict[str, Tableau] = {
    "tsit5": tableaus.TSIT5,
    "dopri5": tableaus.DOPRI5,
    "dopri8": tableaus.DOPRI8,
    "kvaerno5": tableaus.KVAERNO5,
}
METHODS = (*PAIRS, *FIXED)


def step(method: str, f: Callable, z: Any, t: Any, h: Any, slope: Any = None) -> tuple[Any, Any, Any]:
    """Return z at t + h, its estimated error (None of a fixed scheme), and f there where the scheme knows it.

    Args:
        method: one of `METHODS`.
        f: `f(z, t)`.
        z: (n,) state.
        t: seconds.
        h: step length in seconds.
        slope: f(z, t), if known.
    """
    if method in FIXED:
        return FIXED[method](f, z, t, h), None, None
    pair = PAIRS[method]
    first = f(z, t) if slope is None else slope
    if pair.diagonal:
        return _rolled(pair, f, z, t, h, first)
    slopes = [first]
    end = z
    for row, c in zip(pair.A, pair.c[1:], strict=True):
        end = z + h * _combine(row, slopes)
        slopes.append(f(end, t + c * h))
    return end, h * _combine(pair.e, slopes), slopes[-1]  # in all pairs here the last stage is the end of the step


def rolled_step(method: str, f: Callable, z: Any, t: Any, h: Any) -> Any:
    """Return z at t + h as `step` does, by a loop over the stages: slower to run, faster to compile."""
    if method in FIXED:
        return FIXED[method](f, z, t, h)
    return _rolled(PAIRS[method], f, z, t, h, f(z, t))[0]


def _rolled(pair: Tableau, f: Callable, z: Any, t: Any, h: Any, first: Any) -> tuple[Any, Any, Any]:
    """Take a step as `step` does, the slope at its start given, by a loop over the stages."""
    many = len(pair.b)
    A = jnp.asarray([(*row, *[0.0] * (many - len(row))) for row in ((), *pair.A)], z.dtype)
    c = jnp.asarray(pair.c, z.dtype)
    gamma = pair.diagonal * h

    def stage(i: Any, carry: tuple) -> tuple:
        slopes, _, last = carry
        known, t_i = z + h * (A[i] @ slopes), t + c[i] * h
        end = known
        if pair.diagonal:
            end = newton(lambda x: x - known - gamma * f(x, t_i), known + gamma * last)
        k = f(end, t_i)
        return put(slopes, k, i), end, k

    start = put(jnp.zeros((many, *z.shape), z.dtype), first, 0), z, jnp.asarray(first, z.dtype)
    slopes, end, last = jax.lax.fori_loop(1, many, stage, start)
    return end, h * (jnp.asarray(pair.e, z.dtype) @ slopes), last


def _combine(weights: tuple[float, ...], slopes: list[Any]) -> Any:
    """Return the weighted sum, without the terms that are zero."""
    terms = [jnp.asarray(w, k.dtype) * k for w, k in zip(weights, slopes, strict=False) if w]
    return sum(terms[1:], terms[0])
