r"""Gradient descent through costates, with bounds: the spectral projected gradient method.

    d = clip(z - alpha D g, lower, upper) - z,   z+ = z + theta d,   g = dJ/dz

theta is halved until J falls below the largest of the last ten costs by a fraction of g'd (non-monotone Armijo).
alpha = s'D^{-1}s / s'y, with s the last step and y the change of slope (Barzilai and Borwein), makes it as fast as a
first-order method gets; `step="armijo"` keeps plain steepest descent with a growing and shrinking alpha instead.
D is diagonal, one over the curvature of each input (averaged over time) and each component of x_0, measured once at
the first point: it makes inputs in newtons and states in kilometres comparable. It is 1 where there are no second
derivatives.

References: Barzilai and Borwein (1988), IMA Journal of Numerical Analysis 8; Birgin, Martinez and Raydan (2000),
SIAM Journal on Optimization 10, algorithm 2.1.
"""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from optctl._arrays import each, namespace, put, while_loop
from optctl._door import compiled
from optctl._validate import check_choice, keep_whole
from optctl.result import Status
from optctl.solvers.iterate import Iterate, advance, start
from optctl.solvers.method import Method, method
from optctl.solvers.objective import Objective, projected_gradient, scaled_stationarity

MEMORY = 10
SUFFICIENT = 1e-4
SMALLEST = 1e-14
PROBES = 4
LARGEST_X0 = 64


@method(static=("max_iterations", "step"))
class GradientDescent(Method):
    """Projected gradient descent: `oc.solve(problem, method=oc.GradientDescent(step="armijo"))`.

    Args:
        max_iterations: limit.
        step: "bb", steps by Barzilai and Borwein, as fast as a first-order method gets; "armijo", plain steepest
            descent with a step that grows and shrinks.

    Raises:
        ValueError: for another `step`, or a limit that is no whole number.

    Example:
        >>> import optctl as oc
        >>> pendulum = oc.problems.cartpole_push()
        >>> oc.solve(pendulum, method=oc.GradientDescent(max_iterations=3)).iterations.item()
        3
    """

    name = "gradient_descent"
    summary = "projected gradient descent with Barzilai-Borwein or Armijo steps; takes bounds on us and x0"
    takes = "bounds"
    on_host = True
    curved = True

    max_iterations: int = 10_000
    step: str = "bb"

    def __post_init__(self) -> None:
        keep_whole(self, "max_iterations", least=0)
        check_choice(self.step, "step", ("bb", "armijo"))

    def run(self, objective: Objective, tolerance: Any, us: Any, xs: Any) -> Iterate:
        """Minimize from the guess."""
        z, limit = objective.pack(objective), int(self.max_iterations)
        return gradient_descent(objective, z, tolerance=tolerance, max_iterations=limit, step=self.step)


@compiled("max_iterations", "step")
def gradient_descent(objective: Objective, z: Any, *, tolerance: Any, max_iterations: int, step: str) -> Iterate:
    """Minimize by projected gradient steps from z."""
    xp = namespace(z)
    lower, upper = objective.bounds()
    z = xp.clip(z, lower, upper)
    cost, slope, size = objective.measure(z)
    first_cost = cost

    def stationarity(z: Any, slope: Any, size: Any) -> Any:
        return scaled_stationarity(z, projected_gradient(z, slope, lower, upper), size)

    def first_alpha(slope: Any) -> Any:
        return 1 / xp.maximum(xp.max(xp.sqrt(metric) * xp.abs(slope), initial=0.0), 1e-30)

    def search(iterate: Iterate, direction: Any, ceiling: Any) -> tuple[Any, Any, Any, Any]:
        """Halve theta until cost and slope are finite and the cost has fallen enough."""
        decrease = SUFFICIENT * iterate.slope @ direction
        # Near the optimum the decrease drowns in rounding; allow the cost that much noise.
        noise = 4 * xp.finfo(z.dtype).eps * xp.abs(iterate.cost)

        def refused(trial: tuple) -> Any:
            theta, cost, slope, _ = trial
            fine = (cost <= ceiling + theta * decrease + noise) & xp.all(xp.isfinite(slope))
            return xp.logical_not(fine) & (theta > SMALLEST)

        def halve(trial: tuple) -> tuple:
            theta = trial[0] / 2
            return theta, *objective.measure(iterate.z + theta * direction, first_cost)

        first = xp.ones((), z.dtype), *objective.measure(iterate.z + direction, first_cost)
        return while_loop(refused, halve, first)

    metric = diagonal_metric(objective, z)

    def body(carry: tuple) -> tuple:
        iterate, alpha, recent = carry
        direction = xp.clip(iterate.z - alpha * metric * iterate.slope, lower, upper) - iterate.z
        theta, cost, slope, size = search(iterate, direction, xp.max(recent) if step == "bb" else iterate.cost)
        z = iterate.z + theta * direction
        s, y = z - iterate.z, slope - iterate.slope
        if step == "bb":
            curvature = s @ y
            fresh = first_alpha(slope)
            alpha = xp.where(curvature > 0, s @ (s / metric) / xp.where(curvature > 0, curvature, 1.0), fresh)
        else:
            alpha = alpha * xp.where(theta == 1, 2.0, theta)
        alpha = xp.clip(alpha, 1e-30, 1e30)
        stalled = (theta <= SMALLEST) | (xp.max(xp.abs(s), initial=0.0) == 0)
        status = xp.where(stalled, int(Status.STALLED), int(Status.ITERATION_LIMIT))
        iterate = advance(
            iterate, z, cost, slope,
            stationarity=stationarity(z, slope, size), step=xp.linalg.norm(s), status=status, tolerance=tolerance,
        )  # fmt: skip
        return iterate, alpha, put(xp.roll(recent, 1), 0, cost)

    iterate = start(z, cost, slope, stationarity(z, slope, size), max_iterations, tolerance)
    alpha = first_alpha(slope)
    recent = put(xp.full(MEMORY, -np.inf, z.dtype), 0, cost)
    go = lambda carry: carry[0].running & (carry[0].iterations < max_iterations)  # noqa: E731
    return while_loop(go, body, (iterate, alpha, recent))[0]


def diagonal_metric(objective: Objective, z: Any) -> Any:
    """Return one over the curvature along each input and each component of x_0, flat like z; 1 where unknown.

    The curvature of an input is the mean over time of the Hessian's diagonal, estimated with random signs
    (Hutchinson 1989); that of a component of x_0 is exact.
    """
    xp = namespace(z)
    if not objective.problem.dynamics.twice_differentiable:
        return xp.ones_like(z)
    values, hessian = objective.unpack(xp.zeros_like(z)), objective.hessian(z)

    def product(**block: Any) -> dict[str, Any]:
        return objective.unpack(hessian(objective.pack(SimpleNamespace(**(values | block)))))

    curvatures = {name: jax.tree.map(xp.ones_like, values[name]) for name in values}
    if "us" in objective.free and objective.us is not None:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (PROBES, *objective.us.shape))
        estimates = each(lambda v: v * product(us=v)["us"], xp.asarray(signs, z.dtype))
        curvatures["us"] = xp.broadcast_to(xp.mean(estimates, axis=(0, 1)), objective.us.shape)
    if "x0" in objective.free and objective.x0.size <= LARGEST_X0:
        units = xp.eye(objective.x0.size, dtype=z.dtype)
        curvatures["x0"] = each(lambda e: e @ product(x0=e)["x0"], units)
    curvature = xp.abs(objective.pack(SimpleNamespace(**curvatures)))
    usable = xp.isfinite(curvature) & (curvature > 0)
    return 1 / xp.clip(xp.where(usable, curvature, 1.0), 1e-15, 1e15)
