r"""The Kalman filter, smoother and likelihood gradient: the textbook recursions, and the definition of all faster ones.

Forward, m, P the moments of x_t given y_0..y_{t-1}, in covariance form, so that W or V may be singular:

    v = y_t - C m - D u,   S = C P C' + V,   L = P C' S^{-1},   m <- m + L v,   P <- (I - L C) P (I - L C)' + L V L',
    log p += -1/2 (v'S^{-1}v + log det 2 pi S),                 m <- A m + b,   P <- A P A' + W.

Backward, the costate recursion: r_t = d log p / d x_t is minus the costate of smoothing as control, n_t minus its
derivative. From rho, Lambda after the measurement of x_t (zero at the end) to r, n before it, F = I - L C:

    r = F'rho + C'S^{-1} v,    n = F'Lambda F + C'S^{-1} C,     then, one stage earlier,   rho = A'r,   Lambda = A'n A.

Rounding errors of P, of covariance eps E, go through the recursion as P does: E <- F E F' + diag P, then
E <- A E A' + diag(W + A.^2 diag P); those of n as n does: E <- F'E F + diag Lambda, then
E <- A'E A + diag(A.^2' diag n). Where E is not small beside P, or what it does to S beside S, or P E P beside
P - P Lambda P, digits are lost (`loses_variances`, `loses_likelihood`, `loses_smoothed`), and the answer has to come
from `square_root.py`.

All answers follow from these at once, with m, P filtered: smoothed mean m + P rho, covariance P - P Lambda P, and the
gradient of the likelihood in every matrix as sums of outer products (`score`). Missing components (NaN) have no row.

References: Anderson and Moore (1979), Optimal Filtering, section 5.2; Bryson and Frazier (1963), Smoothing for linear
and nonlinear dynamic systems; Koopman and Shephard (1992), Exact score for time series models in state space form.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl.lq.riccati import cholesky_or_nan

SINGULAR, NOT_FINITE, LOST_DIGITS = 0, 1, 2


@record()
class Series:
    """A model and its data, with known inputs absorbed.

    Attributes:
        A: (nx, nx) or (N, nx, nx); W likewise.
        C: (ny, nx) or (N+1, ny, nx).
        W: covariance of the process noise.
        V: (ny, ny) or (N+1, ny, ny).
        mean0: (nx,).
        cov0: (nx, nx).
        b: (nx,) or (N, nx), c + B u.
        z: (N+1, ny), y - D u; NaN where missing.
    """

    A: Any
    C: Any
    W: Any
    V: Any
    mean0: Any
    cov0: Any
    b: Any
    z: Any

    def at_stages(self) -> tuple[Any, Any, Any]:
        """Return A, W, b with a leading axis N."""
        N, nx = self.z.shape[0] - 1, self.mean0.shape[0]
        return rows(self.A, N, (nx, nx)), rows(self.W, N, (nx, nx)), rows(self.b, N, (nx,))

    def at_measurements(self) -> tuple[Any, Any, Any, Any]:
        """Return C, V, z with a leading axis N+1 and missing parts made harmless, and which components were seen."""
        (n, ny), nx = self.z.shape, self.mean0.shape[0]
        seen = ~jnp.isnan(self.z)
        both = seen[:, :, None] & seen[:, None, :]
        C = jnp.where(seen[:, :, None], rows(self.C, n, (ny, nx)), 0.0)
        V = jnp.where(both, symmetric(rows(self.V, n, (ny, ny))), jnp.eye(ny, dtype=self.z.dtype)[None])
        return C, V, jnp.where(seen, self.z, 0.0), seen


@record()
class Filtered:
    """What the forward pass leaves behind, N+1 rows each.

    Attributes:
        means: (N+1, nx) of x_t given y_0..y_t.
        covs: (N+1, nx, nx).
        predicted_means: (N+1, nx) of x_t given y_0..y_{t-1}.
        predicted_covs: (N+1, nx, nx).
        gains: (N+1, nx, ny) L, zero in the columns of missing components.
        information: (N+1, ny, ny) S^{-1}, zero in the rows of missing components.
        innovations: (N+1, ny) v, zero where missing.
        log_likelihood: log p(y_0..y_N).
        failure: 4 stage + reason, -1 if nothing failed.
    """

    means: Any
    covs: Any
    predicted_means: Any
    predicted_covs: Any
    gains: Any
    information: Any
    innovations: Any
    log_likelihood: Any
    failure: Any


def forward(series: Series) -> Filtered:
    """Filter, by one scan."""
    A, W, b = series.at_stages()
    C, V, z, seen = series.at_measurements()

    def stage(moments: tuple, data: tuple) -> tuple:
        m, P = predict(*moments, *data[:3])
        (m_new, P_new), kept = update(m, P, *data[3:])
        return (m_new, P_new), (m_new, P_new, m, P, *kept)

    start = series.mean0, symmetric(series.cov0)
    first, kept = update(*start, C[0], V[0], z[0], seen[0])
    _, rest = jax.lax.scan(stage, first, (A, W, b, C[1:], V[1:], z[1:], seen[1:]))
    columns = (jnp.concatenate([one[None], more]) for one, more in zip((*first, *start, *kept), rest, strict=True))
    means, covs, predicted_means, predicted_covs, L, information, v, log_density = columns
    failed = failure(covs, predicted_covs)
    return Filtered(means, covs, predicted_means, predicted_covs, L, information, v, jnp.sum(log_density), failed)


def predict(m: Any, P: Any, A: Any, W: Any, b: Any) -> tuple[Any, Any]:
    """Step the moments in time."""
    return A @ m + b, symmetric(A @ P @ A.T + W)


def update(m: Any, P: Any, C: Any, V: Any, z: Any, seen: Any) -> tuple[tuple[Any, Any], tuple]:
    """Return the moments after a measurement, and gain, information, innovation and log density."""
    v = jnp.where(seen, z - C @ m, 0.0)
    S = symmetric(C @ P @ C.T) + V
    factor = cholesky_or_nan(S)
    information = jnp.where(
        seen[:, None] & seen[None, :],
        jax.scipy.linalg.cho_solve((factor, True), jnp.eye(S.shape[0], dtype=S.dtype)),
        0.0,
    )
    L = P @ C.T @ information
    F = jnp.eye(P.shape[0], dtype=P.dtype) - L @ C
    log_density = -0.5 * (v @ information @ v + jnp.sum(seen) * jnp.log(2 * jnp.pi))
    log_density = log_density - jnp.sum(jnp.log(jnp.diagonal(factor)))
    return (m + L @ v, symmetric(F @ P @ F.T + L @ V @ L.T)), (L, information, v, log_density)


def failure(covs: Any, predicted_covs: Any) -> Any:
    """Return 4 stage + reason for the first stage whose covariance is not finite, -1 if none.

    Either S is singular (`SINGULAR`), or the predicted covariance was not finite before (`NOT_FINITE`).
    """
    finite = lambda P: jnp.all(jnp.isfinite(P), axis=(1, 2))  # noqa: E731
    bad = ~finite(covs)
    stage = jnp.argmax(bad)
    reason = jnp.where(finite(predicted_covs)[stage], SINGULAR, NOT_FINITE)
    return jnp.where(jnp.any(bad), 4 * stage + reason, -1).astype(jnp.int32)


def rounding_terms(series: Series, filtered: Filtered) -> tuple[Any, Any, Any]:
    """Return M, D and w at all times: E_t = M_t E_{t-1} M_t' + D_t, and diag w is the rounding of a step in time."""
    A, W, _ = series.at_stages()
    F, _, _ = measurement_terms(series, filtered)
    w = diagonal(W) + times(A**2, diagonal(filtered.covs)[:-1])
    stepped = (F[1:] * w[:, None, :]) @ transpose(F[1:])
    M = jnp.concatenate([jnp.zeros_like(F[:1]), F[1:] @ A])
    return M, diagonals(filtered.predicted_covs) + jnp.concatenate([jnp.zeros_like(F[:1]), stepped]), w


def rounding(series: Series, filtered: Filtered) -> Any:
    """Return E of P at all times, by one scan."""
    M, D, _ = rounding_terms(series, filtered)
    return accumulate(M, D)


def accumulate(M: Any, D: Any, reverse: bool = False) -> Any:
    """Return E_t = M_t E M_t' + D_t at all times, E that of the time before, or after."""

    def stage(E: Any, terms: tuple) -> tuple[Any, Any]:
        M, D = terms
        E = M @ E @ M.T + D
        return E, E

    return jax.lax.scan(stage, jnp.zeros(D.shape[1:], D.dtype), (M, D), reverse=reverse)[1]


def loses_variances(filtered: Filtered, E: Any) -> Any:
    """Tell whether half of the digits of a filtered variance are lost."""
    return jnp.any(diagonal(E) * half_of_digits(E) > diagonal(filtered.covs))


def loses_likelihood(series: Series, filtered: Filtered, E: Any) -> Any:
    """Tell whether half of the digits of the variance of an innovation are lost."""
    A, _, _ = series.at_stages()
    C, V, _, seen = series.at_measurements()
    _, _, w = rounding_terms(series, filtered)
    C, V, seen = C[1:], V[1:], seen[1:]
    error = jnp.einsum("tij,tjk,tik->ti", C, A @ E[:-1] @ transpose(A) + jax.vmap(jnp.diag)(w), C)
    S = jnp.einsum("tij,tjk,tik->ti", C, filtered.predicted_covs[1:], C) + diagonal(V)
    return jnp.any(seen & (error * half_of_digits(E) > S))


def half_of_digits(like: Any) -> Any:
    """Return the relative error at which half of the digits are lost."""
    return jnp.sqrt(jnp.finfo(like.dtype).eps)


@record()
class Adjoint:
    """The backward recursion's vectors and matrices: r, n before each measurement, rho, Lambda after it."""

    r: Any
    n: Any
    rho: Any
    Lambda: Any


def backward(series: Series, filtered: Filtered) -> Adjoint:
    """Sweep backward, by one scan."""
    A, _, _ = series.at_stages()
    F, slope, weight = measurement_terms(series, filtered)

    def stage(later: tuple, data: tuple) -> tuple:
        A, F, slope, weight = data
        r, n = later
        rho, Lambda = A.T @ r, symmetric(A.T @ n @ A)
        before = F.T @ rho + slope, symmetric(F.T @ Lambda @ F) + weight
        return before, before

    last = slope[-1], weight[-1]
    _, (r, n) = jax.lax.scan(stage, last, (A, F[:-1], slope[:-1], weight[:-1]), reverse=True)
    return with_costates_after(A, jnp.concatenate([r, slope[-1:]]), jnp.concatenate([n, weight[-1:]]))


def measurement_terms(series: Series, filtered: Filtered) -> tuple[Any, Any, Any]:
    """Return F = I - L C, C'S^{-1}v and C'S^{-1}C at all times."""
    C, _, _, _ = series.at_measurements()
    CtS = transpose(C) @ filtered.information
    eye = jnp.eye(C.shape[-1], dtype=C.dtype)
    return eye[None] - filtered.gains @ C, times(CtS, filtered.innovations), symmetric(CtS @ C)


def with_costates_after(A: Any, r: Any, n: Any) -> Adjoint:
    """Complete r, n by rho = A'r, Lambda = A'n A of the stage after, zero at the end."""
    rho = jnp.concatenate([times(transpose(A), r[1:]), jnp.zeros_like(r[:1])])
    Lambda = jnp.concatenate([symmetric(transpose(A) @ n[1:] @ A), jnp.zeros_like(n[:1])])
    return Adjoint(r, n, rho, Lambda)


def smoothed(series: Series, filtered: Filtered, adjoint: Adjoint) -> tuple[Any, Any, Any]:
    """Return smoothed means, covariances, and covariances of x_{t+1} with x_t."""
    A, W, _ = series.at_stages()
    P, n, rho, Lambda = filtered.covs, adjoint.n, adjoint.rho, adjoint.Lambda
    covs = symmetric(P - P @ Lambda @ P)
    lag_one = A @ covs[:-1] - W @ n[1:] @ A @ P[:-1]  # the covariance of A x + w with x
    return filtered.means + times(P, rho), covs, lag_one


def rounding_back_terms(series: Series, filtered: Filtered, adjoint: Adjoint) -> tuple[Any, Any]:
    """Return M and D at times 0..N-1, E_t = M_t E_{t+1} M_t' + D_t for E of Lambda, zero at N."""
    A, _, _ = series.at_stages()
    F, _, _ = measurement_terms(series, filtered)
    M = transpose(A) @ transpose(F[1:])
    measured = (transpose(A) * diagonal(adjoint.Lambda)[1:, None, :]) @ A
    return M, measured + jax.vmap(jnp.diag)(times(transpose(A) ** 2, jnp.abs(diagonal(adjoint.n)[1:])))


def rounding_back(series: Series, filtered: Filtered, adjoint: Adjoint) -> Any:
    """Return E of Lambda at times 0..N-1, by one scan."""
    return accumulate(*rounding_back_terms(series, filtered, adjoint), reverse=True)


def loses_smoothed(filtered: Filtered, covs: Any, E: Any) -> Any:
    """Tell whether half of the digits of a smoothed variance P - P Lambda P are lost, E of Lambda."""
    P = filtered.covs[:-1]
    error = diagonal(P) + diagonal(P @ E @ P)
    return jnp.any(error * half_of_digits(E) > diagonal(covs)[:-1])


def score(series: Series, filtered: Filtered, adjoint: Adjoint) -> Series:
    """Return the gradient of the log-likelihood in every field of the series, all times at once."""
    A, _, _ = series.at_stages()
    seen = ~jnp.isnan(series.z)
    P, L, r, n = filtered.covs, filtered.gains, adjoint.r, adjoint.n
    rho, Lambda = adjoint.rho, adjoint.Lambda
    mean = filtered.means + times(P, rho)
    u = times(filtered.information, filtered.innovations) - times(transpose(L), rho)
    gA = outer(r[1:], mean[:-1]) - n[1:] @ A @ P[:-1]
    gC = outer(u, mean) - transpose(L) @ (jnp.eye(A.shape[-1], dtype=A.dtype)[None] - Lambda @ P)
    gV = (outer(u, u) - filtered.information - transpose(L) @ Lambda @ L) / 2
    gW = (outer(r[1:], r[1:]) - n[1:]) / 2
    both = seen[:, :, None] & seen[:, None, :]
    return Series(
        A=summed(gA, series.A), C=summed(jnp.where(seen[:, :, None], gC, 0.0), series.C),
        W=summed(gW, series.W), V=summed(jnp.where(both, gV, 0.0), series.V),
        mean0=r[0], cov0=(outer(r[:1], r[:1])[0] - n[0]) / 2, b=summed(r[1:], series.b), z=jnp.where(seen, -u, 0.0),
    )  # fmt: skip


def summed(gradient: Any, like: Any) -> Any:
    """Return the gradient at every time, or its sum where the matrix is the same at all times."""
    return gradient if gradient.ndim == like.ndim else jnp.sum(gradient, axis=0)


def rows(matrix: Any, n: int, shape: tuple[int, ...]) -> Any:
    """Return a matrix at all times."""
    return jnp.broadcast_to(matrix, (n, *shape))


def outer(a: Any, b: Any) -> Any:
    """Return a_t b_t' at all times."""
    return a[:, :, None] * b[:, None, :]


def times(matrices: Any, vectors: Any) -> Any:
    """Return M_t v_t at all times."""
    return jnp.einsum("tij,tj->ti", matrices, vectors)


def diagonal(matrices: Any) -> Any:
    """Return the diagonal of M_t at all times."""
    return jnp.diagonal(matrices, axis1=-2, axis2=-1)


def diagonals(matrices: Any) -> Any:
    """Return M_t at all times without what is beside its diagonal."""
    return jax.vmap(jnp.diag)(diagonal(matrices))


def transpose(matrices: Any) -> Any:
    """Return M_t' at all times."""
    return matrices.swapaxes(-1, -2)


def symmetric(matrices: Any) -> Any:
    """Return (M + M') / 2."""
    return (matrices + transpose(matrices)) / 2
