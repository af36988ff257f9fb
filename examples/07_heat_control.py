r"""Control of a partial differential equation: the heat equation with distributed heating.

A rod of length 1, its ends held at temperature 0, starts at y(s, 0) = y0(s) and shall be at 0 at time T = 0.1:

    minimize    1/2 int y(s, T)^2 ds + a/2 int int u(s, t)^2 ds dt,   a = 0.01,
    subject to  y_t = y_ss + u,   y(0, t) = y(1, t) = 0.

With 31 interior points at distance h, L = second difference / h^2, and Crank-Nicolson steps of length dt,

    (I - dt/2 L) y_{t+1} = (I + dt/2 L) y_t + dt u_t:   a linear-quadratic problem, 31 states and 31 inputs a stage.

The eigenvectors of -L are sin(k pi s), with eigenvalues mu = 4/h^2 sin(k pi h / 2)^2; each mode is controlled by
itself. For dt -> 0 the amplitude of a mode that starts at 1 obeys y' = -mu y + u. The adjoint equation p' = mu p,
p(T) = y(T), and u = -p/a give

    p(t) = P exp(-mu (T - t)),   y(T) = P = exp(-mu T) / (1 + (1 - exp(-2 mu T)) / (2 a mu)),   J = P exp(-mu T) / 4.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import optctl as oc

n, N, T, a = 31, 50, 0.1, 0.01
h, dt = 1 / (n + 1), T / N
s, times = h * np.arange(1, n + 1), dt * np.arange(N + 1)

L = (np.diag(np.ones(n - 1), -1) - 2 * np.eye(n) + np.diag(np.ones(n - 1), 1)) / h**2
implicit, explicit = np.eye(n) - dt / 2 * L, np.eye(n) + dt / 2 * L
rod = oc.LinearDynamics(A=np.linalg.solve(implicit, explicit), B=dt * np.linalg.inv(implicit))
problem = oc.Problem(
    rod,
    oc.costs.Quadratic(Q=np.zeros((n, n)), R=a * h * dt * np.eye(n)),
    oc.costs.TerminalQuadratic(Q=h * np.eye(n)),
    horizon=N,
    x0=np.sin(np.pi * s),
)

# The closed form for all modes k = 1..n.
k = np.arange(1, n + 1)
modes = np.sin(np.pi * np.outer(s, k))
mu = 4 / h**2 * np.sin(k * np.pi * h / 2) ** 2
P = np.exp(-mu * T) / (1 + (1 - np.exp(-2 * mu * T)) / (2 * a * mu))
J = P * np.exp(-mu * T) / 4


def amplitudes(values):
    """Return the amplitude of each mode in values (..., n)."""
    return 2 * h * values @ modes


# The exact linear-quadratic solve and two gradient methods, from a sine and from a hot spot.
spot = np.maximum(0.0, 1 - np.abs(s - 0.3) / 0.2)
for name, y0 in (("sine", np.sin(np.pi * s)), ("spot", spot)):
    solutions = {m: oc.solve(problem.replace(x0=y0), method=m).raise_if_failed() for m in ("lq", "cg", "lbfgs")}
    exact = solutions["lq"]
    closed_form = J @ amplitudes(y0) ** 2
    print(f"{name:<5} lq    cost {exact.cost:.10f}, closed form for dt -> 0 {closed_form:.10f}")
    assert abs(exact.cost / closed_form - 1) < 1e-3
    for method in ("cg", "lbfgs"):
        gap = solutions[method].cost / exact.cost - 1
        print(f"      {method:<5} cost {solutions[method].cost:.10f} after {solutions[method].iterations} iterations")
        assert abs(gap) < 1e-6
    if name == "sine":  # inputs act in the middle of a step; the costate is h times the adjoint state p
        u, p, end = (amplitudes(values)[..., 0] for values in (exact.us, exact.costates / h, exact.xs[-1]))
        middle = times[:-1] + dt / 2
        print(f"      amplitude at time T {end:.8f}, closed form {P[0]:.8f}")
        assert np.isclose(end, P[0], rtol=1e-3)
        assert np.allclose(u, -P[0] / a * np.exp(-mu[0] * (T - middle)), rtol=1e-3)
        assert np.allclose(p, P[0] * np.exp(-mu[0] * (T - times)), rtol=1e-3)

# Figure: temperature and heating over space and time, from the hot spot.
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
cold = rod.rollout(spot, np.zeros((N, n)))
fields = {"temperature without control": cold, "optimally controlled": exact.xs}
fields = {title: np.pad(xs, ((0, 0), (1, 1))) for title, xs in fields.items()}
labels = ("position [rod length]", "time [diffusion time]", "temperature [1]")
oc.plot.field(fields, np.linspace(0, 1, n + 2), times, labels=labels, limits=(0, 1), cmap="inferno", ax=axes[:2])
labels = (*labels[:2], "heating [temperature per diffusion time]")
oc.plot.field({"optimal heating u": exact.us}, s, times[:-1], labels=labels, cmap="viridis", ax=axes[2])
Path("out").mkdir(exist_ok=True)
figure.savefig("out/07_heat_control.png", dpi=120)
