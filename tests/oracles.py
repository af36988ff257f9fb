"""Independent answers: nothing here uses the recursions of the package."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg


def scanned_cost(problem, us, x0, params):
    """The total cost by a plain Python loop over stages, for `jax.grad`."""
    x, cost = x0, 0.0
    if problem.initial_cost is not None:
        cost += problem.initial_cost(x0, params)
    for t in range(problem.horizon):
        u = us[t]
        if problem.stage_cost is not None:
            cost += problem.stage_cost(x, u, t, params)
        x = problem.dynamics.step(x, u, t, params)
    if problem.terminal_cost is not None:
        cost += problem.terminal_cost(x, params)
    return cost


def central_difference(f, z, h=1e-6):
    """Gradient of f: R^n -> R by central differences."""
    z = np.asarray(z, dtype=float)
    flat = z.ravel()
    slopes = np.empty_like(flat)
    for i in range(flat.size):
        e = np.zeros_like(flat)
        e[i] = h
        slopes[i] = (float(f((flat + e).reshape(z.shape))) - float(f((flat - e).reshape(z.shape)))) / (2 * h)
    return slopes.reshape(z.shape)


def dense_kkt(lq):
    """Solve an LQ model through its KKT system, one (sparse) matrix: xs, us and the multipliers of the dynamics.

    Components of x_0 that are not free are equations of their own; their multipliers are left out.
    """
    lq = jax.tree.map(np.asarray, lq.per_stage())
    N, nx, nu = lq.B.shape
    start = (N + 1) * nx
    first_row = start + N * nu
    fixed = [i for i in range(nx) if not lq.x0_free[i]]
    n = first_row + N * nx + len(fixed)
    parts = []

    def put(row, column, block):
        i, j = np.nonzero(block)
        parts.append((row + i, column + j, block[i, j]))

    rhs = np.zeros(n)
    x, u = (lambda t: t * nx), (lambda t: start + t * nu)
    for t in range(N):
        put(x(t), x(t), lq.Q[t]), put(u(t), u(t), lq.R[t]), put(x(t), u(t), lq.M[t]), put(u(t), x(t), lq.M[t].T)
        rhs[x(t) : x(t) + nx] -= lq.q[t]
        rhs[u(t) : u(t) + nu] -= lq.r[t]
        row = first_row + t * nx
        for block, column in ((lq.A[t], x(t)), (lq.B[t], u(t)), (-np.eye(nx), x(t + 1))):
            put(row, column, block), put(column, row, block.T)
        rhs[row : row + nx] = -lq.c[t]
    put(x(N), x(N), lq.Qf)
    rhs[x(N) : x(N) + nx] -= lq.qf
    if any(lq.x0_free):
        put(0, 0, lq.Q0)
        rhs[:nx] -= lq.q0
    for row, i in enumerate(fixed, start=first_row + N * nx):
        put(row, i, np.eye(1)), put(i, row, np.eye(1))
        rhs[row] = lq.x0[i]
    i, j, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    z = scipy.sparse.linalg.spsolve(scipy.sparse.csc_matrix((values, (i, j)), (n, n)), rhs)
    return z[:start].reshape(N + 1, nx), z[start:first_row].reshape(N, nu), z[first_row:][: N * nx].reshape(N, nx)


def kalman_rts(A, C, W, V, mean0, cov0, ys, *, smooth=True):
    """Textbook Kalman filter and Rauch-Tung-Striebel smoother; NaN rows are skipped. Means, covariances, likelihood."""
    m, P = np.array(mean0, float), np.array(cov0, float)
    filtered, predicted, loglik = [], [], 0.0
    for t, y in enumerate(ys):
        if t:
            m, P = A @ m, A @ P @ A.T + W
        predicted.append((m, P))
        seen = np.isfinite(y)
        if seen.any():
            Cs, S = C[seen], C[seen] @ P @ C[seen].T + V[np.ix_(seen, seen)]
            L = P @ Cs.T @ np.linalg.inv(S)
            r = y[seen] - Cs @ m
            loglik -= 0.5 * (r @ np.linalg.solve(S, r) + np.linalg.slogdet(2 * np.pi * S)[1])
            m, P = m + L @ r, P - L @ Cs @ P
        filtered.append((m, P))
    if not smooth:
        return None, None, loglik
    means, covs = [filtered[-1][0]], [filtered[-1][1]]
    for t in range(len(ys) - 2, -1, -1):
        mf, Pf = filtered[t]
        mp, Pp = predicted[t + 1]
        G = Pf @ A.T @ np.linalg.inv(Pp)
        means.insert(0, mf + G @ (means[0] - mp))
        covs.insert(0, Pf + G @ (covs[0] - Pp) @ G.T)
    return np.array(means), np.array(covs), loglik


def joint_gaussian(A, C, W, V, mean0, cov0, ys, b, seen):
    """Moments of all states given the data, and the likelihood, from the one dense Gaussian of states and data.

    Matrices are per stage; only the components `seen` count. Means (N+1, nx), the whole covariance, log-likelihood;
    all of it is analytic, for derivatives by complex steps.
    """
    n, nx = len(ys), len(mean0)
    means, transition = [mean0], [np.eye(nx, n * nx)]
    for t in range(n - 1):
        means.append(A[t] @ means[-1] + b[t])
        transition.append(A[t] @ transition[-1] + np.eye(nx, n * nx, (t + 1) * nx))
    mean, T = np.concatenate(means), np.vstack(transition)
    cov = T @ scipy.linalg.block_diag(cov0, *W) @ T.T
    seen = np.flatnonzero(seen)
    H = scipy.linalg.block_diag(*C)[seen]
    S = H @ cov @ H.T + scipy.linalg.block_diag(*V)[np.ix_(seen, seen)]
    v = np.ravel(ys)[seen] - H @ mean
    gain = np.linalg.solve(S, H @ cov).T
    loglik = -0.5 * (v @ np.linalg.solve(S, v) + np.log(np.linalg.det(S)) + len(seen) * np.log(2 * np.pi))
    return (mean + gain @ v).reshape(n, nx), cov - gain @ H @ cov, loglik


def check_kkt(problem, sol, *, tolerance):
    """Check a solution with bounds on us and x0 against the first-order conditions, gradient by `jax.grad`."""
    x0 = jnp.asarray(sol.x0)
    g_us, g_x0 = jax.grad(lambda us, x0: scanned_cost(problem, us, x0, sol.params), (0, 1))(sol.us, x0)
    pairs = [(sol.us, g_us, problem.u_min, problem.u_max)]
    if problem.x0 is None:
        pairs.append((x0, g_x0, problem.x0_min, problem.x0_max))
    for z, g, lower, upper in pairs:
        z, g = np.asarray(z), np.asarray(g)
        lower = np.broadcast_to(-np.inf if lower is None else np.asarray(lower), z.shape)
        upper = np.broadcast_to(np.inf if upper is None else np.asarray(upper), z.shape)
        assert (z >= lower - 1e-12).all()
        assert (z <= upper + 1e-12).all()
        inside = (z > lower + 1e-9) & (z < upper - 1e-9)
        assert np.abs(g[inside]).max(initial=0) <= tolerance
        fixed = lower == upper
        assert (g[(z <= lower + 1e-9) & ~fixed] >= -tolerance).all()
        assert (g[(z >= upper - 1e-9) & ~fixed] <= tolerance).all()


def check_optimality(problem, sol, *, tolerance):
    """Check states, inputs, costates and multipliers of a solution against the first-order conditions.

    The Lagrangian is written out from the problem's functions and differentiated by `jax.grad`; the sizes of its slope,
    of violations, of wrong signs and of products are returned, each within the tolerance (slopes and products relative
    to 1 + |cost|).
    """
    N, params, mu = problem.horizon, sol.params, {k: jnp.asarray(v) for k, v in sol.multipliers.items()}
    given = problem.x0 is not None
    ts = jnp.arange(N)

    def gaps(xs, us):
        return jax.vmap(lambda x, u, t: problem.dynamics.step(x, u, t, params))(xs[:-1], us, ts) - xs[1:]

    def values(xs, us):
        made = {}
        for name in ("path_inequality", "path_equality"):
            f = getattr(problem, name)
            if f is not None:
                made[name] = jax.vmap(lambda x, u, t, f=f: f(x, u, t, params))(xs[:-1], us, ts)
        for name in ("terminal_inequality", "terminal_equality"):
            if getattr(problem, name) is not None:
                made[name] = getattr(problem, name)(xs[N], params)
        for name in ("u_min", "u_max", "x_min", "x_max", "x0_min", "x0_max"):
            if getattr(problem, name) is not None:
                z = {"u_": us, "x_": xs, "x0": xs[0]}[name[:2]]
                bound = np.broadcast_to(np.asarray(getattr(problem, name), float), z.shape)
                there = np.isfinite(bound)
                if name[:2] == "x_" and given:
                    there = there & (np.arange(N + 1) > 0)[:, None]
                gap = np.where(there, bound, 0.0) - z
                made[name] = jnp.where(there, gap if name.endswith("min") else -gap, -1.0)
        return made

    def lagrangian(xs, us):
        total = jnp.sum(sol.costates[1:] * gaps(xs, us))
        if problem.stage_cost is not None:
            total += jnp.sum(jax.vmap(lambda x, u, t: problem.stage_cost(x, u, t, params))(xs[:-1], us, ts))
        if problem.terminal_cost is not None:
            total += problem.terminal_cost(xs[N], params)
        if problem.initial_cost is not None:
            total += problem.initial_cost(xs[0], params)
        return total + sum(jnp.sum(mu[name] * value) for name, value in values(xs, us).items())

    @jax.jit
    def everything(xs, us):
        return jax.grad(lagrangian, (0, 1))(xs, us), gaps(xs, us), values(xs, us)

    (g_xs, g_us), gap, value = jax.tree.map(np.asarray, everything(jnp.asarray(sol.xs), jnp.asarray(sol.us)))
    size = 1 + abs(float(sol.cost))
    figures = {
        "stationarity": max(np.abs(g_xs[1:]).max(), np.abs(g_us).max(initial=0)) / size,
        "violation": np.abs(gap).max(),
        "wrong": 0.0,
        "product": 0.0,
    }
    if not given:
        figures["stationarity"] = max(figures["stationarity"], np.abs(g_xs[0]).max() / size)
    assert set(value) == set(mu)
    for name, c in value.items():
        multiplier = np.asarray(mu[name])
        assert c.shape == multiplier.shape, name
        equality = name.endswith("_equality")
        worst = (np.abs(c) if equality else np.maximum(c, 0)).max(initial=0)
        figures["violation"] = max(figures["violation"], worst)
        if not equality:
            figures["wrong"] = max(figures["wrong"], (-multiplier).max(initial=0))
            figures["product"] = max(figures["product"], np.abs(c * multiplier).max(initial=0) / size)
    assert max(figures.values()) <= tolerance, figures
    return figures


def random_lq(rng, N=6, nx=3, nu=2, *, free_x0=False, unstable=1.0, invariant=False):
    """A random LQ record with every term present; jointly convex. `free_x0` may be a tuple of booleans."""
    from optctl.lq import LQ

    n, stages = nx + nu, () if invariant else (N,)
    factors = rng.normal(size=(*stages, n, n))
    H = factors @ np.swapaxes(factors, -1, -2) / n + 0.5 * np.eye(n)
    F = rng.normal(size=(nx, nx))
    A = unstable * rng.normal(size=(*stages, nx, nx)) / np.sqrt(nx)
    all_free = free_x0 is True
    return LQ(
        A=A, B=rng.normal(size=(*stages, nx, nu)), c=rng.normal(size=(*stages, nx)),
        Q=H[..., :nx, :nx], R=H[..., nx:, nx:], M=H[..., :nx, nx:],
        q=rng.normal(size=(*stages, nx)), r=rng.normal(size=(*stages, nu)),
        Qf=F @ F.T, qf=rng.normal(size=nx), x0=None if all_free else rng.normal(size=nx),
        Q0=np.eye(nx) + 0.1 if free_x0 else np.zeros((nx, nx)), q0=rng.normal(size=nx) if free_x0 else np.zeros(nx),
        constant=np.array(0.3), horizon=N, x0_free=free_x0 if isinstance(free_x0, tuple) else None,
    )  # fmt: skip
