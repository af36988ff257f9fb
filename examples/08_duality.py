r"""Duality: estimation is control, run backward in time.

Model: x_{t+1} = A x_t + w_t, y_t = C x_t + v_t, with w ~ N(0, W), v ~ N(0, V), x_0 ~ N(mean0, cov0).
(a) The smoother is a regulator that steers by noise. Its means, costates and covariances come out of

    minimize  1/2 (x_0 - mean0)'cov0^{-1}(x_0 - mean0) + sum_{t<N} 1/2 w_t'W^{-1}w_t
              + sum_{t<=N} 1/2 (y_t - C x_t)'V^{-1}(y_t - C x_t)      (minus log p(x, y), up to a constant).

(b) The filter is the regulator of the transposed system s+ = A's + C'a with weights W, V and Qf = cov0. Backward, its
Riccati matrices are the covariances P_t of x_t given y_0..y_{t-1}, its gains K those of the filter:

    P_t = (P of the regulator)_{N-t},    A L_t = -K_{N-1-t}',    L_t = P_t C'(C P_t C' + V)^{-1}.

(c) Minus the costates, r_t, are the slopes of log p(y) in shifts of x_t. With n_t the variance of r_t,

    d log p / dmean0 = r_0,    d log p / dy_t = -V^{-1}(y_t - C x_t),    d log p / dW = sum_{t>0} (r_t r_t' - n_t) / 2.
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import optctl as oc


def gap(a, b):
    """Return the largest difference, relative to the size of b."""
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max()


# (a) The flow of the Nile, smoothed by the linear-quadratic solve and by the Kalman smoother.
model, (years, ys) = oc.problems.local_level(), oc.data.nile()
lq = oc.lq.LQ.from_problem(oc.smoothing_problem(model, ys))
control, smoother = oc.lq.solve(lq), oc.kalman_smoother(model, ys)
by_control = {"means": control.xs, "costates": control.costates, "covs": oc.lq.covariances(lq, control)}
for name, values in by_control.items():
    print(f"(a) {name}: control and Kalman smoother differ by {gap(values, getattr(smoother, name)):.0e}")
    assert gap(values, getattr(smoother, name)) < 1e-9

# (b) A target moves at almost constant velocity. State: position [m], velocity [m/s]; position is measured every 1 s.
A, C = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0]])
W, V = 0.1 * np.array([[1 / 3, 1 / 2], [1 / 2, 1.0]]), np.array([[25.0]])
(L, P), (K, P_dual) = oc.dlqe(A, C, W, V), oc.dlqr(A.T, C.T, W, V)
print(f"(b) steady state: A L = {(A @ L).ravel().round(6)}', gain of the dual K = {K.ravel().round(6)}")
assert max(gap(A @ L, -K.T), gap(P, P_dual)) < 1e-9

cov0, N = np.diag([1e4, 1e2]), 20
dual = oc.lqr(A.T, C.T, W, V, Qf=cov0, horizon=N)
tracked = oc.LinearGaussian(A, C, W, V, mean0=[0.0, 0.0], cov0=cov0)
covs = np.asarray(oc.kalman_filter(tracked, np.zeros(N + 1)).predicted_covs)  # they do not depend on the data
gains = covs @ C.T / (C @ covs @ C.T + V)
print(f"    {N} steps: covariances and Riccati matrices of the dual differ by {gap(dual.P[::-1], covs):.0e}")
assert max(gap(dual.P[::-1], covs), gap(-dual.K[::-1, 0], (A @ gains[:-1])[..., 0])) < 1e-9


# (c) The Nile again: the likelihood and, by costates, its slope.
def likelihood(W):
    """Return log p, d log p / dW, and the smoother. In one dimension n = (P - P smoothed) / P^2."""
    trial = oc.problems.local_level(W=W)
    P, post = oc.kalman_filter(trial, ys).predicted_covs, oc.kalman_smoother(trial, ys)
    n = (P - post.covs) / P**2
    return float(post.log_likelihood), float(np.sum(post.costates[1:, 0] ** 2 - n[1:, 0, 0]) / 2), post


_, slope, post = likelihood(500.0)
quotient = (likelihood(500.05)[0] - likelihood(499.95)[0]) / 0.1
by_model, by_ys = jax.grad(oc.log_likelihood, argnums=(0, 1))(oc.problems.local_level(W=500.0), ys)
print(f"(c) d log p / dW: costates {slope:.10f}, jax.grad {by_model.W[0, 0]:.10f}, quotient {quotient:.10f}")
assert max(gap(slope, by_model.W), gap(-post.costates[0], by_model.mean0)) < 1e-9
assert gap((post.means[:, 0] - ys) / model.V[0, 0], by_ys) < 1e-9
assert gap(quotient, by_model.W) < 1e-6

# Figure: lines by control, circles by the Kalman filter and smoother.
figure, axes = plt.subplots(2, 2, figsize=(13, 8), layout="constrained")
(level, costate), (target, curve) = axes
circles = {"marker": "o", "ls": "", "mfc": "none", "color": "0.2", "ms": 5}
level.plot(years, ys, ".", color="0.6", label="measured")
oc.plot.smoothing(ys, control.xs, by_control["covs"], times=years, label="control", ax=level)
costate.plot(years, control.costates, label="control")
for ax, values in ((level, smoother.means), (costate, smoother.costates)):
    ax.plot(years[::4], values[::4], label="Kalman smoother", **circles)
for i, name in enumerate(("position [m]", "velocity [m/s]")):
    target.semilogy(np.sqrt(dual.P[::-1, i, i]), label=f"{name}: dual regulator, last stage first")
    target.semilogy(np.sqrt(covs[:, i, i]), label="Kalman filter" if i else None, **circles)
Ws, near = np.geomspace(100.0, 20000.0, 60), np.array([0.7, 1.4])
curve.semilogx(Ws, [likelihood(W)[0] for W in Ws], label="Kalman filter")
for W in (200.0, 500.0, 1469.1, 4000.0, 12000.0):
    value, slope, _ = likelihood(W)
    (line,) = curve.plot(W * near, value + slope * W * np.log(near), "C1", lw=3)
line.set_label("slope by costates")
level.set(title="(a) the level of the Nile", xlabel="year", ylabel="annual flow at Aswan [10^8 m^3]")
costate.set(title="(a) its costate", xlabel="year", ylabel="costate dJ/dx [1 / 10^8 m^3]")
target.set(title="(b) a moving target", xlabel="time [s]", ylabel="standard deviation", xticks=range(0, N + 1, 2))
curve.set(title="(c) likelihood of the Nile", xlabel="variance W of a year's step [10^16 m^6]", ylabel="log p(y) [1]")
for ax in axes.flat:
    ax.legend()
Path("out").mkdir(exist_ok=True)
figure.savefig("out/08_duality.png", dpi=120)
