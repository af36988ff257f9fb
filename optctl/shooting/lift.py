"""Free parameters as states that do not move: x~ = (x, p), p+ = p, with p_0 free."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace, ravel, size_of, unravel
from optctl._record import record
from optctl.dynamics.base import Labels
from optctl.dynamics.view import View, ViewedDynamics, behind
from optctl.problem import Problem

BEHIND = {"x_min": None, "x_max": None, "x0_min": "params_min", "x0_max": "params_max"}
"""Bounds of states, and the bounds of parameters that go behind them."""


@record(static=("nx",))
class ParamsBehindStates(View):
    """The states are the first ones, the parameters those behind them.

    Attributes:
        like: parameters, for their structure.
        nx: number of states without them.
    """

    keeps: ClassVar[tuple[str, ...]] = ("u",)
    what: ClassVar[str] = "a problem with its parameters behind the states"

    like: Any
    nx: int

    def stage(self, x: Any, u: Any, t: Any, params: Any) -> tuple[Any, Any, Any]:
        """Take states and parameters apart."""
        own, p = split(x, self.like)
        return own, u, p

    def state(self, x: Any, params: Any) -> tuple[Any, Any]:
        """Take states and parameters apart."""
        return split(x, self.like)

    def following(self, x_next: Any, x: Any, u: Any, params: Any) -> Any:
        """Keep the parameters."""
        return jnp.concatenate([x_next, x[self.nx :]])

    def bound(self, name: str, problem: Any) -> Any:
        """Put the bounds of the parameters behind those of x_0."""
        if name not in BEHIND:
            return None if name.startswith("params") else super().bound(name, problem)
        of_params, dtype = BEHIND[name], np.result_type(*[leaf.dtype for leaf in jax.tree.leaves(self.like)])
        more = None if of_params is None else getattr(problem, of_params)
        more = None if more is None else ravel(more)
        return behind(getattr(problem, name), name, self.nx, more, size_of(self.like), dtype)

    def labels(self, labels: Labels) -> Labels:
        """Number the parameters."""
        more = [f"parameter {k + 1}" for k in range(size_of(self.like))]
        return Labels((*labels.states, *more), labels.inputs)


def split(x: Any, like: Any) -> tuple[Any, Any]:
    """Return states and parameters."""
    n = x.shape[-1] - size_of(like)
    return x[:n], unravel(x[n:], like)


def level(problem: Problem, xs: Any) -> Any:
    """Return the states with parameters behind them everywhere as they are at the start, where their bounds hold.

    Iterations that end early may leave them apart, and only one of them is returned. Other problems' stay as they are.
    """
    view = getattr(problem.dynamics, "view", None)
    if not isinstance(view, ParamsBehindStates):
        return xs
    xp = namespace(xs)
    behind_xs = xp.broadcast_to(xs[:1, view.nx :], (len(xs), xs.shape[1] - view.nx))
    return xp.concatenate([xs[:, : view.nx], behind_xs], axis=1)


def lift(problem: Problem, params: Any, nx: int, nu: int) -> Problem:
    """Return the problem in (x, p), its x_0 free: the caller keeps the components that are given."""
    view = ParamsBehindStates(params, nx)
    dynamics = ViewedDynamics(problem.dynamics, view, nx + size_of(params), nu)
    return problem.map(view, dynamics, x0=None, params=None)
