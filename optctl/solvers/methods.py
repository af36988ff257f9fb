"""The methods there are, and which of them a problem gets when nobody says.

The choice looks at structure alone (what is free, which constraints there are, of what kind dynamics and costs are,
sizes), so that a plain call, `jit`, `grad` and `vmap` take the same one.
"""

from functools import cache
from typing import Any

from optctl._validate import shown
from optctl.lq.model import is_linear_quadratic
from optctl.problem import CONSTRAINTS, once_for
from optctl.solvers.cg import CG
from optctl.solvers.constrained import InteriorPoint
from optctl.solvers.descent import GradientDescent
from optctl.solvers.ilqr import ILQR
from optctl.solvers.lbfgs import LBFGS
from optctl.solvers.lq import LQ
from optctl.solvers.method import Method
from optctl.solvers.newton_cg import NewtonCG
from optctl.solvers.objective import VARIABLE_BOUNDS, Objective

METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (LQ, CG, GradientDescent, LBFGS, NewtonCG, ILQR, InteriorPoint)
}
SMALL = 100
"""Largest nx + nu for which a method with dense matrices is picked where one without them would do."""


def as_method(method: Any, objective: Objective) -> Method:
    """Return the record of a method: the one given, the one of a short name, or, of None, the one picked."""
    if method is None:
        return once_for(("method", objective.signature), lambda: pick(objective))
    return check_method(method)


def check_method(method: Any) -> Method:
    """Return the record of a method, given as one or by its short name, or raise ValueError."""
    if isinstance(method, str) and method in METHODS:
        return _with_defaults(method)
    if not isinstance(method, Method):
        names, records = ", ".join(METHODS), ", ".join(kind.__name__ for kind in METHODS.values())
        called = isinstance(method, type) and issubclass(method, Method)
        got = method.__name__ if called else shown(method)
        hint = f" Write method={got}(...), with parentheses." if called else ""
        raise ValueError(f"`method` is {got}; expected one of {names}, or a record with options: {records}.{hint}")
    return method


@cache
def _with_defaults(name: str) -> Method:
    return METHODS[name]()


def pick(objective: Objective) -> Method:
    """Return the method for what is free and constrained, by structure."""
    problem, free = objective.problem, objective.free
    dynamics, names = problem.dynamics, problem.constraint_names
    bounds_only = set(names) <= set(VARIABLE_BOUNDS)
    smooth = dynamics.twice_differentiable and not dynamics.roll_without_inputs
    small = objective.x0.size + (0 if objective.us is None else objective.us[0].size) <= SMALL
    if not bounds_only or (names and "us" in free and smooth and small):
        return InteriorPoint()
    if names or "params" in free or not dynamics.twice_differentiable:
        return LBFGS()
    whole = free == ("us",) + (("x0",) if problem.x0 is None else ())
    narrow = small and problem.memory == "full"
    if whole and (dynamics.is_linear or narrow) and is_linear_quadratic(problem):
        return LQ()
    light = smooth and narrow and dynamics.has_jax_step
    return ILQR() if light and free == ("us",) else NewtonCG()


def refuse_constraints(method: Method, objective: Objective) -> None:
    """Raise for constraints that the method cannot take, or that bound what is not free."""
    once_for(("taken", type(method), objective.signature), lambda: _refuse_constraints(method, objective))


def _refuse_constraints(method: Method, objective: Objective) -> None:
    problem, free = objective.problem, objective.free
    bounded = [name for name, variable in VARIABLE_BOUNDS.items() if variable in free]
    others = [name for name in CONSTRAINTS if name not in VARIABLE_BOUNDS]
    taken = {"none": [], "bounds": bounded, "all": [*bounded, *others]}[method.takes]
    refused = [name for name in problem.constraint_names if name not in taken]
    if not refused:
        return
    if any(name not in VARIABLE_BOUNDS for name in refused):
        remedy = "use method='interior_point', which takes every constraint, or penalties in the cost"
    elif method.takes == "none":
        remedy = "use method='interior_point', 'lbfgs' or 'gradient_descent', which take them"
    else:
        remedy = (
            f"they bound what is not free (free: {', '.join(free)}); free that, too, with free=(...), or remove them"
        )
    raise ValueError(f"method '{method.name}' cannot take the constraints {refused}: {remedy}.")
