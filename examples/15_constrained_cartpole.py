r"""Trajectory optimization with constraints: swing up a cart-pole with a weak motor on a short track.

    minimize  sum_t dt u_t^2     subject to   x_{t+1} = f(x_t, u_t)   (RK4, dt = 0.02 s, N = 100),
                                              x_0 = 0,  x_N = (1, pi, 0, 0),  |u| <= F,  |position| <= P.

The interior point method (multiple shooting, one linear-quadratic solve a step) finds the optimum, its costates and a
multiplier for every constraint: what one newton more force, or one centimeter more track, would save.

Reference: Kelly (2017), An introduction to trajectory optimization, SIAM Review 59, section 6.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import optctl as oc

N, dt = 100, 0.02
goal = np.array([1.0, np.pi, 0.0, 0.0])
cartpole = oc.discretize(oc.models.CartPole(), dt)


def problem(force, track):
    """Return the problem with |u| <= force and |position| <= track."""
    wide = jnp.array([track, jnp.inf, jnp.inf, jnp.inf])
    return oc.Problem(
        cartpole, stage_cost=lambda x, u: dt * u @ u, terminal_equality=lambda x: x - goal, horizon=N, x0=np.zeros(4),
        u_min=-force, u_max=force, x_min=-wide, x_max=wide,
    )  # fmt: skip


guess = {"us": np.zeros((N, 1)), "xs": np.linspace(np.zeros(4), goal, N + 1)}
free = oc.solve(problem(20.0, 2.0), **guess).raise_if_failed()
known = oc.problems.cartpole_constrained().optimum
print(f"force up to 20 N, track +-2 m: cost {free.cost:.9f}, known optimum {known:.9f}, {free.iterations} iterations")
assert abs(free.cost / known - 1) < 1e-8

tight = problem(12.0, 1.05)
sol = oc.solve(tight, **guess).raise_if_failed()
print("force up to 12 N, track +-1.05 m:")
print(sol)

# The multipliers are prices: the same by differentiating the solution, and by solving again.
slope = -jnp.sum(sol.multipliers["u_max"] + sol.multipliers["u_min"])
derivative = jax.grad(lambda force: oc.solve(problem(force, 1.05), **guess).cost)(12.0)
costs = [oc.solve(problem(12.0 + h, 1.05), **guess).cost for h in (1e-4, -1e-4)]
difference = (costs[0] - costs[1]) / 2e-4
print(f"one newton more: {slope:.6f} by multipliers, {derivative:.6f} by jax.grad, {difference:.6f} by solving again")
assert abs(derivative / difference - 1) < 1e-5

# 8 N cannot do it within 2 s; the solver says so, and where it stands.
weak = oc.solve(problem(8.0, 0.6), **guess)
print(f"8 N, +-0.6 m: {weak.message.split(':')[0]} after {weak.iterations} iterations")
assert weak.status == oc.Status.INFEASIBLE

figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
time = np.arange(N) * dt
oc.plot.trajectory(sol, tight, ax=axes[:, 0])
axes[0, 1].step(time, sol.multipliers["u_max"], where="post", label="of force <= 12 N")
axes[0, 1].step(time, sol.multipliers["u_min"], where="post", label="of force >= -12 N")
axes[0, 1].plot(np.arange(N + 1) * dt, sol.multipliers["x_max"][:, 0] / 10, label="of position <= 1.05 m, a tenth")
axes[0, 1].set(xlabel="time [s]", ylabel="multiplier [cost per unit]", title="what the limits cost")
axes[0, 1].legend(fontsize="small")
for name, one in (("20 N, 2 m", free), ("12 N, 1.05 m", sol)):
    tip = np.asarray(one.xs[:, 0] + 0.5 * np.sin(one.xs[:, 1])), np.asarray(-0.5 * np.cos(one.xs[:, 1]))
    axes[1, 1].plot(*tip, ".-", markersize=3, label=name)
axes[1, 1].set(xlabel="x [m]", ylabel="y [m]", title="path of the pole's tip", aspect="equal")
axes[1, 1].legend(fontsize="small")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/15_constrained_cartpole.png", dpi=120)
