r"""Iterative LQR, alias differential dynamic programming: Newton's method whose rollout is under feedback.

    minimize  J(u) = sum_{t<N} l(x_t, u_t) + lN(x_N),   x_{t+1} = f(x_t, u_t),   x_0 given,   u_min <= u_t <= u_max.

Around a trajectory (xbar, ubar) with costates lambda, steps dx, du obey the linearized dynamics A, B and cost

    sum_t ( 1/2 [dx; du]'[[Q, M], [M', R]][dx; du] + q'dx + r'du ),      q, r = dl,
    [[Q, M], [M', R]] = d2 l + d2 (lambda_{t+1}'f)    exact (Mayne);  without the last term, Gauss-Newton (iLQR).

The backward pass, a call of the core of `optctl.lq`, gives the minimizer as a policy du = k + K dx; the rollout

    u_t = clip(ubar_t + alpha k_t + K_t (x_t - xbar_t), u_min, u_max),    x_{t+1} = f(x_t, u_t)

keeps an unstable plant near the trajectory, where an open loop would not. alpha is halved until the true cost falls by
a share of what the slope promises, q'dx + r'du. Where the exact model is not convex, the Gauss-Newton model
stands in; a multiple of the identity is added to its weights while it is not convex either, or steps are short. With
bounds, the policy is the model's best one within them (`boxed`): projected Newton steps, a few calls of the core.

The slope dJ/du = r + B'lambda of an open loop that is unstable over the horizon is all rounding, dozens of powers of
ten above zero at the optimum. So the promise is summed along dx, which is under feedback, and where a step promises
nothing but rounding, the model's own costates, those of the Riccati sweep, tell what is left of the slopes of the
Lagrangian in all x_t and u_t. The certificate of the solution does the same.

An iteration costs one expansion of all stages, O(N (nx + nu)^3) for the policy, and a rollout for each alpha.

References: Mayne (1966), A second-order gradient method for determining optimal trajectories; Li and Todorov (2004),
Iterative linear quadratic regulator design; Tassa, Mansard and Todorov (2014), Control-limited differential dynamic
programming.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import keep, on_host, put, while_loop
from optctl._record import record
from optctl._validate import check_choice, keep_whole
from optctl.lq.kkt import times, transposed_times
from optctl.lq.model import LQ
from optctl.problem import Problem
from optctl.result import Status
from optctl.solution import BOTTOMLESS, FLOOR, History, cost_size
from optctl.solvers.boxed import FIRST_SHIFT, LARGEST_SHIFT, ROUNDS, SHIFT_FACTOR, Policy, best_policy, unit
from optctl.solvers.iterate import Iterate
from optctl.solvers.method import Method, method
from optctl.solvers.objective import Objective, least_size, projected_gradient, scaled_stationarity

SUFFICIENT = 0.1
"""The share of the promised decrease that a step must bring."""
SHORT_STEP, SHORTEST_STEP = 0.3, 1e-3
"""Steps below the first make the shift grow; below the second none is tried."""
PATIENCE = 5
"""Steps lost in rounding, none of which brings a smaller slope, that end a solve."""


@method(static=("hessian", "max_iterations"))
class ILQR(Method):
    """Iterative LQR: `oc.solve(problem, method=oc.ILQR(hessian="gauss_newton"))`.

    Args:
        hessian: "exact" has the curvature of the dynamics (differential dynamic programming); "gauss_newton" leaves it
            out, which is cheaper a step and takes more of them. None is "exact" where the dynamics have second
            derivatives.
        max_iterations: limit.

    Raises:
        ValueError: for another `hessian`, or a limit that is no whole number.

    Example:
        >>> import optctl as oc
        >>> problem = oc.problems.cartpole_push()
        >>> print(oc.solve(problem, method=oc.ILQR(hessian="gauss_newton")).cost.round(6))
        136.216244
    """

    name = "ilqr"
    summary = "iterative LQR (differential dynamic programming): rollouts under feedback; takes bounds on us"
    takes = "bounds"
    on_host = True
    curved = True

    hessian: str | None = None
    max_iterations: int = 1_000

    def __post_init__(self) -> None:
        check_choice(self.hessian, "hessian", ("exact", "gauss_newton", None))
        keep_whole(self, "max_iterations", least=0)

    def check(self, objective: Objective) -> None:
        """Raise unless the inputs alone are free, and the dynamics have what is asked for."""
        dynamics = objective.problem.dynamics
        kind = type(dynamics).__name__
        if objective.free != ("us",):
            raise ValueError(
                f"method 'ilqr' solves for us alone, with x0 and params given; free is {objective.free}: use"
                " 'interior_point', 'newton_cg' or 'lbfgs'."
            )
        if not dynamics.has_jax_step:
            raise ValueError(
                f"method 'ilqr' rolls out under feedback, which needs a step in JAX; {kind} has none: use"
                " method='lbfgs' or 'gradient_descent'."
            )
        if self.hessian == "exact" and not dynamics.twice_differentiable:
            raise ValueError(f"`hessian` is 'exact', but {kind} has no second derivatives; use 'gauss_newton'.")

    def run(self, objective: Objective, tolerance: Any, us: Any, xs: Any) -> Iterate:
        """Minimize from the guess."""
        exact = self.hessian != "gauss_newton" and objective.problem.dynamics.twice_differentiable
        limit = int(self.max_iterations)
        if on_host(objective.us):
            return natively(objective, tolerance=tolerance, max_iterations=limit, exact=exact)
        return ilqr(objective, objective.us, tolerance=tolerance, max_iterations=limit, exact=exact)


def natively(objective: Objective, *, tolerance: float, max_iterations: int, exact: bool) -> Iterate:
    """Do what `ilqr` does by one call of compiled code (`native/ilqr.h`), from NumPy's arrays to NumPy's."""
    problem, us = objective.problem, objective.us
    lower, upper = (bound.reshape(us.shape) for bound in objective.bounds())
    found = objective.engine.ilqr(
        np.clip(us, lower, upper), objective.x0, objective.params, lower, upper, objective.signs,
        exact=exact and not problem.dynamics.is_linear,
        bounded=problem.u_min is not None or problem.u_max is not None,
        counts=(max_iterations, PATIENCE, ROUNDS),
        numbers=(
            tolerance, SUFFICIENT, SHORT_STEP, SHORTEST_STEP, FIRST_SHIFT, SHIFT_FACTOR, LARGEST_SHIFT, FLOOR,
            BOTTOMLESS,
        ),
    )  # fmt: skip
    cost, iterations, status = found["figures"]
    costs, marks, steps, shifts = found["history"]
    return Iterate(
        found["us"].ravel(), cost, found["slope"].ravel(), np.asarray(int(iterations)), np.asarray(int(status)),
        np.asarray(False), History(costs, marks, steps, regularization=shifts), found["xs"], found["costates"],
        found["K"], found["us"] - times(found["K"], found["xs"][:-1]),
    )  # fmt: skip


@record(static=("exact", "bounded"))
class Program:
    """The problem as the solver sees it.

    Attributes:
        problem: the problem, x_0 given.
        params: its parameters.
        lower: (N, nu) bounds, infinite where there are none.
        upper: (N, nu).
        exact: with the curvature of the dynamics.
        bounded: False if there are no bounds at all.
    """

    problem: Problem
    params: Any
    lower: Any
    upper: Any
    exact: bool
    bounded: bool


@record()
class Point:
    """A trajectory, and the policy that leads on from it.

    Attributes:
        xs: (N+1, nx) states.
        us: (N, nu) inputs.
        cost: J.
        slope: (N, nu), dJ/du.
        policy: the `Policy`.
    """

    xs: Any
    us: Any
    cost: Any
    slope: Any
    policy: Policy


@record()
class Trial:
    """A rollout of the line search.

    Attributes:
        found: True if the cost has fallen enough.
        finite: False if states or cost were not finite, here or at a larger alpha.
        alpha: step length.
        xs: (N+1, nx) states.
        us: (N, nu) inputs.
        cost: J.
    """

    found: Any
    finite: Any
    alpha: Any
    xs: Any
    us: Any
    cost: Any


@record()
class State:
    """What the loop carries.

    Attributes:
        point: the `Point`.
        alpha: first step length to try.
        first_cost: cost of the first guess.
        best: smallest stationarity so far.
        idle: number of steps in a row that were lost in rounding.
        iterations: number of iterations; -1 before the guess is evaluated.
        status: a `Status`; ITERATION_LIMIT while running.
        history: a `History` with room for all iterations.
    """

    point: Point
    alpha: Any
    first_cost: Any
    best: Any
    idle: Any
    iterations: Any
    status: Any
    history: History


@functools.partial(jax.jit, static_argnames=("max_iterations", "exact"))
def ilqr(objective: Objective, us: Any, *, tolerance: Any, max_iterations: int, exact: bool) -> Iterate:
    """Minimize over the inputs from us; return the last iterate, with the policy u = K x + k there."""
    problem, x0 = objective.problem, objective.x0
    lower, upper = (bound.reshape(us.shape) for bound in objective.bounds())
    program = Program(
        problem if problem.x0 is not None else problem.replace(x0=x0), objective.params, lower, upper,
        exact and not problem.dynamics.is_linear, problem.u_min is not None or problem.u_max is not None,
    )  # fmt: skip

    def going(s: State) -> Any:
        return (s.status == int(Status.ITERATION_LIMIT)) & (s.iterations < max_iterations)

    s = first_state(x0, jnp.clip(us, lower, upper), max_iterations)
    s = while_loop(going, lambda s: iterate(program, s, tolerance), s)
    p = s.point
    return Iterate(
        p.us.ravel(), p.cost, p.slope.ravel(), s.iterations, s.status, jnp.asarray(False), s.history, p.xs,
        p.policy.costates, p.policy.K, p.us - times(p.policy.K, p.xs[:-1]),
    )  # fmt: skip


def first_state(x0: Any, us: Any, max_iterations: int) -> State:
    """Return a state whose first step is the rollout of the guess: a policy of zeros, an infinite cost to improve."""
    (N, nu) = us.shape
    number, infinite, none = jnp.zeros((), us.dtype), jnp.full((), jnp.inf, us.dtype), jnp.asarray(0)
    xs, nothing = jnp.broadcast_to(x0, (N + 1, x0.size)), jnp.zeros_like(us)
    still = jnp.zeros_like(xs)
    policy = Policy(jnp.zeros((N, nu, x0.size), us.dtype), still, nothing, still, number, number)
    column = jnp.full(max_iterations + 1, jnp.nan, us.dtype)
    return State(
        Point(xs, us, infinite, nothing, policy), alpha=number + 1, first_cost=infinite,
        best=infinite, idle=none, iterations=none - 1, status=jnp.asarray(int(Status.ITERATION_LIMIT)),
        history=History(column, column, column, regularization=column),
    )  # fmt: skip


def iterate(program: Program, s: State, tolerance: Any) -> State:
    """Follow the policy as far as the cost falls, and make the next policy there."""
    old, first = s.point, s.iterations < 0
    noise = 10 * jnp.finfo(old.us.dtype).eps * jnp.abs(old.cost)
    trial = search(program, old, s.alpha, noise)
    found = trial.found
    start = replace(
        old, xs=keep(found, trial.xs, old.xs), us=keep(found, trial.us, old.us), cost=keep(found, trial.cost, old.cost)
    )
    first_cost = jnp.where(jnp.isinf(s.first_cost), start.cost, s.first_cost)
    first = jnp.asarray(first)
    lost = ~first & (jnp.abs(old.policy.fall) <= noise)
    short = ~(first | lost) & (~found | (trial.alpha < SHORT_STEP))
    growth = jnp.where(short, SHIFT_FACTOR, jnp.where(trial.alpha == 1, 1 / SHIFT_FACTOR, 1.0))
    new, mark, hopeless = expand(program, start, first_cost, growth, lost, tolerance)
    # A point without a slope or a policy is not taken: the old policy is followed less far.
    fine = jnp.isfinite(mark) & jnp.all(jnp.isfinite(new.policy.K)) & jnp.all(jnp.isfinite(new.policy.dus))
    point, mark = keep(fine, new, old), jnp.where(fine, mark, s.best)
    idle = jnp.where(lost & (mark >= s.best), s.idle + 1, 0)
    broken = (~found & ~trial.finite) | ~fine
    stuck = (idle >= PATIENCE) | (~found & (hopeless | ~fine)) | (first & broken)
    status = jnp.where(broken, int(Status.NON_FINITE), int(Status.STALLED))
    status = jnp.where(stuck, status, int(Status.ITERATION_LIMIT))
    held = jnp.all(jnp.isfinite(program.lower) & jnp.isfinite(program.upper))
    falls = (point.cost < -BOTTOMLESS * (1 + jnp.abs(first_cost))) & ~held
    status = jnp.where(falls, int(Status.UNBOUNDED), status)
    status = jnp.where(fine & (mark <= tolerance), int(Status.SOLVED), status)
    i = s.iterations + 1
    row = point.cost, mark, jnp.where(found & fine & ~first, trial.alpha, 0.0), point.policy.shift
    columns = s.history.cost, s.history.stationarity, s.history.step, s.history.regularization
    cost, marks, steps, shifts = (put(column, i, value) for column, value in zip(columns, row, strict=True))
    alpha = jnp.where(fine, jnp.ones_like(s.alpha), trial.alpha / 2)
    history = History(cost, marks, steps, regularization=shifts)
    first_cost = keep(fine, first_cost, s.first_cost)
    return State(point, alpha, first_cost, jnp.minimum(mark, s.best), idle, i, status, history)


def search(program: Program, p: Point, alpha: Any, noise: Any) -> Trial:
    """Halve alpha until the cost falls enough."""

    def attempt(trial: Trial) -> Trial:
        alpha = trial.alpha / 2
        xs, us, cost = follow(program, p, alpha)
        promised = alpha * p.policy.fall
        if program.bounded:  # Clipped inputs bring less: to first order the cost falls by slope'(ubar - u).
            promised = jnp.minimum(promised, jnp.sum(p.slope * (p.us - us)))
        finite = jnp.isfinite(cost) & jnp.all(jnp.isfinite(xs))
        enough = (promised > 0) & (cost <= p.cost - SUFFICIENT * promised + noise)
        return Trial(finite & (enough | jnp.isinf(p.cost)), finite & trial.finite, alpha, xs, us, cost)

    def going(trial: Trial) -> Any:
        return ~trial.found & (trial.alpha / 2 >= SHORTEST_STEP)

    first = Trial(jnp.asarray(False), jnp.asarray(True), 2 * alpha, p.xs, p.us, p.cost)
    return while_loop(going, attempt, first)


def follow(program: Program, p: Point, alpha: Any) -> tuple[Any, Any, Any]:
    """Roll out u = clip(ubar + alpha k + K (x - xbar)), written as feedback around the model's own trajectory."""
    problem, params, policy = program.problem, program.params, p.policy
    aims = (p.xs + alpha * policy.dxs)[:-1], p.us + alpha * policy.dus

    def stage(x: Any, data: tuple) -> tuple:
        t, x_aim, u_aim, K, low, high = data
        u = jnp.clip(u_aim + K @ (x - x_aim), low, high)
        return problem.dynamics.step(x, u, t, params), (x, u)

    # The aims are made outside of the loop: inside, XLA would compute u anew for each of its uses.
    stages = jnp.arange(p.us.shape[0]), *aims, policy.K, program.lower, program.upper
    last, (xs, us) = jax.lax.scan(stage, p.xs[0], stages)
    xs = jnp.concatenate([xs, last[None]])
    return xs, us, (problem.trajectory_cost(xs, us, params) + problem.start_cost(xs[0], params)).astype(us.dtype)


def expand(
    program: Program, p: Point, first_cost: Any, growth: Any, lost: Any, tolerance: Any
) -> tuple[Point, Any, Any]:
    """Return the point with its slope and next policy, its stationarity, and whether no shift will help."""
    full, plain, slope, least_cost = models(program, p.xs, p.us)
    residual = projected_gradient(p.us, slope, program.lower, program.upper)
    scale = cost_size(p.cost, first_cost, least_cost)
    mark = scaled_stationarity(p.us, residual, scale)
    size = unit(plain)
    least = growth * p.policy.shift
    least = jnp.where(growth > 1, jnp.maximum(least, FIRST_SHIFT * size), least)
    # At the solution the policy is to be that of the problem itself.
    least = jnp.where((least < FIRST_SHIFT * size) | (mark <= tolerance), 0.0, least)
    low = program.lower - p.us if program.bounded else None
    policy = best_policy(full, plain, least, slope, low, program.upper - p.us)
    hopeless = policy.shift > LARGEST_SHIFT * size
    policy = jax.tree.map(lambda leaf: leaf.astype(p.us.dtype), policy)
    # Of an unstable plant the slope is all rounding where nothing is left to gain: the model's costates tell.
    in_xs, in_us = (g.astype(p.us.dtype) for g in lagrangian_slopes(plain, policy.costates))
    residual = projected_gradient(p.us, in_us, program.lower, program.upper)
    by_stages = jnp.maximum(scaled_stationarity(p.xs[1:], in_xs, scale), scaled_stationarity(p.us, residual, scale))
    mark = jnp.where(lost, jnp.minimum(mark, by_stages), mark)
    return replace(p, slope=slope, policy=policy), mark, hopeless


def models(program: Program, xs: Any, us: Any) -> tuple[LQ | None, LQ, Any, Any]:
    """Return Newton's model (None with the option "gauss_newton"), the Gauss-Newton model, dJ/du, and `least_size`."""
    problem, params, nx = program.problem, program.params, xs.shape[1]
    plain = LQ.along(problem, xs, us, params)
    later = later_costates(plain)
    slope = plain.r + transposed_times(plain.B, later)
    if not program.exact:
        return None, plain, slope.astype(us.dtype), least_size(problem, xs, us, params)
    costates = jnp.vstack([jnp.zeros_like(plain.qf), later])  # the first one plays no part
    W = problem.dynamics.hessians(xs, us, costates.astype(xs.dtype), params)
    full = replace(plain, Q=plain.Q + W[:, :nx, :nx], R=plain.R + W[:, nx:, nx:], M=plain.M + W[:, :nx, nx:])
    return full, plain, slope.astype(us.dtype), least_size(problem, xs, us, params)


def later_costates(model: LQ) -> Any:
    """Return costates 1..N, (N, nx): the engine's recursion, with the Jacobians that the model needs in any case."""

    def backward(costate: Any, stage: tuple) -> tuple:
        A, q = stage
        return q + A.T @ costate, costate

    return jax.lax.scan(backward, model.qf, (model.A, model.q), reverse=True)[1]


def lagrangian_slopes(model: LQ, costates: Any) -> tuple[Any, Any]:
    """Return the slopes of the Lagrangian in states 1..N, (N, nx), and in the inputs, (N, nu)."""
    later = costates[1:]
    pulled = jnp.vstack([model.q[1:] + transposed_times(model.A, later)[1:], model.qf])
    return pulled - later, model.r + transposed_times(model.B, later)
