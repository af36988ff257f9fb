"""The front door: what it picks, frees, prints and refuses; the reference problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.solvers import METHODS
from optctl.solvers.methods import pick
from optctl.solvers.objective import Objective
from tests import zoo
from tests.oracles import central_difference


@pytest.mark.parametrize(
    ("name", "method"),  # "ilqr" and both of its Hessians in test_ilqr
    [("acrobot_swing_up", "newton_cg"), ("cartpole_push", "newton_cg"), ("cartpole_push", "lbfgs")],
)
def test_acrobot_and_cart_pole_reach_their_known_optimum_from_zero(name, method):
    sol = oc.solve(getattr(oc.problems, name)(), method=method)
    assert sol.converged, sol
    np.testing.assert_allclose(sol.cost, oc.problems.OPTIMAL_COST[name], rtol=1e-8)


def test_swing_up_arrives():
    problem = oc.problems.cartpole_swing_up()
    sol = oc.solve(problem.replace(u_min=None, u_max=None), method="newton_cg")
    np.testing.assert_allclose(sol.cost, oc.problems.OPTIMAL_COST["cartpole_swing_up"], rtol=1e-9)
    np.testing.assert_allclose(sol.xs[-1], [1, np.pi, 0, 0], atol=1e-2)
    assert np.abs(sol.us).max() < 20


def test_solve_picks_and_says_which():
    assert oc.solve(zoo.lq_problem()).method == "lq"
    assert oc.solve(zoo.lq_problem().replace(u_min=-1.0)).method == "interior_point"
    assert oc.solve(zoo.lq_problem().replace(x_max=2.0)).method == "interior_point"
    assert oc.solve(zoo.pendulum_problem()).method == "ilqr"
    assert oc.solve(zoo.pendulum_problem(x0=None)).method == "newton_cg"
    problem, us = zoo.pendulum_problem(), np.zeros((7, 1))
    assert type(pick(Objective(problem, us, problem.x0, problem.params, ("params",)))) is oc.LBFGS


@pytest.mark.big
def test_the_pick_is_the_same_under_jit_grad_and_vmap():
    """By structure: "lq", with derivatives of first and second order, in x0, in a weight, and of a batch."""
    golden = (1 + 5**0.5) / 2
    ones = np.ones((1, 1))
    costs = oc.costs.Quadratic(Q=ones, R=ones), oc.costs.TerminalQuadratic(Q=ones)
    problem = oc.Problem(oc.LinearDynamics(ones, ones), *costs, horizon=60, x0=[1.0])
    picked = []

    def solve(x0):
        sol = oc.solve(problem.replace(x0=x0))
        picked.append(sol.method)
        return sol

    x0 = jnp.array([2.0])
    cost, us = lambda x0: solve(x0).cost, lambda x0: solve(x0).us[0, 0]
    for slope in (jax.grad(cost), jax.jit(jax.grad(cost)), jax.jacfwd(cost)):
        np.testing.assert_allclose(slope(x0), [2 * golden], rtol=1e-9)
    for bend in (jax.hessian(cost), jax.jit(jax.jacrev(jax.grad(cost)))):
        np.testing.assert_allclose(bend(x0), [[golden]], rtol=1e-9)
    np.testing.assert_allclose(jax.jacobian(us)(x0), [1 - golden], rtol=1e-9)
    batch = jnp.arange(1.0, 4.0)[:, None]
    np.testing.assert_allclose(jax.vmap(jax.grad(cost))(batch), golden * batch, rtol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.vmap(us))(batch), (1 - golden) * batch[:, 0], rtol=1e-9)
    assert set(picked) == {"lq"}
    assert oc.solve(problem).method == "lq"


@pytest.mark.big
def test_derivatives_of_a_linear_quadratic_solution_in_its_parameters():
    """The function's own structure: parameters in dynamics and costs, references, against central differences."""
    dynamics = oc.discretize(lambda x, u, t, p: [x[1], u[0] - p["k"] * x[0]], 0.2, nx=2, nu=1)
    cost = lambda x, u, t, p: (x[0] - p["r"][t]) ** 2 + jnp.exp(p["w"]) * u @ u
    params = {"k": jnp.array(1.5), "r": jnp.sin(jnp.arange(6.0)), "w": jnp.array(-0.5)}
    problem = oc.Problem(dynamics, cost, lambda x: x @ x, horizon=6, x0=[1.0, 0.0], params=params)
    score = lambda params: jnp.sum(jnp.sin(oc.solve(problem.replace(params=params)).us))
    assert oc.solve(problem).method == "lq"
    got = jax.grad(score)(params)
    for name, value in params.items():
        one = lambda v, name=name: score({**params, name: jnp.asarray(v)})
        np.testing.assert_allclose(got[name], central_difference(one, value, h=1e-5), rtol=1e-6, atol=1e-8)
        assert np.abs(got[name]).max() > 1e-3


def test_lq_gains_reproduce_the_inputs():
    sol = oc.solve(zoo.lq_problem())
    np.testing.assert_allclose(jnp.einsum("tij,tj->ti", sol.K, sol.xs[:-1]) + sol.k, sol.us, atol=1e-12)
    assert oc.solve(zoo.lq_problem(), method="cg").K is None


def test_cg_needs_no_more_iterations_than_unknowns():
    sol = oc.solve(zoo.lq_problem(), method="cg", tolerance=1e-10)
    assert sol.converged
    assert int(sol.iterations) <= 16


def test_parameters_and_x0_can_be_free_together():
    """Identify stiffness and initial state from a trajectory of the model itself."""
    us = np.sin(np.arange(7))[:, None]
    truth = zoo.pendulum_problem()
    xs = truth.dynamics.rollout([0.4, -0.3], us, zoo.PARAMS)
    problem = oc.Problem(
        truth.dynamics, lambda x, u, t: jnp.sum((x - jnp.asarray(xs)[t]) ** 2), lambda x: jnp.sum((x - xs[-1]) ** 2), horizon=7,
        params={"k": 1.0, "b": 0.5},
    )  # fmt: skip
    for method in ("newton_cg", "lbfgs"):
        sol = oc.solve(problem, us, METHODS[method](max_iterations=300), free=("x0", "params"), tolerance=1e-12)
        np.testing.assert_allclose(sol.x0, [0.4, -0.3], atol=1e-4)
        np.testing.assert_allclose(sol.params["k"], 1.3, atol=1e-3)
        np.testing.assert_array_equal(sol.us, us)


def test_simulator_is_solved_by_first_order_methods_only():
    problem = oc.Problem(
        zoo.kinds()["simulator_vjp"][0], lambda x, u: x @ x + u @ u, lambda x: 5 * x @ x, horizon=7, x0=[1.0, 0.0],
        params=np.array([1.3, 0.2]),
    )  # fmt: skip
    twin = problem.replace(dynamics=zoo.kinds()["function"][0], params=zoo.PARAMS)
    best = oc.solve(twin, method="newton_cg")
    for method in (None, "gradient_descent"):
        sol = oc.solve(problem, method=method)
        assert sol.converged
        np.testing.assert_allclose(sol.cost, best.cost, rtol=1e-8)
    with pytest.raises(ValueError, match="no second derivatives; use method='lbfgs'"):
        oc.solve(problem, method="newton_cg")


def test_armijo_steps_descend():
    sol = oc.solve(zoo.lq_problem(), method=oc.GradientDescent(step="armijo"), tolerance=1e-6)
    assert sol.converged
    assert (np.diff(np.asarray(sol.history.cost)) <= 1e-12).all()


def test_verbose_prints_the_table_and_silence_is_the_default(capsys):
    oc.solve(zoo.pendulum_problem())
    assert capsys.readouterr().out == ""
    sol = oc.solve(zoo.pendulum_problem(), verbose=True)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["iter", "cost", "stationarity", "step", "shift"]
    assert len(printed) == 1 + len(sol.history.cost) + 2


def test_scaling_the_cost_does_not_change_the_verdict():
    """A tiny cost is not called converged because its gradient is tiny."""
    problem = zoo.pendulum_problem()
    base = problem.stage_cost
    tiny = problem.replace(
        stage_cost=lambda x, u, t, p: 1e-9 * base(x, u, t, p), terminal_cost=lambda x: 1e-9 * x @ x, initial_cost=None
    )
    plain = problem.replace(stage_cost=base, terminal_cost=lambda x: x @ x, initial_cost=None)
    small, large = oc.solve(tiny, method="newton_cg"), oc.solve(plain, method="newton_cg")
    np.testing.assert_allclose(small.us, large.us, atol=1e-4)
    assert not oc.solve(tiny, method=oc.NewtonCG(max_iterations=0)).converged


def test_solve_under_jit():
    solve = jax.jit(lambda x0: oc.solve(zoo.pendulum_problem().replace(x0=x0), method="newton_cg"))
    sol = solve(jnp.array([0.4, -0.3]))
    assert sol.converged
    np.testing.assert_allclose(sol.cost, oc.solve(zoo.pendulum_problem()).cost, rtol=1e-10)
    with pytest.raises(ValueError, match="method 'lbfgs' runs on the host"):
        jax.jit(lambda x0: oc.solve(zoo.pendulum_problem().replace(x0=x0), method="lbfgs"))(jnp.zeros(2))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "newton"}, r"`method` is 'newton'; expected one of lq, cg, .* or a record with options: LQ, CG"),
        ({"method": oc.ILQR}, r"expected one of lq, .*Write method=ILQR\(...\), with parentheses"),
        ({"method": "cg"}, "method 'cg' needs a quadratic problem"),
        ({"method": "lq"}, "`dynamics` is not linear"),
        ({"free": "inputs"}, "`free` is .*expected names among"),
        ({"free": "x0"}, "`free` names x0, but the problem fixes it"),
        ({"x0": np.zeros(2)}, "`x0` is given twice"),
        ({"us": np.zeros((3, 1))}, r"`us` has shape \(3, 1\); expected \(7, 1\)"),
        ({"us": np.full((7, 1), np.inf)}, "`us` holds NaN or inf"),
        ({"tolerance": -1.0}, "`tolerance` is -1.0"),
        ({"tolerance": "x"}, "`tolerance` is 'x'"),
        ({"tolerance": True}, "`tolerance` is True"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        oc.solve(zoo.pendulum_problem(), **kwargs)


def test_params_may_be_given_to_solve_alone():
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u, t, q: q["a"] * (x @ x) + u @ u, horizon=3, x0=[1.0]
    )
    a, b = (oc.solve(problem, params={"a": value}) for value in (1.0, 2.0))
    assert a.method == b.method == "lq"
    assert b.cost > a.cost
    assert b.params["a"] == 2.0


def test_bounds_are_compared_with_the_inputs_even_where_nu_is_unknown():
    problem = oc.Problem(oc.Dynamics(lambda x, u: x + u), lambda x, u: u @ u, horizon=2, x0=[1.0], u_min=np.zeros(3))
    with pytest.raises(ValueError, match=r"`u_min` has shape \(3,\); expected \(1,\)"):
        oc.solve(problem, np.zeros((2, 1)))


def test_what_is_not_free_must_be_given():
    problem = zoo.pendulum_problem()
    with pytest.raises(ValueError, match="`us` is neither given nor free"):
        oc.solve(problem, free="params")
    with pytest.raises(ValueError, match="`x0` is neither given nor free"):
        oc.solve(problem.replace(x0=None), np.zeros((7, 1)), free="params")


def tank_problem(root):
    """Two tanks in a row, level tracking; the root has no slope, then no value, where a tank runs empty."""
    f = lambda x, u: [u[0] - 0.5 * root(x[0]), (0.5 * root(x[0]) - 0.4 * root(x[1])) / 1.5]
    r = np.where(np.arange(121) < 40, 1.0, np.where(np.arange(121) < 80, 1.6, 0.8))
    x_ref, Q = np.stack([0 * r, r], 1), np.diag([0.0, 10.0])
    return oc.Problem(
        oc.discretize(f, 0.25, nx=2, nu=1), oc.costs.Tracking(Q, [[0.05]], x_ref=x_ref),
        oc.costs.TerminalQuadratic(Q, x_ref=x_ref[-1]), horizon=120, x0=[0.5, 0.5], u_min=0.0, u_max=1.0,
    )  # fmt: skip


def test_solvers_step_back_from_nan_and_go_on():
    """Steps that leave the domain of a logarithm are halved until they stay inside; the optimum is interior."""
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: 1e-2 * u @ u, lambda x: x[0] - 1e-3 * jnp.log(x[0]), horizon=5,
        x0=[3.0],
    )  # fmt: skip
    best = oc.solve(problem, -0.55 * np.ones((5, 1)), "newton_cg", tolerance=1e-10)
    for method in ("lbfgs", "gradient_descent", "newton_cg"):
        sol = oc.solve(problem, method=method, tolerance=1e-7)
        assert sol.converged, sol
        np.testing.assert_allclose(sol.cost, best.cost, rtol=1e-8)


def test_the_edge_of_the_domain_is_reported():
    """The cost falls towards an empty tank, where the model ends: no solver can go on, and none pretends to."""
    problem = tank_problem(jnp.sqrt)
    for method in ("lbfgs", "gradient_descent"):
        sol = oc.solve(problem, np.full((120, 1), 0.4), METHODS[method](max_iterations=300))
        assert np.isfinite(sol.cost)
        assert not sol.converged
        if method == "lbfgs":  # the other may stop a little before the edge
            assert "keep the model defined outside its domain" in sol.message
    assert "the first guess itself gives inf or NaN" in oc.solve(problem, method="lbfgs").message


def test_a_gradient_of_nothing_but_rounding_certifies_nothing():
    """Costates of 1e17 at an empty tank: first-order conditions hold by sign alone, far from the optimum."""
    sol = oc.solve(tank_problem(lambda h: jnp.sqrt(jnp.maximum(h, 1e-6))))
    assert not sol.converged or sol.cost < 20


def test_nothing_free_is_an_error():
    problem = oc.Problem(oc.Dynamics(lambda x, u: x, 1, 0), lambda x, u: x @ x, horizon=2, x0=[1.0])
    with pytest.raises(ValueError, match="nothing is free"):
        oc.solve(problem)


def test_bounds_of_what_is_fixed_are_refused():
    with pytest.raises(ValueError, match="they bound what is not free"):
        oc.solve(zoo.pendulum_problem(u_min=-1.0), np.zeros((7, 1)), free="params", method="lbfgs")
