"""Hessian-vector products, the checks that users run, and the growth of costates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from tests import zoo
from tests.oracles import scanned_cost

US = jnp.asarray(np.random.default_rng(1).normal(size=(7, 1)))


def test_hessian_vector_product_equals_the_dense_hessian(rng):
    problem = zoo.pendulum_problem()
    x0, params = jnp.asarray(problem.x0), problem.params
    dus, dx0 = jnp.asarray(rng.normal(size=(7, 1))), jnp.asarray(rng.normal(size=2))
    dparams = {"k": jnp.array(0.7), "b": jnp.array(-0.4)}
    got = oc.hessian_vector_product(problem, US, dus, dx0=dx0, dparams=dparams)

    def slope(us, x0, p):
        return jax.grad(lambda *z: scanned_cost(problem, *z), (0, 1, 2))(us, x0, p)

    want = jax.jit(lambda: jax.jvp(slope, (US, x0, params), (dus, dx0, dparams))[1])()
    for a, b in zip(
        (got.us, got.x0, got.params["k"], got.params["b"]), (*want[:2], want[2]["k"], want[2]["b"]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    tangents = problem.dynamics.tangent_rollout(oc.gradient(problem, US).xs, US, dx0, dus, params, dparams)
    np.testing.assert_allclose(got.xs, tangents, atol=1e-12)


def test_hessian_refuses_simulators_and_wrong_directions():
    plant = zoo.kinds()["simulator_vjp"][0]
    problem = oc.Problem(plant, lambda x, u: x @ x, horizon=7, x0=[1.0, 0.0], params=np.array([1.3, 0.2]))
    with pytest.raises(ValueError, match="SimulatorDynamics has no second derivatives; use method='lbfgs'"):
        oc.hessian_vector_product(problem, US, US)
    with pytest.raises(ValueError, match=r"`dus` has shape \(6, 1\); expected \(7, 1\)"):
        oc.hessian_vector_product(zoo.pendulum_problem(), US, US[:6])


def test_check_gradient_finds_the_orders():
    report = oc.check_gradient(zoo.pendulum_problem(), US)
    assert report, report
    for block in ("us", "x0", "params"):
        assert report.figure(f"{block}: order with gradient") >= 1.9
        assert report.figure(f"{block}: order with Hessian") >= 2.9
        assert abs(report.figure(f"{block}: order without") - 1) < 0.1
    assert "order with Hessian" in repr(report)


@jax.custom_jvp
def wrong_sine(x):
    return jnp.sin(x)


wrong_sine.defjvp(lambda x, dx: (jnp.sin(x[0]), 1.001 * jnp.cos(x[0]) * dx[0]))


@jax.custom_jvp
def sine_without_curvature(x):
    return jnp.sin(x)


sine_without_curvature.defjvp(lambda x, dx: (jnp.sin(x[0]), jax.lax.stop_gradient(jnp.cos(x[0])) * dx[0]))


def test_checks_fail_on_wrong_derivatives():
    """A slope that is 0.1 % off fails the order and the gap; a lost curvature fails the Hessian only."""
    step = lambda sine: lambda x, u: x + 0.1 * jnp.stack([x[1], -sine(x[0]) + u[0]])
    cost = lambda x, u: x @ x + u @ u

    def report(sine):
        return oc.check_gradient(oc.Problem(oc.Dynamics(step(sine), 2, 1), cost, horizon=7, x0=[1.0, 0.0]), US)

    assert report(jnp.sin)
    wrong = report(wrong_sine)
    assert not wrong
    assert wrong.figure("x0: gap to central difference") > 1e-5
    flat = report(sine_without_curvature)
    assert not flat
    assert flat.figure("x0: order with gradient") >= 1.9
    assert flat.figure("x0: order with Hessian") < 2.5
    assert "NOT all hold" in repr(flat)


def test_a_dropped_transpose_fails_the_dot_product():
    class Untransposed(oc.AbstractDynamics):
        nx, nu = 2, 1

        def step(self, x, u, t, params):
            return zoo.nonlinear_step(x, u, t, zoo.PARAMS)

        def _state_jacobians(self, xs, us, params):
            return (lambda stage: (lambda v: stage[0] @ v, lambda v: stage[0] @ v)), self.jacobians(xs, us, params)

    jax.tree_util.register_static(Untransposed)
    report = oc.check_adjoint(Untransposed())
    assert report.figure("dot-product") > 1e-3
    assert not report


def test_parameters_without_effect_are_named():
    problem = zoo.pendulum_problem(params={**zoo.PARAMS, "unused": jnp.array(1.0)})
    report = oc.check_gradient(problem, US)
    assert report
    assert any("params['unused'] is exactly zero" in note for note in report.notes)


def test_quadratic_costs_count_as_exact():
    report = oc.check_gradient(zoo.lq_problem(), np.ones((8, 2)))
    assert report
    assert report.figure("us: order with Hessian") == np.inf


def test_check_adjoint_needs_sizes():
    with pytest.raises(ValueError, match="`x0` is missing and the number of states unknown"):
        oc.check_adjoint(oc.Dynamics(lambda x, u: x + u))
    assert oc.check_adjoint(oc.Dynamics(lambda x, u: x + u), x0=np.ones(2), us=np.ones((3, 2)))


@pytest.mark.parametrize(("radius", "word"), [(1.3, "grow exponentially"), (0.6, "decay"), (1.0, "keep their size")])
def test_growth_of_a_time_invariant_system_is_its_spectral_radius(radius, word, rng):
    Q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    A = Q @ np.diag([radius, -0.5 * radius, 0.2 * radius]) @ Q.T
    dynamics = oc.LinearDynamics(A, np.ones((3, 1)))
    us = np.zeros((30, 1))
    growth = oc.costate_growth(dynamics, dynamics.rollout(np.ones(3), us), us)
    np.testing.assert_allclose(growth.spectral_radius, radius, rtol=1e-10)
    np.testing.assert_allclose(growth.norms[::-1], radius ** np.arange(31), rtol=1e-9)
    assert word in growth.verdict
    assert word in repr(growth)


def test_growth_over_a_long_horizon_does_not_overflow():
    dynamics = oc.LinearDynamics([[3.0]], [[1.0]])
    us = np.zeros((2000, 1))
    growth = oc.costate_growth(dynamics, np.ones((2001, 1)), us)
    np.testing.assert_allclose(growth.log10_norms[0], 2000 * np.log10(3), rtol=1e-12)
    np.testing.assert_allclose(growth.spectral_radius, 3, rtol=1e-12)


def test_growth_of_layers_and_of_a_dead_end():
    layers, x0, _, weights = zoo.kinds()["layers"]
    xs = layers.rollout(x0, None, weights)
    growth = oc.costate_growth(layers, xs, None, weights)
    jacobian = jax.jacfwd(lambda x: layers.rollout(x, None, weights)[-1])(jnp.asarray(x0))
    np.testing.assert_allclose(growth.norms[0], np.linalg.norm(jacobian, 2), rtol=1e-12)
    dead = oc.LinearDynamics([[0.0]], [[1.0]])
    growth = oc.costate_growth(dead, np.zeros((4, 1)), np.zeros((3, 1)))
    assert growth.norms[0] == 0.0
    assert "decay" in growth.verdict
    assert "= 0 after" in growth.verdict
    jordan = oc.LinearDynamics([[0.99, 1.0], [0.0, 0.99]], np.ones((2, 1)))
    growth = oc.costate_growth(jordan, np.zeros((51, 2)), np.zeros((50, 1)))
    assert "grow for a while" in growth.verdict
