"""What is remembered of a problem from one solve to the next is structure, never a number."""

import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl._record import changed


def cart(u_max=1.0, mass=2.0, price=None, goal=(0.0, 0.0)):
    def f(x, u, t, params):
        return jnp.stack([x[0] + 0.1 * x[1], x[1] + 0.1 * u[0] / params])

    def g(x, u):
        return jnp.stack([x[1] - 0.2])

    return oc.Problem(
        oc.Dynamics(f, nx=2, nu=1), oc.costs.Tracking(np.eye(2), 0.1 * np.eye(1), x_ref=np.asarray(goal)), horizon=20,
        x0=np.array([-1.0, 0.0]), params=np.asarray(mass), u_min=np.array([-1.0]), u_max=np.array([u_max]),
        path_inequality=g if price is None else oc.Soft(g, l1=price),
    )  # fmt: skip


def solved(problem, **options):
    return oc.solve(problem, method=oc.InteriorPoint(**options)).raise_if_failed()


@pytest.fixture(autouse=True, scope="module")
def seen():
    solved(cart())


@pytest.mark.big
@pytest.mark.parametrize("change", [{"u_max": 0.2}, {"mass": 1.0}, {"goal": (0.3, 0.0)}, {"price": 0.01}])
def test_other_numbers_are_seen(change):
    """After a solve of a problem alike, the answer is that of the definition, which remembers nothing."""
    problem = cart(**change)
    ours, definition = solved(problem), solved(problem, backend="jax")
    assert abs(float(ours.cost) - float(solved(cart()).cost)) > 1e-3
    np.testing.assert_allclose(ours.us, definition.us, atol=1e-7)
    assert ours.checked == "NumPy"


def test_a_bound_that_is_changed_in_place_is_another_bound():
    problem = cart()
    assert solved(problem).us.max() > 0.5
    problem.u_max[...] = 0.2
    np.testing.assert_allclose(solved(problem).us, solved(cart(0.2)).us, atol=1e-9)
    problem.u_max[...] = 1.0
    np.testing.assert_allclose(solved(problem).us, solved(cart()).us, atol=1e-9)


def test_a_solution_keeps_its_numbers_when_others_are_found():
    first = solved(cart())
    kept = {name: np.array(getattr(first, name)) for name in ("xs", "us", "costates", "K", "cost")}
    solved(cart(0.2))
    solved(cart(0.3).replace(x0=[-0.5, 0.1]))
    for name, value in kept.items():
        np.testing.assert_array_equal(getattr(first, name), value)


def test_free_names_and_guesses_of_a_problem_alike_are_checked():
    problem = cart()
    with pytest.raises(ValueError, match="`us` has shape"):
        oc.solve(problem, np.zeros((19, 1)))
    with pytest.raises(ValueError, match="holds NaN"):
        oc.solve(problem, np.full((20, 1), np.nan))
    with pytest.raises(ValueError, match="cannot take"):
        oc.solve(problem, method="ilqr")
    assert oc.solve(problem, method=oc.InteriorPoint(backend="jax")).checked == "NumPy"


def test_a_record_is_changed_in_the_fields_named_and_in_no_other():
    first = solved(cart())
    other = changed(first, note="n")
    assert other.note == "n"
    assert first.note == ""
    assert all(getattr(other, name) is getattr(first, name) for name in vars(first) if name != "note")
