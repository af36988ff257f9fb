"""The front door: pick what is free, pick a method, solve, and certify."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace, on_host, own, to_device, to_host
from optctl._door import compiled, numbers
from optctl._record import changed
from optctl._validate import (
    as_float,
    cast,
    check_flag,
    check_kind,
    check_positive,
    check_shape,
    default_float,
    is_concrete,
    runs_now,
    shown,
)
from optctl.engine.native import find_engine
from optctl.problem import Problem, once_for, warn_of_changes
from optctl.result import Status, nan_in_batch
from optctl.shooting.sensitivity import unknown
from optctl.solution import FALLEN, GROWN, History, Solution, cost_size, reachable
from optctl.solvers.cg import CG
from optctl.solvers.guess import check_start, first_state
from optctl.solvers.iterate import Iterate
from optctl.solvers.judged import judged
from optctl.solvers.lq import LQ
from optctl.solvers.method import Method
from optctl.solvers.methods import as_method, refuse_constraints
from optctl.solvers.objective import VARIABLE_BOUNDS, VARIABLES, Objective, certify, certify_stages
from optctl.solvers.refusal import without_derivative


def solve(
    problem: Problem,
    us: Any = None,
    method: Method | str | None = None,
    *,
    xs: Any = None,
    x0: Any = None,
    params: Any = None,
    free: tuple[str, ...] | str | None = None,
    tolerance: float | None = None,
    verbose: bool = False,
) -> Solution:
    """Minimize the cost of a problem over what is free.

    Args:
        problem: the problem. "interior_point" takes every constraint; "lbfgs" and "gradient_descent" take bounds on us
            and a free x0, "ilqr" those on us. What a method cannot take is refused, never ignored.
        us: (N, nu) first guess of the inputs, None starts from zero; or the known inputs where they are not free.
        method: a record with the options of a method, such as `InteriorPoint(max_iterations=50)`, or the short name of
            one with default options: "lq" (`LQ`), "cg" (`CG`), "gradient_descent" (`GradientDescent`), "lbfgs"
            (`LBFGS`), "newton_cg" (`NewtonCG`), "ilqr" (`ILQR`), "interior_point" (`InteriorPoint`). None picks by
            structure: "lq" for linear-quadratic problems without constraints, "interior_point" with constraints,
            "lbfgs" for free parameters, first derivatives only, or bounds on more than a hundred states and inputs;
            else "ilqr" if x0 is given and states and inputs are at most a hundred, "newton_cg" if not.
        xs: (N+1, nx) first guess of the states for "interior_point", which need not satisfy the dynamics; None rolls
            out the guess of the inputs.
        x0: (nx,) first guess of a free x_0; None starts from the middle of its bounds, or the minimum of its initial
            cost.
        params: first guess of free parameters, or other values of fixed ones; None takes the problem's.
        free: names among "us", "x0", "params"; None frees the inputs (if there are any) and x0 where the problem
            gives none; the parameters where nothing else is free.
        tolerance: on the certificate's scaled figures; None is 1e-6, with "interior_point" 1e-8 (1e-3 in float32).
        verbose: print the table of iterations.

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
    check_flag(verbose, "verbose")
    objective = _objective(problem, us, x0, params, free)
    chosen = as_method(method, objective)
    if x0 is None and xs is None and "x0" in objective.free and chosen.name != LQ.name:  # which needs no guess
        guess = jax.lax.stop_gradient(first_state(numbers(objective.problem), objective.x0.dtype))
        objective = dataclasses.replace(objective, x0=guess)  # type: ignore[type-var]
    refuse_constraints(chosen, objective)
    chosen.check(objective)
    if xs is not None and chosen.takes != "all":
        raise ValueError(f"`xs` is for method 'interior_point'; '{chosen.name}' has no use for it.")
    tolerance = _tolerance(tolerance, chosen, objective)
    if verbose and not runs_now(objective):
        raise ValueError(
            "`verbose` prints on the host; leave it out under jit, vmap or grad, and print sol.table() after."
        )
    objective = _placed(chosen, objective)
    found = _run(chosen, objective, tolerance, us, xs)
    if method is None and chosen.name == LQ.name and is_concrete(found.status) and found.status == Status.NOT_CONVEX:
        # Convex, perhaps, but not strictly so in u: conjugate gradients need no inverse.
        chosen = CG()
        objective = _placed(chosen, objective)
        found = _run(chosen, objective, tolerance, us, xs)
    solution = _finish(objective, found, tolerance, chosen.name) if isinstance(found, Iterate) else found
    return _told(objective.problem, solution, verbose)


def _placed(method: Method, objective: Objective) -> Objective:
    """Return the objective in NumPy's arrays, where compiled code evaluates it from the host; else in JAX's."""
    if method.takes == "all":  # which sees to that itself
        return objective
    given = objective.us, objective.x0, objective.params
    if not method.on_host:
        return to_device(objective)
    mixed = method.curved and "params" in objective.free
    found = find_engine(objective.problem, *given, curved=True, mixed=mixed)
    if found is None:
        return to_device(objective)
    placed = to_host(objective)
    vars(placed)["engine"] = found  # which knows the problem as it was given, and its numbers, from other solves
    return placed


def _run(method: Method, objective: Objective, tolerance: Any, us: Any, xs: Any) -> Iterate | Solution:
    """Run the method; derivatives that it has not are refused in its name."""
    if not method.differentiable and not is_concrete(objective):
        objective = without_derivative(method.name, objective)
    if method.takes != "all":  # whose certificate comes with its solution, and asks for the tolerance as given
        tolerance = reachable(tolerance, jnp.result_type(*objective.leaves()))
    return method.run(objective, tolerance, us, xs)


def _tolerance(tolerance: Any, method: Method, objective: Objective) -> Any:
    """Return the tolerance given, or that of the method; 1e-3 in single precision."""
    if tolerance is None:
        single = np.result_type(*{leaf.dtype for leaf in objective.leaves()}) == np.float32
        return 1e-3 if single else method.tolerance
    check_positive(tolerance, "tolerance", "a number >= 0, such as 1e-6", zero=True)
    return tolerance


def _told(problem: Problem, solution: Solution, verbose: bool) -> Solution:
    """Judge the solution, cut the history to the iterations made, and print if asked to."""
    now = on_host(solution.xs) or is_concrete(solution)
    if now or runs_now(known := numbers((problem, solution))):
        solution = judged(problem, solution) if now else _told_of(solution, judged(*to_host(known)))
        rows = slice(int(solution.iterations) + 1)
        columns = vars(numbers(solution.history)).values()
        history = History(*[None if column is None else np.array(column[rows]) for column in columns])
        solution = changed(solution, history=history)
        warn_of_changes(problem)
        _warn_of_start(problem)
    else:
        cost = solution.cost + nan_in_batch(solution.converged).astype(solution.cost.dtype)
        solution = dataclasses.replace(solution, cost=cost)  # type: ignore[type-var]
    if verbose:
        print(f"{solution.table()}\n{solution!r}")
    return solution


def _warn_of_start(problem: Problem) -> None:
    """Warn of a given x_0 that leaves the bounds of states, which nothing can be done about."""
    for name, sign in (("x_min", 1.0), ("x_max", -1.0)):
        bound = getattr(problem, name)
        if bound is None or problem.x0 is None or not is_concrete((bound, problem.x0)):
            continue
        x0, first = np.asarray(problem.x0), np.asarray(bound)
        over = sign * ((first[0] if first.ndim == 2 else first) - x0)
        if (over > 1e-6 * np.maximum(1.0, np.abs(x0))).any():
            worst = int(np.argmax(np.broadcast_to(over, x0.shape)))
            warnings.warn(
                f"`x0` leaves `{name}` at index {worst}, by {over.max():.3g}; where x_0 is given, bounds of states"
                " count from the next state on.",
                stacklevel=4,
            )


def _told_of(solution: Solution, seen: Solution) -> Solution:
    """Return a solution that is being differentiated with the verdict on its numbers; refuted ones have none."""
    said = ("status", "converged", "certificate", "note", "checked")
    told = changed(solution, **{name: getattr(seen, name) for name in said})
    if seen.status != Status.DISAGREEMENT:
        return told
    moving = {name: value for name, value in vars(told).items() if name not in said and not is_concrete(value)}
    leaves, structure = jax.tree.flatten(moving)
    return changed(told, **jax.tree.unflatten(structure, unknown(tuple(numbers(leaves)), leaves)))


def _objective(problem: Problem, us: Any, x0: Any, params: Any, free: Any) -> Objective:
    check_kind(problem, Problem, "problem", "optctl.Problem")
    dynamics = problem.dynamics
    if params is not None:
        problem = problem.replace(params=params)
    names = _free_names(problem, free)
    if problem.x0 is not None and x0 is not None:
        raise ValueError(
            "`x0` is given twice: the problem holds it; write problem.replace(x0=...), or x0=None there to free it."
        )
    if problem.x0 is None:
        if x0 is None and "x0" not in names:
            raise ValueError(
                f"`x0` is neither given nor free (free: {', '.join(names)}); pass x0=..., or free it, too."
            )
        if x0 is None and free is None:
            check_start(problem)
        if x0 is None and dynamics.nx is None:
            raise ValueError("`x0` is free and its size unknown; pass a first guess x0=..., or nx to the dynamics.")
        if x0 is None:
            x0 = np.zeros(dynamics.nx, us.dtype if hasattr(us, "dtype") else default_float())
        x0 = to_device(as_float(x0, "x0"))
    else:
        x0 = problem.x0
    if not dynamics.roll_without_inputs:
        if us is None and "us" not in names and dynamics.nu != 0:
            raise ValueError(
                f"`us` is neither given nor free (free: {', '.join(names)}); pass the known inputs (N, nu)."
            )
        if us is None and dynamics.nu is None:
            raise ValueError(
                "`us` is missing, and the dynamics do not tell the number of inputs: pass it to them, such as"
                " oc.discretize(f, dt, nx=2, nu=1), or a first guess us of shape (N, nu)."
            )
        us = np.zeros((problem.steps, dynamics.nu), x0.dtype) if us is None else as_float(us, "us")
        check_shape(us, "us", (problem.horizon, dynamics.nu))
        both = np.result_type(us.dtype, x0.dtype)
        us, x0 = cast(us, both), cast(x0, both)
    else:
        x0 = to_device(x0)
    params = to_device(problem.params)
    objective = Objective(problem, us, x0, params, names)
    if not objective.size():
        empty = {"us": "the dynamics have no inputs", "x0": "x0 is given", "params": "the problem has no params"}
        what = empty if free is None else {name: empty[name] for name in names}
        raise ValueError(f"nothing is free: {', '.join(what.values())}; expected numbers to optimize over.")
    once_for(objective.signature, lambda: jax.eval_shape(_check_shapes, objective))
    dynamics.rehearse(x0, us, objective.params)
    return objective


def _check_shapes(objective: Objective) -> None:
    objective.problem.check_shapes(objective.x0, objective.us, objective.params)


def _free_names(problem: Problem, free: Any) -> tuple[str, ...]:
    if free is None:
        names: tuple[str, ...] = () if problem.dynamics.nu == 0 else ("us",)
        names += ("x0",) if problem.x0 is None else ()
        return names or ("params",)
    names = (free,) if isinstance(free, str) else free
    known = isinstance(names, list | tuple | set) and all(isinstance(n, str) and n in VARIABLES for n in names)
    if not known or not names or len(set(names)) != len(names):
        raise ValueError(
            f"`free` is {shown(free)}; expected names among 'us', 'x0', 'params', at least one. (For the cost of"
            " what is given there is optctl.gradient.)"
        )
    if "params" in names and not jax.tree.leaves(problem.params):
        raise ValueError(
            "`free` names params, but the problem has none; pass their first guess, params=..., to Problem."
        )
    if "x0" in names and problem.x0 is not None:
        raise ValueError(
            "`free` names x0, but the problem fixes it; write problem.replace(x0=None) and pass x0= as guess."
        )
    return tuple(name for name in VARIABLES if name in names)


def _finish(objective: Objective, iterate: Iterate, tolerance: Any, method: str) -> Solution:
    history = iterate.history
    first = (np.asarray(history.cost) if is_concrete(history) else history.cost)[0]
    empty = History(None, None, None)  # its length is no part of the program that certifies
    point = dataclasses.replace(iterate, cost=None, slope=None, running=None, history=empty)  # type: ignore[type-var]
    solution = _certified(objective, point, first, tolerance, method)
    staged = iterate.costates is not None and solution.xs is not None
    if staged and not (is_concrete(solution) and solution.converged):
        solution = _certified_by_stages(objective, point, first, tolerance, solution)
    return solution if method == "lq" else dataclasses.replace(solution, history=history)  # type: ignore[type-var]


@compiled("method")
def _certified(objective: Objective, iterate: Iterate, first: Any, tolerance: Any, method: str) -> Solution:
    """Evaluate the final point afresh, whatever the solver believes, and certify it."""
    z, xp = iterate.z, namespace(iterate.z)
    g = objective.gradient(z)
    values = objective.unpack(z)
    size = cost_size(g.cost, first, objective.least_size(g.xs, values["us"], values["params"]))
    certificate, multipliers = certify(objective, z, objective.pack(g), size, tolerance)
    finite = xp.isfinite(g.cost) & xp.isfinite(certificate.stationarity)
    converged = certificate.holds & finite & (iterate.status != int(Status.NOT_CONVEX))
    status = xp.where(
        converged,
        int(Status.SOLVED),
        xp.where(iterate.status == int(Status.SOLVED), int(Status.STALLED), iterate.status),
    )
    status = xp.where(finite | (status == int(Status.NOT_CONVEX)), status, int(Status.NON_FINITE))
    fallen = g.cost < -FALLEN * (1 + xp.where(xp.isfinite(first), xp.abs(first), 0.0))
    fallen = fallen & (xp.max(xp.abs(z)) > GROWN * xp.maximum(1.0, xp.max(xp.abs(objective.pack(objective)))))
    lower, upper = objective.bounds()
    fallen = fallen & ~(xp.all(xp.isfinite(lower)) & xp.all(xp.isfinite(upper)))
    status = xp.where(fallen & ~converged, int(Status.UNBOUNDED), status)
    history = History(g.cost[None], certificate.stationarity_scaled[None], xp.zeros_like(g.cost)[None])
    return Solution(
        xs=g.xs, us=own(values["us"]), x0=own(values["x0"]), params=own(values["params"]), costates=g.costates,
        multipliers=_by_name(objective, multipliers), K=iterate.K, k=iterate.k, cost=g.cost, status=status,
        converged=converged, iterations=iterate.iterations, certificate=certificate, history=history, method=method,
        free=objective.free, residuals={},
    )  # fmt: skip


@compiled()
def _certified_by_stages(
    objective: Objective, iterate: Iterate, first: Any, tolerance: Any, found: Solution
) -> Solution:
    """Certify the solver's own states and costates where the reduced gradient, all rounding, certifies nothing."""
    xp = namespace(iterate.z)
    g, certificate, multipliers = certify_stages(objective, iterate, first, tolerance)
    better = certificate.holds & xp.isfinite(g.cost) & ~found.converged
    new = dataclasses.replace(  # type: ignore[type-var]
        found, xs=g.xs, costates=g.costates, multipliers=_by_name(objective, multipliers), cost=g.cost,
        status=xp.full_like(found.status, int(Status.SOLVED)), converged=better, certificate=certificate,
    )  # fmt: skip
    return jax.tree.map(lambda new, old: xp.where(better, new, old), new, found)


def _by_name(objective: Objective, multipliers: tuple[Any, Any]) -> dict[str, Any]:
    """Return the multipliers (lower, upper) of z by the names of the bounds."""
    by_side = [objective.unpack(mu) for mu in multipliers]
    return {
        name: by_side[name.endswith("max")][variable]
        for name, variable in VARIABLE_BOUNDS.items()
        if getattr(objective.problem, name) is not None
    }
