r"""The derivative of a solution in everything that the problem holds: x_0, parameters, references, bounds, prices.

A solution z satisfies F(z, p) = 0, the optimality conditions with the products s y of the rows held fixed. So

    F_z dz = -F_p dp,

and F_z is the matrix of the last Newton step: one more right-hand side for the factors at hand. It is symmetric, hence
reverse mode costs the same. Rows with s y > 0 on their bound stay on it; the others do not feel it. Where a constraint
is about to become active or inactive, the solution has a kink and no derivative.

Reference: Fiacco (1983), Introduction to sensitivity and stability analysis in nonlinear programming.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from optctl._arrays import namespace, on_host
from optctl._record import record
from optctl.lq.kkt import Point
from optctl.lq.solution import solve_system
from optctl.lq.sweeps import factor
from optctl.shooting.expansion import Expansion, evaluate, function_values
from optctl.shooting.primal_dual import Program, Unknowns, newton_rows, price_of_misses, quadratic_model
from optctl.shooting.rows import along, transposed


@record()
class Optimum:
    """The parts of a solution that have derivatives."""

    cost: Any
    xs: Any
    us: Any
    costates: Any
    y: Any


def settle(program: Program, x0: Any, z: Unknowns, e: Expansion, mu: Any, factor_of: Any) -> Optimum:
    """Return the optimum z of a program, computed elsewhere, with its derivative in the program and in a given x_0.

    The derivative is multiplied by `factor_of`: 1, or NaN (or 0) for a point that is no optimum. The cost is that of
    the states and inputs, also where z.e is not what they miss yet.
    """
    return (_optimum if on_host(z.xs) else _settled)(program, x0, z, e, mu, factor_of)


def _optimum(program: Program, x0: Any, z: Unknowns, e: Expansion, mu: Any, factor_of: Any) -> Optimum:
    there = z if z.e is None else replace(z, e=namespace(z.e).maximum(e.at.c, 0.0))
    return Optimum(e.at.cost + price_of_misses(program.rows, there), z.xs, z.us, z.costates, z.y)


_settled = jax.custom_jvp(_optimum)


@_settled.defjvp
def _tangent(primals: tuple, tangents: tuple) -> tuple[Optimum, Optimum]:
    program, _, z, e, mu, factor_of = primals
    program = _once(program)
    _, (dcost, g0, gx, gu, gaps, c, push) = jax.jvp(lambda p: _conditions(p, z, mu), (program,), (tangents[0],))
    rows = program.rows
    N, nx = gaps.shape
    free = jnp.asarray(program.x0_free)
    _, weight = newton_rows(rows, e.at.c, z, mu)
    model = quadratic_model(program, e, weight, jnp.zeros((), gaps.dtype))
    factors = factor(model)
    d_start = jnp.where(free, 0.0, tangents[1])

    def step(push: Any, gaps: Any, g0: Any, gx: Any, gu: Any, d_start: Any) -> tuple[Point, Any]:
        h0, hx, hu = transposed(rows, e.J, push, N, nx, gu.shape[1])
        first = jnp.where(free, -(g0 + h0), d_start)
        costates = jnp.concatenate([jnp.where(free, 0.0, -d_start)[None], -gaps])
        d = solve_system(model, factors, Point(start=first, xs=-(gx + hx), us=-(gu + hu), costates=costates))
        return d, weight * along(rows, e.J, d.xs, d.us) + push

    d, dy = step(push, gaps, g0, gx, gu, d_start)
    # The proximal term of equalities and of active rows, delta dy, is taken back by a second right-hand side.
    held = rows.equality | rows.inequality & (z.s == 0)
    held = held if rows.soft is None else held & ~(rows.soft & (z.e > 0))
    late = jnp.where(held, c + along(rows, e.J, d.xs, d.us), 0.0)
    zero = jnp.zeros_like
    d2, dy2 = step(weight * late, zero(gaps), zero(g0), zero(gx), zero(gu), zero(d_start))
    d = jax.tree.map(jnp.add, d, d2)
    dy = dy + dy2
    # At an optimum the cost moves as the Lagrangian does where states, inputs and multipliers stay (envelope theorem).
    dcost = dcost + jnp.vdot(z.costates[1:], gaps) + jnp.vdot(z.y, c) + jnp.vdot(e.q0 + z.costates[0], d_start)
    tangent = Optimum(dcost, d.xs, d.us, d.costates, dy)
    return _settled(*primals), jax.tree.map(lambda leaf: factor_of * leaf, tangent)


def _conditions(program: Program, z: Unknowns, mu: Any) -> tuple[Any, ...]:
    """Return the cost, the optimality conditions at z (in x_0, states, inputs), gaps, rows, and their r/d.

    Bounds are left out of the slopes, where they are constants.
    """
    problem, rows, params = program.problem, program.rows, program.params
    ys = rows.split(z.y)

    def lagrangian(xs: Any, us: Any) -> Any:
        reached = problem.dynamics.map_stages(lambda x, u, t: problem.dynamics.step(x, u, t, params), xs, us)
        functions = function_values(problem, xs, us, params)
        of_rows = sum(jnp.vdot(ys[name], value) for name, value in functions.items())
        return problem.trajectory_cost(xs, us, params) + jnp.vdot(z.costates[1:], reached) + of_rows

    gx, gu = jax.grad(lagrangian, (0, 1))(z.xs, z.us)
    at = evaluate(problem, rows, z.xs, z.us, params)
    push, _ = newton_rows(rows, at.c, z, mu)
    cost = at.cost + price_of_misses(rows, z)
    return cost, jax.grad(problem.start_cost)(z.xs[0], params), gx, gu, at.gaps, at.c, push


@jax.custom_jvp
def _once(program: Program) -> Program:
    return program


@_once.defjvp
def _twice(primals: tuple, tangents: tuple) -> tuple:
    raise ValueError(
        "a solution is differentiated twice, which is not available; take differences of its first derivative."
    )


def unknown(values: tuple, of: Any) -> tuple:
    """Return values whose derivative in `of` is not known: NaN, where one asks for it."""
    return values if on_host(values[0]) else _unknown(values, of)


@jax.custom_jvp
def _unknown(values: tuple, of: Any) -> tuple:
    return values


@_unknown.defjvp
def _unknown_tangent(primals: tuple, tangents: tuple) -> tuple:
    moved = sum([jnp.sum(t) for t in jax.tree.leaves(tangents) if t.dtype != jax.dtypes.float0])
    return primals[0], tuple([jnp.full_like(value, jnp.nan) * moved for value in primals[0]])
