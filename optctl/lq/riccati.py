r"""The Riccati recursion: the linear-time solution of the quadratic model.

Backward, with the value function V_t(x) = 1/2 x'P_t x + p_t'x (+ constant), P_N = Qf, p_N = qf:

    S = R + B'P B,   H = M' + B'P A,   h = r + B'(P c + p)           P, p of stage t+1
    K_t = -S^{-1} H,          k_t = -S^{-1} h                        u = K x + k
    P_t = Q + A'P A + H'K_t,  p_t = q + A'(P c + p) + H'k_t

Forward: x_0 given, or the minimizer -(Q0 + P_0)^{-1} (q0 + p_0) where it is free; then u_t = K_t x_t + k_t.
Costates are P_t x_t + p_t = dJ/dx_t. Cost per stage O((nx + nu)^3) backward, O((nx + nu)^2) forward.

Reference: Anderson and Moore (1990), Optimal Control: Linear Quadratic Methods, section 2.4.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl.lq.model import LQ
from optctl.problem import Problem


@record()
class LQSolution:
    """The solution of a quadratic model.

    Attributes:
        xs: (N+1, nx) states; None where no x_0 was asked for, as us, costates and cost.
        us: (N, nu) inputs.
        costates: (N+1, nx), dJ/dx_t = P_t x_t + p_t.
        K: (N, nu, nx) gains, u = K x + k.
        k: (N, nu) offsets.
        P: (N+1, nx, nx) value function's Hessian.
        p: (N+1, nx) value function's slope at the origin.
        cost: total cost.
        failed_stage: the stage where R + B'PB was not positive definite, -1 if none; earlier gains are NaN. With a free
            x_0 it is 0 where Q0 + P_0 was not.
    """

    xs: Any
    us: Any
    costates: Any
    K: Any
    k: Any
    P: Any
    p: Any
    cost: Any
    failed_stage: Any

    def raise_if_failed(self) -> "LQSolution":
        """Return the solution itself if the model was convex.

        Raises:
            RuntimeError: if it was not, naming the stage.
        """
        if (np.asarray(self.failed_stage) >= 0).any():
            raise RuntimeError(f"{self!r}; check the signs of Q, R and Qf there and later.")
        return self

    def __repr__(self) -> str:
        status = (
            "solved" if int(self.failed_stage) < 0 else f"R + B'PB not positive definite at stage {self.failed_stage}"
        )
        cost = "gains only" if self.cost is None else f"cost {float(self.cost):.10g}"
        return f"LQSolution: {status}, {cost}, N = {self.K.shape[0]}, nx = {self.K.shape[2]}, nu = {self.K.shape[1]}"


def solve(lq: LQ) -> LQSolution:
    """Solve a quadratic model by the Riccati recursion.

    Args:
        lq: the model; x_0 given, or free with weights Q0, q0.

    Returns:
        An `LQSolution`; `failed_stage` tells where the model is not convex in u.

    Example:
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.LinearDynamics(A=[[1.0]], B=[[1.0]]),
        ...     oc.costs.Quadratic(Q=[[1.0]], R=[[1.0]]),
        ...     oc.costs.TerminalQuadratic(Q=[[1.0]]),
        ...     horizon=30,
        ...     x0=[1.0],
        ... )
        >>> round(float(oc.lq.solve(oc.lq.LQ.from_problem(problem)).P[0, 0, 0]), 10)
        1.6180339887

    References:
        Anderson and Moore (1990), Optimal Control: Linear Quadratic Methods, section 2.4.
    """
    return _solve(lq)


@jax.jit
def _solve(lq: LQ) -> LQSolution:
    K, k, P, p = backward(lq)
    stages = jnp.arange(K.shape[0])
    bad = ~jnp.all(jnp.isfinite(K), axis=(1, 2)) | ~jnp.all(jnp.isfinite(k), axis=1)
    failed = jnp.max(jnp.where(bad, stages, -1))
    if lq.x0 is None:
        factor = jax.scipy.linalg.cho_factor(lq.Q0 + P[0], lower=True)
        x0 = -jax.scipy.linalg.cho_solve(factor, lq.q0 + p[0])
        failed = jnp.where((failed < 0) & ~jnp.all(jnp.isfinite(x0)), 0, failed)
    else:
        x0 = lq.x0
    xs, us = forward(lq, K, k, x0)
    costates = jnp.einsum("tij,tj->ti", P, xs) + p
    return LQSolution(xs, us, costates, K, k, P, p, cost(lq, xs, us), failed)


def backward(lq: LQ) -> tuple[Any, Any, Any, Any]:
    """Return K, k and the value function P, p for all stages."""

    def stage(value: tuple, data: tuple) -> tuple:
        P, p = value
        A, B, c, Q, R, M, q, r = data
        S = R + B.T @ P @ B
        H = M.T + B.T @ P @ A
        g = P @ c + p
        h = r + B.T @ g
        gains = -jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(S, lower=True), jnp.column_stack([H, h]))
        K, k = gains[:, :-1], gains[:, -1]
        P_t = Q + A.T @ P @ A + H.T @ K
        P_t = (P_t + P_t.T) / 2
        p_t = q + A.T @ g + H.T @ k
        return (P_t, p_t), (K, k, P, p)

    data = lq.A, lq.B, lq.c, lq.Q, lq.R, lq.M, lq.q, lq.r
    first, (K, k, P, p) = jax.lax.scan(stage, (lq.Qf, lq.qf), data, reverse=True)
    return K, k, jnp.concatenate([first[0][None], P]), jnp.concatenate([first[1][None], p])


def forward(lq: LQ, K: Any, k: Any, x0: Any) -> tuple[Any, Any]:
    """Return xs and us under u = K x + k."""

    def stage(x: Any, data: tuple) -> tuple:
        A, B, c, K, k = data
        u = K @ x + k
        x_next = A @ x + B @ u + c
        return x_next, (x_next, u)

    _, (xs, us) = jax.lax.scan(stage, x0, (lq.A, lq.B, lq.c, K, k))
    return jnp.concatenate([x0[None], xs]), us


def cost(lq: LQ, xs: Any, us: Any) -> Any:
    """Return the cost of a trajectory of the model."""
    x, xN = xs[:-1], xs[-1]
    stages = (
        0.5 * jnp.einsum("ti,tij,tj->", x, lq.Q, x)
        + jnp.einsum("ti,tij,tj->", x, lq.M, us)
        + 0.5 * jnp.einsum("ti,tij,tj->", us, lq.R, us)
        + jnp.sum(lq.q * x)
        + jnp.sum(lq.r * us)
    )
    start = 0.5 * xs[0] @ lq.Q0 @ xs[0] + lq.q0 @ xs[0] if lq.x0 is None else 0.0
    return stages + 0.5 * xN @ lq.Qf @ xN + lq.qf @ xN + start + lq.constant


def covariances(model: LQ | Problem, solution: LQSolution | None = None) -> Any:
    """Return (N+1, nx, nx), covariances of the states if the cost is a negative log density.

    With a free x_0 its covariance is (Q0 + P_0)^{-1}; under the optimal feedback the inputs scatter around
    K x + k with covariance S^{-1} = (R + B'PB)^{-1}, so Sigma_{t+1} = (A + BK) Sigma_t (A + BK)' + B S^{-1} B'.
    For a smoothing problem these are the smoother's covariances.

    Args:
        model: a linear-quadratic problem, such as `smoothing_problem` makes, or its `LQ` model.
        solution: what `lq.solve` gave for that model; None solves it.

    Example:
        >>> import optctl as oc
        >>> problem = oc.smoothing_problem(oc.problems.local_level(1.0, 1.0, 1.0), [1.0, 2.0, 3.0])
        >>> print((13 * oc.lq.covariances(problem)[:, 0, 0]).round(9))
        [5. 6. 8.]
    """
    lq = LQ.from_problem(model) if isinstance(model, Problem) else model
    if not isinstance(lq, LQ) or not isinstance(solution, LQSolution | None):
        got = f"{type(model).__name__} and {type(solution).__name__}"
        raise ValueError(
            f"`model` and `solution` are {got}; expected a Problem or LQ, and what lq.solve returned, or None."
        )
    return _covariances(lq, solve(lq) if solution is None else solution)


@jax.jit
def _covariances(lq: LQ, solution: LQSolution) -> Any:
    def stage(Sigma: Any, data: tuple) -> tuple:
        A, B, R, K, P = data
        F = A + B @ K
        S = R + B.T @ P @ B
        scatter = B @ jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(S, lower=True), B.T)
        Sigma_next = F @ Sigma @ F.T + scatter
        return Sigma_next, Sigma_next

    nx = lq.Qf.shape[0]
    Sigma0 = jnp.linalg.inv(lq.Q0 + solution.P[0]) if lq.x0 is None else jnp.zeros((nx, nx), lq.Qf.dtype)
    _, Sigmas = jax.lax.scan(stage, Sigma0, (lq.A, lq.B, lq.R, solution.K, solution.P[1:]))
    return jnp.concatenate([Sigma0[None], Sigmas])
