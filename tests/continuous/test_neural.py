"""Neural ODEs: gradients through integrate, layers, training that is reproducible."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optctl as oc

NET = oc.mlp([2, 8, 2])


def test_integrate_is_differentiated_as_computed():
    params = NET.init(0)
    ode = oc.ODE(lambda z, t, p: NET.apply(p, z) + 0.1 * t)

    def loss(zs):
        return jnp.sum(jnp.cos(zs))

    z0, ts = jnp.array([0.3, -0.4]), jnp.array([0.0, 0.5, 1.5])
    want = oc.ode_gradient(ode, loss, z0, ts, params)
    got = jax.jit(jax.grad(lambda z, p, t: loss(oc.integrate(ode, z, t, p).zs), (0, 1, 2)))(z0, params, ts)
    np.testing.assert_allclose(got[0], want.z0, rtol=1e-12)
    np.testing.assert_allclose(got[2], want.ts, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), got[1], want.params)


def test_states_between_the_steps_are_differentiated_too():
    ode = oc.ODE(lambda z, t, p: [z[1], -p * z[0]])
    at = jnp.array([0.3, 1.7])

    def value(p):
        return jnp.sum(oc.integrate(ode, [1.0, 0.0], [0.0, 2.0], p, rtol=1e-10, atol=1e-10)(at)[:, 0])

    want = -jnp.sum(jnp.sin(jnp.sqrt(2.0) * at) * at) / (2 * jnp.sqrt(2.0))
    np.testing.assert_allclose(jax.grad(value)(2.0), want, rtol=1e-8)


@pytest.mark.big
def test_model_in_layers_and_under_vmap():
    model = oc.neural_ode(NET, 1.0, rtol=1e-8, atol=1e-8)
    params, z = NET.init(1), jnp.sin(jnp.arange(6.0)).reshape(3, 2)
    np.testing.assert_allclose(model(z, params), jax.vmap(model, (0, None))(z, params), atol=1e-7)
    np.testing.assert_allclose(model.trajectory(z, [0.0, 0.3, 1.0], params)[-1], model(z, params), atol=1e-7)
    layers = oc.Layers([lambda x, W: x @ W, lambda x, p: model(x, p)])
    weights = [jnp.eye(2), params]
    problem = oc.Problem(layers, terminal_cost=lambda x: jnp.sum(x**2), params=weights)
    g = oc.gradient(problem, None, x0=z)
    want = jax.grad(lambda w: jnp.sum(model(z @ w[0], w[1]) ** 2))(weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), g.params, want)


def test_training_is_reproducible_and_keeps_the_best():
    rate = 0.8
    data = jnp.linspace(0.5, 2.0, 16)[:, None]
    targets = data * jnp.exp(-rate)
    model = oc.neural_ode(lambda z, t, k: -k * z)

    def loss(k, batch):
        z, target = batch
        return jnp.mean((model(z, k) - target) ** 2)

    runs = [
        oc.train(loss, 0.1, (data, targets), optimizer=optax.adam(0.05), steps=200, batch_size=4, seed=3)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(runs[0].history, runs[1].history)
    np.testing.assert_allclose(runs[0].params, rate, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oc.neural_ode(NET, t1=-1.0), "`t1` is -1"),
        (lambda: oc.neural_ode(lambda z, u, t, p: z), "`f` takes an input"),
        (lambda: oc.train(3, jnp.zeros(1), jnp.zeros(3)), "`loss` is a int"),
        (lambda: oc.train(lambda p, b: b, jnp.zeros(1), jnp.zeros(3)), r"`loss` returns shape \(3,\)"),
        (
            lambda: oc.train(lambda p, b: jnp.sum(p), jnp.zeros(1), (jnp.zeros(3), jnp.zeros(2))),
            "same number of samples",
        ),
        (lambda: oc.train(lambda p, b: jnp.sum(p), jnp.zeros(1), jnp.zeros(3), batch_size=4), "`batch_size` is 4"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
