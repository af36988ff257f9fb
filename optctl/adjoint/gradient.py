r"""The gradient engine: one rollout forward, one costate recursion backward.

    costates_N = dlN/dx                          costates_t = dl/dx_t + f_x' costates_{t+1}
    dJ/du_t    = dl/du_t + f_u' costates_{t+1}
    dJ/dp      = sum_t (dl/dp + f_p' costates_{t+1}) + dlN/dp + dl0/dp
    dJ/dx_0    = costates_0 + dl0/dx_0

The costs are differentiated for all stages at once, apart from the dynamics; the dynamics' `adjoint` does the rest.
Nothing is differentiated through a loop. One gradient costs a small multiple of one rollout, whatever the number
of inputs; memory is O(N).

References: Bryson and Ho (1975), Applied Optimal Control, equation 2.3.6; Griewank and Walther (2008), Evaluating
Derivatives, section 3.2.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import own, to_host
from optctl._door import numbers
from optctl._record import record
from optctl._validate import as_float, check_tree, is_concrete
from optctl.adjoint.known import with_slope
from optctl.adjoint.linked import linked
from optctl.dynamics.memory import reverse, schedule
from optctl.engine.native import Engine, Slopes, find_engine, known_engine
from optctl.problem import Problem, once, parts_of


@record()
class Gradient:
    """A cost, its trajectory, its costates and its derivatives.

    Attributes:
        cost: the total cost J, a scalar.
        xs: (N+1, nx) states.
        costates: (N+1, nx), dJ/dx_t with the future inputs held fixed (l0 not counted). As xs, None where the problem
            bounds the memory.
        us: (N, nu), dJ/du_t.
        x0: (nx,), dJ/dx_0.
        params: like the parameters, dJ/dparams.
    """

    cost: Any
    xs: Any
    costates: Any
    us: Any
    x0: Any
    params: Any


def gradient(problem: Problem, us: Any, *, x0: Any = None, params: Any = None) -> Gradient:
    """Return the cost, states, costates and the gradients in us, x0 and params.

    Constraints of the problem play no part in it. Derivatives of the result are those of its numbers, to any order;
    where the problem bounds the memory, `jax.grad` passes through `cost` only, and that of the other fields is NaN.

    Args:
        problem: the problem.
        us: (N, nu) inputs; None where the dynamics have none.
        x0: (nx,) initial state; None takes the problem's.
        params: parameters; None takes the problem's.

    Returns:
        A `Gradient`.

    Raises:
        ValueError: for wrong shapes, NaN or inf in the arguments, booleans, a missing x0.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.LinearDynamics(A=[[2.0]], B=[[1.0]]),
        ...     oc.costs.Quadratic(Q=[[0.0]], R=[[1.0]]),
        ...     oc.costs.TerminalQuadratic(Q=[[1.0]]),
        ...     horizon=2,
        ...     x0=[1.0],
        ... )
        >>> g = oc.gradient(problem, jnp.zeros((2, 1)))
        >>> print(g.cost, g.us[:, 0], g.costates[:, 0])
        8.0 [8. 4.] [16.  8.  4.]

    References:
        Bryson and Ho (1975), Applied Optimal Control, section 2.2.
    """
    point = arguments(problem, us, x0, params)
    us, x0, params = point
    engine = known_engine(problem, *point)
    if engine is not None:
        return as_gradient(engine.gradient(us, x0, params))
    once((problem, point), lambda: problem.check_shapes(x0, us, params))
    plain = is_concrete((problem, point)) or not is_concrete(parts_of(problem, None))
    at, known = (problem, point) if plain else numbers((problem, point))
    engine = find_engine(at, *known)
    if engine is not None:
        found = as_gradient(engine.gradient(*known))
        return found if is_concrete(point) else linked(at, point, found, product, _gradient)
    point = own(point)  # JAX may keep it for derivatives
    if problem.memory == "full" or is_concrete(point):
        return _gradient(problem, *point)
    g = _gradient(problem, *jax.lax.stop_gradient(point))
    cost, slope = with_slope(g.cost, (g.us, g.x0, g.params), point, (g.us, g.x0, g.params))
    return Gradient(cost, None, None, *slope)


def product(problem: Problem, us: Any, x0: Any, params: Any, dus: Any, dx0: Any, dparams: Any) -> Gradient:
    """Return the derivative of every field of a gradient along a direction: by tapes where they have it."""
    at, along = (us, x0, params), (dus, dx0, dparams)
    engine = find_engine(problem, *at, curved=True, mixed=bool(jax.tree.leaves(params)))
    return _product(problem, at, along) if engine is None else _along(engine, to_host(at), to_host(along))


def _along(engine: Engine, at: tuple, direction: tuple) -> Gradient:
    """Return the derivative of every field by the engine's tapes."""
    (us, x0, params), (dus, dx0, dparams) = at, direction
    if not jax.tree.leaves(params):
        found, hessian = engine.hessian(us, x0, params)
        dxs, dcostates, gus, gx0 = hessian(dus, dx0)
        return Gradient(np.vdot(found.us, dus) + np.vdot(found.x0, dx0), dxs, dcostates, gus, gx0, params)
    found, hessian = engine.mixed_hessian(us, x0, params)
    pairs = zip(jax.tree.leaves((found.us, found.x0, found.params)), jax.tree.leaves(direction), strict=True)
    return Gradient(sum([np.vdot(g, d) for g, d in pairs]), *hessian(dus, dx0, dparams))


@jax.jit
def _product(problem: Problem, at: tuple, along: tuple) -> Gradient:
    along = jax.tree.map(lambda d, a: jnp.asarray(d, a.dtype), along, at)
    return jax.jvp(lambda us, x0, params: costate_gradient(problem, us, x0, params), at, along)[1]


def arguments(problem: Problem, us: Any, x0: Any, params: Any) -> tuple[Any, Any, Any]:
    """Fill in what the caller left out, check it, and bring arrays to one floating type."""
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` is a {type(problem).__name__}; expected optctl.Problem.")
    x0 = problem.x0 if x0 is None else x0
    if x0 is None:
        raise ValueError("`x0` is free in this problem: pass the point where to evaluate, x0=...")
    x0 = as_float(x0, "x0")
    if us is None and not problem.dynamics.roll_without_inputs:
        if problem.dynamics.nu != 0:
            raise ValueError(f"`us` is missing; expected inputs of shape ({problem.horizon}, {problem.dynamics.nu}).")
        us = np.zeros((problem.steps, 0), x0.dtype)
    if us is not None:
        us = as_float(us, "us")
        if us.dtype != x0.dtype:
            dtype = np.result_type(us.dtype, x0.dtype)
            us, x0 = us.astype(dtype), x0.astype(dtype)
    params = problem.params if params is None else check_tree(params, "params")
    problem.dynamics.rehearse(x0, us, params)
    return us, x0, params


def as_gradient(found: Slopes) -> Gradient:
    """Return what a pass of compiled code found as a `Gradient`."""
    return Gradient(found.cost, found.xs, found.costates, found.us, found.x0, found.params)


@jax.jit
def _gradient(problem: Problem, us: Any, x0: Any, params: Any) -> Gradient:
    return costate_gradient(problem, us, x0, params)


def costate_gradient(problem: Problem, us: Any, x0: Any, params: Any) -> Gradient:
    """The engine itself, without checks, for use inside compiled code."""
    if problem.memory != "full":
        return _recomputing_gradient(problem, us, x0, params)
    xs = problem.dynamics.roll(x0, us, params)
    cost, (gxs, gus, gparams) = jax.value_and_grad(problem.trajectory_cost, (0, 1, 2))(xs, us, params)
    start, (gx0, gparams0) = jax.value_and_grad(problem.start_cost, (0, 1))(x0, params)
    back = problem.dynamics.adjoint(xs, us, gxs, params)
    costates0 = back.costates[0]
    return Gradient(
        cost=cost + start,
        xs=xs,
        costates=back.costates,
        us=jax.tree.map(jnp.add, gus, back.us),
        x0=costates0 + gx0,
        params=jax.tree.map(lambda *parts: sum(parts), gparams, gparams0, back.params),
    )


def _recomputing_gradient(problem: Problem, us: Any, x0: Any, params: Any) -> Gradient:
    """The same recursion stage by stage, over states that are computed again as the schedule says."""
    N = us.shape[0]
    plan = schedule(problem.memory, N)

    def step(x: Any, t: Any) -> Any:
        return problem.dynamics.step(x, us[t], t, params)

    def finish(x: Any, carry: tuple) -> tuple:
        _, gus, gparams, cost = carry
        last, (gx, gp) = jax.value_and_grad(problem.end_cost, (0, 1))(x, params)
        return gx, gus, jax.tree.map(jnp.add, gparams, gp), cost + last

    def visit(x: Any, t: Any, carry: tuple) -> tuple:
        costate, gus, gparams, cost = carry

        def stage(x: Any, u: Any, params: Any) -> tuple[Any, Any]:
            return problem.dynamics.step(x, u, t, params), problem.cost_at(x, u, t, params)

        (_, here), transpose = jax.vjp(stage, x, us[t], params)
        gx, gu, gp = transpose((costate, jnp.ones_like(here)))
        return gx, gus.at[t].set(gu), jax.tree.map(jnp.add, gparams, gp), cost + here

    start, (gx0, gparams0) = jax.value_and_grad(problem.start_cost, (0, 1))(x0, params)
    carry = jnp.zeros_like(x0), jnp.zeros_like(us), gparams0, start
    costate0, gus, gparams, cost = reverse(plan.arrays(), plan.slots, step, x0, finish, visit, carry)
    return Gradient(cost, None, None, us=gus, x0=costate0 + gx0, params=gparams)


def total_cost(problem: Problem, us: Any, x0: Any, params: Any) -> Any:
    """Return J alone, without checks: one rollout."""
    if problem.memory != "full":

        def forward(t: Any, carry: tuple) -> tuple:
            x, cost = carry
            return problem.dynamics.step(x, us[t], t, params), cost + problem.cost_at(x, us[t], t, params)

        x, cost = jax.lax.fori_loop(0, us.shape[0], forward, (x0, problem.start_cost(x0, params)))
        return cost + problem.end_cost(x, params)
    xs = problem.dynamics.roll(x0, us, params)
    return problem.trajectory_cost(xs, us, params) + problem.start_cost(x0, params)
