"""Errors of a mesh against the ODE, refined meshes; many guesses at once."""

import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc


def test_refinement_brings_the_cost_to_that_of_the_continuous_problem():
    known = oc.problems.van_der_pol(horizon=6)
    coarse = known.solve()
    result = oc.refine(known.problem, coarse, tolerance=1e-5)
    assert result.converged
    assert result.errors.max() <= 1e-5
    assert len(result.times) == result.problem.horizon + 1
    np.testing.assert_allclose(result.times[-1], 2.0)
    before, after = (abs(float(s.cost) / known.optimum - 1) for s in (coarse, result.solution))
    assert after < before / 2
    assert after < 1e-4
    assert "error of a step up to" in repr(result)
    estimate = oc.refine(known.problem, coarse, tolerance=1e-12, max_rounds=0)
    assert not estimate.converged
    assert estimate.rounds == 0
    # The estimate of the error of a step is that of RK4: compare with one step of half the length, twice.
    x, u = np.asarray(coarse.xs[0]), np.asarray(coarse.us[0])
    half = oc.discretize(known.problem.dynamics.ode, 1 / 6, nx=2, nu=1, hold="linear")
    middle = (u[:1] + u[1:]) / 2
    twice = half.rollout(x, np.stack([np.concatenate([u[:1], middle]), np.concatenate([middle, u[1:]])]))[-1]
    error = np.max(np.abs(twice - coarse.xs[1]) / (1 + np.abs(coarse.xs).max(axis=0))) * 16 / 15
    np.testing.assert_allclose(estimate.errors[0], error, rtol=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage_cost": lambda x, u: u @ u}, "`stage_cost` is tied to the mesh"),
        ({"path_inequality": lambda x, u, t: x - t}, "`path_inequality` depends on the stage t"),
        ({"u_min": np.full((6, 2), -9.0)}, "`u_min` is given per stage"),
    ],
)
def test_what_ties_a_problem_to_its_mesh_is_named(changes, message):
    problem = oc.problems.van_der_pol(horizon=6).problem
    with pytest.raises(ValueError, match=message):
        oc.refine(problem.replace(**changes), None)
    with pytest.raises(ValueError, match="expected dynamics made by discretize"):
        oc.refine(oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), horizon=2), None)


def test_what_constraints_miss_between_the_nodes_is_reported():
    car = oc.discretize(lambda x, u: [x[1], u[0]], 0.25, nx=2, nu=1)
    problem = oc.Problem(
        car,
        car.integral(lambda x, u: 1e-2 * u @ u),
        lambda x: 50.0 * (x[0] ** 2 + (x[1] + 1.0) ** 2),
        horizon=4,
        x0=[0.0, 1.0],
        x_max=[0.12, np.inf],
        path_inequality=lambda x, u, t, params: jnp.array([u[0] - 30.0, 2.0 * (x[0] - params)]),
        params=0.12,
    )
    result = oc.refine(problem, oc.solve(problem), tolerance=1e-3, max_rounds=0)
    # Under a constant acceleration the position is a parabola within each step.
    xs, us = np.asarray(result.solution.xs), np.asarray(result.solution.us)
    s = 0.25 * np.arange(1, 8) / 8
    over = xs[:-1, :1] + xs[:-1, 1:] * s + us * s**2 / 2 - 0.12
    assert over.max() > 1e-4
    assert xs[:, 0].max() < 0.12 + 1e-7
    row, bound = result.between
    assert (row.constraint, row.row, bound.constraint, bound.row) == ("path_inequality", 1, "x_max", 0)
    assert row.stage == bound.stage == int(over.max(axis=1).argmax())
    np.testing.assert_allclose([row.amount / 2, bound.amount], over.max(), rtol=1e-9)
    assert result.converged
    for text in (result.message, repr(result)):
        assert f"missed between the nodes: path_inequality[1] at stage {row.stage} by" in text
    soft = problem.replace(x_max=None, path_inequality=oc.Soft(lambda x, u: x[:1] - 0.12, 1e3))
    assert oc.refine(soft, oc.solve(soft), tolerance=1e-3, max_rounds=0).between == ()  # a miss has its price
    later = problem.replace(path_inequality=lambda x, u, t, params: jnp.array([x[0] - params - t]))
    with pytest.raises(ValueError, match="`path_inequality` depends on the stage t"):
        oc.refine(later, result.solution)


def test_inputs_that_move_are_followed_between_the_nodes():
    rail = oc.discretize(lambda x, u: [u[0]], 1.0, nx=1, nu=1, hold="linear")
    problem = oc.Problem(
        rail, terminal_cost=lambda x: x @ x, horizon=1, x0=[0.0], u_min=[-1.0, 1.0], u_max=[-1.0, 1.0], x_min=-0.1,
        path_equality=lambda x, u: jnp.array([u[0] * x[0]]),
    )  # fmt: skip
    result = oc.refine(problem, oc.solve(problem), tolerance=1e-3, max_rounds=0)
    s = np.arange(1, 8) / 8
    u, x = 2 * s - 1, s**2 - s  # from -1 to 1
    found = {v.constraint: v.amount for v in result.between}
    np.testing.assert_allclose(found["x_min"], np.max(-0.1 - x), rtol=1e-6)
    np.testing.assert_allclose(found["path_equality"], np.max(np.abs(u * x)), rtol=1e-6)


def test_multistart_finds_both_optima():
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: 0.1 * u @ u, lambda x: (x[0] ** 2 - 1) ** 2 + 0.1 * x[0],
        horizon=1, x0=[0.0], u_max=3.0,
    )  # fmt: skip
    result = oc.multistart(problem, np.zeros((1, 1)), guesses=12)
    u = np.roots([4.0, 0.0, -3.8, 0.1])
    costs = sorted(0.1 * v**2 + (v**2 - 1) ** 2 + 0.1 * v for v in u)[:2]
    np.testing.assert_allclose(result.optima, costs, rtol=1e-6)
    assert np.sum(result.counts) >= 10  # a guess beside the maximum may stay there
    np.testing.assert_allclose(result.best.cost, costs[0], rtol=1e-7)
    assert jnp.ndim(result.best.cost) == 0
    assert "of 12 converged" in repr(result)
    with pytest.raises(ValueError, match="`guesses` are to be drawn around one guess"):
        oc.multistart(problem, np.zeros((3, 1, 1)), guesses=2)
