r"""A deep network as a control problem: handwritten digits.

The stages are layers, the state is the activations, the weights p are the parameters:

    minimize over p   sum_{i=1}^{3} w/2 mean |x_i|^2 + mean cross-entropy(softmax x_5, label)
    subject to        x_{i+1} = tanh(W_i x_i + b_i), i = 0..3,    x_5 = W_4 x_4 + b_4,

x_0 the 8 x 8 pixels of an image. The widths are 64-64-64-64-32-10; layers 1 and 2 share their weights, W_1 = W_2.
The costate recursion is backpropagation (LeCun 1988):

    costates_5 = dloss/dx_5,    costates_i = w x_i + (dx_{i+1}/dx_i)' costates_{i+1};

the gradient in weights that two layers share is the sum over both.
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

PENALTY = np.array([0.0, 1e-3, 1e-3, 1e-3, 0.0])  # one per layer's input
SHARE = (0, 1, 1, 2, 3)  # weights of layer i are params[SHARE[i]]


def hidden(x, p):
    return jnp.tanh(x @ p["W"].T + p["b"])


def output(x, p):
    return x @ p["W"].T + p["b"]


def draw(key, n_in, n_out):
    return {"W": jax.random.normal(key, (n_out, n_in)) / n_in**0.5, "b": jnp.zeros(n_out)}


digits = load_digits()
x, x_test, y, y_test = train_test_split(digits.data / 16.0, digits.target, test_size=0.25, random_state=0)
x, x_val, y, y_val = train_test_split(x, y, test_size=0.15, random_state=0)
network = oc.Layers([hidden, hidden, hidden, hidden, output], share=SHARE)
keys = jax.random.split(jax.random.key(0), 4)
params = [draw(keys[0], 64, 64), draw(keys[1], 64, 64), draw(keys[2], 64, 32), draw(keys[3], 32, 10)]
penalty = oc.costs.HiddenPenalty(PENALTY)


def gradient(params):
    """Return the engine's gradient on the first minibatch, costates included."""
    problem = oc.Problem(network, penalty, oc.costs.CrossEntropy(y[:32]), params=params)
    return oc.gradient(problem, None, x0=x[:32])


def plain_cost(params):
    """Return the same cost as a plain JAX function."""
    xs = [x[:32]]
    for i in range(4):
        p = params[SHARE[i]]
        xs.append(jnp.tanh(xs[-1] @ p["W"].T + p["b"]))
    logits = xs[-1] @ params[3]["W"].T + params[3]["b"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y[:32]).mean()
    return loss + sum(0.5 * PENALTY[i] * jnp.mean(jnp.sum(xs[i] ** 2, axis=1)) for i in range(1, 4))


# Backpropagation and costate recursion are the same thing.
before = gradient(params)
differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), before.params, jax.jit(jax.grad(plain_cost))(params))
gap = max(map(float, jax.tree.leaves(differences)))
print(f"largest gap between costate gradient and jax.grad: {gap:.1e}")
assert gap < 1e-12

epochs = 60
optimizer = optax.sgd(optax.cosine_decay_schedule(0.05, epochs * (len(x) // 32)), momentum=0.9)
result = oc.train_layers(
    network, oc.costs.CrossEntropy, params, x, y, stage_cost=penalty, optimizer=optimizer, epochs=epochs,
    validation=(x_val, y_val),
)  # fmt: skip
print(result)
guess = np.argmax(network.rollout(x_test, None, result.params)[-1], axis=1)
accuracy = np.mean(guess == y_test)
print(f"accuracy on {len(y_test)} unseen images: {accuracy:.1%}")
assert accuracy >= 0.95

# Figure.
figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for g, label in ((before, "before training"), (gradient(result.params), "after training")):
    axes[0].semilogy([jnp.linalg.norm(costate) for costate in g.costates], "o-", label=label)
axes[0].set(xlabel="layer i", ylabel="costate norm |dJ/dx_i| [cost per unit of activation]")
axes[0].legend()
axes[1].semilogy(result.history, "0.7", linewidth=0.8, label="minibatch")
axes[1].semilogy(*result.validation.T, "C0", label="validation")
axes[1].set(xlabel="step of stochastic gradient descent", ylabel="cost [nats]")
axes[1].legend()
Path("out").mkdir(exist_ok=True)
figure.savefig("out/05_deep_network.png", dpi=120)
