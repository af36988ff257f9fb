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

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl._validate import runs_now
from optctl.lq.kkt import times
from optctl.problem import Problem
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
    residuals,
)
from optctl.shooting.certificate import certify_point
from optctl.shooting.expansion import Expansion, Values, evaluate, expand, function_shapes, function_values
from optctl.shooting.feasibility import restore
from optctl.shooting.polish import polish
from optctl.shooting.primal_dual import Program, Unknowns, factor, infeasibility, newton_rows
from optctl.shooting.rows import PATH, TERMINAL, Rows, bound_arrays, flatten, make_rows, residuals_by_name
from optctl.shooting.sensitivity import settle, unknown
from optctl.solution import History, Solution

FIRST_BARRIER = 0.1
BACKENDS = ("auto", "native", "jax")
FIRST_SECONDS, TURN, TURN_SECONDS = 0.5, 64, 0.2
"""Seconds that the first call from the host should take; iterations of the next one, seconds of later ones."""

QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""How XLA is to compile what goes before and after the native iterations: five times faster, and nothing to gain."""


@record(static=("exact", "max_iterations", "backend", "gains"))
class Settings:
    """How to run.

    Attributes:
        tolerance: on the scaled figures.
        barrier: first barrier parameter, None chooses.
        exact: Hessians with the curvature of dynamics and constraints; else Gauss-Newton.
        max_iterations: limit.
        floor: smallest size of the cost that the tolerance refers to; a controller at rest has nothing else.
        backend: one of BACKENDS.
        seconds: what one call of the compiled kernel may take, infinity for no limit.
        gains: compute the feedback gains where the iterations stop; else they are zero.
    """

    tolerance: Any
    barrier: Any
    exact: bool
    max_iterations: int
    floor: Any = 0.0
    backend: str = "auto"
    seconds: Any = np.inf
    gains: bool = True


def start(
    problem: Problem, xs: Any, us: Any, params: Any, x0_free: tuple[bool, ...], warm: dict | None, settings: Settings
) -> tuple[Program, State]:
    """Return the first state: the guess pushed inside its bounds, slacks, and multipliers.

    `warm` holds costates, and multipliers by name (or y, flat), of a similar problem's solution.
    """
    rows = make_rows(problem, xs, us, function_shapes(problem, xs, us, params), x0_free)
    quadratic = native.is_quadratic(problem, xs, us, params, settings.exact)
    program = Program(problem, params, x0_free, rows, quadratic)
    mu = settings.barrier
    margin = 1e-2 if warm is None else jnp.minimum(1e-2, jnp.asarray(mu, xs.dtype))
    xs, us = _push_inside(rows, xs, us, jnp.asarray(x0_free), margin)
    guess = blank(program, xs, us, settings)
    if runs_natively(problem, xs, us, params, settings):
        found = expansion_at(program, guess.z, settings)
        at, slopes = found.at, (found.qs, found.rs)
    else:
        at = evaluate(problem, rows, xs, us, params)
        slopes = jax.grad(lambda xs, us: problem.trajectory_cost(xs, us, params), (0, 1))(xs, us)
    scale = jnp.maximum(1.0, jnp.maximum(largest(slopes[0]), largest(slopes[1])) / 100)
    scale = jnp.where(jnp.isfinite(scale), scale, 1.0)
    if mu is None:
        per_row = jnp.abs(at.cost) / jnp.maximum(1, jnp.sum(rows.inequality))
        mu = FIRST_BARRIER * jnp.maximum(scale, jnp.where(jnp.isfinite(per_row), per_row, 0.0))
    # A warm start that is far from feasible is not that warm.
    mu = jnp.maximum(jnp.asarray(mu, xs.dtype), FIRST_BARRIER * jnp.minimum(1.0, largest(at.gaps)))
    s = jnp.where(rows.inequality, jnp.maximum(-at.c, margin), 1.0)
    y, costates = jnp.where(rows.inequality, mu / s, 0.0), jnp.zeros_like(xs)
    e = v = None
    if rows.soft is not None:
        e = jnp.where(rows.soft, jnp.maximum(at.c, 0.0) + margin, 1.0)  # the violation, and some distance from zero
        s = jnp.where(rows.soft, e - at.c, s)
        y, v = jnp.where(rows.soft, mu / s, y), jnp.where(rows.soft, mu / e, 1.0)
    if warm is not None:
        given = warm["y"] if "y" in warm else _of_rows(rows, warm["multipliers"])
        y = jnp.where(rows.inequality, jnp.clip(given, mu / s / 10, 10 * mu / s), jnp.where(rows.equality, given, 0.0))
        costates = warm["costates"]
    z = Unknowns(xs, us, costates, s, y, e, v)
    theta = infeasibility(rows, at, z)
    state = replace(
        guess, z=z, mu=mu, scale=scale, floor=jnp.asarray(settings.floor, xs.dtype) * scale, theta_first=theta,
        first_cost=at.cost, mark=theta, mu_restore=mu,
        phase=jnp.asarray(PREDICT if quadratic else OPTIMIZE),
    )  # fmt: skip
    return program, state


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
        z=Unknowns(xs, us, jnp.zeros_like(xs), one, flat, one if soft else None, one if soft else None), e=e,
        filter=filters.empty(dtype), history=History(*(column,) * 6), K=jnp.zeros((N, nu, nx), dtype),
        **{name: jnp.asarray(value, dtype if isinstance(value, float) else int) for name, value in NUMBERS.items()},
    )  # fmt: skip


def without_held_rows(
    problem: Problem, us: Any, xs: Any, params: Any, x0_free: tuple[bool, ...], settings: Settings
) -> Problem:
    """Return the problem with those path rows off that nothing free can change at their stage, and that hold there.

    Such are rows that t switches on, and rows of a given x_0. They have no interior where they hold with equality, and
    no multiplier. A row depends on what is free if it is NaN where that is NaN, or (comparisons hide NaN) another
    number at other points. What does not hold stays on.
    """
    names = [name for name in PATH if getattr(problem, name) is not None]
    if not any(getattr(problem, name).takes("t") or not all(x0_free) for name in names):
        return problem
    still, us, xs, params = jax.lax.stop_gradient((problem, us, xs, params))
    free = jnp.asarray(x0_free)

    def at(xs_free: Any, us_free: Any) -> dict[str, Any]:
        xs_free = xs_free.at[0].set(jnp.where(free, xs_free[0], xs[0]))
        if not runs_natively(still, xs, us, params, settings):
            return function_values(still, xs_free, us_free, params)
        rows = make_rows(still, xs, us, function_shapes(still, xs, us, params), x0_free)
        program = Program(still, params, x0_free, rows)
        return rows.split(expansion_at(program, blank(program, xs_free, us_free, settings).z, settings).at.c)

    values = at(jnp.full_like(xs, jnp.nan), jnp.full_like(us, jnp.nan))
    rng = np.random.default_rng(0)
    noise = [jnp.asarray(rng.normal(size=z.shape), z.dtype) for z in (xs, us)]
    others = [at(xs + scale * noise[0], us + scale * noise[1]) for scale in (0.1, 10.0)]
    changes = {}
    for name in names:
        constraint = getattr(problem, name)
        held = values[name] if name.endswith("inequality") else jnp.abs(values[name])
        on = jnp.isnan(values[name]) | (held > settings.tolerance)
        for other in others:
            on = on | (other[name] != values[name])
        counted = True if constraint.on is None else constraint.on
        changes[name] = replace(constraint, on=on & jnp.broadcast_to(counted, on.shape))
    return problem.replace(**changes)


def expansion_at(program: Program, z: Unknowns, settings: Settings) -> Expansion:
    """Return the expansion at a point, by whatever iterates there."""
    problem, params = program.problem, program.params
    if runs_natively(problem, z.xs, z.us, params, settings):
        state = replace(blank(program, z.xs, z.us, settings), z=z)
        return native.iterate(program, state, replace(settings, gains=False), 0).e
    return expand(problem, program.rows, z.xs, z.us, params, z.costates if settings.exact else None, z.y)


def _push_inside(rows: Rows, xs: Any, us: Any, x0_free: Any, margin: Any) -> tuple[Any, Any]:
    """Move a guess into its bounds, a little away from them; onto bounds that are equal."""

    def push(z: Any, stem: str) -> Any:
        lower, upper = bound_arrays(rows, stem, z)
        width = upper - lower
        low = lower + margin * jnp.minimum(jnp.maximum(1.0, jnp.abs(lower)), width)
        high = upper - margin * jnp.minimum(jnp.maximum(1.0, jnp.abs(upper)), width)
        low, high = jnp.where(jnp.isfinite(lower), low, lower), jnp.where(jnp.isfinite(upper), high, upper)
        return jnp.where(lower == upper, lower, jnp.clip(z, low, high))

    first = jnp.where(x0_free, push(xs[0], "x0"), xs[0])
    return jnp.concatenate([first[None], push(xs[1:], "x")]), push(us, "u")


def runs_natively(problem: Problem, xs: Any, us: Any, params: Any, settings: Settings) -> bool:
    """True if the compiled kernel is to iterate.

    Raises:
        ValueError: if it was asked for and cannot.
    """
    if settings.backend == "jax":
        return False
    why = native.reason_against(problem, xs, us, params, settings.exact)
    if why is not None and settings.backend == "native":
        raise ValueError(f"`backend` is 'native', but {why}; use 'auto' or 'jax'.")
    return why is None


def iterate(program: Program, state: State, settings: Settings, stop: Any) -> State:
    """Iterate until the tolerance, a failure, or `stop` iterations."""
    problem, rows, params = program.problem, program.rows, program.params
    if runs_natively(problem, state.z.xs, state.z.us, params, settings):
        return native.iterate(program, state, settings, stop)
    tolerance = settings.tolerance

    def body(carry: tuple[State, Any]) -> tuple[State, Any]:
        state, z = carry[0], carry[0].z
        e = expand(problem, rows, z.xs, z.us, params, z.costates if settings.exact else None, z.y)
        r = residuals(program, state, e)
        state = _remember(replace(state, e=e), r)
        done = (r.stationarity <= tolerance) & (r.infeasibility <= tolerance)
        done = done & (r.most_product <= tolerance * r.size) & (state.phase != RESTORE)
        finite = jnp.isfinite(r.theta) & jnp.isfinite(e.at.cost) & jnp.isfinite(r.stationarity)
        falls = (e.at.cost < -1e10 * (1 + jnp.abs(state.first_cost))) & (r.infeasibility <= 1e-2)
        status = jnp.where(falls, int(Status.UNBOUNDED), state.status)
        status = jnp.where(done, int(Status.SOLVED), status)
        state = replace(state, status=jnp.where(finite, status, int(Status.NON_FINITE)))
        least = 1e-2 * tolerance * jnp.minimum(r.size, state.scale)

        def step(state: State) -> State:
            state = replace(state, iterations=state.iterations + 1)
            steps = [lambda s: optimize(program, s, r, least), lambda s: restore(program, s, r, tolerance)]
            if program.quadratic:
                steps.append(lambda s: predict(program, s, r, least))
            return jax.lax.switch(state.phase, steps, state)

        going = (state.status == int(Status.ITERATION_LIMIT)) & (state.iterations < stop)
        return jax.lax.cond(going, step, lambda state: state, state), going

    state, _ = jax.lax.while_loop(lambda carry: carry[1], body, (state, jnp.asarray(True)))
    solved = state.status == int(Status.SOLVED)
    state = jax.lax.cond(solved, lambda s: polish(program, s, tolerance, settings.exact), lambda s: s, state)
    if not settings.gains:
        return state
    _, weight = newton_rows(rows, state.e.at.c, state.z, state.mu)
    return replace(state, K=factor(program, state.e, weight, state.shift)[1].K)


def _remember(state: State, r: Any) -> State:
    i = state.iterations
    row = (state.e.at.cost, r.stationarity, state.step, r.infeasibility, state.mu, state.shift)
    columns = vars(state.history).values()
    history = History(*(column.at[i].set(value) for column, value in zip(columns, row, strict=True)))
    return replace(state, history=history)


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
    natively = runs_natively(program.problem, state.z.xs, state.z.us, program.params, settings)
    began, turn, done = time.perf_counter(), TURN, 0
    if callback is not None:
        turn = every
    elif time_limit is not None and not natively:
        turn = 1
    while True:
        before, stop = time.perf_counter(), min(last, done + turn)
        if time_limit is not None:
            settings = replace(settings, seconds=max(0.0, time_limit - (before - began)))
        state = compiled(iterate, natively)(program, state, settings, stop)
        status, done = int(state.status), int(state.iterations)
        now = time.perf_counter()
        if callback is not None:
            callback(state)
        if status != Status.ITERATION_LIMIT or done >= last:
            return state
        ahead = 0.0 if natively else now - before  # what another turn would take
        if time_limit is not None and (done < stop or now - began + ahead > time_limit):
            return replace(state, status=jnp.asarray(int(Status.TIME_LIMIT)))
        if callback is None and (natively or time_limit is None):
            turn = int(np.clip(turn * TURN_SECONDS / max(now - before, 1e-6), 1, last))


def finish(program: Program, x0: Any, state: State, settings: Settings, failed: Any) -> Solution:
    """Certify the last point afresh and pack the result, with its derivative in the program (times `failed`, if so)."""
    still, state = jax.lax.stop_gradient((program, state))
    rows, e = still.rows, state.e
    z = replace(state.z, y=jnp.where(rows.inequality | rows.equality, state.z.y, 0.0))
    certificate = certify_point(still, e, z, state.first_cost, state.floor, settings.tolerance)
    converged = certificate.holds & (state.status == int(Status.SOLVED))
    status = jnp.where(~converged & (state.status == int(Status.SOLVED)), int(Status.STALLED), state.status)
    stuck = (status == int(Status.STALLED)) | (status == int(Status.ITERATION_LIMIT))
    fallen = (e.at.cost < -1e6 * (1 + jnp.abs(state.first_cost))) & (certificate.primal_feasibility_scaled <= 1e-2)
    status = jnp.where(stuck & fallen, int(Status.UNBOUNDED), status)
    K = unknown(state.K, (program, x0))
    k = unknown(z.us - times(state.K, z.xs[:-1]), (program, x0))
    best = settle(program, x0, z, e, state.mu, jnp.where(converged, 1.0, failed))
    return Solution(
        xs=best.xs, us=best.us, x0=best.xs[0], params=program.params, costates=best.costates,
        multipliers=_by_name(still, best.y), K=K, k=k, cost=best.cost,
        status=status, converged=converged, iterations=state.iterations, certificate=certificate,
        history=state.history, method="interior_point",
        residuals=residuals_by_name(still.problem, rows, e.at.c, e.at.gaps),
    )  # fmt: skip


def _by_name(program: Program, y: Any) -> dict[str, Any]:
    """Return multipliers by the name of the constraint, shaped like what it bounds; those of bounds are >= 0."""
    problem, ys = program.problem, program.rows.split(y)
    made = {name: value for name, value in ys.items() if name in (*PATH, *TERMINAL)}
    for stem in ("x0", "x", "u"):
        low, high = ys.get(f"{stem}_min"), ys.get(f"{stem}_max")
        # Where both bounds are equal one multiplier of either sign stands for both.
        if low is not None:
            made[f"{stem}_min"] = jnp.maximum(low, 0.0)
        if high is not None:
            made[f"{stem}_max"] = high if low is None else high + jnp.maximum(-low, 0.0)
    for side in ("min", "max"):
        first, rest = made.pop(f"x0_{side}", None), made.get(f"x_{side}")
        own = getattr(problem, f"x0_{side}")
        if rest is not None:
            mine = jnp.zeros_like(rest[0]) if first is None else first
            if own is not None and first is not None:
                bound = jnp.broadcast_to(jnp.asarray(getattr(problem, f"x_{side}")), (len(rest) + 1, len(mine)))[0]
                tighter = (own > bound) if side == "min" else (own < bound)
                made[f"x0_{side}"] = jnp.where(tighter, mine, 0.0)
                mine = jnp.where(tighter, 0.0, mine)
            made[f"x_{side}"] = jnp.concatenate([mine[None], rest])
        elif own is not None:
            made[f"x0_{side}"] = first
    return made


def _of_rows(rows: Rows, multipliers: dict[str, Any]) -> Any:
    """Undo `_by_name`; rows without a multiplier get zero."""
    blocks = {}
    for name, shape in rows.shapes:
        stem, side = name[:-4], name[-3:]
        if name in (*PATH, *TERMINAL):
            blocks[name] = multipliers.get(name, jnp.zeros(shape))
        elif stem == "x0":
            later = multipliers.get(f"x_{side}")
            blocks[name] = multipliers.get(name, jnp.zeros(shape)) + (0.0 if later is None else later[0])
        else:
            value = multipliers.get(name, jnp.zeros(shape))
            blocks[name] = value[-shape[0] :]
    y = flatten(blocks, float)
    # An equality made of two bounds has one multiplier of either sign.
    opposite = {f"{stem}_min": blocks.get(f"{stem}_max") for stem in ("x0", "x", "u")}
    less = {name: jnp.zeros(shape) if opposite.get(name) is None else opposite[name] for name, shape in rows.shapes}
    return jnp.where(rows.equality, y - flatten(less, float), y)


def interior_point(
    problem: Problem,
    us: Any,
    xs: Any,
    params: Any,
    x0_free: tuple[bool, ...],
    settings: Settings,
    *,
    warm: dict | None = None,
    failed_derivative: Any = jnp.nan,
    time_limit: float | None = None,
    callback: Callable | None = None,
    every: int = 1,
) -> Solution:
    """Solve from the guess (xs, us); components of xs[0] that are not free are the given x_0.

    Args:
        problem: the problem, its x_0 field unused.
        us: (N, nu) guess of the inputs.
        xs: (N+1, nx) guess of the states, which need not satisfy the dynamics.
        params: parameters.
        x0_free: which components of x_0 are free.
        settings: how to run.
        warm: None, or a dictionary of costates and multipliers of a similar problem.
        failed_derivative: what the derivative of a point that is no optimum is multiplied by.
        time_limit: seconds.
        callback: called with a `Solution` every `every` iterations.
        every: iterations between calls.
    """
    failed = failed_derivative
    concrete = runs_now((problem, us, xs, params, settings))
    natively = concrete and runs_natively(problem, xs, us, params, settings)
    last = settings.max_iterations
    in_turns = concrete and (callback is not None or time_limit is not None)
    first = last if not concrete else min(last, int(FIRST_SECONDS / _guess_seconds(problem, xs, us)) + 1)
    if not in_turns:
        solution, finite = compiled(_solve, natively)(problem, us, xs, params, x0_free, warm, settings, failed, first)
        if not concrete or (bool(finite) and (int(solution.status) != Status.ITERATION_LIMIT or first == last)):
            return solution
    problem = compiled(without_held_rows, natively)(problem, us, xs, params, x0_free, settings)
    program, state = compiled(start, natively)(problem, xs, us, params, x0_free, warm, settings)
    check_guess(program, state)

    def report(state: State) -> None:
        assert callback is not None
        callback(compiled(finish, natively)(program, xs[0], state, settings, failed))

    report_or_none = None if callback is None else report
    state = run(program, state, settings, time_limit=time_limit, callback=report_or_none, every=every)
    return compiled(finish, natively)(program, xs[0], state, settings, failed)


def _guess_seconds(problem: Problem, xs: Any, us: Any) -> float:
    """Return about how long an iteration takes."""
    return 1e-7 * problem.steps * (xs.shape[1] + us.shape[1]) ** 2


def _solve(
    problem: Problem, us: Any, xs: Any, params: Any, x0_free: tuple[bool, ...], warm: dict | None, settings: Settings,
    failed: Any, stop: Any,
) -> tuple[Solution, Any]:  # fmt: skip
    """Solve in one program; return the solution, and whether all functions were finite at the guess."""
    problem = without_held_rows(problem, us, xs, params, x0_free, settings)
    still = jax.lax.stop_gradient((problem, xs, us, params, warm, settings, stop))
    through = partial(_run_through, x0_free)
    state = (through if runs_natively(problem, xs, us, params, settings) else one_by_one(through))(*still)
    finite = jnp.isfinite(state.theta_first) & jnp.isfinite(state.first_cost)
    rows = make_rows(problem, xs, us, function_shapes(problem, xs, us, params), x0_free)
    return finish(Program(problem, params, x0_free, rows), xs[0], state, settings, failed), finite


def _run_through(
    x0_free: tuple[bool, ...], problem: Any, xs: Any, us: Any, params: Any, warm: Any, settings: Settings, stop: Any
) -> State:
    program, state = start(problem, xs, us, params, x0_free, warm, settings)
    return iterate(program, state, settings, stop)


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


@cache
def compiled(function: Callable, natively: bool) -> Callable:
    """Return a function compiled for calls from the host; quickly, where the kernel does the work."""
    static = [name for name in ("x0_free", "shift") if name in inspect.signature(function).parameters]
    return jax.jit(function, static_argnames=static, compiler_options=QUICKLY if natively else None)


def check_guess(program: Program, state: State) -> None:
    """Raise if a function is not finite at the guess, naming it and the stage."""
    if not runs_now(state) or bool(jnp.isfinite(state.theta_first) & jnp.isfinite(state.first_cost)):
        return
    problem, z, params = program.problem, state.z, program.params
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
