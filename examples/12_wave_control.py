r"""Boundary control of the wave equation: a string comes to rest by moving its ends as the waves arrive, animated.

On s in (0, 1), T = 1, speed 1, moved at its ends, y(0, t) = u_1, y(1, t) = u_2:

    minimize    1/2 int y_t^2 + y_s^2 ds at time T + a/2 int u_1^2 + u_2^2 dt,   a = 0.1,
    subject to  y_tt = y_ss,   y(s, 0) = y0(s),   y_t(s, 0) = 0.

A closed form: y = (y0(s + t) + y0(s - t)) / 2, two waves that run apart. Ends that move as the waves arrive,
u_1 = y0(t)/2 and u_2 = y0(1 - t)/2, let them out; at time 1 nothing is left, for the price a/4 int y0^2 ds. The optimum
costs no more, and here, where the end state weighs much more than the inputs, hardly less.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import optctl as oc

# Solved exactly by the quadratic core, beside the closed form.
n, N, a = 127, 256, 0.1
string = oc.pde.Wave(n, dt=1 / N, control="boundary")
s, h = np.asarray(string.grid), float(string.spacing)
bump = np.sin(np.pi * s) ** 2
L = (np.diag(np.ones(n - 1), -1) - 2 * np.eye(n) + np.diag(np.ones(n - 1), 1)) / h**2
zero = np.zeros((n, n))
problem = oc.Problem(
    string,
    oc.costs.Quadratic(Q=np.zeros((2 * n, 2 * n)), R=a / N * np.eye(2)),
    oc.costs.TerminalQuadratic(Q=h * np.block([[-L, zero], [zero, np.eye(n)]])),
    horizon=N,
    x0=np.concatenate([bump, np.zeros(n)]),
)
rest = oc.solve(problem, method="lq").raise_if_failed()
middle = (np.arange(N) + 0.5) / N
let_out = np.stack([np.sin(np.pi * middle) ** 2, np.sin(np.pi * (1 - middle)) ** 2], axis=1) / 2
closed_form = a / 4 * 3 / 8
energy = string.energy(np.asarray(rest.xs))
print(f"wave     cost {rest.cost:.7f}, closed form of waves let out {closed_form:.7f}")
print(f"wave     scaled stationarity {rest.certificate.stationarity_scaled:.1e}, ", end="")
print(f"energy {energy[0]:.4f} before, {energy[-1]:.1e} after, inputs off by {np.abs(rest.us - let_out).max():.3f}")
assert abs(rest.cost / closed_form - 1) < 0.05
assert energy[-1] < 1e-3 * energy[0]
assert np.abs(rest.us - let_out).max() < 0.05

# Figure: the string in space and time, without and with control, and the motion of its ends.
free = string.rollout(problem.x0, np.zeros((N, 2)))
us = np.concatenate([rest.us, rest.us[-1:]])  # the ends at each time, to close the picture
strings = {
    "string, without control": np.pad(free[:, :n], ((0, 0), (1, 1))),
    "string, optimally controlled": np.column_stack([us[:, 0], rest.xs[:, :n], us[:, 1]]),
}
positions, times = np.linspace(0, 1, n + 2), np.arange(N + 1) / N
labels, limits = ("position [length]", "time [s]", "deflection [1]"), (-1, 1)
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
oc.plot.field(strings, positions, times, labels=labels, limits=limits, ax=axes[:2])
axes[2].plot(middle, rest.us, label=["left end", "right end"])
axes[2].plot(middle, let_out[:, 0], "k--", label="closed form, both")
axes[2].set(xlabel="time [s]", ylabel="deflection of the end [1]", title="optimal motion of the ends")
axes[2].legend()
Path("out").mkdir(exist_ok=True)
figure.savefig("out/12_wave_control.png", dpi=120)

# Animation of both strings.
film = oc.plot.animation(strings, positions, times, labels=labels, limits=limits, every=8)
film.save("out/wave_control.gif", "pillow", fps=10, dpi=80)
