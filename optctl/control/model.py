"""The problem that a model predictive controller solves: limits on the rate of inputs, an offset of the model."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl.dynamics.base import AbstractDynamics
from optctl.dynamics.stage import StageFunction
from optctl.problem import STAGE_FUNCTIONS, STATE_FUNCTIONS, Problem


@record(static=("nx", "nu"))
class OffsetDynamics(AbstractDynamics):
    """x+ = f(x, u) + offset; with limited rates the last input is kept behind the states.

    The parameters are the pair (parameters of the model, offset).
    """

    inner: AbstractDynamics
    nx: int
    nu: int

    has_jax_step: ClassVar[bool] = True

    @property
    def horizon(self) -> Any:  # type: ignore[override]
        """Number of stages, if the dynamics fix it."""
        return self.inner.horizon

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Move the states, remember the input."""
        own, offset = params
        n = offset.shape[0]
        x_next = self.inner.step(x[:n], u, t, own) + offset
        return x_next if self.nx == n else jnp.concatenate([x_next, u])


@record(static=("n",))
class OfStates:
    """A function of the problem, which sees the first n states and its own parameters."""

    inner: StageFunction
    n: int

    @property
    def l1(self) -> Any:
        """Price of a soft constraint; hard ones have none."""
        return self.inner.call.l1

    @property
    def l2(self) -> Any:
        """Price of its square."""
        return self.inner.call.l2

    def __call__(self, x: Any, *rest: Any) -> Any:
        """Return the function's value."""
        *others, params = rest
        return self.inner(x[: self.n], *others, params[0])


@record(static=("n", "rows"))
class WithRates:
    """A path inequality of `rows` rows, if any, and below it |u - last u| <= du_max."""

    inner: OfStates | None
    du_max: Any
    n: int
    rows: int

    def __call__(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Return the values."""
        moved = u - x[self.n :]
        rates = [moved - self.du_max, -moved - self.du_max]
        return jnp.concatenate(rates if self.inner is None else [self.inner(x, u, t, params), *rates])

    @property
    def l1(self) -> Any:
        """Price of the soft rows; the rates are hard."""
        return self._then(None if self.inner is None else self.inner.l1, jnp.inf)

    @property
    def l2(self) -> Any:
        """Price of their squares."""
        return self._then(None if self.inner is None else self.inner.l2, 0.0)

    def _then(self, price: Any, of_rates: float) -> Any:
        if price is None:
            raise AttributeError("a hard constraint has no price")
        own = jnp.broadcast_to(price, self.rows)
        return jnp.concatenate([own, jnp.full(2 * self.du_max.size, of_rates, own.dtype)])


def controlled(problem: Problem, nx: int, nu: int, dtype: Any, du_max: Any) -> Problem:
    """Return the problem whose parameters are (parameters, offset), with limited rates where du_max is given."""
    changes: dict[str, Any] = {}
    for name in (*STAGE_FUNCTIONS, *STATE_FUNCTIONS):
        function = getattr(problem, name)
        if function is not None:
            arguments = ("x", "u", "t", "params") if name in STAGE_FUNCTIONS else ("x", "params")
            call = OfStates(function, nx)
            changes[name] = StageFunction(call, tuple(range(len(arguments))), (), arguments, name)
    wide = nx
    if du_max is not None:
        wide += nu
        given = problem.path_inequality
        rows = 0
        if given is not None:
            at = jnp.zeros(nx, dtype), jnp.zeros(nu, dtype), jnp.asarray(0), problem.params
            rows = jax.eval_shape(given, *at).shape[0]
        own = None if given is None else OfStates(given, nx)
        rates = WithRates(own, jnp.broadcast_to(jnp.asarray(du_max, dtype), nu), nx, rows)
        arguments = ("x", "u", "t", "params")
        changes["path_inequality"] = StageFunction(rates, (0, 1, 2, 3), (), arguments, "path_inequality")
        for name in ("x_min", "x_max"):
            bound = getattr(problem, name)
            if bound is not None:
                bound = (
                    jnp.broadcast_to(bound, (*jnp.shape(bound)[:-1], nx)) if jnp.ndim(bound) else jnp.full(nx, bound)
                )
                nothing = jnp.full((*bound.shape[:-1], nu), -jnp.inf if name.endswith("min") else jnp.inf, bound.dtype)
                changes[name] = jnp.concatenate([bound, nothing], axis=-1)
    dynamics = OffsetDynamics(problem.dynamics, wide, nu)
    x0 = jnp.zeros(wide, dtype)
    return problem.replace(dynamics=dynamics, x0=x0, params=(problem.params, jnp.zeros(nx, dtype)), **changes)
