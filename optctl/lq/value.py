r"""The derivative of gains and value function in the data of the quadratic model.

K_t minimizes over u, so to first order the value function changes only by the data, seen along u = K x + k:

    dP_t = [I; K]'(dTheta + 2 sym(dZ'P Z))[I; K] + F'dP F,       Z = [A, B], Theta = [[Q, M], [M', R]], F = A + B K,
    dK   = -S^{-1} [0, I] d(Theta + Z'P Z) [I; K],

and likewise for the slopes p_t and offsets k_t. One linear recursion each; JAX transposes it for reverse mode.

Reference: derived here; for the algebraic equation, Kao and Hennequin (2020), Automatic differentiation of Sylvester,
Lyapunov, and algebraic Riccati equations.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optctl.lq.kkt import times, transposed_times
from optctl.lq.model import LQ


@jax.custom_jvp
def value_function(lq: LQ, K: Any, k: Any, P: Any, p: Any) -> tuple[Any, Any, Any, Any]:
    """Return K, k, P, p, which were computed for this model, with their derivative in its data."""
    return K, k, P, p


@value_function.defjvp
def _tangent(primals: tuple, tangents: tuple) -> tuple:
    lq, d = primals[0].per_stage(), tangents[0].per_stage()
    K, k, P, p = value = value_function(*primals)
    Kt = _transpose(K)
    F, dF = lq.A + lq.B @ K, d.A + d.B @ K
    dtheta_u = _transpose(d.M) + d.R @ K  # [0, I] dTheta [I; K]
    dtheta = d.Q + d.M @ K + Kt @ dtheta_u
    PF = P[1:] @ F
    forced = _transpose(dF) @ PF
    dP = _backward(F, dtheta + forced + _transpose(forced), d.Qf)
    Bt = _transpose(lq.B)
    S = lq.R + Bt @ P[1:] @ lq.B
    dH = dtheta_u + _transpose(d.B) @ PF + Bt @ (P[1:] @ dF + dP[1:] @ F)
    dK = -jnp.linalg.solve(S, dH)
    g, free_g = times(P[1:], lq.c) + p[1:], times(dP[1:], lq.c) + times(P[1:], d.c)
    h = lq.r + transposed_times(lq.B, g)
    forcing = d.q + transposed_times(K, d.r) + transposed_times(dF, g) + transposed_times(dK, h)
    dp = _backward(F, forcing + transposed_times(F, free_g), d.qf)
    # S k = -h, so dk = -S^{-1} (dh + dS k).
    dS = d.R + _transpose(d.B) @ P[1:] @ lq.B + Bt @ (P[1:] @ d.B + dP[1:] @ lq.B)
    dh = d.r + transposed_times(d.B, g) + transposed_times(lq.B, free_g + dp[1:])
    dk = -jnp.linalg.solve(S, (dh + times(dS, k))[..., None])[..., 0]
    return value, (dK, dk, dP, dp)


def _backward(F: Any, forcing: Any, last: Any) -> Any:
    """Return z_t = F'z F + forcing for matrices, F'z + forcing for vectors, from the last one down."""

    def stage(z: Any, data: tuple) -> tuple:
        F, f = data
        z = F.T @ z @ F + f if z.ndim == 2 else F.T @ z + f
        return z, z

    _, zs = jax.lax.scan(stage, last, (F, forcing), reverse=True)
    return jnp.concatenate([zs, last[None]])


def _transpose(matrices: Any) -> Any:
    return jnp.swapaxes(matrices, -1, -2)
