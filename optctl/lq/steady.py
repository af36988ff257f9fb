r"""Infinite horizon: the discrete algebraic Riccati equation by structured doubling.

    P = Q + A'P A - (M + A'P B)(R + B'P B)^{-1}(M' + B'P A),      K = -(R + B'P B)^{-1}(M' + B'P A)

One doubling step does the work of as many Riccati steps as all before it together, so about ten suffice:

    A <- A W A,   G <- G + A W G A',   H <- H + A' H W A,    W = (I + G H)^{-1},    G = B R^{-1} B',  H -> P

Reference: Chu, Fan, Lin and Wang (2004), Structure-preserving algorithms for periodic discrete-time algebraic
Riccati equations, International Journal of Control 77, section 2.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from optctl._validate import as_float, as_weight, check_shape, is_concrete

DOUBLINGS = 60


def dare(A: Any, B: Any, Q: Any, R: Any, M: Any = None) -> Any:
    """Return the stabilizing solution P of the discrete algebraic Riccati equation, (nx, nx).

    Args:
        A: (nx, nx).
        B: (nx, nu).
        Q: (nx, nx), symmetric, positive semidefinite.
        R: (nu, nu), symmetric, positive definite.
        M: (nx, nu) cross weight; None is zero.

    Raises:
        ValueError: for wrong shapes or weights, or if no stabilizing solution is found: (A, B) not stabilizable or a
            mode on the unit circle that the cost does not see.

    Example:
        >>> import optctl as oc
        >>> print(oc.dare([[1.0]], [[1.0]], [[1.0]], [[1.0]]).round(6))
        [[1.618034]]

    References:
        Chu, Fan, Lin and Wang (2004), International Journal of Control 77, section 2.
    """
    return dlqr(A, B, Q, R, M)[1]


def dlqr(A: Any, B: Any, Q: Any, R: Any, M: Any = None) -> tuple[Any, Any]:
    """Return (K, P): the infinite-horizon gain, u = K x, shape (nu, nx), and the value function 1/2 x'P x.

    MATLAB's and python-control's gain is -K.

    Args:
        A: (nx, nx).
        B: (nx, nu).
        Q: (nx, nx), symmetric, positive semidefinite.
        R: (nu, nu), symmetric, positive definite.
        M: (nx, nu) cross weight; None is zero.

    Raises:
        ValueError: as `dare`.

    Example:
        >>> import optctl as oc
        >>> K, P = oc.dlqr([[1.0]], [[1.0]], [[1.0]], [[1.0]])
        >>> print(K.round(6))
        [[-0.618034]]

    References:
        Anderson and Moore (1990), Optimal Control: Linear Quadratic Methods, chapter 3.
    """
    A = as_float(A, "A", (None, None))
    nx = A.shape[0]
    check_shape(A, "A", (nx, nx))
    B = as_float(B, "B", (nx, None))
    nu = B.shape[1]
    Q = as_weight(Q, "Q", (nx, nx))
    R = as_weight(R, "R", (nu, nu), definite=True)
    M = jnp.zeros((nx, nu), A.dtype) if M is None else as_float(M, "M", (nx, nu))
    K, P, radius = _dlqr(*(jnp.asarray(m) for m in (A, B, Q, R, M)))
    if is_concrete(radius) and not float(radius) < 1:
        K, P, radius = _ordered_schur(A, B, Q, R, M, radius)
    if is_concrete(radius) and not float(radius) < 1:
        if np.isnan(radius):
            what = "the doubling iteration did not converge"
        else:
            what = f"the closed loop has spectral radius {float(radius):.6g}"
        raise ValueError(
            f"no stabilizing solution: {what}; (`A`, `B`) may not be stabilizable, or `Q` does not see a mode of `A`"
            " on or outside the unit circle."
        )
    return K, P


def _ordered_schur(A: Any, B: Any, Q: Any, R: Any, M: Any, radius: Any) -> tuple[Any, Any, Any]:
    """Find the stabilizing solution where doubling found another one: the cost does not see an unstable mode."""
    A, B, Q, R, M = (np.asarray(m) for m in (A, B, Q, R, M))
    try:
        P = scipy.linalg.solve_discrete_are(A, B, Q, R, s=M)
    except (np.linalg.LinAlgError, ValueError):
        return None, None, radius
    K = -np.linalg.solve(R + B.T @ P @ B, M.T + B.T @ P @ A)
    return jnp.asarray(K), jnp.asarray(P), np.abs(np.linalg.eigvals(A + B @ K)).max()


@jax.jit
def _dlqr(A: Any, B: Any, Q: Any, R: Any, M: Any) -> tuple[Any, Any, Any]:
    RinvBM = jnp.linalg.solve(R, jnp.concatenate([B.T, M.T], axis=1))
    RinvB, RinvM = RinvBM[:, : A.shape[0]], RinvBM[:, A.shape[0] :]
    P = _double(A - B @ RinvM, B @ RinvB, Q - M @ RinvM)
    K = -jnp.linalg.solve(R + B.T @ P @ B, M.T + B.T @ P @ A)
    return K, P, jnp.max(jnp.abs(jnp.linalg.eigvals(A + B @ K)))


def _double(A: Any, G: Any, H: Any) -> Any:
    eye = jnp.eye(A.shape[0], dtype=A.dtype)
    tolerance = 4 * jnp.finfo(A.dtype).eps

    def step(carry: tuple) -> tuple:
        A, G, H, _, i = carry
        WA_WG = jnp.linalg.solve(eye + G @ H, jnp.concatenate([A, G], axis=1))
        WA, WG = WA_WG[:, : A.shape[0]], WA_WG[:, A.shape[0] :]
        change = A.T @ H @ WA
        H_next = H + (change + change.T) / 2
        moving = jnp.max(jnp.abs(change)) > tolerance * jnp.max(jnp.abs(H_next))
        G_next = G + A @ WG @ A.T
        return A @ WA, (G_next + G_next.T) / 2, H_next, moving, i + 1

    start = (A, G, H, jnp.array(True), 0)
    _, _, P, moving, _ = jax.lax.while_loop(lambda c: c[3] & (c[4] < DOUBLINGS), step, start)
    return jnp.where(moving, jnp.nan, P)
