"""The engine by compiled code against its definition in JAX: every kind of dynamics, first and second derivatives."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl import _native
from optctl.adjoint.gradient import _gradient, _product
from optctl.engine import graphs, native
from optctl.solvers.ilqr import ilqr, natively
from optctl.solvers.objective import Objective
from tests import zoo

pytestmark = pytest.mark.skipif(not _native.available(), reason="the engine is run by the compiled kernels")
KINDS = ("function", "linear", "linear_staged", "closed_loop", "mesh")


def problem_of(name):
    dynamics, x0, us, params = zoo.kinds()[name]
    cost = lambda x, u, t: jnp.sum(jnp.sin(x + 0.1 * t)) + jnp.sum(u**2 * (1 + x[0] ** 2))
    return oc.Problem(
        dynamics,
        cost,
        lambda x: jnp.sum(x**2) + jnp.prod(x),
        horizon=7,
        x0=x0,
        params=params,
        initial_cost=lambda x: jnp.cos(x[0]),
        path_inequality=lambda x, u, t: x[:1] - 3.0 + 0.0 * jnp.sum(u),
    ), us


def close(a, b, rtol=1e-11):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        scale = np.abs(y).max(initial=1.0)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", KINDS)
def test_gradient_is_the_definitions(name):
    problem, us = problem_of(name)
    engine = native.find_engine(problem, us, problem.x0, problem.params)
    assert engine is not None
    got = oc.gradient(problem, us)
    assert isinstance(got.xs, np.ndarray)
    close(got, _gradient(problem, jnp.asarray(us), jnp.asarray(problem.x0), problem.params))


@pytest.mark.parametrize("name", ["linear", "mesh"])
def test_hessian_products_are_the_definitions(name, rng):
    problem, us = problem_of(name)
    dus, dx0 = rng.normal(size=us.shape), rng.normal(size=problem.x0.shape)
    got = oc.hessian_vector_product(problem, us, dus=dus, dx0=dx0)
    assert isinstance(got.xs, np.ndarray)
    at = jnp.asarray(us), jnp.asarray(problem.x0), None
    close(got, _product(problem, at, (jnp.asarray(dus), jnp.asarray(dx0), None)), rtol=1e-10)


@pytest.mark.parametrize("method", ["ilqr", "newton_cg", "gradient_descent", "lbfgs"])
def test_solvers_come_to_the_same_iterates_on_both_kinds_of_arrays(method, monkeypatch):
    problem = oc.Problem(
        oc.discretize(oc.models.Pendulum(), 0.05),
        lambda x, u: 0.05 * (x @ x + 0.1 * u @ u),
        lambda x: 10 * x @ x,
        horizon=30,
        x0=[2.0, 0.0],
        u_max=20.0 if method != "newton_cg" else None,
    )
    few = {"ilqr": oc.ILQR, "newton_cg": oc.NewtonCG, "gradient_descent": oc.GradientDescent, "lbfgs": oc.LBFGS}[method]
    here = oc.solve(problem, method=few(max_iterations=4))
    assert isinstance(here.us, np.ndarray)
    monkeypatch.setattr(sys.modules["optctl.solvers.solve"], "find_engine", lambda *_, **__: None)
    there = oc.solve(problem, method=few(max_iterations=4))
    assert isinstance(there.us, jax.Array)
    np.testing.assert_allclose(here.us, there.us, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(here.history.cost, there.history.cost, rtol=1e-10)
    np.testing.assert_allclose(here.history.stationarity, there.history.stationarity, rtol=1e-6)
    for figure in ("stationarity", "stationarity_scaled"):
        np.testing.assert_allclose(getattr(here.certificate, figure), getattr(there.certificate, figure), rtol=1e-6)
    assert (here.status, here.iterations) == (there.status, there.iterations)


CURVED = {  # not convex at the guess, bounded, unstable, linear, and with a cost that falls without bound
    "acrobot": (lambda: oc.problems.ZOO["acrobot"]().problem, 12),
    "bounded": (lambda: oc.problems.ZOO["acrobot"]().problem.replace(u_min=-5.0, u_max=5.0), 12),
    "cart-pole": (lambda: oc.problems.ZOO["cartpole_push"]().problem, 30),
    "bottomless": (
        lambda: oc.Problem(
            oc.Dynamics(lambda x, u: 1.5 * x + u, nx=1, nu=1), lambda x, u: -x @ x, horizon=8, x0=[1.0]
        ),
        30,
    ),
    "broken": (
        lambda: oc.Problem(
            oc.Dynamics(lambda x, u: jnp.sqrt(x) + u, nx=1, nu=1), lambda x, u: (x + 3) @ (x + 3) + u @ u,
            lambda x: 100 * jnp.log(x[0]), horizon=8, x0=[0.5],
        ),
        6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", CURVED)
def test_iterative_lqr_in_compiled_code_is_the_definition(name, exact):
    make, limit = CURVED[name]
    problem = make()
    us = jnp.full((problem.horizon, 1), 0.1)
    there = Objective(problem, us, jnp.asarray(problem.x0), None, ("us",))
    here = Objective(problem, np.asarray(us), np.asarray(problem.x0), None, ("us",))
    want = ilqr(there, us, tolerance=1e-6, max_iterations=limit, exact=exact)
    got = natively(here, tolerance=1e-6, max_iterations=limit, exact=exact)
    assert (int(got.status), int(got.iterations)) == (int(want.status), int(want.iterations))
    n = int(got.iterations) + 1
    assert n > 1
    for field in ("xs", "us", "K", "k", "costates", "z", "cost"):
        values = [getattr(of, field, None) for of in (got, want)]
        if values[0] is not None:
            size = np.max(np.abs(values[1]))
            np.testing.assert_allclose(values[0], values[1], rtol=1e-8, atol=1e-8 * size, err_msg=field)
    for field in ("cost", "step", "regularization"):
        a, b = (np.asarray(getattr(of.history, field)) for of in (got, want))
        np.testing.assert_allclose(a[:n], b[:n], rtol=1e-9, err_msg=field)
        assert np.isnan(a[n:]).all()


def test_the_engine_of_a_problem_reads_numbers_that_change():
    """Parameters of another call, and arrays that somebody writes to, are read anew; the engine stays."""
    scale, weight = np.array([2.0]), np.ones((1, 1))

    @oc.record()
    class Drive:
        gain: Any

        def __call__(self, x, u):
            return x + self.gain * u

    problem = oc.Problem(
        oc.Dynamics(Drive(scale), nx=1, nu=1), lambda x, u, t, p: p * x @ weight @ x, horizon=2, x0=[1.0], params=3.0
    )
    us = np.full((2, 1), 0.5)
    cost = lambda gain, p: p * (1 + (1 + 0.5 * gain) ** 2)
    for _ in range(2):
        np.testing.assert_allclose(oc.gradient(problem, us).cost, cost(2, 3), rtol=1e-15)
        np.testing.assert_allclose(oc.gradient(problem, us, params=5.0).cost, cost(2, 5), rtol=1e-15)
    assert problem.dynamics.f.call.gain is scale
    scale[0] = 4.0
    np.testing.assert_allclose(oc.gradient(problem, us).cost, cost(4, 3), rtol=1e-15)


def test_a_wrong_tape_is_not_used(monkeypatch, recwarn):
    problem, us = problem_of("mesh")
    graphs._GRAPHS.clear()
    tape = graphs.Place.tape

    def wrong(self, kind):
        made = tape(self, kind)
        if kind != "slopes" or not self.staged:
            return made
        return dataclasses.replace(made, constants=made.constants * (1 + 1e-3))

    monkeypatch.setattr(graphs.Place, "tape", wrong)
    assert native.find_engine(problem, us, problem.x0, None) is None
    graphs._GRAPHS.clear()


def test_parameters_that_an_index_picks_are_left_to_jax():
    problem = oc.Problem(
        oc.Dynamics(lambda x, u, t, p: x + u * p[t], nx=1, nu=1),
        lambda x, u: x @ x,
        horizon=3,
        x0=[1.0],
        params=np.array([0.5, 0.7, 0.9]),
    )
    us = np.full((3, 1), 0.1)
    assert native.find_engine(problem, us, problem.x0, problem.params) is None
    g = oc.gradient(problem, us)
    step = 1e-6 * np.eye(3)
    cost = lambda p: float(oc.gradient(problem.replace(params=p), us).cost)
    want = [(cost(problem.params + h) - cost(problem.params - h)) / 2e-6 for h in step]
    np.testing.assert_allclose(g.params, want, rtol=1e-6, atol=1e-9)
