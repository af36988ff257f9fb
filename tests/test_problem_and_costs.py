"""The problem record, its errors, and the cost helpers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from tests import zoo

INTEGRATOR = oc.LinearDynamics(np.eye(2), np.ones((2, 1)))


def problem(**changes):
    return oc.Problem(**({"dynamics": INTEGRATOR, "horizon": 3, "x0": [1.0, 2.0]} | changes))


def test_functions_are_structure_and_arrays_are_leaves():
    a = problem(stage_cost=oc.costs.Quadratic(np.eye(2), np.eye(1)), u_min=-1.0)
    leaves, structure = jax.tree.flatten(a)
    assert all(hasattr(leaf, "dtype") for leaf in leaves)
    assert structure == jax.tree.structure(a.replace(x0=[3.0, 4.0], u_min=-2.0))
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert rebuilt.horizon == 3
    assert rebuilt.constraint_names == ["u_min"]
    with pytest.raises(AttributeError):
        a.horizon = 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamics": lambda x, u: x}, "`dynamics` is a function; expected Dynamics"),
        ({"horizon": 0}, "`horizon` is 0; expected a positive whole number"),
        ({"horizon": 2.5}, "`horizon` is 2.5"),
        ({"horizon": None}, "`horizon` is None"),
        ({"x0": [1.0]}, r"`x0` has shape \(1,\); expected \(2,\)"),
        ({"x0": np.array([True, False])}, "`x0` has dtype bool"),
        ({"x0": [1.0, np.nan]}, r"`x0` holds NaN or inf, first at index \(1,\)"),
        ({"params": {"k": np.array([1.0, np.nan])}}, r"`params\['k'\]` holds NaN"),
        ({"params": {"k": np.array(True)}}, r"`params\['k'\]` has dtype bool"),
        ({"stage_cost": lambda x, u: x}, r"`stage_cost` returns shape \(2,\); expected a scalar"),
        ({"stage_cost": lambda x: x @ x}, r"`stage_cost` takes 1 arguments; expected stage_cost\(x, u\)"),
        ({"terminal_cost": lambda x: x[None] @ x}, r"`terminal_cost` returns shape \(1,\); expected a scalar"),
        ({"terminal_cost": 3.0}, "`terminal_cost` is a float; expected a function"),
        ({"stage_cost": lambda x, u: 1}, "`stage_cost` returns int64; expected floating point"),
        ({"u_min": np.inf}, r"`u_min` holds \+inf: no point is feasible"),
        ({"path_inequality": lambda x, u: x @ x}, r"`path_inequality` returns shape \(\); expected a vector"),
        ({"terminal_equality": lambda x: x[0]}, r"`terminal_equality` returns shape \(\); expected a vector"),
        ({"u_min": [0.0, 1.0]}, r"`u_min` has shape \(2,\); expected \(1,\)"),
        ({"u_min": np.zeros((2, 1))}, r"`u_min` has shape \(2, 1\); expected \(3, 1\)"),
        ({"u_min": np.nan}, "`u_min` holds NaN"),
        ({"u_min": 1.0, "u_max": [0.5]}, "`u_min` exceeds `u_max`.*by 0.5"),
        ({"x_max": np.zeros((3, 2))}, r"`x_max` has shape \(3, 2\); expected \(4, 2\)"),
        ({"x0_min": 0.0}, "`x0` is given, so x0_min and x0_max would have no effect"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        problem(**changes)


def test_replace_checks_and_names_unknown_fields():
    with pytest.raises(ValueError, match=r"Problem has no field \['x_0'\]"):
        problem().replace(x_0=[0.0, 0.0])
    with pytest.raises(ValueError, match="`x0` has shape"):
        problem().replace(x0=[0.0])


EYE, ONE = np.eye(2), np.eye(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage_cost": oc.costs.Tracking(EYE, ONE, np.ones((2, 2)))}, "`x_ref` has 2 rows; expected 3 or 4"),
        ({"stage_cost": oc.costs.Tracking(EYE, ONE, np.ones(2), np.ones((4, 1)))}, "`u_ref` has 4 rows; expected 3"),
        (
            {"stage_cost": oc.costs.Quadratic(np.stack([EYE] * 5), ONE)},
            "`Q` has 5 rows; expected 3, as the horizon is 3",
        ),
        (
            {"stage_cost": oc.costs.Quadratic(np.eye(3), ONE)},
            r"`stage_cost` fails on arguments of shapes \(2,\), \(1,\)",
        ),
        (
            {"terminal_cost": oc.costs.TerminalQuadratic(np.eye(3))},
            r"`terminal_cost` fails on arguments of shapes \(2,\)",
        ),
    ],
)
def test_helpers_of_the_wrong_size_are_refused(changes, message):
    """JAX would repeat the last row of a short reference in silence."""
    with pytest.raises(ValueError, match=message):
        problem(**changes)
    assert problem(stage_cost=oc.costs.Tracking(EYE, ONE, np.ones((4, 2)))).horizon == 3


def test_numpy_beside_jax_in_a_model_is_named():
    with pytest.raises(ValueError, match=r"`f` hands an array to NumPy, beside functions of JAX; write jnp.sin"):
        oc.Dynamics(lambda x, u: [np.sqrt(x[0]) + jnp.sin(u[0])], 1, 1)


def test_missing_parameters_are_named():
    plant = oc.Dynamics(lambda x, u, t, p: x * p["k"], 2, 1)
    with pytest.raises(ValueError, match=r"`f` fails.*Its `params` are None: pass params="):
        oc.solve(oc.Problem(plant, lambda x, u: x @ x, horizon=3, x0=[1.0, 2.0]))


def test_records_show_themselves_briefly():
    a = problem(stage_cost=oc.costs.Quadratic(EYE, ONE), u_max=1.0)
    assert repr(a) == "Problem: LinearDynamics, N = 3, nx = 2, nu = 1, x0 given; stage_cost; constraints: u_max"
    assert "xs=float64[4, 2]" in repr(oc.gradient(a, np.zeros((3, 1))))


def test_later_changes_of_the_callers_arrays_do_not_reach_the_problem():
    x0 = np.array([1.0, 2.0])
    made = problem(x0=x0)
    x0[0] = np.nan
    assert np.isfinite(made.x0).all()


def test_horizon_comes_from_the_dynamics_and_must_agree():
    staged = oc.LinearDynamics(np.ones((4, 1, 1)), np.ones((4, 1, 1)))
    assert oc.Problem(staged, x0=[1.0]).horizon == 4
    with pytest.raises(ValueError, match="`horizon` is 3, but the dynamics have 4 stages"):
        oc.Problem(staged, horizon=3, x0=[1.0])


def test_sizes_may_come_from_the_data():
    free = oc.Problem(oc.Dynamics(lambda x, u: x + u), lambda x, u: x @ x, horizon=2, x0=[1.0, 2.0])
    assert oc.gradient(free, np.ones((2, 2))).xs.shape == (3, 2)


def test_quadratic_and_tracking_by_hand(rng):
    Q, R, M = np.diag([1.0, 2.0]), np.array([[3.0]]), np.array([[0.1], [0.2]])
    q, r, x, u = rng.normal(size=2), rng.normal(size=1), rng.normal(size=2), rng.normal(size=1)
    want = 0.5 * x @ Q @ x + x @ M @ u + 0.5 * u @ R @ u + q @ x + r @ u
    np.testing.assert_allclose(oc.costs.Quadratic(Q, R, M, q, r)(x, u, 0), want, rtol=1e-14)
    x_ref, u_ref = rng.normal(size=(3, 2)), rng.normal(size=(3, 1))
    dx, du = x - x_ref[2], u - u_ref[2]
    cost = oc.costs.Tracking(Q, R, x_ref, u_ref)
    np.testing.assert_allclose(cost(x, u, 2), 0.5 * dx @ Q @ dx + 0.5 * du @ R @ du, rtol=1e-14)
    staged = oc.costs.Quadratic(np.stack([Q, 2 * Q]), R)
    np.testing.assert_allclose(staged(x, u, 1), x @ Q @ x + 0.5 * u @ R @ u, rtol=1e-14)


LOSSES = [oc.costs.SquaredLoss(), oc.costs.Huber(1.345), oc.costs.StudentT(4.0), oc.costs.SmoothL1(0.1)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_losses_vanish_at_zero_are_even_and_smooth(loss):
    r = jnp.linspace(-8, 8, 161)
    np.testing.assert_allclose(loss(jnp.zeros(1)), 0, atol=1e-15)
    np.testing.assert_allclose(loss(r), loss(-r), rtol=1e-13)
    slope = jax.vmap(jax.grad(lambda r: loss(r)))(r)
    np.testing.assert_allclose(slope[1:-1], (loss(r + 1e-6) - loss(r - 1e-6))[1:-1] / 2e-6, atol=1e-5)


def test_losses_by_hand():
    r = jnp.array([0.5, 3.0])
    np.testing.assert_allclose(oc.costs.Huber(1.0)(r), [0.125, 2.5])
    np.testing.assert_allclose(oc.costs.StudentT(4.0)(r), 2.5 * np.log1p(np.array([0.25, 9.0]) / 4))
    np.testing.assert_allclose(oc.costs.SmoothL1(4.0)(r[1]), 1.0)
    assert jnp.isfinite(jax.hessian(oc.costs.Huber(1.0))(0.0))


def test_cross_entropy_and_hidden_penalty_by_hand():
    logits = jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    want = (np.log(np.exp([1.0, 2.0, 0.0]).sum()) - 2.0 + np.log(3)) / 2
    np.testing.assert_allclose(oc.costs.CrossEntropy(np.array([1, 0]))(logits), want, rtol=1e-14)
    penalty = oc.costs.HiddenPenalty(np.array([0.0, 4.0]))
    np.testing.assert_allclose(penalty(logits, None, 1), 2.0 * 5 / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oc.costs.Quadratic([[1.0, 0.5], [0.0, 1.0]], [[1.0]]), "`Q` is not symmetric"),
        (lambda: oc.costs.Quadratic(np.diag([1.0, -1e-3]), [[1.0]]), "lowest eigenvalue is -0.001"),
        (
            lambda: oc.costs.Quadratic(np.eye(2), [[1.0]], M=np.ones((1, 2))),
            r"`M` has shape \(1, 2\); expected \(2, 1\)",
        ),
        (
            lambda: oc.costs.Tracking(np.eye(2), [[1.0]], x_ref=np.zeros(3)),
            r"`x_ref` has shape \(3,\); expected \(2,\)",
        ),
        (lambda: oc.costs.TerminalQuadratic(np.eye(2, dtype=bool)), "`Q` has dtype bool"),
        (lambda: oc.costs.Huber(0.0), "`k` is 0.0; expected a positive number"),
        (lambda: oc.costs.CrossEntropy(np.array([0.0, 1.0])), "`labels` has dtype float64"),
        (lambda: oc.costs.CrossEntropy(np.array([0, -1])), "`labels` holds -1"),
        (lambda: oc.costs.CrossEntropy(np.array([0, 3]))(jnp.zeros((2, 3))), "`labels` holds 3; expected below 3"),
        (
            lambda: oc.costs.CrossEntropy(np.array([0]))(jnp.zeros((2, 3))),
            r"`labels` has shape \(1,\); expected \(2,\)",
        ),
    ],
)
def test_cost_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_reference_changes_without_recompiling():
    traces = []

    def spy(x, u):
        traces.append(1)
        return 0.0 * x[0]

    a = zoo.lq_problem()
    us = np.zeros((8, 2))
    tracked = a.replace(
        stage_cost=oc.costs.Tracking(np.eye(3), np.eye(2), np.zeros(3)), terminal_cost=lambda x: spy(x, 0)
    )
    oc.gradient(tracked, us)
    moved = tracked.replace(stage_cost=oc.costs.Tracking(np.eye(3), np.eye(2), np.ones(3)))
    before = len(traces)
    assert oc.gradient(moved, us).cost != oc.gradient(tracked, us).cost
    assert len(traces) == before
