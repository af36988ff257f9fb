"""The first guess of an x_0 that is free: what its bounds and its initial cost say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import eigh, namespace, on_host, to_host
from optctl._door import enter
from optctl.engine.native import find_engine
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
    nx, (problem,) = problem.dynamics.nx, enter((problem,))
    bounds = [getattr(problem, name) for name in SPEAK[1:]]
    xp = np if all([bound is None or on_host(bound) for bound in bounds]) else jnp
    lower, upper = (_side(problem, side, nx, dtype, xp) for side in ("min", "max"))
    boxed = xp.isfinite(lower) & xp.isfinite(upper)
    middle = (xp.where(boxed, lower, 0.0) + xp.where(boxed, upper, 0.0)) / 2
    start = xp.where(boxed, middle, xp.clip(xp.zeros(nx, dtype), lower, upper))
    if problem.initial_cost is None:
        return start
    point = start, np.zeros((problem.steps, problem.dynamics.nu or 0), dtype)
    engine = find_engine(problem, point[1], start, problem.params, curved=True)
    if engine is None:
        return _newton(problem.initial_cost, problem.params, start, lower, upper)
    _, slope, curvature = engine.at_end(2, *to_host((start, problem.params)))
    with np.errstate(all="ignore"):
        return _step(slope, curvature, *to_host((start, lower, upper)))


def _side(problem: Problem, side: str, nx: int, dtype: Any, xp: Any) -> Any:
    """Return the bounds of x_0 on one side, those of all states included; infinite where there are none."""
    own, every = getattr(problem, f"x0_{side}"), getattr(problem, f"x_{side}")
    if every is not None and np.ndim(every) == 2:
        every = every[0]
    nothing, tighter = (-np.inf, xp.maximum) if side == "min" else (np.inf, xp.minimum)
    both = [xp.asarray(nothing if bound is None else bound, dtype) for bound in (own, every)]
    return xp.broadcast_to(tighter(*both), nx)


@jax.jit
def _newton(cost: Any, params: Any, start: Any, lower: Any, upper: Any) -> Any:
    return _step(jax.grad(cost)(start, params), jax.hessian(cost)(start, params), start, lower, upper)


def _step(slope: Any, curvature: Any, start: Any, lower: Any, upper: Any) -> Any:
    """Take one step to the least |dx| that minimizes the quadratic model of a cost; none where it is not convex."""
    xp = namespace(start)
    sizes, axes = eigh(curvature)
    most = xp.max(xp.abs(sizes))
    known = sizes > 1e-12 * most
    step = -axes @ (xp.where(known, 1 / xp.where(known, sizes, 1.0), 0.0) * (axes.T @ slope))
    good = xp.all(xp.isfinite(step)) & xp.all(sizes >= -1e-12 * most)
    return xp.clip(start + xp.where(good, step, 0.0), lower, upper)
