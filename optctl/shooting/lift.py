"""Free parameters as states that do not move: x~ = (x, p), p+ = p, with p_0 free."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from optctl._record import record
from optctl.dynamics.base import AbstractDynamics
from optctl.dynamics.stage import StageFunction
from optctl.problem import STAGE_FUNCTIONS, STATE_FUNCTIONS, Problem

BEHIND = {"x_min": None, "x_max": None, "x0_min": "params_min", "x0_max": "params_max"}
"""Bounds of states, and the bounds of parameters that go behind them."""


@record(static=("nx",))
class Lifted(AbstractDynamics):
    """Dynamics with the parameters behind the states.

    Attributes:
        inner: the dynamics.
        like: parameters, for their structure.
        nx: number of states and parameters.
    """

    inner: AbstractDynamics
    like: Any
    nx: int

    has_jax_step: ClassVar[bool] = True

    @property
    def nu(self) -> Any:  # type: ignore[override]
        """Number of inputs."""
        return self.inner.nu

    @property
    def horizon(self) -> Any:  # type: ignore[override]
        """Number of stages, if the dynamics fix it."""
        return self.inner.horizon

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Move the states; keep the parameters."""
        x, p = split(x, self.like)
        return jnp.concatenate([self.inner.step(x, u, t, p), ravel_pytree(p)[0]])


@record(static=("of_stage",))
class LiftedFunction:
    """A function of a stage, or of a state, that reads its parameters behind the states."""

    inner: StageFunction
    like: Any
    of_stage: bool

    @property
    def l1(self) -> Any:
        """Price of a soft constraint."""
        return self.inner.call.l1

    @property
    def l2(self) -> Any:
        """Price of the square."""
        return self.inner.call.l2

    def __call__(self, x: Any, *rest: Any) -> Any:
        """Return the function's value."""
        x, p = split(x, self.like)
        return self.inner(x, *rest, p)


def split(x: Any, like: Any) -> tuple[Any, Any]:
    """Return states and parameters."""
    flat, unravel = ravel_pytree(like)
    n = x.shape[-1] - flat.size
    return x[:n], unravel(x[n:])


def lift(problem: Problem, params: Any, nx: int) -> Problem:
    """Return the problem in (x, p), its x_0 free: the caller keeps the components that are given."""
    flat = ravel_pytree(params)[0]
    size, dtype = flat.size, flat.dtype
    changes: dict[str, Any] = {}
    for name in (*STAGE_FUNCTIONS, *STATE_FUNCTIONS):
        function = getattr(problem, name)
        if function is not None:
            stage = name in STAGE_FUNCTIONS
            arguments = ("x", "u", "t") if stage else ("x",)
            call = LiftedFunction(function, params, stage)
            changes[name] = StageFunction(call, tuple(range(len(arguments))), (), arguments, name)
    for name, of_params in BEHIND.items():
        bound, nothing = getattr(problem, name), -jnp.inf if name.endswith("min") else jnp.inf
        own = None if of_params is None else getattr(problem, of_params)
        if bound is not None or own is not None:
            bound = jnp.asarray(nothing if bound is None else bound, dtype)
            bound = jnp.broadcast_to(bound, (*bound.shape[:-1], nx)) if bound.ndim else jnp.full(nx, bound)
            more = jnp.full(size, nothing, dtype) if own is None else ravel_pytree(own)[0].astype(dtype)
            more = jnp.broadcast_to(more, (*bound.shape[:-1], size))
            changes[name] = jnp.concatenate([bound, more], axis=-1)
    changes |= {"params_min": None, "params_max": None}
    dynamics = Lifted(problem.dynamics, params, nx + size)
    return problem.replace(dynamics=dynamics, x0=None, params=None, **changes)
