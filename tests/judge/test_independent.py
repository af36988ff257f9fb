"""The independent check: it passes what is right, names what is wrong, and is silent where it cannot tell."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import optctl as oc
from optctl.judge.independent import STENCIL, STEPS, Judge, differ, differences, judge


def constrained(**changes):
    """Path rows of both kinds, bounds, a soft row, a terminal row and a free x_0, most of them in force."""
    return oc.Problem(
        oc.discretize(lambda x, u: jnp.array([x[1], u[0] - 3.0 * jnp.sin(x[0])]), 0.1, nx=2, nu=2),
        lambda x, u: x @ x + 0.1 * u @ u,
        lambda x: 3.0 * jnp.sum(jnp.cosh(x)),
        lambda x: 20.0 * jnp.sum((x - 1.0) ** 2),
        horizon=8,
        x0_max=[0.9, 2.0],
        x_min=[0.4, -np.inf],
        u_min=-2.0,
        u_max=1.5,
        path_equality=lambda x, u, t: u[1:] - 0.1 * t * x[:1],
        path_inequality=oc.Soft(lambda x, u: jnp.array([-x[1] - 0.5, x[0] - 5.0]), l1=[0.2, np.inf]),
        terminal_inequality=lambda x: x[:1] - 0.6,
        **changes,
    )


@pytest.fixture(scope="module")
def solved():
    problem = constrained()
    return problem, oc.solve(problem).raise_if_failed()


def test_a_right_solution_is_confirmed_with_figures_of_its_own(solved):
    problem, solution = solved
    assert solution.checked == "NumPy"
    found = judge(problem, solution, solution.free)
    assert found.disagreements == ()
    assert found.primal_feasibility == float(solution.certificate.primal_feasibility)
    assert found.complementarity == pytest.approx(float(solution.certificate.complementarity))


def moved(field, at, by):
    def change(solution):
        value = np.array(getattr(solution, field))
        value[at] += by
        return {field: value}

    return change


def multiplier(name, at, by):
    def change(solution):
        value = np.array(solution.multipliers[name])
        value[at] += by
        return {"multipliers": solution.multipliers | {name: value}}

    return change


WRONG = {
    "the cost": (lambda s: {"cost": s.cost * (1 + 1e-6)}, "value of `cost`"),
    "a state": (moved("xs", (3, 0), 1e-5), "gap of `f` at stage (2|3)"),
    "an input out of bounds": (moved("us", (0, 0), 9.0), "violation of `u_max` at stage 0"),
    "an input within": (moved("us", (4, 0), 1e-3), "gap of `f` at stage 4"),
    "an equality": (moved("us", (5, 1), 1e-5), "violation of `path_equality` at stage 5"),
    "a start beyond its bounds": (moved("xs", (0, 0), 0.5), "violation of `x0_max`"),
    "a state beyond its bounds": (moved("xs", (8, 0), -0.3), "violation of `x_min` at stage 8"),
    "an end": (moved("xs", (8, 0), 0.3), "violation of `terminal_inequality`"),
    "a costate": (moved("costates", (4, 1), 1e-3), "slope of `the Lagrangian` at stage (3|4)"),
    "the first costate": (moved("costates", (0, 0), 1e-3), "slope of `initial_cost`"),
    "the last costate": (moved("costates", (8, 0), 1e-3), "slope of `the Lagrangian` at stage (7|8)"),
    "a multiplier's sign": (multiplier("u_max", (2, 0), -1.0), "multiplier of `u_max` at stage 2"),
    "a multiplier without its row": (multiplier("u_min", (2, 0), 0.5), "product .* of `u_min` at stage 2"),
    "a multiplier of an equality": (multiplier("path_equality", (3, 0), 0.1), "slope of `the Lagrangian` at stage 3"),
    "a multiplier above its price": (multiplier("path_inequality", (3, 0), 9.0), "multiplier of `path_inequality`"),
    "a multiplier of the end": (multiplier("terminal_inequality", (0,), 0.1), "slope of `the Lagrangian` at stage 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(solved, name):
    problem, solution = solved
    change, match = WRONG[name]
    found = judge(problem, dataclasses.replace(solution, **change(solution)), solution.free)
    said = "; ".join(map(str, found.disagreements))
    assert re.search(match, said), said


@pytest.mark.parametrize("method", ["lq", "cg", "lbfgs", "newton_cg", "gradient_descent", "ilqr", "interior_point"])
def test_every_method_is_judged(method):
    problem = zoo.lq_problem()
    solution = oc.solve(problem, method=method)
    assert solution.checked == "NumPy"
    assert solution.converged
    for change in (moved("us", (2, 0), 1e-3), moved("costates", (3, 1), 1e-2)):
        wrong = dataclasses.replace(solution, **change(solution))
        assert judge(problem, wrong, solution.free).disagreements


def test_free_parameters_are_judged():
    problem = zoo.pendulum_problem(params_min=0.1, params_max=2.0)
    solution = oc.solve(problem, free=("us", "params"))
    assert solution.checked == "NumPy"
    assert solution.converged
    off = dataclasses.replace(solution, params={**solution.params, "b": solution.params["b"] + 0.1})
    assert judge(problem, off, solution.free).disagreements


def points(f, x, h):
    return np.array([f(x + c * h) for c in STENCIL])[:, None]


@pytest.mark.parametrize(
    ("f", "x", "right"),
    [
        (np.exp, 0.3, np.exp(0.3)),
        (lambda x: np.sin(50 * x), 1.0, 50 * np.cos(50.0)),
        (lambda x: 1e4 + x**2, 1.0, 2.0),
        (np.sqrt, 1e-2, 5.0),
    ],
)
def test_a_slope_is_confirmed_and_a_wrong_one_refuted(f, x, right):
    estimates = [differences(points(f, x, h), h) for h in STEPS]
    assert not differ(np.array([right]), estimates, abs(right), 1e-6)[0]
    assert differ(np.array([1.01 * right]), estimates, abs(right), 1e-6)[0]


@pytest.mark.parametrize(
    ("f", "x", "claimed"),
    [
        (np.abs, 0.0, 1.0),  # a kink: any slope between -1 and 1
        (np.abs, 3e-5, 1.0),  # a kink nearby
        (lambda x: np.maximum(x, 0.0), 0.0, 0.0),
        (np.sqrt, 0.0, np.inf),
        (np.log, 1e-5, 1e5),  # the edge of the domain
        (np.floor, 1.0, 0.0),
        (lambda x: (1e16 + x) - 1e16, 1.0, 1.0),  # rounding
    ],
)
def test_where_nothing_can_be_told_nothing_is_said(f, x, claimed):
    with np.errstate(all="ignore"):
        estimates = [differences(points(f, x, h), h) for h in STEPS]
    assert not differ(np.array([claimed]), estimates, abs(claimed), 1e-6)[0]


def test_solutions_on_kinks_and_at_the_edge_of_a_domain_are_not_refused():
    step = oc.LinearDynamics([[1.0]], [[1.0]])
    kink = oc.Problem(step, lambda x, u: jnp.abs(x[0]) + u @ u, lambda x: jnp.abs(x[0]), horizon=4, x0=[0.3], u_max=0.0)
    edge = oc.Problem(
        step, lambda x, u: u @ u - jnp.sum(jnp.sqrt(1.0 + u)), horizon=3, x0=[0.0], u_min=-1.0, u_max=-1.0
    )
    for problem in (kink, edge):
        assert oc.solve(problem).status != oc.Status.DISAGREEMENT


def test_a_derivative_that_is_not_that_of_the_values_is_named():
    """What is stationary for it is not for the values: no certificate, whatever JAX says."""
    cost = lambda x, u: (u[0] - 1.0) ** 2 + jax.lax.stop_gradient(0.1 * u[0])
    given = oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), cost, horizon=3, x0=[0.0], u_max=5.0)
    solution = oc.solve(given, method="lbfgs")
    assert solution.status == oc.Status.DISAGREEMENT
    assert not solution.converged
    assert "derivative along a direction of `stage_cost` at stage" in solution.message
    assert np.isfinite(solution.cost)
    with pytest.warns(RuntimeWarning, match="derivative of `stage_cost` at stage 0"):
        assert not oc.solve(given, method=oc.InteriorPoint(max_iterations=30)).converged


def test_three_points_suffice_for_what_is_right_and_all_are_asked_before_anything_is_refuted(solved, monkeypatch):
    problem, solution = solved
    looks = []
    look = Judge._look
    monkeypatch.setattr(Judge, "_look", lambda self, points: (looks.append(points), look(self, points)))
    assert not judge(problem, solution, solution.free).disagreements
    assert looks == [3]
    off = dataclasses.replace(solution, **moved("costates", (4, 1), 1e-3)(solution))
    assert judge(problem, off, solution.free).disagreements
    assert looks == [3, 3, 5]


def test_remarks_are_no_structure(solved):
    """Solutions with other words about them stack, and a compiled function takes them without compiling again."""
    _, solution = solved
    other = dataclasses.replace(solution, note="a word", checked="")
    assert jax.tree.structure(other) == jax.tree.structure(solution)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), solution, other)
    assert both.cost.shape == (2,)
    assert both.note == both.checked == ""
