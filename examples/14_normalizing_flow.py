r"""A continuous normalising flow: a density learned from samples, by an ODE that carries its own volume.

Samples x in the plane flow to z(1) = a standard normal variable; where the flow squeezes, the density rises:

    z' = f(z, t, p),  z(0) = x,        (log|dz/dx|)' = div f(z, t, p),
    log q(x) = log N(z(1); 0, I) + int_0^1 div f dt.

The state is (z, log-volume). Training maximises the mean of log q; its gradient is the costate recursion over the
accepted steps, through the divergence as well. Backward in time the same ODE draws new samples.

Check: q integrates to one over the plane. Data: two half moons, and an oracle, the Gaussian of the same moments.

References: Chen, Rubanova, Bettencourt and Duvenaud (2018), Neural ordinary differential equations, section 4;
Grathwohl, Chen, Bettencourt, Sutskever and Duvenaud (2019), FFJORD.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.stats import multivariate_normal
from sklearn.datasets import make_moons

import optctl as oc

data = jnp.asarray(make_moons(2000, noise=0.08, random_state=0)[0])
unseen = jnp.asarray(make_moons(1000, noise=0.08, random_state=1)[0])
field = oc.mlp([3, 32, 32, 2])


def velocity(z, t, p):
    return field.apply(p, jnp.concatenate([z, t[None]]))


def widened(state, t, p):
    """The rate of (z, log-volume) for each row."""

    def one(row):
        slope, push = jax.linearize(lambda z: velocity(z, t, p), row[:2])
        return jnp.append(slope, jnp.trace(jax.vmap(push)(jnp.eye(2))))

    return jax.vmap(one)(state)


flow = oc.neural_ode(widened, rtol=1e-3, atol=1e-4, max_steps=128)


def log_density(p, x):
    end = flow(jnp.concatenate([x, jnp.zeros_like(x[:, :1])], axis=1), p)
    return jax.scipy.stats.norm.logpdf(end[:, :2]).sum(1) + end[:, 2]


steps = 600
trained = oc.train(
    lambda p, x: -jnp.mean(log_density(p, x)), field.init(0), data, steps=steps, batch_size=128,
    optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, steps)), check_every=100,
)  # fmt: skip
likelihood = float(jnp.mean(log_density(trained.params, unseen)))
gaussian = multivariate_normal(data.mean(0), np.cov(data.T)).logpdf(unseen).mean()
print(f"mean log density of unseen samples: flow {likelihood:.3f}, Gaussian {gaussian:.3f}")
assert likelihood > gaussian + 0.5

s1, s2 = jnp.linspace(-2, 3, 126), jnp.linspace(-1.5, 2, 89)
grid = jnp.stack(jnp.meshgrid(s1, s2), axis=-1)
density = jnp.exp(log_density(trained.params, grid.reshape(-1, 2))).reshape(grid.shape[:2])
mass = float(density.sum() * (s1[1] - s1[0]) * (s2[1] - s2[0]))
print(f"the density integrates to {mass:.4f}")
assert abs(mass - 1) < 0.02

# New samples: normal variables, carried backward along z' = -f(z, 1 - t).
normal = jax.random.normal(jax.random.key(0), (1000, 2))
backward = oc.ODE(lambda z, t, p: -jax.vmap(lambda row: velocity(row, 1 - t, p))(z))
drawn = oc.integrate(backward, normal, np.linspace(0, 1, 5), trained.params, rtol=1e-4, atol=1e-5).zs

figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
axes[0].plot(-trained.history, linewidth=0.6)
axes[0].set(xlabel="step [1]", ylabel="mean log density [nat]", title="training", ylim=(-4, 0))
image = axes[1].pcolormesh(s1, s2, density, shading="gouraud", cmap="magma")
figure.colorbar(image, ax=axes[1], label="density [1/length²]")
axes[1].set(title="learned density")
axes[2].scatter(*np.asarray(drawn[2]).T, s=3)
axes[2].set(title="samples, halfway")
axes[3].scatter(*np.asarray(drawn[-1]).T, s=3, label="drawn")
axes[3].scatter(*np.asarray(unseen[:300]).T, s=3, label="data")
axes[3].set(title="samples, at the end")
axes[3].legend(loc="upper right")
for ax in axes[1:]:
    ax.set(xlabel="first coordinate [length]", ylabel="second coordinate [length]")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/14_normalizing_flow.png", dpi=120)
