r"""Filter and adjoint in O(log N) parallel steps, for accelerators: associative scans.

A stage (step in time, then measurement) is the conditional moments of x_t given x_{t-1} and y_t, mean F x + m and
covariance P, and the likelihood of y_t as a function of x_{t-1}, slope s and curvature J. Two such elements combine:

    W = (I + P1 J2)^{-1},   F = F2 W F1,   m = F2 W (m1 + P1 s2) + m2,   P = F2 W P1 F2' + P2,
    s = F1' W' (s2 - J2 m1) + s1,          J = F1' W' J2 F1 + J1.

The first element is the updated prior, so the m, P of all stages up to t are the filtered moments. The innovation
covariance of one stage without its past, C W C' + V, must not be singular here. The backward recursion
r <- Phi'r + slope, n <- Phi'n Phi + weight, Phi = A F, is affine and combines by composition, without any inverse.

Reference: Särkkä and García-Fernández (2021), Temporal parallelization of Bayesian smoothers, IEEE Transactions on
Automatic Control 66, section III.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optctl.estimation import kalman
from optctl.estimation.kalman import Adjoint, Filtered, Series, symmetric, times, transpose


def forward(series: Series) -> Filtered:
    """Filter, by an associative scan."""
    A, W, b = series.at_stages()
    C, V, z, seen = series.at_measurements()
    first, _ = kalman.update(series.mean0, symmetric(series.cov0), C[0], V[0], z[0], seen[0])
    # One stage from the point x_{t-1}: predicted moments A x + b and W, then the measurement.
    (m, P), (L, information, v, _) = jax.vmap(kalman.update)(b, symmetric(W), C[1:], V[1:], z[1:], seen[1:])
    CA = C[1:] @ A
    AtCt = transpose(CA) @ information
    nothing = jnp.zeros_like(first[1])
    elements = (
        _with_first(nothing, A - L @ CA), _with_first(first[0], m), _with_first(first[1], P),
        _with_first(nothing[0], times(AtCt, v)), _with_first(nothing, symmetric(AtCt @ CA)),
    )  # fmt: skip
    _, means, covs, _, _ = jax.lax.associative_scan(_combine, elements)
    predicted = jax.vmap(kalman.predict)(means[:-1], covs[:-1], A, W, b)
    predicted_means = _with_first(series.mean0, predicted[0])
    predicted_covs = _with_first(symmetric(series.cov0), predicted[1])
    (_, expected), kept = jax.vmap(kalman.update)(predicted_means, predicted_covs, C, V, z, seen)
    L, information, v, log_density = kept
    # Long stretches can lose all digits without a trace; so each stage must satisfy the recursion.
    gap = jnp.max(jnp.abs(covs - expected), axis=(1, 2))
    good = gap <= jnp.sqrt(jnp.finfo(gap.dtype).eps) * jnp.max(jnp.abs(predicted_covs), axis=(1, 2))
    covs = jnp.where(good[:, None, None], covs, jnp.nan)
    failed = kalman.failure(covs, predicted_covs)
    return Filtered(means, covs, predicted_means, predicted_covs, L, information, v, jnp.sum(log_density), failed)


def backward(series: Series, filtered: Filtered) -> Adjoint:
    """Sweep backward, by an associative scan."""
    A, _, _ = series.at_stages()
    F, slope, weight = kalman.measurement_terms(series, filtered)
    nothing = jnp.zeros_like(F[:1])
    elements = jnp.concatenate([A @ F[:-1], nothing]), slope, weight
    _, r, n = jax.lax.associative_scan(lambda late, early: _compose(early, late), elements, reverse=True)
    return kalman.with_costates_after(A, r, n)


def rounding(series: Series, filtered: Filtered) -> Any:
    """Return E of P at all times, by an associative scan."""
    M, D, _ = kalman.rounding_terms(series, filtered)
    return _accumulate(M, D)


def rounding_back(series: Series, filtered: Filtered, adjoint: Adjoint) -> Any:
    """Return E of Lambda at times 0..N-1, by an associative scan."""
    return _accumulate(*kalman.rounding_back_terms(series, filtered, adjoint), reverse=True)


def _accumulate(M: Any, D: Any, reverse: bool = False) -> Any:
    def combine(first: tuple, then: tuple) -> tuple:
        return then[0] @ first[0], then[0] @ first[1] @ transpose(then[0]) + then[1]

    return jax.lax.associative_scan(combine, (M, D), reverse=reverse)[1]


def _combine(one: tuple, two: tuple) -> tuple:
    F1, m1, P1, s1, J1 = one
    F2, m2, P2, s2, J2 = two
    eye = jnp.eye(F1.shape[-1], dtype=F1.dtype)
    columns = jnp.concatenate([F1, P1, (m1 + times(P1, s2))[..., None]], axis=-1)
    solved = jnp.linalg.solve(eye[None] + P1 @ J2, columns)
    n = F1.shape[-1]
    WF, WP, Wm = solved[..., :n], solved[..., n : 2 * n], solved[..., 2 * n]
    F1W = transpose(WF)
    return (
        F2 @ WF, times(F2, Wm) + m2, symmetric(F2 @ WP @ transpose(F2)) + P2,
        times(F1W, s2 - times(J2, m1)) + s1, symmetric(F1W @ J2 @ F1) + J1,
    )  # fmt: skip


def _compose(early: tuple, late: tuple) -> tuple:
    """Follow the later stretch's recursion by the earlier one's."""
    F1, r1, n1 = early
    F2, r2, n2 = late
    F1t = transpose(F1)
    return F2 @ F1, times(F1t, r2) + r1, symmetric(F1t @ n2 @ F1) + n1


def _with_first(first: Any, rest: Any) -> Any:
    return jnp.concatenate([first[None], rest])
