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
import numpy as np

from optctl._arrays import namespace, on_host
from optctl._record import record
from optctl.lq import sweeps
from optctl.lq.kkt import Point
from optctl.lq.model import LQ
from optctl.lq.riccati import Factors
from optctl.lq.solution import solve_system
from optctl.shooting.expansion import Expansion, evaluate, expand, function_values
from optctl.shooting.primal_dual import Program, Unknowns, newton_rows, price_of_misses, quadratic_model
from optctl.shooting.rows import Rows, along, transposed

TWICE = "a solution is differentiated twice, which is not available; take differences of its first derivative."


@record()
class Optimum:
    """The parts of a solution that have derivatives."""

    cost: Any
    xs: Any
    us: Any
    costates: Any
    y: Any


def settle(
    program: Program, x0: Any, z: Unknowns, e: Expansion, mu: Any, factor_of: Any, exact: bool = True
) -> Optimum:
    """Return the optimum z of a program, computed elsewhere, with its derivative in the program and in a given x_0.

    The derivative is multiplied by `factor_of`: 1, or NaN (or 0) for a point that is no optimum. The cost is that of
    the states and inputs, also where z.e is not what they miss yet. An expansion that is not `exact` has not the
    curvature of dynamics and rows, which the derivative needs.
    """
    return (_optimum if on_host(z.xs) else _settled)(program, x0, z, e, mu, factor_of, exact)


def _optimum(program: Program, x0: Any, z: Unknowns, e: Expansion, mu: Any, factor_of: Any, exact: bool) -> Optimum:
    there = z if z.e is None else replace(z, e=namespace(z.e).maximum(e.at.c, 0.0))
    return Optimum(e.at.cost + price_of_misses(program.rows, there), z.xs, z.us, z.costates, z.y)


_settled = jax.custom_jvp(_optimum, nondiff_argnums=(6,))


@_settled.defjvp
def _tangent(exact: bool, primals: tuple, tangents: tuple) -> tuple[Optimum, Optimum]:
    program, _, z, e, mu, factor_of = primals
    program = _once(program)
    if not exact:
        e = expand(program.problem, program.rows, z.xs, z.us, program.params, z.costates, z.y)
    _, moved = jax.jvp(lambda p: _conditions(p, z, mu), (program,), (tangents[0],))
    tangent = respond(program, z, e, linear_system(program, z, e, mu), moved, tangents[1])
    return _settled(*primals, exact), jax.tree.map(lambda leaf: factor_of * leaf, tangent)


@record()
class Conditions:
    """The cost and the optimality conditions, or how they move.

    Attributes:
        cost: total cost.
        q0: (nx,) slope of the initial cost.
        xs: (N+1, nx) slopes of the Lagrangian in the states, bounds left out, where they are constants.
        us: (N, nu) in the inputs.
        gaps: (N, nx) f(x_t, u_t) - x_{t+1}.
        c: values of all rows, flat.
        push: their r/d (`rows`).
    """

    cost: Any
    q0: Any
    xs: Any
    us: Any
    gaps: Any
    c: Any
    push: Any


def respond(program: Program, z: Unknowns, e: Expansion, system: tuple, moved: Conditions, dx0: Any) -> Optimum:
    """Return how the optimum moves where the conditions move, and a given x_0; `system` is the `linear_system`."""
    rows, (N, nx), nu = program.rows, e.at.gaps.shape, e.rs.shape[1]
    xp = namespace(z.xs)
    free = xp.asarray(program.x0_free)
    weight, model, factors = system
    d_start, nothing = xp.where(free, 0.0, dx0), xp.zeros_like

    def step(push: Any, moved: Conditions, d_start: Any) -> tuple[Point, Any]:
        h0, hx, hu = transposed(rows, e.J, push, N, nx, nu)
        first = xp.where(free, -(moved.q0 + h0), d_start)
        costates = xp.concatenate([xp.where(free, 0.0, -d_start)[None], -moved.gaps])
        b = Point(start=first, xs=-(moved.xs + hx), us=-(moved.us + hu), costates=costates)
        d = sweeps.sweep(model, factors, b) if xp is np else solve_system(model, factors, b)
        return d, weight * along(rows, e.J, d.xs, d.us) + push

    d, dy = step(moved.push, moved, d_start)
    # The proximal term of equalities and of active rows, delta dy, is taken back by a second right-hand side.
    late = xp.where(held(rows, z), moved.c + along(rows, e.J, d.xs, d.us), 0.0)
    d2, dy2 = step(weight * late, jax.tree.map(nothing, moved), nothing(d_start))
    # At an optimum the cost moves as the Lagrangian does where states, inputs and multipliers stay (envelope theorem).
    dcost = moved.cost + xp.vdot(z.costates[1:], moved.gaps) + xp.vdot(z.y, moved.c)
    dcost = dcost + xp.vdot(e.q0 + z.costates[0], d_start)
    return Optimum(dcost, d.xs + d2.xs, d.us + d2.us, d.costates + d2.costates, dy + dy2)


def linear_system(program: Program, z: Unknowns, e: Expansion, mu: Any) -> tuple[Any, LQ, Factors]:
    """Return 1/d of the rows, the model of the last Newton step, and its factors."""
    _, weight = newton_rows(program.rows, e.at.c, z, mu)
    model = quadratic_model(program, e, weight, namespace(weight).zeros((), weight.dtype))
    return weight, model, sweeps.factor(model)


def held(rows: Rows, z: Unknowns) -> Any:
    """Return which rows hold with equality: the active ones, where they may not be missed."""
    hold = rows.equality | rows.inequality & (z.s == 0)
    return hold if rows.soft is None else hold & ~(rows.soft & (z.e > 0))


def _conditions(program: Program, z: Unknowns, mu: Any) -> Conditions:
    """Return the cost and the optimality conditions at z."""
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
    return Conditions(cost, jax.grad(problem.start_cost)(z.xs[0], params), gx, gu, at.gaps, at.c, push)


@jax.custom_jvp
def _once(program: Program) -> Program:
    return program


@_once.defjvp
def _twice(primals: tuple, tangents: tuple) -> tuple:
    raise ValueError(TWICE)


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
