"""Neural policies and networks: gradients, training, reproducibility, the promised performance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optctl as oc
from optctl.demos import policy as balance
from tests.oracles import scanned_cost

PLANT = oc.Problem(
    oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]]), lambda x, u: x @ x + 0.1 * u @ u, lambda x: 10 * x @ x,
    horizon=12, x0=[1.0, 0.0],
)  # fmt: skip


def test_mlp_is_what_it_says():
    network = oc.mlp([2, 3, 1], "relu")
    params = network.init(0)
    assert [layer["W"].shape for layer in params] == [(3, 2), (1, 3)]
    x = jnp.array([0.3, -0.7])
    hidden = np.maximum(np.asarray(params[0]["W"] @ x + params[0]["b"]), 0)
    np.testing.assert_allclose(network(x, 0, params), params[1]["W"] @ hidden + params[1]["b"], rtol=1e-14)
    again = network.init(jax.random.key(0))
    np.testing.assert_array_equal(params[0]["W"], again[0]["W"])
    assert not np.array_equal(params[0]["W"], network.init(1)[0]["W"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([4],), "`widths` is"),
        (([4, 0, 1],), "`widths` is"),
        (([4, 1], "swish"), "`activation` is 'swish'; expected one of"),
    ],
)
def test_mlp_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        oc.mlp(*arguments)


def test_closed_loop_gradient_equals_jax_grad():
    network = oc.mlp([2, 8, 1])
    params = network.init(0)
    loop = oc.closed_loop(PLANT, network)
    g = oc.gradient(loop, None, params=params)
    x0, us = jnp.asarray(PLANT.x0), jnp.zeros((12, 0))
    want = jax.grad(lambda p: scanned_cost(loop, us, x0, p))(params)
    for got, exact in zip(jax.tree.leaves(g.params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-11, atol=1e-13)
    assert oc.check_gradient(loop, None, params=params)


def test_a_linear_policy_finds_the_riccati_gain():
    """Over many initial states and a long horizon the best static gain is that of the infinite horizon."""
    A, B = [[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]]
    Q, R = np.eye(2), np.array([[0.1]])
    K, P = oc.dlqr(A, B, Q, R)
    problem = oc.Problem(
        oc.LinearDynamics(A, B), oc.costs.Quadratic(Q, R), oc.costs.TerminalQuadratic(P), horizon=30, x0=np.zeros(2)
    )
    x0s = np.random.default_rng(0).normal(size=(16, 2))
    result = oc.train_policy(
        problem,
        lambda x, t, K: K @ x,
        jnp.zeros((1, 2)),
        x0s,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.3, 2000)),
        steps=2000,
        check_every=500,
    )
    np.testing.assert_allclose(result.params, K, rtol=1e-4)


def test_training_keeps_the_best_and_is_reproducible():
    network = oc.mlp([2, 8, 1])
    kwargs = {"optimizer": optax.adam(1e-2), "steps": 60, "batch_size": 4, "check_every": 20}
    x0s = np.random.default_rng(0).normal(size=(16, 2))
    a = oc.train_policy(PLANT, network, network.init(0), x0s, seed=3, **kwargs)
    b = oc.train_policy(PLANT, network, network.init(0), x0s, seed=3, **kwargs)
    np.testing.assert_array_equal(a.history, b.history)
    np.testing.assert_array_equal(a.params[0]["W"], b.params[0]["W"])
    c = oc.train_policy(PLANT, network, network.init(0), x0s, seed=4, **kwargs)
    assert not np.array_equal(a.history, c.history)
    assert a.history.shape == (60,)
    np.testing.assert_array_equal(a.validation[:, 0], [0, 20, 40, 60])
    np.testing.assert_allclose(a.cost, a.validation[:, 1].min())
    loop = oc.closed_loop(PLANT, network)
    mean = np.mean([oc.gradient(loop, None, x0=x0, params=a.params).cost for x0 in x0s])
    np.testing.assert_allclose(a.cost, mean, rtol=1e-12)


def test_training_that_diverges_loses_nothing():
    result = oc.train_policy(
        PLANT,
        lambda x, t, K: K @ x,
        jnp.zeros((1, 2)),
        np.ones((4, 2)),
        optimizer=optax.sgd(1e6),
        steps=60,
        check_every=20,
    )
    assert "inf or NaN" in result.message
    assert np.isfinite(result.cost)
    assert np.isfinite(result.params).all()
    assert "met inf or NaN by step 20" in repr(result)


def test_sampled_states_and_progress_bar(capsys):
    sample = lambda key: jax.random.normal(key, (2,))
    kwargs = {"steps": 40, "check_every": 20, "optimizer": optax.adam(1e-2), "batch_size": 8}
    a = oc.train_policy(PLANT, lambda x, t, K: K @ x, jnp.zeros((1, 2)), sample, **kwargs)
    assert capsys.readouterr() == ("", "")
    b = oc.train_policy(PLANT, lambda x, t, K: K @ x, jnp.zeros((1, 2)), sample, progress=True, **kwargs)
    assert "40/40" in capsys.readouterr().err
    np.testing.assert_array_equal(a.history, b.history)
    assert a.cost < a.validation[0, 1]


@pytest.mark.parametrize(
    ("problem", "policy", "x0s", "message"),
    [
        (PLANT, lambda x: x, np.ones((4, 2)), r"`policy` returns shape \(2,\); expected \(1,\)"),
        (
            PLANT,
            lambda x: x[:1],
            np.ones((4, 3)),
            r"`x0s` has shape \(4, 3\); expected any number of rows and 2 columns",
        ),
        (PLANT, lambda x: x[:1], np.ones((4, 2), bool), "`x0s` has dtype bool"),
        (
            PLANT.replace(u_min=-1.0),
            lambda x: x[:1],
            np.ones((4, 2)),
            r"training by gradients cannot keep the constraints \['u_min'\]",
        ),
    ],
)
def test_train_policy_bad_input(problem, policy, x0s, message):
    with pytest.raises(ValueError, match=message):
        oc.train_policy(problem, policy, None, x0s, steps=1)


def test_neural_controller_comes_within_two_percent_of_the_optimum():
    problem = oc.problems.cartpole_push()
    network = oc.mlp([4, 32, 32, 1])
    result = oc.train_policy(
        problem, network, network.init(0), np.zeros((1, 4)), optimizer=optax.adam(1e-2), steps=600, check_every=100
    )
    assert result.cost < 1.02 * oc.problems.OPTIMAL_COST["cartpole_push"]
    assert result.cost > oc.problems.OPTIMAL_COST["cartpole_push"]


@pytest.mark.big
def test_balancing_controller_stabilizes_unseen_states():
    problem = oc.problems.cartpole_balance()
    result = balance.train_balance(problem, steps=400)
    unseen = balance.draw_states(np.random.default_rng(12), 200)
    assert np.mean(balance.stabilized(problem, result.params, unseen)) >= 0.95
    untrained = balance.NETWORK.init(0)
    assert np.mean(balance.stabilized(problem, untrained, unseen)) < 0.05


def test_digits():
    """A network on real images by minibatch SGD through costates."""
    sklearn = pytest.importorskip("sklearn.datasets")
    images, labels = sklearn.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order] / 16.0, labels[order]
    network = oc.Layers([lambda x, p: jnp.tanh(x @ p["W"] + p["b"][None]), lambda x, p: x @ p["W"] + p["b"][None]])
    rng = np.random.default_rng(1)
    params = [
        {"W": rng.normal(size=(m, n)) / np.sqrt(m), "b": np.zeros(n)} for m, n in ((64, 64), (64, 10))
    ]  # fmt: skip
    train, test = slice(0, 1400), slice(1400, None)
    result = oc.train_layers(
        network, oc.costs.CrossEntropy, params, images[train], labels[train], epochs=20,
        stage_cost=oc.costs.HiddenPenalty(np.array([0.0, 1e-4])),
    )  # fmt: skip
    logits = network.rollout(images[test], None, result.params)[-1]
    assert np.mean(np.argmax(logits, axis=1) == labels[test]) >= 0.95


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"targets": np.zeros(3, int)}, "`targets` has 3 rows; expected 4"),
        ({"batch_size": 5}, "`batch_size` is 5; expected 1 to 4"),
        ({"params": []}, "`params` is list of length 0"),
    ],
)
def test_train_layers_bad_input(kwargs, message):
    given = {
        "params": [np.zeros((2, 2))],
        "inputs": np.ones((4, 2)),
        "targets": np.zeros(4, int),
        "batch_size": 2,
    } | kwargs
    with pytest.raises(ValueError, match=message):
        oc.train_layers(oc.Layers([lambda x, W: x @ W]), oc.costs.CrossEntropy, **given)
