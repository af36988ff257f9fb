"""What a solve claims where it is easy to claim too much: steep guesses, saddles of the violation, deep minima."""

import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc

A, B = np.array([[1, 0.1], [0, 1.0]]), np.array([[0.005], [0.1]])
LINEAR = oc.LinearDynamics(A, B)
DOWNHILL = ("ilqr", "newton_cg", "lbfgs", "gradient_descent", "interior_point")


def quadratic():
    return oc.Problem(LINEAR, lambda x, u: x @ x + 0.1 * u @ u, lambda x: 10 * x @ x, horizon=20, x0=[1.0, 0.0])


def quartic():
    cost = lambda x, u: 0.01 * u @ u + jnp.sum((u - 1) ** 4)
    return oc.Problem(LINEAR, cost, lambda x: x @ x, horizon=10, x0=[1.0, 0.0])


def wild(problem, size):
    return size * np.cos(np.arange(problem.horizon))[:, None]


@pytest.mark.parametrize("method", [*DOWNHILL, "cg"])
def test_a_steep_guess_does_not_make_a_point_optimal(method):
    """Of the best cost 13.43 these guesses have 1e7 to 1e20 times as much; 1e-6 of that is no size of anything."""
    problem = quadratic()
    best = float(oc.solve(problem, method="lq").cost)
    for size in (1e4, 1e8):
        sol = oc.solve(problem, wild(problem, size), method=method)
        assert sol.converged, (size, sol)
        assert float(sol.cost) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("method", DOWNHILL)
def test_a_steep_guess_of_a_quartic_ends_at_its_minimum_or_says_that_it_does_not(method):
    problem = quartic()
    best = float(oc.solve(problem, tolerance=1e-10, method="newton_cg").cost)
    for size in (1.0, 1e4):
        sol = oc.solve(problem, wild(problem, size), method=method)
        assert sol.converged, (size, sol)
        assert float(sol.cost) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("method", DOWNHILL)
def test_a_cost_that_vanishes_at_its_minimum_is_solved(method):
    """Nothing is left to compare with but what the cost would be if variables changed by as much as they are."""
    problem = quadratic()
    for x0 in ([0.0, 0.0], [1e-9, 0.0], [1e-4, 0.0]):
        sol = oc.solve(problem.replace(x0=x0), method=method)
        assert sol.converged, (x0, sol)
    goal = jnp.array([1.0, 0.0])
    reach = oc.Problem(LINEAR, None, lambda x: (x - goal) @ (x - goal), horizon=20, x0=[0.0, 0.0])
    sol = oc.solve(reach, method=method)
    assert sol.converged, sol
    assert float(sol.cost) < 1e-18


@pytest.mark.big
@pytest.mark.parametrize("backend", ["native", "jax"])
def test_scales_of_a_large_guess_do_not_loosen_the_certificate(backend):
    step = lambda x, u: jnp.stack([x[0] + 0.1 * x[1], x[1] + 0.1 * u[0] - 0.1 * jnp.sin(x[0])])
    problem = quadratic().replace(dynamics=oc.Dynamics(step, nx=2, nu=1))
    best = float(oc.solve(problem, method="newton_cg", tolerance=1e-10).cost)
    sol = oc.solve(problem, wild(problem, 1e8), method=oc.InteriorPoint(backend=backend))
    assert sol.converged, sol
    assert float(sol.cost) == pytest.approx(best, rel=1e-9)


def around_a_disc(backend, horizon=20):
    """From (-1, 0) to (1, 0) around a disc, from a guess through its middle: nothing says on which side to pass."""
    problem = oc.Problem(
        oc.LinearDynamics(np.eye(2), 0.1 * np.eye(2)), lambda x, u: 0.01 * u @ u, horizon=horizon, x0=[-1.0, 0.0],
        terminal_equality=lambda x: x - jnp.array([1.0, 0.0]), path_inequality=lambda x, u: jnp.array([0.25 - x @ x]),
    )  # fmt: skip
    us = np.tile([20.0 / horizon, 0.0], (horizon, 1))
    xs = np.linspace([-1, 0], [1, 0], horizon + 1)
    return oc.solve(problem, us, xs=xs, method=oc.InteriorPoint(backend=backend))


@pytest.mark.big
@pytest.mark.parametrize("backend", ["native", "jax"])
def test_the_violation_at_a_maximum_or_saddle_is_not_called_least(backend):
    assert around_a_disc(backend)
    # At least 0.1, but 1.1 at the guess, which is a maximum.
    well = lambda x, u: (u**2 - 1) ** 2 + 0.1
    problem = oc.Problem(LINEAR, lambda x, u: u @ u, horizon=5, x0=[1.0, 0.0], path_equality=well)
    sol = oc.solve(problem, method=oc.InteriorPoint(backend=backend))
    assert sol.status == oc.Status.INFEASIBLE
    np.testing.assert_allclose(np.abs(sol.us), 1, atol=1e-2)
    np.testing.assert_allclose(sol.residuals["path_equality"], 0.1, atol=1e-3)


@pytest.mark.big
@pytest.mark.parametrize("backend", ["native", "jax"])
def test_infeasible_is_still_said_at_a_minimum_of_the_violation(backend):
    problem = oc.Problem(LINEAR, lambda x, u: u @ u, horizon=5, x0=[1.0, 0.0], path_equality=lambda x, u: u**2 + 1)
    assert oc.solve(problem, method=oc.InteriorPoint(backend=backend)).status == oc.Status.INFEASIBLE


def test_a_deep_minimum_between_bounds_is_no_bottomless_cost():
    """u^4 - 1e6 u^2: -2.5e11 a stage, at u = 707, from a guess with a cost of nearly 0."""
    problem = oc.Problem(LINEAR, lambda x, u: u[0] ** 4 - 1e6 * u[0] ** 2, horizon=5, x0=[1.0, 0.0])
    bounded = problem.replace(u_min=-1e4, u_max=1e4)
    for case, method in ((bounded, "interior_point"), (problem, "interior_point"), (problem, "ilqr")):
        sol = oc.solve(case, np.full((5, 1), 1e-3), method=method)
        assert sol.converged, (method, sol)
        assert float(sol.cost) == pytest.approx(-1.25e12, rel=1e-9)


@pytest.mark.big
def test_unbounded_needs_variables_that_grow():
    """A cost that falls a billion times to a kink, where no method gets further, is not unbounded."""
    steep = lambda x, u: 1e9 * (jnp.sqrt((u[0] - 1) ** 2) - 1)
    kink = oc.Problem(LINEAR, steep, horizon=1, x0=[1.0, 0.0])
    for method in ("lbfgs", "gradient_descent"):
        assert oc.solve(kink, method=method).status != oc.Status.UNBOUNDED
    for backend in ("native", "jax"):
        falls = oc.Problem(LINEAR, lambda x, u: -(u[0] ** 2), horizon=5, x0=[1.0, 0.0])
        sol = oc.solve(falls, np.ones((5, 1)), method=oc.InteriorPoint(backend=backend))
        assert sol.status == oc.Status.UNBOUNDED


@pytest.mark.parametrize("tolerance", [0, 1e-30])
@pytest.mark.parametrize("method", ["ilqr", "newton_cg", "interior_point"])
def test_a_tolerance_below_rounding_is_told_as_such(method, tolerance):
    problem = quadratic().replace(dynamics=oc.discretize(oc.models.Pendulum(), 0.05))
    sol = oc.solve(problem, method=method, tolerance=tolerance)
    best = oc.solve(problem, method=method, tolerance=1e-10)
    assert sol.status in (oc.Status.SOLVED, oc.Status.STALLED)
    assert sol.converged or "below what rounding allows" in sol.message
    assert float(sol.cost) == pytest.approx(float(best.cost), rel=1e-12)


@pytest.mark.parametrize(("size", "method"), [(1e2, "ilqr"), (1e4, "ilqr"), (1e2, "newton_cg")])
def test_rounding_of_large_states_is_no_disagreement(size, method):
    """Only the end costs anything, so the inputs stay as large as they are, and slopes are the rounding of states."""
    problem = oc.Problem(
        oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]]),
        terminal_cost=lambda x: (x - 1.0) @ (x - 1.0), horizon=20, x0=[3.0, 0.0],
    )  # fmt: skip
    sol = oc.solve(problem, size * np.cos(np.arange(20.0))[:, None], method=method)
    assert sol.converged, sol
    assert sol.checked == "NumPy"
    assert sol.cost < 1e-20
