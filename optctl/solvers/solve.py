"""The front door: pick what is free, pick a method, solve, and certify."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import lq
from optctl._validate import as_float, as_whole, cast, check_shape, check_time_limit, is_concrete, runs_now
from optctl.adjoint.gradient import Gradient
from optctl.adjoint.hessian import require_second_derivatives
from optctl.lq.model import LQ, is_linear_quadratic
from optctl.problem import PARAMS_BOUNDS, Problem, once
from optctl.result import Status, nan_in_batch
from optctl.shooting.interior_point import InteriorPoint, Settings
from optctl.solution import History, Solution
from optctl.solvers.cg import conjugate_gradient, lowest_curvature, slope_mismatch
from optctl.solvers.constrained import constrained
from optctl.solvers.descent import gradient_descent
from optctl.solvers.ilqr import ILQR, ilqr
from optctl.solvers.iterate import Iterate
from optctl.solvers.lbfgs import lbfgs
from optctl.solvers.newton_cg import newton_cg
from optctl.solvers.objective import Objective, certify, certify_stages

METHODS = {
    "lq": "exact solution of linear-quadratic problems by the Riccati recursion",
    "cg": "conjugate gradients on the normal equations, for quadratic problems",
    "gradient_descent": "projected gradient descent with Barzilai-Borwein or Armijo steps; takes bounds on us and x0",
    "lbfgs": "SciPy's L-BFGS-B; takes bounds on us and x0",
    "newton_cg": "trust-region Newton-CG with exact Hessian-vector products",
    "ilqr": "iterative LQR (differential dynamic programming): rollouts under feedback; takes bounds on us",
    "interior_point": "primal-dual interior point on the multiple-shooting form; takes every constraint",
}
MAX_ITERATIONS = {
    "lq": 1,
    "cg": None,
    "gradient_descent": 10_000,
    "lbfgs": 10_000,
    "newton_cg": 1_000,
    "ilqr": 1_000,
    "interior_point": 1_000,
}
TAKES_BOUNDS = ("gradient_descent", "lbfgs", "ilqr")
SMALL = 100
"""Largest nx + nu for which a method with dense matrices is picked where one without them would do."""
VARIABLE_BOUNDS = {
    "u_min": "us",
    "u_max": "us",
    "x0_min": "x0",
    "x0_max": "x0",
    "params_min": "params",
    "params_max": "params",
}


def solve(
    problem: Problem,
    us: Any = None,
    method: str | ILQR | InteriorPoint | None = None,
    *,
    xs: Any = None,
    x0: Any = None,
    params: Any = None,
    free: tuple[str, ...] | str | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    warm_start: Solution | None = None,
    step: str = "bb",
    verbose: bool = False,
    callback: Callable | None = None,
    callback_every: int = 1,
    time_limit: float | None = None,
) -> Solution:
    """Minimize the cost of a problem over what is free.

    Args:
        problem: the problem. "interior_point" takes every constraint; "lbfgs" and "gradient_descent" take bounds on us
            and a free x0, "ilqr" those on us. What a method cannot take is refused, never ignored.
        us: (N, nu) first guess of the inputs, None starts from zero; or the known inputs where they are not free.
        method: one of "lq", "cg", "gradient_descent", "lbfgs", "newton_cg", "ilqr", "interior_point", or a record with
            options, `ILQR` or `InteriorPoint`. None picks: "lq" for linear-quadratic problems without constraints,
            "interior_point" with constraints, "lbfgs" for free parameters, first derivatives only, or bounds on more
            than a hundred states and inputs; else "ilqr" if x0 is given and states and inputs are at most a hundred,
            "newton_cg" if not.
        xs: (N+1, nx) first guess of the states for "interior_point", which need not satisfy the dynamics; None rolls
            out the guess of the inputs.
        x0: (nx,) first guess of a free x_0; None starts from zero (projected into its bounds).
        params: first guess of free parameters, or other values of fixed ones; None takes the problem's.
        free: names among "us", "x0", "params"; None frees the inputs (if there are any) and x0 where the problem
            gives none; the parameters where nothing else is free.
        tolerance: on the certificate's scaled figures; None is 1e-6, with "interior_point" 1e-8 (1e-3 in float32).
        max_iterations: None takes the method's default.
        warm_start: solution of a similar problem; "interior_point" begins with its trajectory (unless us or xs are
            given) and its multipliers.
        step: "bb" or "armijo", the step rule of "gradient_descent".
        verbose: print the table of iterations.
        callback: for "interior_point": called with a `Solution`, as it stands, every `callback_every` iterations.
        callback_every: iterations between calls.
        time_limit: for "interior_point": seconds, after which it returns what it has, with status TIME_LIMIT.

    Returns:
        A `Solution`. `converged` is True only if its certificate holds; `method` says which solver ran.

    Raises:
        ValueError: for wrong shapes, NaN, unknown methods, constraints that the method cannot take, or a problem
            that is not quadratic for "lq" or "cg".

    Example:
        >>> import optctl as oc
        >>> pendulum = oc.discretize(oc.models.Pendulum(), dt=0.05)
        >>> problem = oc.Problem(
        ...     pendulum,
        ...     stage_cost=lambda x, u: 0.05 * (x @ x + 0.1 * u @ u),
        ...     terminal_cost=lambda x: x @ x,
        ...     horizon=20,
        ...     x0=[1.0, 0.0],
        ... )
        >>> sol = oc.solve(problem)
        >>> sol.method, bool(sol.converged), round(float(sol.cost), 6)
        ('ilqr', True, 3.222557)

    References:
        Nocedal and Wright (2006), Numerical Optimization.
    """
    objective = _objective(problem, us, x0, params, free)
    problem, asked = objective.problem, method
    method = _pick(problem, objective, method)
    _refuse_constraints(problem, objective, method)
    as_whole(callback_every, "callback_every", least=1)
    check_time_limit(time_limit)
    if step not in ("bb", "armijo") or (step != "bb" and method != "gradient_descent"):
        raise ValueError(f"`step` is {step!r}; expected 'bb', or 'armijo' with method 'gradient_descent'.")
    dtype, size = np.result_type(*[leaf.dtype for leaf in objective.leaves()]), objective.size()
    if tolerance is None:
        tolerance = 1e-3 if dtype == jnp.float32 else 1e-8 if method == "interior_point" else 1e-6
    if not isinstance(tolerance, int | float | np.number) or not 0 <= tolerance < np.inf:
        raise ValueError(f"`tolerance` is {tolerance!r}; expected a number >= 0, such as 1e-6.")
    if verbose and not runs_now(objective):
        raise ValueError(
            "`verbose` prints on the host; leave it out under jit, vmap or grad, and print sol.table() after."
        )
    limit = MAX_ITERATIONS[method] if max_iterations is None else max_iterations
    limit = as_whole(2 * size + 10 if limit is None else limit, "max_iterations", least=0)
    if method == "interior_point":
        options = asked if isinstance(asked, InteriorPoint) else InteriorPoint()
        exact = options.hessian == "exact"
        settings = Settings(tolerance, options.barrier, exact, int(limit), scale=options.scale, backend=options.backend)
        solution = constrained(
            objective, settings, options, xs=xs, us=us, warm_start=warm_start, callback=callback, every=callback_every,
            time_limit=time_limit,
        )  # fmt: skip
        return _told(solution, verbose)
    z = objective.pack(objective)
    _refuse_options(method, xs=xs, warm_start=warm_start, callback=callback, time_limit=time_limit)
    K = k = None
    if method == "lq":
        iterate, K, k = _solve_lq(problem, objective)
        if asked is None and is_concrete(iterate.status) and int(iterate.status) == Status.NOT_CONVEX:
            # Convex, perhaps, but not strictly so in u: conjugate gradients need no inverse.
            return solve(
                problem, us, "cg", x0=x0, free=free, tolerance=tolerance, max_iterations=max_iterations, verbose=verbose
            )
    elif method == "gradient_descent":
        iterate = gradient_descent(objective, z, tolerance=tolerance, max_iterations=limit, step=step)
    elif method == "cg":
        _require_quadratic(objective, z)
        iterate = conjugate_gradient(objective, z, tolerance=tolerance, max_iterations=limit)
        iterate = _demand_convex(objective, z, iterate)
    elif method == "newton_cg":
        iterate = newton_cg(objective, z, tolerance=tolerance, max_iterations=limit)
    elif method == "ilqr":
        exact = _is_exact(asked, problem)
        iterate, K, k = ilqr(objective, objective.us, tolerance=tolerance, max_iterations=limit, exact=exact)
    else:
        if not runs_now((objective, z)):
            raise ValueError(
                "method 'lbfgs' runs on the host; under jit or vmap use 'newton_cg' or 'gradient_descent'. No iterative"
                " method is differentiated through: the costates and multipliers of a solution are its sensitivities."
            )
        iterate = lbfgs(objective, z, tolerance=float(tolerance), max_iterations=limit)
    return _told(_finish(objective, iterate, tolerance, K, k, method), verbose)


def _told(solution: Solution, verbose: bool) -> Solution:
    """Cut the history to the iterations made, and print if asked to."""
    if is_concrete(solution):
        rows = slice(int(solution.iterations) + 1)
        history = jax.tree.map(lambda column: np.asarray(column)[rows], solution.history)
        solution = dataclasses.replace(solution, history=history)  # type: ignore[type-var]
    else:
        cost = solution.cost + nan_in_batch(solution.converged).astype(solution.cost.dtype)
        solution = dataclasses.replace(solution, cost=cost)  # type: ignore[type-var]
    if verbose:
        print(f"{solution.table()}\n{solution!r}")
    return solution


def _refuse_options(method: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"`{name}` is for method 'interior_point'; '{method}' has no use for it.")


def _objective(problem: Problem, us: Any, x0: Any, params: Any, free: Any) -> Objective:
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` is a {type(problem).__name__}; expected optctl.Problem.")
    dynamics = problem.dynamics
    names = _free_names(problem, free)
    if params is not None:
        problem = problem.replace(params=params)
    dtype = jnp.result_type(float)
    for given in (problem.x0, us, x0):
        if given is not None and hasattr(given, "dtype"):
            dtype = given.dtype
            break
    if problem.x0 is not None and x0 is not None:
        raise ValueError(
            "`x0` is given twice: the problem holds it; write problem.replace(x0=...), or x0=None there to free it."
        )
    if problem.x0 is None:
        if x0 is None and "x0" not in names:
            raise ValueError(
                f"`x0` is neither given nor free (free: {', '.join(names)}); pass x0=..., or free it, too."
            )
        if x0 is None and dynamics.nx is None:
            raise ValueError("`x0` is free and its size unknown; pass a first guess x0=..., or nx to the dynamics.")
        x0 = jnp.zeros(dynamics.nx, dtype) if x0 is None else jnp.asarray(as_float(x0, "x0"))
    else:
        x0 = problem.x0
    if not dynamics.roll_without_inputs:
        if us is None and "us" not in names and dynamics.nu != 0:
            raise ValueError(
                f"`us` is neither given nor free (free: {', '.join(names)}); pass the known inputs (N, nu)."
            )
        if us is None and dynamics.nu is None:
            raise ValueError("`us` is missing; the number of inputs is unknown: pass a first guess (N, nu).")
        us = np.zeros((problem.steps, dynamics.nu), x0.dtype) if us is None else as_float(us, "us")
        check_shape(us, "us", (problem.horizon, dynamics.nu))
        both = np.result_type(us.dtype, x0.dtype)
        us, x0 = cast(us, both), cast(x0, both)
    else:
        x0 = jnp.asarray(x0)
    objective = Objective(problem, us, x0, jax.tree.map(jnp.asarray, problem.params), names)
    if not objective.size():
        raise ValueError(
            f"nothing is free: {names} hold no numbers; name what to optimize with free=('params',) or others."
        )
    once(objective, lambda: jax.eval_shape(_check_shapes, objective))
    dynamics.rehearse(x0, us, objective.params)
    return objective


def _check_shapes(objective: Objective) -> None:
    objective.problem.check_shapes(objective.x0, objective.us, objective.params)


def _free_names(problem: Problem, free: Any) -> tuple[str, ...]:
    if free is None:
        names: tuple[str, ...] = () if problem.dynamics.nu == 0 else ("us",)
        names += ("x0",) if problem.x0 is None else ()
        return names or ("params",)
    names = (free,) if isinstance(free, str) or not hasattr(free, "__iter__") else tuple(free)
    unknown = set(names) - {"us", "x0", "params"}
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"`free` is {names}; expected names among 'us', 'x0', 'params'.")
    if "x0" in names and problem.x0 is not None:
        raise ValueError(
            "`free` names x0, but the problem fixes it; write problem.replace(x0=None) and pass x0= as guess."
        )
    return tuple(name for name in ("us", "x0", "params") if name in names)


def _pick(problem: Problem, objective: Objective, method: Any) -> str:
    if isinstance(method, InteriorPoint | ILQR):
        method = "ilqr" if isinstance(method, ILQR) else "interior_point"
    if method is not None:
        if not isinstance(method, str) or method not in METHODS:
            raise ValueError(f"`method` is {method!r}; expected one of {list(METHODS)}.")
        if method in ("cg", "newton_cg"):
            require_second_derivatives(problem)
        if method == "interior_point" and (problem.dynamics.roll_without_inputs or "us" not in objective.free):
            raise ValueError(f"method 'interior_point' needs free inputs; free is {objective.free}.")
        if method == "lq" and objective.free not in (("us",), ("us", "x0")):
            raise ValueError(f"method 'lq' solves for us (and x0); free is {objective.free}.")
        if method == "ilqr" and objective.free != ("us",) and not set(problem.constraint_names) - set(VARIABLE_BOUNDS):
            raise ValueError(
                f"method 'ilqr' solves for us alone, with x0 and params given; free is {objective.free}: use"
                " 'interior_point', 'newton_cg' or 'lbfgs'."
            )
        if method == "ilqr" and not problem.dynamics.has_jax_step:
            raise ValueError(
                f"method 'ilqr' rolls out under feedback, which needs a step in JAX; {type(problem.dynamics).__name__}"
                " has none: use method='lbfgs' or 'gradient_descent'."
            )
        return method
    bounds_only = set(problem.constraint_names) <= set(VARIABLE_BOUNDS)
    smooth = problem.dynamics.twice_differentiable and not problem.dynamics.roll_without_inputs
    small = objective.x0.size + (0 if objective.us is None else objective.us[0].size) <= SMALL
    if problem.constraint_names and "us" in objective.free and not (bounds_only and not (smooth and small)):
        return "interior_point"
    if problem.constraint_names or "params" in objective.free or not problem.dynamics.twice_differentiable:
        return "lbfgs"
    whole = objective.free == ("us",) + (("x0",) if problem.x0 is None else ())
    if whole and runs_now(problem) and problem.dynamics.is_linear and is_linear_quadratic(problem):
        return "lq"
    light = smooth and small and problem.dynamics.has_jax_step and problem.memory == "full"
    return "ilqr" if light and objective.free == ("us",) else "newton_cg"


def _is_exact(method: Any, problem: Problem) -> bool:
    """True if iterative LQR is to use second derivatives of the dynamics."""
    hessian = method.hessian if isinstance(method, ILQR) else None
    if hessian == "exact" and not problem.dynamics.twice_differentiable:
        kind = type(problem.dynamics).__name__
        raise ValueError(f"`hessian` is 'exact', but {kind} has no second derivatives; use 'gauss_newton'.")
    return problem.dynamics.twice_differentiable if hessian is None else hessian == "exact"


def _refuse_constraints(problem: Problem, objective: Objective, method: str) -> None:
    bounded = [name for name, variable in VARIABLE_BOUNDS.items() if variable in objective.free]
    taken = bounded if method in TAKES_BOUNDS else []
    refused = [name for name in problem.constraint_names if name not in taken]
    if method == "interior_point":
        refused = [name for name in refused if name in PARAMS_BOUNDS and "params" not in objective.free]
    if not refused:
        return
    if all(name in VARIABLE_BOUNDS for name in refused) and method not in (*TAKES_BOUNDS, "interior_point"):
        remedy = "use method='interior_point', 'lbfgs' or 'gradient_descent', which take them"
    elif all(name in VARIABLE_BOUNDS for name in refused):
        remedy = f"they bound what is not free (free: {', '.join(objective.free)}); remove them"
    else:
        remedy = "use method='interior_point', which takes every constraint, or penalties in the cost"
    raise ValueError(f"method '{method}' cannot take the constraints {refused}: {remedy}.")


def _require_quadratic(objective: Objective, z: Any) -> None:
    """Raise unless the slope is linear in z, probed at two sizes."""
    if not runs_now((objective, z)):
        return
    noise = jnp.asarray(np.random.default_rng(0).normal(size=z.shape), z.dtype)
    tolerance = 1e-2 if z.dtype == jnp.float32 else 1e-6
    for scale in (1.0, 1e3):
        gap = float(slope_mismatch(objective, z, z + scale * noise))
        if not gap <= tolerance:
            raise ValueError(
                f"method 'cg' needs a quadratic problem, but the gradient departs from linear by {gap:.1e} of its size;"
                " use 'newton_cg'."
            )


def _demand_convex(objective: Objective, z: Any, iterate: Iterate) -> Iterate:
    """Mark the result as not convex if the Hessian has a negative eigenvalue, which cg may not have met."""
    if not runs_now((objective, z)):
        return iterate
    lowest, size = lowest_curvature(objective, z)
    rounding = 1e-4 if z.dtype == jnp.float32 else 1e-10
    if lowest >= -rounding * size:
        return iterate
    return dataclasses.replace(iterate, status=jnp.asarray(int(Status.NOT_CONVEX)))  # type: ignore[type-var]


def _solve_lq(problem: Problem, objective: Objective) -> tuple[Iterate, Any, Any]:
    solution = lq.solve(LQ.from_problem(problem))
    z = objective.pack(Gradient(None, None, None, us=solution.us, x0=solution.xs[0], params=None))
    row = jnp.stack([jnp.asarray(jnp.nan, z.dtype), solution.cost.astype(z.dtype)])
    status = jnp.where(solution.failed_stage < 0, int(Status.SOLVED), int(Status.NOT_CONVEX))
    iterate = Iterate(z, solution.cost, None, jnp.asarray(1), status, jnp.asarray(False), History(row, row, row))
    return iterate, solution.K, solution.k


def _finish(objective: Objective, iterate: Iterate, tolerance: Any, K: Any, k: Any, method: str) -> Solution:
    history, first = iterate.history, iterate.first_cost
    if first is None:
        first = (np.asarray(history.cost) if is_concrete(history) else history.cost)[0]
    empty = History(None, None, None)  # its length is no part of the program that certifies
    point = dataclasses.replace(iterate, cost=None, slope=None, running=None, history=empty, first_cost=None)  # type: ignore[type-var]
    solution = _certified(objective, point, first, tolerance, K, k, method)
    staged = iterate.costates is not None and solution.xs is not None
    if staged and not (is_concrete(solution) and solution.converged):
        solution = _certified_by_stages(objective, point, first, tolerance, solution)
    return solution if method == "lq" else dataclasses.replace(solution, history=history)  # type: ignore[type-var]


@partial(jax.jit, static_argnames=("method",))
def _certified(
    objective: Objective, iterate: Iterate, first: Any, tolerance: Any, K: Any, k: Any, method: str
) -> Solution:
    """Evaluate the final point afresh, whatever the solver believes, and certify it."""
    z = iterate.z
    g = objective.gradient(z)
    start = jnp.where(jnp.isnan(first), g.cost, first)
    values = objective.unpack(z)
    floor = objective.least_size(g.xs, values)
    certificate, multipliers = certify(objective, z, objective.pack(g), g.cost, start, tolerance, floor)
    finite = jnp.isfinite(g.cost) & jnp.isfinite(certificate.stationarity)
    converged = certificate.holds & finite & (iterate.status != int(Status.NOT_CONVEX))
    status = jnp.where(
        converged,
        int(Status.SOLVED),
        jnp.where(iterate.status == int(Status.SOLVED), int(Status.STALLED), iterate.status),
    )
    status = jnp.where(finite | (status == int(Status.NOT_CONVEX)), status, int(Status.NON_FINITE))
    fallen = g.cost < -1e6 * (1 + jnp.where(jnp.isfinite(first), jnp.abs(first), 0.0))
    status = jnp.where(fallen & ~converged, int(Status.UNBOUNDED), status)
    history = History(g.cost[None], certificate.stationarity_scaled[None], jnp.zeros_like(g.cost)[None])
    return Solution(
        xs=g.xs, us=values["us"], x0=values["x0"], params=values["params"], costates=g.costates,
        multipliers=_by_name(objective, multipliers), K=K, k=k, cost=g.cost, status=status, converged=converged,
        iterations=iterate.iterations, certificate=certificate, history=history, method=method,
        free=objective.free, residuals={},
    )  # fmt: skip


@jax.jit
def _certified_by_stages(
    objective: Objective, iterate: Iterate, first: Any, tolerance: Any, found: Solution
) -> Solution:
    """Certify the solver's own states and costates where the reduced gradient, all rounding, certifies nothing."""
    g, certificate, multipliers = certify_stages(objective, iterate, first, tolerance)
    better = certificate.holds & jnp.isfinite(g.cost) & ~found.converged
    new = dataclasses.replace(  # type: ignore[type-var]
        found, xs=g.xs, costates=g.costates, multipliers=_by_name(objective, multipliers), cost=g.cost,
        status=jnp.full_like(found.status, int(Status.SOLVED)), converged=better, certificate=certificate,
    )  # fmt: skip
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), new, found)


def _by_name(objective: Objective, multipliers: tuple[Any, Any]) -> dict[str, Any]:
    """Return the multipliers (lower, upper) of z by the names of the bounds."""
    by_side = [objective.unpack(mu) for mu in multipliers]
    return {
        name: by_side[name.endswith("max")][variable]
        for name, variable in VARIABLE_BOUNDS.items()
        if getattr(objective.problem, name) is not None
    }
