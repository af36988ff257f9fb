"""A control problem seen from its policy: dynamics, costs and constraints with u = policy(x, t, params) put in."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl._validate import default_float
from optctl.constraint import Constraint, constraint, stacked
from optctl.dynamics.closed_loop import ClosedLoop
from optctl.dynamics.stage import POLICY, StageFunction, stage_function
from optctl.dynamics.view import View
from optctl.problem import Problem


@record()
class UnderPolicy(View):
    """u = policy(x, t, params), with the plant's own parameters held fixed."""

    keeps: ClassVar[tuple[str, ...]] = ("x",)
    what: ClassVar[str] = "a closed loop, which holds the plant's parameters fixed"

    policy: StageFunction
    plant_params: Any

    def stage(self, x: Any, u: Any, t: Any, params: Any) -> tuple[Any, Any, Any]:
        """The policy chooses the input."""
        return x, self.policy(x, t, params), self.plant_params

    def state(self, x: Any, params: Any) -> tuple[Any, Any]:
        """The plant has its own parameters."""
        return x, self.plant_params


@record(static=("side",))
class InputBound:
    """u >= bound ("min") or u <= bound ("max"), as rows of a path inequality."""

    bound: Any
    side: str

    def __call__(self, x: Any, u: Any, t: Any) -> Any:
        """Return the rows; -1 where there is no bound."""
        bound = self.bound[t] if jnp.ndim(self.bound) == 2 else self.bound
        there = jnp.isfinite(bound)
        gap = jnp.where(there, bound, 0.0) - u
        return jnp.where(there, gap if self.side == "min" else -gap, -1.0)


def closed_loop(problem: Problem, policy: Callable) -> Problem:
    """Return the problem under a policy: its inputs are gone, its `params` are the policy's.

    The result is an ordinary Problem: `gradient` gives costates and the gradient in the policy's parameters, and
    `solve(..., free="params")` trains on one initial state. It has the constraints of the open-loop problem, bounds of
    inputs as rows of its `path_inequality`; `solve` keeps them.

    Args:
        problem: the open-loop problem; its own params stay fixed.
        policy: `policy(x)`, `policy(x, t)` or `policy(x, t, params)`, returns u (nu,).

    Raises:
        ValueError: if the problem bounds its own parameters, which are fixed here.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> plant = oc.Problem(
        ...     oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: x @ x + u @ u, horizon=2, x0=[1.0]
        ... )
        >>> loop = oc.closed_loop(plant, lambda x, t, K: K @ x)
        >>> g = oc.gradient(loop, None, params=jnp.array([[-0.5]]))
        >>> print(g.cost, g.params)
        1.5625 [[0.]]
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` is a {type(problem).__name__}; expected optctl.Problem.")
    wrapped = stage_function(policy, "policy", POLICY, least=1, vector=True)
    view = UnderPolicy(wrapped, problem.params)
    dynamics = ClosedLoop(problem.dynamics, wrapped, problem.params)
    bounded = _with_bounds_as_rows(problem)
    return bounded.map(view, dynamics, params=None)


def _with_bounds_as_rows(problem: Problem) -> Problem:
    """Return the problem with the bounds of its inputs among the path inequalities, which a policy has, too."""
    bounds = {side: getattr(problem, f"u_{side}") for side in ("min", "max")}
    rows = [constraint(InputBound(b, side), "path_inequality") for side, b in bounds.items() if b is not None]
    if not rows:
        return problem
    nu = problem.dynamics.nu
    if nu is None:
        raise ValueError("`u_min` and `u_max` bound inputs of unknown number; give the dynamics nu.")
    parts = [(row, nu) for row in rows]
    given = problem.path_inequality
    if given is not None:
        parts.insert(0, (given, _rows_of(given, problem, nu)))
    return problem.replace(u_min=None, u_max=None, path_inequality=stacked(parts, "path_inequality"))


def _rows_of(given: Constraint, problem: Problem, nu: int) -> int:
    """Return the number of rows of a path constraint."""
    nx = problem.dynamics.nx if problem.x0 is None else len(problem.x0)
    dtype = default_float()
    return jax.eval_shape(given, jnp.zeros(nx, dtype), jnp.zeros(nu, dtype), jnp.asarray(0), problem.params).shape[0]
