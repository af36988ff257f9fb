"""The verbs of dynamics by compiled code: those of a problem that costs nothing.

`dynamics/base.py` is the definition. This takes its place where numbers are asked for now (`_door.evaluated`).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optctl import _native
from optctl._arrays import to_host
from optctl._record import Identity, remember
from optctl._validate import check_like
from optctl.dynamics.base import AbstractDynamics, Adjoint
from optctl.engine.native import Engine, find_engine, steps_alone
from optctl.problem import Problem, once

REMEMBERED = 64
_PROBLEMS: dict[Any, Problem] = {}
WIDEST = 128
"""Most states and inputs whose Jacobians are worth a try."""


def evaluate(verb: str, dynamics: AbstractDynamics, first: Any, us: Any, *others: Any) -> Any:
    """Return what a verb gives, NumPy's arrays; None where the definition is to do it.

    Args:
        verb: the name of the verb.
        dynamics: the dynamics.
        first: x0, or for all verbs but the rollout xs.
        us: the inputs.
        *others: as the verb takes them, parameters included.
    """
    fits = us is not None and np.ndim(us) == 2 and np.ndim(first) == (1 if verb == "rollout" else 2)
    if not fits or not steps_alone(dynamics) or first.shape[-1] + us.shape[1] > WIDEST:
        return None
    first, us, *others = to_host((first, us, *others))
    once((verb, dynamics, first, us, others), lambda: _check(verb, dynamics, first, us, others))
    params = others[2] if verb == "tangent_rollout" else others[-1]
    moving = verb == "tangent_rollout" and any([np.any(leaf) for leaf in jax.tree.leaves(others[3])])
    if not len(us) or any([leaf.dtype != np.float64 for leaf in jax.tree.leaves(others)]):
        return None
    x0 = first if verb == "rollout" else first[0]
    problem = _free_of_cost(dynamics, len(us))
    engine = find_engine(problem, us, x0, params, curved=verb == "curvature", mixed=moving)
    return None if engine is None else VERBS[verb](engine, first, us, *others)


def _free_of_cost(dynamics: AbstractDynamics, horizon: int) -> Problem:
    key = Identity(dynamics), horizon
    found = _PROBLEMS.get(key)
    return remember(_PROBLEMS, key, Problem(dynamics, horizon=horizon), REMEMBERED) if found is None else found


def _check(verb: str, dynamics: AbstractDynamics, first: Any, us: Any, others: tuple) -> None:
    if verb == "rollout":
        dynamics.check_data(first, us, *others)
        return
    params = others[2] if verb == "tangent_rollout" else others[-1]
    dynamics.check_trajectory(first, us, params)
    if verb == "tangent_rollout":
        check_like(others[0], "dx0", first[0])
        check_like(others[1], "dus", us)
        if jax.tree.structure(others[3]) != jax.tree.structure(params):  # type: ignore[operator]
            raise ValueError("`dparams` differs in structure from `params`, which it is a direction in.")
        check_like(others[3], "dparams", params)
    elif verb != "linearize":
        check_like(others[0], "gxs" if verb == "adjoint_rollout" else "costates", first)


def _rollout(engine: Engine, x0: Any, us: Any, params: Any) -> np.ndarray:
    return engine.roll(us, x0, params)


def _tangent(engine: Engine, xs: Any, us: Any, dx0: Any, dus: Any, params: Any, dparams: Any) -> np.ndarray:
    found = engine.along(xs, us, params)
    return _native.tangent(found["A"], found["B"], engine.push(xs, us, params, dparams), dx0, dus)


def _adjoint(engine: Engine, xs: Any, us: Any, gxs: Any, params: Any) -> Adjoint:
    found = engine.along(xs, us, params)
    costates, gus = _native.costates(found["A"], found["B"], gxs, np.zeros_like(us))
    return Adjoint(costates, gus, engine.pull(xs, us, costates, params))


def _linearize(engine: Engine, xs: Any, us: Any, params: Any) -> tuple[np.ndarray, np.ndarray]:
    found = engine.along(xs, us, params)
    return found["A"], found["B"]


def _curvature(engine: Engine, xs: Any, us: Any, costates: Any, params: Any) -> np.ndarray:
    return engine.along(xs, us, params, costates, curved=True)["V"]


VERBS: dict[str, Callable] = {
    "rollout": _rollout, "tangent_rollout": _tangent, "adjoint_rollout": _adjoint, "linearize": _linearize,
    "curvature": _curvature,
}  # fmt: skip
