"""The form in which the interior point method takes a problem, and the way back from it."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace, ravel, size_of
from optctl._door import enter, numbers
from optctl._record import changed
from optctl._validate import is_concrete
from optctl.dynamics.view import KnownInputs, ViewedDynamics
from optctl.problem import Problem
from optctl.shooting.expansion import function_shapes
from optctl.shooting.lift import BEHIND, lift, split
from optctl.shooting.scaling import given_scales, rounded
from optctl.shooting.two_sided import apart, joined, soft_equalities, two_sided
from optctl.solution import Solution
from optctl.solvers.objective import Objective


class Form:
    """The problem in the form that the method knows: inputs and x_0 free or absent, no parameters, no soft equalities.

    Known inputs are looked up, free parameters are states that do not move, soft equalities have two sides.
    """

    def __init__(self, objective: Objective, us: Any, params: Any) -> None:
        problem, nx = objective.problem, objective.x0.size
        self.free, self.nx, self.params, self.bounds = objective.free, nx, params, vars(problem)
        self.us = None if "us" in objective.free else us
        self.lifted, self.start_free = "params" in objective.free, "x0" in objective.free
        self.nu = nu = us.shape[1]
        if self.us is not None and nu:
            view, nu = KnownInputs(us), 0
            problem = problem.map(view, ViewedDynamics(problem.dynamics, view, nx, 0))
        self.problem = lift(problem, params, nx, nu) if self.lifted else problem

    def unknowns(self, us: Any, xs: Any) -> tuple[Problem, Any, Any, tuple[bool, ...]]:
        """Return the problem, the guess in its variables, and which components of its x_0 are free."""
        x0_free = (self.start_free,) * self.nx
        us = us if self.us is None else us[:, :0]
        if self.lifted:
            flat, xp = ravel(enter(numbers(self.params))).astype(xs.dtype), namespace(xs)  # a guess has no derivative
            xs = xp.concatenate([xs, xp.broadcast_to(flat, (len(xs), flat.size))], axis=1)
            x0_free += (True,) * flat.size
        problem = self.problem
        if soft_equalities(problem):
            shapes = function_shapes(problem, xs, us, None if self.lifted else self.params)
            problem = two_sided(problem, {name: shape[-1] for name, shape in shapes.items()})
        return problem, us, xs, x0_free

    def scale(self, scale: Any) -> Any:
        """Return the user's scales of states and inputs, one for each of this form.

        Raises:
            ValueError: for another number of them than there are states or inputs.
        """
        made = given_scales(scale, self.nx, self.nu)
        if made is None:
            return None
        if self.us is not None:
            made.pop("u", None)
        if self.lifted and "x" in made:
            behind = ravel(enter(self.params))
            xp = np if is_concrete((made["x"], behind)) else jnp
            made["x"] = xp.concatenate([made["x"], rounded(xp.maximum(1.0, xp.abs(behind)))])
        return made

    def warm(self, warm: dict[str, Any]) -> dict[str, Any]:
        """Return the multipliers of a similar solution in this form."""
        costates, multipliers = warm["costates"], apart(self.problem, warm["multipliers"])
        if self.lifted:
            more, xp = size_of(self.params), namespace(costates)

            def widened(values: Any, behind: Any = 0.0) -> Any:
                behind = xp.broadcast_to(xp.asarray(behind, costates.dtype), (*values.shape[:-1], more))
                return xp.concatenate([values, behind], axis=-1)

            for name, of_params in BEHIND.items():
                y, given = multipliers.get(name), None if of_params is None else multipliers.pop(of_params, None)
                if y is not None or given is not None:
                    y = xp.zeros(self.nx, costates.dtype) if y is None else y
                    multipliers[name] = widened(y, 0.0 if given is None else ravel(given))
            costates = widened(costates)
        return {"costates": costates, "multipliers": multipliers}

    def back(self, solution: Solution) -> Solution:
        """Return a solution of this form in the variables of the problem."""
        solution = changed(joined(self.problem, solution), free=self.free)
        if self.lifted:
            solution = _lowered(solution, self.params, self.nx, self.bounds)
        if self.us is not None:
            K = namespace(solution.xs).zeros((*self.us.shape, self.nx), self.us.dtype)
            solution = replace(solution, us=self.us, K=K, k=self.us)
        return solution


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
            residuals[of_params] = block[:, nx:].max(axis=0, keepdims=True)
        if bounds.get(name) is not None:
            residuals[name] = block[:, :nx]
    residuals["dynamics"] = residuals["dynamics"][:, :nx]
    k = solution.k + namespace(solution.k).einsum("tij,tj->ti", solution.K[:, :, nx:], solution.xs[:-1, nx:])
    return replace(
        solution, xs=solution.xs[:, :nx], x0=solution.x0[:nx], params=split(solution.xs[0], params)[1],
        costates=solution.costates[:, :nx], multipliers=multipliers, K=solution.K[:, :, :nx], k=k,
        residuals=residuals,
    )  # fmt: skip
