r"""Conjugate gradients for quadratic problems: H z = -dJ/dz(0), with H applied, never formed.

For linear dynamics and quadratic costs H = R + G'Q G with G the map from inputs to states, so these are the normal
equations of the control problem as a least-squares problem. One product with H is one tangent rollout and one
costate sweep. In exact arithmetic the method ends after at most as many iterations as there are unknowns.

Reference: Hestenes and Stiefel (1952), Journal of Research of the National Bureau of Standards 49.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg

from optctl.result import Status
from optctl.solution import cost_size
from optctl.solvers.iterate import Iterate, advance, start
from optctl.solvers.objective import Objective, scaled_stationarity


@partial(jax.jit, static_argnames=("max_iterations",))
def conjugate_gradient(objective: Objective, z: Any, *, tolerance: Any, max_iterations: int) -> Iterate:
    """Minimize a quadratic J from z."""
    cost, slope = objective.cost_and_slope(z)
    first_cost = cost
    _, hessian = jax.linearize(lambda z: objective.cost_and_slope(z)[1], z)

    def stationarity(z: Any, slope: Any, cost: Any) -> Any:
        return scaled_stationarity(z, slope, cost_size(cost, first_cost))

    def body(carry: tuple) -> tuple:
        iterate, d = carry
        g = iterate.slope
        Hd = hessian(d)
        curvature = d @ Hd
        convex = curvature > 0
        alpha = jnp.where(convex, g @ g / jnp.where(convex, curvature, 1.0), 0.0)
        z = iterate.z + alpha * d
        slope = g + alpha * Hd
        cost = iterate.cost + alpha * (g @ d) + 0.5 * alpha**2 * curvature
        status = jnp.where(convex, int(Status.ITERATION_LIMIT), int(Status.NOT_CONVEX))
        beta = slope @ slope / (g @ g)
        iterate = advance(
            iterate, z, cost, slope,
            stationarity=stationarity(z, slope, cost), step=jnp.linalg.norm(alpha * d), status=status,
            tolerance=tolerance,
        )  # fmt: skip
        return iterate, -slope + beta * d

    iterate = start(z, cost, slope, stationarity(z, slope, cost), max_iterations, tolerance)
    go = lambda carry: carry[0].running & (carry[0].iterations < max_iterations)  # noqa: E731
    return jax.lax.while_loop(go, body, (iterate, -slope))[0]


DENSE = 500
"""Largest number of unknowns for which the Hessian is formed to look at its eigenvalues."""


def lowest_curvature(objective: Objective, z: Any) -> tuple[float, float]:
    """Return the lowest eigenvalue of the Hessian and the size of its spectrum, on the host."""
    n = z.size
    if n <= DENSE:
        values = np.linalg.eigvalsh(np.asarray(_hessian(objective, z)))
        return float(values[0]), float(np.abs(values).max())
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
