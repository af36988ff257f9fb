r"""A problem along a trajectory that need not satisfy anything: values, slopes and curvatures of all stages at once.

    cost,  gaps f(x_t, u_t) - x_{t+1},  rows c;
    slopes of the cost, Jacobians A, B and those of the rows' functions;
    W_t = second derivatives of  l + lambda_{t+1}'f + y'(g, h)  in (x_t, u_t).

Bounds need neither: their slope is one and their curvature zero.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl.problem import Problem
from optctl.solvers.rows import PATH, TERMINAL, Rows, bounded_values, flatten


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
    return jax.eval_shape(lambda: function_values(problem, xs, us, params))


def evaluate(problem: Problem, rows: Rows, xs: Any, us: Any, params: Any) -> Values:
    """Return cost, gaps and rows at a trajectory."""
    cost = problem.trajectory_cost(xs, us, params) + problem.start_cost(xs[0], params)
    reached = problem.dynamics.map_stages(lambda x, u, t: problem.dynamics.step(x, u, t, params), xs, us)
    c = bounded_values(rows.bounds, xs, us) | function_values(problem, xs, us, params)
    return Values(cost, reached - xs[1:], flatten(c, xs.dtype))


def expand(problem: Problem, rows: Rows, xs: Any, us: Any, params: Any, costates: Any, y: Any) -> Expansion:
    """Return values, slopes and curvatures; `costates` None leaves the curvature of dynamics and rows out."""
    nx, exact = xs.shape[1], costates is not None
    ys = rows.split(y)
    path = [name for name in PATH if name in ys]

    def stage(x: Any, u: Any, t: Any, ys: list) -> Any:
        def at(name: str) -> Any:
            return lambda z: getattr(problem, name)(z[:nx], z[nx:], t, params)

        def cost(z: Any) -> Any:
            return problem.cost_at(z[:nx], z[nx:], t, params)

        def lagrangian(z: Any) -> Any:
            return cost(z) + sum(y @ at(name)(z) for name, y in zip(path, ys, strict=True)) if exact else cost(z)

        z = jnp.concatenate([x, u])
        return jax.grad(cost)(z), jax.hessian(lagrangian)(z), {name: jax.jacfwd(at(name))(z) for name in path}

    slope, W, J = jax.vmap(stage)(xs[:-1], us, jnp.arange(us.shape[0]), [ys[name] for name in path])
    if exact and not problem.dynamics.is_linear:
        W = W + problem.dynamics.hessians(xs, us, costates, params)
    A, B = problem.dynamics.jacobians(xs, us, params)

    def end(x: Any) -> Any:
        rows_end = sum(ys[name] @ getattr(problem, name)(x, params) for name in TERMINAL if name in ys and exact)
        return problem.end_cost(x, params) + rows_end

    x0, xN = xs[0], xs[-1]
    for name in TERMINAL:
        if name in ys:
            J[name] = jax.jacfwd(getattr(problem, name))(xN, params)
    q0, W0 = jnp.zeros_like(x0), jnp.zeros((nx, nx), xs.dtype)
    if problem.initial_cost is not None:
        q0, W0 = jax.grad(problem.start_cost)(x0, params), jax.hessian(problem.start_cost)(x0, params)
    qf, Wf = jnp.zeros_like(q0), jnp.zeros_like(W0)
    if problem.terminal_cost is not None:
        qf = jax.grad(problem.end_cost)(xN, params)
    if problem.terminal_cost is not None or any(name in ys for name in TERMINAL):
        Wf = jax.hessian(end)(xN)
    qs = jnp.concatenate([slope[:, :nx], qf[None]])
    return Expansion(evaluate(problem, rows, xs, us, params), q0, qs, slope[:, nx:], A, B, J, W0, W, Wf)
