"""Schemes: known answers, orders, implicit steps, exact hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import optctl as oc

EXPLICIT = [("euler", 1), ("midpoint", 2), ("rk4", 4)]
IMPLICIT = [("implicit_midpoint", 2), ("trapezoid", 2)]


def scalar_problem(method, theta, dt=0.1, N=20):
    dynamics = oc.discretize(lambda z, u, t, theta: theta * z, dt, method, nx=1, nu=0)
    return oc.Problem(dynamics, terminal_cost=lambda z: z @ z / 2, horizon=N, x0=[1.5], params=jnp.array(theta))


@pytest.mark.parametrize(
    ("method", "theta", "loss", "dtheta", "dz0"),
    [
        ("euler", -0.7, 0.06172633117655956, 0.2654895964583207, 0.08230177490207941),
        ("rk4", -0.7, 0.06841136108384701, 0.2736451507261283, 0.09121514811179601),
        ("rk4", 0.7, 18.50021783986194, 74.00080233274256, 24.66695711981591),
    ],
)
def test_scalar_linear_ode(method, theta, loss, dtheta, dz0):
    """Factor R(h theta) a step, twenty steps; values by hand."""
    g = oc.gradient(scalar_problem(method, theta), None)
    np.testing.assert_allclose([g.cost, g.params, g.x0[0]], [loss, dtheta, dz0], rtol=1e-13)


@pytest.mark.parametrize("method", ["implicit_midpoint", "trapezoid"])
def test_scalar_linear_ode_implicit(method):
    """Both schemes multiply by R = (1 + h th/2)/(1 - h th/2)."""
    h, th, N, z0 = 0.1, -0.7, 20, 1.5
    R, dR = (1 + h * th / 2) / (1 - h * th / 2), h / (1 - h * th / 2) ** 2
    g = oc.gradient(scalar_problem(method, th), None)
    want = [z0**2 * R ** (2 * N) / 2, z0**2 * N * R ** (2 * N - 1) * dR, z0 * R ** (2 * N)]
    np.testing.assert_allclose([g.cost, g.params, g.x0[0]], want, rtol=1e-13)


def test_piecewise_constant_input_is_held_exactly():
    """z' = -z + u on four intervals of [0, 1]."""
    dynamics = oc.discretize(lambda z, u: -z + u, 0.25, "zoh", nx=1, nu=1)
    problem = oc.Problem(dynamics, terminal_cost=lambda z: z @ z / 2, horizon=4, x0=[2.0])
    g = oc.gradient(problem, np.array([[1.0], [-2.0], [3.0], [0.5]]))
    np.testing.assert_allclose(g.xs[-1, 0], 1.199327758509831, rtol=1e-13)
    want = [0.1253142933119019, 0.1609067376867447, 0.2066083409060875, 0.265290361023102]
    np.testing.assert_allclose(g.us[:, 0], want, rtol=1e-13)
    np.testing.assert_allclose(g.x0, [0.4412080255819953], rtol=1e-13)


@pytest.mark.parametrize("method", ["midpoint", "rk4", "implicit_midpoint", "trapezoid", "zoh"])
def test_falling_mass_is_exact(method):
    """x'' = -g; the sum of x at 0:.05:2 has derivative -27.675 in g and exactly 0 in the mass."""
    dynamics = oc.discretize(lambda x, u, t, p: [x[1], -p["g"] + 0 * p["m"]], 0.05, method, nx=2, nu=0)
    problem = oc.Problem(
        dynamics, lambda x, u: x[0], lambda x: x[0], horizon=40, x0=[1.0, 0.0],
        params={"g": jnp.array(9.81), "m": jnp.array(3.0)},
    )  # fmt: skip
    g = oc.gradient(problem, None)
    np.testing.assert_allclose(g.params["g"], -27.675, rtol=1e-12)
    assert g.params["m"] == 0.0


@pytest.mark.parametrize(("method", "order"), EXPLICIT + IMPLICIT)
def test_order_of_convergence(method, order):
    """End state of a driven pendulum against a fine reference."""

    def end(N, method=method):
        dynamics = oc.discretize(lambda x, u, t: [x[1], -jnp.sin(x[0]) + jnp.cos(t)], 1.0 / N, method, nx=2, nu=0)
        return dynamics.rollout([1.0, 0.0], np.zeros((N, 0)))[-1]

    reference = end(2048, "rk4")
    coarse, fine = (float(jnp.linalg.norm(end(N) - reference)) for N in (16, 32))
    assert abs(np.log2(coarse / fine) - order) < 0.2


def test_implicit_steps_are_stable_where_explicit_ones_blow_up():
    stiff = lambda x, u: -1000.0 * x
    us = np.zeros((50, 0))
    blown = oc.discretize(stiff, 0.1, "rk4", nx=1, nu=0).rollout([1.0], us)[-1, 0]
    assert not abs(blown) < 1e100
    for method, _ in IMPLICIT:
        assert abs(oc.discretize(stiff, 0.1, method, nx=1, nu=0).rollout([1.0], us)[-1, 0]) < 1


def test_newton_that_fails_returns_nan_not_a_wrong_number():
    """x+ = x + h f(mean) has no real root for this f."""
    dynamics = oc.discretize(lambda x, u: 10 + x**2, 1.0, "trapezoid", nx=1, nu=0)
    assert np.isnan(dynamics.rollout([0.0], np.zeros((1, 0)))[-1, 0])


def test_second_derivative_through_the_implicit_function():
    dynamics = oc.discretize(oc.models.Pendulum(), 0.1, "implicit_midpoint")
    problem = oc.Problem(dynamics, lambda x, u: x @ x + u @ u, horizon=5, x0=[1.0, 0.2])
    us = 0.3 * np.ones((5, 1))
    assert oc.check_gradient(problem, us)


def test_zoh_equals_matrix_exponential():
    model = oc.models.DoubleIntegrator(m=2.0)
    hold = oc.discretize(model, 0.3, "zoh")
    block = scipy.linalg.expm(0.3 * np.array([[0, 1, 0], [0, 0, 0.5], [0, 0, 0]]))
    np.testing.assert_allclose(hold.A, block[:2, :2], atol=1e-14)
    np.testing.assert_allclose(hold.B, block[:2, 2:], atol=1e-14)


def test_zoh_with_affine_term_and_mesh():
    dt = np.array([0.1, 0.2])
    hold = oc.discretize(lambda x, u: -x + u + 2.0, dt, "zoh", nx=1, nu=1)
    np.testing.assert_allclose(hold.c[:, 0], 2 * (1 - np.exp(-dt)), rtol=1e-13)


def test_zoh_finds_models_that_are_not_linear_or_not_constant():
    periodic = lambda x, u, t: [x[1], u[0] - x[0] + jnp.sin(2 * jnp.pi * t)]
    with pytest.raises(ValueError, match="not linear in x and u, or not constant in t"):
        oc.discretize(periodic, 0.1, "zoh", nx=2, nu=1)
    cubic = oc.discretize(lambda x, u, t, p: [-p[0] * x[0] ** 3 + u[0]], 0.1, "zoh", nx=1, nu=1)
    with pytest.raises(ValueError, match="not linear in x and u"):
        cubic.rollout([1.0], np.zeros((2, 1)), np.ones(1))


def test_mesh_sees_the_right_seconds():
    """f = t integrated by midpoint over a mesh is exact."""
    dt = np.array([0.1, 0.4, 0.5])
    xs = oc.discretize(lambda x, u, t: [t], dt, "midpoint", nx=1, nu=0).rollout([0.0], np.zeros((3, 0)))
    np.testing.assert_allclose(xs[:, 0], np.cumsum([0, *dt]) ** 2 / 2, atol=1e-15)


def test_derivative_in_the_step_length():
    """The step is data: jax.grad reaches it."""

    def end(dt):
        return oc.discretize(lambda x, u: -x, dt, "euler", nx=1, nu=0).rollout([1.0], np.zeros((3, 0)))[-1, 0]

    np.testing.assert_allclose(jax.grad(end)(0.1), -3 * 0.9**2, rtol=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "rk5"}, r"`method` is 'rk5'; expected one of"),
        ({"dt": 0.0}, r"`dt` is 0.0; expected a positive step"),
        ({"dt": np.nan}, r"`dt` holds NaN"),
        ({"method": "zoh"}, r"`ode` is not linear"),
        ({"nx": 2}, r"`ode` returns shape \(1,\); expected \(2,\)"),
    ],
)
def test_bad_input(kwargs, message):
    arguments = {"dt": 0.1, "method": "rk4", "nx": 1, "nu": 1} | kwargs
    with pytest.raises(ValueError, match=message):
        oc.discretize(lambda x, u: [jnp.sin(x[0]) + u[0]], **arguments)
