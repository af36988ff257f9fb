r"""Model predictive control: solve from the measured state at every sample, and apply the first input.

The plan of the last sample, moved on by one step, is the guess: where its active rows are nearly those of the new plan,
a Newton step or two suffice, without a barrier and on any scale of the cost; else the sample is solved as if cold. With
`real_time=True` it is one, split in two: `prepare`, between samples, linearizes and factors at the predicted state;
`step`, once the state is measured, is one right-hand side.

References: Rawlings, Mayne and Diehl (2017), Model Predictive Control, chapters 1, 2 and 8; Diehl, Bock and Schloeder
(2005), A real-time iteration scheme for nonlinear optimization in optimal feedback control; Yang and Biegler (2013),
Advanced-multi-step nonlinear model predictive control, on clipping; Pannocchia and Rawlings (2003), Disturbance models
for offset-free model-predictive control.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import keep, namespace, on_host, own, put, ravel, to_device, to_host, while_loop
from optctl._record import record
from optctl._validate import (
    as_float,
    as_whole,
    cast,
    check_flag,
    check_function,
    check_kind,
    check_positive,
    check_shape,
    check_tree,
    default_float,
    is_concrete,
    runs_now,
)
from optctl.control.model import controlled, spread
from optctl.problem import Problem, warn_of_changes
from optctl.result import Result, Status
from optctl.shooting import native
from optctl.shooting.interior_point import (
    Settings,
    around_the_kernel,
    check_guess,
    expansion_at,
    iterate,
    make_program,
    now,
    run,
    settle_first,
    start,
)
from optctl.shooting.native import find_tapes, run_on_host
from optctl.shooting.primal_dual import (
    Program,
    Unknowns,
    factor,
    longest_primal,
    missed,
    moved,
    newton_rows,
    price_of_misses,
    solve_step,
)
from optctl.shooting.rows import PATH, Rows, bound_arrays, flatten
from optctl.shooting.scaling import given_scales
from optctl.solvers.constrained import InteriorPoint

TIME_SHARE, MAX_ITERATIONS, REAL_TIME_BARRIER = 0.8, 100, 1e-3
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

    def __repr__(self) -> str:
        if np.ndim(self.status) or not is_concrete(self.status):
            return f"MPCPlan of {self.us.shape[-2]} stages"
        status = Status(int(self.status)).name.lower().replace("_", " ")
        figures = f"cost {float(self.cost):.6g}, violation {float(self.violation):.1e}"
        return f"MPCPlan of {len(self.us)} stages: {status}, {figures}"

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
            sample to sample, put them into its params and pass those to `step`. Path rows that no input enters are not
            asked of the measured state, as bounds of states are not: a limit that is exceeded already is met again
            as soon as it can be.
        du_max: a number or (nu,), largest change of the inputs from sample to sample; None is no limit.
        offset_gain: share of the prediction error that goes into the estimated offset of the model, 0 < gain <= 1, a
            number or (nx,). The plans then know a steady disturbance; the error that it causes vanishes where inputs
            and references leave the cost no reason to keep some of it. None assumes that the model is right.
        real_time: one Newton step a sample; the plan goes along it as far as its bounds let it, the first input all the
            way, clipped. It suits models whose derivatives
            take long, plans that change little, and inputs off their bounds; elsewhere the violations of plans tell
            (`MPCRun.violations`).
        tolerance: of the solver; None is 1e-6 (1e-3 in float32).
        method: the options of the solver, an `InteriorPoint`. Of these, `max_iterations` counts a sample (None is 100);
            `barrier` is the first where the active rows of the last plan do not lead to the next (None chooses), with
            `real_time` the one that it keeps (None is 1e-3);
            `time_limit` is for a step: it makes as many iterations as should fit (one at least), and applies the better
            of the plan reached and the last one moved on, feasible ones first.

    Raises:
        ValueError: for what the problem cannot be: bounds or costs of a free x_0, missing sizes, bad options.

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
        tolerance: float | None = None,
        method: InteriorPoint | str = "interior_point",
    ) -> None:
        nx, nu = _sizes(problem)
        _check_shares(du_max, offset_gain, nx, nu)
        options = _options(method)
        check_flag(real_time, "real_time")
        if tolerance is not None:
            check_positive(tolerance, "tolerance", "a number >= 0, such as 1e-6", zero=True)
        if real_time and offset_gain is not None:
            raise ValueError(
                "`offset_gain` needs plans that converge: with real_time=True the estimate and the unfinished iteration"
                " may drive each other apart; leave one out (a converged step of a small model takes about as long)."
            )
        if real_time and options.time_limit is not None:
            raise ValueError("`time_limit` has no use with real_time=True, one Newton step a sample; leave one out.")
        dtype = default_float() if problem.x0 is None else problem.x0.dtype
        tolerance = (1e-3 if dtype == jnp.float32 else 1e-6) if tolerance is None else tolerance
        limit = MAX_ITERATIONS if options.max_iterations is None else as_whole(options.max_iterations, "max_iterations")
        self.nx, self.nu, self.dtype = nx, nu, dtype
        self.problem = controlled(problem, nx, nu, dtype, du_max)
        self.du_max = None if du_max is None else spread(du_max, nu, dtype)
        self.gain = None if offset_gain is None else _as_number(offset_gain, dtype)
        self.real_time, self.time_limit = real_time, options.time_limit
        exact = options.hessian == "exact" and problem.dynamics.twice_differentiable
        self.settings = Settings(
            _as_number(tolerance, dtype),
            None if options.barrier is None else _as_number(options.barrier, dtype),
            exact,
            limit,
            FLOOR,
            self._scales(options.scale),
            options.backend,
            gains=False,
        )
        self.params = problem.params
        self._around: deque[float] = deque(maxlen=15)  # seconds, for the time limit
        self._is_warm = False
        self.model = problem.dynamics

    def __repr__(self) -> str:
        kept = [f"{n}={v}" for n, v in (("du_max", self.du_max), ("offset_gain", self.gain)) if v is not None]
        kept += ["real_time=True"] if self.real_time else []
        return f"MPC: N = {self.problem.horizon}, nx = {self.nx}, nu = {self.nu}" + "".join(f", {k}" for k in kept)

    def _scales(self, scale: Any) -> Any:
        """Return the user's scales; last inputs that are kept behind the states have those of the inputs."""
        made = given_scales(scale, self.nx, self.nu)
        if made is not None and "x" in made and self.du_max is not None:
            made["x"] = ravel([made["x"], made.get("u", np.ones(self.nu, self.dtype))])
        return made

    def init(self, x: Any, params: Any = None, *, us: Any = None, xs: Any = None, u: Any = None) -> MPCPlan:
        """Solve from a first state, to convergence.

        Args:
            x: (nx,) state.
            params: parameters; None takes the problem's.
            us: (N, nu) guess; None is zero.
            xs: (N+1, nx) guess; None rolls out us.
            u: (nu,) the input applied so far, for rate limits; None is zero.
        """
        N = self.problem.steps
        given = {"x": (x, (self.nx,)), "u": (u, (self.nu,)), "us": (us, (N, self.nu)), "xs": (xs, (N + 1, self.nx))}
        known = {name: self._array(value, name, shape) for name, (value, shape) in given.items() if value is not None}
        x, u, us = known["x"], known.get("u", np.zeros(self.nu)), known.get("us", np.zeros((N, self.nu)))
        full = (self._params(params), np.zeros(self.nx))
        u, us, full = jax.tree.map(lambda leaf: cast(leaf, self.dtype) if on_host(leaf) else leaf, (u, us, full))
        settings = replace(self.settings, barrier=None, max_iterations=1000)
        at_once, width = runs_now((known, full)), self.nx if self.du_max is None else self.nx + self.nu
        blank = np.zeros((N + 1, width), self.dtype)
        move = to_host if at_once and self._on_host(blank, us, full) else to_device
        problem, x, u, us, full, settings, blank = move((self.problem, x, u, us, full, settings, blank))
        xp, free = namespace(x), (False,) * width
        first = x if self.du_max is None else xp.concatenate([x, u])
        program = now(make_program, problem, xp.broadcast_to(first, (N + 1, width)), us, full, free, settings)
        if xs is None:
            xs = now(native.roll, program, first, us)
            xs = xp.where(xp.all(xp.isfinite(xs)), xs, first)
        else:
            xs = put(move(known["xs"]), 0, x)
            if self.du_max is not None:
                xs = xp.concatenate([xs, xp.concatenate([u[None], us])], axis=1)
        state = now(start, program, xs, us, None, settings)
        check_guess(program, state)
        state = run(program, state, settings) if at_once else iterate(program, state, settings, settings.max_iterations)
        i, z = state.iterations, state.z
        violation = state.history.infeasibility[i]
        plan = MPCPlan(
            z.xs[:, : self.nx], z.us, u, xp.full_like(x, np.nan), full[1], state.status, state.iterations,
            state.history.cost[i], violation, z,
        )  # fmt: skip
        return self.prepare(plan, params, shift=False) if self.real_time else plan

    def _array(self, value: Any, name: str, shape: tuple[int, ...]) -> Any:
        """Return an argument as an array of the controller's type; NumPy's where it is known."""
        value = as_float(value, name, shape)
        return cast(to_host(value) if is_concrete(value) else value, self.dtype)

    def _on_host(self, xs: Any, us: Any, params: Any, *more: Any) -> bool:
        if not runs_now((self.problem, xs, us, params, self.settings, more)):
            return False
        return run_on_host(*find_tapes(self.problem, xs, us, params, self.settings))

    def _call(self, function: Callable, params: Any, z: Unknowns, *more: Any) -> Any:
        """Call a function of (problem, params, z, ...), compiled: it will be called at every sample."""
        arguments = self.problem, params, z, *more
        if not self._on_host(z.xs, z.us, params, z, more):
            return now(function, *to_device(arguments))
        if function is _resolve:
            return now(function, *to_host(arguments))
        return around_the_kernel(function)(*arguments)

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
        return replace(plan, ready=self._call(_prepare, full, plan.z, self.settings, shift))

    def step(self, plan: MPCPlan, x: Any, params: Any = None) -> tuple[Any, MPCPlan]:
        """Return the input for the measured state, and the plan.

        Args:
            plan: what `init` or the last `step` returned.
            x: (nx,) measured state.
            params: parameters of this sample, such as a preview of the reference; None takes the problem's. With
                `real_time` it is fast where `prepare` was given the same.
        """
        x = self._array(x, "x", (self.nx,))
        check_kind(plan, MPCPlan, "plan", "what `init` or the last `step` returned")
        warn_of_changes(self.problem)
        check_shape(plan.us, "plan.us", (self.problem.steps, self.nu))
        offset = plan.offset
        if self.gain is not None:
            error = x - plan.predicted
            offset = offset + self.gain * namespace(error).where(namespace(error).isfinite(error), error, 0.0)
        full = (self._params(params), offset)
        last = None if self.du_max is None else plan.u
        if self.real_time:
            if plan.ready is None:
                plan = self.prepare(plan, params)
            else:
                plan = self._prepared_for(plan, params, full[0])
            first, *out = self._call(_feedback, full, plan.z, plan.ready, x, last, self.settings)
        elif self.time_limit is None:
            *out, _ = self._call(_resolve, full, plan.z, x, last, self.settings, self.settings.max_iterations)
        else:
            out = self._in_time(full, plan.z, x, last)
        z, status, iterations, cost, violation = out
        u = first if self.real_time else z.us[0]
        if self.du_max is not None:  # a plan that has not converged may miss it a little
            u = namespace(u).clip(u, plan.u - self.du_max, plan.u + self.du_max)
        predicted = plan.predicted
        if self.gain is not None:
            predicted = _model_step(self.model, full[0], x, u, 0) + offset
        return own(u), MPCPlan(z.xs[:, : self.nx], z.us, u, predicted, offset, status, iterations, cost, violation, z)

    def _prepared_for(self, plan: MPCPlan, params: Any, own: Any) -> MPCPlan:
        """Return a prepared plan that is so for these parameters."""

        def again(plan: MPCPlan) -> MPCPlan:
            return self.prepare(replace(plan, z=plan.ready[1], ready=None), params, shift=False)

        pairs = list(zip(jax.tree.leaves(plan.ready[0][0]), jax.tree.leaves(own), strict=True))
        if runs_now(pairs):
            return plan if all(np.array_equal(a, b) for a, b in pairs) else again(plan)
        same = jnp.all(jnp.stack([jnp.all(a == b) for a, b in pairs])) if pairs else jnp.asarray(True)
        return jax.lax.cond(same, lambda plan: plan, again, plan)

    def _in_time(self, full: Any, z: Unknowns, x: Any, last: Any) -> tuple[Any, ...]:
        """Solve in the time that is left after what surrounds the iterations, by what that took before."""
        if not runs_now((full, z, x)):
            raise ValueError("`time_limit` needs the clock of the host; leave it out where `step` is traced.")
        assert self.time_limit is not None
        began, most = time.perf_counter(), self.settings.max_iterations
        natively = self._on_host(z.xs, z.us, full)
        seconds = float(np.median(self._around)) if self._around else 0.0
        left = max(0.0, self.time_limit - seconds) if natively else np.inf
        stop = most if natively or not self._around else int(np.clip(TIME_SHARE * self.time_limit / seconds, 1, most))
        settings = replace(self.settings, seconds=left)
        out = self._call(_resolve, full, z, x, last, settings, stop)
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
            plant: `plant(x, u, k) -> next x`; None is the model itself with the parameters of sample k. (A model that
                depends on the stage is that of stage 0, which is where every plan begins.)
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
        if plant is not None:
            check_function(plant, "plant", "plant(x, u, k)")
        if params is not None:
            check_function(params, "params", "params(k)")
        if plan is not None:
            check_kind(plan, MPCPlan, "plan", "what `init` or the last `step` returned")
        at = (lambda k: None) if params is None else params
        plan = self.init(x, at(0)) if plan is None else plan
        if plant is None:

            def plant(x: Any, u: Any, k: int) -> Any:
                return _model_step(self.model, self._params(at(k)), x, u, 0)

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
            x = np.asarray(as_float(plant(x, u, k), f"plant(x, u, {k})", (self.nx,)), x.dtype)
            xs.append(x)
            us.append(u)
            plans.append(plan)
        return MPCRun(
            np.stack(xs), np.stack(us), np.array(latencies), np.array([int(p.iterations) for p in plans]),
            np.array([int(p.status) for p in plans]), np.array([float(p.violation) for p in plans]),
        )  # fmt: skip


def _sizes(problem: Any) -> tuple[int, int]:
    """Return the numbers of states and inputs, or raise for a problem that a controller cannot have."""
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` is a {type(problem).__name__}; expected optctl.Problem.")
    nx, nu = problem.dynamics.nx, problem.dynamics.nu
    nx = len(problem.x0) if nx is None and problem.x0 is not None else nx
    if nx is None or not nu:
        raise ValueError("`problem` has dynamics of unknown size, or without inputs; give them nx and nu.")
    if problem.x0_min is not None or problem.x0_max is not None:
        raise ValueError("`problem` bounds a free x_0, but a controller measures it; leave x0_min and x0_max out.")
    return nx, nu


def _check_shares(du_max: Any, offset_gain: Any, nx: int, nu: int) -> None:
    """Raise unless they are positive where they are given, one for all or one for each, and the gain at most 1."""
    for name, value, size in (("du_max", du_max, nu), ("offset_gain", offset_gain, nx)):
        if value is None:
            continue
        value = np.asarray(as_float(value, name))
        if not (value > 0).all() or value.shape not in ((), (size,)):
            raise ValueError(f"`{name}` is {value}; expected a positive number, or ({size},) of them.")
        if name == "offset_gain" and (value > 1).any():
            raise ValueError(f"`offset_gain` is {value}; expected at most 1, a share of the prediction error.")


def _options(method: Any) -> InteriorPoint:
    """Return the options of the solver, or raise where a controller has no use for one of them."""
    if isinstance(method, str) and method == InteriorPoint.name:
        return InteriorPoint()
    if not isinstance(method, InteriorPoint):
        raise ValueError(f"`method` is {method!r}; expected InteriorPoint(...): a controller plans by no other method.")
    for name in ("warm_start", "callback"):
        if getattr(method, name) is not None:
            raise ValueError(f"`method` has `{name}`, for which a controller has no use; leave it out.")
    return method


@jax.jit
def _model_step(dynamics: Any, params: Any, x: Any, u: Any, k: Any) -> Any:
    return dynamics.step(jnp.asarray(x), jnp.asarray(u), jnp.asarray(k), params)


def _shift(rows: Rows, z: Unknowns) -> Unknowns:
    """Move all rows of all stages on by one; the last is repeated."""

    def later(values: Any) -> Any:
        return namespace(values).concatenate([values[1:], values[-1:]])

    def flat(values: Any) -> Any:
        blocks = rows.split(values)
        stages = {name: later(b) if name in PATH or name[:2] in ("x_", "u_") else b for name, b in blocks.items()}
        return flatten(stages, values.dtype, values)

    e, v = (None, None) if z.e is None else (flat(z.e), flat(z.v))
    return Unknowns(later(z.xs), later(z.us), later(z.costates), flat(z.s), flat(z.y), e, v)


def _guess(program: Program, z: Unknowns, x: Any, last: Any) -> Any:
    """Return the states of a plan that was moved on, from the measured state to where the model leads in the end."""
    xp = namespace(z.xs)
    first = x if last is None else xp.concatenate([x, last])
    end = native.step(program, z.xs[-2], z.us[-1], z.us.shape[0] - 1)
    end = xp.where(xp.all(xp.isfinite(end)), end, z.xs[-1])
    return xp.concatenate([first[None], z.xs[1:-1], end[None]])


def _unguided(program: Program, x: Any, us: Any) -> tuple[Any, Any]:
    """Return the guess that knows nothing: no inputs and where they lead, or the first state if that is not finite."""
    xp = namespace(us)
    us = xp.zeros_like(us)
    xs = native.roll(program, x, us)
    return xp.where(xp.all(xp.isfinite(xs)), xs, x), us


def _as_number(value: Any, dtype: Any) -> Any:
    return (np if is_concrete(value) else jnp).asarray(value, dtype)


@record()
class _Tried:
    """A plan, and how the solver came to it."""

    z: Unknowns
    status: Any
    cost: Any
    violation: Any


def _tried(z: Unknowns, state: Any, row: Any) -> _Tried:
    return _Tried(z, state.status, state.history.cost[row], state.history.infeasibility[row])


def _better(new: _Tried, old: _Tried) -> _Tried:
    """Return the plan that is solved, or else feasible at a lower cost, or else less infeasible."""
    feasible = (new.violation <= FEASIBLE) & (old.violation <= FEASIBLE)
    xp = namespace(new.violation)
    ahead = xp.where(feasible, new.cost < old.cost, new.violation < old.violation)
    ahead = (new.status == int(Status.SOLVED)) | (ahead & (old.status != int(Status.SOLVED)))
    return keep(ahead, new, old)


def _resolve(
    problem: Problem, params: Any, z: Unknowns, x: Any, last: Any, settings: Settings, stop: Any
) -> tuple[Any, ...]:
    """Solve from the plan moved on with its active rows; if that fails, as if cold, at last from x alone.

    Where nothing converges, the best of all is returned. A quadratic program has one solution, to which no guess of
    the states is needed.
    """
    program, xp = make_program(problem, z.xs, z.us, params, (False,) * z.xs.shape[1], settings), namespace(z.xs)
    moved_on = _shift(program.rows, z)
    xs, us = _guess(program, moved_on, x, last), moved_on.us
    warm = {"costates": moved_on.costates, "y": moved_on.y}
    cold = start(program, xs, us, None, settings)
    state = settle_first(program, cold, xs, us, warm, settings)
    kept = replace(_tried(replace(moved_on, xs=xs, us=us), state, 0), status=xp.asarray(int(Status.ITERATION_LIMIT)))
    best = _better(_tried(state.z, state, state.iterations), kept)

    def attempt(carry: tuple) -> tuple:
        k, best, state, seconds = carry
        left = replace(settings, seconds=settings.seconds - seconds)
        alone = _unguided(program, xs[0], us)
        own_xs, own_us = (xp.where(k == 0, plan, own) for plan, own in zip((xs, us), alone, strict=True))
        cold = start(program, own_xs, own_us, None, left)
        half = xp.where(k == 0, state.iterations + (stop - state.iterations + 1) // 2, stop)
        state = iterate(program, replace(cold, iterations=state.iterations, history=state.history), left, half)
        return k + 1, _better(_tried(state.z, state, state.iterations), best), state, seconds + state.seconds

    def going(carry: tuple) -> Any:
        k, best, state, seconds = carry
        unsolved = (best.status != int(Status.SOLVED)) & (k < 2)
        return unsolved & (state.iterations < stop) & (seconds <= settings.seconds)

    first = xp.asarray(int(program.quadratic)), best, state, state.seconds
    _, best, state, seconds = while_loop(going, attempt, first)
    solved = best.status == int(Status.SOLVED)
    unfinished = (state.status == int(Status.STALLED)) & (state.mu == 0)  # by the first steps alone
    status = xp.where(unfinished, int(Status.ITERATION_LIMIT), state.status)
    status = xp.where(solved, int(Status.SOLVED), status)
    return _finite_or(moved_on, best.z), status, state.iterations, best.cost, best.violation, seconds


def _finite_or(last: Unknowns, new: Unknowns) -> Unknowns:
    """Return the new plan, or the last one moved on where a measurement or the model was not finite."""
    xp = namespace(new.xs)
    good = xp.all(xp.stack([xp.all(xp.isfinite(leaf)) for leaf in jax.tree.leaves(new)]))
    return keep(good, new, last)


def _prepare(problem: Problem, params: Any, z: Unknowns, settings: Settings, shift: bool) -> tuple[Any, ...]:
    """Linearize and factor at the predicted state; return the parameters, too."""
    program = make_program(problem, z.xs, z.us, params, (False,) * z.xs.shape[1], settings)
    mu = _barrier(settings)
    z = _inside(program.rows, _shift(program.rows, z) if shift else z, mu)
    e = expansion_at(program, z, settings)
    _, weight = newton_rows(program.rows, e.at.c, z, mu)
    return params, z, e, weight, *factor(program, e, weight, jnp.zeros((), z.xs.dtype))


def _barrier(settings: Settings) -> Any:
    return REAL_TIME_BARRIER if settings.barrier is None else settings.barrier


def _inside(rows: Rows, z: Unknowns, mu: Any) -> Unknowns:
    """Return the point with products s y = mu (and e v), s - y kept: a solution has zeros among them."""

    def apart(s: Any, y: Any, which: Any) -> tuple[Any, Any]:
        root = jnp.sqrt((s - y) ** 2 + 4 * mu)
        low = 2 * mu / (root + jnp.abs(s - y))
        high = (root + jnp.abs(s - y)) / 2
        return jnp.where(which, jnp.where(s > y, high, low), s), jnp.where(which, jnp.where(s > y, low, high), y)

    s, y = apart(z.s, z.y, rows.inequality)
    if rows.soft is None:
        return replace(z, s=s, y=y)
    e, v = apart(z.e, z.v, rows.soft)
    return replace(z, s=s, y=y, e=e, v=v)


def _feedback(
    problem: Problem, params: Any, _: Unknowns, ready: Any, x: Any, last: Any, settings: Settings
) -> tuple[Any, ...]:
    """One right-hand side: move the plan's x_0 to the measured state."""
    _, z, e, weight, model, factors, _ = ready
    program = make_program(problem, z.xs, z.us, params, (False,) * z.xs.shape[1], settings)
    rows, mu = program.rows, _barrier(settings)
    dx0 = (x if last is None else jnp.concatenate([x, last])) - z.xs[0]
    d = solve_step(program, model, factors, e, z, gaps=e.at.gaps, c=e.at.c, weight=weight, mu=mu, dx0=dx0)
    good = (factors.failed_stage < 0) & jnp.all(jnp.isfinite(d.us))
    d = jax.tree.map(lambda leaf: jnp.where(good, leaf, 0.0), d)
    alpha = longest_primal(rows, z, d, 0.99)
    point = moved(rows, z, d, alpha, 0.99, mu)
    violation = jnp.maximum(jnp.max(jnp.abs(e.at.gaps)), jnp.max(jnp.abs(missed(rows, e.at.c, z)), initial=0.0))
    cost = e.at.cost + price_of_misses(rows, z)
    status = jnp.where(good, int(Status.ITERATION_LIMIT), int(Status.STALLED))
    low, high = bound_arrays(rows, "u", z.us)
    return jnp.clip(z.us[0] + d.us[0], low[0], high[0]), point, status, jnp.asarray(1), cost, violation
