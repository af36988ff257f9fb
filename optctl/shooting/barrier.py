r"""One iteration of the interior point method: measure, lower the barrier, Newton's step, filter line search.

Quadratic programs take predictor-corrector steps, which need no line search and fewer iterations.
"""

from dataclasses import MISSING, fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from optctl._arrays import namespace
from optctl._record import record
from optctl.lq import sweeps
from optctl.result import Status
from optctl.shooting import filter as filters
from optctl.shooting.expansion import Expansion, Values
from optctl.shooting.filter import Filter
from optctl.shooting.primal_dual import (
    Program,
    Unknowns,
    barrier_cost,
    barrier_slope,
    factor,
    infeasibility,
    lagrangian_slopes,
    longest_dual,
    longest_primal,
    missed,
    moved,
    near,
    newton_rows,
    price_of_misses,
    products,
    quadratic_model,
    solve_step,
    with_violations,
)
from optctl.shooting.rows import Rows
from optctl.shooting.scaling import Scales, least_size, values_at
from optctl.solution import History, cost_size

OPTIMIZE, RESTORE, PREDICT = 0, 1, 2
KAPPA_EPS, KAPPA_MU, THETA_MU = 10.0, 0.2, 1.5
S_THETA, S_PHI, ETA = 1.1, 2.3, 1e-4
SHORTEST_STEP, HALVINGS = 1e-10, 40
PREDICTIONS = 60
"""Most predictor-corrector steps; a quadratic program that has a solution takes ten to twenty."""
SHORT_STEP, PATIENCE = 0.05, 6
"""After PATIENCE steps shorter than SHORT_STEP the feasibility phase takes over from a point that is far from
feasible: bounds hem the iterates in, and Newton's method crawls along them."""


@record()
class State:
    """What the loop carries: arrays, then numbers, each with the value it begins with.

    A number is listed here and in `native/operands.h`, and nowhere else.

    Attributes:
        z: the `Unknowns`, in the user's units between calls of `iterate`, within it in those of `scales`.
        e: the last `Expansion`, likewise.
        scales: the `Scales`; numbers are always in their units.
        filter: the `Filter`.
        history: a `History` with room for all iterations.
        K: (N, nu, nx) feedback gains of Newton's step at the point where the iterations stopped.
        figures: what the kernel's certificate says of that point, by name; None without it.
        mu: barrier parameter.
        floor: smallest size of the cost that tolerances refer to, whatever the point says (`least_size`).
        theta_first: infeasibility of the guess.
        first_cost: its cost.
        shift: last shift of the weights that was needed (in the feasibility phase: damping).
        phase: OPTIMIZE, RESTORE or PREDICT.
        mark: infeasibility when the feasibility phase began.
        mu_restore: its barrier parameter.
        short_steps: number of short steps in a row.
        iterations: number of iterations; -1 before the guess is evaluated.
        status: a `Status`; ITERATION_LIMIT while running.
        step: length of the last step.
        seconds: what the compiled kernel took; zero without it.
        entries: number of entries that the filter ever got.
        retried: 1 after the feasibility phase has begun anew, from a straight line.
        nudges: how often it has moved off a maximum or saddle of the violation.
    """

    z: Unknowns
    e: Expansion
    scales: Scales
    filter: Filter
    history: History
    K: Any
    figures: Any
    mu: Any = 0.0
    floor: Any = 0.0
    theta_first: Any = 0.0
    first_cost: Any = 0.0
    shift: Any = 0.0
    phase: Any = OPTIMIZE
    mark: Any = 0.0
    mu_restore: Any = 0.0
    short_steps: Any = 0
    iterations: Any = 0
    status: Any = int(Status.ITERATION_LIMIT)
    step: Any = 0.0
    seconds: Any = 0.0
    entries: Any = 0
    retried: Any = 0
    nudges: Any = 0


NUMBERS = {field.name: field.default for field in fields(State) if field.default is not MISSING}


@record()
class Residuals:
    """How far a point is from optimality: cost and its size, scaled figures, products s y and their sum, and theta."""

    cost: Any
    size: Any
    stationarity: Any
    infeasibility: Any
    least_product: Any
    most_product: Any
    sum_of_products: Any
    theta: Any


def largest(values: Any) -> Any:
    """Return the largest absolute value, 0 of none."""
    xp = namespace(values)
    return xp.max(xp.abs(values), initial=0.0)


def residuals(program: Program, state: State, e: Expansion) -> Residuals:
    """Measure a point; stationarity and infeasibility scaled."""
    z, rows = state.z, program.rows
    in_start, in_x, in_u = lagrangian_slopes(program, e, z.costates, z.y)
    worst = [largest(in_start * jnp.maximum(1.0, jnp.abs(z.xs[0]))), largest(in_x * jnp.maximum(1.0, jnp.abs(z.xs)))]
    worst.append(largest(in_u * jnp.maximum(1.0, jnp.abs(z.us))))
    if rows.soft is not None:
        worst.append(largest(jnp.where(rows.soft, rows.l1 + rows.l2 * z.e - z.y - z.v, 0.0)))
    cost = e.at.cost + price_of_misses(rows, z)
    one = jnp.ones((), cost.dtype)
    least = jnp.maximum(least_size(e, z.xs, z.us, one, one), state.floor)
    size = cost_size(cost, state.first_cost, least)
    row_misses = missed(rows, e.at.c, z)
    least, most, total = products(rows, z)
    return Residuals(
        cost=cost, size=size, stationarity=jnp.max(jnp.stack(worst)) / size,
        infeasibility=jnp.maximum(largest(e.at.gaps / jnp.maximum(1.0, jnp.abs(z.xs[1:]))), largest(row_misses)),
        least_product=least, most_product=most, sum_of_products=total,
        theta=jnp.sum(jnp.abs(e.at.gaps)) + jnp.sum(jnp.abs(row_misses)),
    )  # fmt: skip


def remember(state: State, r: Residuals) -> State:
    """Write a point into the history."""
    i = state.iterations
    row = (r.cost * state.scales.cost, r.stationarity, state.step, r.infeasibility, state.mu, state.shift)
    columns = vars(state.history).values()
    history = History(*(column.at[i].set(value) for column, value in zip(columns, row, strict=True)))
    return replace(state, history=history)


def next_barrier(state: State, r: Residuals, least: Any) -> Any:
    """Lower mu as often as the point solves the barrier problem well enough."""

    def off(mu: Any) -> Any:
        spread = jnp.maximum(r.most_product - mu, jnp.where(r.least_product < jnp.inf, mu - r.least_product, 0.0))
        return jnp.maximum(jnp.maximum(r.stationarity * r.size, r.infeasibility), spread)

    def lower(mu: Any) -> Any:
        return jnp.maximum(least, jnp.minimum(KAPPA_MU * mu, mu**THETA_MU))

    return jax.lax.while_loop(lambda mu: (mu > least) & (off(mu) <= KAPPA_EPS * mu), lower, state.mu)


def optimize(program: Program, state: State, r: Residuals, least: Any) -> State:
    """One Newton step on the barrier problem."""
    rows, z, e = program.rows, state.z, state.e
    mu = next_barrier(state, r, least)
    lowered = mu < state.mu
    entries = jnp.where(lowered, 0, state.entries)
    state = replace(state, filter=state.filter.clear(lowered), mu=mu, entries=entries)
    _, weight = newton_rows(rows, e.at.c, z, mu)
    model, factors, shift = factor(program, e, weight, state.shift)

    def direction(gaps: Any, c: Any) -> Unknowns:
        return solve_step(program, model, factors, e, z, gaps=gaps, c=c, weight=weight, mu=mu)

    d = direction(e.at.gaps, e.at.c)
    found, point, at, falls, alpha = search(program, state, r, d, direction)
    found = found & (factors.failed_stage < 0)
    phi = barrier_cost(rows, e.at.cost, z, mu)
    # A step along which the barrier cost must fall makes no entry; any other one does.
    enters = ~(falls & found)
    short = jnp.where(found & (alpha < SHORT_STEP), state.short_steps + 1, 0)
    crawling = (short >= PATIENCE) & (r.infeasibility > 1e-3)
    leave = ~found | crawling
    mu_restore = half_violation(program, e, z)
    point, at = jax.tree.map(lambda new, old: jnp.where(found, new, old), (point, at), (z, e.at))
    s = jnp.where(rows.inequality & rows.elastic, central_slacks(rows, at.c, point, mu_restore), point.s)
    y = near(point.y, s, mu_restore, rows.inequality, factor=100.0)
    y = jnp.where(rows.inequality & rows.elastic, mu_restore / s, y)
    violations = with_violations(rows, at, replace(point, s=s, y=y))
    return replace(
        state,
        z=jax.tree.map(lambda new, old: jnp.where(leave, new, old), violations, point),
        filter=state.filter.add(r.theta, phi, enters, state.entries),
        entries=state.entries + enters,
        shift=jnp.where(leave, 0.0, shift),
        step=jnp.where(found, alpha, 0.0),
        phase=jnp.where(leave, RESTORE, OPTIMIZE),
        mark=jnp.where(leave, r.theta, state.mark),
        mu_restore=jnp.where(leave, mu_restore, state.mu_restore),
        short_steps=jnp.where(leave, 0, short),
    )


def predict(program: Program, state: State, r: Residuals, least: Any) -> State:
    """One predictor-corrector step on a convex quadratic program; where it fails, the other steps take over.

    The predictor aims at products s y = 0. How far it gets tells what to aim at,
    mu = (mean after / mean before)^3 mean, and the products ds dy that it leaves behind are taken into account.

    Reference: Mehrotra (1992), On the implementation of a primal-dual interior point method.
    """
    rows, z, e = program.rows, state.z, state.e
    count = jnp.maximum(1, jnp.sum(rows.inequality) + (0 if rows.soft is None else jnp.sum(rows.soft)))
    zero = jnp.zeros_like(state.mu)
    _, weight = newton_rows(rows, e.at.c, z, zero)
    model = quadratic_model(program, e, weight, zero)
    factors = sweeps.factor(model)

    def direction(mu: Any, nu: Any) -> Unknowns:
        return solve_step(program, model, factors, e, z, gaps=e.at.gaps, c=e.at.c, weight=weight, mu=mu, nu=nu)

    def mean_product(alpha: Any, alpha_y: Any, d: Unknowns) -> Any:
        total = jnp.sum(jnp.where(rows.inequality, (z.s + alpha * d.s) * (z.y + alpha_y * d.y), 0.0))
        if rows.soft is not None:
            total += jnp.sum(jnp.where(rows.soft, (z.e + alpha * d.e) * (z.v + alpha_y * d.v), 0.0))
        return total / count

    d = direction(zero, zero)
    mean = mean_product(zero, zero, d)
    after = mean_product(longest_primal(rows, z, d, 1.0), longest_dual(rows, z, d, 1.0), d)
    mu = jnp.maximum(least, mean * (after / jnp.where(mean > 0, mean, 1.0)) ** 3)
    nu = mu if rows.soft is None else mu - d.e * d.v
    d = direction(mu - jnp.where(rows.inequality, d.s * d.y, 0.0), nu)
    share = jnp.maximum(0.99, 1 - mu)
    alpha = jnp.minimum(longest_primal(rows, z, d, share), longest_dual(rows, z, d, share))
    found = (factors.failed_stage < 0) & (alpha > SHORT_STEP) & (state.iterations <= PREDICTIONS)
    found = found & jnp.all(jnp.isfinite(d.us)) & jnp.isfinite(mu)
    point = jax.tree.map(lambda now, step: now + alpha * step, z, d)
    mu = jnp.where(found, mu, jnp.maximum(state.mu, jnp.where(jnp.isfinite(mean), mean, 0.0)))
    central = replace(z, y=jnp.where(rows.inequality, mu / jnp.where(rows.inequality, z.s, 1.0), z.y))
    if rows.soft is not None:
        central = replace(central, v=jnp.where(rows.soft, mu / jnp.where(rows.soft, z.e, 1.0), 1.0))
    return replace(
        state,
        z=jax.tree.map(lambda new, old: jnp.where(found, new, old), point, central),
        mu=mu,
        phase=jnp.where(found, PREDICT, OPTIMIZE),
        step=jnp.where(found, alpha, 0.0),
    )


def half_violation(program: Program, e: Expansion, z: Unknowns) -> Any:
    """Return half the squared violation for each inequality: on its scale the feasibility phase begins its barrier."""
    half = 0.5 * (jnp.sum(e.at.gaps**2) + jnp.sum(missed(program.rows, e.at.c, z) ** 2))
    return half / jnp.maximum(1, jnp.sum(program.rows.inequality))


def central_slacks(rows: Rows, c: Any, z: Unknowns, mu: Any) -> Any:
    """Return slacks that are best for a row by itself in the feasibility phase: (c + s) s = mu.

    Those that the iterations leave behind may be all but zero where the row is far from held.
    """
    c = c if rows.soft is None else c - jnp.where(rows.soft, z.e, 0.0)
    root = jnp.sqrt(c**2 + 4 * mu)
    return jnp.where(c > 0, 2 * mu / (root + jnp.abs(c)), (root - c) / 2)


def search(
    program: Program, state: State, r: Residuals, d: Unknowns, direction: Any
) -> tuple[Any, Unknowns, Values, Any, Any]:
    """Backtrack until the filter accepts.

    Returns:
        Whether it did, the point, the values there, whether phi fell, and the step length.
    """
    rows, z, mu, at = program.rows, state.z, state.mu, state.e.at
    share = jnp.maximum(0.99, 1 - mu)
    theta_least, theta_most = (k * jnp.maximum(1.0, state.theta_first) for k in (1e-4, 1e4))
    phi, slope = barrier_cost(rows, at.cost, z, mu), barrier_slope(rows, state.e, z, d, mu)
    rounding = 10 * jnp.finfo(phi.dtype).eps * (jnp.abs(phi) + mu)

    def test(alpha: Any, v: Values, point: Unknowns) -> tuple[Any, Any, Any]:
        theta, phi_new = infeasibility(rows, v, point), barrier_cost(rows, v.cost, point, mu) - rounding
        must_fall = (slope < 0) & (alpha * (-slope) ** S_PHI > r.theta**S_THETA) & (r.theta <= theta_least)
        falls = phi_new - phi <= ETA * alpha * slope
        better = (theta <= (1 - filters.GAMMA_THETA) * r.theta) | (phi_new <= phi - filters.GAMMA_PHI * r.theta)
        fine = jnp.where(must_fall, falls, better) & (theta <= theta_most)
        fine = fine & jnp.isfinite(theta) & jnp.isfinite(phi_new) & state.filter.accepts(theta, phi_new)
        return fine, theta, must_fall & falls

    alpha_first = longest_primal(rows, z, d, share)

    def body(carry: tuple) -> tuple:
        k, alpha, d_now, corrected, *_ = carry
        point = moved(rows, z, d_now, alpha, share, mu)
        v = values_at(program.problem, rows, program.params, state.scales, point)
        found, theta, falls = test(alpha, v, point)

        def correct(_: Any) -> tuple:
            extra = missed(rows, v.c, point) - (1 - alpha) * missed(rows, at.c, z)
            d_new = direction(alpha * at.gaps + v.gaps, at.c + extra)
            return longest_primal(rows, z, d_new, share), d_new, jnp.asarray(True)

        def halve(_: Any) -> tuple:
            return jnp.where(corrected, alpha_first, alpha) / 2, d, jnp.asarray(False)

        spoiled = ~found & (k == 0) & (theta >= r.theta)
        return k + 1, *jax.lax.cond(spoiled, correct, halve, None), found, point, v, falls, alpha

    def going(carry: tuple) -> Any:
        k, alpha, _, corrected, found, *_ = carry
        return ~found & (k < HALVINGS) & ((k == 0) | corrected | (alpha >= shortest))

    shortest = _shortest(slope, r.theta, theta_least)
    no = jnp.asarray(False)
    first = jnp.asarray(0), alpha_first, d, no, no, z, at, no, jnp.zeros_like(phi)
    *_, found, point, v, falls, alpha = jax.lax.while_loop(going, body, first)
    return found, point, v, falls, alpha


def _shortest(slope: Any, theta: Any, theta_least: Any) -> Any:
    """Return the step length below which the filter cannot be satisfied."""
    fall = jnp.where(slope < 0, -slope, 1.0)
    bound = jnp.minimum(filters.GAMMA_THETA, jnp.where(slope < 0, filters.GAMMA_PHI * theta / fall, jnp.inf))
    switch = jnp.where((slope < 0) & (theta <= theta_least), theta**S_THETA / fall**S_PHI, jnp.inf)
    return jnp.maximum(0.05 * jnp.minimum(bound, switch), SHORTEST_STEP)
