r"""A primal-dual interior point method by multiple shooting: states and inputs are unknowns, the dynamics constraints.

    minimize  J(x, u) - mu sum log s    subject to  f(x_t, u_t) = x_{t+1},  c(x, u) + s = 0,  h(x, u) = 0,

for a falling sequence of mu. Each Newton step is one linear-quadratic problem (`primal_dual`), one call of the core of
`optctl.lq`. A filter line search (`barrier`) decides on the step: a trial point must lower the barrier cost or the
infeasibility theta, the sum of all violations. A step that a curved constraint spoils gets one second-order correction.
Where no step is acceptable, or steps stay short, a feasibility phase (`feasibility`) looks for a point that is; if it
ends where the violation cannot be lowered, the problem is locally infeasible. Quadratic programs take
predictor-corrector steps, which need no line search.

`iterate` is the definition of all this. On a CPU the same iterations are one call of a compiled kernel (`native`), if
the problem's functions have tapes. From the host it is called for some iterations at a time, so that callbacks, time
limits and Ctrl-C get their turn.

References: Waechter and Biegler (2006), On the implementation of an interior-point filter line-search algorithm for
large-scale nonlinear programming; Mehrotra (1992), On the implementation of a primal-dual interior point method; Rao,
Wright and Rawlings (1998), Application of interior-point methods to model predictive control.
"""

import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import constant, either, namespace, on_host, to_device, to_host
from optctl._door import numbers
from optctl._record import changed, record
from optctl._validate import is_concrete, runs_now
from optctl.lq import sweeps
from optctl.lq.kkt import times
from optctl.problem import Problem, parts_of
from optctl.result import Status
from optctl.shooting import filter as filters
from optctl.shooting import native
from optctl.shooting.barrier import (
    NUMBERS,
    OPTIMIZE,
    PREDICT,
    RESTORE,
    State,
    largest,
    optimize,
    predict,
    remember,
    residuals,
)
from optctl.shooting.certificate import certify_point
from optctl.shooting.expansion import Expansion, Values, expand, function_shapes, function_values
from optctl.shooting.feasibility import restore, still
from optctl.shooting.lift import level
from optctl.shooting.linked import Origin, Settled, linked
from optctl.shooting.polish import polish, settle_warm
from optctl.shooting.primal_dual import (
    Program,
    Unknowns,
    infeasibility,
    newton_rows,
    quadratic_model,
    solve_step,
)
from optctl.shooting.rows import (
    MARGIN,
    PATH,
    TERMINAL,
    Rows,
    all_counted,
    bound_arrays,
    bounded_values,
    can_be_unbounded,
    flatten,
    inside,
    make_rows,
    residuals_by_name,
    row_numbers,
)
from optctl.shooting.scaling import (
    SMALL,
    Scales,
    choose,
    expansion_in,
    no_scales,
    scale_expansion,
    scale_point,
    scale_prices,
    scale_values,
    sizes_within_reach,
    steepness,
)
from optctl.shooting.sensitivity import settle, unknown
from optctl.solution import BOTTOMLESS, FALLEN, GROWN, Certificate, History, Solution, cost_size, reachable
from optctl.tape import memories, memories_now

FIRST_BARRIER = 0.1
ACTIVE = 1e-9
"""Multipliers above this share of the greatest are those of active rows."""
BACKENDS = ("auto", "native", "jax")
FIRST_SECONDS, TURN, TURN_SECONDS = 0.5, 64, 0.2
"""Seconds that the first call from the host should take; iterations of the next one, seconds of later ones."""


@record(static=("exact", "max_iterations", "backend", "gains", "warm"))
class Settings:
    """How to run.

    Attributes:
        tolerance: on the scaled figures.
        barrier: first barrier parameter, None chooses.
        exact: Hessians with the curvature of dynamics and constraints; else Gauss-Newton.
        max_iterations: limit.
        floor: smallest size of the cost that the tolerance refers to, on the scale of the iterations; a controller at
            rest has nothing else.
        scale: None, or a dictionary with the user's scales of the states "x" and of the inputs "u".
        backend: one of BACKENDS.
        seconds: what one call of the compiled kernel may take, infinity for no limit.
        gains: compute the feedback gains where the iterations stop; else they are zero.
        warm: take the active rows for those of the solution (`settle_warm`); `start` does so.
    """

    tolerance: Any
    barrier: Any
    exact: bool
    max_iterations: int
    floor: Any = 0.0
    scale: Any = None
    backend: str = "auto"
    seconds: Any = np.inf
    gains: bool = True
    warm: bool = False


def start(program: Program, xs: Any, us: Any, warm: dict | None, settings: Settings) -> State:
    """Return the first state: the guess pushed inside its bounds, slacks, and multipliers.

    `warm` holds costates, and multipliers by name (or y, flat), of a similar problem's solution. Where a few steps from
    its active rows reach the solution, the state is SOLVED; else iterations start from the guess as if it were cold.
    """
    if program.natively:
        return native.begin(program, xs, us, _of_warm(program, warm), settings, -1)
    guess, rows, quadratic = (xs, us), program.rows, program.quadratic
    z = blank(program, xs, us, settings).z
    e = expansion_at(program, z, settings)
    scales = _scales(program, e, z, settings)
    xs = _closed(program, xs, e)
    xs, us = _push_inside(rows, xs, us, jnp.asarray(program.x0_free), scales)
    empty = replace(blank(program, xs, us, settings), scales=scales)
    moved = jnp.any(xs != guess[0]) | jnp.any(us != guess[1])
    e = jax.lax.cond(moved, lambda z: expansion_at(program, z, settings), lambda z: e, empty.z)
    at = scale_values(scales, e.at)
    mu = settings.barrier
    if mu is None:
        per_row = jnp.abs(at.cost) / jnp.maximum(1, jnp.sum(rows.inequality))
        mu = FIRST_BARRIER * jnp.maximum(1.0, jnp.where(jnp.isfinite(per_row), per_row, 0.0))
    mu = jnp.asarray(mu, xs.dtype)
    s = jnp.where(rows.inequality, jnp.maximum(-at.c, MARGIN), 1.0)
    y, costates = jnp.where(rows.inequality, mu / s, 0.0), jnp.zeros_like(xs)
    miss = v = None
    if rows.soft is not None:
        miss = jnp.where(rows.soft, jnp.maximum(at.c, 0.0) + MARGIN, 1.0)  # the violation, and some distance from zero
        s = jnp.where(rows.soft, miss - at.c, s)
        y, v = jnp.where(rows.soft, mu / s, y), jnp.where(rows.soft, mu / miss, 1.0)
    z = Unknowns(xs / scales.x[None], us / scales.u[None], costates, s, y, miss, v)
    theta = infeasibility(rows, at, z)
    floor = jnp.asarray(settings.floor, xs.dtype)
    state = replace(
        empty, z=scale_point(scales.inverse(), z), mu=mu, floor=floor, theta_first=theta, first_cost=at.cost,
        mark=theta, mu_restore=mu, phase=jnp.asarray(PREDICT if quadratic else OPTIMIZE),
    )  # fmt: skip
    if warm is None:
        return state
    settled = settle_first(program, state, *guess, warm, settings)
    again = replace(state, iterations=settled.iterations, history=settled.history)
    good = settled.status == int(Status.SOLVED)
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), settled, again)


def make_program(
    problem: Problem, xs: Any, us: Any, params: Any, x0_free: tuple[bool, ...], settings: Settings
) -> Program:
    """Return the problem as the solver sees it, with its tapes if the compiled kernel is to iterate.

    Raises:
        ValueError: if the kernel was asked for and cannot.
    """
    tapes, natively = native.find_tapes(problem, xs, us, params, settings)
    if tapes is not None and natively and on_host(xs):
        read, _ = memories(tapes.every, parts_of(problem, params))
        return Program(problem, params, x0_free, _rows_on_host(tapes, problem, xs, us, x0_free), tapes, True, read)
    shapes = function_shapes(problem, xs, us, params) if tapes is None else tapes.shapes
    rows = make_rows(problem, xs, us, shapes, x0_free)
    return Program(problem, params, x0_free, rows, tapes, natively)


def _rows_on_host(tapes: native.Tapes, problem: Problem, xs: Any, us: Any, x0_free: tuple[bool, ...]) -> Rows:
    """Return the rows of NumPy's arrays, made once for the same bounds and prices."""

    def make() -> Rows:
        own = jax.tree.map(np.array, problem)  # a copy, which no one changes
        return make_rows(own, np.array(xs), np.array(us), tapes.shapes, x0_free)

    return tapes.remember((xs.shape, us.shape, x0_free, *row_numbers(problem)), make)


def program_on_host(
    seen: native.Seen, leaves: list[Any], problem: Problem, xs: Any, us: Any, params: Any, x0_free: tuple[bool, ...]
) -> Program:
    """Return the same for NumPy's arrays; rows are made once for the same bounds and prices.

    The arrays of the problem itself may still be JAX's: what is read of it later are bounds.
    """
    tapes = seen.tapes
    assert tapes is not None

    rows = _rows_on_host(tapes, problem, xs, us, x0_free)
    read, _ = memories_now(tapes.every, [leaves[k] for k in seen.uniform])
    return Program(problem, params, x0_free, rows, tapes, True, read)


def _scales(program: Program, e: Expansion, z: Unknowns, settings: Settings) -> Scales:
    """Return scales from an expansion at the guess z, and from a step where the guess says nothing.

    It is Newton's step on the cost and the equalities alone: it tells where all is small, in metres instead of
    micrometres, and how steep a cost gets that is flat at the guess.
    """
    rows = program.rows
    scales = choose(rows, z.xs, z.us, e, settings.scale)

    def step(_: Any) -> Scales:
        # With states as large as the inputs make them: else the equalities would hardly be felt.
        felt = choose(rows, z.xs, z.us, e, settings.scale, least=0.0)
        here, near = scale_point(felt.inverse(), z), scale_expansion(felt, rows, e)
        _, weight = newton_rows(rows, near.at.c, here, jnp.zeros_like(e.at.cost))
        model = quadratic_model(program, near, weight, jnp.zeros_like(e.at.cost))
        factors = sweeps.factor(model)
        d = solve_step(program, model, factors, near, here, gaps=near.at.gaps, c=near.at.c, weight=weight, mu=0.0)
        sizes = {"x": scales.x, "u": scales.u}
        fine = (factors.failed_stage < 0) & jnp.all(jnp.isfinite(d.xs)) & jnp.all(jnp.isfinite(d.us))
        if settings.scale is None:
            within = sizes_within_reach(felt, here, d, sizes)
            sizes = {name: jnp.where(fine, within[name], size) for name, size in sizes.items()}
        dz = jnp.concatenate([d.xs[:-1], d.us], axis=1)
        slopes = jnp.concatenate([near.qs[:-1], near.rs], axis=1) + jnp.einsum("tij,tj->ti", near.W, dz)
        grown = jnp.concatenate([sizes["x"] / felt.x, sizes["u"] / felt.u])
        later = jnp.where(fine, largest(slopes * grown[None]) * felt.cost, 0.0)
        return choose(rows, z.xs, z.us, e, sizes, later)

    said = jnp.maximum(largest(z.xs / scales.x[None]), largest(z.us / scales.u[None]))
    says_nothing = (said < SMALL) | (steepness(e, scales.x, scales.u) < SMALL)
    says_nothing = says_nothing & jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(e)]))
    return jax.lax.cond(says_nothing, step, lambda _: scales, None)


def settle_first(program: Program, cold: State, xs: Any, us: Any, warm: dict, settings: Settings) -> State:
    """Return where a few steps from the active rows of a similar solution lead: SOLVED, if they are nearly right."""
    warm = _of_warm(program, warm)
    z = _holding(program.rows, xs, us, warm["y"], replace(cold.z, costates=warm["costates"]), cold.scales.rows)
    return iterate(program, replace(cold, z=z), replace(settings, warm=True), settings.max_iterations // 2)


def _of_warm(program: Program, warm: dict | None) -> Any:
    """Return costates and the flat multipliers of the rows of a similar solution, or None."""
    if warm is None or "y" in warm:
        return warm
    return {"costates": warm["costates"], "y": _of_rows(program.rows, warm["multipliers"])}


def _holding(rows: Rows, xs: Any, us: Any, y: Any, z: Unknowns, scale: Any) -> Unknowns:
    """Return a trajectory with slacks that are zero where multipliers y say that a row is active, and nowhere else.

    Multipliers are compared in the units of the iterations: `scale` is what they multiply rows by.
    """
    size = y / scale
    xp = namespace(y)
    held = rows.inequality & (size > ACTIVE * largest(xp.where(rows.inequality, size, 0.0)))
    y = xp.where(rows.inequality & ~held, 0.0, xp.where(rows.inequality | rows.equality, y, 0.0))
    s, e = xp.where(held, 0.0, 1.0), None
    if rows.soft is not None:
        e = xp.where(rows.soft & ~(held & (y >= (1 - ACTIVE) * rows.l1)), 0.0, 1.0)
    return replace(z, xs=xs, us=us, s=s, y=y, e=e)


def _closed(program: Program, xs: Any, e: Expansion) -> Any:
    """Return the guess with constant states and clocks, x+ = x + c, as their dynamics have them from x_0 on.

    No step of the iterations opens a gap of linear dynamics again.
    """
    if program.tapes is None or not any(program.tapes.linear_states):
        return xs
    moves = still(e) & jnp.asarray(program.tapes.linear_states)
    closed = jnp.where(moves[None] & jnp.isfinite(e.at.gaps), jnp.cumsum(e.at.gaps, axis=0), 0.0)
    return jnp.concatenate([xs[:1], xs[1:] + closed])


def blank(program: Program, xs: Any, us: Any, settings: Settings) -> State:
    """Return a state at a trajectory, with nothing known about it."""
    rows = program.rows
    N, nx, nu = len(us), xs.shape[1], us.shape[1]
    z, dtype = nx + nu, xs.dtype
    m = int(np.sum([np.prod(shape, dtype=int) for _, shape in rows.shapes], dtype=int))
    flat, number = jnp.zeros(m, dtype), jnp.zeros((), dtype)
    J = {
        name: jnp.zeros((*shape, z if name in PATH else nx), dtype)
        for name, shape in rows.shapes
        if name in (*PATH, *TERMINAL)
    }
    e = Expansion(
        Values(number, jnp.zeros((N, nx), dtype), flat), xs[0], xs, us, jnp.zeros((N, nx, nx), dtype),
        jnp.zeros((N, nx, nu), dtype), J, *(jnp.zeros(shape, dtype) for shape in ((nx, nx), (N, z, z), (nx, nx))),
    )  # fmt: skip
    column = jnp.full(settings.max_iterations + 1, jnp.nan, dtype)
    one, soft = flat + 1, rows.soft is not None
    return State(
        z=Unknowns(xs, us, jnp.zeros_like(xs), one, flat, *(one if soft else None for _ in "ev")), e=e,
        scales=no_scales(nx, nu, m, xs),
        filter=filters.empty(xs), history=History(*(column,) * 6), K=jnp.zeros((N, nu, nx), dtype), figures=None,
        **{name: jnp.asarray(value, dtype if isinstance(value, float) else int) for name, value in NUMBERS.items()},
    )  # fmt: skip


def without_held_rows(program: Program, xs: Any, us: Any, settings: Settings) -> Program:
    """Return the program with those path rows off that nothing free can change at their stage, and that hold there.

    Such are rows that t switches on, rows of a given x_0, and rows and bounds of later states that no input reaches by
    then: a position two steps from its force. They have no interior where they hold with equality, and no multiplier;
    rows with a price have both, and stay. A row depends on what is free if it is NaN where that is NaN, or (comparisons
    hide NaN) another number at other points; a bound, in the latter case alone (zeros in data make 0 NaN of nothing).
    What does not hold stays on. A row that depends on something in a small region alone may be missed: `finish` looks
    at all rows again.
    """
    xp = namespace(xs)
    problem, rows = program.problem, program.rows
    given, free = not all(program.x0_free), xp.asarray(program.x0_free)
    names = [name for name in PATH if getattr(problem, name) is not None]
    bounds = {name: bound for name, bound in rows.bounds.items() if given and name[:-4] == "x"}
    if not (bounds or any(getattr(problem, name).takes("t") or given for name in names)):
        return program
    still, xs, us = constant((program, xs, us), xs)

    def at(first: Any, us_free: Any) -> tuple[Any, Any]:
        return native.roll(still, xp.where(free, first, xs[0]), us_free), us_free

    def reached() -> bool:
        one, other = [native.step(still, xp.where(free, k * noise[0], xs[0]), k * noise[1][0], 0) for k in (1, 2)]
        return bool((one != other).all())

    def values_at(xs_free: Any, us_free: Any) -> dict[str, Any]:
        values = native.row_values(still, xs_free, us_free) if names else {}
        return values | bounded_values(bounds, xs_free, us_free)

    noise = [xp.asarray(drawn, z.dtype) for drawn, z in zip(_noise(xs[0].shape, us.shape), (xs, us), strict=True)]
    if not names and on_host(xs) and reached():
        return program  # inputs reach all states at once
    points = [at(xs[0] + scale * noise[0], us + scale * noise[1]) for scale in (0.1, 10.0, 1.0)]
    *others, values = [values_at(*point) for point in points]
    if names:
        values |= native.row_values(still, *at(xp.full_like(xs[0], xp.nan), xp.full_like(us, xp.nan)))
    on = {name: xp.ones(shape, bool) for name, shape in rows.shapes}
    for name in (*names, *bounds):
        held = xp.abs(values[name]) if name.endswith("_equality") else values[name]
        if name in bounds:
            stays = rows.split(rows.equality)[name]
        else:
            stays = xp.isfinite(getattr(problem, name).prices(held.shape, held.dtype)[0])
        on[name] = ~(held <= settings.tolerance) | ~xp.isfinite(held) | stays
        for other in others:
            on[name] = on[name] | (other[name] != values[name])
    kept = flatten(on, bool, xs) | ~(rows.inequality | rows.equality)
    if kept.all() if on_host(kept) else False:
        return program

    def without() -> Rows:
        off = (rows.inequality | rows.equality) & ~kept
        return replace(rows, inequality=rows.inequality & kept, equality=rows.equality & kept, off=off)

    if not on_host(kept):
        return replace(program, rows=without())
    return replace(program, rows=program.tapes.remember((rows, kept.tobytes()), without))


@lru_cache(maxsize=16)
def _noise(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in shapes]


def expansion_at(program: Program, z: Unknowns, settings: Settings) -> Expansion:
    """Return the expansion at a point, by whatever iterates there."""
    problem, params = program.problem, program.params
    if program.natively:
        return native.expansion(program, z, settings)
    return expand(problem, program.rows, z.xs, z.us, params, z.costates if settings.exact else None, z.y)


def _push_inside(rows: Rows, xs: Any, us: Any, x0_free: Any, scales: Scales) -> tuple[Any, Any]:
    """Move a guess into its bounds, a little away from them; onto bounds that are equal."""

    def push(z: Any, stem: str) -> Any:
        size = jnp.broadcast_to(scales.u if stem == "u" else scales.x, z.shape)
        return inside(z, *bound_arrays(rows, stem, z), size)

    first = jnp.where(x0_free, push(xs[0], "x0"), xs[0])
    return jnp.concatenate([first[None], push(xs[1:], "x")]), push(us, "u")


def iterate(program: Program, state: State, settings: Settings, stop: Any) -> State:
    """Iterate until the tolerance, a failure, or `stop` iterations."""
    problem, rows, params = program.problem, program.rows, program.params
    settings = replace(settings, tolerance=reachable(settings.tolerance, state.z.xs.dtype))
    if program.natively:
        return native.iterate(program, state, settings, stop)
    tolerance, scales = settings.tolerance, state.scales
    program = replace(program, rows=scale_prices(scales, rows))
    count = jnp.maximum(10, jnp.sum(rows.inequality) + (0 if rows.soft is None else jnp.sum(rows.soft)))
    state = replace(state, z=scale_point(scales, state.z))

    def body(carry: tuple[State, Any]) -> tuple[State, Any]:
        state = carry[0]
        e = expansion_in(problem, rows, params, scales, state.z, settings.exact)
        r = residuals(program, state, e)
        state = remember(replace(state, e=e), r)
        done = (r.stationarity <= tolerance) & (r.infeasibility <= tolerance)
        done = done & (r.sum_of_products <= tolerance * r.size) & (state.phase != RESTORE)
        finite = jnp.isfinite(r.theta) & jnp.isfinite(e.at.cost) & jnp.isfinite(r.stationarity)
        falls = (e.at.cost < -BOTTOMLESS * (1 + jnp.abs(state.first_cost))) & (r.infeasibility <= 1e-2)
        falls = falls & can_be_unbounded(rows, program.x0_free)
        status = jnp.where(falls, int(Status.UNBOUNDED), state.status)
        status = jnp.where(done, int(Status.SOLVED), status)
        state = replace(state, status=jnp.where(finite, status, int(Status.NON_FINITE)))
        least = 0.1 * tolerance * jnp.minimum(r.size, 1.0) / count

        def step(state: State) -> State:
            state = replace(state, iterations=state.iterations + 1)
            steps = [lambda s: optimize(program, s, r, least), lambda s: restore(program, s, r, tolerance)]
            if program.quadratic:
                steps.append(lambda s: predict(program, s, r, least))
            return jax.lax.switch(state.phase, steps, state)

        going = (state.status == int(Status.ITERATION_LIMIT)) & (state.iterations < stop)
        return jax.lax.cond(going, step, lambda state: state, state), going

    if settings.warm:
        state = settle_warm(program, state, tolerance, settings.exact, stop)
    else:
        state, _ = jax.lax.while_loop(lambda carry: carry[1], body, (state, jnp.asarray(True)))
        solved = state.status == int(Status.SOLVED)
        state = jax.lax.cond(solved, lambda s: polish(program, s, tolerance, settings.exact), lambda s: s, state)
    K = state.K
    if settings.gains:
        _, weight = newton_rows(program.rows, state.e.at.c, state.z, state.mu)
        factors = sweeps.factor(quadratic_model(program, state.e, weight, jnp.zeros_like(state.mu)))
        K = jnp.where(factors.failed_stage < 0, factors.K * jnp.outer(scales.u, 1 / scales.x)[None], jnp.nan)
    back = scales.inverse()
    return replace(state, z=scale_point(back, state.z), e=scale_expansion(back, rows, state.e), K=K)


def run(
    program: Program,
    state: State,
    settings: Settings,
    *,
    time_limit: float | None = None,
    callback: Callable | None = None,
    every: int = 1,
) -> State:
    """Iterate to the end, in turns. The kernel minds the time by itself; without it, limits make turns of one."""
    last = settings.max_iterations
    natively = program.natively
    began, turn, done = time.perf_counter(), TURN, int(state.iterations)
    if state.status != Status.ITERATION_LIMIT:
        return state
    if callback is not None:
        turn = every
    elif time_limit is not None and not natively:
        turn = 1
    while True:
        before, stop = time.perf_counter(), min(last, done + turn)
        if time_limit is not None:
            settings = replace(settings, seconds=max(0.0, time_limit - (before - began)))
        state = now(iterate, program, state, settings, stop)
        status, done = int(state.status), int(state.iterations)
        after = time.perf_counter()
        if callback is not None:
            callback(state)
        if status != Status.ITERATION_LIMIT or done >= last:
            return state
        ahead = 0.0 if natively else after - before  # what another turn would take
        if time_limit is not None and (done < stop or after - began + ahead > time_limit):
            return replace(state, status=jnp.asarray(int(Status.TIME_LIMIT)))
        if callback is None and (natively or time_limit is None):
            turn = int(np.clip(turn * TURN_SECONDS / max(after - before, 1e-6), 1, last))


def finish(
    program: Program, x0: Any, state: State, settings: Settings, failed: Any, origin: Origin | None = None
) -> Solution:
    """Certify the last point afresh and pack the result, with its derivative in the program (times `failed`, if so).

    Rows that were switched off have to hold like all others. On the host the derivative is that in the `origin`.
    """
    xp = namespace(x0)
    still, state = constant((program, state), x0)
    state = _leveled(still, state, settings)
    rows, e = still.rows, state.e
    z = changed(state.z, y=xp.where(rows.inequality | rows.equality, state.z.y, 0.0))
    certificate, strict = certified(still, state, z, settings)
    converged = certificate.holds & (state.status == int(Status.SOLVED))
    status = state.status
    if not (on_host(converged) and converged):
        status = _why(still, state, z, converged, settings)
    K, k = unknown((state.K, z.us - times(state.K, z.xs[:-1])), (program, x0))
    mu, factor_of = state.mu * state.scales.cost, xp.where(converged, 1.0, failed)
    best = settle(program, x0, z, e, mu, factor_of, settings.exact)
    solution = Solution(
        xs=best.xs, us=best.us, x0=best.xs[0], params=program.params, costates=best.costates,
        multipliers=_by_name(still, best.y), K=K, k=k, cost=best.cost,
        status=status, converged=converged, iterations=state.iterations, certificate=certificate,
        history=state.history, method="interior_point",
        residuals=residuals_by_name(still.problem, all_counted(rows), e.at.c, e.at.gaps),
        strict_complementarity=strict,
    )  # fmt: skip
    if origin is None:
        return solution
    by_name = functools.partial(_by_name, still, at=best.y)
    return linked(solution, Settled(still, z, e, mu, factor_of, settings), origin, by_name)


def _why(program: Program, state: State, z: Unknowns, converged: Any, settings: Settings) -> Any:
    """Return the status of a point, which says why it is no solution where the certificate does not hold."""
    xp, history = namespace(z.xs), state.history
    status = xp.where(~converged & (state.status == int(Status.SOLVED)), int(Status.STALLED), state.status)
    stuck = (status == int(Status.STALLED)) | (status == int(Status.ITERATION_LIMIT))
    # Iterates that were feasible say more than where the last one happens to be.
    far_below = -FALLEN * (state.scales.cost + xp.abs(state.first_cost * state.scales.cost))
    fallen = xp.any((history.cost < far_below) & (history.infeasibility <= 1e-2))
    grown = xp.maximum(largest(z.xs / state.scales.x[None]), largest(z.us / state.scales.u[None])) > GROWN
    fallen = fallen & grown & can_be_unbounded(program.rows, program.x0_free)
    status = xp.where(stuck & fallen, int(Status.UNBOUNDED), status)
    met = xp.any(history.infeasibility <= settings.tolerance)
    return xp.where((status == int(Status.INFEASIBLE)) & met, int(Status.STALLED), status)


def certified(program: Program, state: State, z: Unknowns, settings: Settings) -> tuple[Certificate, Any]:
    """Return the certificate of the point z of a state, and how strictly its rows are active or not."""
    tolerance = namespace(state.z.xs).asarray(settings.tolerance, state.z.xs.dtype)
    if state.figures is not None:
        figures = dict(state.figures)
        strict = figures.pop("strict_complementarity")
        return Certificate(**figures, tolerance=tolerance), strict
    first_cost, floor = state.first_cost * state.scales.cost, state.floor * state.scales.cost
    certificate = certify_point(
        program, state.e, z, state.scales, settings.scale, first_cost=first_cost, floor=floor, tolerance=tolerance
    )
    size = cost_size(state.e.at.cost, first_cost, floor)
    return certificate, strict_complementarity(program.rows, z, size)


def _leveled(program: Program, state: State, settings: Settings) -> State:
    """Return the state with parameters behind the states that are the same everywhere, and its values there."""
    xs = level(program.problem, state.z.xs)
    if xs is state.z.xs:
        return state

    def again(state: State) -> State:
        z = replace(state.z, xs=xs)
        if program.natively:
            return native.measured(program, replace(state, z=z), settings)
        return replace(state, z=z, e=expansion_at(program, z, settings))

    return either(state.status == int(Status.SOLVED), lambda state: state, again, state)


def strict_complementarity(rows: Rows, z: Unknowns, size: Any) -> Any:
    """Return the smallest over the inequalities of max(s, y/size), and of max(e, v/size) of soft ones."""
    pairs = [(rows.inequality, z.s, z.y)]
    if rows.soft is not None:
        pairs.append((rows.soft, z.e, z.v))
    least = [jnp.min(jnp.where(on, jnp.maximum(a, b / size), jnp.inf), initial=jnp.inf) for on, a, b in pairs]
    return jnp.min(jnp.stack(least))


def _by_name(program: Program, y: Any, at: Any = None) -> dict[str, Any]:
    """Return multipliers by the name of the constraint, shaped like what it bounds; those of bounds are >= 0.

    With multipliers `at`, it is the derivative there, along y.
    """
    xp = namespace(y)
    signs = {} if at is None else program.rows.split(xp.sign(at))

    def positive(sign: float, name: str) -> Any:
        part = sign * ys[name]
        return xp.maximum(part, 0.0) if at is None else (1 + sign * signs[name]) / 2 * part

    problem, ys = program.problem, program.rows.split(y)
    made = {name: value for name, value in ys.items() if name in (*PATH, *TERMINAL)}
    for stem in ("x0", "x", "u"):
        low, high = ys.get(f"{stem}_min"), ys.get(f"{stem}_max")
        # Where both bounds are equal one multiplier of either sign stands for both.
        if low is not None:
            made[f"{stem}_min"] = positive(1.0, f"{stem}_min")
        if high is not None:
            made[f"{stem}_max"] = high if low is None else high + positive(-1.0, f"{stem}_min")
    for side in ("min", "max"):
        first, rest = made.pop(f"x0_{side}", None), made.get(f"x_{side}")
        own = getattr(problem, f"x0_{side}")
        if rest is not None:
            mine = xp.zeros_like(rest[0]) if first is None else first
            if own is not None and first is not None:
                bound = xp.broadcast_to(xp.asarray(getattr(problem, f"x_{side}")), (len(rest) + 1, len(mine)))[0]
                tighter = (own > bound) if side == "min" else (own < bound)
                made[f"x0_{side}"] = xp.where(tighter, mine, 0.0)
                mine = xp.where(tighter, 0.0, mine)
            made[f"x_{side}"] = xp.concatenate([mine[None], rest])
        elif own is not None:
            made[f"x0_{side}"] = first
    return made


def _of_rows(rows: Rows, multipliers: dict[str, Any]) -> Any:
    """Undo `_by_name`; rows without a multiplier get zero."""
    xp = namespace(rows.equality)
    blocks = {}
    for name, shape in rows.shapes:
        stem, side = name[:-4], name[-3:]
        if name in (*PATH, *TERMINAL):
            blocks[name] = multipliers.get(name, xp.zeros(shape))
            if blocks[name].shape != shape:
                got = blocks[name].shape
                raise ValueError(f"`warm_start` has multipliers of `{name}` of shape {got}; expected {shape}.")
        elif stem == "x0":
            later = multipliers.get(f"x_{side}")
            blocks[name] = multipliers.get(name, xp.zeros(shape)) + (0.0 if later is None else later[0])
        else:
            value = multipliers.get(name, xp.zeros(shape))
            blocks[name] = value[-shape[0] :]
    y = flatten(blocks, float, rows.equality)
    # An equality made of two bounds has one multiplier of either sign.
    opposite = {f"{stem}_min": blocks.get(f"{stem}_max") for stem in ("x0", "x", "u")}
    less = {name: xp.zeros(shape) if opposite.get(name) is None else opposite[name] for name, shape in rows.shapes}
    return xp.where(rows.equality, y - flatten(less, float, rows.equality), y)


def interior_point(
    problem: Problem,
    us: Any,
    xs: Any,
    params: Any,
    x0_free: tuple[bool, ...],
    settings: Settings,
    *,
    x0: Any,
    roll_out: bool = False,
    warm: dict | None = None,
    failed_derivative: Any = jnp.nan,
    time_limit: float | None = None,
    callback: Callable | None = None,
    between: int = 1,
) -> Solution:
    """Solve from the guess (xs, us); components of xs[0] that are not free are those of the given x_0.

    Args:
        problem: the problem, its x_0 field unused.
        us: (N, nu) guess of the inputs.
        xs: (N+1, nx) guess of the states, which need not satisfy the dynamics.
        params: parameters.
        x0_free: which components of x_0 are free.
        settings: how to run.
        x0: the given x_0, which `xs` begins with, as numbers where it is being differentiated.
        roll_out: take for the states where the inputs lead from xs[0].
        warm: None, or a dictionary of costates and multipliers of a similar problem.
        failed_derivative: what the derivative of a point that is no optimum is multiplied by.
        time_limit: seconds.
        callback: called with a `Solution`, as it stands.
        between: iterations between calls.
    """
    failed, origin = failed_derivative, None
    leaves, structure = jax.tree.flatten((problem, params))
    given = leaves, us, xs, x0, warm, settings, failed
    known = numbers(given)
    at_once, differentiated = runs_now(known), not is_concrete(given)
    seen = None
    if at_once:
        of, theirs = jax.tree.unflatten(structure, known[0])
        seen = native.look(known[0], structure, of, known[2], known[1], theirs, settings)
    if seen is not None and seen.here:
        if differentiated:
            origin = Origin(leaves, structure, x0)
            leaves, us, xs, _, warm, settings, failed = known
            problem, params = jax.tree.unflatten(structure, leaves)
        if problem.function_constraints:  # whose prices are read
            problem = to_host(problem)
        us, xs, (params, warm, settings) = np.asarray(us), np.asarray(xs), to_host((params, warm, settings))
        call, program = on_numbers, program_on_host(seen, leaves, problem, xs, us, params, x0_free)
    else:
        at_once = at_once and not differentiated
        if not is_concrete(x0):
            xs = jnp.asarray(xs).at[0, : x0.size].set(x0)
        problem, us, xs, params, warm, settings = to_device((problem, us, xs, params, warm, settings))
        call, program = now, now(make_program, problem, xs, us, params, x0_free, settings)
    if roll_out:
        xs = call(_first_states, program, us, xs)
    last = settings.max_iterations
    in_turns = at_once and (callback is not None or time_limit is not None)
    first = last if not at_once else min(last, int(FIRST_SECONDS / _guess_seconds(problem, xs, us)) + 1)
    if not in_turns:
        solution, finite = call(_solve, program, us, xs, warm, settings, failed, first, origin)
        if at_once and bool(finite) and int(solution.status) == Status.STALLED:
            # The scales of the guess may not be those of where it led.
            there = numbers((solution.us, solution.xs))
            again, _ = call(_solve, program, *to_host(there), None, settings, failed, first, origin)
            solution = again if bool(again.converged) else solution
        if not at_once or (bool(finite) and (int(solution.status) != Status.ITERATION_LIMIT or first == last)):
            return solution
    if call is on_numbers:
        program = replace(program, problem=to_host(program.problem))  # so that `now` sees NumPy's arrays alone
    program = now(without_held_rows, program, xs, us, settings)
    state = now(start, program, xs, us, warm, settings)
    check_guess(program, state)

    def report(state: State) -> None:
        assert callback is not None
        callback(now(finish, program, xs[0], state, settings, failed))

    report_or_none = None if callback is None else report
    state = run(program, state, settings, time_limit=time_limit, callback=report_or_none, every=between)
    return now(finish, program, xs[0], state, settings, failed, origin)


def _first_states(program: Program, us: Any, xs: Any) -> Any:
    """Roll out the guess from xs[0]; where the states run away, stay there."""
    xp = namespace(xs)
    program, x0, us = constant((program, xs[0], us), xs)
    rolled = native.roll(program, x0, us)
    most = 1e4 * (1 + xp.max(xp.abs(x0)))
    if on_host(rolled) and np.abs(rolled).max() <= most:
        return rolled
    tame = xp.isfinite(rolled) & (xp.abs(rolled) <= most)
    tame = xp.cumprod(xp.all(tame, axis=1))[:, None] == 1
    return xp.concatenate([xs[:1], xp.where(tame, rolled, x0[None])[1:]])


def _guess_seconds(problem: Problem, xs: Any, us: Any) -> float:
    """Return about how long an iteration takes."""
    return 1e-7 * problem.steps * (xs.shape[1] + us.shape[1]) ** 2


def _solve(
    program: Program,
    us: Any,
    xs: Any,
    warm: dict | None,
    settings: Settings,
    failed: Any,
    stop: Any,
    origin: Origin | None = None,
) -> tuple[Solution, Any]:
    """Solve in one program; return the solution, and whether all functions were finite at the guess."""
    program = without_held_rows(program, xs, us, settings)
    still = constant((program, xs, us, warm, settings, stop), xs)
    state = (_run_through if program.natively else one_by_one(_run_through))(*still)
    finite = namespace(xs).isfinite(state.theta_first + state.first_cost)
    return finish(program, xs[0], state, settings, failed, origin), finite


def _run_through(program: Program, xs: Any, us: Any, warm: Any, settings: Settings, stop: Any) -> State:
    if program.natively:
        return native.begin(program, xs, us, _of_warm(program, warm), settings, stop)
    state = start(program, xs, us, warm, settings)
    if warm is None:
        return iterate(program, state, settings, stop)
    unsolved = state.status == int(Status.ITERATION_LIMIT)
    return jax.lax.cond(unsolved, lambda s: iterate(program, s, settings, stop), lambda s: s, state)


def one_by_one(function: Callable) -> Callable:
    """Return a function that solves a batch one after the other on a CPU, each with its own iterations and branches.

    A loop over a whole batch would take every branch of every iteration for all, until the last has converged.
    """
    if jax.default_backend() != "cpu":
        return function
    batched = jax.custom_batching.custom_vmap(function)

    @batched.def_vmap
    def rule(size: int, in_batched: Any, *arguments: Any) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(arguments)
        varies = jax.tree.leaves(in_batched)

        def one(some: list) -> Any:
            mine = iter(some)
            mixed = [next(mine) if v else leaf for leaf, v in zip(leaves, varies, strict=True)]
            return batched(*jax.tree.unflatten(structure, mixed))

        result = jax.lax.map(one, [leaf for leaf, v in zip(leaves, varies, strict=True) if v])
        return result, jax.tree.map(lambda leaf: True, result)

    return batched


def now(function: Callable, *arguments: Any) -> Any:
    """Call a function from the host: as it is where its arrays are NumPy's, else compiled by XLA."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arguments)):
        return _compiled(function)(*arguments)
    return on_numbers(function, *arguments)


def on_numbers(function: Callable, *arguments: Any) -> Any:
    """Call a function of NumPy arrays, which may be inf or NaN."""
    with np.errstate(all="ignore"):
        return function(*arguments)


@cache
def _compiled(function: Callable) -> Callable:
    static = [name for name in ("x0_free", "shift") if name in inspect.signature(function).parameters]
    return jax.jit(function, static_argnames=static)


QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""How XLA is to compile what surrounds the kernel: five times faster, and nothing to gain."""


@cache
def around_the_kernel(function: Callable) -> Callable:
    """Return a function compiled for many calls, in which the kernel does the work: a call costs less than NumPy's."""
    static = [name for name in ("shift",) if name in inspect.signature(function).parameters]
    return jax.jit(function, static_argnames=static, compiler_options=QUICKLY)


def check_guess(program: Program, state: State) -> None:
    """Raise if a function is not finite at the guess, naming it and the stage."""
    if not runs_now(state) or bool(np.isfinite(state.theta_first) & np.isfinite(state.first_cost)):
        return
    problem, z, params = to_device((program.problem, state.z, program.params))  # what indexes by stage needs JAX's
    values = {
        "f": problem.dynamics.map_stages(lambda x, u, t: problem.dynamics.step(x, u, t, params), z.xs, z.us),
        "stage_cost": problem.dynamics.map_stages(lambda x, u, t: problem.cost_at(x, u, t, params), z.xs, z.us),
        **function_values(problem, z.xs, z.us, params),
        "terminal_cost": problem.end_cost(z.xs[-1], params),
        "initial_cost": problem.start_cost(z.xs[0], params),
    }
    for name, value in values.items():
        bad = ~np.isfinite(np.asarray(value))
        if bad.any():
            stage = f" at stage {int(np.argwhere(bad)[0][0])}" if name in ("f", "stage_cost", *PATH) else ""
            raise ValueError(
                f"`{name}` is inf or NaN{stage} of the guess (us, xs); start where the functions are defined, or keep"
                " them defined, such as a square root that is smooth below zero."
            )
