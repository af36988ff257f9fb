"""The linear-quadratic room against dense KKT, cvxpy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import optctl as oc
from tests import zoo
from tests.oracles import dense_kkt, random_lq


@pytest.mark.parametrize("free_x0", [False, True])
@pytest.mark.parametrize(("N", "nx", "nu"), [(6, 3, 2), (1, 2, 1), (12, 1, 3), (5, 6, 1)])
def test_riccati_equals_dense_kkt(N, nx, nu, free_x0, rng):
    for unstable in (0.8, 2.0):
        lq = random_lq(rng, N, nx, nu, free_x0=free_x0, unstable=unstable)
        sol = oc.lq.solve(lq)
        xs, us, multipliers = dense_kkt(lq)
        scale = 1 + np.abs(xs).max()
        np.testing.assert_allclose(sol.xs / scale, xs / scale, atol=1e-10)
        np.testing.assert_allclose(sol.us, us, rtol=1e-8, atol=1e-10 * scale)
        np.testing.assert_allclose(sol.costates[1:], multipliers, rtol=1e-7, atol=1e-9 * scale)
        assert sol.failed_stage == -1


def test_lqr_equals_cvxpy_and_dense_kkt_with_every_term(rng):
    N, nx, nu = 9, 3, 2
    lq = random_lq(rng, N, nx, nu)
    sol = oc.lqr(lq.A, lq.B, lq.Q, lq.R, Qf=lq.Qf, M=lq.M, q=lq.q, r=lq.r, qf=lq.qf, c=lq.c, x0=lq.x0)
    xs, us, _ = dense_kkt(lq)
    np.testing.assert_allclose(sol.xs, xs, atol=1e-10)
    np.testing.assert_allclose(sol.us, us, atol=1e-10)
    problem = oc.Problem(
        oc.LinearDynamics(lq.A, lq.B, lq.c), oc.costs.Quadratic(lq.Q, lq.R, lq.M, lq.q, lq.r),
        lambda x: 0.5 * x @ lq.Qf @ x + lq.qf @ x, x0=lq.x0,
    )  # fmt: skip
    exported = oc.to_cvxpy(problem)
    exported.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    np.testing.assert_allclose(sol.cost, exported.value, rtol=1e-7)
    np.testing.assert_allclose(sol.us, exported.var_dict["us"].value, atol=1e-7)


def test_costates_are_P_x_at_the_optimum_and_from_the_engine():
    A, B = [[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]]
    Q, R = np.diag([1.0, 0.2]), np.array([[0.5]])
    sol = oc.lqr(A, B, Q, R, x0=[1.0, -1.0], horizon=15)
    np.testing.assert_allclose(sol.costates, np.einsum("tij,tj->ti", sol.P, sol.xs), atol=1e-13)
    problem = oc.Problem(
        oc.LinearDynamics(A, B), oc.costs.Quadratic(Q, R), oc.costs.TerminalQuadratic(Q), horizon=15, x0=[1.0, -1.0]
    )
    g = oc.gradient(problem, sol.us)
    np.testing.assert_allclose(g.us, 0, atol=1e-13)
    np.testing.assert_allclose(g.costates, sol.costates, atol=1e-12)
    np.testing.assert_allclose(g.cost, sol.cost, rtol=1e-13)
    np.testing.assert_allclose(sol.cost, 0.5 * sol.xs[0] @ sol.P[0] @ sol.xs[0], rtol=1e-13)


def test_tracking_equals_the_tracking_cost(rng):
    A, B = rng.normal(size=(2, 2)) / 2, rng.normal(size=(2, 1))
    Q, R, Qf = np.eye(2), np.eye(1), 3 * np.eye(2)
    x_ref, u_ref = rng.normal(size=(7, 2)), rng.normal(size=(6, 1))
    sol = oc.lqr(A, B, Q, R, Qf=Qf, x0=[0.0, 1.0], x_ref=x_ref, u_ref=u_ref)
    problem = oc.Problem(
        oc.LinearDynamics(A, B), oc.costs.Tracking(Q, R, x_ref, u_ref), oc.costs.TerminalQuadratic(Qf, x_ref[-1]),
        horizon=6, x0=[0.0, 1.0],
    )  # fmt: skip
    g = oc.gradient(problem, sol.us)
    np.testing.assert_allclose(g.us, 0, atol=1e-13)
    np.testing.assert_allclose(g.cost, sol.cost, rtol=1e-13)


def test_long_horizon_reaches_the_stationary_gain_and_derivative_is_right():
    K, P = oc.dlqr([[1.0]], [[1.0]], [[1.0]], [[1.0]])
    sol = oc.lqr([[1.0]], [[1.0]], [[1.0]], [[1.0]], horizon=60)
    assert sol.xs is None
    assert sol.cost is None
    np.testing.assert_allclose(sol.K[0], K, rtol=1e-12)
    np.testing.assert_allclose(sol.P[0], P, rtol=1e-12)
    np.testing.assert_allclose(P[0, 0], (1 + 5**0.5) / 2, rtol=1e-14)

    def cost(q):
        Q = jnp.array([[1.0]]) * q
        return oc.lqr(np.eye(1), np.eye(1), Q, np.eye(1), x0=np.ones(1), horizon=5).cost

    h = 1e-5
    np.testing.assert_allclose(jax.grad(cost)(1.0), (cost(1 + h) - cost(1 - h)) / (2 * h), rtol=1e-8)


@pytest.mark.parametrize("size", [(1, 1), (4, 2), (12, 4), (6, 6)])
def test_dare_equals_scipy(size, rng):
    nx, nu = size
    A, B = 1.2 * rng.normal(size=(nx, nx)) / np.sqrt(nx), rng.normal(size=(nx, nu))
    F = rng.normal(size=(nx + nu, nx + nu))
    H = F @ F.T + 0.1 * np.eye(nx + nu)
    Q, R, M = H[:nx, :nx], H[nx:, nx:], H[:nx, nx:]
    want = scipy.linalg.solve_discrete_are(A, B, Q, R, s=M)
    np.testing.assert_allclose(oc.dare(A, B, Q, R, M), want, rtol=1e-8)
    K, P = oc.dlqr(A, B, Q, R, M)
    np.testing.assert_allclose(K, -np.linalg.solve(R + B.T @ P @ B, M.T + B.T @ P @ A), atol=1e-10)
    assert np.abs(np.linalg.eigvals(A + B @ K)).max() < 1


def test_kalman_gain_is_the_lqr_gain_of_the_dual_system():
    """The steady-state gain of MATLAB's `kalman` example."""
    A = np.array([[1.1269, -0.4940, 0.1129], [1, 0, 0], [0, 1, 0]])
    G, C = np.array([[-0.3832], [0.5919], [0.5191]]), np.array([[1.0, 0, 0]])
    P = oc.dare(A.T, C.T, 2.3 * G @ G.T, np.eye(1))
    gain = P @ C.T / (C @ P @ C.T + 1.0)
    np.testing.assert_allclose(gain[:, 0], [0.53453754, 0.01013319, -0.47756789], atol=5e-9)


@pytest.mark.parametrize(("A", "Q"), [(np.diag([0.5, 1.5]), np.diag([1.0, 1.0])), ([[1.0]], [[0.0]])])
def test_dare_says_when_there_is_no_stabilizing_solution(A, Q):
    B = np.ones((1, 1)) if np.shape(A) == (1, 1) else np.array([[1.0], [0.0]])
    with pytest.raises(ValueError, match="no stabilizing solution"):
        oc.dare(A, B, Q, [[1.0]])


def test_dare_stabilizes_a_mode_that_the_cost_does_not_see():
    K, P = oc.dlqr([[2.0]], [[1.0]], [[0.0]], [[1.0]])
    np.testing.assert_allclose([P[0, 0], K[0, 0]], [3.0, -1.5], rtol=1e-12)


def test_indefinite_model_reports_its_stage(rng):
    lq = random_lq(rng, 6, 3, 2)
    R = np.array(lq.R)
    R[2] = -50 * np.eye(2)
    sol = oc.lq.solve(oc.lq.LQ(**{**vars(lq), "R": R}))
    assert sol.failed_stage == 2
    assert "not positive definite at stage 2" in repr(sol)


@pytest.mark.parametrize("method", ["native", "scan", "parallel", "cg"])
def test_a_model_without_inputs(method):
    """x+ = 0.9 x: a given start, and a free one, with derivatives of first and second order."""
    A, P = 0.9 * np.eye(2), sum(0.81**t for t in range(6)) * np.eye(2)
    lq = oc.lq.LQ(A, np.zeros((2, 0)), Q=np.eye(2), R=np.zeros((0, 0)), Qf=np.eye(2), x0=[1.0, -2.0], horizon=5)
    sol = oc.lq.solve(lq, method)
    assert sol.us.shape == (5, 0)
    np.testing.assert_allclose(sol.xs[-1], 0.9**5 * np.array([1, -2]), rtol=1e-12)
    np.testing.assert_allclose(sol.cost, 2.5 * P[0, 0], rtol=1e-12)
    cost = lambda x0: oc.lq.solve(lq.replace(x0=x0), method).cost
    np.testing.assert_allclose(jax.grad(cost)(lq.x0), P @ lq.x0, rtol=1e-12)
    if method in ("native", "scan"):  # the rule of the others is the same
        np.testing.assert_allclose(jax.hessian(cost)(lq.x0), P, rtol=1e-12, atol=1e-12)
    free = oc.lq.solve(lq.replace(x0=None, Q0=np.eye(2), q0=np.array([1.0, 0.5])), method)
    np.testing.assert_allclose(free.xs[0], -np.array([1, 0.5]) / (1 + P[0, 0]), rtol=1e-12)


@pytest.mark.parametrize("method", ["native", "scan", "cg"])
def test_inputs_that_cost_nothing(method, rng):
    """R = 0, or of rank one, with R + B'P B > 0: against the dense system, with derivatives in every leaf."""
    lq = random_lq(rng, 6, 3, 2)
    for R in (np.zeros((2, 2)), np.array([[1.0, 2.0], [2.0, 4.0]])):
        lq = lq.replace(R=jnp.asarray(R), M=0.1 * lq.M)
        sol = oc.lqr(lq.A, lq.B, lq.Q, R, Qf=lq.Qf, M=lq.M, q=lq.q, r=lq.r, qf=lq.qf, c=lq.c, x0=lq.x0, method=method)
        xs, us, _ = dense_kkt(lq)
        assert sol.failed_stage == -1
        np.testing.assert_allclose(sol.xs, xs, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(sol.us, us, rtol=1e-7, atol=1e-7 * np.abs(us).max())
    along = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), lq).symmetrized()
    cost = lambda lq: oc.lq.solve(lq, method).cost
    slope = jax.jvp(cost, (lq,), (along,))[1]
    h = 1e-6
    up, down = (float(cost(jax.tree.map(lambda a, b: a + s * h * b, lq, along))) for s in (1, -1))  # noqa: B023
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-5)


def test_an_input_that_neither_costs_nor_moves_anything_is_reported():
    sol = oc.lqr(EYE, np.zeros((2, 1)), EYE, [[0.0]], x0=[1.0, 0.0], horizon=3)
    assert sol.failed_stage == 2
    with pytest.raises(RuntimeError, match="R \\+ B'PB not positive definite at stage 2"):
        sol.raise_if_failed()


def test_marginal_covariances_are_blocks_of_the_inverse_hessian(rng):
    """Free x_0: covariances of the states = J H^{-1} J' with H the dense Hessian in (x_0, u)."""
    lq = random_lq(rng, 4, 2, 2, free_x0=True)
    got = oc.lq.covariances(lq, oc.lq.solve(lq))
    N, nx, nu = 4, 2, 2

    @jax.jit
    def states(z):
        xs = [z[:nx]]
        for t in range(N):
            xs.append(lq.A[t] @ xs[t] + lq.B[t] @ z[nx + t * nu : nx + (t + 1) * nu] + lq.c[t])
        return jnp.stack(xs)

    def cost(z):
        from optctl.lq.kkt import cost

        return cost(lq, states(z), z[nx:].reshape(N, nu))

    z = jnp.zeros(nx + N * nu)
    cov, J = np.linalg.inv(jax.jit(jax.hessian(cost))(z)), jax.jit(jax.jacfwd(states))(z)
    np.testing.assert_allclose(got, np.einsum("tia,ab,tjb->tij", J, cov, J), rtol=1e-8, atol=1e-10)


def test_from_problem_reads_every_term_and_finds_what_is_not_quadratic():
    problem = zoo.lq_problem(free_x0=True)
    lq = oc.lq.LQ.from_problem(problem)
    np.testing.assert_allclose(lq.Qf, 2 * np.eye(3), atol=1e-13)
    np.testing.assert_allclose(lq.qf, -2 * np.ones(3), atol=1e-13)
    np.testing.assert_allclose(lq.M[0], problem.stage_cost.call.M, atol=1e-13)
    assert oc.lq.is_linear_quadratic(problem)
    for changes, name in [
        ({"terminal_cost": lambda x: jnp.sum(x**4)}, "terminal_cost"),
        ({"stage_cost": lambda x, u: jnp.sum(oc.costs.Huber(1e4)(x)) + u @ u}, "stage_cost"),
        ({"initial_cost": lambda x: jnp.sum(jnp.abs(x)) + x @ x}, "initial_cost"),
    ]:
        changed = problem.replace(**changes)
        assert not oc.lq.is_linear_quadratic(changed)
        with pytest.raises(ValueError, match=f"`{name}` is not quadratic"):
            oc.lq.LQ.from_problem(changed)
    with pytest.raises(
        ValueError, match=r"`dynamics` is not linear \(it takes `sin` of .*; expected a linear-quadratic problem"
    ):
        oc.lq.LQ.from_problem(zoo.pendulum_problem())


@pytest.mark.parametrize("method", ["rk4", "trapezoid"])
def test_a_linear_ode_by_any_scheme_is_linear_quadratic(method):
    oscillator = oc.discretize(lambda x, u: [x[1], u[0] - x[0]], 0.1, method, nx=2, nu=1)
    problem = oc.Problem(oscillator, lambda x, u: x @ x + u @ u, horizon=10, x0=[1.0, 0.0])
    sol = oc.solve(problem, method="lq")
    assert sol.converged
    np.testing.assert_allclose(oc.gradient(problem, sol.us).us, 0, atol=1e-12)


def test_to_cvxpy_with_all_constraints_satisfies_them():
    problem = zoo.lq_problem().replace(
        u_min=-0.5, u_max=np.array([0.4, np.inf]), x_max=np.array([np.inf, 0.9, np.inf]),
        path_inequality=lambda x, u: jnp.array([u[0] + u[1] - 0.6]), terminal_equality=lambda x: x[:1] - 0.5,
    )  # fmt: skip
    exported = oc.to_cvxpy(problem)
    exported.solve()
    xs, us = exported.var_dict["xs"].value, exported.var_dict["us"].value
    np.testing.assert_allclose(problem.dynamics.rollout(problem.x0, us), xs, atol=1e-6)
    assert us.min() >= -0.5 - 1e-6
    assert us[:, 0].max() <= 0.4 + 1e-6
    assert (us.sum(axis=1) <= 0.6 + 1e-6).all()
    assert xs[1:, 1].max() <= 0.9 + 1e-6
    assert abs(xs[-1, 0] - 0.5) < 1e-6
    np.testing.assert_allclose(oc.gradient(problem, us).cost, exported.value, rtol=1e-6)
    with pytest.raises(ValueError, match="`path_inequality` at stage 0 is not linear"):
        oc.to_cvxpy(problem.replace(path_inequality=lambda x, u: jnp.array([u @ u - 1])))


EYE, ONE = np.eye(2), np.ones((2, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oc.lqr(EYE, ONE, EYE, [[1.0]]), "`horizon` is missing.*use optctl.dlqr"),
        (lambda: oc.lqr(EYE, ONE, EYE, [[1.0]], horizon=0), "`horizon` is 0; expected a positive"),
        (lambda: oc.lqr(EYE, np.ones((20, 4, 1)), EYE, [[1.0]]), r"`B` has shape \(20, 4, 1\); expected \(2, nu\)"),
        (lambda: oc.lqr(EYE, ONE, [[1.0, 2.0], [0.0, 1.0]], [[1.0]], horizon=3), "`Q` is not symmetric"),
        (lambda: oc.lqr(EYE, ONE, np.diag([1.0, -2.0]), [[1.0]], horizon=3), "`Q` is not positive semidefinite.*is -2"),
        (lambda: oc.lqr(EYE, ONE, EYE, [[-1.0]], horizon=3), "`R` is not positive semidefinite: its lowest.* is -1"),
        (lambda: oc.lqr(EYE, ONE, EYE, np.stack([[[1.0]], [[-1.0]]]), horizon=2), "`R`.*at stage 1 is -1"),
        (lambda: oc.lqr(EYE, ONE, EYE, [[1.0]], horizon=3, x_ref=np.zeros((3, 2))), "numbers of stages differ"),
        (lambda: oc.lqr(EYE, ONE, EYE, [[1.0]], horizon=3, x0=np.ones(3)), r"`x0` has shape \(3,\); expected \(2,\)"),
        (lambda: oc.lqr(EYE, ONE, EYE, [[1.0]], horizon=3, M=np.ones((1, 2))), r"`M` has shape \(1, 2\); expected"),
        (
            lambda: oc.lqr([[1.0]], [[1.0]], np.array([1e12, 1.0, -1.0])[:, None, None], [[1.0]]),
            "`Q`.*at stage 2 is -1",
        ),
        (lambda: oc.costs.Quadratic(np.diag([1e12, -100.0]), [[1.0]]), "lowest eigenvalue is -100"),
        (lambda: oc.dlqr(np.eye(2, dtype=bool), ONE, EYE, [[1.0]]), "`A` has dtype bool"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
