"""What a user's function may not do is said in the user's words: which function, which line, what to write instead."""

import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc

TABLE = [1.0, 2.0, 3.0]
PLANT = oc.LinearDynamics(np.eye(2), [[0.0], [1.0]])


def branch(x, u):
    if x[0] > 0:
        return x + u
    return x


def problem(dynamics=PLANT, cost=lambda x, u: u @ u, **constraints):
    return oc.Problem(dynamics, cost, horizon=3, x0=[1.0, 0.0], **constraints)


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (branch, r"`f` decides by the value .* jnp.where.*line \d+ of test_messages.py: if x\[0\] > 0"),
        (lambda x, u: jnp.cos(x) * max(x[0], 0.0), "`f` decides by the value .* jnp.maximum"),
        (lambda x, u: jnp.cos(np.sin(x)), "`f` hands an array to NumPy, beside functions of JAX; write jnp.sin"),
        (lambda x, u: jnp.sin(np.array([x[0], u[0]])), "`f` hands an array to NumPy.*jnp.array"),
        (lambda x, u: jnp.array([float(x[0]), 1.0]), r"`f` asks an array for its number, as float\(x\)"),
        (lambda x, u: jnp.cos(x) * math.sin(x[0]), "`f` asks an array for its number.*jnp.sin for math.sin"),
        (lambda x, u, t: x * TABLE[t], r"`f` counts or indexes .*jnp.asarray\(table\)\[t\]"),
        (lambda x, u, t: x * sum(1.0 for _ in range(t)), "`f` counts or indexes.*fori_loop"),
        (lambda x, u: x[x > 0], r"`f` picks entries by a mask.*np.where\(mask.*jnp.where"),
    ],
)
def test_numbers_that_are_not_there_yet(f, says):
    with pytest.raises(ValueError, match=says):
        oc.solve(problem(oc.Dynamics(f, 2, 1)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: problem(path_inequality=lambda x, u: x[2:]), "`path_inequality` returns no rows; leave it out"),
        (lambda: problem(terminal_equality=lambda x: x[2:]), "`terminal_equality` returns no rows"),
        (
            lambda: problem(oc.discretize(lambda x, u: [x[1], u[0]], 0.1), u_max=5.0),
            r"`us` is missing, and the dynamics do not tell the number of inputs.*nx=2, nu=1",
        ),
        (
            lambda: problem(params={"T": 1.0}, params_min={"T": 0.1}),
            r"they bound what is not free \(free: us\); free that, too",
        ),
        (
            lambda: problem(params={"T": 1.0}, params_min={"T": 0.5}, params_max={"T": 0.1}),
            r"`params_min\['T'\]` exceeds `params_max\['T'\]`, by 0.4",
        ),
        (
            lambda: problem(params={"T": 1.0}, params_min={"T": 0.5, "l": 0.1}),
            "`params_min` and `params` differ in structure.*'l'.*'T'",
        ),
    ],
)
def test_what_is_missing_or_misnamed_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        oc.solve(make())


LIN, K0 = problem(), jnp.zeros((1, 2))
DOORS = {
    "stage_cost": lambda: oc.solve(problem(cost=lambda x, u: u @ u if x[0] > 0 else 2 * u @ u)),
    "terminal_cost": lambda: oc.gradient(
        LIN.replace(terminal_cost=lambda x: x[0] if x[0] > 0 else -x[0]), np.zeros((3, 1))
    ),
    "path_inequality": lambda: oc.solve(problem(path_inequality=lambda x, u: np.sin(x[x > 0]))),
    "terminal_inequality": lambda: oc.solve(problem(terminal_inequality=oc.Soft(lambda x: jnp.cos(np.sin(x))))),
    "ode": lambda: oc.discretize(branch, 0.1, nx=2, nu=1).rollout([1.0, 0.0], np.zeros((3, 1))),
    "policy": lambda: oc.train_policy(LIN, lambda x, t, K: K @ np.sin(x[x > 0]), K0, jnp.ones((1, 2)), steps=1),
    "loss": lambda: oc.train(lambda p, batch: float(p[0]), jnp.zeros(1), jnp.ones((3, 1))),
    "layers[0]": lambda: oc.gradient(
        oc.Problem(
            oc.Layers([lambda x, W: np.tanh(x @ W) if x[0] > 0 else x]), None, lambda x: x @ x, params=[jnp.eye(2)]
        ),
        None,
        x0=jnp.ones(2),
    ),
    "when": lambda: oc.integrate(
        oc.ODE(lambda z: -z), [1.0], [0.0, 1.0], event=oc.Event(lambda z: jnp.cos(math.sin(z[0])))
    ),
    "reset": lambda: oc.integrate(
        oc.ODE(lambda z: -z),
        [1.0],
        [0.0, 1.0],
        event=oc.Event(lambda z: z[0] - 0.5, reset=lambda z: jnp.sin(np.abs(z))),
    ),
    "running_cost": lambda: oc.ode_gradient(
        oc.ODE(lambda z: -z), lambda zs: zs[-1, 0], [1.0], [0.0, 1.0], running_cost=lambda z: jnp.sin(float(z[0]))
    ),
}
VERBS = {
    "rollout": lambda f: f.rollout([1.0, 0.0], np.zeros((3, 1))),
    "check_adjoint": oc.check_adjoint,
    "costate_growth": lambda f: oc.costate_growth(f, np.zeros((4, 2)), np.zeros((3, 1))),
    "memory_report": lambda f: oc.memory_report(problem(f), np.zeros((3, 1))),
    "multistart": lambda f: oc.multistart(problem(f), np.zeros((3, 1))),
    "MPC": lambda f: oc.MPC(problem(f)).init([1.0, 0.0]),
    "to_cvxpy": lambda f: oc.to_cvxpy(problem(f)),
}


@pytest.mark.parametrize("name", DOORS)
def test_every_function_is_called_by_its_name(name):
    with pytest.raises(ValueError) as caught:
        DOORS[name]()
    assert str(caught.value).startswith(f"`{name}` ")
    assert "test_messages.py" in str(caught.value)
    assert "jnp." in str(caught.value)


@pytest.mark.parametrize("verb", VERBS)
def test_every_door_explains(verb):
    with pytest.raises(ValueError, match="`f` decides by the value"):
        VERBS[verb](oc.Dynamics(branch, 2, 1))


def test_other_mistakes_keep_their_own_words():
    with pytest.raises(ValueError, match=r"`f` fails on arguments of shapes \(2,\), \(1,\), \(\).*\(2,\) and \(5,\)"):
        oc.solve(problem(oc.Dynamics(lambda x, u, t: x @ jnp.ones(5), 2, 1)))


# Indices beyond the end, which JAX replaces by the nearest one.

HUNDREDS = jnp.arange(300.0, 303.0)  # as many as stages
KEY, WEIGHT = jax.random.key(0), 1e-17
BEYOND = {
    "an input": (lambda: problem(oc.Dynamics(lambda x, u: x + u[3], 2, 1)), "`f` takes entry 3 of an axis of 1"),
    "from the end": (lambda: problem(oc.Dynamics(lambda x, u: x + u[-2], 2, 1)), "`f` takes entry -2 of an axis of 1"),
    "a cost": (lambda: problem(cost=lambda x, u: x[2] ** 2), "`stage_cost` takes entry 2 of an axis of 2"),
    "several": (
        lambda: problem(cost=lambda x, u: x[jnp.array([0, 5])] @ x),
        "`stage_cost` takes entry 5 of an axis of 2",
    ),
    "a path": (lambda: problem(path_inequality=lambda x, u: jnp.stack([x[7]])), "`path_inequality` takes entry 7"),
    "an end": (lambda: problem(terminal_equality=lambda x: x[3] * x), "`terminal_equality` takes entry 3"),
    "a parameter": (
        lambda: problem(cost=lambda x, u, t, params: params[4] * u @ u, params=np.ones(2)),
        "`stage_cost` takes entry 4 of an axis of 2",
    ),
    "a table by stage": (
        lambda: problem(cost=lambda x, u, t: HUNDREDS[t + 1] * u @ u),
        "`stage_cost` takes entry 3 at stage 2 of an axis of 3.*jnp.clip",
    ),
    "a table backward": (
        lambda: problem(cost=lambda x, u, t: HUNDREDS[3 - t] * u @ u),
        "`stage_cost` takes entry 3 of an axis of 3",
    ),
    "an ODE": (
        lambda: oc.solve(problem(oc.discretize(lambda x, u: jnp.array([x[1], u[1]]), 0.1, nx=2, nu=1))),
        r"`ode` takes entry 1 of an axis of 1.*line \d+ of test_messages.py.*u\[1\]",
    ),
    "a row in a loop": (
        lambda: problem(cost=lambda x, u: jax.lax.fori_loop(0, 3, lambda i, s: s + x[i], 0.0) + u @ u),
        "`stage_cost` takes entry 2 of an axis of 2",
    ),
    "a branch": (
        lambda: problem(cost=lambda x, u: jax.lax.cond(x[0] > 0, lambda: x[9], lambda: 0.0) + u @ u),
        "`stage_cost` takes entry 9",
    ),
    "an entered branch": (
        lambda: problem(cost=lambda x, u, t: jax.lax.cond(t > 1, lambda: HUNDREDS[t + 1], lambda: 0.0) + u @ u),
        "`stage_cost` takes entry 3 at stage 2 of an axis of 3",
    ),
    "a write": (lambda: problem(oc.Dynamics(lambda x, u: x.at[2].set(u[0]), 2, 1)), "`f` writes to entry 2 .*nothing"),
    "a policy": (
        lambda: oc.train_policy(LIN, lambda x, t, K: K[2] @ x, jnp.zeros((1, 2)), jnp.ones((1, 2)), steps=1),
        "`policy` takes entry 2 of an axis of 1",
    ),
    "integrate": (lambda: oc.integrate(lambda z: -z[1] * z, [1.0], [0.0, 1.0]), "`f` takes entry 1 of an axis of 1"),
    "an event": (
        lambda: oc.integrate(lambda z: -z, [1.0], [0.0, 1.0], event=oc.Event(lambda z: z[4])),
        "`when` takes entry 4 of an axis of 1",
    ),
}
LEGAL = {
    "from the end": lambda x, u, t: x[-2] + u[-1],
    "slices": lambda x, u, t: x[:9] @ x[0:2],
    "data": lambda x, u, t: HUNDREDS[x[0].astype(int) + 7],
    "clipped": lambda x, u, t: HUNDREDS[jnp.clip(t + 5, 0, 2)],
    "clamped": lambda x, u, t: HUNDREDS[jax.lax.clamp(0, t + 5, 2)] + HUNDREDS[jnp.minimum(7 * t, 2)],
    "taken": lambda x, u, t: jnp.take(x, 7, mode="clip") + x.at[7].get(mode="fill", fill_value=0.0),
    "dropped": lambda x, u, t: x.at[2].set(u[0], mode="drop")[0],
    "dropped on lines": lambda x, u, t: x.at[2].set(
        u[0],
        mode="drop",
    )[0],
    "some dropped": lambda x, u, t: x.at[jnp.array([0, 2])].add(1.0)[0],
    "not chosen": lambda x, u, t: jnp.where(t < 1, HUNDREDS[t + 2], 0.0),
    "not entered": lambda x, u, t: jax.lax.cond(t < 1, lambda: HUNDREDS[t + 2], lambda: 0.0),
    "masked": lambda x, u, t: jnp.array([1.0, 0.0]) @ (jnp.array([1.0, 0.0]) * x[jnp.array([1, 2])]),
    "a loop": lambda x, u, t: jax.lax.fori_loop(0, 2, lambda i, s: s + x[i], 0.0),
    "of the library": lambda x, u, t: (
        jnp.interp(x[0], jnp.arange(3.0), HUNDREDS) + jnp.roll(x, 3)[0] + jnp.convolve(x, x)[2] + jnp.sort(x)[1]
    ),
    "not used": lambda x, u, t: (x[5], x[0])[1],
    "a random key": lambda x, u, t: jax.random.normal(KEY, (2,)) @ x,
    "no weight": lambda x, u, t: (1 - WEIGHT) * HUNDREDS[t] + WEIGHT * HUNDREDS[t + 1],
    "shapes only": lambda x, u, t: jnp.zeros(0).sum() + jnp.kron(x, x)[3] + jnp.outer(x, x)[jnp.triu_indices(2)][2],
}


@pytest.mark.parametrize("name", BEYOND)
def test_an_index_beyond_the_end_is_refused(name):
    make, says = BEYOND[name]
    with pytest.raises(ValueError, match=says) as caught:
        make()
    assert "test_messages.py" in str(caught.value)


@pytest.mark.parametrize("name", LEGAL)
def test_legal_indices_are_let_be(name):
    problem(cost=lambda x, u, t: LEGAL[name](x, u, t) + u @ u)


def test_indices_are_looked_at_once():
    calls = []

    def cost(x, u, t):
        calls.append(1)
        return HUNDREDS[t] * u @ u

    first = problem(cost=cost)
    many = len(calls)
    for k in range(5):
        first.replace(x0=[1.0, float(k)])
    assert len(calls) == many


# What is no number is none at any door.

NOT_NUMBERS = {
    "True": (True, "`{}` is not numeric: it is True"),
    "word": ("3", "`{}` is not numeric: it is '3'"),
    "words": (["1", "2"], "`{}` is not numeric: it holds '1'"),
    "a bool in a list": ([1.0, True], "`{}` is not numeric: it holds True"),
    "masked": (np.ma.array([1.0, 2.0], mask=[False, True]), r"`{}` has masked entries.*{}.filled\(...\)"),
    "one masked": (np.ma.masked, "`{}` has masked entries"),
    "too large": (10**400, "`{}` is too large"),
    "an object": (object(), "`{}` is not numeric: expected an array, got object"),
    "ragged": ([[1.0], [1.0, 2.0]], "`{}` is not numeric: .*inhomogeneous"),
    "a function": (abs, "`{}` is not numeric"),
    "complex": (np.array([1j, 0.0]), "`{}` has dtype complex128"),
    "a date": (np.datetime64("2026-01-01"), "`{}` is not numeric"),
}
TAKES_NUMBERS = {
    "x0": lambda v: problem().replace(x0=v),
    "u_max": lambda v: problem(u_max=v),
    "us": lambda v: oc.gradient(LIN, v),
    "x": lambda v: oc.MPC(LIN).init(v),
    "A": lambda v: oc.LinearDynamics(v, [[1.0]]),
    "Q": lambda v: oc.costs.Quadratic(v, 1.0),
    "dt": lambda v: oc.discretize(lambda x, u: x, v),
    "l1": lambda v: oc.Soft(lambda x: x, v),
    "z0": lambda v: oc.integrate(lambda z: -z, v, [0.0, 1.0]),
    "spread": lambda v: oc.multistart(LIN, np.zeros((3, 1)), spread=v),
}


@pytest.mark.parametrize("kind", NOT_NUMBERS)
@pytest.mark.parametrize("name", TAKES_NUMBERS)
def test_what_is_no_number_is_refused(name, kind):
    value, says = NOT_NUMBERS[kind]
    with pytest.raises(ValueError, match=says.format(name, name)):
        TAKES_NUMBERS[name](value)


def test_numbers_of_other_kinds_are_numbers():
    for value in (10**20, [10**20], np.float32(1e20), jnp.asarray(1e20)):
        assert np.isinf(problem(u_max=value).u_max).all()
    assert problem(u_max=fractions.Fraction(1, 2)).u_max == 0.5
    assert problem(u_max=np.ma.array([2.0])).u_max == 2.0
    assert problem(u_min=-1e19, x_max=[3.0, 1e30]).x_max[1] == np.inf
    assert problem(u_max=9e18).u_max == 9e18
    bounded = oc.Problem(PLANT, horizon=2, x0=[0.0, 0.0], params={"T": 1.0}, params_max=1e25)
    assert bounded.params_max["T"] == np.inf
    with pytest.raises(ValueError, match=r"`u_min` holds \+inf: no point is feasible"):
        problem(u_min=1e20)


def test_parameters_may_be_given_to_solve_alone():
    free = oc.solve(problem(cost=lambda x, u, params: (params - 2.0) ** 2), np.zeros((3, 1)), params=1.0, free="params")
    np.testing.assert_allclose(free.params, 2.0, atol=1e-6)


def test_a_bound_of_great_size_is_none():
    free = oc.solve(LIN, method="interior_point")
    bounded = oc.solve(LIN.replace(u_max=1e25, x_min=-1e300), method="interior_point")
    assert bounded
    np.testing.assert_allclose(bounded.us, free.us, atol=1e-12)


# Arguments of the wrong kind.

CURVED = oc.discretize(lambda x, u: [x[1], jnp.sin(x[0]) + u[0]], 0.1, nx=2, nu=1)
SERIES = oc.LinearGaussian(np.eye(1), np.eye(1), 1.0, 1.0, [0.0], 1.0)
WRONG = [
    (lambda: oc.to_cvxpy(oc.solve(LIN)), "`problem` is a Solution; expected optctl.Problem"),
    (lambda: oc.multistart(3, np.zeros((3, 1))), "`problem` is a int; expected optctl.Problem"),
    (lambda: oc.check_adjoint(LIN), "`dynamics` is a Problem; expected Dynamics"),
    (lambda: oc.costate_growth(3, np.zeros((4, 2)), np.zeros((3, 1))), "`dynamics` is a int"),
    (lambda: oc.check_adjoint(PLANT, horizon=2.5), "`horizon` is 2.5; expected a positive whole number"),
    (lambda: oc.check_adjoint(PLANT, seed=-1), "`seed` is -1; expected a whole number, at least 0"),
    (lambda: oc.check_gradient(LIN, np.zeros((3, 1)), seed="a"), "`seed` is 'a'"),
    (lambda: oc.check_adjoint(PLANT, params="a"), "`params` is not numeric"),
    (lambda: problem(params=["1", True]), r"`params\[0\]` is not numeric: it is '1'"),
    (lambda: problem(params={"a": np.ma.masked}), r"`params\['a'\]` has masked entries"),
    (lambda: oc.memory_report(LIN, np.zeros(3)), r"`us` has shape \(3,\); expected any number of rows and 1 col"),
    (lambda: oc.memory_report(LIN, np.zeros((3, 1)), modes=3), "`memory` is 3; expected 'full'"),
    (lambda: problem(memory=np.ones(2)), "`memory` is of type ndarray; expected 'full'"),
    (lambda: problem().replace(horizon=10**400), "`horizon` is a number of more than 20 digits; expected at most"),
    (lambda: oc.ILQR(max_iterations=2**40), "`max_iterations` is 1099511627776; expected at most 2147483647"),
    (lambda: oc.GradientDescent(step=np.ones(2)), "`step` is of type ndarray; expected one of 'bb', 'armijo'"),
    (lambda: oc.InteriorPoint(callback=lambda: 1), r"`callback` takes other arguments.*callback\(solution\)"),
    (lambda: oc.InteriorPoint(failed_derivative=[]), r"`failed_derivative` is \[\]; expected NaN, or 0"),
    (lambda: oc.InteriorPoint(time_limit=True), "`time_limit` is True; expected seconds > 0"),
    (lambda: oc.InteriorPoint(barrier=10**400), "`barrier` is a number of more than 20 digits"),
    (lambda: oc.solve(LIN, verbose=2), "`verbose` is 2; expected True or False"),
    (lambda: oc.solve(LIN, tolerance=np.ma.masked), "`tolerance` is masked; expected a number >= 0"),
    (lambda: oc.solve(LIN, free=()), r"`free` is \(\); expected names among .*, at least one.*optctl.gradient"),
    (lambda: oc.solve(LIN, free=3), "`free` is 3; expected names among 'us', 'x0', 'params', at least one"),
    (lambda: oc.solve(LIN, free=np.ones(2)), "`free` is of type ndarray"),
    (
        lambda: oc.solve(oc.Problem(oc.Dynamics(lambda x, u: x, 1, 0), lambda x, u: x @ x, horizon=2, x0=[1.0])),
        "nothing is free: the dynamics have no inputs, x0 is given, the problem has no params",
    ),
    (lambda: oc.MPC(LIN, tolerance="a"), "`tolerance` is 'a'; expected a number >= 0"),
    (lambda: oc.MPC(LIN, real_time="no"), "`real_time` is 'no'; expected True or False"),
    (lambda: oc.MPC(LIN).simulate([1.0, 0.0], 2, plant=3), r"`plant` is a int; expected a function plant\(x, u, k\)"),
    (lambda: oc.MPC(LIN).simulate([1.0, 0.0], 2, lambda x, u: x), r"`plant` takes other arguments.*plant\(x, u, k\)"),
    (lambda: oc.MPC(LIN).simulate([1.0, 0.0], 2, params=3), r"`params` is a int; expected a function params\(k\)"),
    (
        lambda: oc.MPC(LIN).simulate([1.0, 0.0], 2, plan=3),
        "`plan` is a int; expected what `init` or the last `step` returned",
    ),
    (lambda: oc.kalman_filter(SERIES, np.ones(3), square_root="no"), "`square_root` is 'no'; expected True or False"),
    (lambda: oc.kalman_filter(SERIES, np.ones(3), method=[]), r"`method` is \[\]; expected one of 'auto'"),
    (lambda: oc.integrate(lambda z: -z, [1.0], [0.0, 1.0], rtol="a"), "`rtol` is 'a'; expected a positive number"),
    (lambda: oc.integrate(lambda z: -z, [1.0], [0.0, 1.0], atol=np.inf), "`atol` is inf; expected a positive number"),
    (lambda: oc.integrate(lambda z: -z, [1.0], [0.0, 1.0], max_steps=10**30), "`max_steps` is a number of more than"),
    (lambda: oc.discretize(lambda x, u: x, []), r"`dt` is \[\]; expected a positive step length"),
    (lambda: oc.discretize(lambda x, u: x, 0.1, hold=[1]), r"`hold` is \[1\]; expected one of 'constant', 'linear'"),
    (lambda: oc.multistart(LIN, np.zeros((3, 1)), spread=-1.0), "`spread` is -1.0; expected a number >= 0"),
    (lambda: oc.train(lambda p: p[0], jnp.zeros(1), jnp.ones((3, 1))), r"`loss` takes other .*loss\(params, batch\)"),
    (lambda: oc.refine(problem(CURVED, None), 3), "`solution` is a int; expected what optctl.solve returned"),
    (lambda: oc.solve(LIN, free=("us", "params")), "`free` names params, but the problem has none"),
    (
        lambda: oc.MPC(LIN).step(oc.MPC(LIN.replace(horizon=2)).init([1.0, 0.0]), [1.0, 0.0]),
        r"`plan.us` has shape \(2, 1\); expected \(3, 1\)",
    ),
    (lambda: oc.hessian_vector_product(LIN, np.zeros((3, 1)), dx0=[np.nan, 0.0]), "`dx0` holds NaN or inf"),
    (lambda: oc.models.CartPole("a"), "`mc` is not numeric: it is 'a'"),
    (lambda: oc.mlp([2, 1]).init("a"), "`key` is 'a'; expected a whole number"),
    (lambda: oc.multistart(LIN, np.zeros((0, 3, 1))), "`us` holds no guesses"),
    (lambda: oc.refine(problem(CURVED, None), oc.solve(LIN), method="no"), "`method` is 'no'; expected one of lq"),
    (lambda: oc.to_cvxpy(problem(CURVED)), r"`dynamics` is not linear \(.*\); expected a linear-quadratic problem"),
    (lambda: oc.plot.trajectory(3), "`sol` is a int; expected a result that has xs"),
    (lambda: oc.train(lambda p, b: p @ p, jnp.ones(2), ["a"]), r"`data\[0\]` is not numeric: it is 'a'"),
    (
        lambda: oc.train(lambda p, b: p @ p, jnp.ones(2), np.ones((3, 1)), validation=np.ones((3, 2))),
        r"`validation` has shape \(3, 2\); expected any number of rows and 1 column",
    ),
    (
        lambda: oc.train_policy(LIN, lambda x, t, K: K @ x, K0, lambda key: jnp.ones(3), steps=1),
        r"`x0s` returns shape \(3,\); expected \(2,\)",
    ),
    (lambda: problem(oc.Dynamics(lambda x, u: None, 2, 1)), r"`f` returns None \(is a `return` missing\?\)"),
    (lambda: problem(oc.Dynamics(lambda x, u: {"a": x}, 2, 1)), r"`f` returns a dict; expected \(2,\)"),
    (lambda: problem(cost=lambda x, u: "a"), "`stage_cost` returns a str; expected arrays of numbers"),
    (lambda: problem(cost=lambda x, u: (x @ x, u @ u)), "`stage_cost` returns a tuple; expected a scalar"),
]


@pytest.mark.parametrize(("make", "says"), WRONG)
def test_arguments_of_the_wrong_kind_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


WHOLE = {
    "nx": lambda n: oc.Dynamics(lambda x, u: x, n, 1).nx,
    "nu": lambda n: oc.discretize(lambda x, u: x, 0.1, nx=2, nu=n).nu,
    "horizon": lambda n: problem().replace(horizon=n).horizon,
    "max_iterations": lambda n: oc.ILQR(max_iterations=n).max_iterations,
    "callback_every": lambda n: oc.InteriorPoint(callback_every=n).callback_every,
    "most": lambda n: oc.Event(lambda z: z[0], most=n).most,
    "n": lambda n: oc.pde.Burgers(n, dt=1e-3).n,
    "steps": lambda n: len(oc.train(lambda p, b: p @ p, jnp.ones(1), np.ones((3, 1)), steps=n, batch_size=n).history),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_is_one_in_every_form(name):
    for three in (3, 3.0, np.int32(3), np.float64(3.0), np.asarray(3), jnp.asarray(3)):
        kept = WHOLE[name](three)
        assert type(kept) is int
        assert kept == 3
    for other in (*[None] * (name not in ("nx", "nu", "steps")), True, 2.5, "3", -1, np.ones(1), [], np.ma.masked):
        with pytest.raises(ValueError, match=f"`{'batch_size' if name == 'steps' else name}` is "):
            WHOLE[name](other)


WITHOUT_PARAMS = {
    "solve": oc.solve,
    "gradient": lambda p: oc.gradient(p, np.zeros((3, 1))),
    "to_cvxpy": oc.to_cvxpy,
    "MPC": lambda p: oc.MPC(p).init([1.0, 0.0]),
    "multistart": lambda p: oc.multistart(p, np.zeros((3, 1))),
    "memory_report": lambda p: oc.memory_report(p, np.zeros((3, 1))),
}


@pytest.mark.parametrize("door", WITHOUT_PARAMS)
@pytest.mark.parametrize("cost", [lambda x, u, params: params["r"] * u @ u, lambda x, u, params: params * u @ u])
def test_missing_parameters_are_told(door, cost):
    with pytest.raises(ValueError, match=r"`stage_cost` fails .* Its `params` are None: pass params="):
        WITHOUT_PARAMS[door](problem(cost=cost))


@pytest.mark.parametrize("where", ["a global", "a cell", "a helper's", "in NumPy"])
def test_numbers_from_outside_that_changed_are_named(where):
    held = {"K": np.array([2.0, 1.0])}
    weights = [3.0]

    def helper(x):
        return weights[0] * x @ x

    costs = {
        "a global": lambda x, u: GAINS[0] * x @ x + u @ u,
        "a cell": lambda x, u: held["K"] @ x**2 + u @ u,
        "a helper's": lambda x, u: helper(x) + u @ u,
        "in NumPy": lambda x, u: held["K"] @ np.square(x) + u @ u + np.zeros(2)[0],
    }
    dynamics = oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]])
    problem = oc.Problem(dynamics, costs[where], horizon=3, x0=[1.0, 0.0])
    oc.solve(problem)
    oc.solve(problem)  # nothing has changed
    GAINS[0], held["K"][0], weights[0] = GAINS[0] + 1.0, 5.0, 4.0
    name = {"a global": "GAINS", "a helper's": "weights"}.get(where, "held")
    with pytest.warns(UserWarning, match=rf"`stage_cost` read `{name}` = \[.*when it was traced; now it is \[") as told:
        oc.solve(problem)
    assert told[0].filename == __file__
    oc.solve(problem)  # said once


def test_a_record_that_a_function_keeps_is_no_change():
    calls, many = [], [0]

    def cost(x, u):
        calls.append(1.0)
        many[0] += 1
        return x @ x + u @ u

    for horizon in (3, 3, 4):
        oc.solve(oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), cost, horizon=horizon, x0=[1.0]))
    assert calls


class Car:
    mass = 1.0

    def rate(self, x, u):
        return jnp.array([x[1], u[0] / self.mass])


@pytest.mark.parametrize("name", ["gradient", "rollout", "solve"])
def test_attributes_that_changed_are_named_by_every_call(name):
    car = Car()
    dynamics, us = oc.discretize(car.rate, 0.1, nx=2, nu=1), np.ones((3, 1))
    problem = oc.Problem(dynamics, lambda x, u: x @ x + u @ u, horizon=3, x0=[1.0, 0.0])
    call = {
        "gradient": lambda: oc.gradient(problem, us),
        "rollout": lambda: dynamics.rollout([1.0, 0.0], us),
        "solve": lambda: oc.solve(problem),
    }[name]
    call()
    car.mass += 1.0
    with pytest.warns(UserWarning, match="`ode` read `self.mass` = 1.0 .* now it is 2.0") as told:
        call()
    assert told[0].filename == __file__


GAINS = [1.0]


def test_parameters_of_another_structure_are_shown():
    def step(x, u, t, p):
        return p["mass"] * x + u

    problem = oc.Problem(oc.Dynamics(step, 1, 1), lambda x, u: u @ u, horizon=2, params={"mass": 1.0})
    with pytest.raises(ValueError, match=r"no key 'mass'. Its last argument, `params`, is {m: 2\.0}"):
        oc.gradient(problem, np.ones((2, 1)), x0=[1.0], params={"m": 2.0})


def test_parameters_of_a_problem_are_its_own():
    mass = np.array([2.0])
    problem = oc.Problem(oc.Dynamics(lambda x, u, t, p: p * x + u, 1, 1), lambda x, u: x @ x, horizon=2, params=mass)
    mass[0] = 5.0
    assert problem.params == 2.0
