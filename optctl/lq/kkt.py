r"""The optimality (KKT) system of the quadratic model: one symmetric linear equation.

The unknowns are the states, the inputs, the costates and y, the free components of x_0, x_0 = E y + (given part), with
E the diagonal matrix of ones where x_0 is free. Setting the slopes of the Lagrangian

    J(x, u) + lambda_0'(E y + given - x_0) + sum_t lambda_{t+1}'(A x_t + B u_t + c - x_{t+1})

to zero gives, row by row, the operator of `apply` on the left and the data of `right_hand_side` on the right:

    y:          E Q0 E y + (I - E) y + E lambda_0         =  (I - E) x0 - E (q0 + Q0 (I - E) x0)
    x_t:        Q x_t + M u_t + A'lambda_{t+1} - lambda_t = -q            x_N:  Qf x_N - lambda_N = -qf
    u_t:        M'x_t + R u_t + B'lambda_{t+1}            = -r
    lambda_0:   E y - x_0 = -(I - E) x0                   lambda_{t+1}:   A x_t + B u_t - x_{t+1} = -c

Since the operator is symmetric, its derivative in any direction, forward or reverse, is one more solve with it.

Reference: Nocedal and Wright (2006), Numerical Optimization, section 16.1.
"""

from typing import Any

import jax.numpy as jnp

from optctl._arrays import namespace
from optctl._record import record
from optctl.lq.model import LQ


@record()
class Point:
    """Unknowns of the system, or one row of numbers for each of them.

    Attributes:
        start: (nx,) y; where x_0 is given, that value.
        xs: (N+1, nx) states.
        us: (N, nu) inputs.
        costates: (N+1, nx).
    """

    start: Any
    xs: Any
    us: Any
    costates: Any

    def pack(self) -> Any:
        """Return all numbers in one vector."""
        xp = namespace(self.xs)
        return xp.concatenate([self.start, self.xs.ravel(), self.us.ravel(), self.costates.ravel()])

    @classmethod
    def unpack(cls, z: Any, lq: LQ) -> "Point":
        """Return the point that `pack` made into the vector z."""
        N, nx, nu = lq.horizon, lq.nx, lq.nu
        start, xs, us, costates = jnp.split(z, (nx, nx + (N + 1) * nx, nx + (N + 1) * nx + N * nu))
        return cls(start, xs.reshape(N + 1, nx), us.reshape(N, nu), costates.reshape(N + 1, nx))


def apply(lq: LQ, z: Point) -> Point:
    """Multiply the system's matrix by z."""
    is_free = jnp.asarray(lq.x0_free)
    x, u, costate = z.xs[:-1], z.us, z.costates[1:]
    y = jnp.where(is_free, z.start, 0.0)
    start = jnp.where(is_free, lq.Q0 @ y + z.costates[0], z.start)
    stage = times(lq.Q, x) + times(lq.M, u) + transposed_times(lq.A, costate) - z.costates[:-1]
    last = lq.Qf @ z.xs[-1] - z.costates[-1]
    us = transposed_times(lq.M, x) + times(lq.R, u) + transposed_times(lq.B, costate)
    gaps = times(lq.A, x) + times(lq.B, u) - z.xs[1:]
    return Point(start, jnp.vstack([stage, last]), us, jnp.vstack([y - z.xs[0], gaps]))


def right_hand_side(lq: LQ) -> Point:
    """Return the system's right-hand side."""
    N, nx, nu = lq.horizon, lq.nx, lq.nu
    xp = namespace(lq.Q0)
    is_free = xp.asarray(lq.x0_free)
    given = xp.zeros_like(lq.q0) if lq.x0 is None else xp.where(is_free, 0.0, lq.x0)
    start = xp.where(is_free, -(lq.q0 + (lq.Q0 + lq.Q0.T) @ given / 2), given)
    rows = ((lq.q, nx), (lq.r, nu), (lq.c, nx))
    q, r, c = (v if v.ndim == 2 else xp.broadcast_to(v, (N, n)) for v, n in rows)
    return Point(start, -xp.concatenate([q, lq.qf[None]]), -r, -xp.concatenate([given[None], c]))


def cost(lq: LQ, xs: Any, us: Any) -> Any:
    """Return the cost of a trajectory of the model."""
    x, x0, xN = xs[:-1], xs[0], xs[-1]
    xp = namespace(xs)
    q, r = (v if v.ndim == 2 else v[None] for v in (lq.q, lq.r))
    stages = xp.sum(x * (0.5 * times(lq.Q, x) + times(lq.M, us) + q))
    inputs = xp.sum(us * (0.5 * times(lq.R, us) + r))
    start = 0.5 * x0 @ lq.Q0 @ x0 + lq.q0 @ x0 if any(lq.x0_free) else 0.0
    return stages + inputs + 0.5 * xN @ lq.Qf @ xN + lq.qf @ xN + start + lq.constant


def times(matrix: Any, rows: Any) -> Any:
    """Multiply each row by its stage's matrix, or by the one matrix of all stages."""
    xp = namespace(rows)
    return xp.einsum("...ij,...j->...i", matrix, rows)


def transposed_times(matrix: Any, rows: Any) -> Any:
    """Multiply each row by the transpose of its stage's matrix."""
    return namespace(rows).einsum("...ji,...j->...i", matrix, rows)
