r"""A neural ODE learns a spiral from noise-free looks at it; a network steers with the least energy.

1. Data: one path of z' = A z^3 (elementwise cube), A = [[-0.1, 2], [-2, -0.1]], from (2, 0) over 25 s, 1000 points.
   Model: z' = network(z^3), 2-50-2. It is trained on short pieces of the path, then on longer ones, by minibatches; its
   gradient is the costate recursion over the accepted steps. Test: the whole path from its first point.
2. x' = A x + B u, A = [[0, 1], [1, 0]], B = (1, 0), from (0.5, 0.5) to (1, -1) in 1 s with the least int u^2, which is
   70.44324148040131. The input is a network of time; the end is a penalty, raised once.

References: Chen, Rubanova, Bettencourt and Duvenaud (2018), Neural ordinary differential equations; Asikis, Boettcher
and Antulov-Fantulin (2022), Neural ordinary differential equation control of dynamics on graphs.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.optimize import minimize

import optctl as oc

A = jnp.array([[-0.1, 2.0], [-2.0, -0.1]])
ts = np.linspace(0, 25, 1000)
path = oc.integrate(lambda z: (z**3) @ A, [2.0, 0.0], ts, rtol=1e-9, atol=1e-9).zs
points = np.asarray(path)

network = oc.mlp([2, 50, 2])
model = oc.neural_ode(lambda z, t, params: network.apply(params, z**3), rtol=1e-5, atol=1e-6)


def fit(params, length, steps, rate):
    """Train on pieces of the path; every third point is looked at."""
    looks = ts[:length:3]
    pieces = jnp.asarray(np.stack([points[i : i + length : 3] for i in range(len(ts) - length)]))

    def loss(params, batch):
        return jnp.mean((model.trajectory(batch[:, 0], looks, params) - jnp.swapaxes(batch, 0, 1)) ** 2)

    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return oc.train(
        loss, params, pieces, optimizer=optimizer, steps=steps, batch_size=32, check_every=100, validation=pieces[::20]
    )


result = fit(network.init(0), 10, 1500, 2e-2)
for length, steps, rate in ((100, 500, 2e-3), (400, 150, 1e-3)):
    result = fit(result.params, length, steps, rate)
learned = oc.integrate(model.ode, [2.0, 0.0], ts, result.params, rtol=1e-6, atol=1e-6).zs
error = float(jnp.mean((learned - path) ** 2))
print(f"spiral: mean squared error over the whole path {error:.2e}")
assert error < 1e-2

# The controller.
controller = oc.mlp([1, 16, 16, 1])
plant = oc.ODE(lambda x, t, p: jnp.stack([x[1] + controller.apply(p, t[None])[0], x[0]]))
goal, least = jnp.array([1.0, -1.0]), 70.44324148040131


def energy(x, t, params):
    return controller.apply(params, t[None])[0] ** 2


steps = {"method": "rk4", "dt": 0.02}
first, unravel = jax.flatten_util.ravel_pytree(controller.init(0))
for weight in (1e2, 1e4):

    @jax.jit
    def value_and_slope(p, weight=weight):
        def miss(xs):
            return weight * jnp.sum((xs[-1] - goal) ** 2)

        g = oc.ode_gradient(plant, miss, [0.5, 0.5], [0.0, 1.0], unravel(p), running_cost=energy, **steps)
        return g.value, jax.flatten_util.ravel_pytree(g.params)[0]

    found = minimize(lambda p: tuple(map(np.asarray, value_and_slope(p))), first, jac=True, method="L-BFGS-B")
    first = found.x
params = unravel(jnp.asarray(found.x))
times = np.linspace(0, 1, 101)
xs = oc.integrate(plant, [0.5, 0.5], times, params).zs
u = jax.vmap(lambda t: controller.apply(params, t[None])[0])(jnp.asarray(times))
spent = float(np.trapezoid(u**2, times))
print(f"controller: energy {spent:.3f} (least {least:.3f}), end {np.asarray(xs[-1]).round(4)}")
assert abs(spent / least - 1) < 5e-3
assert np.abs(xs[-1] - goal).max() < 1e-2

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
left.plot(*path.T, lw=1, label="data")
left.plot(*learned.T, "--", lw=1, label="learned")
left.set(xlabel="z1", ylabel="z2", title="a spiral, learned from short pieces")
right.plot(times, u, label="input u")
right.plot(times, xs, label=["x1", "x2"])
right.set(xlabel="time [s]", ylabel="input and states", title="least energy by a network of time")
for axes in (left, right):
    axes.legend()
Path("out").mkdir(exist_ok=True)
figure.savefig("out/09_neural_ode.png", dpi=120)
