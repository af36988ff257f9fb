"""The interior point method behind the front door: its options, guesses, free parameters, warm starts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import to_device
from optctl._door import numbers
from optctl._validate import (
    as_float,
    cast,
    check_choice,
    check_function,
    check_kind,
    check_positive,
    check_time_limit,
    is_concrete,
    is_number,
    keep_whole,
    runs_now,
    shown,
)
from optctl.judge.evaluation import MANY, Evaluator
from optctl.judge.interpreter import Uninterpreted
from optctl.problem import once_for
from optctl.shooting.expansion import function_values
from optctl.shooting.interior_point import BACKENDS, Settings, interior_point
from optctl.shooting.rows import PATH, TERMINAL
from optctl.solution import Solution
from optctl.solvers.form import Form
from optctl.solvers.method import Method, method
from optctl.solvers.objective import Objective

MAX_ITERATIONS = 1_000
HOLDS = 1e-9
"""Up to this value a row counts as kept where nothing can change it."""


@method(static=("hessian", "max_iterations", "backend", "callback", "callback_every", "time_limit"))
class InteriorPoint(Method):
    """The interior point method: `oc.solve(problem, method=oc.InteriorPoint(hessian="gauss_newton"))`.

    Args:
        hessian: "exact" has the curvature of dynamics and constraints; "gauss_newton" leaves it out, which is cheaper
            a step, takes more of them, and is what models without second derivatives get.
        max_iterations: limit; None is 1000, in `MPC` 100 a sample.
        barrier: first barrier parameter; None chooses: 0.1 on the scale of the cost's slope, or from a warm start.
        warm_start: solution of a similar problem; the solve begins with its trajectory (unless us or xs are given to
            `solve`) and its multipliers.
        callback: called on the host with a `Solution`, as it stands, every `callback_every` iterations.
        callback_every: iterations between calls.
        time_limit: seconds, after which the solve returns what it has, with status TIME_LIMIT.
        scale: None, or a dictionary of how large states "x" and inputs "u" are, numbers or one for each: what a change
            of them is compared with. What it leaves out is chosen from guess, bounds and first derivatives.
        failed_derivative: what the derivative of a solution that did not converge is multiplied by: NaN, or 0 for a
            derivative that vanishes there (`converged` tells).
        backend: "native" iterates in compiled code; it takes functions made of scalar operations that XLA need not
            compile (no linear solves, not too large), in float64 on a CPU. "jax" takes all. "auto" takes the former
            where it can. Both give the same numbers to rounding.

    Raises:
        ValueError: for another `hessian` or `backend`, a barrier, scale, limit or interval that is not positive, a warm
            start that is no solution; from `solve` for "native" where it cannot be, with the reason.

    Example:
        >>> import optctl as oc
        >>> problem = oc.problems.cartpole_push()
        >>> print(oc.solve(problem, method=oc.InteriorPoint(hessian="gauss_newton")).cost.round(6))
        136.216244
    """

    name = "interior_point"
    summary = "primal-dual interior point on the multiple-shooting form; takes every constraint"
    differentiable = True
    takes = "all"
    tolerance = 1e-8

    hessian: str = "exact"
    max_iterations: int | None = None
    barrier: Any = None
    scale: Any = None
    warm_start: Any = None
    callback: Callable | None = None
    callback_every: int = 1
    time_limit: float | None = None
    failed_derivative: Any = jnp.nan
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_choice(self.backend, "backend", BACKENDS)
        check_choice(self.hessian, "hessian", ("exact", "gauss_newton"))
        keep_whole(self, "max_iterations", least=0, optional=True)
        if is_concrete(self.failed_derivative) and not is_number(self.failed_derivative):
            raise ValueError(f"`failed_derivative` is {shown(self.failed_derivative)}; expected NaN, or 0.")
        if self.barrier is not None:
            check_positive(self.barrier, "barrier", "a positive number, or None")
        if self.scale is not None:
            _check_scale(self.scale)
        if self.callback is not None:
            check_function(self.callback, "callback", "callback(solution)")
        keep_whole(self, "callback_every")
        check_time_limit(self.time_limit)
        if self.warm_start is not None:
            check_kind(self.warm_start, Solution, "warm_start", "what optctl.solve returned")

    def check(self, objective: Objective) -> None:
        """Raise for dynamics whose states have no common width."""
        dynamics = objective.problem.dynamics
        if dynamics.roll_without_inputs:
            kind = type(dynamics).__name__
            raise ValueError(f"method 'interior_point' cannot take {kind}, whose states have no common width.")

    def run(self, objective: Objective, tolerance: Any, us: Any, xs: Any) -> Solution:
        """Minimize from the guess."""
        limit = MAX_ITERATIONS if self.max_iterations is None else int(self.max_iterations)
        exact = self.hessian == "exact"
        settings = Settings(tolerance, self.barrier, exact, limit, scale=self.scale, backend=self.backend)
        return constrained(objective, settings, self, xs=xs, us=us)


def constrained(objective: Objective, settings: Settings, options: InteriorPoint, *, xs: Any, us: Any) -> Solution:
    """Solve by the interior point method what `objective` says is free; xs and us are the caller's guesses."""
    problem, params = objective.problem, objective.params
    N, nx, dtype = problem.steps, objective.x0.size, objective.x0.dtype
    warm, warm_start, callback = None, options.warm_start, options.callback
    guess, us = us, objective.us
    if warm_start is not None:
        warm = _check_warm(warm_start, objective)
        us = cast(as_float(warm_start.us, "us"), dtype) if guess is None and "us" in objective.free else us
        xs = warm_start.xs if xs is None else xs
        params = warm_start.params if "params" in objective.free else params
    x0 = objective.x0
    _check_constraints(objective)
    roll_out = xs is None
    start = numbers(x0)
    if xs is None:
        xs = np.tile(np.asarray(start), (N + 1, 1)) if is_concrete(start) else jnp.broadcast_to(start, (N + 1, nx))
    else:
        xs = cast(as_float(xs, "xs", (N + 1, nx)), dtype)
        if "x0" not in objective.free:
            xs = _with_first(xs, start)
    form = Form(objective, us, params)
    program, us, xs, x0_free = form.unknowns(us, xs)
    settings = settings if settings.scale is None else replace(settings, scale=form.scale(settings.scale))
    # What is not free is no guess: derivatives go through it.
    solution = interior_point(
        program, us, xs, None if form.lifted else params, x0_free, settings, x0=x0, roll_out=roll_out,
        warm=None if warm is None else form.warm(warm), failed_derivative=options.failed_derivative,
        time_limit=options.time_limit, between=options.callback_every,
        callback=None if callback is None else lambda solution: callback(form.back(solution)),
    )  # fmt: skip
    return form.back(solution)


def _check_scale(scale: Any) -> None:
    if not isinstance(scale, dict) or not set(scale) <= {"x", "u"}:
        raise ValueError(f'`scale` is {scale!r}; expected a dictionary with "x", "u" or both.')
    for name, value in scale.items():
        made = as_float(value, f'scale["{name}"]')
        if np.ndim(made) > 1 or (is_concrete(made) and not (np.asarray(made) > 0).all()):
            raise ValueError(f'`scale["{name}"]` is {value!r}; expected positive numbers, one or one for each.')


def _with_first(xs: Any, x0: Any) -> Any:
    """Return the states with x_0 in the first row; NumPy does it without a call of compiled code."""
    if not is_concrete((xs, x0)):
        return jnp.asarray(xs).at[0].set(x0)
    xs = np.array(xs)
    xs[0] = x0
    return xs


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
        once_for(("dependence", objective.signature), lambda: _check_dependence(objective))


def _check_dependence(objective: Objective) -> None:
    """Raise where a hard row depends on nothing that is free at some stage, and does not hold there."""
    problem, params = objective.problem, objective.params

    def nan(value: Any) -> Any:
        return np.full(jnp.shape(value), np.nan, jnp.result_type(value))

    params = jax.tree.map(nan, params) if "params" in objective.free else params
    xs = np.broadcast_to(nan(objective.x0), (problem.steps + 1, objective.x0.size))
    us = nan(objective.us) if "us" in objective.free else np.asarray(objective.us)
    try:
        with np.errstate(all="ignore"):
            evaluate = Evaluator(problem, params, (problem.steps, xs.shape[1], us.shape[1]))
            found = evaluate(*[np.tile(z, (MANY, 1, 1)) for z in (xs, us)])
        values = {name: found[name][0] for name in (*PATH, *TERMINAL) if name in found}
    except Uninterpreted:
        with jax.debug_nans(False):
            values = function_values(*to_device((problem, xs, us, params)))
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
    expected = (objective.problem.steps + 1, objective.x0.size)
    if jnp.shape(warm_start.xs) != expected or jnp.shape(warm_start.us) != jnp.shape(objective.us):
        raise ValueError(
            f"`warm_start` has states {jnp.shape(warm_start.xs)} and inputs {jnp.shape(warm_start.us)}; expected"
            f" {expected} and {jnp.shape(objective.us)}."
        )
    return {"costates": warm_start.costates, "multipliers": warm_start.multipliers}
