r"""Infinite horizon: the discrete algebraic Riccati equation by structured doubling, and its derivative.

    P = Q + A'P A - (M + A'P B)(R + B'P B)^{-1}(M' + B'P A),      K = -(R + B'P B)^{-1}(M' + B'P A)

One doubling step does the work of as many Riccati steps as all before it together, so about ten suffice:

    A <- A W A,   G <- G + A W G A',   H <- H + A' H W A,    W = (I + G H)^{-1},    G = B R^{-1} B',  H -> P

Derivatives do not go through these steps. K minimizes over u, so to first order P changes only by the data, seen along
u = K x; this is linear in dP, and doubling solves it too:

    dP - F'dP F = [I; K]'(dTheta + 2 sym(dZ'P Z))[I; K],     Z = [A, B], Theta = [[Q, M], [M', R]], F = A + B K.

P on the right is itself differentiable, and so is the linear equation: the rule gives derivatives of every order.

The steady-state Kalman filter is the dual: its covariance solves the equation of A', C', W, V.

References: Chu, Fan, Lin and Wang (2004), Structure-preserving algorithms for periodic discrete-time algebraic Riccati
equations, International Journal of Control 77, section 2; Smith (1968), Matrix equation XA + BX = C, SIAM Journal on
Applied Mathematics 16; Kao and Hennequin (2020), Automatic differentiation of Sylvester, Lyapunov, and algebraic
Riccati equations, arXiv 2011.11430.
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
        M: (nx, nu) cross weight, [Q M; M' R] positive semidefinite; None is zero.

    Raises:
        ValueError: as `dlqr`.

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

    MATLAB's and python-control's gain is -K. Both are differentiable in all data, forward and reverse.

    Args:
        A: (nx, nx).
        B: (nx, nu).
        Q: (nx, nx), symmetric, positive semidefinite.
        R: (nu, nu), symmetric, positive definite.
        M: (nx, nu) cross weight, [Q M; M' R] positive semidefinite; None is zero.

    Raises:
        ValueError: for wrong shapes or weights, or if no stabilizing solution is found: (A, B) not stabilizable or a
            mode on the unit circle that the cost does not see. Where numbers cannot be looked at, under `jit` or
            `vmap`, K and P are NaN instead, and also if the cost does not see a mode outside the unit circle.

    Example:
        >>> import optctl as oc
        >>> K, P = oc.dlqr([[1.0]], [[1.0]], [[1.0]], [[1.0]])
        >>> print(K.round(6))
        [[-0.618034]]

    References:
        Anderson and Moore (1990), Optimal Control: Linear Quadratic Methods, chapter 3.
    """
    A, nx = _square(A)
    B = as_float(B, "B", (nx, None))
    nu = B.shape[1]
    Q = as_weight(Q, "Q", (nx, nx), stages=False)
    R = as_weight(R, "R", (nu, nu), definite=True, stages=False)
    if M is None:
        M = jnp.zeros((nx, nu), A.dtype)
    else:
        M = as_float(M, "M", (nx, nu))
        as_weight(jnp.block([[Q, M], [M.T, R]]), "[Q M; M' R]", (nx + nu, nx + nu), stages=False)
    A, B, Q, R, M = _same_type(A, B, _symmetric(Q), _symmetric(R), M)
    reason = "(`A`, `B`) may not be stabilizable, or `Q` does not see a mode of `A` on the unit circle"
    P = _solve(A, B, Q, R, M, loop="A + B K", reason=reason)
    return _gain(A, B, R, M, P), P


def dlqe(A: Any, C: Any, W: Any, V: Any) -> tuple[Any, Any]:
    """Return (L, P): gain and covariance of the steady-state Kalman filter of x+ = A x + w, y = C x + v.

    A measurement updates the predicted state x by L (y - C x); P is the covariance of the predicted state's error:

        L = P C'(C P C' + V)^{-1},      P = A (P - L C P) A' + W.

    MATLAB's `dlqe` has the same L and P; the gain of the one-step predictor, python-control's, is A L. Both are
    differentiable in all data, forward and reverse.

    Args:
        A: (nx, nx).
        C: (ny, nx).
        W: (nx, nx) covariance of w, symmetric, positive semidefinite; may be singular.
        V: (ny, ny) covariance of v, symmetric, positive definite.

    Returns:
        L, shape (nx, ny), and P, shape (nx, nx).

    Raises:
        ValueError: for wrong shapes or covariances, or if no filter with a stable error is found: (A, C) not detectable
            or a mode on the unit circle that the noise does not drive; under `jit` or `vmap` L and P are NaN instead,
            as for `dlqr`. A singular V is refused even where C P C' + V would be invertible.

    Example:
        >>> import optctl as oc
        >>> L, P = oc.dlqe([[1.0]], [[1.0]], [[1.0]], [[1.0]])
        >>> print(L.round(6), P.round(6))
        [[0.618034]] [[1.618034]]

    References:
        Anderson and Moore (1979), Optimal Filtering, chapter 4; Durbin and Koopman (2012), Time Series Analysis by
        State Space Methods, section 4.3.4.
    """
    A, nx = _square(A)
    C = as_float(C, "C", (None, nx))
    ny = C.shape[0]
    W = as_weight(W, "W", (nx, nx), stages=False)
    V = as_weight(V, "V", (ny, ny), definite=True, stages=False)
    A, C, W, V = _same_type(A, C, _symmetric(W), _symmetric(V))
    reason = "(`A`, `C`) may not be detectable, or `W` does not drive a mode of `A` on the unit circle"
    P = _solve(A.T, C.T, W, V, jnp.zeros_like(C.T), loop="A - A L C", reason=reason)
    return _filter_gain(C, V, P), P


def _square(A: Any) -> tuple[Any, int]:
    A = as_float(A, "A", (None, None))
    check_shape(A, "A", (A.shape[0], A.shape[0]))
    if not A.shape[0]:
        raise ValueError("`A` has shape (0, 0); expected at least one state.")
    return A, A.shape[0]


def _symmetric(weight: Any) -> Any:
    # A derivative may ask for what a skew part does: nothing, as in x'Q x.
    return (weight + weight.T) / 2


def _same_type(*arrays: Any) -> list[Any]:
    return [jnp.asarray(array, jnp.result_type(*arrays)) for array in arrays]


def _solve(A: Any, B: Any, Q: Any, R: Any, M: Any, *, loop: str, reason: str) -> Any:
    """Return P with its derivative, or raise; `loop` names the matrix that should be stable."""
    data = A, B, Q, R, M
    # Inside `grad`, but outside `jit`, this leaves plain numbers: a failure raises there too.
    still = jax.lax.stop_gradient(data)
    P, radius = _stabilizing(*still)
    if is_concrete(radius) and not float(radius) < 1:
        P, radius = _ordered_schur(*still, radius)
    if is_concrete(radius) and not float(radius) < 1:
        if np.isnan(radius):
            what = "the doubling iteration did not converge"
        else:
            what = f"{loop} has spectral radius {float(radius):.6g}"
        raise ValueError(f"no stabilizing solution: {what}; {reason}.")
    return _value(*data, P)


def _ordered_schur(A: Any, B: Any, Q: Any, R: Any, M: Any, radius: Any) -> tuple[Any, Any]:
    """Find the stabilizing solution where doubling found another one: the cost does not see an unstable mode."""
    A, B, Q, R, M = (np.asarray(m) for m in (A, B, Q, R, M))
    try:
        P = scipy.linalg.solve_discrete_are(A, B, Q, R, s=M)
    except (np.linalg.LinAlgError, ValueError):
        return None, radius
    K = -np.linalg.solve(R + B.T @ P @ B, M.T + B.T @ P @ A)
    return jnp.asarray(P, A.dtype), np.abs(np.linalg.eigvals(A + B @ K)).max()


@jax.jit
def _stabilizing(A: Any, B: Any, Q: Any, R: Any, M: Any) -> tuple[Any, Any]:
    """Return P, NaN if it does not stabilize, and the spectral radius of A + B K."""
    RinvBM = jnp.linalg.solve(R, jnp.concatenate([B.T, M.T], axis=1))
    RinvB, RinvM = RinvBM[:, : A.shape[0]], RinvBM[:, A.shape[0] :]
    P = _double(A - B @ RinvM, B @ RinvB, Q - M @ RinvM)
    P = _refine(_refine(P, A, B, Q, R, M), A, B, Q, R, M)
    radius = jnp.max(jnp.abs(jnp.linalg.eigvals(A + B @ _gain(A, B, R, M, P))))
    return jnp.where(radius < 1, P, jnp.nan), radius


def _refine(P: Any, A: Any, B: Any, Q: Any, R: Any, M: Any) -> Any:
    """One Newton step: the cost of the gain that P gives; P itself where that gain does not stabilize."""
    K = _gain(A, B, R, M, P)
    cross = M @ K
    better = _smith(A + B @ K, Q + K.T @ R @ K + cross + cross.T)
    better = (better + better.T) / 2
    return jnp.where(jnp.all(jnp.isfinite(better)), better, P)


def _double(A: Any, G: Any, H: Any) -> Any:
    eye = jnp.eye(A.shape[0], dtype=A.dtype)
    tolerance = 4 * jnp.finfo(A.dtype).eps

    def step(carry: tuple) -> tuple:
        A, G, H, _, i = carry
        WA_WG = jnp.linalg.solve(eye + G @ H, jnp.concatenate([A, G], axis=1))
        WA, WG = WA_WG[:, : A.shape[0]], WA_WG[:, A.shape[0] :]
        change = A.T @ H @ WA
        H_next = H + (change + change.T) / 2
        d = jnp.sqrt(jnp.abs(jnp.diagonal(H_next)))  # small entries of P beside large ones count, too
        moving = jnp.any(jnp.abs(change) > tolerance * jnp.outer(d, d) + jnp.finfo(d.dtype).tiny)
        G_next = G + A @ WG @ A.T
        return A @ WA, (G_next + G_next.T) / 2, H_next, moving, i + 1

    start = (A, G, H, jnp.array(True), 0)
    _, _, P, moving, _ = jax.lax.while_loop(lambda c: c[3] & (c[4] < DOUBLINGS), step, start)
    return jnp.where(moving, jnp.nan, P)


@jax.jit
def _gain(A: Any, B: Any, R: Any, M: Any, P: Any) -> Any:
    return -jnp.linalg.solve(R + B.T @ P @ B, M.T + B.T @ P @ A)


@jax.jit
def _filter_gain(C: Any, V: Any, P: Any) -> Any:
    return jnp.linalg.solve(C @ P @ C.T + V, C @ P).T


@jax.custom_jvp
def _riccati(A: Any, B: Any, Q: Any, R: Any, M: Any, P: Any) -> Any:
    """Return P, which was computed for these data, with its derivative in them."""
    return P


@_riccati.defjvp
def _tangent(primals: tuple, tangents: tuple) -> tuple:
    A, B, _, R, M, _ = primals
    dA, dB, dQ, dR, dM, _ = tangents
    P = _riccati(*primals)
    K = _gain(A, B, R, M, P)
    F, dF = A + B @ K, dA + dB @ K
    half = dM @ K + dF.T @ P @ F
    return P, _stein(F, dQ + K.T @ dR @ K + half + half.T)


_value = jax.jit(_riccati)  # so that outside `jit` too the rule is compiled once


def _stein(F: Any, forcing: Any) -> Any:
    """Return X with X - F'X F = forcing, for stable F, differentiable in both."""
    return jax.lax.custom_linear_solve(
        lambda X: X - F.T @ X @ F,
        forcing,
        solve=lambda _, b: _smith(F, b),
        transpose_solve=lambda _, b: _smith(F.T, b),
    )


def _smith(F: Any, forcing: Any) -> Any:
    """Sum F'^k forcing F^k: each step doubles the number of terms."""

    def step(carry: tuple) -> tuple:
        X, F, i = carry
        return X + F.T @ X @ F, F @ F, i + 1

    def settled(F: Any) -> Any:
        # What is still to come is F'X F and smaller, F the power reached. False for NaN, where no P stabilizes: the
        # loop then carries it into X, for a derivative must not look finite.
        return jnp.sum(F**2) <= jnp.finfo(F.dtype).eps

    return jax.lax.while_loop(lambda c: ~settled(c[1]) & (c[2] < DOUBLINGS), step, (forcing, F, 0))[0]
