r"""Control of Burgers' equation: towards a profile that the free flow would never take, animated.

On s in (0, 1), T = 1, nu = 0.01, a sine that would steepen into a shock shall become a half sine, reversed:

    minimize    1/2 int (y(s, T) - target)^2 ds + a/2 int int u^2 ds dt,   a = 0.01,
    subject to  y_t + (y^2/2)_s = nu y_ss + u,   y = 0 at both ends.

Convection by central differences, diffusion implicit: each step and each adjoint step is one tridiagonal solve.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

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

# Figure: the flow in space and time, without and with control, and the force.
flows = {"flow, without control": idle.xs, "flow, optimally controlled": steered.xs}
flows = {name: np.pad(xs, ((0, 0), (1, 1))) for name, xs in flows.items()}
positions, times = np.linspace(0, 1, n + 2), np.arange(N + 1) / N
labels, limits = ("position [length]", "time [s]", "velocity [length/s]"), (-1, 1)
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
oc.plot.field(flows, positions, times, labels=labels, limits=limits, ax=axes[:2])
force, middle = (*labels[:2], "force [length/s$^2$]"), times[:-1] + 0.5 / N
oc.plot.field({"optimal force u": steered.us}, s, middle, labels=force, cmap="viridis", ax=axes[2])
Path("out").mkdir(exist_ok=True)
figure.savefig("out/11_burgers_control.png", dpi=120)

# Animation of both flows.
movie, ax = plt.subplots(figsize=(5, 3.6), layout="constrained")
ax.plot(s, target, "k:", linewidth=1, label="target")
film = oc.plot.animation(flows, positions, times, labels=labels, limits=limits, every=4, ax=ax)
film.save("out/burgers_control.gif", "pillow", fps=10, dpi=80)
