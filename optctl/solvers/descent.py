r"""Gradient descent through costates, with bounds: the spectral projected gradient method.

    d = clip(z - alpha g, lower, upper) - z,   z+ = z + theta d,   g = dJ/dz

theta is halved until J falls below the largest of the last ten costs by a fraction of g'd (non-monotone Armijo).
alpha = s's / s'y, with s the last step and y the change of slope (Barzilai and Borwein), makes it as fast as a
first-order method gets; `step="armijo"` keeps plain steepest descent with a growing and shrinking alpha instead.

References: Barzilai and Borwein (1988), IMA Journal of Numerical Analysis 8; Birgin, Martinez and Raydan (2000),
SIAM Journal on Optimization 10, algorithm 2.1.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from optctl.solvers.iterate import Iterate, advance, start
from optctl.solvers.objective import Objective, cost_size, projected_gradient, scaled_stationarity
from optctl.solvers.solution import Status

MEMORY = 10
SUFFICIENT = 1e-4
SMALLEST = 1e-14


@partial(jax.jit, static_argnames=("max_iterations", "step"))
def gradient_descent(objective: Objective, z: Any, *, tolerance: Any, max_iterations: int, step: str) -> Iterate:
    """Minimise by projected gradient steps from z."""
    lower, upper = objective.bounds()
    z = jnp.clip(z, lower, upper)
    cost, slope = objective.cost_and_slope(z)
    first_cost = cost

    def stationarity(z: Any, slope: Any, cost: Any) -> Any:
        return scaled_stationarity(z, projected_gradient(z, slope, lower, upper), cost_size(cost, first_cost))

    def search(iterate: Iterate, direction: Any, ceiling: Any) -> tuple[Any, Any]:
        """Halve theta until the cost has fallen enough."""
        decrease = SUFFICIENT * iterate.slope @ direction
        # Near the optimum the decrease drowns in rounding; allow the cost that much noise.
        noise = 4 * jnp.finfo(z.dtype).eps * jnp.abs(iterate.cost)

        def too_high(theta: Any, cost: Any) -> Any:
            return ~(cost <= ceiling + theta * decrease + noise) & (theta > SMALLEST)

        def halve(carry: tuple) -> tuple:
            theta = carry[0] / 2
            return theta, objective.cost(iterate.z + theta * direction)

        first = jnp.ones((), z.dtype), objective.cost(iterate.z + direction)
        return jax.lax.while_loop(lambda c: too_high(*c), halve, first)

    def body(carry: tuple) -> tuple:
        iterate, alpha, recent = carry
        direction = jnp.clip(iterate.z - alpha * iterate.slope, lower, upper) - iterate.z
        theta, _ = search(iterate, direction, jnp.max(recent) if step == "bb" else iterate.cost)
        z = iterate.z + theta * direction
        cost, slope = objective.cost_and_slope(z)
        s, y = z - iterate.z, slope - iterate.slope
        if step == "bb":
            curvature = s @ y
            fresh = 1 / jnp.maximum(jnp.max(jnp.abs(slope)), 1e-30)
            alpha = jnp.where(curvature > 0, s @ s / jnp.where(curvature > 0, curvature, 1.0), fresh)
        else:
            alpha = alpha * jnp.where(theta == 1, 2.0, theta)
        alpha = jnp.clip(alpha, 1e-30, 1e30)
        stalled = (theta <= SMALLEST) | (jnp.max(jnp.abs(s), initial=0.0) == 0)
        status = jnp.where(stalled, int(Status.STALLED), int(Status.ITERATION_LIMIT))
        iterate = advance(
            iterate, z, cost, slope,
            stationarity=stationarity(z, slope, cost), step=jnp.linalg.norm(s), status=status, tolerance=tolerance,
        )  # fmt: skip
        return iterate, alpha, jnp.roll(recent, 1).at[0].set(cost)

    iterate = start(z, cost, slope, stationarity(z, slope, cost), max_iterations, tolerance)
    alpha = 1 / jnp.maximum(jnp.max(jnp.abs(slope), initial=0.0), 1e-30)
    recent = jnp.full(MEMORY, -jnp.inf, z.dtype).at[0].set(cost)
    go = lambda carry: carry[0].running & (carry[0].iterations < max_iterations)  # noqa: E731
    return jax.lax.while_loop(go, body, (iterate, alpha, recent))[0]
