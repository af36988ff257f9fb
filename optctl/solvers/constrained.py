"""What a problem with constraints asks of the interior point method: guesses, free parameters, warm starts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optctl._validate import as_float, cast, is_concrete, runs_now
from optctl.problem import once
from optctl.shooting.interior_point import InteriorPoint, Settings, interior_point
from optctl.shooting.lift import BEHIND, lift, split
from optctl.shooting.rows import PATH, TERMINAL
from optctl.shooting.scaling import rounded
from optctl.solution import Solution
from optctl.solvers.objective import Objective

WARM_BARRIER = 1e-3
"""First barrier parameter of a warm start."""


def constrained(
    objective: Objective,
    settings: Settings,
    options: InteriorPoint,
    *,
    xs: Any,
    us: Any,
    warm_start: Solution | None,
    callback: Callable | None,
    every: int,
    time_limit: float | None,
) -> Solution:
    """Solve by the interior point method what `objective` says is free; xs and us are the caller's guesses."""
    problem, params = objective.problem, objective.params
    N, nx, dtype = problem.steps, objective.x0.size, objective.x0.dtype
    warm = None
    if warm_start is not None:
        warm = _check_warm(warm_start, objective)
        if settings.barrier is None:
            settings = replace(settings, barrier=jnp.asarray(WARM_BARRIER, dtype))
        us = warm_start.us if us is None else objective.us
        xs = warm_start.xs if xs is None else xs
        params = warm_start.params if "params" in objective.free else params
    us = objective.us if us is None else cast(us, dtype)
    x0 = objective.x0
    _check_constraints(objective)
    if xs is None:
        xs = _first_states(problem, x0, us, params)
    else:
        xs = cast(as_float(xs, "xs", (N + 1, nx)), dtype)
        if problem.x0 is not None:
            xs = _with_first(xs, x0)
    x0_free = (problem.x0 is None,) * nx
    lifted = "params" in objective.free
    settings = replace(settings, scale=_check_scale(settings.scale, nx, us.shape[1]))
    if lifted:
        flat = ravel_pytree(params)[0].astype(dtype)
        problem = lift(problem, params, nx, us.shape[1])
        xs = jnp.concatenate([xs, jnp.broadcast_to(flat, (N + 1, flat.size))], axis=1)
        x0_free += (True,) * flat.size
        if settings.scale is not None and "x" in settings.scale:
            behind = rounded(jnp.maximum(1.0, jnp.abs(flat)))
            settings = replace(settings, scale=settings.scale | {"x": jnp.concatenate([settings.scale["x"], behind])})
        if warm is not None:
            zeros = jnp.zeros((N + 1, flat.size), dtype)
            warm = warm | {"costates": jnp.concatenate([warm["costates"], zeros], axis=1)}

    def lower(solution: Solution) -> Solution:
        solution = replace(solution, free=objective.free)
        return _lowered(solution, params, nx, vars(objective.problem)) if lifted else solution

    # What is not free is no guess: derivatives go through it.
    solution = interior_point(
        problem, us, xs, None if lifted else params, x0_free, settings, warm=warm,
        failed_derivative=options.failed_derivative, time_limit=time_limit, every=every,
        callback=None if callback is None else lambda solution: callback(lower(solution)),
    )  # fmt: skip
    return lower(solution)


def _check_scale(scale: Any, nx: int, nu: int) -> Any:
    """Return the user's scales, one for each state and input."""
    if scale is None:
        return None
    made = {}
    for name, width in (("x", nx), ("u", nu)):
        if name in scale:
            value = jnp.asarray(as_float(scale[name], f'scale["{name}"]'))
            if value.shape not in ((), (width,)):
                raise ValueError(f'`scale["{name}"]` has shape {value.shape}; expected a number or ({width},).')
            made[name] = jnp.broadcast_to(value, (width,))
    return made


def _with_first(xs: Any, x0: Any) -> Any:
    """Return the states with x_0 in the first row; NumPy does it without a call of compiled code."""
    if not is_concrete((xs, x0)):
        return jnp.asarray(xs).at[0].set(x0)
    xs = np.array(xs)
    xs[0] = x0
    return xs


@jax.jit
def _first_states(problem: Any, x0: Any, us: Any, params: Any) -> Any:
    """Roll out the guess; where the states run away, stay at x_0."""
    still = jax.lax.stop_gradient((problem, x0, us, params))
    xs = still[0].dynamics.roll(*still[1:])
    tame = jnp.isfinite(xs) & (jnp.abs(xs) <= 1e4 * (1 + jnp.max(jnp.abs(x0))))
    tame = jnp.cumprod(jnp.all(tame, axis=1))[:, None] == 1
    xs = jnp.where(tame, xs, still[1])
    return xs.at[0].set(x0)


def _check_constraints(objective: Objective) -> None:
    """Raise for simulators, bounds of x_0 that contradict each other, and rows that depend on nothing that is free."""
    problem = objective.problem
    if not problem.dynamics.has_jax_step:
        raise ValueError(
            f"method 'interior_point' needs a step in JAX; {type(problem.dynamics).__name__} has none: turn constraints"
            " other than bounds on us and x0 into penalties, and use method='lbfgs'."
        )
    for low, high in (("x_min", "x0_max"), ("x0_min", "x_max")):
        lower, upper = getattr(problem, low), getattr(problem, high)
        if lower is not None and upper is not None and is_concrete((lower, upper)):
            lower, upper = (np.asarray(b)[0] if np.ndim(b) == 2 else np.asarray(b) for b in (lower, upper))
            if (lower > upper).any():
                raise ValueError(f"`{low}` exceeds `{high}` at stage 0; no point is feasible.")
    if any(getattr(problem, name) is not None for name in (*PATH, *TERMINAL)) and runs_now(objective):
        once(("constraints", objective), lambda: _check_dependence(objective))


def _check_dependence(objective: Objective) -> None:
    """Raise unless every row of a function answers NaN by NaN."""
    problem, params = objective.problem, objective.params

    def nan(value: Any) -> Any:
        return jnp.full(jnp.shape(value), jnp.nan, jnp.result_type(value))

    params = jax.tree.map(nan, params) if "params" in objective.free else params
    x, u = nan(objective.x0), nan(objective.us[0])
    for name in (*PATH, *TERMINAL):
        function = getattr(problem, name)
        if function is not None:
            with jax.debug_nans(False):
                value = function(x, u, jnp.asarray(0), params) if name in PATH else function(x, params)
            rows = np.flatnonzero(~np.isnan(np.asarray(value)))
            if rows.size:
                raise ValueError(
                    f"`{name}` has row {int(rows[0])} that depends on nothing that is free, at stage"
                    f" {0 if name in PATH else problem.steps}; leave it out, or free what it depends on."
                )


def _check_warm(warm_start: Any, objective: Objective) -> dict[str, Any]:
    if not isinstance(warm_start, Solution):
        raise ValueError(f"`warm_start` is a {type(warm_start).__name__}; expected what optctl.solve returned.")
    expected = (objective.problem.steps + 1, objective.x0.size)
    if jnp.shape(warm_start.xs) != expected or jnp.shape(warm_start.us) != jnp.shape(objective.us):
        raise ValueError(
            f"`warm_start` has states {jnp.shape(warm_start.xs)} and inputs {jnp.shape(warm_start.us)}; expected"
            f" {expected} and {jnp.shape(objective.us)}."
        )
    return {"costates": warm_start.costates, "multipliers": warm_start.multipliers}


def _lowered(solution: Solution, params: Any, nx: int, bounds: dict[Any, Any]) -> Solution:
    """Take the parameters out of the states again."""
    multipliers = dict(solution.multipliers)
    for name, of_params in BEHIND.items():
        if name in multipliers:
            if bounds.get(of_params) is not None:
                multipliers[of_params] = split(multipliers[name], params)[1]
            multipliers[name] = multipliers[name][..., :nx]
            if bounds.get(name) is None:
                del multipliers[name]
    residuals = dict(solution.residuals)
    for name in [name for name in residuals if name[:2] in ("x_", "x0")]:
        block = residuals.pop(name)
        of_params = f"params_{name[-3:]}"
        if bounds.get(of_params) is not None:
            residuals[of_params] = jnp.max(block[:, nx:], axis=0, keepdims=True)
        if bounds.get(name) is not None:
            residuals[name] = block[:, :nx]
    residuals["dynamics"] = residuals["dynamics"][:, :nx]
    k = solution.k + jnp.einsum("tij,tj->ti", solution.K[:, :, nx:], solution.xs[:-1, nx:])
    return replace(
        solution, xs=solution.xs[:, :nx], x0=solution.x0[:nx], params=split(solution.xs[0], params)[1],
        costates=solution.costates[:, :nx], multipliers=multipliers, K=solution.K[:, :, :nx], k=k,
        residuals=residuals,
    )  # fmt: skip
