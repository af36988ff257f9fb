"""What a problem with constraints asks of the interior point method: guesses, free parameters, warm starts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._validate import as_float, cast, is_concrete, runs_now
from optctl.problem import once
from optctl.shooting.expansion import function_values
from optctl.shooting.interior_point import InteriorPoint, Settings, interior_point
from optctl.shooting.rows import PATH, TERMINAL
from optctl.solution import Solution
from optctl.solvers.form import Form
from optctl.solvers.objective import Objective

WARM_BARRIER = 1e-3
"""First barrier parameter of a warm start."""
HOLDS = 1e-9
"""Up to this value a row counts as kept where nothing can change it."""


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
        us = warm_start.us if us is None and "us" in objective.free else objective.us
        xs = warm_start.xs if xs is None else xs
        params = warm_start.params if "params" in objective.free else params
    us = objective.us if us is None else cast(us, dtype)
    x0 = objective.x0
    _check_constraints(objective)
    if xs is None:
        xs = _first_states(problem, x0, us, params)
    else:
        xs = cast(as_float(xs, "xs", (N + 1, nx)), dtype)
        if "x0" not in objective.free:
            xs = _with_first(xs, x0)
    form = Form(objective, us, params)
    program, us, xs, x0_free = form.unknowns(us, xs)
    # What is not free is no guess: derivatives go through it.
    solution = interior_point(
        program, us, xs, None if form.lifted else params, x0_free, settings,
        warm=None if warm is None else form.warm(warm), failed_derivative=options.failed_derivative,
        time_limit=time_limit, every=every,
        callback=None if callback is None else lambda solution: callback(form.back(solution)),
    )  # fmt: skip
    return form.back(solution)


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
    """Raise where a hard row depends on nothing that is free at some stage, and does not hold there."""
    problem, params = objective.problem, objective.params

    def nan(value: Any) -> Any:
        return jnp.full(jnp.shape(value), jnp.nan, jnp.result_type(value))

    params = jax.tree.map(nan, params) if "params" in objective.free else params
    xs = jnp.broadcast_to(nan(objective.x0), (problem.steps + 1, objective.x0.size))
    us = nan(objective.us) if "us" in objective.free else objective.us
    with jax.debug_nans(False):
        values = function_values(problem, xs, us, params)
    for name, value in values.items():
        constraint = getattr(problem, name)
        value = np.atleast_2d(np.asarray(value))
        missed = value if name.endswith("inequality") else np.abs(value)
        hard = np.broadcast_to(np.isinf(constraint.prices(value.shape[1:], value.dtype)[0]), value.shape)
        where = np.argwhere((missed > HOLDS) & hard)  # false for NaN, that is for what depends on something
        if where.size:
            stage, row = where[0]
            raise ValueError(
                f"`{name}` has row {row} that depends on nothing that is free at stage"
                f" {stage if name in PATH else problem.steps}, where it is {value[stage, row]:.3g}: no point is"
                " feasible; leave it out, or free what it depends on."
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
