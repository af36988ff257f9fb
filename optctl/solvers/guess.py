"""The first guess of an x_0 that is free: what its bounds and its initial cost say."""

from typing import Any

import jax
import jax.numpy as jnp

from optctl.problem import Problem

SPEAK = ("initial_cost", "x0_min", "x0_max", "x_min", "x_max")
"""Fields that say something about a free x_0."""


def check_start(problem: Problem) -> None:
    """Raise ValueError unless something says where a problem without x0 starts: most likely it was forgotten."""
    if all(getattr(problem, name) is None for name in SPEAK):
        raise ValueError(
            "`x0` is missing: the problem gives none, and neither an initial cost nor bounds say where it starts; pass"
            " x0=... to Problem, or free=('us', 'x0') to solve if any start will do."
        )


def first_state(problem: Problem, dtype: Any) -> Any:
    """Return the middle of finite bounds, the point nearest to zero within others; then Newton's step.

    The step goes to the minimum of a quadratic initial cost (the mean of a prior), as far as the bounds let it.
    """
    nx = problem.dynamics.nx
    lower, upper = (_side(problem, side, nx, dtype) for side in ("min", "max"))
    boxed = jnp.isfinite(lower) & jnp.isfinite(upper)
    middle = (jnp.where(boxed, lower, 0.0) + jnp.where(boxed, upper, 0.0)) / 2
    start = jnp.where(boxed, middle, jnp.clip(jnp.zeros(nx, dtype), lower, upper))
    if problem.initial_cost is None:
        return start
    return _newton(problem.initial_cost, problem.params, start, lower, upper)


def _side(problem: Problem, side: str, nx: int, dtype: Any) -> Any:
    """Return the bounds of x_0 on one side, those of all states included; infinite where there are none."""
    nothing, tighter = (-jnp.inf, jnp.maximum) if side == "min" else (jnp.inf, jnp.minimum)
    own, every = getattr(problem, f"x0_{side}"), getattr(problem, f"x_{side}")
    if every is not None and jnp.ndim(every) == 2:
        every = every[0]
    both = [jnp.asarray(nothing if bound is None else bound, dtype) for bound in (own, every)]
    return jnp.broadcast_to(tighter(*both), nx)


@jax.jit
def _newton(cost: Any, params: Any, start: Any, lower: Any, upper: Any) -> Any:
    """Take one step to the least |dx| that minimizes the quadratic model of a cost; none where it is not convex."""
    slope, curvature = jax.grad(cost)(start, params), jax.hessian(cost)(start, params)
    sizes, axes = jnp.linalg.eigh(curvature)
    most = jnp.max(jnp.abs(sizes))
    known = sizes > 1e-12 * most
    step = -axes @ (jnp.where(known, 1 / jnp.where(known, sizes, 1.0), 0.0) * (axes.T @ slope))
    good = jnp.all(jnp.isfinite(step)) & jnp.all(sizes >= -1e-12 * most)
    return jnp.clip(start + jnp.where(good, step, 0.0), lower, upper)
