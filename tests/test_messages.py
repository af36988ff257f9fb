"""What a user's function may not do is said in the user's words: which function, which line, what to write instead."""

import math

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
        (lambda x, u: x * max(x[0], 0.0), "`f` decides by the value .* jnp.maximum"),
        (lambda x, u: np.sin(x), "`f` hands an array to NumPy; write jnp.sin"),
        (lambda x, u: np.array([x[0], u[0]]), "`f` hands an array to NumPy.*jnp.array"),
        (lambda x, u: jnp.array([float(x[0]), 1.0]), r"`f` asks an array for its number, as float\(x\)"),
        (lambda x, u: x * math.sin(x[0]), "`f` asks an array for its number.*jnp.sin for math.sin"),
        (lambda x, u, t: x * TABLE[t], r"`f` counts or indexes .*jnp.asarray\(table\)\[t\]"),
        (lambda x, u, t: x * sum(1.0 for _ in range(t)), "`f` counts or indexes.*fori_loop"),
        (lambda x, u: x[x > 0], r"`f` picks entries by a mask.*jnp.where\(mask"),
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
    "terminal_cost": lambda: oc.gradient(LIN.replace(terminal_cost=lambda x: float(x[0])), np.zeros((3, 1))),
    "path_inequality": lambda: oc.solve(problem(path_inequality=lambda x, u: np.sin(x))),
    "terminal_inequality": lambda: oc.solve(problem(terminal_inequality=oc.Soft(lambda x: np.sin(x)))),
    "ode": lambda: oc.discretize(branch, 0.1, nx=2, nu=1).rollout([1.0, 0.0], np.zeros((3, 1))),
    "policy": lambda: oc.train_policy(LIN, lambda x, t, K: K @ np.sin(x), K0, jnp.ones((1, 2)), steps=1),
    "loss": lambda: oc.train(lambda p, batch: float(p[0]), jnp.zeros(1), jnp.ones((3, 1))),
    "layers[0]": lambda: oc.gradient(
        oc.Problem(oc.Layers([lambda x, W: np.tanh(x @ W)]), None, lambda x: x @ x, params=[jnp.eye(2)]),
        None,
        x0=jnp.ones(2),
    ),
    "when": lambda: oc.integrate(oc.ODE(lambda z: -z), [1.0], [0.0, 1.0], event=oc.Event(lambda z: math.sin(z[0]))),
    "reset": lambda: oc.integrate(
        oc.ODE(lambda z: -z), [1.0], [0.0, 1.0], event=oc.Event(lambda z: z[0] - 0.5, reset=lambda z: np.abs(z))
    ),
    "running_cost": lambda: oc.ode_gradient(
        oc.ODE(lambda z: -z), lambda zs: zs[-1, 0], [1.0], [0.0, 1.0], running_cost=lambda z: float(z[0])
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
