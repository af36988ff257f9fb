"""Problems in other variables: what `Problem.map` carries, and that it refuses what it cannot."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.control.model import controlled
from optctl.dynamics.view import KnownInputs, ViewedDynamics
from optctl.policies.closed_loop import UnderPolicy
from optctl.shooting.lift import lift

LABELS = oc.Labels(("position [m]", "rate [m/s]"), ("force [N]",))


def full(**changes):
    """A problem with every field that a given x_0 allows."""
    fields = {
        "dynamics": oc.Dynamics(
            lambda x, u, t, p: x + 0.1 * jnp.stack([x[1], p["k"] * u[0] - jnp.sin(x[0]) + 0.01 * t]), 2, 1, LABELS
        ),
        "stage_cost": lambda x, u, t, p: x @ x + p["w"] * u @ u + 0.1 * t * u[0],
        "terminal_cost": lambda x, p: p["w"] * x @ x,
        "initial_cost": lambda x, p: p["k"] * x[0],
        "horizon": 6,
        "x0": [1.0, 0.5],
        "params": {"k": 2.0, "w": 0.3},
        "u_min": -1.0,
        "u_max": [2.0],
        "x_min": np.full((7, 2), -3.0),
        "x_max": [np.inf, 2.0],
        "params_min": 0.1,
        "params_max": {"k": 3.0, "w": 4.0},
        "path_inequality": oc.Soft(lambda x, u, t: jnp.stack([x[0] - 2.0, u[0] * x[1] - t]), l1=[0.5, np.inf], l2=0.2),
        "path_equality": oc.Soft(lambda x, u: u[:1] * 0.1 - x[:1], l1=0.7),
        "terminal_inequality": lambda x, p: x * p["k"] - 1.0,
        "terminal_equality": oc.Soft(lambda x: x[:1], l1=2.0, l2=1.0),
    }
    return oc.Problem(**(fields | changes))


# A controller gives soft equalities two sides (tests/solvers/test_forms.py), so what it carries is compared with hard ones.
HARD = {"path_equality": lambda x, u: u[:1] * 0.1 - x[:1], "terminal_equality": lambda x: x[:1]}
X, U, T = jnp.array([0.3, -0.2]), jnp.array([0.7]), jnp.asarray(4)
P = {"k": jnp.asarray(1.3), "w": jnp.asarray(0.8)}
GAIN = jnp.array([[-0.5, 0.1]])
OFFSET = jnp.array([0.01, 0.02])


def lifted(problem):
    flat = jnp.array([1.3, 0.8])
    new = lift(problem, P, 2, 1)
    x = jnp.concatenate([X, flat])
    return new, (x, U, T, None), (X, U, T, P), lambda x_next: jnp.concatenate([x_next, flat])


def with_rates(problem):
    new = controlled(problem, 2, 1, jnp.dtype(float), 0.5)
    x = jnp.concatenate([X, jnp.array([0.1])])
    return new, (x, U, T, (P, OFFSET)), (X, U, T, P), lambda x_next: jnp.concatenate([x_next + OFFSET, U])


def closed(problem):
    new = oc.closed_loop(problem.replace(params_min=None, params_max=None), lambda x, t, K: K @ x + 0.1 * t)
    return new, (X, jnp.zeros(0), T, GAIN), (X, GAIN @ X + 0.4, T, problem.params), lambda x_next: x_next


def known_inputs(problem):
    us = jnp.linspace(0.1, 0.7, 6)[:, None]
    view = KnownInputs(us)
    problem = problem.replace(u_min=None, u_max=None)
    new = problem.map(view, ViewedDynamics(problem.dynamics, view, 2, 0))
    return new, (X, jnp.zeros(0), T, P), (X, us[4], T, P), lambda x_next: x_next


WAYS = (lifted, with_rates, closed, known_inputs)


@pytest.mark.parametrize("way", WAYS)
def test_functions_prices_and_dynamics_are_the_same_in_other_variables(way):
    old = full(**(HARD if way is with_rates else {}))
    new, there, here, after = way(old)
    np.testing.assert_array_equal(new.dynamics.step(*there), after(old.dynamics.step(*here)))
    np.testing.assert_array_equal(new.stage_cost(*there), old.stage_cost(*here))
    for name in ("terminal_cost", "initial_cost", "terminal_inequality", "terminal_equality"):
        np.testing.assert_array_equal(getattr(new, name)(there[0], there[3]), getattr(old, name)(here[0], here[3]))
    for name in ("path_inequality", "path_equality"):
        m = old.path_inequality(*here).size if name == "path_inequality" else 1
        np.testing.assert_array_equal(getattr(new, name)(*there)[:m], getattr(old, name)(*here))
    for name in ("path_inequality", "path_equality", "terminal_inequality", "terminal_equality"):
        m = 2 if name.endswith("inequality") else 1
        rows = getattr(new, name)(*there).shape if name.startswith("path") else (m,)
        for ours, given in zip(
            getattr(new, name).prices(rows, float), getattr(old, name).prices((m,), float), strict=True
        ):
            np.testing.assert_array_equal(ours[:m], given)
            assert np.all(np.isin(ours[m:], [np.inf, 0.0]))  # rows that were added are hard
    assert new.horizon == old.horizon


@pytest.mark.parametrize("way", WAYS)
def test_memory_and_labels_are_carried(way):
    new, *_ = way(full(memory="sqrt"))
    assert new.memory == "sqrt"
    assert new.dynamics.labels.states[:2] == LABELS.states


def test_bounds_go_with_the_states_and_parameters():
    old = full()
    new, *_ = lifted(old)
    np.testing.assert_array_equal(new.x_max, [np.inf, 2.0, np.inf, np.inf])
    np.testing.assert_array_equal(new.x_min[3], [-3.0, -3.0, -np.inf, -np.inf])
    np.testing.assert_array_equal(new.x0_min, [-np.inf, -np.inf, 0.1, 0.1])
    np.testing.assert_array_equal(new.x0_max, [np.inf, np.inf, 3.0, 4.0])
    np.testing.assert_array_equal(new.u_max, old.u_max)
    assert new.params_min is None
    new, *_ = with_rates(full(**HARD))
    np.testing.assert_array_equal(new.x_max, [np.inf, 2.0, np.inf])
    at = jnp.concatenate([X, jnp.array([0.1])])
    np.testing.assert_allclose(new.path_inequality(at, U, T, (P, OFFSET))[2:], [0.1, -1.1])  # |0.7 - 0.1| <= 0.5
    new, there, here, _ = closed(old)
    np.testing.assert_allclose(new.path_inequality(*there)[2:], [-1.0 - here[1][0], here[1][0] - 2.0])
    assert new.u_min is None
    np.testing.assert_array_equal(new.x_min, old.x_min)


def test_what_a_view_cannot_carry_is_named():
    problem = full()
    with pytest.raises(ValueError, match="`params_min` cannot be carried into a closed loop, which holds the plant's"):
        oc.closed_loop(problem, lambda x: x[:1])
    view = KnownInputs(jnp.zeros((6, 1)))
    with pytest.raises(ValueError, match="`u_min` cannot be carried into a problem whose inputs are given"):
        problem.map(view, ViewedDynamics(problem.dynamics, view, 2, 0))
    view = UnderPolicy(problem.stage_cost, P)
    with pytest.raises(ValueError, match="`params` cannot be carried into a closed loop"):
        full(params_min=None, params_max=None, u_min=None, u_max=None).map(view, problem.dynamics)


def test_a_field_added_later_is_not_lost():
    """Whoever adds a field to Problem has to say how it is carried."""

    @oc.record(static=("horizon", "memory"))
    class Longer(oc.Problem):
        scale: float = 1.0

    fields = {field.name: getattr(full(), field.name) for field in dataclasses.fields(oc.Problem)}
    view = KnownInputs(jnp.zeros((6, 1)))
    problem = Longer(**fields | {"u_min": None, "u_max": None})
    with pytest.raises(TypeError, match="does not know how to carry the field `scale`"):
        problem.map(view, ViewedDynamics(problem.dynamics, view, 2, 0))


def test_prices_are_checked():
    with pytest.raises(ValueError, match="`l1` and `l2` are both 0"):
        oc.Soft(lambda x: x, l1=0.0)
    with pytest.raises(ValueError, match=r"`l2` has shape \(3,\); expected a number, or \(2,\)"):
        oc.Soft(lambda x: x, l1=[1.0, 2.0], l2=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="`l2` is inf"):
        oc.Soft(lambda x: x, l2=np.inf)
    with pytest.raises(ValueError, match=r"`l1` of `path_equality` has shape \(3,\); expected a number, or \(1,\)"):
        full(path_equality=oc.Soft(lambda x, u: u, l1=[1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="`stage_cost` is a Soft, which is for constraints"):
        full(stage_cost=oc.Soft(lambda x, u: u @ u))
