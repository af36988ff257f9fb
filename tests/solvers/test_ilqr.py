"""Iterative LQR: known optima, bounds, gains, batches, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.solvers.ilqr import ilqr
from tests import zoo


@pytest.mark.parametrize("hessian", ["exact", "gauss_newton"])
@pytest.mark.parametrize("name", ["acrobot", "cartpole_push"])
def test_known_optimum(name, hessian):
    known = oc.problems.ZOO[name]()
    sol = oc.solve(known.problem, method=oc.ILQR(hessian=hessian), tolerance=1e-8)
    assert sol.converged, sol
    assert sol.method == "ilqr"
    np.testing.assert_allclose(sol.cost, known.optimum, rtol=1e-8)
    np.testing.assert_allclose(jnp.einsum("tij,tj->ti", sol.K, sol.xs[:-1]) + sol.k, sol.us, atol=1e-10)
    assert "shift" in sol.table().splitlines()[0]


def test_it_agrees_with_other_methods_and_its_gains_are_sensitivities():
    problem = zoo.pendulum_problem()
    sol = oc.solve(problem, method="ilqr", tolerance=1e-10)
    other = oc.solve(problem, method="newton_cg", tolerance=1e-10)
    np.testing.assert_allclose(sol.us, other.us, atol=1e-6)
    np.testing.assert_allclose(sol.costates, other.costates, atol=1e-6)
    h, slopes = 1e-5, []
    for e in np.eye(2):
        up, down = (
            oc.solve(problem.replace(x0=problem.x0 + s * h * e), sol.us, "ilqr", tolerance=1e-12).us[0] for s in (1, -1)
        )
        slopes.append((up - down) / (2 * h))
    np.testing.assert_allclose(sol.K[0], np.stack(slopes, axis=1), rtol=1e-4, atol=1e-5)


def test_bounds_on_inputs_and_their_multipliers():
    problem = zoo.pendulum_problem().replace(u_min=-0.5, u_max=np.array([0.12]))
    sol = oc.solve(problem, method="ilqr", tolerance=1e-9)
    other = oc.solve(problem, method="interior_point", tolerance=1e-10)
    assert sol.converged, sol
    assert np.sum(np.asarray(sol.us) >= 0.12) >= 2
    np.testing.assert_allclose(sol.us, other.us, atol=1e-6)
    for name in ("u_min", "u_max"):
        np.testing.assert_allclose(sol.multipliers[name], other.multipliers[name], atol=1e-6)
    held = np.flatnonzero(np.asarray(sol.multipliers["u_max"])[:, 0] > 1e-6)
    np.testing.assert_array_equal(np.asarray(sol.K)[held], 0)


def test_batches_second_calls_and_single_precision():
    problem = zoo.pendulum_problem(params=zoo.PARAMS)
    oc.solve(problem, method="ilqr")
    before = ilqr._cache_size()
    x0s = np.random.default_rng(0).normal(size=(3, 2))
    looped = [oc.solve(problem.replace(x0=x0), method="ilqr") for x0 in x0s]
    assert ilqr._cache_size() == before
    batch = jax.vmap(lambda x0: oc.solve(problem.replace(x0=x0), method="ilqr"))(jnp.asarray(x0s))
    np.testing.assert_allclose(batch.cost, [sol.cost for sol in looped], rtol=1e-9)
    down = lambda a: np.asarray(a, np.float32)
    single = oc.Problem(
        oc.discretize(oc.models.Pendulum(), down(0.1)), lambda x, u: 0.1 * (x @ x + u @ u), lambda x: x @ x, horizon=1,
        x0=down([1.0, 0.5]),
    )  # fmt: skip
    sol = oc.solve(single, method="ilqr")
    assert sol.converged
    assert sol.us.dtype == np.float32


def test_what_it_cannot_take_is_named():
    problem = zoo.pendulum_problem()
    for changes in ({"x_max": 1.0}, {"terminal_equality": lambda x: x}):
        with pytest.raises(ValueError, match="method 'ilqr' cannot take the constraints"):
            oc.solve(problem.replace(**changes), method="ilqr")
    with pytest.raises(ValueError, match="solves for us alone"):
        oc.solve(problem.replace(x0=None), method="ilqr", x0=np.zeros(2))
    with pytest.raises(ValueError, match="`hessian` is 'bfgs'"):
        oc.ILQR(hessian="bfgs")
    simulator = oc.SimulatorDynamics(zoo.sim_step, 2, 1, vjp=zoo.sim_vjp)
    with pytest.raises(ValueError, match="needs a step in JAX"):
        oc.solve(oc.Problem(simulator, lambda x, u: u @ u, horizon=3, x0=[1.0, 0.0], params=np.ones(2)), method="ilqr")
