r"""The feasibility phase: where the line search of the interior point method is stuck, lower the violation itself.

    minimize  1/2 |gaps|^2 + 1/2 |c + s|^2 + 1/2 |h|^2 - mu sum log s     inside the bounds,

by damped Newton steps. Each is one linear-quadratic problem again: a row may be missed by its multiplier, and the
dynamics of a stage by inputs of their own, x_{t+1} = f(x_t, u_t) + w_t, at the price |w_t|^2/2. Half the squared
violation has the curvature of a Lagrangian whose multipliers are the violations themselves; the cost is in it, too, at
the price of one in VIOLATION_PRICE. The phase ends at a point with nine tenths of the violation that the filter
accepts. Where the violation is stationary, it begins once more, from the straight line between the ends of the states;
where it ends so again, the problem is locally infeasible.

Reference: Waechter and Biegler (2006), section 3.3, with the squared violation in place of its sum.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from optctl.lq import sweeps
from optctl.lq.kkt import Point, times, transposed_times
from optctl.lq.model import LQ
from optctl.lq.riccati import Factors
from optctl.result import Status
from optctl.shooting.barrier import (
    HALVINGS,
    OPTIMIZE,
    RESTORE,
    Residuals,
    State,
    central_slacks,
    half_violation,
    residuals,
)
from optctl.shooting.expansion import Expansion, Values
from optctl.shooting.primal_dual import (
    FIRST_SHIFT,
    LARGEST_MULTIPLIER,
    LARGEST_SHIFT,
    VIOLATION_PRICE,
    Program,
    Unknowns,
    barrier_cost,
    first_multipliers,
    infeasibility,
    longest,
    missed,
    near,
    quadratic_model,
    with_violations,
)
from optctl.shooting.rows import DELTA, Rows, along, bound_arrays, inside, transposed
from optctl.shooting.scaling import Scales, expansion_in, values_at

ENOUGH = 0.9
LEAST_DAMPING = 1e-11
"""It is added at every stage: what is large beside the curvature of the violation makes a final time creep."""
WIDE_BARRIER = 2e3
"""Where the phase begins once more, its barrier is so many times larger than half the squared violation a row: it leads
away from the bounds that may have hemmed the iterates in."""
NUDGE, NUDGES = 1e-2, 2
"""How far a point is moved off a maximum or saddle of the violation, where no slope leads away, and how often."""
STILL_PRICE = 1e8
"""Price of missing the dynamics of a state that does not move, such as a parameter: it must not differ from stage to
stage, and so escape its bounds."""


def restore(program: Program, state: State, r: Residuals, tolerance: Any) -> State:
    """One step on the violation."""
    rows, z, e, mu = program.rows, state.z, state.e, state.mu_restore
    N, nx = e.at.gaps.shape
    nu = e.rs.shape[1]
    inequality, elastic = rows.inequality, rows.elastic
    s = jnp.where(inequality, z.s, 1.0)
    y = jnp.where(inequality, near(z.y / VIOLATION_PRICE, s, mu, inequality, factor=100.0), 0.0)
    gaps, misses = e.at.gaps, missed(rows, e.at.c, z)
    half = 0.5 * (jnp.sum(gaps**2) + jnp.sum(misses**2))
    worst = jnp.maximum(jnp.max(jnp.abs(gaps)), jnp.max(jnp.abs(misses), initial=0.0))

    # The slope of the violation; multipliers of the bounds, which are kept, belong to it.
    g0, gx, gu = transposed(rows, e.J, jnp.where(elastic, misses, y), N, nx, nu)
    gx = gx - jnp.concatenate([jnp.zeros((1, nx), gx.dtype), gaps])
    gx = gx + jnp.concatenate([transposed_times(e.A, gaps), jnp.zeros((1, nx), gx.dtype)])
    gx = gx.at[0].set(jnp.where(jnp.asarray(program.x0_free), gx[0] + g0, 0.0))
    slope = jnp.maximum(jnp.max(jnp.abs(gx)), jnp.max(jnp.abs(gu + transposed_times(e.B, gaps)), initial=0.0))
    product = jnp.max(jnp.where(inequality, s * y, 0.0), initial=0.0)
    d, dy, damping = _step(program, state, y, mu)
    curved = damping > FIRST_SHIFT  # downwards; the cost, which has its small share in the model, takes less
    d_gaps = times(e.A, d.xs[:-1]) + times(e.B, d.us) - d.xs[1:]
    d_misses = along(rows, e.J, d.xs, d.us) + d.s
    fall = jnp.sum(gaps * d_gaps) + jnp.sum(misses * d_misses) - mu * jnp.sum(jnp.where(inequality, d.s / s, 0.0))

    # Where the step promises nothing, damped or not, the violation is at its least for this mu.
    still_falls = -fall * jnp.maximum(1.0, damping) > 1e-10 * half
    least = (slope <= 1e-6 * worst) | ~still_falls
    sure = ~still_falls & (state.shift <= LEAST_DAMPING)  # small rows have small slopes, damped steps promise little
    stationary = sure & (product <= 1e-5 * half) & (worst > tolerance)
    saddle = ~still_falls & curved & (worst > tolerance)
    nudged = saddle & (state.nudges < NUDGES)
    aside = _nudge(program, state)
    d, dy = jax.tree.map(lambda new, old: jnp.where(nudged, new, old), (aside, aside.y), (d, dy))

    def merit(at: Values, z: Unknowns) -> Any:
        violation = 0.5 * (jnp.sum(at.gaps**2) + jnp.sum(missed(rows, at.c, z) ** 2))
        return violation - mu * jnp.sum(jnp.where(inequality, jnp.log(z.s), 0.0))

    now = merit(e.at, z)

    def body(carry: tuple) -> tuple:
        k, alpha, *_ = carry
        point = replace(z, xs=z.xs + alpha * d.xs, us=z.us + alpha * d.us, s=z.s + alpha * d.s)
        at = values_at(program.problem, rows, program.params, state.scales, point)
        value = merit(at, point)
        fine = jnp.isfinite(value) & (nudged | (value <= now + 1e-4 * alpha * fall))
        return k + 1, jnp.where(fine, alpha, alpha / 2), point, at, fine

    first = jnp.asarray(0), longest(z.s, d.s, 0.99, inequality), z, e.at, jnp.asarray(False)
    trials, alpha, point, at, fine = jax.lax.while_loop(lambda c: ~c[-1] & (c[0] < HALVINGS), body, first)
    theta, phi = infeasibility(rows, at, point), barrier_cost(rows, at.cost, point, state.mu)
    back = fine & (theta <= ENOUGH * state.mark) & state.filter.accepts(theta, phi)
    central = state.mu / jnp.where(inequality, point.s, 1.0)
    central = jnp.where(inequality, jnp.where(central > LARGEST_MULTIPLIER, 1.0, central), 0.0)
    y = jnp.where(inequality, y + longest(y, dy, 0.99, inequality) * dy, 0.0)
    point = jax.lax.cond(
        back,
        lambda z: with_multipliers(program, state.scales, replace(z, y=central)),
        lambda z: with_violations(rows, at, replace(z, y=y)),
        point,
    )
    lower = ((slope <= 10 * mu) | least) & ~nudged
    stuck = (stationary | saddle | ~(fine | least)) & ~nudged
    asks, same = stationary & ~saddle & (state.retried == 0), (z, mu, jnp.asarray(False))
    straight, mu_again, again = jax.lax.cond(asks, lambda s: _straightened(program, s, half), lambda _: same, state)
    back, stuck = back & ~again, stuck & ~again
    infeasible = stationary & ~saddle & can_be_infeasible(rows)
    failed = jnp.where(infeasible, int(Status.INFEASIBLE), int(Status.STALLED))
    damping = jnp.where(trials == 1, damping / 4, damping * jnp.where(trials == 2, 2.0, 8.0))
    return replace(
        state,
        z=jax.tree.map(lambda a, b, c: jnp.where(again, a, jnp.where(stuck | ~fine, b, c)), straight, z, point),
        status=jnp.where(stuck, failed, state.status),
        phase=jnp.where(back, OPTIMIZE, RESTORE),
        shift=jnp.where(again | back | least, 0.0, damping),
        mu_restore=jnp.where(again, mu_again, jnp.where(lower, 0.2 * mu, mu)),
        retried=state.retried + again,
        nudges=state.nudges + nudged,
        step=alpha,
    )


def _straightened(program: Program, state: State, half: Any) -> tuple[Unknowns, Any, Any]:
    """Return where the phase begins anew, with its barrier, and whether all functions are finite there.

    States are on the straight line between their ends, inputs zero, both inside their bounds: nothing is left of the
    way that led to where the violation, `half` its square, cannot be lowered.
    """
    rows, z, by = program.rows, state.z, state.scales
    t = jnp.arange(1, len(z.xs), dtype=z.xs.dtype)
    line = z.xs[:1] + jnp.outer(t, z.xs[-1] - z.xs[0]) / len(z.us)

    def within(z: Any, stem: str, size: Any) -> Any:
        size = jnp.broadcast_to(size, z.shape)
        return inside(z * size, *bound_arrays(rows, stem, z), size) / size

    xs = jnp.concatenate([z.xs[:1], within(line, "x", by.x)])
    z = replace(z, xs=xs, us=within(jnp.zeros_like(z.us), "u", by.u))
    e = expansion_in(program.problem, rows, program.params, by, z, exact=False)
    r = residuals(program, replace(state, z=z), e)
    fine = jnp.isfinite(r.theta) & jnp.isfinite(e.at.cost) & jnp.isfinite(r.stationarity)
    miss = jnp.zeros_like(z.s) if rows.soft is None else jnp.where(rows.soft, z.e, 0.0)
    s = jnp.where(rows.inequality, jnp.maximum(miss - e.at.c, 0.0), z.s)
    here = half_violation(program, e, replace(z, s=s))
    mu = WIDE_BARRIER * jnp.maximum(half / jnp.maximum(1, jnp.sum(rows.inequality)), here)
    s = jnp.where(rows.inequality & rows.elastic, central_slacks(rows, e.at.c, z, mu), s)
    y = jnp.where(rows.inequality, mu / jnp.where(rows.inequality, s, 1.0), z.y)
    z = with_violations(rows, e.at, replace(z, s=s, y=y))
    return jax.tree.map(lambda new, old: jnp.where(fine, new, old), z, state.z), mu, fine


def _nudge(program: Program, state: State) -> Unknowns:
    """Return a small direction that no symmetry of a problem is likely to share; bounds keep up with it."""
    rows, z = program.rows, state.z

    def off(values: Any) -> Any:
        sign = jnp.cos(1.0 + jnp.arange(values.shape[1], dtype=values.dtype))
        return NUDGE * sign[None] * jnp.maximum(1.0, jnp.abs(values))

    dxs, dus = off(z.xs), off(z.us)
    dxs = dxs.at[0].set(jnp.where(jnp.asarray(program.x0_free), dxs[0], 0.0))
    change = along(rows, state.e.J, dxs, dus)
    ds = jnp.where(rows.inequality & ~rows.elastic, -change, 0.0)
    none = None if z.e is None else jnp.zeros_like(z.e)
    return Unknowns(dxs, dus, jnp.zeros_like(dxs), ds, jnp.zeros_like(ds), none, none)


def with_multipliers(program: Program, scales: Scales, z: Unknowns) -> Unknowns:
    """Return a point with multipliers of dynamics and equalities estimated anew (`first_multipliers`)."""
    e = expansion_in(program.problem, program.rows, program.params, scales, z, exact=False)
    costates, y = first_multipliers(program, e, z.y)
    return replace(z, costates=costates, y=y)


def can_be_infeasible(rows: Rows) -> Any:
    """Return False where a rollout meets every hard row: there are but bounds of inputs and of x_0."""
    hard = rows.inequality | rows.equality
    blocks = rows.split(hard if rows.soft is None else hard & ~rows.soft)
    some = [jnp.any(block) for name, block in blocks.items() if name[:-4] not in ("x0", "u")]
    return jnp.any(jnp.stack(some)) if some else jnp.asarray(False)


def still(e: Expansion) -> Any:
    """Return which states keep their value whatever one does: x+ = x."""
    eye = jnp.eye(e.A.shape[1], dtype=e.A.dtype)[None]
    return jnp.all(eye == e.A, axis=(0, 2)) & jnp.all(e.B == 0, axis=(0, 2))


def _step(program: Program, state: State, y: Any, mu: Any) -> tuple[Unknowns, Any, Any]:
    """Return the direction in states, inputs and slacks, that of the multipliers y, and the damping it took."""
    rows, z, e = program.rows, state.z, state.e
    N, nx = e.at.gaps.shape
    nu = e.rs.shape[1]
    inequality, elastic = rows.inequality, rows.elastic
    s, y_safe = jnp.where(inequality, z.s, 1.0), jnp.where(inequality, y, 1.0)
    c = e.at.c if rows.soft is None else e.at.c - jnp.where(rows.soft, z.e, 0.0)
    r = jnp.where(inequality, c + mu / y_safe - jnp.where(elastic, y_safe, 0.0), c)
    d = jnp.where(inequality, s / y_safe, jnp.where(elastic, 0.0, DELTA)) + jnp.where(elastic, 1.0, 0.0)
    counts = inequality | rows.equality
    weight, r = jnp.where(counts, 1 / d, 0.0), jnp.where(counts, r, 0.0)

    model, factors, damping = _factor(program, e, weight, jnp.maximum(state.shift, LEAST_DAMPING))
    g0, gx, gu = transposed(rows, e.J, y + r * weight, N, nx, nu)
    start = jnp.where(jnp.asarray(program.x0_free), -g0, 0.0)
    gaps = jnp.concatenate([jnp.zeros((1, nx), c.dtype), -e.at.gaps])
    b = Point(start=start, xs=-gx, us=-jnp.pad(gu, ((0, 0), (0, nx))), costates=gaps)
    solved = sweeps.sweep(model, factors, b)
    dxs, dus = solved.xs, solved.us[:, :nu]
    change = along(rows, e.J, dxs, dus)
    dy = weight * (change + r)
    ds = jnp.where(elastic, mu / y_safe - s - s / y_safe * dy, -(c + s) - change)
    none = None if z.e is None else jnp.zeros_like(z.e)
    return Unknowns(dxs, dus, jnp.zeros_like(dxs), jnp.where(inequality, ds, 0.0), dy, none, none), dy, damping


def _factor(program: Program, e: Expansion, weight: Any, first: Any) -> tuple[LQ, Factors, Any]:
    """Return the model of half the squared violation, its factors, and the least damping tried that makes it convex."""
    N, nx = e.at.gaps.shape
    nu = e.rs.shape[1]
    curved = replace(e, W0=e.W0 / VIOLATION_PRICE, W=e.W / VIOLATION_PRICE, Wf=e.Wf / VIOLATION_PRICE)
    own = jnp.broadcast_to(jnp.eye(nx, dtype=weight.dtype), (N, nx, nx))
    price = jnp.diag(jnp.where(still(e), STILL_PRICE, 1.0).astype(weight.dtype))[None]
    wide = ((0, 0), (0, 0), (0, nx))

    def damped(damping: Any) -> LQ:
        model = quadratic_model(program, curved, weight, damping)
        R = jnp.concatenate([jnp.pad(model.R, wide), jnp.pad(own * price, ((0, 0), (0, 0), (nu, 0)))], axis=1)
        return replace(model, B=jnp.concatenate([e.B, own], axis=2), R=R, M=jnp.pad(model.M, wide), r=None)

    def failed(carry: tuple) -> Any:
        return (carry[0].failed_stage >= 0) & (carry[1] <= LARGEST_SHIFT)

    def attempt(carry: tuple) -> tuple:
        damping = jnp.maximum(8 * carry[1], FIRST_SHIFT)
        return sweeps.factor(damped(damping)), damping

    factors, damping = jax.lax.while_loop(failed, attempt, (sweeps.factor(damped(first)), first))
    return damped(damping), factors, damping
