r"""How far a solution of a discretized problem is from the ODE, and meshes on which it is close enough.

Between two mesh points the inputs are known functions of time, so that an integration under error control says where
the ODE would lead: its distance from the next mesh point is the error of that step. Where it exceeds the tolerance, the
step is split into as many as the order of the scheme asks for, and the problem is solved again from the old solution.

Reference: Betts (2010), Practical Methods for Optimal Control and Estimation Using Nonlinear Programming, section 4.7.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl._validate import as_whole
from optctl.continuous.integrate import integrate
from optctl.continuous.ode import ODE
from optctl.dynamics.discretize import Discretized, RunningCost
from optctl.problem import BOUNDS, Problem
from optctl.result import Result, Status
from optctl.solution import Solution
from optctl.solvers.solve import solve

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4, "implicit_midpoint": 2, "trapezoid": 2}
MOST_PARTS = 8


@record()
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
        return "solved, and the mesh is fine enough" if self.converged else f"{found} is left; raise max_rounds"

    def __repr__(self) -> str:
        return (
            f"Refinement: {'converged' if self.converged else 'NOT converged'}, {len(self.errors)} steps after"
            f" {self.rounds} rounds, error of a step up to {np.max(self.errors):.1e}, of the trajectory"
            f" {self.drift:.1e}\n{self.solution!r}"
        )


def refine(
    problem: Problem, solution: Solution, tolerance: float = 1e-6, *, max_rounds: int = 6, **options: Any
) -> Refinement:
    """Split steps of a solution's mesh and solve again until no step is further from the ODE than the tolerance.

    Args:
        problem: a problem whose dynamics `discretize` made (not by "zoh"), whose stage cost is None or an `integral` of
            these dynamics, and whose constraints and bounds are the same at all stages.
        solution: its solution.
        tolerance: largest error of a step, relative to 1 + |x|.
        max_rounds: most meshes to solve on; 0 estimates the error of the solution as it is.
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
    rounds = as_whole(max_rounds, "max_rounds", least=0)
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
        dynamics = Discretized(**{**vars(dynamics), "dt": jnp.asarray(dt)})
        cost = problem.stage_cost
        problem = problem.replace(
            dynamics=dynamics, horizon=len(dt), stage_cost=None if cost is None else dynamics.integral(cost.call.rate)
        )
        free = ("us", "params") if solution.multipliers.get("params_min") is not None else None
        free = options.get("free", free)
        rest = {key: value for key, value in options.items() if key != "free"}
        solution = solve(problem, us, "interior_point", xs=xs, free=free, **rest)
        done += 1
    drift = _drift(dynamics, jnp.asarray(dt), solution)
    converged = fine and bool(solution.converged)
    return Refinement(solution, problem, np.append(0.0, np.cumsum(dt)), errors, drift, converged, done)


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
        if function is not None and function.takes("t"):
            raise ValueError(
                f"`{name}` takes the stage t, which a new mesh changes; expected (x, u) or (x, u, params)."
            )
    for name in BOUNDS:
        if np.ndim(getattr(problem, name)) == 2:
            raise ValueError(f"`{name}` is given per stage, which a new mesh changes; expected the same at all stages.")


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
