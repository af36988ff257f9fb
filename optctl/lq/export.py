"""Export of a linear-quadratic problem, constraints included, to cvxpy: the independent oracle."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._validate import check_kind
from optctl.constraint import Constraint
from optctl.lq.model import LQ
from optctl.problem import PARAMS_BOUNDS, Problem
from optctl.tape import degree

if TYPE_CHECKING:
    import cvxpy


def to_cvxpy(problem: Problem) -> "cvxpy.Problem":
    """Return the problem in cvxpy, with variables named "xs" (N+1, nx) and "us" (N, nu).

    Args:
        problem: linear dynamics, quadratic convex costs, bounds, and path and terminal constraints that are linear,
            soft ones with their prices in the cost. Its params are numbers of the export.

    Returns:
        A `cvxpy.Problem`; after `.solve()` read `.value` and `.var_dict["us"].value`.

    Raises:
        ImportError: without cvxpy, which the extra `optctl[cvxpy]` installs.
        ValueError: if the dynamics or a constraint is not linear, or a cost not quadratic, naming which; or for bounds
            on params.

    Example:
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.LinearDynamics(A=[[1.0]], B=[[1.0]]),
        ...     oc.costs.Quadratic(Q=[[1.0]], R=[[1.0]]),
        ...     horizon=2,
        ...     x0=[1.0],
        ...     u_min=-0.25,
        ... )
        >>> print(round(oc.to_cvxpy(problem).solve(), 6))
        0.8125
    """
    try:
        import cvxpy as cp
    except ImportError as error:
        raise ImportError("to_cvxpy needs cvxpy; install it with: pip install 'optctl[cvxpy]'") from error
    check_kind(problem, Problem, "problem", "optctl.Problem; a solution has its numbers already")
    for name in PARAMS_BOUNDS:
        if getattr(problem, name) is not None:
            raise ValueError(f"`{name}` bounds params, which are numbers of the export, not variables; leave it out.")
    lq = jax.tree.map(lambda a: np.asarray(a, dtype=float), LQ.from_problem(problem))
    N, nx, nu = lq.B.shape
    xs, us = cp.Variable((N + 1, nx), name="xs"), cp.Variable((N, nu), name="us")
    cost = lq.constant + 0.5 * cp.quad_form(xs[N], cp.psd_wrap(lq.Qf)) + lq.qf @ xs[N]
    rules = []
    for t in range(N):
        z = cp.hstack([xs[t], us[t]])
        H = np.block([[lq.Q[t], lq.M[t]], [lq.M[t].T, lq.R[t]]])
        cost += 0.5 * cp.quad_form(z, cp.psd_wrap(H)) + lq.q[t] @ xs[t] + lq.r[t] @ us[t]
        rules.append(xs[t + 1] == lq.A[t] @ xs[t] + lq.B[t] @ us[t] + lq.c[t])
    if lq.x0 is None:
        cost += 0.5 * cp.quad_form(xs[0], cp.psd_wrap(lq.Q0)) + lq.q0 @ xs[0]
        rules += _bounds(problem, "x0", xs[0])
    else:
        rules.append(xs[0] == lq.x0)
    rules += _bounds(problem, "u", us)
    rules += _bounds(problem, "x", xs[1:] if lq.x0 is not None else xs, skip_first=lq.x0 is not None)
    for name, value in [*_path_rows(problem, xs, us), *_terminal_rows(problem, xs[N])]:
        hard, price = _kept(getattr(problem, name), name, value)
        rules += hard
        cost += price
    return cp.Problem(cp.Minimize(cost), rules)


def _kept(constraint: Constraint, name: str, value: Any) -> tuple[list, Any]:
    """Return what rows must keep, and the price of what soft ones miss."""
    import cvxpy as cp

    equal = name.endswith("_equality")
    l1, l2 = (np.asarray(price) for price in constraint.prices(value.shape, np.float64))
    hard, soft = np.flatnonzero(np.isinf(l1)), np.flatnonzero(np.isfinite(l1))
    rules = [value[hard] == 0 if equal else value[hard] <= 0] if hard.size else []
    if not soft.size:
        return rules, 0.0
    miss = cp.abs(value[soft]) if equal else cp.pos(value[soft])
    return rules, l1[soft] @ miss + 0.5 * l2[soft] @ cp.square(miss)


def _bounds(problem: Problem, name: str, variable: Any, skip_first: bool = False) -> list:
    rules = []
    for side in ("min", "max"):
        bound = getattr(problem, f"{name}_{side}")
        if bound is None:
            continue
        bound = np.asarray(bound, dtype=float)
        bound = np.broadcast_to(bound[1:] if skip_first and bound.ndim == 2 else bound, variable.shape)
        mask = np.isfinite(bound)
        for index in np.argwhere(mask):
            entry = variable[tuple(index)]
            rules.append(entry >= bound[tuple(index)] if side == "min" else entry <= bound[tuple(index)])
    return rules


def _path_rows(problem: Problem, xs: Any, us: Any) -> Iterator[tuple[str, Any]]:
    """Yield the path constraints of all stages, by name, as expressions of the variables."""
    nx = xs.shape[1]
    for name in ("path_inequality", "path_equality"):
        g = getattr(problem, name)
        if g is None:
            continue
        for t in range(us.shape[0]):
            at_stage = lambda z, t=t, g=g: g(z[:nx], z[nx:], jnp.asarray(t), problem.params)  # noqa: E731
            G, offset = _linear(at_stage, nx + us.shape[1], f"`{name}` at stage {t}")
            yield name, G[:, :nx] @ xs[t] + G[:, nx:] @ us[t] + offset


def _terminal_rows(problem: Problem, xN: Any) -> Iterator[tuple[str, Any]]:
    """Yield the terminal constraints, by name, as expressions of the last state."""
    for name in ("terminal_inequality", "terminal_equality"):
        g = getattr(problem, name)
        if g is not None:
            G, offset = _linear(lambda x, g=g: g(x, problem.params), xN.shape[0], f"`{name}`")
            yield name, G @ xN + offset


def _linear(g: Any, n: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return G and offset of a linear function."""
    if degree(g, [jnp.zeros(n)], [])[0] > 1:
        raise ValueError(f"{what} is not linear; to_cvxpy exports linear constraints.")
    return np.asarray(jax.jacfwd(g)(jnp.zeros(n))), np.asarray(g(jnp.zeros(n)))
