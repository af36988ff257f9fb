r"""A problem along a trajectory that need not satisfy anything: values, slopes and curvatures of all stages at once.

    cost,  gaps f(x_t, u_t) - x_{t+1},  rows c;
    slopes of the cost, Jacobians A, B and those of the rows' functions;
    W_t = second derivatives of  l + lambda_{t+1}'f + y'(g, h)  in (x_t, u_t).

Bounds need neither: their slope is one and their curvature zero.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl.problem import Problem
from optctl.shooting.rows import PATH, TERMINAL, Rows, bounded_values, flatten


@record()
class Values:
    """What a line search needs.

    Attributes:
        cost: total cost.
        gaps: (N, nx), f(x_t, u_t) - x_{t+1}.
        c: values of all rows, flat.
    """

    cost: Any
    gaps: Any
    c: Any


@record()
class Expansion:
    """What a Newton step needs.

    Attributes:
        at: the `Values`.
        q0: (nx,) slope of the initial cost.
        qs: (N+1, nx) slopes of all other costs in the states.
        rs: (N, nu) in the inputs.
        A: (N, nx, nx).
        B: (N, nx, nu).
        J: Jacobians of the rows' functions by name: (N, m, nx+nu), or (m, nx) at the end.
        W0: (nx, nx) curvature of the initial cost.
        W: (N, nx+nu, nx+nu) of the stages.
        Wf: (nx, nx) of the end.
    """

    at: Values
    q0: Any
    qs: Any
    rs: Any
    A: Any
    B: Any
    J: dict[str, Any]
    W0: Any
    W: Any
    Wf: Any


def function_values(problem: Problem, xs: Any, us: Any, params: Any) -> dict[str, Any]:
    """Return the values of the path and terminal constraints that are present, by name."""
    values = {}
    for name in PATH:
        function = getattr(problem, name)
        if function is not None:
            values[name] = problem.dynamics.map_stages(lambda x, u, t, f=function: f(x, u, t, params), xs, us)
    for name in TERMINAL:
        if getattr(problem, name) is not None:
            values[name] = getattr(problem, name)(xs[-1], params)
    return values


def function_shapes(problem: Problem, xs: Any, us: Any, params: Any) -> dict[str, Any]:
    """Return the shapes of `function_values`."""
    values = jax.eval_shape(lambda: function_values(problem, xs, us, params))
    return {name: value.shape for name, value in values.items()}


def evaluate(problem: Problem, rows: Rows, xs: Any, us: Any, params: Any) -> Values:
    """Return cost, gaps and rows at a trajectory."""
    cost = problem.trajectory_cost(xs, us, params) + problem.start_cost(xs[0], params)
    reached = problem.dynamics.map_stages(lambda x, u, t: problem.dynamics.step(x, u, t, params), xs, us)
    c = bounded_values(rows.bounds, xs, us) | function_values(problem, xs, us, params)
    return Values(cost, reached - xs[1:], flatten(c, xs.dtype, xs))


def differentiate(cost: Callable, rows: Sequence[Callable], ys: Sequence[Any] | None, z: Any) -> tuple[Any, Any, list]:
    """Return the slope of a cost, the Hessian of cost + sum y'row (no rows where ys is None), the Jacobians of rows."""

    def lagrangian(z: Any) -> Any:
        return cost(z) + sum(y @ row(z) for row, y in zip(rows, ys or (), strict=ys is not None))

    return jax.grad(cost)(z), jax.hessian(lagrangian)(z), [jax.jacfwd(row)(z) for row in rows]


def expand(problem: Problem, rows: Rows, xs: Any, us: Any, params: Any, costates: Any, y: Any) -> Expansion:
    """Return values, slopes and curvatures; `costates` None leaves the curvature of dynamics and rows out."""
    nx, exact = xs.shape[1], costates is not None
    ys = rows.split(y)
    path = [name for name in PATH if name in ys]

    def stage(x: Any, u: Any, t: Any, ys: list) -> Any:
        def at(function: Callable) -> Callable:
            return lambda z: function(z[:nx], z[nx:], t, params)

        functions = [at(getattr(problem, name)) for name in path]
        return differentiate(at(problem.cost_at), functions, ys if exact else None, jnp.concatenate([x, u]))

    slope, W, of_path = jax.vmap(stage)(xs[:-1], us, jnp.arange(us.shape[0]), [ys[name] for name in path])
    J = dict(zip(path, of_path, strict=True))
    if exact and not problem.dynamics.is_linear:
        W = W + problem.dynamics.hessians(xs, us, costates, params)
    A, B = problem.dynamics.jacobians(xs, us, params)

    x0, xN = xs[0], xs[-1]
    q0, W0 = jnp.zeros_like(x0), jnp.zeros((nx, nx), xs.dtype)
    qf, Wf = jnp.zeros_like(q0), jnp.zeros_like(W0)
    if problem.initial_cost is not None:
        q0, W0, _ = differentiate(lambda x: problem.start_cost(x, params), [], None, x0)
    at_end = [name for name in TERMINAL if name in ys]
    if problem.terminal_cost is not None or at_end:
        functions = [lambda x, name=name: getattr(problem, name)(x, params) for name in at_end]
        prices = [ys[name] for name in at_end] if exact else None
        qf, Wf, of_end = differentiate(lambda x: problem.end_cost(x, params), functions, prices, xN)
        J |= dict(zip(at_end, of_end, strict=True))
    qs = jnp.concatenate([slope[:, :nx], qf[None]])
    return Expansion(evaluate(problem, rows, xs, us, params), q0, qs, slope[:, nx:], A, B, J, W0, W, Wf)
