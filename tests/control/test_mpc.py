"""Model predictive control: recovery, limits, references, offset, real-time iteration, time limits, what never recompiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc

GOAL = np.array([0.0, np.pi, 0.0, 0.0])
CARTPOLE = oc.discretize(oc.models.CartPole(), 0.04)


def balance(horizon=30):
    Q, R = 0.04 * np.diag([1.0, 5.0, 0.1, 0.1]), 0.04 * np.array([[0.01]])
    A, B = CARTPOLE.linearize(np.stack([GOAL, GOAL]), np.zeros((1, 1)))
    wide = np.array([2.0, np.inf, np.inf, np.inf])
    return oc.Problem(
        CARTPOLE, oc.costs.Tracking(Q, R, x_ref=GOAL), oc.costs.TerminalQuadratic(oc.dare(A[0], B[0], Q, R), x_ref=GOAL),
        horizon=horizon, x0=GOAL, u_min=-20.0, u_max=20.0, x_min=-wide, x_max=wide,
    )  # fmt: skip


def off(by):
    return GOAL + np.array(by)


PROBLEM = balance()
CONTROLLER = oc.MPC(PROBLEM)
MOVE = jax.jit(lambda x, u: CARTPOLE.step(x, u, 0, None))


@pytest.mark.big
def test_the_cartpole_recovers_from_200_random_disturbances():
    """The whole closed loop in one compiled program; limits hold at every sample."""
    kicks = GOAL + np.random.default_rng(0).uniform(-1, 1, size=(200, 4)) * [1.0, 0.6, 1.0, 2.0]
    plan = CONTROLLER.init(GOAL)

    def loop(x0):
        def sample(carry, _):
            x, plan = carry
            u, plan = CONTROLLER.step(plan, x)
            return (CARTPOLE.step(x, u, 0, None), plan), (x, u, plan.status)

        (x, _), history = jax.lax.scan(sample, (x0, plan), length=100)
        return x, *history

    ends, xs, us, statuses = jax.jit(lambda x0s: jax.lax.map(loop, x0s))(jnp.asarray(kicks))
    assert np.sum(np.abs(ends - GOAL[None]).max(axis=1) < 0.1) == 200
    assert np.abs(us).max() <= 20 + 1e-6
    assert np.abs(xs[..., 0]).max() <= 2 + 1e-6
    assert np.mean(np.asarray(statuses) == oc.Status.SOLVED) > 0.99


def test_a_step_is_the_solution_of_its_problem_and_never_recompiles(caplog):
    _, plan = CONTROLLER.step(CONTROLLER.init(GOAL), GOAL)
    for x in GOAL + np.random.default_rng(1).normal(size=(5, 4)) * [0.1, 0.1, 0.2, 0.2]:
        with jax.log_compiles(), caplog.at_level("WARNING"):
            u, plan = CONTROLLER.step(plan, x)
        sol = oc.solve(PROBLEM.replace(x0=x), tolerance=1e-8)
        np.testing.assert_allclose(u, sol.us[0], atol=1e-4)
        np.testing.assert_allclose(plan.cost, sol.cost, rtol=1e-5)
        assert plan.status == oc.Status.SOLVED
    assert not [record for record in caplog.records if "Finished XLA" in record.message]
    assert int(plan.iterations) < 15


def test_real_time_iterations_keep_limits_and_balance():
    mpc = oc.MPC(PROBLEM, real_time=True, method=oc.InteriorPoint(barrier=1e-2))
    run = mpc.simulate(off([0.3, 0.2, 0.0, 0.3]), 80, noise=1e-3 * np.random.default_rng(0).normal(size=(80, 4)))
    assert np.abs(run.xs[-1] - GOAL).max() < 0.1
    assert np.abs(run.us).max() <= 20
    assert (run.iterations == 1).all()
    assert "latency 50 %" in repr(run)
    assert list(run.percentiles(10, 90)) == [10, 90]


def test_rates_of_inputs_are_limited():
    mpc = oc.MPC(PROBLEM, du_max=1.0)
    run = mpc.simulate(off([0.3, 0.1, 0.0, 0.0]), 30)
    assert np.abs(np.diff(np.concatenate([[[0.0]], run.us]), axis=0)).max() <= 1.0 + 1e-6
    free = CONTROLLER.simulate(off([0.3, 0.1, 0.0, 0.0]), 30)
    assert np.abs(free.us[0]).max() > 2.0
    soft = PROBLEM.replace(path_inequality=oc.Soft(lambda x, u: x[:1] - 0.2, l1=1.0), x_min=None, x_max=None)
    run = oc.MPC(soft, du_max=1.0).simulate(off([0.3, 0.0, 0.0, 0.0]), 30)
    assert (run.statuses == oc.Status.SOLVED).all()


def test_an_offset_of_the_model_is_estimated():
    """A constant force on a mass that the model does not know; position is tracked without steady error."""
    mass = oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.005], [0.1]])
    problem = oc.Problem(
        mass, lambda x, u, t, p: (x[0] - p) ** 2 + 1e-4 * u @ u, lambda x, p: 10 * (x[0] - p) ** 2, horizon=20,
        x0=[0.0, 0.0], params=1.0, u_min=-5.0, u_max=5.0,
    )  # fmt: skip
    plant = lambda x, u, k: mass.step(x, u - 1.0, k, None)
    errors = {}
    for gain in (None, 0.5):
        run = oc.MPC(problem, offset_gain=gain).simulate([0.0, 0.0], 80, plant)
        errors[gain] = abs(run.xs[-1, 0] - 1.0)
    assert errors[0.5] < 2e-3
    assert errors[None] > 5 * errors[0.5]


def test_references_are_previewed_through_params():
    mass = oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.005], [0.1]])
    N = 15
    path = np.sin(0.1 * np.arange(200))
    problem = oc.Problem(
        mass, lambda x, u, t, p: (x[0] - p[t]) ** 2 + 1e-5 * u @ u, lambda x, p: (x[0] - p[-1]) ** 2, horizon=N,
        x0=[0.0, 1.0], params=path[: N + 1], u_max=50.0,
    )  # fmt: skip
    run = oc.MPC(problem).simulate([0.0, 1.0], 60, params=lambda k: path[k : k + N + 1])
    assert np.abs(run.xs[5:60, 0] - path[5:60]).max() < 0.01
    stale = oc.MPC(problem).simulate([0.0, 1.0], 60)
    assert np.abs(stale.xs[5:60, 0] - path[5:60]).max() > 0.1


def test_a_time_limit_returns_the_best_feasible_plan():
    mpc = oc.MPC(PROBLEM, method=oc.InteriorPoint(time_limit=1e-9))
    plan = mpc.init(GOAL)
    u, plan = mpc.step(plan, off([0.1, 0.05, 0.0, 0.0]))
    assert plan.status == oc.Status.TIME_LIMIT
    assert np.abs(u).max() <= 20
    patient = oc.MPC(PROBLEM, method=oc.InteriorPoint(time_limit=10.0))
    u2, plan = patient.step(patient.init(GOAL), off([0.1, 0.05, 0.0, 0.0]))
    assert plan.status == oc.Status.SOLVED
    np.testing.assert_allclose(u2, CONTROLLER.step(CONTROLLER.init(GOAL), off([0.1, 0.05, 0.0, 0.0]))[0], atol=1e-6)


def test_a_quadrotor_follows_a_figure_eight():
    model = oc.models.Quadrotor()
    dt, N = 0.05, 15
    hover = model.m * model.g / 4
    dynamics = oc.discretize(model, dt)
    Q, R = dt * np.diag([10.0] * 3 + [0.5] * 3 + [0.1] * 6), 0.01 * dt * np.eye(4)

    def at(k):
        s = 1.2 * dt * (k + np.arange(N + 1))
        reference = np.zeros((N + 1, 12))
        reference[:, 0], reference[:, 1], reference[:, 2] = np.sin(s), 0.5 * np.sin(2 * s), 1.0
        reference[:, 3], reference[:, 4] = 1.2 * np.cos(s), 1.2 * np.cos(2 * s)
        return reference

    problem = oc.Problem(
        dynamics, lambda x, u, t, p: 0.5 * (x - p[t]) @ (jnp.asarray(Q) @ (x - p[t])) + 0.005 * dt * jnp.sum((u - hover) ** 2),
        lambda x, p: 2.5 * (x - p[-1]) @ (jnp.asarray(Q) @ (x - p[-1])), horizon=N, x0=at(0)[0], params=at(0), u_min=0.0,
        u_max=1.34,
    )  # fmt: skip
    mpc = oc.MPC(problem, method=oc.InteriorPoint(hessian="gauss_newton"))
    plan = mpc.init(at(0)[0], us=np.full((N, 4), hover), xs=at(0))
    heavier = oc.discretize(oc.models.Quadrotor(m=0.52), dt)
    move = jax.jit(lambda x, u: heavier.step(x, u, 0, None))
    run = mpc.simulate(at(0)[0], 110, lambda x, u, k: move(x, u), params=at, plan=plan)
    path = np.stack([at(k)[0, :2] for k in range(110)])
    assert np.abs(run.xs[20:110, :2] - path[20:]).max() < 0.15
    assert run.us.max() <= 1.34 + 1e-6
    assert run.us.max() > 1.339
    assert np.mean(run.statuses == oc.Status.SOLVED) > 0.95
    assert R.shape == (4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_limit": 0}, "`time_limit` is 0"),
        ({"hessian": "bfgs"}, "`hessian` is 'bfgs'"),
        ({"max_iterations": 0}, "`max_iterations` is 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        oc.MPC(PROBLEM, method=oc.InteriorPoint(**options))
    with pytest.raises(ValueError, match=r"`du_max` is -1.0; expected a positive number"):
        oc.MPC(PROBLEM, du_max=-1.0)


def test_bad_states_and_problems_are_named():
    with pytest.raises(ValueError, match=r"`x` has shape \(3,\); expected \(4,\)"):
        CONTROLLER.init(np.zeros(3))
    with pytest.raises(ValueError, match="`x` holds NaN"):
        CONTROLLER.step(CONTROLLER.init(GOAL), np.full(4, np.nan))
    with pytest.raises(ValueError, match="`params` differ in structure"):
        CONTROLLER.init(GOAL, params=1.0)
    with pytest.raises(ValueError, match="bounds a free x_0"):
        oc.MPC(PROBLEM.replace(x0=None, x0_min=-1.0))
    with pytest.raises(ValueError, match="`problem` is a str"):
        oc.MPC("problem")


@pytest.mark.parametrize("options", [{}, {"real_time": True}, {"offset_gain": 0.2}])
def test_a_sample_that_is_not_finite_is_survived(options):
    """The plan goes on by itself for a sample, says so, and the next measurement is served as ever."""
    mass = oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.005], [0.1]])
    cost = oc.costs.Quadratic(jnp.diag(jnp.array([1.0, 0.1])), 0.01 * jnp.eye(1))
    mpc = oc.MPC(oc.Problem(mass, cost, horizon=20, x0=[0.0, 0.0], u_min=-1.0, u_max=1.0), **options)
    step, plan, x = jax.jit(mpc.step), mpc.init([1.0, 0.0]), jnp.array([1.0, 0.0])
    for k in range(30):
        u, plan = step(plan, x * jnp.nan if k == 3 else x)
        assert jnp.isfinite(u).all()
        assert k != 3 or plan.status in (oc.Status.NON_FINITE, oc.Status.STALLED)
        x = mass.step(x, u, 0, None)
    assert jnp.abs(x).max() < 0.1
    with pytest.raises(ValueError, match="`x` holds"):
        mpc.step(plan, [jnp.nan, 0.0])


def test_bad_arguments_are_named():
    mass = oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]])
    problem = oc.Problem(
        mass, lambda x, u, t, p: (x[0] - p[t]) ** 2 + u @ u, horizon=5, x0=[0.0, 0.0], params=jnp.zeros(5), u_max=1.0
    )
    mpc = oc.MPC(problem)
    plan = mpc.init([0.0, 0.0])
    wrong = {
        r"`params` hold shape \(4,\); expected \(5,\)": lambda: mpc.step(plan, [0.0, 0.0], jnp.zeros(4)),
        "`plan` is a NoneType": lambda: mpc.step(None, [0.0, 0.0]),
        r"`plant\(x, u, 0\)` has shape \(3,\)": lambda: mpc.simulate([0.0, 0.0], 2, lambda x, u, k: np.zeros(3)),
        r"`offset_gain` is .* or \(2,\) of them": lambda: oc.MPC(problem, offset_gain=[0.1] * 3),
        r"`du_max` is .* or \(1,\) of them": lambda: oc.MPC(problem, du_max=[0.1, 0.2]),
        "`offset_gain` is 2.0; expected at most 1": lambda: oc.MPC(problem, offset_gain=2.0),
        "`offset_gain` needs plans that converge": lambda: oc.MPC(problem, offset_gain=0.5, real_time=True),
        r"`plant\(x, u, 0\)` holds NaN or inf": lambda: mpc.simulate([0.0, 0.0], 2, lambda x, u, k: x * np.nan),
        r"`method` is 'ilqr'; expected InteriorPoint": lambda: oc.MPC(problem, method="ilqr"),
        "`method` has `callback`, for which a controller": lambda: oc.MPC(
            problem, method=oc.InteriorPoint(callback=print)
        ),
        "`time_limit` has no use with real_time": lambda: oc.MPC(
            problem, real_time=True, method=oc.InteriorPoint(time_limit=1.0)
        ),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_a_right_model_has_no_offset_from_the_first_sample_on():
    mass = oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.005], [0.1]])
    problem = oc.Problem(mass, lambda x, u: x @ x + 0.1 * u @ u, horizon=15, x0=[0.0, 0.0], u_min=-1.0, u_max=1.0)
    with_observer, without = oc.MPC(problem, offset_gain=1.0), oc.MPC(problem)
    x, plan, other = np.array([5.0, -3.0]), with_observer.init([5.0, -3.0]), without.init([5.0, -3.0])
    for _ in range(3):
        u, plan = with_observer.step(plan, x)
        v, other = without.step(other, x)
        np.testing.assert_allclose(u, v, atol=1e-6)
        np.testing.assert_allclose(plan.offset, 0.0, atol=1e-9)
        x = np.asarray(mass.step(x, u, 0, None))


def test_unfinished_plans_keep_the_limits_of_rates():
    mpc = oc.MPC(PROBLEM, du_max=3.0, method=oc.InteriorPoint(max_iterations=1))
    run = mpc.simulate(off([0.5, 0.3, 0.0, 0.5]), 10)
    assert np.abs(np.diff(run.us[:, 0])).max() <= 3.0 + 1e-12
    assert (run.statuses == oc.Status.ITERATION_LIMIT).any()


def test_what_can_be_done_in_time_is_done():
    mpc = oc.MPC(PROBLEM, method=oc.InteriorPoint(time_limit=10.0))
    run = mpc.simulate(off([0.3, 0.2, 0.0, 0.3]), 5)
    assert (run.statuses == oc.Status.SOLVED).all()
    mpc = oc.MPC(PROBLEM, method=oc.InteriorPoint(time_limit=1e-9))
    plan = mpc.init(GOAL)
    for _ in range(3):  # one iteration is made in any case
        u, plan = mpc.step(plan, off([0.5, 0.3, 0.0, 0.5]))
    assert plan.status == oc.Status.TIME_LIMIT
    assert plan.iterations == 1
    assert jnp.isfinite(u).all()


def jerk_limited(horizon=50):
    """A triple integrator that follows a saw tooth; large weights, hard limits of speed and acceleration."""
    Ts = 0.005
    A = np.array([[1, Ts, Ts**2 / 2], [0, 1, Ts], [0, 0, 1.0]])
    B = np.array([[Ts**3 / 6], [Ts**2 / 2], [Ts]])
    limits = np.array([np.inf, 10.0, 50.0])
    problem = oc.Problem(
        oc.LinearDynamics(A, B), lambda x, u, t, p: p["scale"] * (1e4 * (x[0] - p["r"][t]) ** 2 + 1e-6 * u @ u),
        lambda x, p: p["scale"] * (1e8 * (x[0] - p["r"][-1]) ** 2 + 1e-2 * x[1] ** 2 + 1e-3 * x[2] ** 2),
        horizon=horizon, x0=np.zeros(3), params={"scale": 1.0, "r": np.zeros(horizon + 1)}, u_min=-8e3, u_max=8e3,
        x_min=-limits, x_max=limits,
    )  # fmt: skip
    return problem, lambda k: 2.5 + 3 * ((Ts * np.arange(k, k + horizon + 1)) % 1.0)


JERK_LIMITED, SAW = jerk_limited()


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_every_sample_is_solved_and_limits_hold_on_any_scale_of_the_cost(scale):
    """Also where the reference jumps into and out of the preview, which changes what is active all over the plan."""
    params = lambda k: {"scale": scale, "r": SAW(k + 140)}
    run = oc.MPC(JERK_LIMITED).simulate(np.zeros(3), 60, params=params)
    assert (run.statuses == oc.Status.SOLVED).all()
    assert np.abs(run.xs[:, 2]).max() < 50 + 1e-6
    assert np.abs(run.us).max() <= 8e3 + 1e-6


@np.errstate(all="ignore")
def uncompiled(function, *arguments):
    return function(*arguments)


def counting(monkeypatch, change):
    """Return the iterations of 15 samples with what a warm start is given changed; compiled anew, without caches."""
    import optctl.control.mpc as module

    settle = oc.shooting.interior_point.settle_first
    monkeypatch.setattr(module, "settle_first", lambda p, c, xs, us, warm, s: settle(p, c, xs, us, change(warm), s))
    monkeypatch.setattr(module, "now", uncompiled)
    monkeypatch.setattr(module, "around_the_kernel", lambda function: functools.partial(uncompiled, function))
    controller = oc.MPC(PROBLEM)
    x, iterations = off([0.9, 0.5, 0.0, 1.0]), []
    plan = controller.init(x)
    resolve = jax.jit(controller.step)
    for _ in range(15):
        u, plan = resolve(plan, x)
        iterations.append(int(plan.iterations))
        x = MOVE(x, u)
        assert plan.status == oc.Status.SOLVED
    return np.array(iterations)


def test_warm_starts_live_on_the_multipliers(monkeypatch):
    """A few Newton steps with those of the last plan; without them every sample is as good as cold."""
    warm = counting(monkeypatch, lambda warm: warm)
    without = counting(monkeypatch, lambda warm: warm | {"y": 0.0 * warm["y"]})
    assert warm[1:].mean() < 5
    assert without[1:].mean() > 2 * warm[1:].mean()


def test_costates_move_on_with_the_plan(monkeypatch):
    """By Bellman's principle those of the next plan are those of the last one, a stage later."""
    import optctl.control.mpc as module

    seen = {}
    monkeypatch.setattr(module, "now", uncompiled)
    monkeypatch.setattr(module, "around_the_kernel", lambda function: functools.partial(uncompiled, function))
    monkeypatch.setattr(
        module, "settle_first",
        lambda p, c, xs, us, warm, s: seen.update(warm) or oc.shooting.interior_point.settle_first(p, c, xs, us, warm, s),
    )  # fmt: skip
    controller = oc.MPC(PROBLEM)
    x = off([0.3, 0.2, 0.0, 0.3])
    first = CONTROLLER.init(x)
    _, second = controller.step(first, MOVE(x, first.us[0]))
    off_by = np.abs(seen["costates"] - second.z.costates)[1:-1].max()
    assert off_by < 0.05 * np.abs(first.z.costates - second.z.costates)[1:-1].max()
    assert second.iterations < 5


def test_simulation_moves_the_parameters_of_the_model():
    """A disturbance that the controller is told is compensated exactly."""
    disturbed = oc.Dynamics(lambda x, u, t, p: x + 0.5 * u + p["d"], nx=1, nu=1)
    problem = oc.Problem(
        disturbed, lambda x, u, t, p: x[0] ** 2 + 1e-3 * u @ u, terminal_cost=lambda x, p: x @ x, horizon=10, x0=[0.0],
        params={"d": 0.0}, u_min=-5.0, u_max=5.0,
    )  # fmt: skip
    for options in ({}, {"real_time": True}, {"du_max": 10.0}):
        run = oc.MPC(problem, **options).simulate([0.0], 12, params=lambda k: {"d": 1.0 if k >= 5 else 0.0})
        assert abs(run.xs[-1, 0]) < 0.05
        assert abs(run.us[-1, 0] + 2.0) < 0.05


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
@pytest.mark.parametrize("prepared", [False, True])
def test_real_time_iterations_take_new_parameters(transform, prepared):
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u, t, r: (x[0] - r) ** 2 + 1e-6 * u @ u,
        lambda x, r: (x[0] - r) ** 2, horizon=5, x0=[0.0], params=0.0, u_min=-5.0, u_max=5.0,
    )  # fmt: skip
    mpc = oc.MPC(problem, real_time=True)
    plan = mpc.init([0.0])
    plan = mpc.prepare(plan, 3.0) if prepared else plan
    u, plan = transform(mpc.step)(plan, jnp.zeros(1), jnp.asarray(10.0))
    assert abs(u[0] - 5.0) < 1e-3
    plan = mpc.prepare(plan, 10.0)
    u, plan = transform(mpc.step)(plan, jnp.array([5.0]), jnp.asarray(3.0))
    assert abs(u[0] + 2.0) < 1e-3


def test_init_and_step_run_inside_jit():
    @jax.jit
    def first_inputs(x):
        plan = CONTROLLER.init(x)
        u, plan = CONTROLLER.step(plan, x)
        return plan.us[0], u, plan.status

    x = jnp.asarray(off([0.3, 0.2, 0.0, 0.3]))
    _, u, status = first_inputs(x)
    assert status == oc.Status.SOLVED
    np.testing.assert_allclose(u, CONTROLLER.init(x).us[0], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"du_max": 0.6}])
def test_rows_of_the_measured_state_alone_are_no_matter_of_the_plan(options):
    """A speed at or above its limit, 0.3, is brought below it in one step; rows with the input count from u_0 on."""
    problem = oc.Problem(
        oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]]),
        lambda x, u: (x[0] - 2.0) ** 2 + 0.1 * u @ u, horizon=20, x0=[0.0, 0.0], u_min=-1.0, u_max=1.0,
        path_inequality=lambda x, u: jnp.array([x[1] - 0.3, u[0] + 2.0 * x[1] - 0.5]),
    )  # fmt: skip
    mpc = oc.MPC(problem, **options)
    for speed, want in ((0.0, 0.5), (0.3, -0.1), (0.35, -0.5)):
        plan = mpc.init([0.0, speed])
        assert plan.converged
        u, plan = mpc.step(plan, [0.0, speed])
        assert plan.converged
        np.testing.assert_allclose(u, [want], atol=1e-5)
        assert plan.xs[1:, 1].max() <= 0.3 + 1e-6


def test_the_cost_of_a_plan_counts_what_soft_rows_are_missed_by():
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: u @ u, horizon=3, x0=[2.0],
        terminal_inequality=oc.Soft(lambda x: x - 1.0, l1=0.1),
    )  # fmt: skip
    mpc = oc.MPC(problem)
    plan = mpc.init([2.0])
    want = oc.solve(problem, method="interior_point").raise_if_failed()
    np.testing.assert_allclose([plan.cost, mpc.step(plan, [2.0])[1].cost], want.cost, rtol=1e-5)
    np.testing.assert_allclose(want.cost, 0.1 - 3 * 0.05**2, rtol=1e-7)  # u = -0.05 at each stage, the rest is paid


def test_an_input_that_the_caller_changes_in_place_is_not_the_plans():
    problem = oc.Problem(
        oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]]),
        lambda x, u: x @ x + u @ u,
        horizon=5,
        x0=np.zeros(2),
    )
    controller = oc.MPC(problem, du_max=0.1)
    found = []
    for factor in (1.0, 0.0):
        plan = controller.init(np.array([9.0, 0.0]))
        for _ in range(3):
            u, plan = controller.step(plan, np.array([9.0, 0.0]))
            found.append(float(u[0]))
            u *= factor
    np.testing.assert_allclose(found[3:], found[:3], atol=1e-9)
    assert found[2] < found[1] < found[0] < 0.0
