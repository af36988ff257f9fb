r"""The same sweeps in O(log N) parallel steps, for accelerators: associative scans.

Stages i..j-1 together map a state x and the slope at stage j to a quadratic; three matrices describe it:
V_i(x) = max over z of { ... }, with A (transition), C (what control can reach) and J (cost). Two such elements combine:

    A = A2 (I + C1 J2)^{-1} A1,   C = A2 (I + C1 J2)^{-1} C1 A2' + C2,   J = A1'(I + J2 C1)^{-1} J2 A1 + J1.

A single stage is (A - B R^{-1}M', B R^{-1}B', Q - M R^{-1}M'), so R itself must be positive definite here; the end is
(0, 0, Qf). The J of all stages from t on is P_t. Slopes and states are affine recursions under the closed loop A + B K,
which combine by composition.

Reference: Särkkä and García-Fernández (2023), Temporal parallelization of dynamic programming and linear quadratic
control, IEEE Transactions on Automatic Control 68, section IV.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optctl.lq.kkt import Point, times, transposed_times
from optctl.lq.model import LQ
from optctl.lq.riccati import Factors, cholesky_or_nan, finish, solve_packed


def factor(lq: LQ) -> Factors:
    """Find all value functions at once by an associative scan from the end."""
    lq = lq.per_stage()
    nx = lq.nx
    zeros = jnp.zeros_like(lq.Qf)[None]
    RinvBM = _solve_each(lq.R, jnp.concatenate([_transpose(lq.B), _transpose(lq.M)], axis=2))
    RinvB, RinvM = RinvBM[..., :nx], RinvBM[..., nx:]
    elements = (
        jnp.concatenate([lq.A - lq.B @ RinvM, zeros]),
        jnp.concatenate([lq.B @ RinvB, zeros]),
        jnp.concatenate([_symmetric(lq.Q - lq.M @ RinvM), lq.Qf[None]]),
    )
    _, _, P = jax.lax.associative_scan(lambda late, early: _combine(early, late), elements, reverse=True)
    G = _transpose(lq.B) @ P[1:]
    S = cholesky_or_nan(_symmetric(lq.R + G @ lq.B))
    H = _transpose(lq.M) + G @ lq.A
    K = -_solve_each(S, H, factored=True)
    # Products of many unstable A overflow without a trace; so each stage must satisfy the recursion.
    P_expected = lq.Q + _transpose(lq.A) @ P[1:] @ lq.A + _transpose(H) @ K
    gap = jnp.max(jnp.abs(P[:-1] - P_expected), axis=(1, 2))
    good = gap <= jnp.sqrt(jnp.finfo(P.dtype).eps) * jnp.max(jnp.abs(P_expected), axis=(1, 2))
    lost = jnp.concatenate([~good, jnp.zeros_like(good[:1])])
    return finish(lq, K, jnp.where(lost[:, None, None], jnp.nan, P), S)


def sweep(lq: LQ, factors: Factors, b: Point) -> tuple[Point, Any, Any]:
    """Solve the optimality system with right-hand side b; return its solution and k, p."""
    lq = lq.per_stage()
    c, q, r, qf = -b.costates[1:], -b.xs[:-1], -b.us, -b.xs[-1]
    K, P = factors.K, factors.P
    closed = lq.A + lq.B @ K
    forcing = q + transposed_times(K, r) + transposed_times(closed, times(P[1:], c))
    p = _affine(_transpose(closed), forcing, qf, reverse=True)
    h = r + transposed_times(lq.B, times(P[1:], c) + p[1:])
    k = -jax.vmap(solve_packed)(factors.S, h)
    is_free = jnp.asarray(lq.x0_free)
    e = -b.costates[0]
    y = solve_packed(factors.S0, b.start - jnp.where(is_free, P[0] @ e + p[0], 0.0))
    xs = _affine(closed, times(lq.B, k) + c, e + jnp.where(is_free, y, 0.0))
    us = times(K, xs[:-1]) + k
    return Point(y, xs, us, times(P, xs) + p), k, p


def _combine(first: tuple, second: tuple) -> tuple:
    A1, C1, J1 = first
    A2, C2, J2 = second
    eye = jnp.eye(A1.shape[-1], dtype=A1.dtype)
    inverse = jnp.linalg.solve(eye[None] + C1 @ J2, jnp.concatenate([A1, C1], axis=-1))
    WA, WC = inverse[..., : A1.shape[-1]], inverse[..., A1.shape[-1] :]
    A = A2 @ WA
    C = A2 @ WC @ _transpose(A2) + C2
    J = _transpose(A1) @ J2 @ WA + J1
    return A, _symmetric(C), _symmetric(J)


def _affine(F: Any, f: Any, start: Any, *, reverse: bool = False) -> Any:
    """Return all z of z+ = F z + f from `start`; in reverse, z_t = F_t z_{t+1} + f_t."""
    eye, zero = jnp.zeros_like(F[:1]), start[None]
    order = (f, zero) if reverse else (zero, f)
    matrices = jnp.concatenate([F, eye] if reverse else [eye, F])

    def compose(first: tuple, second: tuple) -> tuple:
        F1, f1 = first
        F2, f2 = second
        return F2 @ F1, times(F2, f1) + f2

    return jax.lax.associative_scan(compose, (matrices, jnp.concatenate(order)), reverse=reverse)[1]


def _solve_each(matrices: Any, rows: Any, *, factored: bool = False) -> Any:
    factors = matrices if factored else jnp.linalg.cholesky(matrices)
    return jax.vmap(lambda L, b: jax.scipy.linalg.cho_solve((L, True), b))(factors, rows)


def _transpose(matrices: Any) -> Any:
    return jnp.swapaxes(matrices, -1, -2)


def _symmetric(matrices: Any) -> Any:
    return (matrices + _transpose(matrices)) / 2
