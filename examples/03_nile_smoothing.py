r"""Smoothing as control: the annual flow of the Nile, 1871 to 1970.

The local level model (Durbin and Koopman 2012, section 2.2) of a level x_t that wanders, measured with noise,

    y_t = x_t + v_t,   x_{t+1} = x_t + w_t,   v ~ N(0, V),  w ~ N(0, W),  x_0 ~ N(0, cov0),

has its most probable level where the process noise, as input, and the free x_0 minimize

    1/2 x_0^2 / cov0 + sum_{t<N} 1/2 w_t^2 / W + sum_{t<=N} rho((y_t - x_t) / sqrt(V)),   rho(r) = r^2 / 2.

That is a linear-quadratic control problem; the answer is the mean of the Kalman (Rauch-Tung-Striebel) smoother,
written out below. Years without a measurement (NaN) drop out of the sum. Huber's rho, linear in the tails, keeps
single bad years from pulling the level.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import optctl as oc
from optctl.data import nile

V, W, COV0 = 15099.0, 1469.1, 1e7  # variances [10^16 m^6]


def rts_smoother(ys):
    """Return means and variances of the level by the textbook Kalman filter and backward pass."""
    n = len(ys)
    predicted, filtered = np.empty((n, 2)), np.empty((n, 2))
    m, P = 0.0, COV0
    for t in range(n):
        predicted[t] = m, P
        if np.isfinite(ys[t]):
            gain = P / (P + V)
            m, P = m + gain * (ys[t] - m), (1 - gain) * P
        filtered[t] = m, P
        P = P + W
    smoothed = filtered.copy()
    for t in reversed(range(n - 1)):
        J = filtered[t, 1] / predicted[t + 1, 1]
        smoothed[t, 0] += J * (smoothed[t + 1, 0] - predicted[t + 1, 0])
        smoothed[t, 1] += J**2 * (smoothed[t + 1, 1] - predicted[t + 1, 1])
    return smoothed[:, 0], smoothed[:, 1]


def smooth(ys):
    """Return means and variances by the exact linear-quadratic solve."""
    lq = oc.lq.LQ.from_problem(oc.smoothing_problem(model, ys))
    sol = oc.lq.solve(lq)
    return sol.xs[:, 0], oc.lq.covariances(lq, sol)[:, 0, 0]


model = oc.LinearGaussian(A=[[1.0]], C=[[1.0]], W=[[W]], V=[[V]], mean0=[0.0], cov0=[[COV0]])
years, volumes = nile()
gappy = np.where(((years >= 1890) & (years < 1905)) | ((years >= 1931) & (years < 1946)), np.nan, volumes)

# The exact solve against the textbook loop, on all data and with gaps.
for name, ys in (("all data", volumes), ("with gaps", gappy)):
    mean, variance = rts_smoother(ys)
    gap_mean, gap_variance = (np.abs(a / b - 1).max() for a, b in zip(smooth(ys), (mean, variance), strict=True))
    print(f"{name}: largest relative gap to the Kalman smoother: mean {gap_mean:.1e}, variance {gap_variance:.1e}")
    assert max(gap_mean, gap_variance) < 1e-9

# Gradient methods see costates only.
problem = oc.smoothing_problem(model, volumes)
exact = oc.solve(problem, method="lq").raise_if_failed()
for method in ("gradient_descent", "cg", "lbfgs"):
    sol = oc.solve(problem, method=method).raise_if_failed()
    distance = np.abs(sol.xs - exact.xs).max()
    print(f"{method:<17} cost {sol.cost:.9f} after {sol.iterations:3d} iterations, level off by {distance:.1e}")
    assert abs(sol.cost / exact.cost - 1) < 1e-8
print(f"{'exact':<17} cost {exact.cost:.9f}")
assert abs(exact.cost / oc.problems.OPTIMAL_COST["nile"] - 1) < 1e-9

# Spoil two years; Huber's loss hardly notices.
spoiled = volumes.copy()
spoiled[[40, 75]] = 2500.0, 100.0
quadratic = oc.solve(oc.smoothing_problem(model, spoiled))
robust = oc.solve(oc.smoothing_problem(model, spoiled, loss=oc.costs.Huber(1.345)), method="lbfgs").raise_if_failed()
moved = [np.abs(sol.xs - exact.xs).max() for sol in (quadratic, robust)]
print(f"two spoiled years move the level by up to {moved[0]:.0f} (quadratic loss) and {moved[1]:.0f} (Huber)")
clean = oc.solve(oc.smoothing_problem(model, volumes, loss=oc.costs.Huber(1.345)), method="lbfgs").raise_if_failed()
assert abs(clean.cost / oc.problems.OPTIMAL_COST["nile_huber"] - 1) < 1e-8
assert moved[1] < 0.4 * moved[0]

# Figure.
figure, axes = plt.subplots(2, 1, figsize=(8, 8), sharex=True, layout="constrained")
labels = ("year", "annual flow at Aswan [10^8 m^3]")
mean, variance = smooth(gappy)
oc.plot.smoothing(gappy, mean, variance[:, None, None], times=years, labels=labels, ax=axes[0])
oc.plot.smoothing(spoiled, quadratic.xs, times=years, labels=labels, ax=axes[1])
axes[1].plot(years, robust.xs[:, 0], "--", label="Huber's loss")
axes[1].get_lines()[1].set_label("quadratic loss")
axes[0].set(title="30 years without measurement", xlabel="")
axes[1].set(title="two years spoiled")
axes[1].legend()
Path("out").mkdir(exist_ok=True)
figure.savefig("out/03_nile_smoothing.png", dpi=120)
