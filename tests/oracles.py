"""Independent answers: nothing here uses the recursions of the package."""

import jax
import jax.numpy as jnp
import numpy as np


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
    """Solve an LQ model through its KKT system, one dense matrix: xs, us and the multipliers of the dynamics."""
    lq = jax.tree.map(np.asarray, lq)
    N, nx, nu = lq.B.shape
    n = (N + 1) * nx + N * nu
    H, g = np.zeros((n, n)), np.zeros(n)
    x = [slice(t * nx, (t + 1) * nx) for t in range(N + 1)]
    u = [slice((N + 1) * nx + t * nu, (N + 1) * nx + (t + 1) * nu) for t in range(N)]
    for t in range(N):
        H[x[t], x[t]] += lq.Q[t]
        H[u[t], u[t]] += lq.R[t]
        H[x[t], u[t]] += lq.M[t]
        H[u[t], x[t]] += lq.M[t].T
        g[x[t]] += lq.q[t]
        g[u[t]] += lq.r[t]
    H[x[N], x[N]] += lq.Qf
    g[x[N]] += lq.qf
    rows = N * nx + (nx if lq.x0 is not None else 0)
    E, e = np.zeros((rows, n)), np.zeros(rows)
    for t in range(N):
        row = slice(t * nx, (t + 1) * nx)
        E[row, x[t + 1]] = -np.eye(nx)
        E[row, x[t]] = lq.A[t]
        E[row, u[t]] = lq.B[t]
        e[row] = -lq.c[t]
    if lq.x0 is None:
        H[x[0], x[0]] += lq.Q0
        g[x[0]] += lq.q0
    else:
        E[N * nx :, x[0]] = -np.eye(nx)
        e[N * nx :] = -lq.x0
    K = np.block([[H, E.T], [E, np.zeros((rows, rows))]])
    z = np.linalg.solve(K, np.concatenate([-g, e]))
    xs, us = z[: (N + 1) * nx].reshape(N + 1, nx), z[(N + 1) * nx : n].reshape(N, nu)
    return xs, us, z[n : n + N * nx].reshape(N, nx)


def kalman_rts(A, C, W, V, mean0, cov0, ys):
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
    means, covs = [filtered[-1][0]], [filtered[-1][1]]
    for t in range(len(ys) - 2, -1, -1):
        mf, Pf = filtered[t]
        mp, Pp = predicted[t + 1]
        G = Pf @ A.T @ np.linalg.inv(Pp)
        means.insert(0, mf + G @ (means[0] - mp))
        covs.insert(0, Pf + G @ (covs[0] - Pp) @ G.T)
    return np.array(means), np.array(covs), loglik


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


def random_lq(rng, N=6, nx=3, nu=2, *, free_x0=False, unstable=1.0):
    """A random LQ record with every term present; jointly convex."""
    from optctl.lq import LQ

    n = nx + nu
    factors = rng.normal(size=(N, n, n))
    H = factors @ np.swapaxes(factors, 1, 2) / n + 0.5 * np.eye(n)
    F = rng.normal(size=(nx, nx))
    A = unstable * rng.normal(size=(N, nx, nx)) / np.sqrt(nx)
    return LQ(
        A=A, B=rng.normal(size=(N, nx, nu)), c=rng.normal(size=(N, nx)),
        Q=H[:, :nx, :nx], R=H[:, nx:, nx:], M=H[:, :nx, nx:], q=rng.normal(size=(N, nx)), r=rng.normal(size=(N, nu)),
        Qf=F @ F.T, qf=rng.normal(size=nx), x0=None if free_x0 else rng.normal(size=nx),
        Q0=np.eye(nx) if free_x0 else np.zeros((nx, nx)), q0=rng.normal(size=nx) if free_x0 else np.zeros(nx),
        constant=np.array(0.0),
    )  # fmt: skip
