r"""Conjugate gradients for quadratic problems: H z = -dJ/dz(0), with H applied, never formed.

For linear dynamics and quadratic costs H = R + G'Q G with G the map from inputs to states, so these are the normal
equations of the control problem as a least-squares problem. One product with H is one tangent rollout and one
costate sweep. In exact arithmetic the method ends after at most as many iterations as there are unknowns.

Reference: Hestenes and Stiefel (1952), Journal of Research of the National Bureau of Standards 49.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._validate import keep_whole, runs_now
from optctl.adjoint.hessian import require_second_derivatives
from optctl.result import Status
from optctl.solution import cost_size
from optctl.solvers.iterate import Iterate, advance, start
from optctl.solvers.method import Method, method
from optctl.solvers.objective import Objective, least_size, scaled_stationarity


@method(static=("max_iterations",))
class CG(Method):
    """Conjugate gradients, for quadratic problems: `oc.solve(problem, method=oc.CG(max_iterations=50))`.

    Args:
        max_iterations: limit; None is twice the number of unknowns, and ten.

    Raises:
        ValueError: for a limit that is no whole number; from `solve` where the problem is not quadratic.

    Example:
        >>> import optctl as oc
        >>> oc.solve(oc.problems.nile(), method=oc.CG(max_iterations=3)).iterations.item()
        3
    """

    name = "cg"
    summary = "conjugate gradients on the normal equations, for quadratic problems"

    max_iterations: int | None = None

    def __post_init__(self) -> None:
        keep_whole(self, "max_iterations", least=0, optional=True)

    def check(self, objective: Objective) -> None:
        """Raise where there are no second derivatives."""
        require_second_derivatives(objective.problem)

    def run(self, objective: Objective, tolerance: Any, us: Any, xs: Any) -> Iterate:
        """Minimize from the guess."""
        z = objective.pack(objective)
        limit = 2 * objective.size() + 10 if self.max_iterations is None else int(self.max_iterations)
        require_quadratic(objective, z)
        iterate = conjugate_gradient(objective, z, tolerance=tolerance, max_iterations=limit)
        return demand_convex(objective, z, iterate)


def require_quadratic(objective: Objective, z: Any) -> None:
    """Raise unless the slope is linear in z, probed at two sizes."""
    if not runs_now((objective, z)):
        return
    noise = jnp.asarray(np.random.default_rng(0).normal(size=z.shape), z.dtype)
    tolerance = 1e-2 if z.dtype == jnp.float32 else 1e-6
    for scale in (1.0, 1e3):
        gap = float(slope_mismatch(objective, z, z + scale * noise))
        if not gap <= tolerance:
            raise ValueError(
                f"method 'cg' needs a quadratic problem, but the gradient departs from linear by {gap:.1e} of its size;"
                " use 'newton_cg'."
            )


def demand_convex(objective: Objective, z: Any, iterate: Iterate) -> Iterate:
    """Mark the result as not convex if the Hessian has a negative eigenvalue, which cg may not have met."""
    if not runs_now((objective, z)):
        return iterate
    lowest, size = lowest_curvature(objective, z)
    rounding = 1e-4 if z.dtype == jnp.float32 else 1e-10
    if lowest >= -rounding * size:
        return iterate
    return replace(iterate, status=jnp.asarray(int(Status.NOT_CONVEX)))


@partial(jax.jit, static_argnames=("max_iterations",))
def conjugate_gradient(objective: Objective, z: Any, *, tolerance: Any, max_iterations: int) -> Iterate:
    """Minimize a quadratic J from z."""
    cost, slope = objective.cost_and_slope(z)
    first_cost = cost
    _, hessian = jax.linearize(lambda z: objective.cost_and_slope(z)[1], z)

    def stationarity(z: Any, slope: Any, cost: Any) -> Any:
        values = objective.unpack(z)
        xs = objective.problem.dynamics.roll(values["x0"], values["us"], values["params"])
        least = least_size(objective.problem, xs, values["us"], values["params"])
        return scaled_stationarity(z, slope, cost_size(cost, first_cost, least))

    def body(carry: tuple) -> tuple:
        iterate, d, steepest = carry
        g = iterate.slope
        Hd = hessian(d)
        curvature = d @ Hd
        steepest = jnp.maximum(steepest, jnp.linalg.norm(Hd) / jnp.linalg.norm(d))
        rounding = 10 * jnp.finfo(g.dtype).eps * steepest * (d @ d)  # of a singular Hessian nothing else is left
        convex = curvature > rounding
        alpha = jnp.where(convex, g @ g / jnp.where(convex, curvature, 1.0), 0.0)
        z = iterate.z + alpha * d
        slope = g + alpha * Hd
        cost = iterate.cost + alpha * (g @ d) + 0.5 * alpha**2 * curvature
        flat = jnp.where(curvature >= -rounding, int(Status.STALLED), int(Status.NOT_CONVEX))
        status = jnp.where(convex, int(Status.ITERATION_LIMIT), flat)
        beta = slope @ slope / (g @ g)
        iterate = advance(
            iterate, z, cost, slope,
            stationarity=stationarity(z, slope, cost), step=jnp.linalg.norm(alpha * d), status=status,
            tolerance=tolerance,
        )  # fmt: skip
        return iterate, -slope + beta * d, steepest

    iterate = start(z, cost, slope, stationarity(z, slope, cost), max_iterations, tolerance)
    go = lambda carry: carry[0].running & (carry[0].iterations < max_iterations)  # noqa: E731
    return jax.lax.while_loop(go, body, (iterate, -slope, jnp.zeros((), z.dtype)))[0]


DENSE = 500
"""Largest number of unknowns for which the Hessian is formed to look at its eigenvalues."""


def lowest_curvature(objective: Objective, z: Any) -> tuple[float, float]:
    """Return the lowest eigenvalue of the Hessian and the size of its spectrum, on the host."""
    n = z.size
    if n <= DENSE:
        values = np.linalg.eigvalsh(np.asarray(_hessian(objective, z)))
        return float(values[0]), float(np.abs(values).max())
    import scipy.sparse.linalg

    operator = scipy.sparse.linalg.LinearOperator((n, n), lambda v: np.asarray(_product(objective, z, v)), dtype=float)
    options = {"k": 1, "return_eigenvectors": False, "maxiter": 300, "tol": 1e-6}
    size = abs(float(scipy.sparse.linalg.eigsh(operator, which="LM", **options)[0]))
    try:
        return float(scipy.sparse.linalg.eigsh(operator, which="SA", **options)[0]), size
    except scipy.sparse.linalg.ArpackNoConvergence:
        return 0.0, size  # clustered at zero: not negative as far as could be seen


@jax.jit
def _product(objective: Objective, z: Any, v: Any) -> Any:
    return jax.jvp(lambda z: objective.cost_and_slope(z)[1], (z,), (jnp.asarray(v, z.dtype).reshape(z.shape),))[1]


@jax.jit
def _hessian(objective: Objective, z: Any) -> Any:
    H = jax.vmap(lambda v: _product(objective, z, v))(jnp.eye(z.size, dtype=z.dtype))
    return (H + H.T) / 2


@jax.jit
def slope_mismatch(objective: Objective, z: Any, other: Any) -> Any:
    """Return how far the slope at `other` is from what a quadratic through z predicts, relative to its size."""
    here, there = objective.cost_and_slope(z)[1], objective.cost_and_slope(other)[1]
    predicted = here + jax.jvp(lambda z: objective.cost_and_slope(z)[1], (z,), (other - z,))[1]
    return jnp.max(jnp.abs(there - predicted)) / (jnp.max(jnp.abs(there)) + jnp.max(jnp.abs(here)) + 1e-300)
