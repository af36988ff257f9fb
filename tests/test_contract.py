"""One contract for all solvers, over a zoo of problems: certified optimum, no recompilation, vmap, float32, refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.solvers import METHODS
from optctl.solvers.cg import conjugate_gradient
from optctl.solvers.descent import gradient_descent
from optctl.solvers.ilqr import ilqr
from optctl.solvers.newton_cg import newton_cg
from tests import zoo
from tests.oracles import check_kkt, check_optimality, dense_kkt

SMOOTH = ("gradient_descent", "lbfgs", "newton_cg", "ilqr", "interior_point")
WITHOUT_CONSTRAINTS = [method for method in METHODS if method != "interior_point"]
PROBLEMS = {
    "lq": (zoo.lq_problem(), tuple(METHODS)),
    "lq_free_x0": (zoo.lq_problem(free_x0=True), tuple(method for method in METHODS if method != "ilqr")),
    "nonlinear": (zoo.pendulum_problem(), SMOOTH),
    "bounded": (zoo.bounded_problem(), ("gradient_descent", "lbfgs", "interior_point")),
    "bounded_inputs": (
        zoo.pendulum_problem(u_min=-0.2, u_max=0.1),
        ("gradient_descent", "lbfgs", "ilqr", "interior_point"),
    ),
}
CASES = [(name, method) for name, (_, methods) in PROBLEMS.items() for method in methods]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_certified_optimum(name, method):
    problem, _ = PROBLEMS[name]
    # A line search that goes by the cost ends where rounding hides its fall: at slopes of sqrt(eps).
    sol = oc.solve(problem, method=method, tolerance=1e-7 if method == "lbfgs" else 1e-8)
    assert sol.converged, sol
    assert sol.method == method
    assert repr(sol).startswith("Converged")
    assert sol.raise_if_failed() is sol
    if method == "interior_point":
        check_optimality(problem, sol, tolerance=1e-7)
    else:
        check_kkt(problem, sol, tolerance=1e-5)
    if method in ("lq", "ilqr"):
        np.testing.assert_allclose(jnp.einsum("tij,tj->ti", sol.K, sol.xs[:-1]) + sol.k, sol.us, atol=1e-12)
    if name.startswith("lq"):
        xs, us, _ = dense_kkt(oc.lq.LQ.from_problem(problem))
        np.testing.assert_allclose(sol.xs, xs, atol=1e-6)
        np.testing.assert_allclose(sol.us, us, atol=1e-6)
    g = oc.gradient(problem, sol.us, x0=sol.x0)
    np.testing.assert_allclose(sol.costates, g.costates, atol=1e-7 if method == "interior_point" else 1e-12)
    np.testing.assert_allclose(sol.cost, g.cost, rtol=1e-10 if method == "interior_point" else 1e-14)
    assert len(sol.history.cost) == int(sol.iterations) + (method != "lq")
    assert np.isfinite(np.asarray(sol.history.cost)).all()


@pytest.mark.parametrize("method", ["lbfgs", "interior_point"])
def test_the_bounded_optimum_equals_cvxpy_and_its_multipliers_are_right(method):
    problem = zoo.bounded_problem()
    exported = oc.to_cvxpy(problem)
    exported.solve(solver="CLARABEL")
    sol = oc.solve(problem, tolerance=1e-9, method=method)
    assert sol.method == method
    np.testing.assert_allclose(sol.cost, exported.value, rtol=1e-7)
    np.testing.assert_allclose(sol.us, exported.var_dict["us"].value, atol=1e-4)
    g = oc.gradient(problem, sol.us, x0=sol.x0)
    mu = sol.multipliers
    assert set(mu) == {"u_min", "u_max", "x0_min", "x0_max"}
    np.testing.assert_allclose(g.us - mu["u_min"] + mu["u_max"], 0, atol=1e-6)
    np.testing.assert_allclose(g.x0 - mu["x0_min"] + mu["x0_max"], 0, atol=1e-6)
    assert max(float(jnp.max(m)) for m in mu.values()) > 0.01
    assert all(float(jnp.min(m)) >= 0 for m in mu.values())
    # A multiplier is the price of its bound.
    h = 1e-4
    lower = [oc.solve(problem.replace(u_min=-0.4 + s), tolerance=1e-10, method=method).cost for s in (h, -h)]
    np.testing.assert_allclose((lower[0] - lower[1]) / (2 * h), jnp.sum(mu["u_min"]), rtol=1e-3)


@pytest.mark.parametrize(
    ("method", "compiled"),
    [
        ("gradient_descent", gradient_descent.by_xla),
        ("cg", conjugate_gradient.by_xla),
        ("newton_cg", newton_cg.by_xla),
        ("ilqr", ilqr),
    ],
)
def test_second_call_does_not_recompile_and_vmap_equals_a_loop(method, compiled):
    problem = zoo.lq_problem()
    oc.solve(problem, method=method)
    before = compiled._cache_size()
    x0s = np.random.default_rng(0).normal(size=(3, 3))
    looped = [oc.solve(problem.replace(x0=x0), method=method) for x0 in x0s]
    assert compiled._cache_size() == before
    batch = jax.vmap(lambda x0: oc.solve(problem.replace(x0=x0), method=method))(jnp.asarray(x0s))
    assert batch.converged.shape == (3,)
    assert repr(batch) == f"Solution batch ({method}): 3 of 3 converged"
    assert batch.message.startswith("3 x solved")
    with pytest.raises(ValueError, match="shows one solution"):
        batch.table()
    assert jax.tree.map(lambda leaf: leaf[0], batch).table().count("\n") == int(batch.iterations[0]) + 1
    for i, sol in enumerate(looped):
        np.testing.assert_allclose(batch.cost[i], sol.cost, rtol=1e-9)
        np.testing.assert_allclose(batch.us[i], sol.us, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_already_optimal_start(method):
    problem = zoo.lq_problem()
    best = oc.solve(problem, method="lq")
    sol = oc.solve(problem, best.us, method=method)
    assert sol.converged
    assert int(sol.iterations) <= 1
    np.testing.assert_allclose(sol.us, best.us, atol=1e-12)


@pytest.mark.parametrize("method", WITHOUT_CONSTRAINTS)
def test_every_method_refuses_what_it_cannot_take(method):
    constrained = zoo.lq_problem().replace(x_max=2.0)
    with pytest.raises(ValueError, match=rf"method '{method}' cannot take the constraints \['x_max'\].*interior_point"):
        oc.solve(constrained, method=method)
    for changes in (
        {"path_inequality": lambda x, u: x},
        {"path_equality": lambda x, u: x},
        {"terminal_inequality": lambda x: x},
        {"terminal_equality": lambda x: x},
    ):
        with pytest.raises(ValueError, match=f"cannot take the constraints \\['{next(iter(changes))}'\\]"):
            oc.solve(zoo.lq_problem().replace(**changes), method=method)
    if method not in ("lbfgs", "gradient_descent", "ilqr"):
        with pytest.raises(
            ValueError, match=r"cannot take the constraints \['u_min'\]: use method='interior_point', 'lbfgs'"
        ):
            oc.solve(zoo.lq_problem().replace(u_min=-1.0), method=method)


@pytest.mark.parametrize("method", ["lbfgs", "newton_cg", "gradient_descent", "ilqr"])
def test_non_finite_values_end_with_the_last_finite_iterate(method):
    """A cost with a cliff into NaN below x = 0.5: the solver steps back or says so, never returns NaN."""
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: u @ u * 1e-3, lambda x: jnp.log(x[0] - 0.5) + 3 * x[0],
        horizon=3, x0=[1.0],
    )  # fmt: skip
    sol = oc.solve(problem, method=METHODS[method](max_iterations=200))
    assert np.isfinite(sol.us).all()
    assert np.isfinite(sol.cost)
    if not sol.converged:
        assert sol.message.split(" ")[0] in ("met", "no", "iteration")
        with pytest.raises(RuntimeError, match=f"{method} did not converge"):
            sol.raise_if_failed()
    hopeless = problem.replace(x0=[0.0])
    sol = oc.solve(hopeless, method=method)
    assert not sol.converged
    assert "the first guess itself gives inf or NaN" in sol.message
    np.testing.assert_array_equal(sol.us, 0)


@pytest.mark.parametrize("method", METHODS)
def test_float32_data_stay_float32(method):
    """Beside 64-bit mode, single precision works and is kept."""
    down = lambda a: np.asarray(a, np.float32)
    problem = zoo.lq_problem()
    linear = problem.dynamics
    single = oc.Problem(
        oc.LinearDynamics(down(linear.A), down(linear.B), down(linear.c)),
        oc.costs.Quadratic(down(np.eye(3)), down(np.eye(2))), horizon=8, x0=down([1.0, -1.0, 0.5]),
    )  # fmt: skip
    sol = oc.solve(single, method=method, tolerance=5e-3)
    assert sol.converged, sol
    assert {leaf.dtype for leaf in (sol.xs, sol.us, sol.costates, sol.cost)} == {np.dtype(np.float32)}
    exact = oc.solve(oc.Problem(linear, oc.costs.Quadratic(np.eye(3), np.eye(2)), horizon=8, x0=problem.x0))
    np.testing.assert_allclose(sol.us, exact.us, atol=2e-2)
    np.testing.assert_allclose(sol.cost, exact.cost, rtol=1e-4)


def test_a_cost_in_double_does_not_break_a_single_precision_solve():
    problem = oc.Problem(
        oc.Dynamics(lambda x, u: x + u, 1, 1), lambda x, u: x @ x + np.float64(2.0) * (u @ u), horizon=3,
        x0=np.ones(1, np.float32),
    )  # fmt: skip
    for method in ("newton_cg", "gradient_descent", "lbfgs", "ilqr"):
        assert oc.solve(problem, method=method).converged


def test_mixed_precision_of_the_model_is_named():
    with pytest.raises(ValueError, match="`f` returns float64 for a float32 state"):
        oc.Problem(oc.LinearDynamics(np.eye(1), np.eye(1)), horizon=3, x0=np.ones(1, np.float32))


@pytest.mark.parametrize("method", ["newton_cg", "lbfgs", "gradient_descent", "ilqr"])
def test_a_cost_that_falls_without_bound_is_called_so(method):
    problem = oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: x @ x - 10 * u @ u, horizon=3, x0=[1.0])
    sol = oc.solve(problem, 0.1 * np.ones((3, 1)), method=method)
    assert not sol.converged
    assert "falls without bound" in sol.message or "met inf or NaN" in sol.message


LEVEL = oc.LinearDynamics([[1.0]], [[1.0]])
SADDLES = {
    "x0": oc.Problem(LEVEL, lambda x, u: x @ x + u @ u, initial_cost=lambda x: -10 * (x - 1) @ (x - 1), horizon=3),
    "us": oc.Problem(LEVEL, lambda x, u: x @ x - 5 * u @ u, horizon=3, x0=[0.0]),
    "one_input": oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0, 0.0]]), lambda x, u: x @ x + u[0] ** 2 - u[1] ** 2, lambda x: x @ x, horizon=3,
        x0=[1.0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SADDLES)
@pytest.mark.parametrize("method", [None, "lq", "cg"])
def test_a_saddle_of_a_quadratic_is_not_called_solved(name, method):
    """Negative curvature that the gradient does not see: in a free x_0, at the stationary point, in an idle input."""
    sol = oc.solve(SADDLES[name], method=method)
    assert not sol.converged
    assert "not strictly convex" in sol.message


def test_a_free_x0_that_is_partly_unseen_is_solved():
    problem = oc.Problem(oc.LinearDynamics(np.eye(2), np.eye(2)), lambda x, u: u @ u + (x[0] - 1) ** 2, horizon=3)
    sol = oc.solve(problem, free=("us", "x0"))
    assert sol.converged
    np.testing.assert_allclose(sol.xs[0, 0], 1.0, atol=1e-6)


def test_a_constant_in_the_cost_does_not_fake_convergence():
    pendulum = oc.discretize(oc.models.Pendulum(), 0.05)
    problem = oc.Problem(pendulum, lambda x, u: 1e6 + (u[0] - 1) ** 2, horizon=5, x0=[0.0, 0.0])
    for method in ("newton_cg", "lbfgs", "gradient_descent", "ilqr"):
        sol = oc.solve(problem, method=method)
        np.testing.assert_allclose(sol.us, 1.0, atol=1e-2)


def test_convex_but_not_strictly_so_falls_back_to_cg():
    problem = oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: x @ x, horizon=3, x0=[1.0])
    sol = oc.solve(problem)
    assert sol.method == "cg"
    assert sol.converged
    np.testing.assert_allclose(sol.cost, 1.0, rtol=1e-12)
    assert "give every input a small R > 0" in oc.solve(problem, method="lq").message


def test_iteration_limit_is_reported():
    for method in ("gradient_descent", "lbfgs", "newton_cg", "ilqr"):
        sol = oc.solve(zoo.pendulum_problem(), method=METHODS[method](max_iterations=1), tolerance=1e-12)
        assert not sol.converged
        assert "iteration limit" in sol.message
        assert int(sol.iterations) == 1
    assert int(oc.solve(zoo.pendulum_problem(), method=oc.LBFGS(max_iterations=0)).iterations) == 0


def test_concave_problems_are_not_called_solved():
    concave = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: -(u @ u), lambda x: -(x @ x), horizon=3, x0=[1.0]
    )
    for method in ("cg", "lq"):
        sol = oc.solve(concave, 0.1 * np.ones((3, 1)), method=method)
        assert not sol.converged
        assert "not strictly convex" in sol.message
