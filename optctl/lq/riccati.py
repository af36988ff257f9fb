r"""The Riccati recursion: the linear-time solution of the quadratic model, and the definition of all faster ones.

Backward, with the value function V_t(x) = 1/2 x'P_t x + p_t'x (+ constant), P_N = Qf, p_N = qf, the matrix sweep

    S = R + B'P B,   H = M' + B'P A,   K_t = -S^{-1} H,   P_t = Q + A'P A + H'K_t          P, p of stage t+1

needs no right-hand side; its results are kept (`Factors`), and any number of right-hand sides costs only vectors:

    g = P c + p,     h = r + B'g,      k_t = -S^{-1} h,   p_t = q + A'g + K_t'h.

Forward: x_0 given, or the minimizer of its free components; then u_t = K_t x_t + k_t, x+ = A x + B u + c.
Costates are P_t x_t + p_t = dJ/dx_t. Per stage O((nx + nu)^3) for the matrices, O((nx + nu)^2) for the vectors.

Reference: Anderson and Moore (1990), Optimal Control: Linear Quadratic Methods, section 2.4.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl.lq.kkt import Point
from optctl.lq.model import LQ


@record(static=("x0_free",))
class Factors:
    """What the matrix sweep leaves behind; it serves any c, q, r, qf and x0.

    Attributes:
        K: (N, nu, nx) gains.
        P: (N+1, nx, nx) value function's Hessian.
        S: (N, nu, nu) factors of R + B'PB = U'DU: U unit upper triangular, the pivots D in place of its diagonal.
        S0: (nx, nx) the same for the system of the free components of x_0.
        failed_stage: the stage where R + B'PB was not positive definite, -1 if none; earlier results are NaN.
        x0_free: which components of x_0 are free.
    """

    K: Any
    P: Any
    S: Any
    S0: Any
    failed_stage: Any
    x0_free: Any


def factor(lq: LQ) -> Factors:
    """Sweep backward over the matrices."""
    lq = lq.per_stage()

    def stage(P: Any, data: tuple) -> tuple:
        A, B, Q, R, M = data
        S = cholesky_or_nan(R + B.T @ P @ B)
        H = M.T + B.T @ P @ A
        K = -jax.scipy.linalg.cho_solve((S, True), H)
        P_t = Q + A.T @ P @ A + H.T @ K
        P_t = (P_t + P_t.T) / 2
        return P_t, (K, S, P_t)

    _, (K, S, P) = jax.lax.scan(stage, lq.Qf, (lq.A, lq.B, lq.Q, lq.R, lq.M), reverse=True)
    return finish(lq, K, jnp.concatenate([P, lq.Qf[None]]), S)


def finish(lq: LQ, K: Any, P: Any, S: Any) -> Factors:
    """Pack the Cholesky factors S, factor the system of x_0, find the stage that failed."""
    good = jnp.all(jnp.isfinite(P[:-1]), axis=(1, 2)) & jnp.all(jnp.isfinite(S), axis=(1, 2))
    failed = jnp.max(jnp.where(good, -1, jnp.arange(good.shape[0], dtype=jnp.int32)))
    is_free = jnp.asarray(lq.x0_free)
    both = is_free[:, None] & is_free[None, :]
    S0 = cholesky_or_nan(jnp.where(both, lq.Q0 + P[0], jnp.eye(lq.nx, dtype=P.dtype)))
    failed = jnp.where((failed < 0) & ~jnp.all(jnp.isfinite(S0)), 0, failed)
    return Factors(K, P, packed(S), packed(S0), failed.astype(jnp.int32), lq.x0_free)


def sweep(lq: LQ, factors: Factors, b: Point) -> tuple[Point, Any, Any]:
    """Solve the optimality system with right-hand side b; return its solution and k, p."""
    lq = lq.per_stage()
    is_free = jnp.asarray(lq.x0_free)

    def back(p: Any, data: tuple) -> tuple:
        A, B, K, S, P, c, q, r = data
        g = P @ c + p
        h = r + B.T @ g
        k = -solve_packed(S, h)
        p_t = q + A.T @ g + K.T @ h
        return p_t, (k, p_t)

    c, q, r, qf = -b.costates[1:], -b.xs[:-1], -b.us, -b.xs[-1]
    _, (k, p) = jax.lax.scan(back, qf, (lq.A, lq.B, factors.K, factors.S, factors.P[1:], c, q, r), reverse=True)
    p = jnp.concatenate([p, qf[None]])
    e = -b.costates[0]
    y = solve_packed(factors.S0, b.start - jnp.where(is_free, factors.P[0] @ e + p[0], 0.0))

    def forward(x: Any, data: tuple) -> tuple:
        A, B, K, c, k = data
        u = K @ x + k
        x_next = A @ x + B @ u + c
        return x_next, (x_next, u)

    x0 = e + jnp.where(is_free, y, 0.0)
    _, (xs, us) = jax.lax.scan(forward, x0, (lq.A, lq.B, factors.K, c, k))
    xs = jnp.concatenate([x0[None], xs])
    costates = jnp.einsum("tij,tj->ti", factors.P, xs) + p
    return Point(y, xs, us, costates), k, p


def spread(F: Any, scatter: Any, first: Any) -> Any:
    """Return (N+1, nx, nx), covariances of x+ = F x + w with w of covariance `scatter`, from the first one on."""

    def stage(Sigma: Any, data: tuple) -> tuple:
        F, scatter = data
        Sigma_next = F @ Sigma @ F.T + scatter
        return Sigma_next, Sigma_next

    _, Sigmas = jax.lax.scan(stage, first, (F, scatter))
    return jnp.concatenate([first[None], Sigmas])


def cholesky_or_nan(S: Any) -> Any:
    """Return the Cholesky factors, NaN where a pivot is lost in rounding: S is singular."""
    factor = jnp.linalg.cholesky(S)
    diagonal = functools.partial(jnp.diagonal, axis1=-2, axis2=-1)
    lost = jnp.any(diagonal(factor) ** 2 <= 8 * jnp.finfo(S.dtype).eps * diagonal(S), axis=-1)
    return factor * jnp.where(lost, jnp.nan, 1.0).astype(S.dtype)[..., None, None]


def packed(cholesky: Any) -> Any:
    """Turn Cholesky factors L, L L' = S, into S = U'DU in one matrix: U above the diagonal, D on it."""
    d = jnp.diagonal(cholesky, axis1=-2, axis2=-1)
    U = jnp.swapaxes(cholesky / d[..., None, :], -1, -2)
    return jnp.where(jnp.eye(d.shape[-1], dtype=bool), d[..., None] ** 2, U)


def solve_packed(factor: Any, b: Any) -> Any:
    """Solve U'DU x = b, one matrix and one vector or matrix of right-hand sides."""
    d = jnp.diagonal(factor)
    scale = d if b.ndim == 1 else d[:, None]
    y = jax.scipy.linalg.solve_triangular(factor, b, trans=1, unit_diagonal=True)
    return jax.scipy.linalg.solve_triangular(factor, y / scale, unit_diagonal=True)
