r"""Soft equalities for a method that knows soft inequalities: the price of |h| takes two of them.

    l1 |h| + l2 h^2/2  =  min  l1 (e + e') + l2 h^2/2    subject to  h <= e,  -h <= e',  e, e' >= 0.

The squared part is smooth and joins the cost. The multiplier of h is y - y' + l2 h, between -l1 and l1 where h = 0.
Rows of infinite price stay equalities.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace, on_host, to_host
from optctl._record import record
from optctl._validate import default_float, is_concrete
from optctl.constraint import Constraint, stacked
from optctl.dynamics.stage import StageFunction, takes_all
from optctl.engine.native import find_engine
from optctl.problem import Problem
from optctl.shooting.expansion import function_values
from optctl.solution import Solution

SIDES = {"path": "stage_cost", "terminal": "terminal_cost"}
"""Where soft equalities may be, and the cost that their squares join."""


@record()
class Negative:
    """-h."""

    function: StageFunction

    def __call__(self, *arguments: Any) -> Any:
        """Return the rows."""
        return -self.function(*arguments)


@record()
class WithSquares:
    """A cost, if any, and sum weight h^2 / 2."""

    cost: StageFunction | None
    function: StageFunction
    weight: Any

    def __call__(self, *arguments: Any) -> Any:
        """Return the cost."""
        squares = 0.5 * jnp.sum(self.weight * self.function(*arguments) ** 2)
        return squares if self.cost is None else self.cost(*arguments) + squares


def soft_equalities(problem: Problem) -> list[str]:
    """Return where there are some: "path", "terminal"."""
    found = {where: getattr(problem, f"{where}_equality") for where in SIDES}
    return [where for where, constraint in found.items() if constraint is not None and constraint.soft]


def two_sided(problem: Problem, sizes: dict[str, int]) -> Problem:
    """Return the problem with soft inequalities below those of its own in place of soft equalities.

    `sizes` holds the number of rows of its constraints, by name.
    """
    changes: dict[str, Any] = {}
    for where in soft_equalities(problem):
        equality, inequality, cost = f"{where}_equality", f"{where}_inequality", SIDES[where]
        h: Constraint = getattr(problem, equality)
        m = sizes[equality]
        l1, l2 = h.prices((m,), default_float())
        xp = np if is_concrete((l1, l2, h.on)) else jnp
        finite = xp.isfinite(l1)
        counts = xp.asarray(True if h.on is None else h.on)
        price, on = xp.where(finite, l1, 1.0), counts & finite & (l1 > 0)
        side = Constraint(h.function, price, xp.zeros_like(price), on)
        other = replace(side, function=takes_all(Negative(h.function), inequality, h.function.arguments))
        given = getattr(problem, inequality)
        own = [] if given is None else [(given, sizes[inequality])]
        changes[inequality] = stacked([*own, (side, m), (other, m)], inequality)
        changes[equality] = Constraint(h.function, on=counts & ~finite)
        squares = WithSquares(getattr(problem, cost), h.function, xp.where(finite, l2, 0.0))
        changes[cost] = takes_all(squares, cost, h.function.arguments)
    return problem.replace(**changes) if changes else problem


def apart(problem: Problem, multipliers: dict[str, Any]) -> dict[str, Any]:
    """Return multipliers, by name, of the two-sided problem: what warms its start."""
    made = dict(multipliers)
    for where in soft_equalities(problem):
        y = multipliers.get(f"{where}_equality")
        if y is not None:
            xp = namespace(y)
            own = multipliers.get(f"{where}_inequality", xp.zeros((*y.shape[:-1], 0), y.dtype))
            made[f"{where}_inequality"] = xp.concatenate([own, xp.maximum(y, 0.0), xp.maximum(-y, 0.0)], axis=-1)
    return made


def joined(problem: Problem, solution: Solution) -> Solution:
    """Return the solution of a two-sided problem as one of the problem."""
    soft = soft_equalities(problem)
    if not soft:
        return solution
    made, residuals = dict(solution.multipliers), dict(solution.residuals)
    values = _values(problem, solution.xs, solution.us, solution.params)
    for where in soft:
        equality, inequality = f"{where}_equality", f"{where}_inequality"
        m = values[equality].shape[-1]
        l1, l2 = getattr(problem, equality).prices(values[equality].shape, values[equality].dtype)
        y = made[inequality]
        own, up, down = y[..., : -2 * m], y[..., -2 * m : -m], y[..., -m:]
        residuals[inequality] = residuals[inequality][..., : -2 * m]
        xp = namespace(values[equality]) if is_concrete((l1, l2)) else jnp
        squares = xp.where(xp.isfinite(l1), l2 * values[equality], 0.0)
        made |= {inequality: own, equality: made[equality] + up - down + squares}
        if getattr(problem, inequality) is None:
            del made[inequality], residuals[inequality]
    return replace(solution, multipliers=made, residuals=residuals)


def _values(problem: Problem, xs: Any, us: Any, params: Any) -> dict[str, Any]:
    engine = find_engine(problem, us, xs[0], params) if on_host(xs) else None
    if engine is not None:
        return engine.rows(*to_host((xs, us, params)))
    return _values_by_jax(problem, xs, us, params)


@jax.jit
def _values_by_jax(problem: Problem, xs: Any, us: Any, params: Any) -> dict[str, Any]:
    return function_values(problem, xs, us, params)
