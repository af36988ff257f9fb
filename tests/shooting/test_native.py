"""The compiled iterations of the interior point method against their definition in JAX."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl import _native
from optctl._arrays import to_host
from optctl.shooting import native
from optctl.shooting.barrier import NUMBERS
from optctl.shooting.expansion import expand
from optctl.shooting.interior_point import Settings, certified, iterate, make_program, now, start
from optctl.shooting.rows import flatten
from optctl.shooting.scaling import Scales

NATIVE, DEFINITION = oc.InteriorPoint(backend="native"), oc.InteriorPoint(backend="jax")


def everything():
    """Every kind of row, one of them in force at least somewhere, and what makes each function differ between stages."""
    mesh = jnp.linspace(0.05, 0.15, 12)
    pendulum = oc.discretize(
        lambda x, u, t, p: [x[1], u[0] - p["g"] * jnp.sin(x[0]) + 0.1 * u[1] * t], mesh, nx=2, nu=2
    )
    return oc.Problem(
        pendulum,
        lambda x, u, t, p: 0.1 * (x - p["ref"][t]) @ (x - p["ref"][t]) + 0.02 * u @ u,
        lambda x: 2.0 * jnp.sum(jnp.cosh(x - 0.5)),
        lambda x: 5.0 * (x[0] - 1.0) ** 2,
        params={"g": jnp.asarray(9.0), "ref": jnp.stack([jnp.linspace(0, 1, 12), jnp.zeros(12)], 1)},
        x0_min=[-0.5, 0.2],
        x0_max=[0.9, 0.2],
        x_min=[-np.inf, -1.5],
        x_max=jnp.full((13, 2), 2.0).at[5, 0].set(0.7),
        u_min=-4.0,
        u_max=[4.0, np.inf],
        path_inequality=oc.Soft(
            lambda x, u: jnp.stack([u[0] * u[1] - 1.0, 0.1 - x[0]]), l1=[0.3, np.inf], l2=[0.1, 0.0]
        ),
        path_equality=lambda x, u, t: jnp.array([jnp.where(t < 6, u[1] - 0.3 * x[0], u[1] ** 3 + u[1] - 0.2)]),
        terminal_inequality=lambda x: x[1:] - 0.3,
        terminal_equality=lambda x: x[:1] ** 2 - 0.25,
    )


def detour():
    """A guess from which the feasibility phase has to help: the disk hides the goal."""
    return oc.Problem(
        oc.discretize(lambda x, u: jnp.array([u[0] * jnp.cos(x[2]), u[0] * jnp.sin(x[2]), u[1]]), 0.1, nx=3, nu=2),
        lambda x, u: 0.01 * u @ u,
        horizon=20,
        x0=[0.0, 0.0, 0.0],
        path_inequality=lambda x, u: jnp.array([0.5 - (x[0] - 1.0) ** 2 - x[1] ** 2]),
        terminal_equality=lambda x: x - jnp.array([2.0, 0.2, 0.0]),
        u_min=-2.0,
        u_max=2.0,
    )


def quadratic():
    """A quadratic program: predictor-corrector steps, soft rows and a free x_0 among them."""
    A = jnp.array([[1.0, 0.1], [0.0, 1.0]])
    return oc.Problem(
        oc.LinearDynamics(A, [[0.0], [0.1]]),
        oc.costs.Quadratic(jnp.eye(2), 0.1 * jnp.eye(1)),
        oc.costs.TerminalQuadratic(5.0 * jnp.eye(2)),
        lambda x: 50.0 * (x - 1.0) @ (x - 1.0),
        horizon=15,
        u_min=-1.0,
        u_max=1.0,
        x0_max=[0.9, 2.0],
        path_inequality=oc.Soft(lambda x, u: -0.2 - x[1:], l1=0.5, l2=0.1),
        terminal_equality=lambda x: x[:1] - 0.1,
    )


@pytest.mark.big
@pytest.mark.parametrize("make", [everything, detour, quadratic])
def test_iterates_are_those_of_the_definition(make):
    x0 = np.zeros(2) if make is everything else None
    ours, definition = (oc.solve(make(), x0=x0, method=method) for method in (NATIVE, DEFINITION))
    assert ours.converged
    assert make is not quadratic or ours.iterations < 16
    assert ours.iterations == definition.iterations
    for column in ("cost", "infeasibility", "barrier", "regularization", "step"):
        a, b = getattr(ours.history, column), getattr(definition.history, column)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9, err_msg=column)
    for name in ("xs", "us", "costates", "K", "k"):
        tolerance = 1e-5 if name in "Kk" else 1e-7  # gains see the weights of active rows, near 1e8
        a, b = getattr(ours, name), getattr(definition, name)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)
    assert ours.multipliers.keys() == definition.multipliers.keys()
    for name, value in definition.multipliers.items():
        np.testing.assert_allclose(ours.multipliers[name], value, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("x0", [[0.9, 0.2], [0.0, 0.2], [0.13, -0.13], [-0.5, 1.0]])
def test_minima_of_the_violation_beside_bounds_are_left_again(x0):
    """From these guesses the feasibility phase used to end at -- falsely -- "locally infeasible"."""
    sol = oc.solve(everything(), x0=np.array(x0), method=NATIVE)
    assert sol.converged, sol
    assert sol.cost < 8.6352219


WEAK = oc.problems.ZOO["cartpole_weak"]()


def disturbed(count):
    """Guesses of the weak cart-pole's states with two waves on top, as large as the states themselves."""
    s, waves = np.pi * np.linspace(0, 1, 51)[:, None], np.random.default_rng(1).normal(size=(count, 2, 4))
    return WEAK.xs + waves[:, :1] * np.sin(s) + waves[:, 1:] * np.sin(3 * s)


def test_before_a_claim_of_infeasibility_the_phase_begins_anew_from_a_straight_line(monkeypatch):
    """Of these guesses 5 of 8 ended at a minimum of the violation; alone, in a batch, in a controller."""
    solutions = [oc.solve(WEAK.problem, method=NATIVE, xs=xs) for xs in disturbed(8)]
    assert all(s.converged for s in solutions), solutions
    np.testing.assert_allclose([s.cost for s in solutions], WEAK.optimum, rtol=1e-8)
    numbers = np.array([float(NUMBERS.get(name, 0.0)) for name in _native.operand_names()["numbers"]])
    numbers[_native.operand_names()["numbers"].index("retried")] = 1.0
    monkeypatch.setattr(native, "_first_numbers", lambda: numbers)
    without = [oc.solve(WEAK.problem, method=NATIVE, xs=xs).status for xs in disturbed(8)]
    assert without.count(oc.Status.INFEASIBLE) == 5
    monkeypatch.undo()
    batch = jax.vmap(lambda xs: oc.solve(WEAK.problem, method=NATIVE, xs=xs))(disturbed(3))
    assert batch.iterations.tolist() == [int(s.iterations) for s in solutions[:3]]
    plan = oc.MPC(WEAK.problem).init(WEAK.problem.x0, xs=disturbed(1)[0])
    assert plan.converged, plan


def test_a_final_time_at_its_bound_is_no_excuse():
    """With 0.1 s to go the violation is least there, since no time can be gained: false, of a car that may take 60 s."""
    car = oc.discretize(lambda x, u, t, p: p * jnp.stack([x[1], u[0] - 0.1 * x[1] * jnp.abs(x[1])]), 1 / 20, nx=2, nu=1)
    for x0, T in (([3.0, 1.0], 1.1), ([3.0, 1.0], 4.0), ([1.0, 1.0], 1.1), ([1.0, 1.0], 4.0)):
        problem = oc.Problem(
            car, terminal_cost=lambda x, p: p, horizon=20, x0=x0, params=jnp.asarray(T), params_min=0.1,
            params_max=60.0, u_min=-1.0, u_max=1.0, terminal_equality=lambda x: x,
        )  # fmt: skip
        xs = np.linspace(x0, np.zeros(2), 21)
        assert oc.solve(problem, method=NATIVE, xs=xs, free=("us", "params")).converged, (x0, T)


def beyond(**changes):
    """A goal out of reach of inputs that are never zero, with a soft row, and a limit of the states."""
    step = oc.discretize(lambda x, u: jnp.stack([x[1], u[0] - jnp.sin(x[0])]), 0.1, nx=2, nu=1)
    problem = oc.Problem(
        step, lambda x, u: x @ x + u @ u, horizon=8, x0=[0.0, 0.0], u_min=0.5, u_max=2.0, x_max=[np.inf, 1.2],
        path_inequality=oc.Soft(lambda x, u: x[:1] - 0.2, l1=1.0, l2=0.1),
        terminal_equality=lambda x: x - jnp.array([3.0, 0.0]),
    )  # fmt: skip
    return problem.replace(**changes)


@pytest.mark.big
def test_the_second_beginning_is_that_of_the_definition():
    ours, definition = (oc.solve(beyond(), method=method) for method in (NATIVE, DEFINITION))
    for s in (ours, definition):
        assert s.status == oc.Status.INFEASIBLE
        assert "straight line" in s.message
    assert ours.iterations == definition.iterations < 60
    worst = np.asarray(ours.history.infeasibility)
    assert np.nanmax(worst) > 10 * worst[0]  # where it began anew
    np.testing.assert_allclose(worst, definition.history.infeasibility, rtol=1e-8)
    np.testing.assert_allclose(ours.us, definition.us, rtol=1e-8)
    assert np.all((ours.us > 0.5) & (ours.us < 2.0))
    assert np.all(ours.xs[:, 1] < 1.2)


def test_where_the_line_is_outside_a_functions_domain_the_claim_is_made_at_once():
    """The cost |u| has no slope without inputs."""
    problem = beyond(stage_cost=lambda x, u: jnp.sqrt(u @ u), u_min=-2.0, path_inequality=None)
    sol = oc.solve(problem, np.ones((8, 1)), method=NATIVE)
    assert sol.status == oc.Status.INFEASIBLE, sol
    assert np.isfinite(sol.cost)


def test_a_batch_is_its_problems_one_by_one():
    problem = oc.problems.ZOO["cartpole_push"]()
    x0s = np.array([[0.01], [0.3], [1.0], [1.5], [2.0]]) * np.random.default_rng(1).normal(size=(5, 4))

    def solve(x0):
        return oc.solve(problem.problem.replace(x0=x0), problem.us, NATIVE, xs=problem.xs)

    sols = jax.vmap(solve)(jnp.asarray(x0s))
    for k, x0 in enumerate(x0s):
        alone = solve(x0)
        assert sols.iterations[k] == alone.iterations
        np.testing.assert_allclose(sols.us[k], alone.us, rtol=1e-9, atol=1e-9)
    assert len(set(np.asarray(sols.iterations).tolist())) > 1


@pytest.mark.big
def test_what_no_tape_holds_is_solved_by_the_definition():
    M = jnp.array([[2.0, 0.3], [0.3, 1.0]])
    problem = oc.Problem(
        oc.Dynamics(lambda x, u: x + u / jnp.linalg.eigvalsh(M + jnp.diag(x**2)), nx=2, nu=2),
        lambda x, u: x @ x + u @ u,
        horizon=3,
        x0=[1.0, -1.0],
        u_max=0.2,
    )
    with pytest.raises(ValueError, match=r"`backend` is 'native', but .*eigh.*'jax'"):
        oc.solve(problem, method=NATIVE)
    assert oc.solve(problem, method=oc.InteriorPoint()).converged
    with pytest.raises(ValueError, match="`backend` is 'fast'"):
        oc.InteriorPoint(backend="fast")
    single = oc.Problem(
        oc.Dynamics(lambda x, u: x + u, nx=1, nu=1), lambda x, u: x @ x, horizon=3, x0=np.ones(1, np.float32)
    )
    with pytest.raises(ValueError, match="float64, and the data are float32"):
        oc.solve(single, method=NATIVE)


def test_values_that_a_function_captures_under_jit_are_not_frozen():
    @jax.jit
    def first_input(target):
        problem = oc.Problem(
            oc.LinearDynamics([[1.0]], [[1.0]]),
            lambda x, u: (x[0] - target) ** 2 + 0.1 * u[0] ** 2,
            horizon=4,
            x0=[0.0],
            u_max=0.5,
        )
        return oc.solve(problem, method=NATIVE).us[0, 0]

    assert abs(first_input(jnp.asarray(10.0)) - 0.5) < 1e-6
    assert first_input(jnp.asarray(-1.0)) < -0.5


def test_the_kernel_carries_the_numbers_of_the_state():
    assert set(_native.operand_names()["numbers"]) == set(NUMBERS)


@pytest.mark.big
def test_units_change_on_the_way_into_tapes_and_out_of_them(rng):
    """Whatever the units of states, inputs, rows and cost: iterates, expansion and gains are the definition's."""
    problem, settings = everything(), Settings(1e-8, None, True, 20)
    xs, us = 0.3 + 0.1 * rng.normal(size=(13, 2)), 0.1 * rng.normal(size=(12, 2))
    xs, us, params = jnp.asarray(xs), jnp.asarray(us), problem.params
    program = make_program(problem, xs, us, params, (True, True), settings)
    state = start(program, xs, us, None, settings)
    x, u = jnp.array([2.0, 0.3]), jnp.array([0.5, 7.0])
    rows = {}
    for name, shape in program.rows.shapes:
        own = 1 / (u if name[0] == "u" else x) if name[-4:] in ("_min", "_max") else rng.uniform(0.2, 5.0, shape[-1])
        rows[name] = jnp.broadcast_to(jnp.asarray(own), shape)
    scales = Scales(x, u, flatten(rows, xs.dtype, xs), jnp.asarray(0.07))
    z = replace(
        state.z, costates=jnp.asarray(rng.normal(size=(13, 2))), y=state.z.y * rng.uniform(0.5, 2, state.z.y.shape)
    )
    state = replace(state, scales=scales, z=z)
    for stop in (0, 3):
        made = [
            jax.jit(iterate, static_argnums=3)(replace(program, natively=natively), state, settings, stop)
            for natively in (True, False)
        ]
        for ours, definition in zip(*[jax.tree.leaves((m.z, m.e, m.K, m.mu)) for m in made], strict=True):
            np.testing.assert_allclose(ours, definition, rtol=1e-7, atol=1e-9)


GUESSES = {
    "zero": (0.0, 0.0, None), "usual": (0.4, 0.3, None), "tiny": (1e-9, 1e-9, None), "large": (9.0, 3e5, None),
    "given": (0.4, 0.0, {"x": jnp.array([3.0, 700.0]), "u": jnp.array([0.02, 5.0])}),
    "inputs given": (0.0, 0.0, {"u": jnp.array([300.0, 0.3])}),
}  # fmt: skip


@pytest.mark.parametrize("guess", GUESSES)
def test_the_first_state_is_that_of_the_definition(guess, rng):
    """Scales, also from a step, the guess inside its bounds, slacks, multipliers and barrier; on the host and traced."""
    of_x, of_u, scale = GUESSES[guess]
    problem, settings = everything(), Settings(1e-8, None, True, 20, scale=scale)
    xs, us = of_x * (1 + 0.1 * rng.normal(size=(13, 2))), of_u * (1 + 0.1 * rng.normal(size=(12, 2)))
    program = make_program(problem, jnp.asarray(xs), jnp.asarray(us), problem.params, (True, False), settings)
    traced, definition = (
        jax.jit(start)(replace(program, natively=natively), xs, us, None, settings) for natively in (True, False)
    )
    hosted = now(start, *to_host((program, xs, us, None, settings)))
    for ours in (traced, hosted):
        for name in ("z", "scales", "mu", "floor", "theta_first", "first_cost", "mark", "mu_restore", "phase"):
            for a, b in zip(*[jax.tree.leaves(getattr(s, name)) for s in (ours, definition)], strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("rows", ["all", "some off"])
def test_the_certificate_of_the_kernel_is_that_of_the_definition(rows, rng):
    """Each figure, at points where nothing holds and multipliers have either sign."""
    problem, settings = everything(), Settings(1e-8, None, True, 20, gains=False)
    xs, us = jnp.asarray(rng.normal(size=(13, 2))), jnp.asarray(rng.normal(size=(12, 2)))
    program = make_program(problem, xs, us, problem.params, (True, False), settings)
    if rows == "some off":
        off = jnp.asarray(rng.random(program.rows.inequality.size) < 0.3)
        path = {name: jnp.full(shape, name.startswith("path")) for name, shape in program.rows.shapes}
        off = off & flatten(path, bool, xs)
        kept = {name: getattr(program.rows, name) & ~off for name in ("inequality", "equality", "soft")}
        program = replace(program, rows=replace(program.rows, off=off, **kept))
    state = start(program, xs, us, None, settings)
    for size in (1e-3, 1.0, 50.0):
        drawn = {name: jnp.asarray(size * rng.normal(size=v.shape)) for name, v in vars(state.z).items()}
        z = replace(state.z, **drawn | {name: jnp.abs(drawn[name]) for name in "sev"})
        on = program.rows.inequality | program.rows.equality
        z = replace(z, y=jnp.where(on, z.y, 0.0))
        at = native.measured(program, replace(state, z=z), settings)
        ours, strict = certified(program, at, at.z, settings)
        definition, other = certified(program, replace(at, figures=None), at.z, settings)
        for name, value in vars(definition).items():
            np.testing.assert_allclose(getattr(ours, name), value, rtol=1e-9, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(strict, other, rtol=1e-9)


def test_a_guess_that_stays_is_expanded_once_and_one_that_moves_anew():
    """Slacks and the first violation are those of the guess that was pushed inside its bounds."""
    problem, settings = quadratic(), Settings(1e-8, None, True, 20)
    us = np.zeros((15, 1))
    for value, moved in ((0.5, False), (3.0, True)):
        xs = np.full((16, 2), value)
        program = make_program(problem, xs, us, None, (True, True), settings)
        state = now(start, program, xs, us, None, settings)
        assert bool(jnp.any(state.z.xs != xs)) == moved
        at = expand(problem, program.rows, state.z.xs, state.z.us, None, state.z.costates, state.z.y).at
        np.testing.assert_allclose(state.first_cost * state.scales.cost, at.cost, rtol=1e-12)
