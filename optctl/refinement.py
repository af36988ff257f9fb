r"""How far a solution of a discretized problem is from the ODE, and meshes on which it is close enough.

Between two mesh points the inputs are known functions of time, so that an integration under error control says where
the ODE would lead: its distance from the next mesh point is the error of that step. Where it exceeds the tolerance, the
step is split into as many as the order of the scheme asks for, and the problem is solved again from the old solution.

Constraints are asked for at the nodes; what they are missed by between them is measured along the same integration.

Reference: Betts (2010), Practical Methods for Optimal Control and Estimation Using Nonlinear Programming, section 4.7.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl._validate import as_whole, check_kind, check_positive, check_shape
from optctl.constraint import Constraint
from optctl.continuous.integrate import integrate
from optctl.continuous.ode import ODE
from optctl.dynamics.discretize import Discretized, RunningCost
from optctl.judge.interpreter import interpret
from optctl.problem import BOUNDS, Problem
from optctl.result import Result, Status
from optctl.solution import Solution, Violation
from optctl.solvers.methods import check_method
from optctl.solvers.solve import solve

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4, "implicit_midpoint": 2, "trapezoid": 2}
MOST_PARTS = 8


@record(static=("between",))
class Refinement(Result):
    """A solution on a mesh that is fine enough, or as fine as allowed.

    Attributes:
        solution: the `Solution`.
        problem: the `Problem` on the last mesh; problem.dynamics.dt is the mesh.
        times: (N+1,) mesh points [s].
        errors: (N,) error of each step, |x_{t+1} - ODE| over 1 + |x|.
        drift: largest error of the whole trajectory against one integration from x_0.
        converged: True if every error is within the tolerance and the solution converged.
        rounds: number of meshes solved after the first.
        between: `Violation`s between the nodes, the worst row of each constraint, worst first: hard path constraints
            and bounds of states hold at the nodes, and along the ODE they may be missed within a step (its stage is
            given) by more than the solver's tolerance. Looked at in 7 points of each step; they do not bear on
            `converged`: a finer mesh lowers them, a margin in the constraint takes them away.
        status: that of the solution, where it failed; ITERATION_LIMIT where the meshes ended before the tolerance.
        stage: the stage that failed, or that of the largest error, where the mesh is too coarse.
    """

    solution: Solution
    problem: Problem
    times: Any
    errors: Any
    drift: Any
    converged: Any
    rounds: int
    between: tuple[Violation, ...] = ()

    @property
    def status(self) -> Any:
        """The `Status` of the solution where it failed, else whether the mesh is fine enough."""
        done = Status.SOLVED if self.converged else Status.ITERATION_LIMIT
        return int(done) if self.solution else self.solution.status

    @property
    def stage(self) -> Any:
        """Stage that failed, or that of the largest error where the mesh is too coarse; -1 if there is none."""
        if not self.solution:
            return self.solution.stage
        return -1 if self.converged else int(np.argmax(self.errors))

    def explanation(self) -> str:
        """Return what failed: the solution, or the mesh."""
        if not self.solution:
            return self.solution.message
        found = f"an error of {np.max(self.errors):.1e} at stage {int(np.argmax(self.errors))}"
        how = "solved, and the mesh is fine enough" if self.converged else f"{found} is left; raise max_rounds"
        return how + self._missed()

    def _missed(self) -> str:
        """Return what is missed between the nodes, as words."""
        return f"; missed between the nodes: {', '.join(map(str, self.between))}" if self.between else ""

    def __repr__(self) -> str:
        return (
            f"Refinement: {'converged' if self.converged else 'NOT converged'}, {len(self.errors)} steps after"
            f" {self.rounds} rounds, error of a step up to {np.max(self.errors):.1e}, of the trajectory"
            f" {self.drift:.1e}{self._missed()}\n{self.solution!r}"
        )


def refine(
    problem: Problem,
    solution: Solution,
    *,
    tolerance: float = 1e-6,
    max_rounds: int = 6,
    method: Any = "interior_point",
    **options: Any,
) -> Refinement:
    """Split steps of a solution's mesh and solve again until no step is further from the ODE than the tolerance.

    Args:
        problem: a problem whose dynamics `discretize` made (not by "zoh"), whose stage cost is None or an `integral` of
            these dynamics, and whose constraints and bounds are the same at all stages.
        solution: its solution.
        tolerance: largest error of a step, relative to 1 + |x|.
        max_rounds: most meshes to solve on; 0 estimates the error of the solution as it is.
        method: as for `solve`, one that takes a guess of the states.
        **options: for `solve`.

    Returns:
        A `Refinement`.

    Raises:
        ValueError: for a problem that is tied to its mesh, naming what ties it.

    Example:
        >>> import optctl as oc
        >>> known = oc.problems.van_der_pol(horizon=6)
        >>> estimate = oc.refine(known.problem, known.solve(), tolerance=1e-3, max_rounds=0)
        >>> len(estimate.errors), bool(estimate.converged)
        (6, True)

    References:
        Betts (2010), Practical Methods for Optimal Control and Estimation Using Nonlinear Programming, section 4.7.
    """
    _check(problem)
    check_kind(solution, Solution, "solution", "what optctl.solve returned")
    check_shape(solution.us, "solution.us", (problem.horizon, problem.dynamics.nu))
    check_positive(tolerance, "tolerance", "a positive number, such as 1e-6")
    rounds = as_whole(max_rounds, "max_rounds", least=0)
    method = None if method is None else check_method(method)
    dynamics: Any = problem.dynamics
    dt = np.broadcast_to(np.asarray(dynamics.dt), problem.steps)
    done = 0
    while True:
        ends, middles = _reached(dynamics, jnp.asarray(dt), solution.xs, solution.us, solution.params)
        size = 1 + np.abs(np.asarray(solution.xs)).max(axis=0)
        errors = np.max(np.abs(np.asarray(ends - solution.xs[1:])) / size, axis=1)
        fine = bool(np.all(errors <= tolerance))
        if fine or done >= rounds or not bool(solution.converged):
            break
        order = ORDERS[dynamics.method] + 1
        parts = np.where(errors <= tolerance, 1, np.ceil((2 * errors / tolerance) ** (1 / order)))
        parts = np.clip(parts, np.where(errors <= tolerance, 1, 2), MOST_PARTS).astype(int)
        xs, us = _interpolated(dynamics.hold, solution, np.asarray(middles), parts)
        dt = np.repeat(dt / parts, parts)
        dynamics = dataclasses.replace(dynamics, dt=jnp.asarray(dt))
        cost = problem.stage_cost
        problem = problem.replace(
            dynamics=dynamics, horizon=len(dt), stage_cost=None if cost is None else dynamics.integral(cost.call.rate)
        )
        options = {"free": solution.free} | options
        x0 = solution.x0 if problem.x0 is None else None
        solution = solve(problem, us, method, xs=xs, x0=x0, params=solution.params, **options)
        done += 1
    drift = _drift(dynamics, jnp.asarray(dt), solution)
    converged = fine and bool(solution.converged)
    times, between = np.append(0.0, np.cumsum(dt)), _between(problem, solution, np.asarray(middles))
    return Refinement(solution, problem, times, errors, drift, converged, done, between)


def _check(problem: Any) -> None:
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` is a {type(problem).__name__}; expected optctl.Problem.")
    if not isinstance(problem.dynamics, Discretized) or problem.dynamics.method not in ORDERS:
        raise ValueError(
            f"`problem` has {type(problem.dynamics).__name__}; expected dynamics made by discretize, no 'zoh'."
        )
    cost = problem.stage_cost
    if cost is not None and not isinstance(cost.call, RunningCost):
        raise ValueError("`stage_cost` is tied to the mesh; expected dynamics.integral(rate), a cost per second.")
    for name in ("path_inequality", "path_equality"):
        function = getattr(problem, name)
        if function is not None and _depends_on_stage(function, problem):
            raise ValueError(
                f"`{name}` depends on the stage t, which a new mesh changes; expected a function of (x, u), or of"
                " (x, u, params)."
            )
    for name in BOUNDS:
        if np.ndim(getattr(problem, name)) == 2:
            raise ValueError(f"`{name}` is given per stage, which a new mesh changes; expected the same at all stages.")


def _depends_on_stage(function: Constraint, problem: Problem) -> bool:
    """True if the rows depend on t, whether or not the function takes it."""
    if not function.takes("t"):
        return False
    x, u = (jnp.zeros(n) for n in (problem.dynamics.nx, problem.dynamics.nu))
    jaxpr = jax.make_jaxpr(lambda t: function(x, u, t, problem.params))(jnp.asarray(0)).jaxpr
    used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    return id(jaxpr.invars[0]) in used


def _between(problem: Problem, solution: Solution, inside: Any) -> tuple[Violation, ...]:
    """Return what hard constraints miss at the points within the steps, the worst row of each, worst first."""
    N, points, nx = inside[:, 1:-1].shape
    xs = inside[:, 1:-1].reshape(-1, nx)
    us, dynamics = np.asarray(solution.us), problem.dynamics
    if isinstance(dynamics, Discretized) and dynamics.hold == "linear":  # as on a mesh with each step in MOST_PARTS
        first, last = (part[:, None] for part in np.split(us, 2, axis=1))
        a = (np.arange(1, points + 1) / MOST_PARTS)[:, None]
        ends = [first + s * (last - first) for s in (a, a + 1 / MOST_PARTS)]
        us = np.concatenate(ends, axis=2).reshape(N * points, -1)
    else:
        us = np.repeat(us, points, axis=0)
    missed = {}
    for name, sign in (("x_min", -1), ("x_max", 1)):
        if getattr(problem, name) is not None:
            missed[name] = sign * (xs - np.asarray(getattr(problem, name)))
    for name in ("path_inequality", "path_equality"):
        held = getattr(problem, name)
        if held is not None:
            rows = jax.vmap(lambda x, u, held=held: held(x, u, jnp.asarray(0), solution.params))
            (values,) = interpret(rows, xs, us)(xs, us)
            hard = np.isinf(np.asarray(held.prices(values.shape, values.dtype)[0]))
            on = True if held.on is None else np.repeat(np.broadcast_to(held.on, (N, values.shape[1])), points, axis=0)
            missed[name] = np.where(hard & on, np.abs(values) if name == "path_equality" else values, 0.0)
    found = []
    for name, rows in missed.items():
        at, row = np.unravel_index(np.argmax(rows), rows.shape)
        found.append(Violation(name, int(at) // points, int(row), float(rows[at, row])))
    least = float(solution.certificate.tolerance)
    return tuple(sorted([v for v in found if v.amount > least], key=lambda v: -v.amount))


def _rate(z: Any, s: Any, data: Any) -> Any:
    """Rate of a step in its own time s = 0..1."""
    dynamics, u, start, h, params = data
    seconds = start + s * h
    return h * dynamics.rate(z, dynamics.held(u, start, h)(seconds), seconds, params)


_STEP = ODE(_rate)


@jax.jit
def _reached(dynamics: Discretized, dt: Any, xs: Any, us: Any, params: Any) -> tuple[Any, Any]:
    """Return where the ODE leads from each mesh point: at the end of the step, and at MOST_PARTS - 1 times within."""
    starts = jnp.cumsum(dt) - dt
    s = jnp.linspace(0.0, 1.0, MOST_PARTS + 1)

    def one(x: Any, u: Any, start: Any, h: Any) -> Any:
        return integrate(_STEP, x, s, (dynamics, u, start, h, params), rtol=1e-10, atol=1e-12, method="dopri8").zs

    zs = jax.vmap(one)(xs[:-1], us, starts, dt)
    return zs[:, -1], zs


def _interpolated(hold: str, solution: Solution, inside: Any, parts: Any) -> tuple[Any, Any]:
    """Return states and inputs on the mesh with each step split into `parts`."""
    xs, us, s = [], [], np.linspace(0.0, 1.0, MOST_PARTS + 1)
    for t, n in enumerate(parts):
        at = np.arange(n) / n
        xs += [[np.interp(a, s, inside[t, :, i]) for i in range(inside.shape[2])] for a in at]
        u = np.asarray(solution.us[t])
        if hold == "constant":
            us += [u] * n
        else:
            first, last = np.split(u, 2)
            us += [np.concatenate([first + a * (last - first), first + (a + 1 / n) * (last - first)]) for a in at]
    return np.array([*xs, np.asarray(solution.xs[-1])]), np.array(us)


def _drift(dynamics: Discretized, dt: Any, solution: Solution) -> float:
    """Return the largest distance of the states from one integration from x_0."""

    @jax.jit
    def roll(x0: Any, us: Any, params: Any) -> Any:
        starts = jnp.cumsum(dt) - dt

        def step(x: Any, data: tuple) -> tuple[Any, Any]:
            u, start, h = data
            ends = jnp.array([0.0, 1.0])
            zs = integrate(_STEP, x, ends, (dynamics, u, start, h, params), rtol=1e-10, atol=1e-12, method="dopri8").zs
            return zs[-1], zs[-1]

        return jax.lax.scan(step, x0, (us, starts, dt))[1]

    ends = roll(solution.xs[0], solution.us, solution.params)
    size = 1 + np.abs(np.asarray(solution.xs)).max(axis=0)
    return float(np.max(np.abs(np.asarray(ends - solution.xs[1:])) / size))
