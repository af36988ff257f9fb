"""The problem that a model predictive controller solves: limits on the rate of inputs, an offset of the model."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl.constraint import constraint, stacked
from optctl.dynamics.base import Labels
from optctl.dynamics.view import View, ViewedDynamics, behind
from optctl.problem import Problem


@record(static=("nx", "more"))
class Offset(View):
    """x+ = f(x, u) + offset, with the last input behind the states where rates are limited.

    The new parameters are the pair (parameters of the model, offset).

    Attributes:
        nx: number of the model's states.
        more: number of states behind them: the last input, or none.
    """

    keeps: ClassVar[tuple[str, ...]] = ("u",)
    what: ClassVar[str] = "a controller's problem"
    is_linear: ClassVar[bool] = True

    nx: int
    more: int

    def stage(self, x: Any, u: Any, t: Any, params: Any) -> tuple[Any, Any, Any]:
        """Leave out the last input and the offset."""
        return x[: self.nx], u, params[0]

    def state(self, x: Any, params: Any) -> tuple[Any, Any]:
        """Leave out the last input and the offset."""
        return x[: self.nx], params[0]

    def following(self, x_next: Any, x: Any, u: Any, params: Any) -> Any:
        """Add the offset, remember the input."""
        return jnp.concatenate([x_next + params[1], u[: self.more]])

    def bound(self, name: str, problem: Any) -> Any:
        """Leave the last input free: it is bounded where it is chosen."""
        value = getattr(problem, name)
        if name in ("x_min", "x_max") and value is not None:
            return behind(value, name, self.nx, None, self.more, value.dtype)
        return super().bound(name, problem)

    def labels(self, labels: Labels) -> Labels:
        """Name the last input."""
        return Labels((*labels.states, *(f"last {name}" for name in labels.inputs[: self.more])), labels.inputs)


@record(static=("nx",))
class Rates:
    """|u - last u| <= du_max, as rows."""

    du_max: Any
    nx: int

    def __call__(self, x: Any, u: Any) -> Any:
        """Return the rows."""
        moved = u - x[self.nx :]
        return jnp.concatenate([moved - self.du_max, -moved - self.du_max])


def controlled(problem: Problem, nx: int, nu: int, dtype: Any, du_max: Any) -> Problem:
    """Return the problem whose parameters are (parameters, offset), with limited rates where du_max is given."""
    more = 0 if du_max is None else nu
    view = Offset(nx, more)
    dynamics = ViewedDynamics(problem.dynamics, view, nx + more, nu)
    params = (problem.params, jnp.zeros(nx, dtype))
    made = problem.map(view, dynamics, x0=jnp.zeros(nx + more, dtype), params=params, params_min=None, params_max=None)
    if du_max is None:
        return made
    rates = constraint(Rates(jnp.broadcast_to(jnp.asarray(du_max, dtype), nu), nx), "path_inequality")
    parts = [(rates, 2 * nu)]
    if made.path_inequality is not None:
        at = made.x0, jnp.zeros(nu, dtype), jnp.asarray(0), params
        parts.insert(0, (made.path_inequality, jax.eval_shape(made.path_inequality, *at).shape[0]))
    return made.replace(path_inequality=stacked(parts, "path_inequality"))
