r"""Control of partial differential equations: Burgers' equation towards a profile, a string to rest from its ends.

Burgers, s in (0, 1), T = 1, nu = 0.01; a sine that would steepen into a shock shall become a half sine, reversed:

    minimize    1/2 int (y(s, T) - target)^2 ds + a/2 int int u^2 ds dt,   a = 0.01,
    subject to  y_t + (y^2/2)_s = nu y_ss + u,   y = 0 at both ends.

The wave equation, T = 1, speed 1, moved at its ends, y(0, t) = u_1, y(1, t) = u_2, shall come to rest:

    minimize    1/2 int y_t^2 + y_s^2 ds at time T + a/2 int u_1^2 + u_2^2 dt,   a = 0.1,
    subject to  y_tt = y_ss,   y(s, 0) = y0(s),   y_t(s, 0) = 0.

A closed form: y = (y0(s + t) + y0(s - t)) / 2, two waves that run apart. Ends that move as the waves arrive,
u_1 = y0(t)/2 and u_2 = y0(1 - t)/2, let them out; at time 1 nothing is left, for the price a/4 int y0^2 ds. The optimum
costs no more, and here, where the end state weighs much more than the inputs, hardly less.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

import optctl as oc

# Burgers' equation, with L-BFGS; Newton-CG as the second opinion, and a difference quotient of the cost.
n, N, a = 63, 100, 0.01
flow = oc.pde.Burgers(n, dt=1 / N, viscosity=0.01)
s, h = np.asarray(flow.grid), float(flow.spacing)
start, target = np.sin(np.pi * s), 0.5 * np.sin(2 * np.pi * s)
problem = oc.Problem(
    flow,
    oc.costs.Quadratic(Q=np.zeros((n, n)), R=a * h / N * np.eye(n)),
    oc.costs.TerminalQuadratic(Q=h * np.eye(n), x_ref=target),
    horizon=N,
    x0=start,
)
idle = oc.gradient(problem, np.zeros((N, n)))
d = np.random.default_rng(0).normal(size=(N, n))
ahead, behind = (oc.gradient(problem, e * d).cost for e in (1e-4, -1e-4))
quotient, slope = (ahead - behind) / 2e-4, np.sum(idle.us * d)
print(f"Burgers  slope {slope:.9e} by the costates, {quotient:.9e} by differences")
assert abs(slope / quotient - 1) < 1e-6
steered = oc.solve(problem, method="lbfgs").raise_if_failed()
second = oc.solve(problem, method="newton_cg").raise_if_failed()
print(f"Burgers  cost {steered.cost:.9f}, uncontrolled {idle.cost:.6f}, by newton_cg {second.cost:.9f}")
print(f"Burgers  {steered.iterations} iterations, scaled stationarity {steered.certificate.stationarity_scaled:.1e}")
assert steered.cost < 0.05 * idle.cost
assert abs(steered.cost / second.cost - 1) < 1e-6
assert np.abs(steered.xs[-1] - target).max() < 0.1

# The wave equation, solved exactly by the quadratic core, beside the closed form.
m, M, b = 127, 256, 0.1
string = oc.pde.Wave(m, dt=1 / M, control="boundary")
r, g = np.asarray(string.grid), float(string.spacing)
bump = np.sin(np.pi * r) ** 2
L = (np.diag(np.ones(m - 1), -1) - 2 * np.eye(m) + np.diag(np.ones(m - 1), 1)) / g**2
zero = np.zeros((m, m))
string_problem = oc.Problem(
    string,
    oc.costs.Quadratic(Q=np.zeros((2 * m, 2 * m)), R=b / M * np.eye(2)),
    oc.costs.TerminalQuadratic(Q=g * np.block([[-L, zero], [zero, np.eye(m)]])),
    horizon=M,
    x0=np.concatenate([bump, np.zeros(m)]),
)
rest = oc.solve(string_problem, method="lq").raise_if_failed()
middle = (np.arange(M) + 0.5) / M
let_out = np.stack([np.sin(np.pi * middle) ** 2, np.sin(np.pi * (1 - middle)) ** 2], axis=1) / 2
closed_form = b / 4 * 3 / 8
energy = string.energy(np.asarray(rest.xs))
print(f"wave     cost {rest.cost:.7f}, closed form of waves let out {closed_form:.7f}")
print(f"wave     scaled stationarity {rest.certificate.stationarity_scaled:.1e}, ", end="")
print(f"energy {energy[0]:.4f} before, {energy[-1]:.1e} after, inputs off by {np.abs(rest.us - let_out).max():.3f}")
assert abs(rest.cost / closed_form - 1) < 0.05
assert energy[-1] < 1e-3 * energy[0]
assert np.abs(rest.us - let_out).max() < 0.05

# Figure: both equations in space and time, without and with control.
free_flow, free_string = idle.xs, string.rollout(string_problem.x0, np.zeros((M, 2)))
us = np.concatenate([rest.us, rest.us[-1:]])  # the ends at each time, to close the pictures
full = {
    "free flow": np.pad(free_flow, ((0, 0), (1, 1))),
    "flow": np.pad(steered.xs, ((0, 0), (1, 1))),
    "free string": np.pad(free_string[:, :m], ((0, 0), (1, 1))),
    "string": np.column_stack([us[:, 0], rest.xs[:, :m], us[:, 1]]),
}
rows = (
    ("Burgers", ("free flow", "flow"), "velocity [length/s]"),
    ("wave", ("free string", "string"), "deflection [1]"),
)
figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
for row, (equation, names, label) in zip(axes, rows, strict=True):
    for ax, name, how in zip(row, names, ("without control", "optimally controlled"), strict=False):
        grids = np.linspace(0, 1, full[name].shape[1]), np.linspace(0, 1, full[name].shape[0])
        image = ax.pcolormesh(*grids, full[name], cmap="RdBu_r", vmin=-1, vmax=1, shading="gouraud")
        ax.set(xlabel="position [length]", ylabel="time [s]", title=f"{equation}, {how}")
    figure.colorbar(image, ax=row[:2], label=label)
image = axes[0, 2].pcolormesh(s, (np.arange(N) + 0.5) / N, steered.us, cmap="viridis", shading="gouraud")
axes[0, 2].set(xlabel="position [length]", ylabel="time [s]", title="Burgers, optimal force u")
figure.colorbar(image, ax=axes[0, 2], label="force [length/s$^2$]")
axes[1, 2].plot(middle, rest.us, label=["left end", "right end"])
axes[1, 2].plot(middle, let_out[:, 0], "k--", label="closed form, both")
axes[1, 2].set(xlabel="time [s]", ylabel="deflection of the end [1]", title="wave, optimal motion of the ends")
axes[1, 2].legend()
Path("out").mkdir(exist_ok=True)
figure.savefig("out/11_pde_control.png", dpi=120)

# Animation of the four.
movie, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
lines = {}
for ax, (_, names, label) in zip(axes, rows, strict=True):
    for name, style in zip(names, ("C7-", "C0-"), strict=True):
        (lines[name],) = ax.plot(np.linspace(0, 1, full[name].shape[1]), full[name][0], style)
    ax.set(xlabel="position [length]", ylabel=label, ylim=(-1.1, 1.1))
axes[0].plot(s, target, "k:", linewidth=1)
axes[0].legend(["Burgers, free", "controlled", "target"], loc="lower left", fontsize="small")
axes[1].legend(["wave, free", "controlled"], loc="lower left", fontsize="small")


def show(share):
    for name, line in lines.items():
        line.set_ydata(full[name][round(share * (len(full[name]) - 1))])
    movie.suptitle(f"t = {share:.2f} s")


FuncAnimation(movie, show, np.linspace(0, 1, 41)).save("out/pde_control.gif", PillowWriter(fps=12), dpi=80)
