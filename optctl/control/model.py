"""The problem that a model predictive controller solves: limits on the rate of inputs, an offset of the model."""

from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl._validate import is_concrete
from optctl.constraint import Constraint, constraint, stacked
from optctl.dynamics.base import Labels
from optctl.dynamics.view import View, ViewedDynamics, behind
from optctl.problem import FUNCTION_CONSTRAINTS, Problem
from optctl.shooting.two_sided import two_sided
from optctl.tape import depends


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
    """Return the problem whose parameters are (parameters, offset), with limited rates where du_max is given.

    Hard path rows of the measured state alone are off at stage 0, as its bounds are: no input can change them.
    """
    more = 0 if du_max is None else nu
    view = Offset(nx, more)
    dynamics = ViewedDynamics(problem.dynamics, view, nx + more, nu)
    params = (problem.params, np.zeros(nx, dtype))
    made = problem.map(view, dynamics, x0=np.zeros(nx + more, dtype), params=params, params_min=None, params_max=None)
    at = made.x0, np.zeros(nu, dtype), np.asarray(0), params
    sizes = {}
    for name in FUNCTION_CONSTRAINTS:
        if getattr(made, name) is not None:
            arguments = at if name.startswith("path") else (at[0], params)
            sizes[name] = jax.eval_shape(getattr(made, name), *arguments).shape[0]
            if name.startswith("path"):
                made = made.replace(**{name: _with_inputs_first(getattr(made, name), made.steps, *at)})
    if du_max is not None:
        rates = constraint(Rates(spread(du_max, nu, dtype), nx), "path_inequality")
        own = [] if made.path_inequality is None else [(made.path_inequality, sizes["path_inequality"])]
        made = made.replace(path_inequality=stacked([*own, (rates, 2 * nu)], "path_inequality"))
        sizes["path_inequality"] = sizes.get("path_inequality", 0) + 2 * nu
    return two_sided(made, sizes)


def spread(value: Any, count: int, dtype: Any) -> Any:
    """Return a number, or `count` of them, as `count` of them."""
    xp = np if is_concrete(value) else jnp
    return xp.broadcast_to(xp.asarray(value, dtype), (count,))


def _with_inputs_first(rows: Constraint, N: int, x: Any, u: Any, t: Any, params: Any) -> Constraint:
    """Return path rows of which those that no input enters, and that have no price, are off at stage 0."""
    (entered,) = depends(lambda u, x, t, params: rows(x, u, t, params), [u], [x, t, params])
    l1, _ = rows.prices(entered.shape, x.dtype)
    if entered.all():
        return rows
    xp = np if is_concrete(l1) else jnp
    first = xp.asarray(entered) | xp.isfinite(l1)
    at_stages = xp.concatenate([first[None], xp.ones((N - 1, len(first)), bool)])
    return replace(rows, on=at_stages if rows.on is None else at_stages & rows.on)
