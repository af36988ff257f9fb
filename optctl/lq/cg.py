r"""The quadratic model by conjugate gradients: matrix-free, no R + B'PB to factor.

The states are eliminated by a rollout, the slope in the inputs and in the free components y of x_0 comes from the
costate recursion:

    g_u = R u + M'x + r + B'lambda,     g_y = E(Q0 E y + lambda_0) + (I - E) y - w.

Conjugate gradients on g = 0 need one forward and one backward sweep of vectors per iteration. There are no gains and no
value function, and badly scaled or long unstable problems converge slowly or not at all, which the result says.

Reference: Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optctl.lq.kkt import Point, times, transposed_times
from optctl.lq.model import LQ


def sweep(lq: LQ, factors: None, b: Point) -> tuple[Point, None, None]:
    """Solve the optimality system with right-hand side b; NaN where the iteration did not converge."""
    full = lq.per_stage()
    is_free = jnp.asarray(lq.x0_free)

    def point(y: Any, us: Any, b: Point) -> Point:
        """Return states and costates that satisfy their rows of the system."""
        x0 = jnp.where(is_free, y, 0.0) - b.costates[0]
        xs = _rollout(full.A, times(full.B, us) - b.costates[1:], x0)
        stage = times(full.Q, xs[:-1]) + times(full.M, us) - b.xs[:-1]
        return Point(y, xs, us, _costates(full.A, stage, full.Qf @ xs[-1] - b.xs[-1]))

    def terms(y: Any, us: Any, b: Point) -> tuple[list, list]:
        """Return what the slopes in y and in us are sums of."""
        z = point(y, us, b)
        x, costates = z.xs[:-1], z.costates[1:]
        at_start = jnp.where(is_free, full.Q0 @ jnp.where(is_free, y, 0.0), y), jnp.where(is_free, z.costates[0], 0.0)
        at_stages = times(full.R, us), transposed_times(full.M, x), transposed_times(full.B, costates)
        return [*at_start, -b.start], [*at_stages, -b.us]

    def slope(y: Any, us: Any, b: Point) -> Any:
        return tuple(sum(part[1:], part[0]) for part in terms(y, us, b))

    nothing = jax.tree.map(jnp.zeros_like, b)
    first = jax.tree.map(jnp.negative, slope(nothing.start, nothing.us, b))
    eps = jnp.finfo(b.us.dtype).eps
    limit = 4 * (b.us.size + b.start.size) + 50
    product = lambda v: slope(v[0], v[1], nothing)  # noqa: E731
    (y, us), _ = jax.scipy.sparse.linalg.cg(product, first, tol=100 * eps, maxiter=limit)
    converged = _is_convex(product, first)
    for part in terms(y, us, b):  # those of y and of us may differ in size
        left, size = jnp.sum(sum(part[1:], part[0]) ** 2), sum(jnp.sum(term**2) for term in part)
        converged &= (left <= eps * size) & jnp.isfinite(size)  # terms cancel to half of the digits, at least
    return jax.tree.map(lambda v: jnp.where(converged, v, jnp.nan), point(y, us, b)), None, None


def _is_convex(product: Any, like: tuple) -> Any:
    """Look for negative curvature by power iterations, on the Hessian and then on its distance from the largest."""
    start = jax.tree.map(lambda v: jnp.cos(jnp.arange(v.size, dtype=v.dtype) ** 2 + 1).reshape(v.shape), like)

    def dot(a: tuple, b: tuple) -> Any:
        return sum(jnp.sum(x * y) for x, y in zip(a, b, strict=True))

    def iterate(matrix: Any) -> Any:
        def step(_: Any, v: tuple) -> tuple:
            w = matrix(v)
            return tuple(x / (jnp.sqrt(dot(w, w)) + jnp.finfo(x.dtype).tiny) for x in w)

        v = jax.lax.fori_loop(0, 300, step, step(0, start))
        return dot(v, product(v)), dot(v, v)

    largest, _ = iterate(product)
    lowest, _ = iterate(lambda v: tuple(1.1 * jnp.abs(largest) * x - y for x, y in zip(v, product(v), strict=True)))
    return lowest >= -jnp.sqrt(jnp.finfo(lowest.dtype).eps) * jnp.abs(largest)


def _rollout(A: Any, forcing: Any, x0: Any) -> Any:
    def stage(x: Any, data: tuple) -> tuple:
        A, f = data
        x = A @ x + f
        return x, x

    return jnp.concatenate([x0[None], jax.lax.scan(stage, x0, (A, forcing))[1]])


def _costates(A: Any, slopes: Any, last: Any) -> Any:
    def stage(costate: Any, data: tuple) -> tuple:
        A, g = data
        costate = A.T @ costate + g
        return costate, costate

    return jnp.concatenate([jax.lax.scan(stage, last, (A, slopes), reverse=True)[1], last[None]])
