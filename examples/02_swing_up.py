r"""Trajectory optimization: swing up an acrobot, and what its costates tell.

Two links hang from a pivot; a motor turns the joint between them. With q = (q1, q2), q1 = 0 hanging down and q2
relative to the first link, the equations of motion (Sutton and Barto 1998, section 11.3) are

    d1 q1'' + d2 q2'' + phi1 = 0,     d2 q1'' + d3 q2'' + c q1'^2 sin q2 + phi2 = u.

From rest, x_0 = 0, bring x = (q1, q2, q1', q2') to the goal (pi, 0, 0, 0) within 50 explicit Euler steps of 0.1 s:

    minimize  sum_{t<50} 1/2 (0.1 |x_t - goal|^2 + 0.01 u_t^2) + 1/2 1000 |x_50 - goal|^2.

The problem is not convex, yet from zero inputs Newton-CG reaches the cost on which other solvers agree.
"""

from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import optctl as oc

GOAL = jnp.array([jnp.pi, 0.0, 0.0, 0.0])
M1 = M2 = L1 = I1 = I2 = 1.0  # masses [kg], length of link 1 [m], moments of inertia [kg m^2]
LC1 = LC2 = 0.5  # centers of mass [m]
G = 9.8  # gravity [m/s^2]


def acrobot(x, u):
    """Return dx/dt."""
    q1, q2, w1, w2 = x
    c = M2 * L1 * LC2
    d1 = M1 * LC1**2 + M2 * (L1**2 + LC2**2) + 2 * c * jnp.cos(q2) + I1 + I2
    d2 = M2 * LC2**2 + c * jnp.cos(q2) + I2
    d3 = M2 * LC2**2 + I2
    phi2 = M2 * LC2 * G * jnp.sin(q1 + q2)
    phi1 = -c * w2 * (w2 + 2 * w1) * jnp.sin(q2) + (M1 * LC1 + M2 * L1) * G * jnp.sin(q1) + phi2
    a2 = (u[0] + d2 / d1 * phi1 - c * w1**2 * jnp.sin(q2) - phi2) / (d3 - d2**2 / d1)
    a1 = -(d2 * a2 + phi1) / d1
    return [w1, w2, a1, a2]


def stage_cost(x, u):
    return 0.5 * (0.1 * jnp.sum((x - GOAL) ** 2) + 0.01 * jnp.sum(u**2))


def terminal_cost(x):
    return 0.5 * 1000 * jnp.sum((x - GOAL) ** 2)


dt, N = 0.1, 50
dynamics = oc.discretize(acrobot, dt, "euler", nx=4, nu=1)
problem = oc.Problem(dynamics, stage_cost, terminal_cost, horizon=N, x0=np.zeros(4))
sol = oc.solve(problem, method="newton_cg").raise_if_failed()
best = oc.problems.OPTIMAL_COST["acrobot_swing_up"]
print(sol)
print(f"known optimum {best:.9f}, gap {sol.cost / best - 1:.1e}; end state misses the goal by", end=" ")
print(f"{np.linalg.norm(sol.xs[-1] - GOAL):.3f}")
assert abs(sol.cost / best - 1) < 1e-8

# A costate is a price: disturb the state at t = 20 by d and hold the inputs, the cost changes by costates[20]' d.
t, d = 20, 1e-7 * np.array([1.0, -1.0, 2.0, 1.0])
tail = problem.replace(horizon=N - t)
change = oc.gradient(tail, sol.us[t:], x0=sol.xs[t] + d).cost - oc.gradient(tail, sol.us[t:], x0=sol.xs[t] - d).cost
print(f"price of a disturbance at t = {t}: by costate {2 * sol.costates[t] @ d:.6e}, by rollout {change:.6e}")
assert abs(change / (2 * sol.costates[t] @ d) - 1) < 1e-5

growth = oc.costate_growth(dynamics, sol.xs, sol.us)
print(growth.verdict)

# Figure.
figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
names = ["q1 [rad]", "q2 [rad]", "q1' [rad/s]", "q2' [rad/s]"]
oc.plot.trajectory(sol, dt=dt, ax=[axes[0, 0], axes[1, 0]])
oc.plot.costates(sol, dt=dt, ax=axes[0, 1])
oc.plot.costate_growth(growth, ax=axes[1, 1])
axes[0, 0].legend(names, fontsize="small")
axes[0, 0].set(xlabel="time [s]", ylabel="state")
axes[0, 1].legend([f"of {name}" for name in names], fontsize="small")
axes[1, 0].set(ylabel="torque [N m]")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/02_swing_up.png", dpi=120)
