r"""The last step, from the last barrier problem to the solution itself; and the first ones of a warm start.

An interior point ends where s y = mu: a row that is barely active, or barely not, is then sqrt(mu) off, and so are the
inputs that it binds. Once it is known which rows are active, the solution is that of a problem with equalities only,

    c = 0 of active rows,    y = 0 of others,    y = l1 + l2 c of soft rows that are missed,

and one Newton step on it is right to the square of the distance. Which rows are active the affine step tells, the one
that aims at products s y = 0: there ds/s tends to -1 and dy/y to 0 for active rows, and the other way round for others,
in whatever units. Rows that turn out to be on the wrong side change it, and the step is made again. What comes of it is
taken only if it is feasible, multipliers have their sign, and the residuals have fallen. Then s = 0 exactly of active
rows, y = 0 of others, and mu = 0; `newton_rows` knows these limits, so that gains and derivatives are those of the
solution, too.

A warm start takes the active rows of a similar problem's solution for its own and makes the same steps: where they are
nearly the right ones, no barrier is needed at all, and nothing depends on the scale of the cost.

References: El-Bakry, Tapia and Zhang (1994), A study of indicators for identifying zero variables in interior-point
methods; Bergounioux, Ito and Kunisch (1999), Primal-dual strategy for constrained optimal control problems.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from optctl.lq import sweeps
from optctl.result import Status
from optctl.shooting.barrier import Residuals, State, remember, residuals
from optctl.shooting.expansion import Expansion
from optctl.shooting.primal_dual import Program, Unknowns, newton_rows, quadratic_model, solve_step
from optctl.shooting.scaling import expansion_in

ROUNDS, WARM_ROUNDS = 4, 6
"""Most steps, each with other active rows: of the polish, and of a warm start."""
SLACK = 1e-2
"""Share of the tolerance by which rows and multipliers may be on the wrong side of zero."""


def polish(program: Program, state: State, tolerance: Any, exact: bool) -> State:
    """Return the solution that a point close to it stands for; the point itself where that is none."""
    rows, z, e = program.rows, state.z, state.e
    d, found = _direction(program, e, z)
    held = rows.inequality & (d.s * z.y < d.y * z.s)
    kept = held if rows.soft is None else rows.soft & (~held | (d.e * z.v < d.v * z.e))
    target = jnp.maximum(_worst(residuals(program, state, e)), SLACK * tolerance)
    good, new = _rounds(program, state, held, kept, target, tolerance, exact, jnp.where(found, ROUNDS, 0))
    new = replace(state, z=new.z, e=new.e, mu=jnp.zeros_like(state.mu))
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), new, state)


def settle_warm(program: Program, state: State, tolerance: Any, exact: bool, stop: Any) -> State:
    """Take the rows that a point holds, s = 0, for the active ones of the solution: SOLVED, or STALLED."""
    rows, z = program.rows, state.z
    held = rows.inequality & (z.s == 0)
    kept = held if rows.soft is None else rows.soft & (z.e == 0)
    e = expansion_in(program.problem, rows, program.params, state.scales, z, exact)
    state = replace(state, z=_pinned(program, z, z.y, e.at.c, held, kept), e=e, mu=jnp.zeros_like(state.mu))
    state = remember(state, residuals(program, state, e))
    most = jnp.minimum(WARM_ROUNDS, stop - state.iterations)
    good, state = _rounds(program, state, held, kept, tolerance, tolerance, exact, most)
    return replace(state, status=jnp.where(good, int(Status.SOLVED), int(Status.STALLED)))


def _rounds(
    program: Program, state: State, held: Any, kept: Any, target: Any, tolerance: Any, exact: bool, most: Any
) -> tuple[Any, State]:
    """Make steps until no row is on the wrong side and the residuals are within the target; return whether they are.

    `held` are the rows with s = 0, `kept` the soft ones with e = 0.
    """
    rows = program.rows
    wrong_y = SLACK * tolerance * residuals(program, state, state.e).size
    wrong_c = jnp.maximum(SLACK * tolerance, 100 * jnp.finfo(wrong_y.dtype).eps)

    def attempt(carry: tuple) -> tuple:
        k, held, kept, _, _, state = carry
        on = _pinned(program, state.z, state.z.y, state.e.at.c, held, kept)
        d, found = _direction(program, state.e, on)
        y = on.y + d.y
        on = replace(on, xs=on.xs + d.xs, us=on.us + d.us, costates=on.costates + d.costates)
        e = expansion_in(program.problem, rows, program.params, state.scales, replace(on, y=y), exact)
        c = e.at.c
        z = _pinned(program, on, y, c, held, kept)
        missed = held & ~kept if rows.soft is not None else jnp.zeros_like(held)
        missed = missed & (False if rows.soft is None else rows.soft)
        bent = (missed & (c < -wrong_c)) | (kept & (y > (jnp.inf if rows.soft is None else rows.l1) + wrong_y))
        turned = rows.inequality & ~missed & ~bent & jnp.where(held, y < -wrong_y, c > wrong_c)
        state = replace(state, z=z, e=e, iterations=state.iterations + 1, step=jnp.ones_like(state.step))
        r = residuals(program, state, e)
        good = found & ~jnp.any(bent | turned) & (_worst(r) <= target)
        return k + 1, held ^ turned, kept ^ bent, good, found & jnp.isfinite(_worst(r)), remember(state, r)

    def going(carry: tuple) -> Any:
        k, _, _, good, found, _ = carry
        return found & ~good & (k < most)

    no = jnp.asarray(False)
    *_, good, _, state = jax.lax.while_loop(going, attempt, (jnp.asarray(0), held, kept, no, ~no, state))
    return good, state


def _direction(program: Program, e: Expansion, z: Unknowns) -> tuple[Unknowns, Any]:
    """Return Newton's direction to products s y = 0, and whether its model is convex."""
    zero = jnp.zeros((), z.xs.dtype)
    _, weight = newton_rows(program.rows, e.at.c, z, zero)
    model = quadratic_model(program, e, weight, zero)
    factors = sweeps.factor(model)
    d = solve_step(program, model, factors, e, z, gaps=e.at.gaps, c=e.at.c, weight=weight, mu=zero)
    return d, factors.failed_stage < 0


def _worst(r: Residuals) -> Any:
    worst = jnp.maximum(r.stationarity, jnp.maximum(r.infeasibility, r.most_product / r.size))
    return jnp.where(jnp.isfinite(worst), worst, jnp.inf)


def _pinned(program: Program, z: Unknowns, y: Any, c: Any, held: Any, kept: Any) -> Unknowns:
    """Return the point with slacks, misses and multipliers where the active rows want them."""
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
