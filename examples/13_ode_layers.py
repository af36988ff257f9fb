r"""Handwritten digits through a network whose depth is time.

An image of 8 x 8 pixels becomes 24 numbers, which flow for one second along a learned vector field and are read off:

    x_1 = E x_0,    z' = W_2 tanh(W_1 z + b_1) + b_2,  z(0) = x_1,  x_2 = z(1),    scores = D x_2.

Three stages of one `Layers` problem. The costate recursion goes through all of them: across the ODE layer it steps back
through the accepted steps of an adaptive scheme. Depth costs no memory that a tolerance would not ask for.

Reference: Chen, Rubanova, Bettencourt and Duvenaud (2018), Neural ordinary differential equations.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optctl as oc

digits = load_digits()
x, x_test, y, y_test = train_test_split(digits.data / 16.0, digits.target, test_size=0.25, random_state=0)
x, x_val, y, y_val = train_test_split(x, y, test_size=0.15, random_state=0)

field = oc.mlp([24, 48, 24])
flow = oc.neural_ode(lambda z, t, p: field.apply(p, z), rtol=1e-3, atol=1e-4, max_steps=64)
network = oc.Layers([lambda x, E: x @ E, lambda z, p: flow(z, p), lambda z, D: z @ D["W"] + D["b"]])
first, last = jax.random.split(jax.random.key(0))
params = [
    jax.random.normal(first, (64, 24)) / 8,
    field.init(0),
    {"W": jax.random.normal(last, (24, 10)) / 5, "b": jnp.zeros(10)},
]


# The gradient of one minibatch, by costates and by a difference quotient along a random direction.
def gradient(params):
    problem = oc.Problem(network, terminal_cost=oc.costs.CrossEntropy(y[:32]), params=params)
    return oc.gradient(problem, None, x0=x[:32])


rng = np.random.default_rng(0)
direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
g = gradient(params)
slope = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(g.params), jax.tree.leaves(direction), strict=True))
ahead, behind = (gradient(jax.tree.map(lambda p, d, e=e: p + e * d, params, direction)).cost for e in (1e-4, -1e-4))
quotient = (ahead - behind) / 2e-4
print(f"slope {slope:.8f} by the costates, {quotient:.8f} by differences")
assert abs(slope / quotient - 1) < 1e-2  # the quotient sees the steps change; the costates hold them

epochs = 25
trained = oc.train_layers(
    network, oc.costs.CrossEntropy, params, x, y, validation=(x_val, y_val), epochs=epochs,
    optimizer=optax.adam(optax.cosine_decay_schedule(5e-3, epochs * (len(x) // 32))),
)  # fmt: skip
E, p, D = trained.params
times = jnp.linspace(0, 1, 5)
features = flow.trajectory(x_test @ E, times, p)
accuracy = np.mean(np.argmax(features[-1] @ D["W"] + D["b"], axis=1) == y_test)
mesh = oc.integrate(flow.ode, x_test @ E, [0.0, 1.0], p, rtol=1e-3, atol=1e-4)
print(f"test accuracy {accuracy:.1%} after {epochs} epochs; {int(mesh.steps)} steps of the ODE layer")
assert accuracy > 0.95

# Figure: training, and the two directions in which the final features vary most, as the flow runs.
figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
axes[0].semilogy(trained.history, alpha=0.5, label="minibatch")
axes[0].semilogy(*np.asarray(trained.validation).T, label="validation")
axes[0].set(xlabel="step [1]", ylabel="cross-entropy [nat]", title="training")
axes[0].legend()
center = features[-1].mean(0)
_, _, directions = np.linalg.svd(np.asarray(features[-1] - center), full_matrices=False)
for ax, k in zip(axes[1:], (0, 2, 4), strict=True):
    plane = np.asarray(features[k] - center) @ directions[:2].T
    dots = ax.scatter(*plane.T, c=y_test, cmap="tab10", s=8)
    ax.set(xlabel="first direction [1]", ylabel="second direction [1]", title=f"features at t = {float(times[k]):g} s")
figure.colorbar(dots, ax=axes[1:], label="digit", ticks=range(10))
Path("out").mkdir(exist_ok=True)
figure.savefig("out/13_ode_layers.png", dpi=120)
