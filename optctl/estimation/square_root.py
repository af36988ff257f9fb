r"""The Kalman filter and smoother on square roots of the covariances: for float32 and badly scaled models.

R is a root of P if P = R'R. Reflections of an array's rows keep its product with itself, so bringing its first columns
into triangular form carries roots through the whole recursion: nothing is subtracted, no variance can turn negative.
With U, R roots of the covariance of x_t before and after y_t, those of V and W as V_R and W_R, and L = K'S^{-T},

    [ V_R    0 ]      [ S   K ]
    [ U C'   U ]  ->  [ 0   R ],      e = S^{-T} (y_t - C m - D u),      m <- m + K'e,

                                      log p += -1/2 (e'e + ny log 2 pi) - log |det S|.
Then, and with G the regression of x_t on x_{t+1}, E a root of the covariance of its rest,

    [ W_R    0 ]      [ U   Y ]
    [ R A'   R ]  ->  [ 0   E ],      G' = U^{-1} Y,                     m <- A m + b.

Backward, R_s a root of the smoothed covariance P_s, d the smoothed minus the predicted mean, r minus the costate:

    [ E       ]      [ R_s ]          d = K'e + G d_next,                Cov(x_{t+1}, x_t) = P_s_next G',
    [ R_s G'  ]  ->  [  0  ],         r = rho + C'S^{-1}(e - K rho),     rho = A'r_next.

No covariance is inverted: W, V and that of x_0 may be singular. A column that hangs on earlier ones, to rounding, has a
zero row in U and G', and what it hides stays in E.

References: Kaminski, Bryson and Schmidt (1971), Discrete square root filtering: a survey of current techniques; Park
and Kailath (1995), New square-root smoothing algorithms; Cox and Higham (1998), Stability of Householder QR
factorization for weighted least squares problems.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl.estimation.kalman import Series, failure, outer, rows, summed, symmetric, times, transpose


@record()
class Filtered:
    """What the forward pass leaves behind, N+1 rows each.

    Attributes:
        means: (N+1, nx) of x_t given y_0..y_t.
        roots: (N+1, nx + ny, nx) R.
        predicted_means: (N+1, nx) of x_t given y_0..y_{t-1}.
        predicted_roots: (N+1, nx, nx) U.
        S: (N+1, ny, ny) root of the innovation covariance, a unit vector where a component is missing.
        K: (N+1, ny, nx), zero rows where missing.
        e: (N+1, ny) innovations of unit variance, zero where missing.
        log_likelihood: log p(y_0..y_N).
        failure: 4 stage + reason, -1 if nothing failed.
    """

    means: Any
    roots: Any
    predicted_means: Any
    predicted_roots: Any
    S: Any
    K: Any
    e: Any
    log_likelihood: Any
    failure: Any


def forward(series: Series) -> Filtered:
    """Filter, by one scan."""
    A, _, b = series.at_stages()
    C, V, z, seen = series.at_measurements()
    W_R, V_R = noise_roots(series), root(V)

    def stage(moments: tuple, data: tuple) -> tuple:
        m, U = predict(*moments, *data[:3])
        after, kept = update(m, U, *data[3:])
        return after, (*after, m, U, *kept)

    start = series.mean0, root(symmetric(series.cov0))
    first, kept = update(*start, C[0], V_R[0], z[0], seen[0])
    _, rest = jax.lax.scan(stage, first, (A, W_R, b, C[1:], V_R[1:], z[1:], seen[1:]))
    columns = [jnp.concatenate([one[None], more]) for one, more in zip((*first, *start, *kept), rest, strict=True)]
    means, roots, predicted_means, predicted_roots, S, K, e, log_density = columns
    failed = failure(covariances(roots), covariances(predicted_roots))
    return Filtered(means, roots, predicted_means, predicted_roots, S, K, e, jnp.sum(log_density), failed)


def predict(m: Any, R: Any, A: Any, W_R: Any, b: Any) -> tuple[Any, Any]:
    """Step mean and root in time."""
    U, _ = triangular(jnp.concatenate([W_R, R @ A.T]), m.shape[0])
    return A @ m + b, U


def update(m: Any, U: Any, C: Any, V_R: Any, z: Any, seen: Any) -> tuple[tuple[Any, Any], tuple]:
    """Return mean and root after a measurement, and S, K, e and the log density."""
    ny, nx = C.shape
    top, rest = triangular(jnp.block([[V_R, jnp.zeros((ny, nx), U.dtype)], [U @ C.T, U]]), ny)
    singular = jnp.any(jnp.diagonal(top) == 0)
    S, K, R = (jnp.where(singular, jnp.nan, part) for part in (top[:, :ny], top[:, ny:], rest[:, ny:]))
    e = jax.scipy.linalg.solve_triangular(S, jnp.where(seen, z - C @ m, 0.0), trans=1)
    log_density = -0.5 * (e @ e + jnp.sum(seen) * jnp.log(2 * jnp.pi)) - jnp.sum(jnp.log(jnp.abs(jnp.diagonal(S))))
    return (m + K.T @ e, R), (S, K, e, log_density)


def smoothed(series: Series, filtered: Filtered) -> tuple[Any, Any, Any, Any]:
    """Return smoothed means, covariances, covariances of x_{t+1} with x_t, and r, by one scan."""
    A, _, _ = series.at_stages()
    C, _, _, _ = series.at_measurements()
    f, nx = filtered, A.shape[-1]

    def measure(correction: Any, rho: Any, C: Any, S: Any, K: Any, e: Any) -> tuple[Any, Any]:
        return correction + K.T @ e, rho + C.T @ jax.scipy.linalg.solve_triangular(S, e - K @ rho)

    def stage(later: tuple, data: tuple) -> tuple:
        R_s, d, r = later
        A, W_R, R, *measurement = data
        Gt, E = regress(R, A, W_R)
        lag_one = R_s.T @ (R_s @ Gt)
        R_s, _ = triangular(jnp.concatenate([E, R_s @ Gt]), nx)
        correction = Gt.T @ d
        d, r = measure(correction, A.T @ r, *measurement)
        return (R_s, d, r), (correction, R_s, lag_one, r)

    zero = jnp.zeros_like(f.means[-1])
    d, r = measure(zero, zero, C[-1], f.S[-1], f.K[-1], f.e[-1])
    R_s, _ = triangular(f.roots[-1], nx)
    now = (a[:-1] for a in (f.roots, C, f.S, f.K, f.e))
    _, kept = jax.lax.scan(stage, (R_s, d, r), (A, noise_roots(series), *now), reverse=True)
    corrections, roots, lag_one, rs = kept
    covs = covariances(jnp.concatenate([roots, R_s[None]]))
    return f.means.at[:-1].add(corrections), covs, lag_one, jnp.concatenate([rs, r[None]])


def check_means(series: Series, means: Any, covs: Any, smoothed: Any, smoothed_covs: Any, r: Any) -> tuple[Any, Any]:
    """Compare the smoothed means with the filtered m + P A'r; return the good ones and where digits were lost.

    Going back through a model that contracts and has no noise multiplies rounding at every stage; m + P A'r does not,
    but it carries the rounding of a vague P. Where the two differ by more than that and the rounding of the means
    themselves, the first is the wrong one.
    """
    A, _, _ = series.at_stages()
    eps = jnp.finfo(means.dtype).eps
    size = jnp.max(jnp.abs(r), axis=0, initial=0.0)
    other = means[:-1] + times(covs[:-1], times(transpose(A), r[1:]))
    reach = times(jnp.abs(covs[:-1]), times(jnp.abs(transpose(A)), jnp.broadcast_to(size, r[1:].shape)))
    rounding = 50 * eps * (reach + jnp.abs(other))
    spread = jnp.sqrt(jnp.abs(jnp.diagonal(smoothed_covs[:-1], axis1=1, axis2=2)))
    lost = jnp.any(jnp.abs(smoothed[:-1] - other) > rounding + eps**0.25 * spread, axis=1)
    good = jnp.where(lost[:, None], other, smoothed[:-1])
    return jnp.concatenate([good, smoothed[-1:]]), jnp.append(lost, False)


def score(series: Series, filtered: Filtered) -> Series:
    """Return the gradient of the log-likelihood in every field of the series, by one scan.

    With the orthogonal factors' blocks U C' = Q S, U = Q K + Q'' R of a measurement and R A' = Q' U_next of a step, the
    recursion of `kalman.backward` for the roots n = N'N and U n U' = Y'Y, N U' = Y, and for r and U r is

        N <- [N A (I - L C)],   Y <- [Y Q'^T Q''^T],    r <- C'u + A'r,              u = S^{-1} (e - K A'r),
             [ S^{-T} C    ]         [    Q^T      ]    U r <- Q'' Q' U r + Q e,

    so that what stands beside a vague covariance is never formed without it, and nothing is subtracted.
    """
    A, _, _ = series.at_stages()
    C, V, _, seen = series.at_measurements()
    W_R, V_R = noise_roots(series), root(V)
    nx, ny = A.shape[-1], C.shape[-2]
    f = filtered

    def measurement_blocks(U: Any, C: Any, V_R: Any) -> tuple[Any, Any]:
        left = jnp.block([[V_R, jnp.zeros((ny, nx), U.dtype)], [U @ C.T, U]])
        top, rest = triangular(jnp.concatenate([left, jnp.eye(ny + nx, dtype=U.dtype)], axis=1), ny)
        return top[:, nx + 2 * ny :].T, rest[:, nx + 2 * ny :].T

    def step_block(R: Any, A: Any, W_R: Any) -> Any:
        low = jnp.concatenate([R @ A.T, jnp.eye(R.shape[0], dtype=R.dtype)], axis=1)
        top, _ = triangular(jnp.concatenate([jnp.pad(W_R, ((0, 0), (0, R.shape[0]))), low]), nx)
        return top[:, nx:].T

    Q, Q2 = jax.vmap(measurement_blocks)(f.predicted_roots, C, V_R)
    Q1 = jax.vmap(step_block)(f.roots[:-1], A, W_R)

    def before(N: Any, Y: Any, rho: Any, white: Any, data: tuple) -> tuple:
        """Go through a measurement; N, Y and the costates rho, R rho are those after it."""
        C, S, K, e, Q, Q2, R, m = data
        mean = m + R.T @ white
        u = jax.scipy.linalg.solve_triangular(S, e - K @ rho)
        Lt, S_inv = (
            jax.scipy.linalg.solve_triangular(S, K),
            jax.scipy.linalg.solve_triangular(S, jnp.eye(ny, dtype=S.dtype)),
        )
        NL = N @ Lt.T
        gV = (jnp.outer(u, u) - S_inv @ S_inv.T - NL.T @ NL) / 2
        gC = jnp.outer(u, mean) - Lt + NL.T @ (Y @ R)
        rows_of = jnp.concatenate(
            [jnp.concatenate([Y @ Q2.T, N - NL @ C], axis=1), jnp.concatenate([Q.T, S_inv.T @ C], axis=1)]
        )
        reached, rest = triangular(rows_of, nx)
        beyond, _ = triangular(rest[:, nx:], nx)  # what U does not reach
        Y = jnp.concatenate([reached[:, :nx], jnp.zeros_like(beyond)])
        N = jnp.concatenate([reached[:, nx:], beyond])
        return (N, Y, rho + C.T @ u, Q2 @ white + Q @ e), (mean, u, gV, gC)

    def stage(later: tuple, data: tuple) -> tuple:
        N, Y, r, white = later
        A, Q1, measurement = data
        N_A, Y_A = N @ A, Y @ Q1.T
        state, (mean, u, gV, gC) = before(N_A, Y_A, A.T @ r, Q1 @ white, measurement)
        gA = jnp.outer(r, mean) - N.T @ (Y_A @ measurement[6])
        return state, (u, gV, gC, gA, (jnp.outer(r, r) - N.T @ N) / 2, r)

    C = jnp.where(seen[:, :, None], C, 0.0)
    each = C, f.S, f.K, f.e, Q, Q2, f.roots, f.means
    none = jnp.zeros((2 * nx, nx), A.dtype), jnp.zeros((2 * nx, f.roots.shape[1]), A.dtype)
    last, (_, u, gV, gC) = before(*none, jnp.zeros(nx, A.dtype), jnp.zeros(f.roots.shape[1], A.dtype), _at(each, -1))
    state, kept = jax.lax.scan(stage, last, (A, Q1, jax.tree.map(lambda a: a[:-1], each)), reverse=True)
    us, gVs, gCs = (jnp.concatenate([many, one[None]]) for many, one in zip(kept[:3], (u, gV, gC), strict=True))
    N, _, r, _ = state
    both = seen[:, :, None] & seen[:, None, :]
    return Series(
        A=summed(kept[3], series.A), C=summed(jnp.where(seen[:, :, None], gCs, 0.0), series.C),
        W=summed(kept[4], series.W), V=summed(jnp.where(both, gVs, 0.0), series.V), mean0=r,
        cov0=(outer(r[None], r[None])[0] - N.T @ N) / 2, b=summed(kept[5], series.b),
        z=jnp.where(seen, -us, 0.0),
    )  # fmt: skip


def _at(arrays: tuple, k: int) -> tuple:
    return tuple(a[k] for a in arrays)


def regress(R: Any, A: Any, W_R: Any) -> tuple[Any, Any]:
    """Return G' and E."""
    nx = A.shape[-1]
    top, rest = triangular(jnp.block([[W_R, jnp.zeros_like(W_R)], [R @ A.T, R]]), nx)
    U, Y, E = top[:, :nx], top[:, nx:], rest[:, nx:]
    return jax.scipy.linalg.solve_triangular(
        U + jnp.diag(jnp.where(jnp.diagonal(U) == 0, 1.0, 0.0).astype(U.dtype)), Y
    ), E


def triangular(M: Any, columns: int) -> tuple[Any, Any]:
    """Bring the first columns of an array into triangular form by Householder reflections of its rows.

    The largest entry of a column is its pivot: small rows then keep their relative precision.

    Returns:
        The rows with pivots in their order, a zero row for a column without one, and the rows that are left.
    """
    below = jnp.arange(columns + M.shape[0]) >= columns
    floor = 8 * float(jnp.finfo(M.dtype).eps)

    def reflect(k: Any, M: Any) -> Any:
        x = jnp.where(below, M[:, k], 0.0)
        i = jnp.argmax(jnp.abs(x))
        square, lost = x @ x, x @ x <= floor**2 * (M[:, k] @ M[:, k])
        pivot = -jnp.copysign(jnp.sqrt(square), x[i])
        v = jnp.where(lost, 0.0, x.at[i].add(-pivot))
        M = M - jnp.outer(v, (v @ M) / jnp.where(lost, 1.0, square - x[i] * pivot))
        M = M.at[:, k].set(jnp.where(below, 0.0, M[:, k]))
        pivot_row = jnp.where(lost, 0.0, M[i].at[k].set(pivot))
        return M.at[i].set(jnp.where(lost, M[i], 0.0)).at[k].set(pivot_row)

    M = jax.lax.fori_loop(0, columns, reflect, jnp.concatenate([jnp.zeros_like(M, shape=(columns, M.shape[1])), M]))
    return M[:columns], M[columns:]


@functools.partial(jnp.vectorize, signature="(n,n)->(n,n)")
def root(M: Any) -> Any:
    """Return R, upper triangular with R'R = M, by Cholesky's method; where a pivot is lost in rounding, a zero row."""
    n = M.shape[0]

    def eliminate(k: Any, state: tuple) -> tuple:
        rest, R = state
        floor = n * jnp.finfo(M.dtype).eps * jnp.abs(M[k, k])
        lost = (rest[k, k] <= floor) & (rest[k, k] >= -1000 * floor) & jnp.isfinite(floor)
        bad = ~(rest[k, k] >= -1000 * floor) | ~jnp.isfinite(rest[k, k])  # no covariance: say so
        row = rest[k] / jnp.sqrt(jnp.where(lost, 1.0, rest[k, k]))
        new = jnp.where((jnp.arange(n) < k) | lost, 0.0, jnp.where(bad, jnp.nan, row))
        return rest - jnp.outer(new, new), R.at[k].set(new)

    return jax.lax.fori_loop(0, n, eliminate, (M, jnp.zeros_like(M)))[1]


def noise_roots(series: Series) -> Any:
    """Return the roots of W at all times; where W does not change, of one W."""
    nx = series.mean0.shape[0]
    return rows(root(symmetric(series.W)), series.z.shape[0] - 1, (nx, nx))


def covariances(roots: Any) -> Any:
    """Return R'R, exactly symmetric."""
    return symmetric(transpose(roots) @ roots)
