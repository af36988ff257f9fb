"""Whoever makes inf or NaN is named: function, stage, value or derivative, and the likely cause."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optctl as oc
from optctl.judge.culprit import culprit


def problem(**changes):
    given = {"stage_cost": lambda x, u: u @ u, "horizon": 5, "x0": [1.0, 1.0], "u_min": -1.0, "u_max": 1.0}
    dynamics = oc.Dynamics(lambda x, u: x + 0.1 * u, nx=2, nu=2)
    return oc.Problem(changes.pop("dynamics", dynamics), **given | changes)


GOAL = jnp.ones(2)
CASES = {
    "norm": ({"stage_cost": lambda x, u: jnp.linalg.norm(x - GOAL) ** 2 + u @ u}, "derivative of `stage_cost` at stage 0", "square root at zero"),
    "terminal": ({"terminal_cost": lambda x: jnp.linalg.norm(x - GOAL)}, "derivative of `terminal_cost` at stage 5", "square root at zero"),
    "second": ({"stage_cost": lambda x, u: jnp.sum(jnp.abs(x - GOAL) ** 1.5) + u @ u}, "derivative of `stage_cost` at stage 0", "power of zero"),
    "dynamics": (
        {"dynamics": oc.Dynamics(lambda x, u, t: x + 0.1 * u / (1 + jnp.linalg.norm(x - 1.0)), nx=2, nu=2)},
        "derivative of `f` at stage 0", "square root at zero",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_derivative_that_is_not_finite(name):
    changes, where, cause = CASES[name]
    given = problem(**changes)
    said = culprit(given, np.ones((6, 2)), np.zeros((5, 2)), None)
    assert where in said
    assert cause in said
    assert culprit(given, np.full((6, 2), 0.3), np.zeros((5, 2)), None) == ""
    if name in ("norm", "terminal"):
        solution = oc.solve(given)
        assert solution.status == oc.Status.NON_FINITE
        assert said in solution.message
        assert "dynamics leave" not in solution.message


@pytest.mark.parametrize("method", ["lbfgs", "ilqr"])
def test_every_method_tells(method):
    given = problem(**CASES["norm"][0], u_min=None, u_max=None)
    message = oc.solve(given, method=method).message
    assert "derivative of `stage_cost` at stage 0" in message


VALUES = {
    "log": (lambda x, u, t: jnp.log(2.5 - t) + u @ u, "value of `stage_cost` at stage 3", "logarithm"),
    "root": (
        lambda x, u, t: jnp.sqrt(1.5 - t) + u @ u,
        "value of `stage_cost` at stage 2",
        "square root of a negative",
    ),
    "division": (lambda x, u, t: 1 / (x[0] - 1) + u @ u, "value of `stage_cost` at stage 0", "division by zero"),
    "overflow": (lambda x, u, t: jnp.exp(800.0 * t) + u @ u, "value of `stage_cost` at stage 1", "overflows"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_is_not_finite(name):
    cost, where, cause = VALUES[name]
    message = oc.solve(problem(stage_cost=cost, u_min=None, u_max=None), method="lbfgs").message
    assert where in message
    assert cause in message


def test_check_gradient_tells():
    report = oc.check_gradient(problem(**CASES["norm"][0]), np.zeros((5, 2)))
    assert not report.converged
    assert "the derivative of `stage_cost` at stage 0 is inf or NaN: a norm" in repr(report)


def test_training_tells():
    cart = oc.Problem(
        oc.discretize(oc.models.DoubleIntegrator(), 0.1), lambda x, u: jnp.linalg.norm(x) + 0.1 * u @ u, horizon=20,
        x0=[1.0, 0.0],
    )  # fmt: skip
    x0s = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    result = oc.train_policy(
        cart, lambda x, t, K: K @ x, jnp.array([[-1.0, -1.0]]), x0s, optimizer=optax.sgd(1e-9), steps=5
    )
    assert "the gradient of the cost is inf or NaN though the cost is finite, at sample 1" in result.message
    assert "derivative of `stage_cost` at stage 0" in result.message
