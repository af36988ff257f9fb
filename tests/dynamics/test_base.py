"""Every kind of dynamics: the verbs agree with each other and with independent derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.dynamics.base import DENSE_LIMIT
from tests import zoo

KINDS = zoo.kinds()
STEP_KINDS = [name for name, kind in KINDS.items() if kind[0].has_jax_step and not name.startswith("layers")]


@pytest.mark.parametrize("name", KINDS)
def test_dot_product_and_taylor(name):
    dynamics, x0, us, params = KINDS[name]
    report = oc.check_adjoint(dynamics, x0, us, params)
    assert report, report
    assert report.figure("dot-product") <= 1e-12


@pytest.mark.parametrize("name", STEP_KINDS)
def test_rollout_equals_a_loop_over_steps(name):
    dynamics, x0, us, params = KINDS[name]
    xs = dynamics.rollout(x0, us, params)
    x = jnp.asarray(x0)
    for t in range(len(us)):
        np.testing.assert_allclose(xs[t], x, rtol=1e-12, atol=1e-12)
        x = dynamics.step(x, jnp.asarray(us[t]), t, params)
    np.testing.assert_allclose(xs[-1], x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in STEP_KINDS if n != "closed_loop"])
def test_adjoint_equals_jax_vjp_of_the_loop(name, rng):
    dynamics, x0, us, params = KINDS[name]
    x0, us = jnp.asarray(x0), jnp.asarray(us)
    xs, transpose = jax.vjp(dynamics.rollout, x0, us, params)
    w = jnp.asarray(rng.normal(size=xs.shape))
    gx0, gus, gparams = transpose(w)
    back = dynamics.adjoint_rollout(xs, us, w, params)
    np.testing.assert_allclose(back.costates[0], gx0, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(back.us, gus, rtol=1e-10, atol=1e-12)
    for got, want in zip(jax.tree.leaves(back.params), jax.tree.leaves(gparams), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_linearize_and_curvature_against_finite_differences():
    dynamics, x0, us, params = KINDS["function"]
    xs = dynamics.rollout(x0, us, params)
    A, B = dynamics.linearize(xs, us, params)
    costates = np.random.default_rng(0).normal(size=xs.shape)
    W = dynamics.curvature(xs, us, costates, params)
    t, h = 3, 1e-5
    z = np.concatenate([xs[t], us[t]])

    def f(z):
        return np.asarray(dynamics.step(jnp.asarray(z[:2]), jnp.asarray(z[2:]), t, params))

    AB = np.stack([(f(z + h * e) - f(z - h * e)) / (2 * h) for e in np.eye(3)], axis=1)
    np.testing.assert_allclose(np.concatenate([A[t], B[t]], axis=1), AB, atol=1e-9)
    h = 1e-3
    for i, e in enumerate(np.eye(3)):
        second = costates[t + 1] @ (f(z + h * e) - 2 * f(z) + f(z - h * e)) / h**2
        assert abs(W[t, i, i] - second) < 1e-6
    np.testing.assert_allclose(W, np.swapaxes(W, 1, 2), atol=1e-14)


def test_small_and_large_path_agree():
    """Jacobians at once (small) and one vjp a stage (large) are the same recursion."""
    rng = np.random.default_rng(0)
    M = jnp.asarray(rng.normal(size=(3, 3)))

    class OneVjpAStage(oc.AbstractDynamics):
        nx, nu = 3, 1

        def step(self, x, u, t, params):
            return jnp.tanh(params @ x) + u[0]

        def _forms_jacobians(self, xs, us):
            return False

    small = oc.Dynamics(lambda x, u, t, p: jnp.tanh(p @ x) + u[0], 3, 1)
    xs = small.rollout(rng.normal(size=3), rng.normal(size=(5, 1)), M)
    us, w = jnp.asarray(rng.normal(size=(5, 1))), jnp.asarray(rng.normal(size=(6, 3)))
    jax.tree_util.register_static(OneVjpAStage)
    for got, want in zip(
        jax.tree.leaves(OneVjpAStage().adjoint(xs, us, w, M)), jax.tree.leaves(small.adjoint(xs, us, w, M)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
    assert DENSE_LIMIT >= 16


def test_verbs_under_vmap_match_a_loop():
    dynamics, _, us, params = KINDS["function"]
    x0s = np.random.default_rng(0).normal(size=(3, 2))
    batched = jax.vmap(lambda x0: dynamics.rollout(x0, us, params))(jnp.asarray(x0s))
    for x0, xs in zip(x0s, batched, strict=True):
        np.testing.assert_allclose(dynamics.rollout(x0, us, params), xs, rtol=1e-13)


def test_new_numbers_do_not_recompile():
    traces = []

    def f(x, u):
        traces.append(1)
        return x + u

    dynamics = oc.Dynamics(f, 2, 2)
    dynamics.rollout(np.zeros(2), np.zeros((3, 2)))
    before = len(traces)
    dynamics.rollout(np.ones(2), np.ones((3, 2)))
    assert len(traces) == before


def test_state_may_be_returned_as_a_list():
    dynamics = oc.Dynamics(lambda x, u: [x[1], x[0] + u[0]], 2, 1)
    np.testing.assert_array_equal(dynamics.rollout([1.0, 2.0], [[3.0]])[1], [2.0, 4.0])


def test_horizon_of_one_and_no_inputs():
    dynamics = oc.Dynamics(lambda x, u: 2 * x, 1, 0)
    np.testing.assert_array_equal(dynamics.rollout([1.0], np.zeros((1, 0)))[:, 0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x, r"`f` takes 1 arguments; expected f\(x, u\)"),
        (lambda x, u, t, p, q: x, r"`f` takes 5 arguments"),
        (lambda x, u: x[:1], r"`f` returns shape \(1,\); expected \(2,\)"),
        ("x", r"`f` is a str; expected a function"),
        (lambda x, u: jnp.float32(1.0) * x.astype(jnp.float32), r"`f` returns float32 for a float64 state"),
    ],
)
def test_wrong_functions_are_refused_at_once(f, message):
    with pytest.raises(ValueError, match=message):
        oc.Dynamics(f, 2, 1)


@pytest.mark.parametrize(
    ("x0", "us", "message"),
    [
        (np.zeros(3), np.zeros((4, 1)), r"`x0` has shape \(3,\); expected \(2,\)"),
        (np.zeros(2), np.zeros((4, 2)), r"`us` has shape \(4, 2\); expected any number of rows and 1 column"),
        (np.zeros(2, bool), np.zeros((4, 1)), r"`x0` has dtype bool; expected floating point"),
        (np.zeros(2), np.zeros((4, 1), bool), r"`us` has dtype bool"),
        (np.zeros(2), "abc", r"`us` is not numeric"),
    ],
)
def test_wrong_arguments_are_refused(x0, us, message):
    with pytest.raises(ValueError, match=message):
        KINDS["function"][0].rollout(x0, us, zoo.PARAMS)


def test_boolean_parameters_are_refused_by_every_verb():
    dynamics, x0, us, params = KINDS["function"]
    xs = dynamics.rollout(x0, us, params)
    booleans = {"k": np.array(True), "b": np.array(False)}
    for call in (
        lambda: dynamics.rollout(x0, us, booleans),
        lambda: dynamics.adjoint_rollout(xs, us, xs, booleans),
        lambda: dynamics.tangent_rollout(xs, us, x0, us, booleans),
        lambda: dynamics.linearize(xs, us, booleans),
        lambda: dynamics.curvature(xs, us, xs, booleans),
    ):
        with pytest.raises(ValueError, match=r"`params\['[kb]'\]` has dtype bool"):
            call()


def test_adjoint_refuses_a_cotangent_of_the_wrong_shape():
    dynamics, x0, us, params = KINDS["function"]
    xs = dynamics.rollout(x0, us, params)
    with pytest.raises(ValueError, match=r"`gxs` has shape \(7, 2\); expected \(8, 2\)"):
        dynamics.adjoint_rollout(xs, us, xs[:-1], params)


def test_an_argument_named_params_gets_the_parameters():
    dynamics = oc.Dynamics(lambda x, u, params: params * x + u, nx=1, nu=1)
    np.testing.assert_array_equal(dynamics.rollout([1.0], [[0.0], [0.0]], 2.0)[:, 0], [1, 2, 4])
    staged = oc.Dynamics(lambda x, u, a=7.0, params=1.0: x + u * a * params, 1, 1)
    np.testing.assert_allclose(staged.rollout([1.0], [[10.0], [10.0]], 2.0)[-1], [281.0])
    with pytest.raises(ValueError, match="`f` has the argument `p` in the place of t"):
        oc.Dynamics(lambda x, u, p, k: x + u * p, 1, 1)
    with pytest.raises(ValueError, match="`f` ends with the argument `gain`, in the place of t"):
        oc.Dynamics(lambda x, u, gain: gain * x, nx=1, nu=1)
    loop = oc.ClosedLoop(oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, params: params * x)
    np.testing.assert_array_equal(loop.rollout([1.0], np.zeros((2, 0)), -0.5)[:, 0], [1, 0.5, 0.25])
    with pytest.raises(ValueError, match=r"`policy` ends with the argument `K`.*Call it `params`"):
        oc.ClosedLoop(oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, K: K @ x)


def test_objects_that_compare_equal_do_not_share_compiled_code():
    class Weighted:
        w = 1.0

        def cost(self, x, u):
            return self.w * (x @ x) + u @ u

    weighted = Weighted()
    problem = oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), weighted.cost, horizon=3, x0=[1.0])
    first = oc.gradient(problem, np.zeros((3, 1))).cost
    weighted.w = 100.0
    np.testing.assert_allclose(
        oc.gradient(problem.replace(stage_cost=weighted.cost), np.zeros((3, 1))).cost, 100 * first
    )


def test_an_own_kind_must_be_registered():
    class Bare(oc.AbstractDynamics):
        nx, nu = 1, 1

        def step(self, x, u, t, params):
            return x + u

    with pytest.raises(
        ValueError, match=r"`Bare` is not registered with JAX; decorate the class with @optctl.record\(\)"
    ):
        Bare().rollout([0.0], [[1.0]])
    with pytest.raises(ValueError, match="`Bare` is not registered"):
        oc.Problem(Bare(), horizon=1, x0=[0.0])
    assert oc.check_adjoint(oc.record()(Bare)())


@pytest.mark.parametrize(("nx", "nu"), [(0, 1), (2.5, 1), (2, -1)])
def test_sizes_are_checked(nx, nu):
    with pytest.raises(ValueError, match=r"`n[xu]` is"):
        oc.Dynamics(lambda x, u: x, nx, nu)
