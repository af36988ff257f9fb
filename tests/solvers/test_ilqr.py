"""Iterative LQR: known optima, the policy against re-solved problems, bounds against other solvers and a dense QP."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import optctl as oc
from optctl.lq import kkt
from optctl.solvers.boxed import best_policy
from optctl.solvers.ilqr import ilqr
from optctl.solvers.methods import pick
from optctl.solvers.objective import Objective
from tests import zoo
from tests.oracles import check_optimality, random_lq

HESSIANS = ("exact", "gauss_newton")
PENDULUM = oc.discretize(oc.models.Pendulum(), 0.1, "euler")


def swing_problem(**changes):
    """A pendulum to be swung up within 3 s; the motor's limit, where there is one, is below what holding takes."""
    goal = np.array([np.pi, 0.0])
    problem = oc.Problem(
        PENDULUM, oc.costs.Tracking(0.01 * np.eye(2), [[0.01]], x_ref=goal), oc.costs.TerminalQuadratic(50 * np.eye(2), goal),
        horizon=30, x0=np.zeros(2),
    )  # fmt: skip
    return problem.replace(**changes) if changes else problem


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize("name", ["acrobot", "cartpole_push"])
def test_known_optima_are_reached_from_zero(name, hessian):
    known = oc.problems.ZOO[name]()
    sol = oc.solve(known.problem, method=oc.ILQR(hessian=hessian), tolerance=1e-8)
    assert sol.converged, sol
    np.testing.assert_allclose(sol.cost, known.optimum, rtol=1e-8)
    assert "shift" in sol.table().splitlines()[0]


def test_it_equals_other_solvers_on_a_nonlinear_problem():
    problem = zoo.pendulum_problem()
    sol = oc.solve(problem, method="ilqr", tolerance=1e-10)
    check_optimality(problem, sol, tolerance=1e-9)
    for method in ("newton_cg", "interior_point"):
        other = oc.solve(problem, method=method, tolerance=1e-10)
        np.testing.assert_allclose(sol.cost, other.cost, rtol=1e-12)
        np.testing.assert_allclose(sol.us, other.us, atol=1e-7)
        np.testing.assert_allclose(sol.costates, other.costates, atol=1e-7)


def test_gauss_newton_ends_at_the_same_point_and_newton_ends_sooner():
    problem = swing_problem()
    exact, plain = (oc.solve(problem, method=oc.ILQR(hessian=hessian), tolerance=1e-9) for hessian in HESSIANS)
    np.testing.assert_allclose(plain.us, exact.us, atol=1e-5)
    assert int(exact.iterations) < int(plain.iterations)
    marks = np.asarray(exact.history.stationarity)
    assert marks[-1] < 1e3 * marks[-2] ** 2 + 1e-12  # quadratic at the end


@pytest.mark.parametrize("problem", [swing_problem(), swing_problem(u_min=-5.0, u_max=5.0)], ids=["free", "bounded"])
def test_the_policy_predicts_the_optimum_for_another_x0(problem):
    """Along the optima of x_0 + h and x_0 - h the inputs differ by K times the difference of the states."""
    sol = oc.solve(problem, method="ilqr", tolerance=1e-11)
    np.testing.assert_allclose(jnp.einsum("tij,tj->ti", sol.K, sol.xs[:-1]) + sol.k, sol.us, atol=1e-12)
    assert float(sol.history.regularization[-1]) == 0
    for direction in np.eye(2):
        h = 1e-5 * direction
        up, down = (oc.solve(problem.replace(x0=s * h), sol.us, "ilqr", tolerance=1e-11) for s in (1, -1))
        du, dx = (up.us - down.us) / 2e-5, (up.xs - down.xs) / 2e-5
        np.testing.assert_allclose(jnp.einsum("tij,tj->ti", sol.K, dx[:-1]), du, atol=2e-5 * np.abs(dx).max())


@pytest.mark.parametrize("hessian", HESSIANS)
def test_bounded_inputs_and_their_multipliers(hessian):
    problem = swing_problem(u_min=-2.5, u_max=np.linspace(3.0, 4.0, 30)[:, None])
    sol = oc.solve(problem, method=oc.ILQR(hessian=hessian), tolerance=1e-9)
    assert sol.converged, sol
    check_optimality(problem, sol, tolerance=1e-8)
    other = oc.solve(problem, method="interior_point", tolerance=1e-9)
    np.testing.assert_allclose(sol.cost, other.cost, rtol=1e-7)
    np.testing.assert_allclose(sol.us, other.us, atol=1e-4)
    for name in ("u_min", "u_max"):
        assert float(sol.multipliers[name].max()) > 0.03
        np.testing.assert_allclose(sol.multipliers[name], other.multipliers[name], atol=1e-4)
    held = np.asarray(sol.multipliers["u_min"] + sol.multipliers["u_max"])[:, 0] > 1e-3
    assert (np.asarray(sol.K)[held] == 0).all()
    assert (np.asarray(sol.K)[~held] != 0).any(axis=(1, 2)).all()


def test_bounded_inputs_equal_lbfgs():
    problem = zoo.pendulum_problem(u_min=-0.2, u_max=0.1)
    sol, other = (oc.solve(problem, method=method, tolerance=1e-8) for method in ("ilqr", "lbfgs"))
    np.testing.assert_allclose(sol.us, other.us, atol=1e-6)
    np.testing.assert_allclose(sol.multipliers["u_max"], other.multipliers["u_max"], atol=1e-6)


def test_a_bounded_quadratic_problem_takes_one_step_and_equal_bounds_fix_an_input():
    problem = zoo.lq_problem().replace(u_min=np.array([-0.4, 0.2]), u_max=np.array([0.3, 0.2]))
    sol = oc.solve(problem, method="ilqr", tolerance=1e-10)
    assert int(sol.iterations) == 1
    np.testing.assert_array_equal(sol.us[:, 1], 0.2)
    exported = oc.to_cvxpy(problem)
    exported.solve(solver="CLARABEL")
    np.testing.assert_allclose(sol.cost, exported.value, rtol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_policy_within_bounds_is_that_of_a_dense_qp(seed):
    rng = np.random.default_rng(seed)
    lq = random_lq(rng, unstable=1.5).replace(x0=np.zeros(3), c=np.zeros((6, 3)))
    low, high = -rng.uniform(0, 0.3, size=(6, 2)), rng.uniform(0, 0.3, size=(6, 2))

    @jax.jit
    def derivatives(lq):
        def cost(us):
            x, xs = jnp.zeros(3), [jnp.zeros(3)]
            for t in range(6):
                x = lq.A[t] @ x + lq.B[t] @ us[t]
                xs.append(x)
            return kkt.cost(lq, jnp.stack(xs), us)

        return [derivative(cost)(jnp.zeros((6, 2))) for derivative in (jax.hessian, jax.grad)]

    H, g = derivatives(lq)
    L = np.linalg.cholesky(np.asarray(H).reshape(12, 12))
    dense = scipy.optimize.lsq_linear(L.T, -np.linalg.solve(L, g.ravel()), (low.ravel(), high.ravel()), tol=1e-14)
    policy = jax.jit(best_policy)(None, lq, jnp.asarray(0.0), g, low, high)
    np.testing.assert_allclose(policy.dus.ravel(), dense.x, atol=1e-7)
    assert float(policy.shift) == 0
    held = (np.asarray(policy.dus) == low) | (np.asarray(policy.dus) == high)
    assert 0 < held.sum() < 12
    assert (np.asarray(policy.K)[held] == 0).all()


def test_a_batch_equals_a_loop_and_nothing_recompiles():
    problem = swing_problem(u_min=-5.0, u_max=5.0)
    oc.solve(problem, method="ilqr")
    before = ilqr._cache_size()
    x0s = 0.3 * np.random.default_rng(0).normal(size=(3, 2))
    looped = [oc.solve(problem.replace(x0=x0, u_min=-5.5), method="ilqr", tolerance=1e-8) for x0 in x0s]
    assert ilqr._cache_size() == before
    batch = jax.jit(jax.vmap(lambda x0: oc.solve(problem.replace(x0=x0, u_min=-5.5), method="ilqr", tolerance=1e-8)))(
        jnp.asarray(x0s)
    )
    assert batch.converged.all()
    for i, sol in enumerate(looped):
        np.testing.assert_allclose(batch.us[i], sol.us, atol=1e-6)
        np.testing.assert_allclose(batch.K[i], sol.K, atol=1e-4)


def test_single_precision():
    down = lambda a: np.asarray(a, np.float32)
    step = lambda x, u: jnp.stack([x[0] + 0.1 * x[1], x[1] + 0.1 * (u[0] - jnp.sin(x[0]))])
    problem = oc.Problem(
        oc.Dynamics(step, 2, 1), lambda x, u: 0.1 * (x @ x + u @ u), lambda x: x @ x, horizon=10, x0=down([1.0, 0.0]),
        u_min=down(-0.5),
    )  # fmt: skip
    sol = oc.solve(problem, method="ilqr")
    assert sol.converged, sol
    assert {leaf.dtype for leaf in (sol.xs, sol.us, sol.K, sol.k, sol.cost)} == {np.dtype(np.float32)}
    double = oc.solve(problem.replace(x0=np.array([1.0, 0.0]), u_min=-0.5), method="ilqr")
    np.testing.assert_allclose(sol.us, double.us, atol=1e-3)


def test_a_guess_that_runs_away_is_brought_back():
    """The state doubles each step: zero inputs end at 2^60, and their cost, 1e35, is no measure of what is small."""
    problem = oc.Problem(
        oc.Dynamics(lambda x, u: 2 * x + u + 0.1 * jnp.sin(x), 1, 1), lambda x, u: x @ x + u @ u, horizon=60, x0=[1.0]
    )
    sol = oc.solve(problem, method=oc.ILQR(max_iterations=100))
    assert sol.converged, sol
    other = oc.solve(problem, method="interior_point")
    np.testing.assert_allclose(sol.cost, other.cost, rtol=1e-9)
    np.testing.assert_allclose(sol.us, other.us, atol=1e-6)


def test_a_pole_that_falls_is_caught():
    problem = oc.problems.cartpole_balance().replace(x0=np.array([0.3, np.pi + 0.3, 0.0, 0.0]))
    sol = oc.solve(problem, method="ilqr", tolerance=1e-9)
    assert sol.converged, sol
    assert int(sol.iterations) < 10
    np.testing.assert_allclose(sol.cost, oc.solve(problem, method="interior_point").cost, rtol=1e-8)


@pytest.mark.parametrize("changes", [{}, {"u_min": -0.1, "u_max": 0.1}], ids=["free", "bounded"])
def test_one_stage(changes):
    problem = zoo.pendulum_problem(horizon=1, **changes)
    sol = oc.solve(problem, method="ilqr", tolerance=1e-9)
    check_optimality(problem, sol, tolerance=1e-9)
    assert sol.K.shape == (1, 1, 2)


def test_a_cost_that_is_not_convex_is_made_so_and_the_table_of_shifts_tells():
    """At the top of a hill in u neither model is convex; the shift goes once the valley is reached."""
    problem = oc.Problem(
        PENDULUM, lambda x, u: jnp.cos(u[0]) + 0.01 * u @ u + 0.1 * x @ x, lambda x: x @ x, horizon=5, x0=[0.5, 0.1]
    )
    sol = oc.solve(problem, method="ilqr", tolerance=1e-9)
    assert sol.converged, sol
    shifts = np.asarray(sol.history.regularization)
    assert shifts[0] > 0 == shifts[-1]
    eigenvalues = np.linalg.eigvalsh(jax.hessian(lambda us: oc.gradient(problem, us).cost)(sol.us).reshape(5, 5))
    assert eigenvalues.min() > 0


def test_scaling_the_cost_changes_nothing():
    plain = swing_problem()
    tiny = plain.replace(
        stage_cost=lambda x, u: 1e-9 * plain.stage_cost(x, u, 0, None),
        terminal_cost=lambda x: 1e-9 * plain.terminal_cost(x, None),
    )
    a, b = (oc.solve(problem, method="ilqr", tolerance=1e-8) for problem in (plain, tiny))
    assert int(a.iterations) == int(b.iterations)
    np.testing.assert_allclose(a.us, b.us, atol=1e-6)


def test_points_without_a_value_are_not_taken():
    """Steps past the edge of a logarithm are shortened; the optimum lies inside."""
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: 1e-2 * u @ u, lambda x: x[0] - 1e-3 * jnp.log(x[0]), horizon=5,
        x0=[3.0],
    )  # fmt: skip
    sol = oc.solve(problem, method="ilqr", tolerance=1e-8)
    assert sol.converged, sol
    assert np.isfinite(np.asarray(sol.history.cost)).all()
    other = oc.solve(problem, -0.55 * np.ones((5, 1)), "newton_cg", tolerance=1e-10)
    np.testing.assert_allclose(sol.cost, other.cost, rtol=1e-9)


def test_a_slope_that_is_missing_at_a_finite_cost_sends_the_step_back():
    """The root has a value at zero, where the full step leads, but no slope."""
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: 0.5 * u @ u, lambda x: 0.5 * (x[0] + 1) ** 2 + 1e-9 * jnp.sqrt(x[0]),
        horizon=1, x0=[1.0],
    )  # fmt: skip
    sol = oc.solve(problem, method=oc.ILQR(max_iterations=50))
    assert sol.converged, sol
    assert 0 < float(sol.xs[-1, 0]) < 1e-5
    assert (np.asarray(sol.history.step)[1:6] < 1).all()


def test_a_step_with_no_room_left_ends_the_solve():
    sol = oc.solve(swing_problem(), method="ilqr", tolerance=0.0)
    assert "no further decrease" in sol.message
    assert "below what rounding allows" in sol.message
    assert int(sol.iterations) < 100


def test_memory_that_is_to_be_bounded_is_not_spent_unasked():
    problem = zoo.pendulum_problem(memory="sqrt")
    assert oc.solve(problem).method == "newton_cg"
    sol = oc.solve(problem, method="ilqr")
    assert sol.converged
    assert sol.xs is None
    assert sol.K.shape == (7, 1, 2)


@oc.record()
class Kinked(oc.AbstractDynamics):
    """A step in JAX of which the second derivatives say nothing."""

    nx: ClassVar[int] = 1
    nu: ClassVar[int] = 1
    twice_differentiable: ClassVar[bool] = False

    def step(self, x, u, t, params):
        return 0.9 * x + jnp.abs(u)


def test_dynamics_without_second_derivatives_get_gauss_newton():
    problem = oc.Problem(Kinked(), lambda x, u: (x - 1) @ (x - 1) + 0.1 * u @ u, horizon=5, x0=[0.0])
    sol = oc.solve(problem, np.ones((5, 1)), "ilqr")
    assert sol.converged
    with pytest.raises(ValueError, match="`hessian` is 'exact', but Kinked has no second derivatives"):
        oc.solve(problem, method=oc.ILQR(hessian="exact"))


def test_what_it_cannot_take_is_refused_with_a_remedy():
    problem = zoo.pendulum_problem()
    with pytest.raises(ValueError, match=r"solves for us alone.*free is \('us', 'x0'\): use 'interior_point'"):
        oc.solve(problem.replace(x0=None), method="ilqr")
    with pytest.raises(ValueError, match=r"solves for us alone.*'newton_cg' or 'lbfgs'"):
        oc.solve(problem, np.zeros((7, 1)), "ilqr", free=("us", "params"))
    with pytest.raises(ValueError, match=r"cannot take the constraints \['terminal_equality'\].*interior_point"):
        oc.solve(problem.replace(terminal_equality=lambda x: x), method="ilqr")
    with pytest.raises(ValueError, match=r"cannot take the constraints \['x_max'\]"):
        oc.solve(problem.replace(x_max=1.0), method="ilqr")
    with pytest.raises(ValueError, match="they bound what is not free"):
        oc.solve(problem.replace(x0=None, x0_min=-1.0), method="ilqr", free="us", x0=np.zeros(2))
    simulator = oc.Problem(
        zoo.kinds()["simulator_vjp"][0],
        lambda x, u: x @ x + u @ u,
        horizon=7,
        x0=[1.0, 0.0],
        params=np.array([1.3, 0.2]),
    )
    with pytest.raises(ValueError, match="needs a step in JAX; SimulatorDynamics has none: use method='lbfgs'"):
        oc.solve(simulator, method="ilqr")
    with pytest.raises(ValueError, match="`hessian` is 'full'; expected one of 'exact', 'gauss_newton', None"):
        oc.ILQR(hessian="full")


def test_a_given_x0_of_a_problem_that_leaves_it_free():
    problem = zoo.pendulum_problem()
    sol = oc.solve(problem.replace(x0=None), method="ilqr", free="us", x0=problem.x0)
    np.testing.assert_allclose(sol.us, oc.solve(problem, method="ilqr").us, atol=1e-12)


def test_what_it_cannot_take_is_given_to_others():
    problem = zoo.pendulum_problem()
    assert oc.solve(problem).method == "ilqr"
    wide = oc.Problem(
        oc.Dynamics(lambda x, u: 0.9 * jnp.tanh(x) + u, 60, 60), lambda x, u: x @ x + u @ u, horizon=2, x0=np.ones(60)
    )
    assert oc.solve(wide).method == "newton_cg"
    us, x0 = np.zeros((7, 1)), problem.x0
    for free, record in ((("us", "x0"), oc.NewtonCG), (("us", "params"), oc.LBFGS)):
        assert type(pick(Objective(problem.replace(x0=None), us, x0, problem.params, free))) is record
    assert oc.solve(oc.Problem(Kinked(), lambda x, u: u @ u, horizon=2, x0=[0.0])).method == "lbfgs"
    layers, x0, _, weights = zoo.kinds()["layers"]
    deep = oc.Problem(layers, terminal_cost=lambda x: x @ x, horizon=3, x0=x0, params=weights)
    assert type(pick(Objective(deep, None, np.asarray(x0), weights, ("params",)))) is oc.LBFGS


def test_a_size_that_only_the_guess_tells():
    problem = oc.Problem(oc.Dynamics(lambda x, u: jnp.sin(x) + u), lambda x, u: x @ x + u @ u, horizon=4, x0=[1.0, 2.0])
    sol = oc.solve(problem, np.zeros((4, 2)))
    assert sol.method == "ilqr"
    check_optimality(problem, sol, tolerance=1e-6)


TOP = np.array([np.pi, 0.0])
LONG = {
    "pole": oc.Problem(
        oc.discretize(oc.models.Pendulum(), 0.05), oc.costs.Tracking(0.1 * np.eye(2), [[0.01]], x_ref=TOP),
        oc.costs.TerminalQuadratic(10 * np.eye(2), TOP), horizon=600, x0=TOP + np.array([0.3, 0.0]),
    ),
    "doubling": oc.Problem(
        oc.Dynamics(lambda x, u: 2 * x + u + 0.1 * jnp.sin(x), 1, 1), lambda x, u: x @ x + u @ u, horizon=200, x0=[1.0]
    ),
    "logistic": oc.Problem(
        oc.Dynamics(lambda x, u: 3.9 * x * (1 - x) + u, 1, 1), lambda x, u: (x - 0.74) @ (x - 0.74) + u @ u, horizon=80,
        x0=[0.2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_horizons_over_which_rounding_grows_beyond_all_measure(name):
    """The open loop multiplies rounding by up to 1e60: the optimum is certified stage by stage."""
    problem = LONG[name]
    sol = oc.solve(problem)
    assert (sol.method, bool(sol.converged)) == ("ilqr", True), sol
    assert int(sol.iterations) < 60
    assert float(sol.history.regularization[-1]) == 0
    assert float(sol.certificate.primal_feasibility) < 1e-12
    other = oc.solve(problem, method="interior_point", xs=np.asarray(sol.xs) + 1e-3)
    np.testing.assert_allclose(sol.cost, other.cost, rtol=1e-8)
    np.testing.assert_allclose(sol.xs, other.xs, atol=1e-5)
    np.testing.assert_allclose(sol.costates, other.costates, atol=1e-4)


def test_a_certificate_by_stages_is_not_given_away():
    sol = oc.solve(LONG["doubling"], method=oc.ILQR(max_iterations=20))
    assert not sol.converged
    assert "iteration limit" in sol.message
    tight = oc.solve(LONG["doubling"], method=oc.ILQR(max_iterations=100), tolerance=0.0)
    assert not tight.converged
    assert "no further decrease" in tight.message


def test_a_batch_of_unstable_problems_is_certified_by_stages_too():
    problem = LONG["doubling"]
    batch = jax.vmap(lambda x0: oc.solve(problem.replace(x0=x0), method="ilqr"))(jnp.array([[1.0], [-2.0]]))
    assert batch.converged.all()
    np.testing.assert_allclose(batch.cost[0], oc.solve(problem).cost, rtol=1e-10)


def test_states_in_large_units():
    """An orbit raised by 200 km, in meters: a shift in the unit of the thrust would hold the states in place."""
    mu, r0 = 3.986e14, 7e6

    def orbit(x, u):
        return jnp.concatenate([x[2:], -mu * x[:2] / (x[:2] @ x[:2]) ** 1.5 + u])

    problem = oc.Problem(
        oc.discretize(orbit, 10.0, nx=4, nu=2), lambda x, u: 1e2 * u @ u,
        lambda x: 1e-6 * (jnp.sqrt(x[:2] @ x[:2]) - 7.2e6) ** 2, horizon=200, x0=[r0, 0.0, 0.0, np.sqrt(mu / r0)],
    )  # fmt: skip
    sol = oc.solve(problem)
    assert sol.converged, sol
    assert int(sol.iterations) < 30
    np.testing.assert_allclose(sol.cost, 75.5539027, rtol=1e-8)  # by "newton_cg"


@pytest.mark.parametrize("weight", [0.0, 1e-10])
def test_inputs_that_cost_next_to_nothing(weight):
    sol = oc.solve(
        oc.Problem(PENDULUM, lambda x, u: 0.01 * (x - TOP) @ (x - TOP) + weight * u @ u,
                   lambda x: 50 * (x - TOP) @ (x - TOP), horizon=30, x0=np.zeros(2))
    )  # fmt: skip
    assert (sol.method, bool(sol.converged)) == ("ilqr", True), sol


@pytest.mark.parametrize("bound", [{}, {"u_max": 1.0}])
@pytest.mark.parametrize(
    "cost", [lambda x, u: x @ x - np.log(u[0]), lambda x, u: 1 / x[0] + u @ u, lambda x, u: np.sqrt(x[0]) + u @ u]
)
def test_weights_that_are_infinite_end_it(cost, bound):
    """At the guess the curvature is inf: no multiple of the identity is larger."""
    problem = oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), cost, horizon=3, x0=[0.0], **bound)
    for method in ("ilqr", oc.ILQR(hessian="gauss_newton")):
        s = oc.solve(problem, method=method)
        assert s.status == oc.Status.NON_FINITE
