r"""Model predictive control: solve from the measured state at every sample, and apply the first input.

The plan of the last sample, moved on by one step, is the guess, with its multipliers: a few Newton steps suffice. With
`real_time=True` it is one, split in two: `prepare`, between samples, linearizes and factors at the predicted state;
`step`, once the state is measured, is one right-hand side.

References: Rawlings, Mayne and Diehl (2017), Model Predictive Control, chapters 1, 2 and 8; Diehl, Bock and Schloeder
(2005), A real-time iteration scheme for nonlinear optimization in optimal feedback control; Pannocchia and Rawlings
(2003), Disturbance models for offset-free model-predictive control.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl._validate import as_float, as_whole, check_time_limit, check_tree, is_concrete
from optctl.control.model import controlled
from optctl.problem import Problem
from optctl.result import Result, Status
from optctl.shooting.expansion import function_values
from optctl.shooting.interior_point import (
    InteriorPoint,
    Settings,
    check_guess,
    compiled,
    expansion_at,
    iterate,
    run,
    runs_natively,
    start,
)
from optctl.shooting.primal_dual import (
    Program,
    Unknowns,
    factor,
    longest_primal,
    missed,
    moved,
    newton_rows,
    solve_step,
)
from optctl.shooting.rows import PATH, Rows, flatten, make_rows

TIME_SHARE = 0.8
FEASIBLE, FLOOR = 1e-4, 1e-3
"""Violation up to which a plan counts as feasible; least size of the cost that the tolerance refers to: a controller at
rest has a cost of zero, and nothing to compare with."""


@record()
class MPCPlan(Result):
    """What a controller remembers from sample to sample.

    Attributes:
        xs: (N+1, nx) predicted states.
        us: (N, nu) planned inputs.
        u: (nu,) the input applied last.
        predicted: (nx,) the state that the model, offset included, leads to; NaN before the first input.
        offset: (nx,) estimated offset of the model a step.
        status: a `Status` of the last solve; real-time iterations are ITERATION_LIMIT unless they happen to converge.
        iterations: Newton steps of the last solve.
        cost: cost of the plan.
        violation: its largest violation.
        z: the unknowns of the solver.
        ready: what `prepare` computed, or None.
    """

    xs: Any
    us: Any
    u: Any
    predicted: Any
    offset: Any
    status: Any
    iterations: Any
    cost: Any
    violation: Any
    z: Unknowns
    ready: Any = None

    @property
    def stage(self) -> Any:
        """-1: a plan does not tell where it failed."""
        return jnp.full(jnp.shape(self.status), -1)

    @property
    def converged(self) -> Any:
        """True if the last solve came to its tolerance."""
        return jnp.asarray(self.status) == int(Status.SOLVED)


@record()
class MPCRun(Result):
    """A simulated run; it converged if every sample was solved to tolerance.

    Attributes:
        xs: (steps+1, nx) states of the plant.
        us: (steps, nu) inputs.
        latencies: (steps,) seconds from measurement to input.
        iterations: (steps,) Newton steps.
        statuses: (steps,) `Status` values.
        violations: (steps,) largest violation of each plan.
    """

    xs: Any
    us: Any
    latencies: Any
    iterations: Any
    statuses: Any
    violations: Any

    @property
    def status(self) -> Any:
        """The `Status` of the first sample that was not solved to tolerance, else SOLVED."""
        return int(Status.SOLVED if self.converged else self.statuses[self.stage])

    @property
    def stage(self) -> Any:
        """The first sample that was not solved to tolerance, -1 if there is none."""
        bad = np.flatnonzero(np.asarray(self.statuses) != Status.SOLVED)
        return int(bad[0]) if bad.size else -1

    @property
    def converged(self) -> Any:
        """True if every sample was solved to tolerance."""
        return bool(np.all(np.asarray(self.statuses) == Status.SOLVED))

    def explanation(self) -> str:
        """Return how many samples were not solved, and how the first of them ended."""
        bad = int(np.sum(np.asarray(self.statuses) != Status.SOLVED))
        said = f"{bad} of {len(self.us)} samples not solved to tolerance, the first at sample {self.stage}"
        return f"{said}: {Status(self.status).message}" if bad else "every sample solved to tolerance"

    def percentiles(self, *of: float) -> dict[float, float]:
        """Return percentiles of the latency in milliseconds; without arguments the 50th, 90th, 99th and 100th."""
        return {p: float(np.percentile(self.latencies, p)) * 1e3 for p in of or (50, 90, 99, 100)}

    def __repr__(self) -> str:
        latency = ", ".join(f"{p:g} %: {ms:.2f} ms" for p, ms in self.percentiles().items())
        solved = int(np.sum(np.asarray(self.statuses) == Status.SOLVED))
        return (
            f"MPCRun: {len(self.us)} steps, {solved} solved to tolerance,"
            f" {float(np.mean(self.iterations)):.1f} iterations a step, violations up to"
            f" {float(np.max(self.violations)):.1e}; latency {latency}"
        )


class MPC:
    """A model predictive controller: a pair of `init` and `step`, and a simulator around it.

    Args:
        problem: the problem over the horizon; its x0 is replaced by the measured state. Where references change from
            sample to sample, put them into its params and pass those to `step`.
        du_max: a number or (nu,), largest change of the inputs from sample to sample; None is no limit.
        offset_gain: share of the prediction error that goes into the estimated offset of the model, 0 < gain <= 1, a
            number or (nx,). The plans then know a steady disturbance; the error that it causes vanishes where inputs
            and references leave the cost no reason to keep some of it. None assumes that the model is right.
        real_time: one Newton step a sample, cut short where it would cross a bound. It suits models whose derivatives
            take long, plans that change little, and inputs off their bounds; elsewhere the violations of plans tell
            (`MPCRun.violations`).
        time_limit: seconds for a step: it makes as many iterations as should fit (one at least), and applies the better
            of the plan reached and the last one moved on, feasible ones first. None has no limit.
        tolerance: of the solver; None is 1e-6 (1e-3 in float32).
        max_iterations: Newton steps a sample, at most.
        barrier: first barrier parameter of a warm start; with `real_time` the one that it keeps.
        hessian: "exact" or "gauss_newton".

    Raises:
        ValueError: for what the problem cannot be: free x_0, missing sizes, bad options.

    Example:
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]]),
        ...     lambda x, u: x @ x + 0.1 * u @ u,
        ...     horizon=20,
        ...     x0=[1.0, 0.0],
        ...     u_min=-1.0,
        ...     u_max=1.0,
        ... )
        >>> mpc = oc.MPC(problem)
        >>> plan = mpc.init([1.0, 0.0])
        >>> u, plan = mpc.step(plan, [1.0, 0.0])
        >>> print(u.round(3))
        [-1.]
    """

    def __init__(
        self,
        problem: Problem,
        *,
        du_max: Any = None,
        offset_gain: Any = None,
        real_time: bool = False,
        time_limit: float | None = None,
        tolerance: float | None = None,
        max_iterations: int = 100,
        barrier: float = 1e-3,
        hessian: str = "exact",
    ) -> None:
        if not isinstance(problem, Problem):
            raise ValueError(f"`problem` is a {type(problem).__name__}; expected optctl.Problem.")
        nx, nu = problem.dynamics.nx, problem.dynamics.nu
        nx = len(problem.x0) if nx is None and problem.x0 is not None else nx
        if nx is None or not nu:
            raise ValueError("`problem` has dynamics of unknown size, or without inputs; give them nx and nu.")
        if problem.x0_min is not None or problem.x0_max is not None:
            raise ValueError("`problem` bounds a free x_0, but a controller measures it; leave x0_min and x0_max out.")
        sizes = {"du_max": (du_max, nu), "offset_gain": (offset_gain, nx), "barrier": (barrier, None)}
        for name, (value, size) in sizes.items():
            if value is None:
                continue
            value = np.asarray(as_float(value, name))
            if not (value > 0).all() or value.shape not in ((), (size,)):
                many = "" if size is None else f", or ({size},) of them"
                raise ValueError(f"`{name}` is {value}; expected a positive number{many}.")
            if name == "offset_gain" and (value > 1).any():
                raise ValueError(f"`offset_gain` is {value}; expected at most 1, a share of the prediction error.")
        check_time_limit(time_limit)
        if real_time and offset_gain is not None:
            raise ValueError(
                "`offset_gain` needs plans that converge: with real_time=True the estimate and the unfinished iteration"
                " may drive each other apart; leave one out (a converged step of a small model takes about as long)."
            )
        if real_time and time_limit is not None:
            raise ValueError("`time_limit` has no use with real_time=True, one Newton step a sample; leave one out.")
        InteriorPoint(hessian)
        dtype = jnp.zeros(()).dtype if problem.x0 is None else problem.x0.dtype
        tolerance = (1e-3 if dtype == jnp.float32 else 1e-6) if tolerance is None else tolerance
        limit = as_whole(max_iterations, "max_iterations")
        self.nx, self.nu, self.dtype = nx, nu, dtype
        self.problem = controlled(problem, nx, nu, dtype, du_max)
        self.du_max = None if du_max is None else jnp.broadcast_to(jnp.asarray(du_max, dtype), nu)
        self.gain = None if offset_gain is None else jnp.asarray(offset_gain, dtype)
        self.real_time, self.time_limit = real_time, time_limit
        exact = hessian == "exact" and problem.dynamics.twice_differentiable
        self.settings = Settings(
            jnp.asarray(tolerance, dtype), jnp.asarray(barrier, dtype), exact, limit, FLOOR, gains=False
        )
        self.params = problem.params
        self._around: deque[float] = deque(maxlen=15)  # seconds, for the time limit
        self._is_warm = False
        self.model = problem.dynamics

    def init(self, x: Any, params: Any = None, *, us: Any = None, xs: Any = None, u: Any = None) -> MPCPlan:
        """Solve from a first state, to convergence.

        Args:
            x: (nx,) state.
            params: parameters; None takes the problem's.
            us: (N, nu) guess; None is zero.
            xs: (N+1, nx) guess; None rolls out us.
            u: (nu,) the input applied so far, for rate limits; None is zero.
        """
        x = jnp.asarray(as_float(x, "x", (self.nx,)), self.dtype)
        N = self.problem.steps
        u = jnp.zeros(self.nu, self.dtype) if u is None else jnp.asarray(as_float(u, "u", (self.nu,)), self.dtype)
        us = jnp.zeros((N, self.nu), self.dtype) if us is None else jnp.asarray(as_float(us, "us", (N, self.nu)))
        full = (self._params(params), jnp.zeros(self.nx, self.dtype))
        if xs is None:
            xs = self.model.rollout(x, us, full[0])
            xs = jnp.where(jnp.all(jnp.isfinite(xs)), xs, x)
        else:
            xs = jnp.asarray(as_float(xs, "xs", (N + 1, self.nx)), self.dtype).at[0].set(x)
        if self.du_max is not None:
            xs = jnp.concatenate([xs, jnp.concatenate([u[None], us])], axis=1)
        free = (False,) * xs.shape[1]
        settings = replace(self.settings, barrier=None, max_iterations=1000)
        natively = runs_natively(self.problem, xs, us, full, settings)
        program, state = compiled(start, natively)(self.problem, xs, us, full, free, None, settings)
        check_guess(program, state)
        state = run(program, state, settings)
        i, z = int(state.iterations), state.z
        violation = state.history.infeasibility[i]
        plan = MPCPlan(
            z.xs[:, : self.nx], z.us, u, jnp.full_like(x, jnp.nan), full[1], state.status, state.iterations,
            state.e.at.cost, violation, z,
        )  # fmt: skip
        return self.prepare(plan, params, shift=False) if self.real_time else plan

    def _runs_natively(self, z: Unknowns, params: Any) -> bool:
        return runs_natively(self.problem, z.xs, z.us, params, self.settings)

    def _params(self, params: Any) -> Any:
        if params is None:
            return self.params
        params = check_tree(params, "params")
        if jax.tree.structure(params) != jax.tree.structure(self.params):  # type: ignore[operator]
            raise ValueError("`params` differ in structure from those of the problem.")
        for new, old in zip(jax.tree.leaves(params), jax.tree.leaves(self.params), strict=True):
            if jnp.shape(new) != jnp.shape(old):
                raise ValueError(f"`params` hold shape {jnp.shape(new)}; expected {jnp.shape(old)}, as in the problem.")
        return params

    def prepare(self, plan: MPCPlan, params: Any = None, *, shift: bool = True) -> MPCPlan:
        """Do what needs no measurement: move the plan on, linearize, factor. `step` does it where it was not done.

        Args:
            plan: what `step` returned.
            params: parameters of the next sample; None takes the problem's.
            shift: move the plan on by one step.
        """
        full = (self._params(params), plan.offset)
        prepare = compiled(_prepare, is_concrete((plan.z, full)) and self._runs_natively(plan.z, full))
        return replace(plan, ready=prepare(self.problem, full, plan.z, self.settings, shift))

    def step(self, plan: MPCPlan, x: Any, params: Any = None) -> tuple[Any, MPCPlan]:
        """Return the input for the measured state, and the plan.

        Args:
            plan: what `init` or the last `step` returned.
            x: (nx,) measured state.
            params: parameters of this sample, such as a preview of the reference; None takes the problem's. (With
                `real_time` those given to `prepare` count, if it was called.)
        """
        x = jnp.asarray(as_float(x, "x", (self.nx,)), self.dtype)
        if not isinstance(plan, MPCPlan):
            raise ValueError(f"`plan` is a {type(plan).__name__}; expected what `init` or the last `step` returned.")
        offset = plan.offset
        if self.gain is not None:
            error = x - plan.predicted
            offset = offset + self.gain * jnp.where(jnp.isfinite(error), error, 0.0)
        full = (self._params(params), offset)
        last = None if self.du_max is None else plan.u
        if self.real_time:
            if plan.ready is None:
                plan = self.prepare(plan, params)
            feedback = compiled(_feedback, is_concrete((plan.z, full, x)) and self._runs_natively(plan.z, full))
            out = feedback(self.problem, full, plan.ready, x, last, self.settings)
        elif self.time_limit is None:
            natively = is_concrete((plan.z, full, x)) and self._runs_natively(plan.z, full)
            most = self.settings.max_iterations
            *out, _ = compiled(_resolve, natively)(self.problem, full, plan.z, x, last, self.settings, most)
        else:
            out = self._in_time(full, plan.z, x, last)
        z, status, iterations, cost, violation = out
        u = z.us[0]
        if self.du_max is not None:  # a plan that has not converged may miss it a little
            u = jnp.clip(u, plan.u - self.du_max, plan.u + self.du_max)
        predicted = plan.predicted
        if self.gain is not None:
            predicted = _model_step(self.model, full[0], x, u, 0) + offset
        return u, MPCPlan(z.xs[:, : self.nx], z.us, u, predicted, offset, status, iterations, cost, violation, z)

    def _in_time(self, full: Any, z: Unknowns, x: Any, last: Any) -> tuple[Any, ...]:
        """Solve in the time that is left after what surrounds the iterations, by what that took before."""
        if not is_concrete((full, z, x)):
            raise ValueError("`time_limit` needs the clock of the host; leave it out where `step` is traced.")
        assert self.time_limit is not None
        began, most = time.perf_counter(), self.settings.max_iterations
        natively = self._runs_natively(z, full)
        seconds = float(np.median(self._around)) if self._around else 0.0
        left = max(0.0, self.time_limit - seconds) if natively else np.inf
        stop = most if natively or not self._around else int(np.clip(TIME_SHARE * self.time_limit / seconds, 1, most))
        settings = replace(self.settings, seconds=left)
        out = compiled(_resolve, natively)(self.problem, full, z, x, last, settings, stop)
        *out, seconds = out
        if int(out[1]) == Status.ITERATION_LIMIT and int(out[2]) < most:
            out[1] = jnp.asarray(int(Status.TIME_LIMIT))
        took = time.perf_counter() - began
        if self._is_warm:  # the first call compiles
            # Around the native iterations, whose clock is their own; else of an iteration.
            self._around.append(took - float(seconds) if natively else took / max(1, int(out[2])))
        self._is_warm = True
        return tuple(out)

    def simulate(
        self,
        x0: Any,
        steps: int,
        plant: Callable | None = None,
        *,
        noise: Any = None,
        params: Callable | None = None,
        plan: MPCPlan | None = None,
    ) -> MPCRun:
        """Run the controller against a plant.

        Args:
            x0: (nx,) first state.
            steps: number of samples.
            plant: `plant(x, u, k) -> next x`; None is the model itself.
            noise: (steps, nx), added to what the controller measures; None is none.
            params: `params(k)`, the parameters at sample k; None keeps the problem's.
            plan: None starts with `init`.

        Returns:
            A `MPCRun`. The first sample, which may compile, is timed like the others: the controller is run once
            before.
        """
        x = np.asarray(as_float(x0, "x0", (self.nx,)))
        steps = as_whole(steps, "steps")
        noise = np.zeros((steps, self.nx)) if noise is None else np.asarray(as_float(noise, "noise", (steps, self.nx)))
        at = (lambda k: None) if params is None else params
        plan = self.init(x, at(0)) if plan is None else plan
        plant = partial(_model_step, self.model, self._params(at(0))) if plant is None else plant
        jax.block_until_ready(self.step(plan, x, at(0)))
        xs, us, plans, latencies = [x], [], [], []
        for k in range(steps):
            measured = x + noise[k]
            if self.real_time and k:
                plan = jax.block_until_ready(self.prepare(plan, at(k)))
            began = time.perf_counter()
            u, plan = self.step(plan, measured, at(k))
            u = np.asarray(u)
            latencies.append(time.perf_counter() - began)
            x = np.asarray(plant(x, u, k), x.dtype)
            if not np.isfinite(x).all():
                raise ValueError(f"`plant` returns {x} at sample {k}; expected finite numbers.")
            if x.shape != (self.nx,):
                raise ValueError(f"`plant` returns shape {x.shape}; expected ({self.nx},), the next state.")
            xs.append(x)
            us.append(u)
            plans.append(plan)
        return MPCRun(
            np.stack(xs), np.stack(us), np.array(latencies), np.array([int(p.iterations) for p in plans]),
            np.array([int(p.status) for p in plans]), np.array([float(p.violation) for p in plans]),
        )  # fmt: skip


@jax.jit
def _model_step(dynamics: Any, params: Any, x: Any, u: Any, k: Any) -> Any:
    return dynamics.step(jnp.asarray(x), jnp.asarray(u), jnp.asarray(k), params)


def _shift(rows: Rows, z: Unknowns) -> Unknowns:
    """Move all rows of all stages on by one; the last is repeated."""

    def later(values: Any) -> Any:
        return jnp.concatenate([values[1:], values[-1:]])

    def flat(values: Any) -> Any:
        blocks = rows.split(values)
        stages = {name: later(b) if name in PATH or name[:2] in ("x_", "u_") else b for name, b in blocks.items()}
        return flatten(stages, values.dtype)

    e, v = (None, None) if z.e is None else (flat(z.e), flat(z.v))
    return Unknowns(later(z.xs), later(z.us), later(z.costates), flat(z.s), flat(z.y), e, v)


def _rows_at(problem: Problem, params: Any, z: Unknowns) -> Program:
    free = (False,) * z.xs.shape[1]
    shapes = jax.eval_shape(lambda: function_values(problem, z.xs, z.us, params))
    return Program(problem, params, free, make_rows(problem, z.xs, z.us, shapes, free))


def _guess(problem: Problem, params: Any, z: Unknowns, x: Any, last: Any) -> Any:
    """Return the states of a plan that was moved on, from the measured state to where the model leads in the end."""
    N = z.us.shape[0]
    first = x if last is None else jnp.concatenate([x, last])
    end = problem.dynamics.step(z.xs[-2], z.us[-1], jnp.asarray(N - 1), params)
    return z.xs.at[0].set(first).at[-1].set(jnp.where(jnp.all(jnp.isfinite(end)), end, z.xs[-1]))


def _resolve(
    problem: Problem, params: Any, z: Unknowns, x: Any, last: Any, settings: Settings, stop: Any
) -> tuple[Any, ...]:
    """Solve from the plan moved on; where that does not converge, return the better of both, feasible ones first."""
    last_plan = _shift(_rows_at(problem, params, z).rows, z)
    xs, warm = _guess(problem, params, last_plan, x, last), {"costates": last_plan.costates, "y": last_plan.y}
    program, first = start(problem, xs, last_plan.us, params, (False,) * xs.shape[1], warm, settings)
    state = iterate(program, first, settings, stop)
    rows = jnp.stack([jnp.zeros_like(state.iterations), state.iterations])
    violations, costs = state.history.infeasibility[rows], state.history.cost[rows]
    feasible = violations <= FEASIBLE
    better = jnp.where(jnp.all(feasible), costs[0] < costs[1], violations[0] < violations[1])
    back = (state.status != int(Status.SOLVED)) & better
    plan = jax.tree.map(lambda new, old: jnp.where(back, old, new), state.z, first.z)
    row = jnp.where(back, 0, 1)
    kept = _finite_or(last_plan, plan)
    return kept, state.status, state.iterations, costs[row], violations[row], state.seconds


def _finite_or(last: Unknowns, new: Unknowns) -> Unknowns:
    """Return the new plan, or the last one moved on where a measurement or the model was not finite."""
    good = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(new)]))
    return jax.tree.map(lambda new, last: jnp.where(good, new, last), new, last)


def _prepare(problem: Problem, params: Any, z: Unknowns, settings: Settings, shift: bool) -> tuple[Any, ...]:
    """Linearize and factor at the predicted state."""
    program = _rows_at(problem, params, z)
    z = _shift(program.rows, z) if shift else z
    e = expansion_at(program, z, settings)
    _, weight = newton_rows(program.rows, e.at.c, z, settings.barrier)
    return z, e, weight, *factor(program, e, weight, jnp.zeros((), z.xs.dtype))


def _feedback(problem: Problem, params: Any, ready: Any, x: Any, last: Any, settings: Settings) -> tuple[Any, ...]:
    """One right-hand side: move the plan's x_0 to the measured state."""
    z, e, weight, model, factors, _ = ready
    program = _rows_at(problem, params, z)
    rows, mu = program.rows, settings.barrier
    dx0 = (x if last is None else jnp.concatenate([x, last])) - z.xs[0]
    d = solve_step(program, model, factors, e, z, gaps=e.at.gaps, c=e.at.c, weight=weight, mu=mu, dx0=dx0)
    good = (factors.failed_stage < 0) & jnp.all(jnp.isfinite(d.us))
    d = jax.tree.map(lambda leaf: jnp.where(good, leaf, 0.0), d)
    alpha = longest_primal(rows, z, d, 0.99)
    point = moved(rows, z, d, alpha, 0.99, mu)
    violation = jnp.maximum(jnp.max(jnp.abs(e.at.gaps)), jnp.max(jnp.abs(missed(rows, e.at.c, z)), initial=0.0))
    status = jnp.where(good, int(Status.ITERATION_LIMIT), int(Status.STALLED))
    return point, status, jnp.asarray(1), e.at.cost, violation
