"""The gradient engine against jax.grad, closed forms and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from tests import zoo
from tests.oracles import scanned_cost


@pytest.fixture(scope="module")
def us():
    return jnp.asarray(np.random.default_rng(1).normal(size=(7, 1)))


def test_gradient_equals_jax_grad_of_a_plain_loop(us):
    problem = zoo.pendulum_problem()
    g = oc.gradient(problem, us)
    cost, (gus, gx0, gp) = jax.value_and_grad(
        lambda us, x0, p: scanned_cost(problem, us, x0, p), (0, 1, 2)
    )(us, jnp.asarray(problem.x0), problem.params)  # fmt: skip
    np.testing.assert_allclose(g.cost, cost, rtol=1e-13)
    np.testing.assert_allclose(g.us, gus, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(g.x0, gx0, rtol=1e-11)
    for name in ("k", "b"):
        np.testing.assert_allclose(g.params[name], gp[name], rtol=1e-11)
        assert abs(g.params[name]) > 1e-3


def test_costates_are_derivatives_of_the_cost_to_go(us):
    """costates[t] = dJ/dx_t with later inputs fixed; the initial cost is not part of it."""
    problem = zoo.pendulum_problem()
    g = oc.gradient(problem, us)

    def cost_to_go(x, t0):
        cost = 0.0
        for t in range(t0, 7):
            cost += problem.stage_cost(x, us[t], t, problem.params)
            x = problem.dynamics.step(x, us[t], t, problem.params)
        return cost + problem.terminal_cost(x, problem.params)

    for t in (0, 3, 7):
        np.testing.assert_allclose(g.costates[t], jax.grad(cost_to_go)(g.xs[t], t), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["linear", "linear_staged", "large", "rk4", "trapezoid", "mesh", "closed_loop"])
def test_gradient_equals_jax_grad_on_every_kind(name):
    dynamics, x0, us, params = zoo.kinds()[name]
    problem = oc.Problem(
        dynamics,
        lambda x, u: jnp.sum(jnp.sin(x)) + jnp.sum(u**2),
        lambda x: jnp.sum(x**2),
        horizon=7,
        x0=x0,
        params=params,
    )
    g = oc.gradient(problem, us)
    want = jax.jit(jax.grad(lambda us, x0, p: scanned_cost(problem, us, x0, p), (0, 1, 2)))(
        jnp.asarray(us), jnp.asarray(x0), params
    )
    for got, exact in zip(jax.tree.leaves((g.us, g.x0, g.params)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-11)


def test_gradient_of_a_simulator_equals_that_of_the_same_jax_problem(us):
    table = zoo.kinds()
    stage, last = (lambda x, u: x @ x + u @ u), (lambda x: jnp.sum(x**4))
    in_jax = oc.Problem(table["function"][0], stage, last, horizon=7, x0=[1.0, 0.5], params=zoo.PARAMS)
    want = oc.gradient(in_jax, us)
    plant = oc.Problem(table["simulator_vjp"][0], stage, last, horizon=7, x0=[1.0, 0.5], params=np.array([1.3, 0.2]))
    got = oc.gradient(plant, us)
    np.testing.assert_allclose(got.us, want.us, atol=1e-12)
    np.testing.assert_allclose(got.params, [want.params["k"], want.params["b"]], atol=1e-12)


def test_lqr_identity_at_random_inputs(rng):
    """gradient = R u + B' costates[t+1], whatever u."""
    A, B = rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
    R = np.diag([2.0, 3.0])
    problem = oc.Problem(
        oc.LinearDynamics(A, B),
        oc.costs.Quadratic(np.eye(3), R),
        oc.costs.TerminalQuadratic(np.eye(3)),
        horizon=6,
        x0=np.ones(3),
    )
    us = rng.normal(size=(6, 2))
    g = oc.gradient(problem, us)
    np.testing.assert_allclose(g.us, us @ R + g.costates[1:] @ B, rtol=1e-12, atol=1e-12)


def test_minimum_energy_is_approached_at_second_order():
    """x' = A x + B u from (.5, .5) to (1, -1) in unit time: int u^2 -> 70.44324148040131 as h^2."""

    def energy(N):
        dynamics = oc.discretize(lambda x, u: jnp.stack([x[1] + u[0], x[0]]), 1.0 / N, "zoh", nx=2, nu=1)
        problem = oc.Problem(
            dynamics, lambda x, u: u @ u / N, oc.costs.TerminalQuadratic(1e10 * np.eye(2), x_ref=[1.0, -1.0]),
            horizon=N, x0=[0.5, 0.5],
        )  # fmt: skip
        sol = oc.solve(problem, method="lq")
        np.testing.assert_allclose(sol.xs[-1], [1, -1], atol=1e-6)
        # At the optimum the costate prices the input: 2 u h = -B' costate.
        np.testing.assert_allclose(2 * sol.us / N, -sol.costates[1:] @ dynamics.B, rtol=1e-6, atol=1e-5)
        return float(jnp.sum(sol.us**2) / N), sol

    gaps = [abs(energy(N)[0] - 70.44324148040131) for N in (10, 20, 40)]
    orders = np.log2(np.array(gaps[:-1]) / gaps[1:])
    np.testing.assert_allclose(orders, 2, atol=0.05)
    us = energy(40)[1].us
    np.testing.assert_allclose([1.5 * us[0, 0] - 0.5 * us[1, 0]], [-13.85651842662121], rtol=2e-3)


def test_multiplier_is_the_limit_of_a_penalty(us):
    """With the dynamics as penalty |H|^2/(2a), -H/a tends to the costate at rate O(a)."""
    problem = zoo.pendulum_problem(initial_cost=None)
    g = oc.gradient(problem, us)
    x0, N, nx = jnp.asarray(problem.x0), 7, 2

    def violations(z):
        xs = jnp.concatenate([x0[None], z.reshape(N, nx)])
        steps = [problem.dynamics.step(xs[t], us[t], t, problem.params) for t in range(N)]
        return xs, xs[1:] - jnp.stack(steps)

    def penalized(z, a):
        xs, H = violations(z)
        return problem.trajectory_cost(xs, us, problem.params) + jnp.sum(H**2) / (2 * a)

    slope, bend = jax.jit(jax.grad(penalized)), jax.jit(jax.hessian(penalized))
    errors = []
    for a in (1e-3, 1e-4, 1e-5):
        z = g.xs[1:].ravel()
        for _ in range(8):
            z = z - jnp.linalg.solve(bend(z, a), slope(z, a))
        errors.append(float(jnp.max(jnp.abs(-violations(z)[1] / a - g.costates[1:]))))
    np.testing.assert_allclose(np.log10(np.array(errors[:-1]) / errors[1:]), 1, atol=0.05)


def test_free_x0_and_params_are_arguments(us):
    problem = zoo.pendulum_problem(x0=None)
    with pytest.raises(ValueError, match="`x0` is free in this problem: pass the point"):
        oc.gradient(problem, us)
    moved = oc.gradient(problem, us, x0=[0.1, 0.2], params={"k": 2.0, "b": 0.1})
    assert abs(float(moved.cost) - float(oc.gradient(problem, us, x0=[0.1, 0.2]).cost)) > 1e-3


def test_vmap_over_problems_and_grad_through_the_engine(us):
    """Records are pytrees: batches of problems, and derivatives of the cost in the data of a cost helper."""
    x0s = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2)))
    problem = zoo.pendulum_problem()
    costs = jax.vmap(lambda x0: oc.gradient(problem.replace(x0=x0), us).cost)(x0s)
    for x0, cost in zip(x0s, costs, strict=True):
        np.testing.assert_allclose(cost, oc.gradient(problem.replace(x0=x0), us).cost, rtol=1e-12)

    def cost_of_reference(reference):
        tracking = oc.costs.Tracking(np.eye(2), np.eye(1), x_ref=reference)
        return oc.gradient(problem.replace(stage_cost=tracking), us).cost

    slope = jax.grad(cost_of_reference)(jnp.array([0.3, 0.1]))
    xs = np.asarray(oc.gradient(problem, us).xs[:-1])
    np.testing.assert_allclose(slope, -np.sum(xs - np.array([0.3, 0.1]), axis=0), rtol=1e-10)


def test_replacing_numbers_does_not_recompile(us):
    traces = []

    def stage_cost(x, u, t, p):
        traces.append(1)
        return x @ x + u @ u

    problem = zoo.pendulum_problem(stage_cost=stage_cost)
    oc.gradient(problem, us)
    before = len(traces)
    same_shapes = problem.replace(x0=np.array([0.0, 1.0]))
    checked = len(traces)
    oc.gradient(same_shapes, 2 * us)
    assert len(traces) == checked
    assert checked - before <= 1  # the shape check of a new Problem, no compilation


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((6, 1)), r"`us` has shape \(6, 1\); expected \(7, 1\)"),
        (np.zeros((7, 2)), r"`us` has shape \(7, 2\); expected any number of rows and 1 column"),
        (np.full((7, 1), np.nan), r"`us` holds NaN or inf, first at index \(0, 0\)"),
        (np.zeros((7, 1), bool), r"`us` has dtype bool; expected floating point"),
        (None, r"`us` is missing; expected inputs of shape \(7, 1\)"),
    ],
)
def test_bad_inputs(bad, message):
    with pytest.raises(ValueError, match=message):
        oc.gradient(zoo.pendulum_problem(), bad)


def test_first_argument_must_be_a_problem(us):
    with pytest.raises(ValueError, match=r"`problem` is a Dynamics; expected optctl.Problem"):
        oc.gradient(zoo.kinds()["function"][0], us)
