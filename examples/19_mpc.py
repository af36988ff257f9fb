r"""Model predictive control of a cart-pole: disturbances, limits, a wrong model, and how long a step takes.

At each sample (40 ms) the problem is solved from the measured state over 1.2 s, with |force| <= 20 N and
|position| <= 2 m; the terminal cost is the value function of the linearized problem. Three controllers meet the same
plant, whose masses are 10 % off and which a steady wind pushes with 2 N from t = 2 s on:

    converged             Newton steps until the certificate holds
    real-time iteration   one Newton step a sample, prepared before the measurement arrives
    with an observer      converged, with an estimate of the offset between model and plant
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import optctl as oc

dt, N, steps = 0.04, 30, 200
goal = np.array([0.0, np.pi, 0.0, 0.0])
dynamics = oc.discretize(oc.models.CartPole(), dt)
Q, R = dt * np.diag([10.0, 5.0, 0.1, 0.1]), dt * np.array([[0.01]])
A, B = dynamics.linearize(np.stack([goal, goal]), np.zeros((1, 1)))
wide = np.array([2.0, np.inf, np.inf, np.inf])
problem = oc.Problem(
    dynamics, oc.costs.Tracking(Q, R, x_ref=goal), oc.costs.TerminalQuadratic(oc.dare(A[0], B[0], Q, R), x_ref=goal),
    horizon=N, x0=goal, u_min=-20.0, u_max=20.0, x_min=-wide, x_max=wide,
)  # fmt: skip

real = oc.discretize(oc.models.CartPole(mc=1.1, mp=0.33), dt)
move = jax.jit(lambda x, u: real.step(x, u, 0, None))


def plant(x, u, k):
    return move(x, u + (2.0 if k * dt >= 2 else 0.0))


noise = 1e-3 * np.random.default_rng(0).normal(size=(steps, 4))
start = goal + np.array([0.8, 0.4, 0.0, 1.0])
runs = {}
for name, options in {
    "converged": {},
    "real-time iteration": {"real_time": True, "method": oc.InteriorPoint(barrier=1e-2)},
    "with an observer": {"offset_gain": 0.3},
}.items():
    mpc = oc.MPC(problem, **options)
    runs[name] = mpc.simulate(start, steps, plant, noise=noise)
    print(f"{name:>20}: {runs[name]}")
    print(f"{'':>20}  cart at {1e3 * np.mean(runs[name].xs[-50:, 0]):.1f} mm in the end")
    assert np.abs(runs[name].xs[-50:, 1] - np.pi).max() < 0.05
    assert np.abs(runs[name].us).max() <= 20 + 1e-6
assert abs(runs["with an observer"].xs[-50:, 0].mean()) < 0.5 * abs(runs["converged"].xs[-50:, 0].mean())

# Kicks: 200 random states, one compiled closed loop; each must come back.
mpc = oc.MPC(problem)
plan = mpc.init(goal)
kicked = goal + np.random.default_rng(1).uniform(-1, 1, size=(200, 4)) * [1.0, 0.6, 1.0, 2.0]


def closed_loop(x0):
    def sample(carry, _):
        x, plan = carry
        u, plan = mpc.step(plan, x)
        return (dynamics.step(x, u, 0, None), plan), (x, u)

    (x, _), (xs, us) = jax.lax.scan(sample, (x0, plan), length=100)
    return x, xs, us


ends, xs, us = jax.jit(lambda x0s: jax.lax.map(closed_loop, x0s))(jnp.asarray(kicked))
recovered = int(np.sum(np.abs(ends - goal[None]).max(axis=1) < 0.05))
print(
    f"{recovered} of 200 kicks recovered; force up to {np.abs(us).max():.2f} N,"
    f" position up to {np.abs(xs[..., 0]).max():.2f} m"
)
assert recovered == 200

figure, axes = plt.subplots(2, 2, figsize=(12, 7), layout="constrained")
time = np.arange(steps + 1) * dt
for name, run in runs.items():
    axes[0, 0].plot(time, run.xs[:, 0], label=name)
    axes[0, 1].step(time[:-1], run.us[:, 0], where="post", label=name, linewidth=1)
    latency = np.sort(run.latencies) * 1e3
    axes[1, 1].semilogx(latency, np.linspace(0, 100, steps), label=name)
axes[0, 0].axvline(2.0, color="k", linestyle=":", linewidth=1)
axes[0, 0].set(xlabel="time [s]", ylabel="cart position [m]", title="wind of 2 N from 2 s on")
axes[0, 1].set(xlabel="time [s]", ylabel="force [N]")
axes[1, 0].plot(np.arange(100) * dt, np.asarray(xs[:40, :, 1]).T - np.pi, color="tab:blue", alpha=0.3, linewidth=1)
axes[1, 0].set(xlabel="time [s]", ylabel="pole angle from upright [rad]", title="forty of the 200 kicks")
axes[1, 1].set(xlabel="latency [ms]", ylabel="samples within [%]")
for ax in (axes[0, 0], axes[0, 1], axes[1, 1]):
    ax.legend(fontsize="small")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/19_mpc.png", dpi=120)
