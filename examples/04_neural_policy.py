r"""A neural controller for a cart-pole, trained through the closed loop by costates.

The state x = (position, angle, velocity, rate) of cart and pole obeys x_{t+1} = f(x_t, u_t) (RK4, 0.02 s). With a
network in the loop, u = 20 N tanh(network(x - goal)), its weights are found from

    minimize over weights   E_{x_0} [ sum_{t<25} l(x_t, u_t) + 1/2 (x_25 - goal)' P (x_25 - goal) ],

    l(x, u) = 1/2 (x - goal)' Q (x - goal) + 1/2 u' R u,   goal = (0, pi, 0, 0): upright.

P is the value function of the linearized problem over an infinite horizon, so the short horizon does not matter.
The gradient in the weights is sum_t (du/dweights)' (dl/du + (df/du)' costates_{t+1}), averaged over initial states.
The linear feedback u = K (x - goal) of the same linearized problem is the yardstick; both are tried on 200 unseen
initial states, for half a second by cost and for ten seconds by whether they balance the pole.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optctl as oc

GOAL = np.array([0.0, np.pi, 0.0, 0.0])
Q, R = 0.02 * np.diag([1.0, 5.0, 0.1, 0.1]), 0.02 * np.array([[0.05]])
dynamics = oc.discretize(oc.models.CartPole(), 0.02)
(A,), (B,) = dynamics.linearize(np.stack([GOAL, GOAL]), np.zeros((1, 1)))
K, P = oc.dlqr(A, B, Q, R)
problem = oc.Problem(
    dynamics,
    oc.costs.Tracking(Q, R, x_ref=GOAL),
    oc.costs.TerminalQuadratic(P, x_ref=GOAL),
    horizon=25,
    x0=GOAL,
)
network = oc.mlp([4, 32, 32, 1])


def neural(x, t, weights):
    return 20.0 * jnp.tanh(network.apply(weights, x - GOAL))


def linear(x, t, K):
    return jnp.clip(K @ (x - GOAL), -20.0, 20.0)


def draw(seed, n):
    """Return initial states, uniform within 0.5 (m, rad, m/s, rad/s) of the goal."""
    return GOAL + np.random.default_rng(seed).uniform(-0.5, 0.5, size=(n, 4))


def try_out(policy, params, x0s):
    """Return the mean cost, the share of states balanced after 10 s, and the closed-loop states (n, 501, 4)."""
    loop = oc.closed_loop(problem, policy)
    paths = jax.vmap(lambda x0: loop.dynamics.rollout(x0, jnp.zeros((500, 0)), params))(x0s)
    costs = jax.vmap(lambda xs: loop.trajectory_cost(xs[:26], jnp.zeros((25, 0)), params))(paths)
    balanced = jnp.all(jnp.abs(paths[:, -1] - GOAL) < 0.05, axis=1)
    return float(jnp.mean(costs)), float(jnp.mean(balanced)), np.asarray(paths)


steps = 1000
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, steps)))
result = oc.train_policy(
    problem, neural, network.init(0), draw(0, 512), optimizer=optimizer, steps=steps, batch_size=64, check_every=100
)
print(result)
unseen = draw(1, 200)
cost, balanced, paths = try_out(neural, result.params, unseen)
cost_linear, balanced_linear, paths_linear = try_out(linear, K, unseen)
print(f"200 unseen states: network mean cost {cost:.5f}, balances {balanced:.1%}")
print(f"                   LQR     mean cost {cost_linear:.5f}, balances {balanced_linear:.1%}")
assert balanced >= 0.98
assert cost < 1.02 * cost_linear

# Figure.
figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
oc.plot.phase_portrait(
    neural, result.params, dynamics, states=(1, 3), around=GOAL, span=(0.8, 3.0), trajectories=paths[:20], ax=axes[0]
)
axes[0].set_title("trained network; black: 20 unseen starts", fontsize="medium")
time = 0.02 * np.arange(151)
for i in range(8):
    axes[1].plot(time, paths[i, :151, 1], "C0", label="network" if i == 0 else None)
    axes[1].plot(time, paths_linear[i, :151, 1], "C1--", label="LQR" if i == 0 else None)
axes[1].axhline(np.pi, color="0.7", linewidth=0.8)
axes[1].set(xlabel="time [s]", ylabel="pole angle [rad]", title="8 unseen starts")
axes[1].legend()
Path("out").mkdir(exist_ok=True)
figure.savefig("out/04_neural_policy.png", dpi=120)
