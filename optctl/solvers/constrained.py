"""The interior point method behind the front door: its options, guesses, free parameters, warm starts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optctl._validate import as_float, as_whole, cast, check_time_limit, is_concrete, is_number, runs_now
from optctl.problem import once
from optctl.shooting.interior_point import BACKENDS, Settings, interior_point
from optctl.shooting.lift import BEHIND, lift, split
from optctl.shooting.rows import PATH, TERMINAL
from optctl.solution import Solution
from optctl.solvers.method import Method, check_choice, check_iterations, method
from optctl.solvers.objective import Objective

MAX_ITERATIONS = 1_000
WARM_BARRIER = 1e-3
"""First barrier parameter of a warm start."""


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
        failed_derivative: what the derivative of a solution that did not converge is multiplied by: NaN, or 0 for a
            derivative that vanishes there (`converged` tells).
        backend: "native" iterates in compiled code; it takes functions made of scalar operations that XLA need not
            compile (no linear solves, not too large), in float64 on a CPU. "jax" takes all. "auto" takes the former
            where it can. Both give the same numbers to rounding.

    Raises:
        ValueError: for another `hessian` or `backend`, a barrier, limit or interval that is not positive, a warm start
            that is no solution; from `solve` for "native" where it cannot be, with the reason.

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
    warm_start: Any = None
    callback: Callable | None = None
    callback_every: int = 1
    time_limit: float | None = None
    failed_derivative: Any = jnp.nan
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_choice(self.backend, "backend", BACKENDS)
        check_choice(self.hessian, "hessian", ("exact", "gauss_newton"))
        if self.max_iterations is not None:
            check_iterations(self.max_iterations)
        if isinstance(self.failed_derivative, str):
            raise ValueError(f"`failed_derivative` is {self.failed_derivative!r}; expected NaN, or 0.")
        known = self.barrier is not None and is_concrete(self.barrier)
        if known and not (is_number(self.barrier) and 0 < self.barrier < np.inf):
            raise ValueError(f"`barrier` is {self.barrier!r}; expected a positive number, or None.")
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"`callback` is a {type(self.callback).__name__}; expected a function of a `Solution`.")
        as_whole(self.callback_every, "callback_every", least=1)
        check_time_limit(self.time_limit)
        if self.warm_start is not None and not isinstance(self.warm_start, Solution):
            kind = type(self.warm_start).__name__
            raise ValueError(f"`warm_start` is a {kind}; expected what optctl.solve returned.")

    def check(self, objective: Objective) -> None:
        """Raise unless the inputs are free."""
        if objective.problem.dynamics.roll_without_inputs or "us" not in objective.free:
            raise ValueError(f"method 'interior_point' needs free inputs; free is {objective.free}.")

    def run(self, objective: Objective, tolerance: Any, us: Any, xs: Any) -> Solution:
        """Minimize from the guess."""
        limit = MAX_ITERATIONS if self.max_iterations is None else int(self.max_iterations)
        settings = Settings(tolerance, self.barrier, self.hessian == "exact", limit, backend=self.backend)
        return constrained(objective, settings, self, xs=xs, us=us)


def constrained(objective: Objective, settings: Settings, options: InteriorPoint, *, xs: Any, us: Any) -> Solution:
    """Solve by the interior point method what `objective` says is free; xs and us are the caller's guesses."""
    problem, params = objective.problem, objective.params
    N, nx, dtype = problem.steps, objective.x0.size, objective.x0.dtype
    warm, warm_start, callback = None, options.warm_start, options.callback
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
    if lifted:
        flat = ravel_pytree(params)[0].astype(dtype)
        problem = lift(problem, params, nx, us.shape[1])
        xs = jnp.concatenate([xs, jnp.broadcast_to(flat, (N + 1, flat.size))], axis=1)
        x0_free += (True,) * flat.size
        if warm is not None:
            zeros = jnp.zeros((N + 1, flat.size), dtype)
            warm = warm | {"costates": jnp.concatenate([warm["costates"], zeros], axis=1)}

    def lower(solution: Solution) -> Solution:
        solution = replace(solution, free=objective.free)
        return _lowered(solution, params, nx, vars(objective.problem)) if lifted else solution

    # What is not free is no guess: derivatives go through it.
    solution = interior_point(
        problem, us, xs, None if lifted else params, x0_free, settings, warm=warm,
        failed_derivative=options.failed_derivative, time_limit=options.time_limit, every=options.callback_every,
        callback=None if callback is None else lambda solution: callback(lower(solution)),
    )  # fmt: skip
    return lower(solution)


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
