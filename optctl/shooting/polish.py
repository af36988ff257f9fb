r"""The last step: from the last barrier problem to the solution itself.

An interior point ends where s y = mu: a row that is barely active, or barely not, is then sqrt(mu) off, and so are the
inputs that it binds. Once it is known which rows are active, the solution is that of a problem with equalities only,

    c = 0 of active rows,    y = 0 of others,    y = l1 + l2 c of soft rows that are missed,

and one Newton step on it is right to the square of the distance. Which rows are active the affine step tells, the one
that aims at products s y = 0: there ds/s tends to -1 and dy/y to 0 for active rows, and the other way round for others,
in whatever units. Rows that turn out to be on the wrong side change it, and the step is made again. What comes of it is
taken only if it is feasible, multipliers have their sign, and the residuals have fallen. Then s = 0 exactly of active
rows, y = 0 of others, and mu = 0; `newton_rows` knows these limits, so that gains and derivatives are those of the
solution, too.

References: El-Bakry, Tapia and Zhang (1994), A study of indicators for identifying zero variables in interior-point
methods; Bergounioux, Ito and Kunisch (1999), Primal-dual strategy for constrained optimal control problems.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from optctl.lq import sweeps
from optctl.shooting.barrier import Residuals, State, residuals
from optctl.shooting.primal_dual import Program, Unknowns, newton_rows, quadratic_model, solve_step
from optctl.shooting.scaling import expansion_in

ROUNDS = 4
"""Most steps, each with other active rows."""
SLACK = 1e-2
"""Share of the tolerance by which rows and multipliers may be on the wrong side of zero."""


def polish(program: Program, state: State, tolerance: Any, exact: bool) -> State:
    """Return the solution that a point close to it stands for; the point itself where that is none."""
    rows, problem, params = program.rows, program.problem, program.params
    z, e, zero = state.z, state.e, jnp.zeros((), state.z.xs.dtype)
    before = residuals(program, state, e)
    wrong_y = SLACK * tolerance * before.size
    wrong_c = jnp.maximum(SLACK * tolerance, 100 * jnp.finfo(zero.dtype).eps)

    def step(at: Unknowns) -> tuple[Unknowns, Any]:
        _, weight = newton_rows(rows, e.at.c, at, zero)
        model = quadratic_model(program, e, weight, zero)
        factors = sweeps.factor(model)
        d = solve_step(program, model, factors, e, at, gaps=e.at.gaps, c=e.at.c, weight=weight, mu=zero)
        return d, factors.failed_stage < 0

    def attempt(carry: tuple) -> tuple:
        k, held, kept, *_ = carry
        on = _pinned(program, z, z.y, e.at.c, held, kept)
        d, found = step(on)
        y = on.y + d.y
        on = replace(on, xs=on.xs + d.xs, us=on.us + d.us, costates=on.costates + d.costates)
        e_new = expansion_in(problem, rows, params, state.scales, replace(on, y=y), exact)
        c = e_new.at.c
        changed = held & (y < -wrong_y) | rows.inequality & ~held & (c > wrong_c)
        new_kept = kept
        if rows.soft is not None:
            too_much, met = kept & (y > rows.l1 + wrong_y), held & ~kept & (c < -wrong_c)
            new_kept = (kept ^ (too_much | met)) | (rows.soft & changed)
            changed, too_much = changed & ~(held & ~kept), too_much | met
        else:
            too_much = jnp.zeros_like(held)
        point = _pinned(program, on, y, c, held, kept)
        after = residuals(program, replace(state, z=point), e_new)
        fits = found & ~jnp.any(changed | too_much)
        good = fits & (_worst(after) <= jnp.maximum(_worst(before), SLACK * tolerance))
        return k + 1, held ^ changed, new_kept, good, found, point, e_new

    def going(carry: tuple) -> Any:
        k, _, _, good, found, *_ = carry
        return found & ~good & (k < ROUNDS)

    d, found = step(z)
    held = rows.inequality & (d.s * z.y < d.y * z.s)
    kept = held if rows.soft is None else rows.soft & (~held | (d.e * z.v < d.v * z.e))
    first = jnp.asarray(0), held, kept, jnp.asarray(False), found, z, e
    _, _, _, good, _, point, e_new = jax.lax.while_loop(going, attempt, first)
    new = replace(state, z=point, e=e_new, mu=zero)
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), new, state)


def _worst(r: Residuals) -> Any:
    worst = jnp.maximum(r.stationarity, jnp.maximum(r.infeasibility, r.most_product / r.size))
    return jnp.where(jnp.isfinite(worst), worst, jnp.inf)


def _pinned(program: Program, z: Unknowns, y: Any, c: Any, held: Any, kept: Any) -> Unknowns:
    """Return the point with slacks, misses and multipliers where the active rows want them.

    `held` are the rows with s = 0; `kept` the soft rows with e = 0.
    """
    rows = program.rows
    tiny = jnp.finfo(c.dtype).tiny
    y = jnp.where(rows.inequality, jnp.where(held, jnp.maximum(y, 0.0), 0.0), y)
    s = jnp.where(rows.inequality, jnp.where(held, 0.0, jnp.maximum(-c, tiny)), z.s)
    if rows.soft is None:
        return replace(z, s=s, y=y)
    missed = rows.soft & held & ~kept
    e = jnp.where(missed, jnp.maximum(c, tiny), 0.0)
    y = jnp.where(missed, rows.l1 + rows.l2 * e, jnp.where(rows.soft, jnp.minimum(y, rows.l1), y))
    v = jnp.where(missed, 0.0, rows.l1 - y)
    return replace(z, s=s, y=y, e=jnp.where(rows.soft, e, 1.0), v=jnp.where(rows.soft, v, 1.0))
