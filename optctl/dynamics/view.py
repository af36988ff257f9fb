"""One problem seen in the variables of another: lifted parameters, remembered inputs, inputs that are known or chosen.

    (x, u, params) of the old problem = a function of (x, u, t, params) of the new one.

A `View` states that function once. `through` puts it before a function of the old problem, `ViewedDynamics` before its
dynamics, and `Problem.map` carries everything else.
"""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl._validate import is_concrete
from optctl.dynamics.base import AbstractDynamics, Labels
from optctl.dynamics.stage import StageFunction, takes_all


def variable(name: str) -> str:
    """Return the variable that a field of a problem is about: x of x0, x_min and x0_max, u of u_min."""
    return name.split("_")[0].rstrip("0")


class View:
    """How an old problem's variables follow from those of a new one. Subclasses are records.

    Attributes:
        keeps: names among "x", "u" and "params": variables that are the same in both.
        what: what errors call the new problem.
        is_linear: True if the old variables are linear in the new states and inputs.
    """

    keeps: ClassVar[tuple[str, ...]] = ()
    what: ClassVar[str] = "a problem in other variables"
    is_linear: ClassVar[bool] = False

    def stage(self, x: Any, u: Any, t: Any, params: Any) -> tuple[Any, Any, Any]:
        """Return the old x, u and params at stage t."""
        raise NotImplementedError

    def state(self, x: Any, params: Any) -> tuple[Any, Any]:
        """Return the old x and params at a state that has no input: the first, or the last."""
        raise NotImplementedError

    def following(self, x_next: Any, x: Any, u: Any, params: Any) -> Any:
        """Return the new next state, from the old one and the new variables of the stage."""
        return x_next

    def bound(self, name: str, problem: Any) -> Any:
        """Return the new bound of this name (None for none).

        Raises:
            ValueError: for a bound on a variable that the new problem does not have.
        """
        value = getattr(problem, name)
        if value is None or variable(name) in self.keeps:
            return value
        raise ValueError(f"`{name}` cannot be carried into {self.what}, which has no such variable; leave it out.")

    def labels(self, labels: Labels) -> Labels | None:
        """Return names of the new states and inputs."""
        return labels


@record()
class Viewed:
    """A function of the old problem, called with the new variables of a stage, or of a state."""

    function: StageFunction
    view: View

    def check_stages(self, horizon: int) -> None:
        """Let a helper that holds data per stage compare its rows with the horizon."""
        check = getattr(self.function.call, "check_stages", None)
        if check is not None:
            check(horizon)

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's value."""
        if len(arguments) == 2:
            return self.function(*self.view.state(*arguments))
        x, u, params = self.view.stage(*arguments)
        return self.function(x, u, arguments[2], params)


def through(function: StageFunction, view: View) -> StageFunction:
    """Return an old function as one of the new variables."""
    return takes_all(Viewed(function, view), function.name, function.arguments)


@record(static=("nx", "nu"))
class ViewedDynamics(AbstractDynamics):
    """Dynamics in the new variables.

    Attributes:
        inner: the old dynamics.
        view: the `View`.
        nx: number of new states.
        nu: number of new inputs.
    """

    inner: AbstractDynamics
    view: View
    nx: int
    nu: int

    @property
    def horizon(self) -> Any:  # type: ignore[override]
        """Number of stages, if the old dynamics fix it."""
        return self.inner.horizon

    @property
    def labels(self) -> Labels | None:
        """Names of the new states and inputs, if the old ones have names."""
        return None if self.inner.labels is None else self.view.labels(self.inner.labels)

    @property
    def is_linear(self) -> bool:  # type: ignore[override]
        """True if the old dynamics are linear, and the view is."""
        return self.inner.is_linear and self.view.is_linear

    @property
    def twice_differentiable(self) -> bool:  # type: ignore[override]
        """True if the old dynamics are."""
        return self.inner.twice_differentiable

    @property
    def has_jax_step(self) -> bool:  # type: ignore[override]
        """True if the old dynamics have one."""
        return self.inner.has_jax_step

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Return the new next state."""
        old_x, old_u, old_params = self.view.stage(x, u, t, params)
        return self.view.following(self.inner.step(old_x, old_u, t, old_params), x, u, params)


@record()
class KnownInputs(View):
    """Inputs that are data: the new problem has none.

    Attributes:
        us: (N, nu).
    """

    keeps: ClassVar[tuple[str, ...]] = ("x", "params")
    what: ClassVar[str] = "a problem whose inputs are given"
    is_linear: ClassVar[bool] = True

    us: Any

    def stage(self, x: Any, u: Any, t: Any, params: Any) -> tuple[Any, Any, Any]:
        """The inputs of stage t are looked up."""
        return x, jnp.asarray(self.us)[t], params

    def state(self, x: Any, params: Any) -> tuple[Any, Any]:
        """Nothing changes."""
        return x, params

    def labels(self, labels: Labels) -> Labels:
        """No inputs are left."""
        return Labels(labels.states, ())


def behind(bound: Any, name: str, nx: int, more: Any, count: int, dtype: Any) -> Any:
    """Return a bound of nx states with that of `count` more behind it; None is infinite, and None if both are."""
    if bound is None and more is None:
        return None
    xp = np if is_concrete((bound, more)) else jnp
    nothing = -np.inf if name.endswith("min") else np.inf
    bound = xp.asarray(nothing if bound is None else bound, dtype)
    bound = xp.broadcast_to(bound, (*bound.shape[:-1], nx))
    more = xp.asarray(nothing if more is None else more, dtype)
    return xp.concatenate([bound, xp.broadcast_to(more, (*bound.shape[:-1], count))], axis=-1)
