r"""The primal-dual system of a trajectory problem: its unknowns, its residuals, and Newton's step on it.

The unknowns are states, inputs, costates, and for each row a slack s and a multiplier y (a soft row has the miss e and
its multiplier v, too). Rows are eliminated stage by stage (`rows`), so that Newton's step is the solution of one
linear-quadratic problem in (dx, du); its costates are the new multipliers of the dynamics. Where it is not convex, a
multiple of the identity is added to all of [[Q, M], [M', R]] until it is.
"""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace
from optctl._record import record
from optctl.lq import sweeps
from optctl.lq.kkt import Point, transposed_times
from optctl.lq.model import LQ
from optctl.lq.riccati import Factors
from optctl.problem import Problem, parts_of
from optctl.shooting.expansion import Expansion, Values
from optctl.shooting.rows import DELTA, DELTA_SINGLE, Rows, along, squared, transposed
from optctl.tape import memories

FIRST_SHIFT, LARGEST_SHIFT = 1e-4, 1e12
VIOLATION_PRICE = 1e6
"""What the violation costs in the Lagrangian whose curvature the phase takes: the cost itself hardly counts."""
LARGEST_MULTIPLIER = 1e3
"""Larger first estimates say that the constraints are nearly dependent at the guess, and nothing else."""


@record(static=("x0_free", "tapes", "natively"))
class Program:
    """The problem as the solver sees it.

    Attributes:
        problem: the problem.
        params: its parameters.
        x0_free: which components of x_0 are free, nx booleans.
        rows: its `Rows`.
        tapes: its functions on tapes, which tell about their structure; None where no tape holds them.
        natively: whether the compiled kernel iterates, on these tapes.
        read: on the host, what the tapes read, one after another.
    """

    problem: Problem
    params: Any
    x0_free: tuple[bool, ...]
    rows: Rows
    tapes: Any = None
    natively: bool = False
    read: Any = None

    @property
    def memory(self) -> tuple[Any, tuple[int, ...]]:
        """What the tapes read, one after another, and where each begins."""
        if self.read is not None:
            return self.read, (0, *accumulate([tape.numbers for tape in self.tapes.every[:-1]]))
        return memories(self.tapes.every, parts_of(self.problem, self.params))

    @property
    def quadratic(self) -> bool:
        """True if the tapes tell that costs are quadratic, dynamics and all constraints linear."""
        return self.tapes is not None and self.tapes.quadratic


@record()
class Unknowns:
    """A point in all unknowns, or a direction.

    Attributes:
        xs: (N+1, nx).
        us: (N, nu).
        costates: (N+1, nx), multipliers of the dynamics (row 0: of x_0).
        s: slacks of the rows, flat.
        y: multipliers of the rows, flat.
        e: None, or misses of the soft rows, flat.
        v: None, or multipliers of e >= 0.
    """

    xs: Any
    us: Any
    costates: Any
    s: Any
    y: Any
    e: Any
    v: Any


def missed(rows: Rows, c: Any, z: Unknowns) -> Any:
    """Return c + s of inequalities (less e of soft ones), c of equalities, 0 of rows that are off."""
    slack = z.s if rows.soft is None else z.s - jnp.where(rows.soft, z.e, 0.0)
    return jnp.where(rows.inequality, c + slack, jnp.where(rows.equality, c, 0.0))


def infeasibility(rows: Rows, at: Values, z: Unknowns) -> Any:
    """Return theta, the sum of all violations."""
    return jnp.sum(jnp.abs(at.gaps)) + jnp.sum(jnp.abs(missed(rows, at.c, z)))


def barrier_cost(rows: Rows, cost: Any, z: Unknowns, mu: Any) -> Any:
    """Return J - mu sum log s, with the price of what soft rows miss."""
    value = cost - mu * jnp.sum(jnp.where(rows.inequality, jnp.log(z.s), 0.0))
    if rows.soft is None:
        return value
    price = rows.l1 * z.e + 0.5 * rows.l2 * z.e**2 - mu * jnp.log(z.e)
    return value + jnp.sum(jnp.where(rows.soft, price, 0.0))


def price_of_misses(rows: Rows, z: Unknowns) -> Any:
    """Return what the misses of soft rows cost."""
    xp = namespace(z.xs)
    if rows.soft is None:
        return xp.zeros((), z.xs.dtype)
    return xp.sum(xp.where(rows.soft, rows.l1 * z.e + 0.5 * rows.l2 * z.e**2, 0.0))


def barrier_slope(rows: Rows, e: Expansion, z: Unknowns, d: Unknowns, mu: Any) -> Any:
    """Return the derivative of `barrier_cost` along d."""
    cost = jnp.sum(e.qs * d.xs) + jnp.sum(e.rs * d.us) + jnp.sum(e.q0 * d.xs[0])
    value = cost - mu * jnp.sum(jnp.where(rows.inequality, d.s / z.s, 0.0))
    if rows.soft is None:
        return value
    return value + jnp.sum(jnp.where(rows.soft, (rows.l1 + rows.l2 * z.e - mu / z.e) * d.e, 0.0))


def lagrangian_slopes(program: Program, e: Expansion, costates: Any, y: Any) -> tuple[Any, Any, Any]:
    """Return the slopes of the Lagrangian in a free x_0 (nx,), in the states (N+1, nx) and in the inputs (N, nu)."""
    N, nx = e.at.gaps.shape
    g0, gx, gu = transposed(program.rows, e.J, y, N, nx, e.rs.shape[1])
    later = costates[1:]
    pulled = jnp.concatenate([transposed_times(e.A, later), jnp.zeros_like(costates[:1])])
    in_start = jnp.where(jnp.asarray(program.x0_free), e.q0 + g0 + costates[0], 0.0)
    return in_start, e.qs + gx + pulled - costates, e.rs + gu + transposed_times(e.B, later)


def products(rows: Rows, z: Unknowns) -> tuple[Any, Any, Any]:
    """Return the smallest and the largest of all s y (and e v), infinity and 0 where there are none, and their sum."""
    pairs = [(rows.inequality, z.s * z.y)]
    if rows.soft is not None:
        pairs.append((rows.soft, z.e * z.v))
    low = [jnp.min(jnp.where(on, p, jnp.inf), initial=jnp.inf) for on, p in pairs]
    high = [jnp.max(jnp.where(on, p, 0.0), initial=0.0) for on, p in pairs]
    total = sum(jnp.sum(jnp.where(on, p, 0.0)) for on, p in pairs)
    return jnp.min(jnp.stack(low)), jnp.max(jnp.stack(high)), total


def newton_rows(rows: Rows, c: Any, z: Unknowns, mu: Any, nu: Any = None) -> tuple[Any, Any]:
    """Return r/d and 1/d of each row, J dz - d dy = -r; zeros where it is off.

    The products s y are to become mu, and e v of soft rows nu (None: mu, too), numbers or one for each row. Where s, y
    or e is zero, as a polished solution has them, it is the limit: an equality, a row that is off, a hard row.
    """
    xp, nu = namespace(c), mu if nu is None else nu
    off = rows.inequality & (z.y == 0) & (z.s > 0)
    y = xp.where(rows.inequality & (z.y > 0), z.y, 1.0)
    delta = DELTA if c.dtype == np.float64 else DELTA_SINGLE
    d = xp.where(rows.inequality, xp.where(z.s == 0, delta, z.s / y), delta)
    r, weight = xp.where(rows.inequality, c + mu / y, c), 1 / d
    if rows.soft is not None:
        gives = rows.soft & (z.e > 0)
        e = xp.where(gives, z.e, 1.0)
        w, ratio = rows.l2 + z.v / e, z.s / y
        missing = z.y + nu / e - rows.l1 - rows.l2 * e
        weight = xp.where(gives, w / (1 + w * ratio), weight)
        push = xp.where(gives, weight * (r - e) - missing / (1 + w * ratio), weight * r)
    else:
        push = weight * r
    on = (rows.inequality & ~off) | rows.equality
    return xp.where(on, push, 0.0), xp.where(on, weight, 0.0)


def quadratic_model(program: Program, e: Expansion, weight: Any, shift: Any) -> LQ:
    """Return the model of Newton's step: the curvature, J'(weight)J of the rows, and the shift."""
    (N, nx), nu, xp = e.at.gaps.shape, e.rs.shape[1], namespace(weight)
    W0, W, Wf = squared(program.rows, e.J, weight, N, nx, nu)
    W = e.W + W + shift * xp.eye(nx + nu, dtype=W.dtype)[None]
    eye = shift * xp.eye(nx, dtype=W.dtype)
    all_free = all(program.x0_free)
    return LQ(
        A=e.A, B=e.B, Q=W[:, :nx, :nx], R=W[:, nx:, nx:], M=W[:, :nx, nx:], Qf=e.Wf + Wf + eye, Q0=e.W0 + W0 + eye,
        x0=None if all_free else xp.zeros(nx, W.dtype), x0_free=program.x0_free,
    )  # fmt: skip


def factor(program: Program, e: Expansion, weight: Any, last: Any) -> tuple[LQ, Factors, Any]:
    """Return the model, its factors and the smallest shift tried that makes it convex.

    The first try is no shift; then a third of the `last` that was needed, and eight times more until it does.
    """
    model = quadratic_model(program, e, weight, jnp.zeros((), weight.dtype))
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(sweeps.factor, model))
    nothing = jnp.zeros((), weight.dtype)

    def attempt(carry: tuple) -> tuple:
        _, _, shift = carry
        first = jnp.where(last == 0, FIRST_SHIFT, jnp.maximum(1e-20, last / 3))
        larger = jnp.where(shift == 0, first, shift * jnp.where(last == 0, 100.0, 8.0))
        return sweeps.factor(shifted(model, shift)), shift, larger

    def failed(carry: tuple) -> Any:
        return (carry[0].failed_stage >= 0) & (carry[2] <= LARGEST_SHIFT)

    first = replace(blank, failed_stage=jnp.zeros((), jnp.int32)), nothing, nothing
    factors, shift, _ = jax.lax.while_loop(failed, attempt, first)
    return shifted(model, shift), factors, shift


def shifted(lq: LQ, shift: Any) -> LQ:
    """Return the model with a multiple of the identity added to all weights."""
    eye_x, eye_u = shift * jnp.eye(lq.nx, dtype=lq.Q.dtype), shift * jnp.eye(lq.nu, dtype=lq.Q.dtype)
    return replace(lq, Q=lq.Q + eye_x[None], R=lq.R + eye_u[None], Qf=lq.Qf + eye_x, Q0=lq.Q0 + eye_x)


def solve_step(
    program: Program,
    model: LQ,
    factors: Factors,
    e: Expansion,
    z: Unknowns,
    *,
    gaps: Any,
    c: Any,
    weight: Any,
    mu: Any,
    nu: Any = None,
    dx0: Any = None,
) -> Unknowns:
    """Return Newton's direction for these gaps and rows, with the factors at hand; dx0 moves a given x_0."""
    rows = program.rows
    nu = mu if nu is None else nu
    N, nx = gaps.shape
    push, _ = newton_rows(rows, c, z, mu, nu)
    g0, gx, gu = transposed(rows, e.J, z.y + push, N, nx, e.rs.shape[1])
    given = jnp.where(jnp.asarray(program.x0_free), 0.0, 0.0 if dx0 is None else dx0)
    start = jnp.where(jnp.asarray(program.x0_free), -(e.q0 + g0), given)
    b = Point(start=start, xs=-(e.qs + gx), us=-(e.rs + gu), costates=jnp.concatenate([-given[None], -gaps]))
    solved = sweeps.sweep(model, factors, b)
    change = along(rows, e.J, solved.xs, solved.us)
    dy = weight * change + push
    s, y = jnp.where(rows.inequality, z.s, 1.0), jnp.where(rows.inequality & (z.y > 0), z.y, 1.0)
    ds = jnp.where(rows.inequality, mu / y - s - s / y * dy, 0.0)
    de = dv = None
    if rows.soft is not None:
        miss, v = jnp.where(rows.soft & (z.e > 0), z.e, 1.0), jnp.where(rows.soft & (z.e > 0), z.v, 1.0)
        w = rows.l2 + v / miss
        # Of two formulas for the miss, one divides rounding by w, the other loses what is small beside c.
        by_row, by_price = c + change + s + ds - miss, (dy + y + nu / miss - rows.l1 - rows.l2 * miss) / w
        de = jnp.where((w < 1) & (z.e > 0), by_row, by_price)
        dv = jnp.where(rows.soft, nu / miss - v - v / miss * de, 0.0)
        de = jnp.where(rows.soft, de, 0.0)
    return Unknowns(solved.xs, solved.us, solved.costates - z.costates, ds, dy, de, dv)


def with_violations(rows: Rows, at: Values, z: Unknowns) -> Unknowns:
    """Return a point with multipliers for which the Lagrangian's curvature is that of half the squared violation.

    Those of inequalities are the phase's own; all are times VIOLATION_PRICE.
    """
    y = jnp.where(rows.inequality, z.y, jnp.where(rows.equality, at.c, 0.0))
    costates = jnp.concatenate([jnp.zeros_like(z.costates[:1]), at.gaps])
    return replace(z, costates=VIOLATION_PRICE * costates, y=VIOLATION_PRICE * y)


def first_multipliers(program: Program, e: Expansion, y: Any) -> tuple[Any, Any]:
    """Return costates and multipliers for which the slopes of the Lagrangian are least, those of inequalities given.

    It is the multipliers of  min 1/2 |dz|^2 + slope'dz  along what keeps all equalities; zero, where they are large.
    Where the feasibility phase ends, those from before it say nothing any more.
    """
    rows = program.rows
    N, nx = e.at.gaps.shape
    y = jnp.where(rows.inequality, y, 0.0)
    weight = jnp.where(rows.equality, 1 / DELTA, 0.0).astype(y.dtype)
    flat = replace(e, W0=jnp.zeros_like(e.W0), W=jnp.zeros_like(e.W), Wf=jnp.zeros_like(e.Wf))
    model = quadratic_model(program, flat, weight, jnp.ones((), y.dtype))
    g0, gx, gu = transposed(rows, e.J, y, N, nx, e.rs.shape[1])
    start = jnp.where(jnp.asarray(program.x0_free), -(e.q0 + g0), 0.0)
    b = Point(start=start, xs=-(e.qs + gx), us=-(e.rs + gu), costates=jnp.zeros_like(e.qs))
    solved = sweeps.sweep(model, sweeps.factor(model), b)
    of_rows = weight * along(rows, e.J, solved.xs, solved.us)
    most = jnp.maximum(jnp.max(jnp.abs(solved.costates)), jnp.max(jnp.abs(of_rows), initial=0.0))
    small = most <= LARGEST_MULTIPLIER
    return jnp.where(small, solved.costates, 0.0), y + jnp.where(small, of_rows, 0.0)


def longest(value: Any, step: Any, share: Any, which: Any) -> Any:
    """Return the longest alpha <= 1 that leaves value + alpha step >= (1 - share) value where `which`."""
    down = which & (step < 0)
    return jnp.min(jnp.where(down, -share * value / jnp.where(down, step, -1.0), 1.0), initial=1.0)


def longest_primal(rows: Rows, z: Unknowns, d: Unknowns, share: Any) -> Any:
    """Return the longest step that keeps slacks (and misses) positive."""
    alpha = longest(z.s, d.s, share, rows.inequality)
    return alpha if rows.soft is None else jnp.minimum(alpha, longest(z.e, d.e, share, rows.soft))


def longest_dual(rows: Rows, z: Unknowns, d: Unknowns, share: Any) -> Any:
    """Return the longest step that keeps multipliers positive."""
    alpha = longest(z.y, d.y, share, rows.inequality)
    return alpha if rows.soft is None else jnp.minimum(alpha, longest(z.v, d.v, share, rows.soft))


def moved(rows: Rows, z: Unknowns, d: Unknowns, alpha: Any, share: Any, mu: Any) -> Unknowns:
    """Return z + alpha d; multipliers of inequalities go their own longest way, and stay near mu / s."""
    alpha_y = longest_dual(rows, z, d, share)
    s = z.s + alpha * d.s
    y = z.y + jnp.where(rows.inequality, alpha_y, alpha) * d.y
    y = jnp.where(rows.inequality, near(y, s, mu, rows.inequality), y)
    e = v = None
    if rows.soft is not None:
        e = z.e + alpha * d.e
        v = jnp.where(rows.soft, near(z.v + alpha_y * d.v, e, mu, rows.soft), 1.0)
    return Unknowns(z.xs + alpha * d.xs, z.us + alpha * d.us, z.costates + alpha * d.costates, s, y, e, v)


def near(y: Any, s: Any, mu: Any, which: Any, *, factor: float = 1e10) -> Any:
    """Clip y so that s y is within a factor of mu."""
    s = jnp.where(which, s, 1.0)
    return jnp.clip(y, mu / (factor * s), factor * mu / s)
