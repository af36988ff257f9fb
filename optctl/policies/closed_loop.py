"""A control problem seen from its policy: dynamics and costs with u = policy(x, t, params) put in."""

from collections.abc import Callable
from typing import Any

from optctl._record import record
from optctl.dynamics.closed_loop import ClosedLoop
from optctl.dynamics.stage import POLICY, StageFunction, stage_function
from optctl.problem import Problem


@record()
class PolicyCost:
    """Stage cost l(x, policy(x, t, params), t, plant_params)."""

    cost: StageFunction
    policy: StageFunction
    plant_params: Any

    def check_stages(self, horizon: int) -> None:
        """Raise ValueError unless the plant's cost has data for `horizon` stages."""
        check = getattr(self.cost.call, "check_stages", None)
        if check is not None:
            check(horizon)

    def __call__(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Return the cost of stage t; `u` is empty."""
        return self.cost(x, self.policy(x, t, params), t, self.plant_params)


@record()
class PlantCost:
    """Terminal or initial cost with the plant's own parameters."""

    cost: StageFunction
    plant_params: Any

    def __call__(self, x: Any) -> Any:
        """Return the cost of x."""
        return self.cost(x, self.plant_params)


def closed_loop(problem: Problem, policy: Callable) -> Problem:
    """Return the problem under a policy: its inputs are gone, its `params` are the policy's.

    The result is an ordinary Problem: `gradient` gives costates and the gradient in the policy's parameters, and
    `solve(..., free="params")` trains on one initial state.

    Args:
        problem: the open-loop problem; its own params stay fixed.
        policy: `policy(x)`, `policy(x, t)` or `policy(x, t, params)`, returns u (nu,).

    Raises:
        ValueError: if the problem has constraints, which a policy does not keep by itself.

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
    if problem.constraint_names:
        raise ValueError(
            f"a policy cannot keep the constraints {problem.constraint_names}; bound the inputs inside the policy, such"
            " as u_max * tanh(...), and put penalties on the rest into the cost."
        )
    wrapped = stage_function(policy, "policy", POLICY, least=1)
    plant_params = problem.params

    def at_state(cost: StageFunction | None) -> Any:
        return None if cost is None else PlantCost(cost, plant_params)

    return Problem(
        ClosedLoop(problem.dynamics, wrapped, plant_params),
        stage_cost=None if problem.stage_cost is None else PolicyCost(problem.stage_cost, wrapped, plant_params),
        terminal_cost=at_state(problem.terminal_cost),
        initial_cost=at_state(problem.initial_cost),
        horizon=problem.horizon,
        x0=problem.x0,
    )
