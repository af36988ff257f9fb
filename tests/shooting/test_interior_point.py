"""The interior point method: known optima, first-order conditions, robustness, derivatives, what it says when it fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.problems import ZOO
from tests.oracles import check_optimality

DISCRETE = ("acrobot", "cartpole_weak", "cartpole_push", "cartpole_constrained")


@pytest.mark.parametrize("name", ZOO)
def test_known_optimum(name):
    """Discrete problems to 1e-8 of what independent solvers agree on, continuous ones to 1e-6 of the closed form."""
    known = ZOO[name]()
    sol = known.solve()
    assert sol.converged, sol
    np.testing.assert_allclose(sol.cost, known.optimum, rtol=1e-8 if name in DISCRETE else 1e-6)
    if known.free is None:
        check_optimality(known.problem, sol, tolerance=1e-7)
    if name == "least_energy":
        t = np.arange(21) / 20
        np.testing.assert_allclose(sol.costates, np.stack([np.full(21, -12.0), 12 * t - 6], 1), atol=1e-9)
        np.testing.assert_allclose(sol.us[:, 0], 6 - 12 * t[:-1], atol=1e-9)
    if name == "van_der_pol":
        np.testing.assert_allclose(sol.costates[0], [1.71717694, 0.01126109], atol=1e-6)
    if name == "least_energy_bounded":
        active = np.flatnonzero(np.abs(sol.us[:, 0]) > 5 - 1e-6) / 200
        inside = active[(active > 0.1127016654) & (active < 0.8872983346 - 1 / 200)]
        assert inside.size == 0
    if name == "oscillator":
        P = np.linalg.solve(np.eye(2), np.asarray([[1.90672452, 0.41112815], [0.41112815, 1.3479980918]]))
        np.testing.assert_allclose(sol.costates[0], P @ [0.0, 1.0], atol=1e-5)


SWING = ZOO["cartpole_constrained"]()


@pytest.fixture(scope="module")
def swing():
    return SWING.solve()


def test_random_guesses_reach_the_optimum():
    """Noise of 10 % of the range of the solution on all states and inputs: at least 95 of 100 must be solved."""
    rng = np.random.default_rng(0)
    spans = np.array([1.0, np.pi, 4.0, 12.0])
    xs = SWING.xs + 0.1 * spans * rng.uniform(-1, 1, size=(100, 101, 4))
    us = SWING.us + 4.0 * rng.uniform(-1, 1, size=(100, 100, 1))
    sols = jax.vmap(lambda us, xs: oc.solve(SWING.problem, us, "interior_point", xs=xs))(us, xs)
    assert np.sum(sols.converged) >= 95
    assert np.nanmedian(np.asarray(sols.cost)) < 58.8884  # of a failed one it is NaN
    assert sols.message.count("solved")


@pytest.mark.parametrize("limits", [{"u_min": -5.0, "u_max": 5.0}, {"u_min": -1.0, "u_max": 1.0}])
def test_too_little_force_is_locally_infeasible(limits):
    sol = oc.solve(SWING.problem.replace(**limits), SWING.us, xs=SWING.xs)
    assert not sol.converged
    assert sol.status == oc.Status.INFEASIBLE
    assert "locally infeasible" in sol.message
    assert sol.certificate.primal_feasibility > 1e-3
    assert np.abs(sol.us).max() <= limits["u_max"]
    with pytest.raises(RuntimeError, match="locally infeasible"):
        sol.raise_if_failed()


def test_second_solve_compiles_nothing_and_warm_starts_are_short(swing, caplog):
    from optctl.shooting import native

    before = dict(native._TAPES)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        again = oc.solve(SWING.problem.replace(u_max=19.0, x0=np.full(4, 0.01)), SWING.us, xs=SWING.xs)
    assert before == native._TAPES
    assert not [record for record in caplog.records if "Finished XLA" in record.message]
    assert again.converged
    near = SWING.problem.replace(x0=np.full(4, 1e-3))
    cold, warm = oc.solve(near, SWING.us, xs=SWING.xs), oc.solve(near, method=oc.InteriorPoint(warm_start=swing))
    assert warm.converged
    assert int(warm.iterations) < int(cold.iterations) / 2
    np.testing.assert_allclose(warm.cost, cold.cost, rtol=1e-8)
    with pytest.raises(ValueError, match=r"`warm_start` has states \(101, 4\)"):
        oc.solve(ZOO["cartpole_push"]().problem, method=oc.InteriorPoint(warm_start=swing))


def steered(x0, limit, goal):
    problem = oc.problems.cartpole_constrained(30).problem.replace(
        x0=x0, u_min=-limit, u_max=limit, terminal_equality=oc.problems.discrete.Distance(goal)
    )
    return oc.solve(problem, np.zeros((30, 1)), xs=np.linspace(np.zeros(4), [1, np.pi, 0, 0], 31), tolerance=1e-10)


def test_derivatives_equal_differences_of_solved_problems():
    """In x_0, an active bound and the goal: of the cost, and of a combination of all inputs."""
    at = jnp.array([0.05, 0.1, 0.02, -0.03]), jnp.asarray(11.0), jnp.array([1.0, np.pi, 0.0, 0.0])
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(30, 1)), rng.normal(size=(31, 4))
    sol = steered(*at)
    assert np.sum(np.abs(sol.us) > 11 - 1e-6) >= 2

    def figures(*data):
        sol = steered(*data)
        rest = jnp.sum(w * (sol.us + sol.multipliers["u_max"])) + jnp.sum(v * (sol.xs + 0.1 * sol.costates))
        return jnp.stack([sol.cost, rest])

    _, pull = jax.vjp(figures, *at)
    reverse = [pull(jnp.array(e)) for e in ([1.0, 0.0], [0.0, 1.0])]
    direction = tuple(jnp.asarray(rng.normal(size=a.shape)) for a in at)
    forward = jax.jvp(figures, at, direction)[1]
    along = [sum(jnp.vdot(g, d) for g, d in zip(row, direction, strict=True)) for row in reverse]
    np.testing.assert_allclose(forward, along, rtol=1e-7)
    h = 1e-5
    for k in range(3):
        for j in range(at[k].size):
            e = np.zeros(at[k].size)
            e[j] = h
            e = e.reshape(at[k].shape)
            up, down = (figures(*(a + s * e if i == k else a for i, a in enumerate(at))) for s in (1, -1))
            slope = (up - down) / (2 * h)
            ours = [float(jnp.ravel(row[k])[j]) for row in reverse]
            np.testing.assert_allclose(ours, slope, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(reverse[0][0], sol.costates[0], rtol=1e-6)
    np.testing.assert_allclose(reverse[0][1], -jnp.sum(sol.multipliers["u_max"] + sol.multipliers["u_min"]), rtol=1e-6)
    with pytest.raises(ValueError, match="differentiated twice"):
        jax.hessian(lambda x0: steered(x0, *at[1:]).cost)(at[0])


def test_derivatives_in_parameters_and_of_what_did_not_converge():
    problem = oc.Problem(
        oc.discretize(lambda x, u, t, p: [x[1], p * u[0] - jnp.sin(x[0])], 0.1, nx=2, nu=1),
        lambda x, u, t, p: 0.1 * (x @ x + p * u @ u), horizon=15, x0=[1.0, 0.0], u_min=-0.5,
        path_inequality=lambda x, u, t, p: jnp.array([-x[1] - 0.8 * p]), params=1.0,
    )  # fmt: skip

    def cost(params, **options):
        method = oc.InteriorPoint(**options.pop("method", {}))
        return oc.solve(problem.replace(params=params), method=method, **options).cost

    slope = jax.grad(lambda p: cost(p, tolerance=1e-10))(1.1)
    difference = (cost(1.1 + 1e-5, tolerance=1e-10) - cost(1.1 - 1e-5, tolerance=1e-10)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    assert np.isnan(jax.grad(lambda p: cost(p, tolerance=0.0))(1.1))
    assert jax.grad(lambda p: cost(p, tolerance=0.0, method={"failed_derivative": 0.0}))(1.1) == 0


def test_gains_are_the_sensitivity_of_the_inputs(swing):
    h = 1e-5
    slopes = []
    for j in range(4):
        e = h * np.eye(4)[j]
        warm = oc.InteriorPoint(warm_start=swing)
        up, down = (oc.solve(SWING.problem.replace(x0=s * e), method=warm, tolerance=1e-10).us[0] for s in (1, -1))
        slopes.append((up - down) / (2 * h))
    np.testing.assert_allclose(swing.K[0], np.stack(slopes, axis=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jnp.einsum("tij,tj->ti", swing.K, swing.xs[:-1]) + swing.k, swing.us, atol=1e-9)


def test_soft_constraints_equal_extra_inputs():
    pendulum = oc.discretize(oc.models.Pendulum(), 0.05)
    base = {"horizon": 12, "x0": [1.0, 0.0]}
    rows = lambda x, u: jnp.array([x[1] ** 2 - 0.5, u[0] - 1.0])
    soft = oc.Problem(
        pendulum, lambda x, u: 0.05 * (x @ x + 0.1 * u @ u), lambda x: x @ x,
        path_inequality=oc.Soft(rows, l1=jnp.array([0.1, jnp.inf]), l2=0.1), **base,
    )  # fmt: skip
    sol = oc.solve(soft)
    explicit = oc.Problem(
        oc.Dynamics(lambda x, u: pendulum.step(x, u[:1], 0, None), 2, 2),
        lambda x, u: 0.05 * (x @ x + 0.1 * u[0] ** 2) + 0.1 * u[1] + 0.05 * u[1] ** 2, lambda x: x @ x,
        path_inequality=lambda x, u: jnp.concatenate([rows(x, u[:1]) - u[1:] * jnp.array([1.0, 0.0]), -u[1:]]), **base,
    )  # fmt: skip
    other = oc.solve(explicit)
    assert sol.converged
    np.testing.assert_allclose(sol.cost, other.cost, rtol=1e-8)
    np.testing.assert_allclose(sol.us[:, 0], other.us[:, 0], atol=1e-6)
    np.testing.assert_allclose(
        sol.multipliers["path_inequality"], other.multipliers["path_inequality"][:, :2], atol=1e-6
    )
    missed = jax.vmap(lambda x, u: rows(x, u)[0])(sol.xs[:-1], sol.us)
    assert jnp.max(missed) > 0.1

    def priced(l1):
        return oc.solve(soft.replace(path_inequality=oc.Soft(rows, l1=jnp.array([l1, jnp.inf]), l2=0.1))).cost

    np.testing.assert_allclose(jax.grad(priced)(0.1), jnp.sum(jnp.maximum(missed, 0)), rtol=1e-6)


def test_a_soft_terminal_constraint_pays_where_a_hard_one_has_no_solution():
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: u @ u, horizon=2, x0=[3.0], u_min=-0.5,
        terminal_inequality=lambda x: x - 1.0,
    )  # fmt: skip
    assert oc.solve(problem).status == oc.Status.INFEASIBLE
    sol = oc.solve(problem.replace(terminal_inequality=oc.Soft(lambda x: x - 1.0, l1=10.0)))
    assert sol.converged
    np.testing.assert_allclose(sol.xs[:, 0], [3.0, 2.5, 2.0], atol=1e-7)
    np.testing.assert_allclose(sol.cost, 0.5 + 10.0, rtol=1e-7)


def test_callback_time_limit_and_table(swing, capsys):
    seen = []
    watched = oc.InteriorPoint(callback=seen.append, callback_every=3)
    sol = oc.solve(SWING.problem, SWING.us, watched, xs=SWING.xs, verbose=True)
    last = int(sol.iterations)
    assert [int(s.iterations) for s in seen] == [*range(3, last, 3), last]
    np.testing.assert_allclose(sol.us, swing.us, atol=1e-8)
    out = capsys.readouterr().out
    assert "infeasible" in out.splitlines()[0]
    assert "Converged" in out
    late = oc.solve(SWING.problem, SWING.us, oc.InteriorPoint(time_limit=1e-9), xs=SWING.xs)
    assert late.status == oc.Status.TIME_LIMIT
    assert "time limit" in late.message
    assert int(late.iterations) >= 1


@pytest.mark.big
def test_float32_and_gauss_newton():
    single = lambda a: np.asarray(a, np.float32)
    problem = oc.Problem(
        oc.discretize(oc.models.Pendulum(), single(0.1)), lambda x, u: 0.1 * (x @ x + u @ u), lambda x: x @ x, horizon=10,
        x0=single([1.0, 0.5]), u_min=single(-0.3), x_max=single([np.inf, 0.6]),
    )  # fmt: skip
    sol = oc.solve(problem)
    assert sol.converged, sol
    assert {leaf.dtype for leaf in (sol.xs, sol.us, sol.costates, sol.cost, sol.K)} == {np.dtype(np.float32)}
    double = problem.replace(
        dynamics=oc.discretize(oc.models.Pendulum(), 0.1), x0=[1.0, 0.5], u_min=-0.3, x_max=[np.inf, 0.6]
    )
    exact = oc.solve(double)
    rough = oc.solve(double, method=oc.InteriorPoint(hessian="gauss_newton"))
    assert exact.converged
    assert rough.converged
    np.testing.assert_allclose(sol.us, exact.us, atol=2e-2)
    np.testing.assert_allclose(rough.us, exact.us, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u_min": 1.0, "u_max": -1.0}, "`u_min` exceeds `u_max`"),
        ({"path_inequality": lambda x, u: x[0]}, r"`path_inequality` returns shape \(\); expected a vector"),
        (
            {"path_inequality": lambda x, u: jnp.array([x[0], 1.0])},
            "`path_inequality` has row 1 that depends on nothing",
        ),
        ({"terminal_equality": lambda x: jnp.ones(1)}, "`terminal_equality` has row 0 that depends on nothing"),
        ({"stage_cost": lambda x, u: jnp.log(u[0])}, "`stage_cost` is inf or NaN at stage 0 of the guess"),
        ({"path_inequality": lambda x, u: jnp.log(-1 - x**2)}, "`path_inequality` is inf or NaN at stage 0"),
        ({"params": 1.0, "params_min": 0.0}, r"they bound what is not free \(free: us\)"),
    ],
)
def test_bad_problems_are_named_before_the_solve(changes, message):
    problem = oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: x @ x + u @ u, horizon=3, x0=[1.0])
    with pytest.raises(ValueError, match=message):
        oc.solve(problem.replace(**changes), method="interior_point")


def test_bad_arguments_are_named():
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: x @ x + u @ u, horizon=3, x0=[1.0], u_min=-1.0
    )
    with pytest.raises(ValueError, match=r"`xs` has shape \(3, 1\); expected \(4, 1\)"):
        oc.solve(problem, xs=np.zeros((3, 1)))
    with pytest.raises(ValueError, match="`xs` is for method 'interior_point'"):
        oc.solve(problem, xs=np.zeros((4, 1)), method="lbfgs")
    simulator = oc.SimulatorDynamics(lambda x, u: x + u, 1, 1, jacobian=lambda x, u: (np.eye(1), np.eye(1)))
    with pytest.raises(ValueError, match="'interior_point' needs a step in JAX; SimulatorDynamics has none"):
        oc.solve(problem.replace(dynamics=simulator, u_min=None, x_max=2.0))
    with pytest.raises(ValueError, match=r"`l1` is -1.0; expected a number >= 0"):
        oc.Soft(lambda x: x, l1=-1.0)
    with pytest.raises(ValueError, match="`params_min` exceeds `params_max`"):
        problem.replace(params=1.0, params_min=2.0, params_max=1.0)
    with pytest.raises(ValueError, match="`x_min` exceeds `x0_max` at stage 0"):
        oc.solve(problem.replace(x0=None, x_min=0.0, x0_max=-1.0))


def test_points_where_the_model_is_not_defined_are_rejected():
    """The logarithm ends at 0; full Newton steps would leave it."""
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: 1e-2 * u @ u - 1e-3 * jnp.log(x[0]), lambda x: x[0], horizon=5,
        x0=[3.0], u_max=10.0,
    )  # fmt: skip
    sol = oc.solve(problem)
    assert sol.converged, sol
    assert np.isfinite(np.asarray(sol.history.cost)).all()


def test_an_unbounded_problem_is_called_so():
    problem = oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: u[0], horizon=3, x0=[1.0], u_max=1.0)
    sol = oc.solve(problem)
    assert not sol.converged
    assert sol.status == oc.Status.UNBOUNDED, sol


@pytest.mark.parametrize("first", [1.0, 10.0])
@pytest.mark.parametrize("goal", [0.0, 1.0])
def test_a_final_time_that_may_grow_for_ever_is_unbounded(goal, first):
    """To rest at the goal takes as long as one likes."""
    problem = oc.Problem(
        oc.discretize(lambda x, u, t, T: T * jnp.stack([x[1], u[0]]), 1 / 20, nx=2, nu=1),
        terminal_cost=lambda x, T: -T, horizon=20, x0=[0.0, 0.0], params=first, params_min=0.1, u_min=-1.0, u_max=1.0,
        terminal_equality=lambda x: x - jnp.array([goal, 0.0]),
    )  # fmt: skip
    sol = oc.solve(problem, free=("us", "params"))
    assert sol.status == oc.Status.UNBOUNDED, sol


def mountain_car(N=200):
    """A weak car has to swing back and forth to get up: the hills are at minima of the violation."""
    f = lambda x, u: x[2] * jnp.stack([x[1], 0.001 * u[0] - 0.0025 * jnp.cos(3 * x[0]), 0 * x[0]])
    inf = np.inf
    problem = oc.Problem(
        oc.discretize(f, 1 / N, nx=3, nu=1), terminal_cost=lambda x: x[2], horizon=N, u_min=-1.0, u_max=1.0,
        x0_min=[-0.5, 0, 10], x0_max=[-0.5, 0, 400], x_min=[-1.2, -0.07, -inf], x_max=[0.5, 0.07, inf],
        terminal_equality=lambda x: x[:1] - 0.5, terminal_inequality=lambda x: -x[1:2],
    )  # fmt: skip
    return problem, np.linspace([-0.5, 0, 100], [0.5, 0.07, 100], N + 1)


def test_a_crawl_ends_in_the_feasibility_phase_and_that_phase_ends():
    """IPOPT: 102.371650 after 662 iterations. A final time must not creep under damping."""
    problem, xs = mountain_car()
    sol = oc.solve(problem, np.zeros((200, 1)), xs=xs)
    assert sol.converged, sol
    np.testing.assert_allclose(sol.cost, 102.371650, rtol=1e-7)
    assert int(sol.iterations) < 662


@pytest.mark.parametrize("angle", [0.1, 2.3, 2.9, 4.1])
def test_a_free_final_time_from_bad_headings(angle):
    """Zermelo's crossing: IPOPT takes 156, 11, 10 and 163 iterations from these guesses."""
    N = 10
    field = lambda x, u, t, T: T * jnp.stack([jnp.cos(u[0]) - x[1], jnp.sin(u[0])])
    problem = oc.Problem(
        oc.discretize(field, 1 / N, nx=2, nu=1, hold="linear"), terminal_cost=lambda x, T: T, horizon=N, x0=[3.66, -1.86],
        params=5.0, params_min=0.1, params_max=50.0, terminal_equality=lambda x: x,
    )  # fmt: skip
    guess = np.linspace([3.66, -1.86], [0, 0], N + 1)
    sol = oc.solve(problem, np.full((N, 2), angle), xs=guess, free=("us", "params"))
    assert sol.converged, sol
    np.testing.assert_allclose(sol.cost, 5.4579432793, rtol=1e-8)
    assert int(sol.iterations) <= 60


def test_what_a_rollout_meets_is_never_called_infeasible():
    from optctl.shooting.feasibility import can_be_infeasible
    from optctl.shooting.rows import make_rows

    def possible(**more):
        problem = oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: u @ u, horizon=3, u_max=1.0, **more)
        xs, us = jnp.zeros((4, 1)), jnp.zeros((3, 1))
        functions = {"path_inequality": (3, 1)} if "path_inequality" in more else {}
        return bool(can_be_infeasible(make_rows(problem, xs, us, functions, (True,))))

    assert not possible(x0_min=[0.0])
    assert not possible(path_inequality=oc.Soft(lambda x, u: x - 1.0, l1=1.0))
    assert possible(path_inequality=lambda x, u: x - 1.0)
    assert possible(x_min=[0.0])


def test_constraints_in_x0_that_is_free_and_path_equalities():
    """A free start on a circle, an equality of x and u at every stage; cvxpy has no say here, the conditions do."""
    problem = oc.Problem(
        oc.discretize(lambda x, u: [x[1] + u[1], u[0]], 0.1, nx=2, nu=2), lambda x, u: u @ u + x @ x, lambda x: 5 * x @ x,
        initial_cost=lambda x: 100 * (x[0] - 2) ** 2, horizon=10, x_min=[-1.0, -0.5], x_max=[1.5, 0.5], x0_min=[0.5, 0.2],
        x0_max=[1.4, 0.2], path_equality=lambda x, u: jnp.array([u[0] + 0.5 * u[1] ** 2 - 0.1 * x[0]]),
    )  # fmt: skip
    sol = oc.solve(problem)
    assert sol.converged, sol
    check_optimality(problem, sol, tolerance=1e-7)
    assert float(jnp.max(sol.multipliers["x0_max"])) > 0.1
    np.testing.assert_allclose(sol.x0[1], 0.2, atol=1e-9)


def test_options_that_make_no_sense_are_named():
    wrong = {
        "callback": 3,
        "callback_every": 0,
        "time_limit": np.nan,
        "failed_derivative": "zero",
        "barrier": 0.0,
        "max_iterations": 2.5,
        "backend": "fast",
        "hessian": "bfgs",
        "warm_start": 1.0,
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"`{name}` is "):
            oc.InteriorPoint(**{name: value})


def test_a_feasible_point_at_the_exact_center_of_its_bounds_is_one():
    """No cost, and slacks of one: the barrier cost is zero, and no step lowers anything."""
    problem = oc.Problem(
        oc.Dynamics(lambda x, u: x + 0.1 * u, nx=1, nu=1),
        horizon=5,
        x0=[1.0],
        path_inequality=lambda x, u: u**2 - 1.0,
    )
    assert oc.solve(problem, method="interior_point").converged


def test_a_derivative_in_what_a_function_closes_over_is_refused():
    def cost(w):
        problem = oc.Problem(
            oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: w * x @ x + u @ u, horizon=3, x0=[1.0], u_min=-1.0
        )
        return oc.solve(problem, method="interior_point").cost

    with pytest.raises(ValueError, match="make it one of the parameters"):
        jax.grad(cost)(1.0)


def test_gains_have_no_derivative_but_nan():
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: x @ x + u @ u, horizon=3, x0=[1.0], u_min=-1.0
    )

    def parts(x0):
        sol = oc.solve(problem.replace(x0=x0), method="interior_point")
        return sol.K, sol.k, sol.us

    in_K, in_k, in_us = jax.jacfwd(parts)(jnp.ones(1))
    assert np.isnan(in_K).all()
    assert np.isnan(in_k).all()
    assert np.isfinite(in_us).all()


def test_a_transfer_without_enough_time_is_locally_infeasible():
    """Minimum time with a bound on time below the optimum, 2 sqrt(3): the violation has a least value that is not zero."""
    rate = oc.discretize(lambda z, u: jnp.array([z[2] * z[1], z[2] * u[0], 0.0 * z[2]]), 1 / 20, nx=3, nu=1)
    problem = oc.Problem(
        rate,
        initial_cost=lambda z: z[2],
        horizon=20,
        x0_min=[0.0, 0.0, 0.1],
        x0_max=[0.0, 0.0, 2.5],
        u_min=-1.0,
        u_max=1.0,
        terminal_equality=lambda z: z[:2] - jnp.array([3.0, 0.0]),
    )
    sol = oc.solve(problem, x0=[0.0, 0.0, 1.0])
    assert sol.status == oc.Status.INFEASIBLE
    assert "violation" in repr(sol)
    enough = oc.solve(problem.replace(x0_max=[0.0, 0.0, 9.0]), x0=[0.0, 0.0, 1.0])
    np.testing.assert_allclose(enough.cost, 2 * np.sqrt(3.0), rtol=1e-3)


def test_a_start_next_to_the_optimum_is_solved_and_has_its_derivative():
    A, B = np.array([[1, 0.1], [0, 1.0]]), np.array([[0.005], [0.1]])
    problem = oc.Problem(
        oc.LinearDynamics(A, B),
        lambda x, u: (x[0] - 5) ** 2 + 0.1 * x[1] ** 2 + 0.01 * u @ u,
        lambda x: 10 * (x[0] - 5) ** 2,
        horizon=30,
        x0=[5.0, 0.0],
        u_min=-5.0,
        u_max=5.0,
    )
    for speed in (0.0, 1e-9, 1e-5):
        x0 = jnp.array([5.0, speed])
        problem = problem.replace(x0=x0)
        sol = oc.solve(problem)
        assert sol.converged, (speed, sol)
        assert sol.iterations <= 4
        free = problem.replace(u_min=None, u_max=None)
        assert oc.solve(free, method="lq").converged, speed
    exact = oc.lqr(A, B, np.diag([2, 0.2]), [[0.02]], Qf=np.diag([20.0, 0]), x0=x0, x_ref=[5.0, 0.0], horizon=30)
    slope = jax.jacobian(lambda x0: oc.solve(problem.replace(x0=x0)).us[0])(x0)
    np.testing.assert_allclose(slope, exact.K[0], atol=1e-5)


def fall_in(unit):
    """The brachistochrone with lengths in some unit, and its guess."""
    N = 40

    def f(z, u, t, p):
        return [p["T"] * z[2] * jnp.cos(u[0]), p["T"] * z[2] * jnp.sin(u[0]), p["T"] * unit * 9.80665 * jnp.sin(u[0])]

    problem = oc.Problem(
        oc.discretize(f, 1 / N, nx=3, nu=1),
        terminal_cost=lambda x, p: p["T"],
        horizon=N,
        x0=np.zeros(3),
        params={"T": 1.0},
        params_min=0.05,
        params_max=10.0,
        u_min=0.0,
        u_max=np.pi,
        terminal_equality=lambda x: x[:2] - unit * jnp.array([10.0, 5.0]),
    )
    guess = {
        "us": np.linspace(1.5, 0.3, N)[:, None],
        "xs": np.linspace(np.zeros(3), unit * np.array([10, 5, 9.9]), N + 1),
    }
    return problem, guess


@pytest.mark.big
@pytest.mark.parametrize("backend", ["native", "jax"])
def test_units_change_nothing(backend):
    counts = []
    for unit in (1.0, 1e6) if backend == "native" else (1e6,):
        problem, guess = fall_in(unit)
        sol = oc.solve(problem, guess["us"], oc.InteriorPoint(backend=backend), xs=guess["xs"], free=("us", "params"))
        assert sol.converged, sol
        assert abs(float(sol.cost) - 1.803044) < 1e-6
        counts.append(int(sol.iterations))
    assert max(counts) <= 20


def test_scales_of_the_user():
    problem, guess = fall_in(1.0)
    scale = {"x": np.array([10.0, 5.0, 10.0]), "u": 2.0}
    given = oc.InteriorPoint(scale=scale)
    sol = oc.solve(problem, guess["us"], given, xs=guess["xs"], free=("us", "params"))
    assert abs(float(sol.cost) - 1.803044) < 1e-6
    with pytest.raises(ValueError, match="expected positive numbers"):
        oc.InteriorPoint(scale={"x": [1.0, 0.0]})
    with pytest.raises(ValueError, match='a dictionary with "x", "u"'):
        oc.InteriorPoint(scale=[1.0, 2.0])
    short = oc.InteriorPoint(scale={"x": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"has shape \(2,\); expected a number or \(3,\)"):
        oc.solve(problem, guess["us"], short, xs=guess["xs"], free=("us", "params"))


def test_the_sum_of_the_products_bounds_the_error_of_the_cost():
    A, B = np.array([[1, 0.01], [0, 1.0]]), np.array([[0.00005], [0.01]])
    speed = np.array([np.inf, 1.5])
    problem = oc.Problem(
        oc.LinearDynamics(A, B),
        lambda x, u: 0.01 * (x[0] ** 2 + 0.1 * u @ u),
        lambda x: x @ x,
        horizon=5000,
        x0=[10.0, 0.0],
        u_min=-1.0,
        u_max=1.0,
        x_min=-speed,
        x_max=speed,
    )
    coarse = oc.solve(problem, method="interior_point")
    fine = oc.solve(problem, method="interior_point", tolerance=1e-12)
    assert coarse.converged
    assert abs(float(coarse.cost / fine.cost) - 1) < 1e-8


@pytest.mark.parametrize("angle", [2.3, 2.9])
def test_a_final_time_never_leaves_its_bounds(angle):
    """Zermelo's crossing, whose feasibility phase once sent the final time below zero; IPOPT: 5.457943."""
    N = 10

    def f(x, u, t, T):
        return T * jnp.stack([jnp.cos(u[0]) - x[1], jnp.sin(u[0])])

    problem = oc.Problem(
        oc.discretize(f, 1 / N, nx=2, nu=1, hold="linear"),
        terminal_cost=lambda x, T: T,
        horizon=N,
        x0=[3.66, -1.86],
        params=5.0,
        params_min=0.1,
        params_max=50.0,
        terminal_equality=lambda x: x,
    )
    xs = np.linspace([3.66, -1.86], [0, 0], N + 1)
    sol = oc.solve(problem, np.full((N, 2), angle), xs=xs, free=("us", "params"))
    assert sol.converged, sol
    assert abs(float(sol.cost) - 5.457943) < 1e-5
    assert np.nanmin(sol.history.cost) >= 0.1 - 1e-6  # the feasibility phase closes gaps to its own tolerance


@pytest.mark.parametrize("size", [1e-8, 1e8])
def test_the_unit_of_the_cost_changes_nothing(size):
    A = jnp.array([[1.0, 0.1], [0.0, 1.0]])
    problem = oc.Problem(
        oc.LinearDynamics(A, [[0.0], [0.1]]),
        oc.costs.Quadratic(size * jnp.eye(2), 0.1 * size * jnp.eye(1)),
        oc.costs.TerminalQuadratic(5.0 * size * jnp.eye(2)),
        horizon=20,
        x0=[2.0, 0.0],
        u_min=-1.0,
        u_max=1.0,
    )
    costs = {"stage_cost": oc.costs.Quadratic(jnp.eye(2), 0.1 * jnp.eye(1))}
    costs["terminal_cost"] = oc.costs.TerminalQuadratic(5.0 * jnp.eye(2))
    sol, plain = oc.solve(problem), oc.solve(problem.replace(**costs))
    assert sol.converged
    np.testing.assert_allclose(sol.us, plain.us, atol=1e-8)
    assert abs(int(sol.iterations) - int(plain.iterations)) <= 2


def test_units_that_only_a_step_tells_make_no_difference():
    """Nothing but the goal, or the cost, says how small all is; the cost is in closed form, or cvxpy's."""
    model = oc.LinearDynamics([[1, 0.1], [0, 1]], [[0.005], [0.1]])
    controllability = np.hstack([np.linalg.matrix_power(model.A, 29 - t) @ model.B for t in range(30)])
    least = np.sum((np.linalg.pinv(controllability) @ [1.0, 0.0]) ** 2)
    problem = oc.Problem(
        model, lambda x, u, t, p: u @ u, horizon=30, x0=[0.0, 0.0], terminal_equality=lambda x, p: x - p * jnp.eye(2)[0],
        params=1.0, u_min=-1.0, u_max=1.0,
    )  # fmt: skip
    priced = oc.Problem(
        model, lambda x, u, t, p: u @ u / p**2, lambda x, p: 100 * (x[0] / p - 1) ** 2, horizon=30, x0=[0.0, 0.0],
        path_inequality=lambda x, u, t, p: x[1:] - 0.3 * p, params=1.0,
    )  # fmt: skip
    for unit in (1.0, 1e-3, 1e-8):
        sol = oc.solve(problem.replace(params=unit, u_min=-unit, u_max=unit))
        assert sol.converged, sol
        assert int(sol.iterations) <= 4
        np.testing.assert_allclose(sol.cost / unit**2, least, rtol=1e-9)
        np.testing.assert_allclose(sol.xs[-1] / unit, [1.0, 0.0], atol=1e-9)
        sol = oc.solve(priced.replace(params=unit))
        assert sol.converged, sol
        assert int(sol.iterations) <= 10
        np.testing.assert_allclose(sol.cost, 4.565817, rtol=1e-6)


def test_the_scale_of_a_cost_that_is_flat_at_the_guess_makes_no_difference():
    """A swing-up with least effort from rest: the cost has no slope at all at the guess. IPOPT: 5.04036."""
    pendulum = oc.discretize(oc.models.Pendulum(), 0.05)
    problem = oc.Problem(
        pendulum, lambda x, u, t, p: p * 0.01 * u @ u, horizon=80, x0=[0.0, 0.0], u_min=-4.0, u_max=4.0, params=1.0,
        terminal_equality=lambda x, p: x - jnp.array([np.pi, 0.0]),
    )  # fmt: skip
    guess = np.linspace([0, 0], [np.pi, 0], 81)
    for scale in (1e-12, 1.0, 1e6, 1e12):
        sol = oc.solve(problem.replace(params=scale), np.zeros((80, 1)), xs=guess)
        assert sol.converged, sol
        np.testing.assert_allclose(sol.cost / scale, 5.0403625598, rtol=1e-8)
        assert int(sol.iterations) <= 100


@pytest.mark.filterwarnings("error")
def test_a_tape_is_not_refuted_by_ripples_that_differences_step_over():
    """A pendulum in units in which a radian is a millionth, and the guess does not say so."""
    for unit in (1.0, 1e-6):
        pendulum = oc.discretize(
            lambda z, u, unit=unit: [z[1], u[0] - unit * 9.81 * jnp.sin(z[0] / unit)], 0.05, nx=2, nu=1
        )
        cost = lambda x, u, unit=unit: (u @ u + x @ x) / unit**2
        sol = oc.solve(
            oc.Problem(pendulum, cost, horizon=30, x0=[unit, 0.0], u_max=[5 * unit]),
            method=oc.InteriorPoint(backend="native"),
        )
        assert sol.converged, sol
        np.testing.assert_allclose(sol.cost, 115.904573775, rtol=1e-9)


@pytest.mark.parametrize("backend", ["native", "jax"])
def test_a_maximum_is_not_passed_off_as_a_minimum(backend):
    """The first-order conditions hold at rest, where the cost is greatest: the message says what does not."""
    double = oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]])
    problem = oc.Problem(double, lambda x, u: -u @ u, horizon=5, x0=[0.0, 0.0], u_min=-1.0, u_max=1.0)
    sol = oc.solve(problem, method=oc.InteriorPoint(backend=backend))
    assert sol.converged
    assert "a saddle point, a maximum" in sol.message
    assert np.isnan(sol.K).all()
    best = oc.solve(problem, np.full((5, 1), 0.01), method=oc.InteriorPoint(backend=backend))
    np.testing.assert_allclose(best.cost, -5.0, rtol=1e-9)
    assert best.message == "solved: the certificate holds"
    assert np.isfinite(best.K).all()


@pytest.mark.parametrize("guess", [5.0, 12.0, 22.0, 40.0])
def test_rows_that_are_steep_at_the_guess_have_to_hold_where_they_are_not(guess):
    """e^x = 2 by least effort: (log 2)^2, with the derivative log 2 in the parameter."""
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: u @ u, horizon=1, x0=[0.0], params=2.0,
        terminal_equality=lambda x, p: jnp.exp(x) - p,
    )  # fmt: skip
    sol = oc.solve(problem, us=[[guess]])
    assert sol.converged, sol
    np.testing.assert_allclose(sol.cost, np.log(2) ** 2, rtol=1e-8)
    traced = jax.jit(lambda us: oc.solve(problem, us=us, method="interior_point"))(np.array([[guess]]))
    assert not traced.converged or abs(traced.cost - np.log(2) ** 2) < 1e-8


def test_rounding_at_an_end_that_is_fixed_is_no_disagreement():
    """Bounds that are equal at the end, where the states are zero: misses of 1e-20 are misses of nothing."""
    rng = np.random.default_rng(7)
    for _ in range(6):
        A, B = np.eye(3) + 0.1 * rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
        ends = np.full((11, 3), np.inf)
        ends[-1] = 0.0
        sol = oc.solve(
            oc.Problem(
                oc.LinearDynamics(A, B), lambda x, u: 0.1 * x @ x + u @ u, horizon=10, x0=0.2 * rng.normal(size=3),
                x_min=-ends, x_max=ends, u_min=-0.5, u_max=0.5,
            )
        )  # fmt: skip
        assert sol.converged, sol
