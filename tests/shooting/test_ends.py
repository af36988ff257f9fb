"""However a solve ends: cost, states, inputs, parameters and residuals belong to one point, and no row is forgotten."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl import _native
from optctl.engine import graphs
from optctl.judge import evaluation, interpreter
from optctl.shooting import native
from optctl.solvers.judged import judged

GOAL = jnp.array([1.2, 0.0])
SWING = oc.discretize(lambda x, u: jnp.array([x[1], u[0] - jnp.sin(x[0])]), 0.1, nx=2, nu=1)


def crossing(limit):
    """Zermelo's crossing in T <= limit; it takes 5.46."""
    step = oc.discretize(lambda x, u, t, T: T * jnp.stack([jnp.cos(u[0]) - x[1], jnp.sin(u[0])]), 0.1, nx=2, nu=1)
    return oc.Problem(
        step, lambda x, u: 0.01 * u @ u, lambda x, T: T, horizon=10, x0=[3.66, -1.86], params=0.9 * limit,
        params_min=0.1, params_max=limit, u_max=2.0, terminal_equality=lambda x: x,
    )  # fmt: skip


def swing(**rows):
    return oc.Problem(SWING, lambda x, u: x @ x + 0.1 * u @ u, lambda x: 3.0 * x @ x, horizon=8, x0=[0.9, 0.3], **rows)


def prices(problem, xs, us):
    """The prices of path rows, from the definition of a soft constraint."""
    total = 0.0
    for name in ("path_inequality", "path_equality"):
        row = getattr(problem, name)
        if row is not None:
            c = np.array([row(x, u, t, None) for t, (x, u) in enumerate(zip(xs[:-1], us, strict=True))])
            miss = np.abs(c) if name == "path_equality" else np.maximum(c, 0.0)
            total += np.sum(row.l1 * miss + row.l2 * miss**2 / 2)
    return total


LOW = lambda x, u: jnp.array([x[0] - 0.5, 0.2 - u[0]])
UNFINISHED = {
    "parameters": (crossing(2.0), ("us", "params")),
    "a few inputs": (crossing(3.0), ("us", "params")),
    "soft rows": (swing(path_inequality=oc.Soft(LOW, l1=0.2, l2=0.3)), ("us",)),
    "soft equalities": (swing(path_equality=oc.Soft(LOW, l1=0.2, l2=0.3)), ("us",)),
}


@pytest.mark.parametrize("most", [3, 5])
@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_solve_tells_of_one_point(name, most):
    problem, free = UNFINISHED[name]
    guess = {} if free == ("us",) else {"xs": np.linspace(problem.x0, [0, 0], 11), "us": np.full((10, 1), 0.3)}
    solution = oc.solve(problem, free=free, method=oc.InteriorPoint(max_iterations=most), **guess)
    assert not solution.converged
    assert solution.status != oc.Status.DISAGREEMENT
    assert solution.checked == "NumPy"
    xs, us, p = np.asarray(solution.xs), np.asarray(solution.us), solution.params
    cost = float(problem.trajectory_cost(xs, us, p)) + prices(problem, xs, us)
    np.testing.assert_allclose(solution.cost, cost, rtol=1e-12)
    steps = [problem.dynamics.step(x, u, t, p) for t, (x, u) in enumerate(zip(xs[:-1], us, strict=True))]
    np.testing.assert_allclose(solution.residuals["dynamics"], np.abs(np.array(steps) - xs[1:]), atol=1e-12)
    names = {"path_inequality", "path_equality"} & set(solution.residuals)
    assert names == {n for n in ("path_inequality", "path_equality") if getattr(problem, n) is not None}
    assert all(np.shape(solution.residuals[n]) == (8, 2) for n in names)


def test_an_infeasible_final_time_costs_what_it_is():
    problem = crossing(1.0).replace(stage_cost=None)
    xs = np.linspace(problem.x0, [0, 0], 11)
    solution = oc.solve(problem, np.full((10, 1), 2.3), xs=xs, free=("us", "params"))
    assert not solution.converged
    assert float(solution.cost) == float(solution.params)
    assert 0.1 <= float(solution.params) <= 1.0


OTHERS = {
    "the cost": (lambda s: {"cost": s.cost + 1e-5}, "value of `cost`"),
    "a state": (lambda s: {"xs": s.xs.at[4, 0].add(1e-5)}, "residual of `dynamics` at stage 3"),
    "a residual": (
        lambda s: {"residuals": s.residuals | {"u_max": s.residuals["u_max"].at[2, 0].set(1e-4)}},
        "residual of `u_max` at stage 2",
    ),
    "an input": (lambda s: {"us": s.us.at[3, 0].set(9.0)}, "residual of `dynamics` at stage 3"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_solution_is_judged_as_well(name):
    problem = swing(u_max=0.3, path_inequality=LOW)
    solution = oc.solve(problem, method=oc.InteriorPoint(max_iterations=3))
    assert solution.status == oc.Status.ITERATION_LIMIT
    solution = jax.tree.map(jnp.asarray, solution)
    assert judged(problem, solution).status == oc.Status.ITERATION_LIMIT
    change, words = OTHERS[name]
    found = judged(problem, dataclasses.replace(solution, **change(solution)))
    assert found.status == oc.Status.DISAGREEMENT
    assert words in found.note


def passing(row, **changes):
    """On the way to GOAL; the row counts at the first stages, too, which makes nothing infeasible there."""
    step = oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]])
    return oc.Problem(
        step, lambda x, u: 0.01 * (x - GOAL) @ (x - GOAL) + 0.001 * u @ u, horizon=25, x0=[0.0, 0.0], u_min=-8.0,
        u_max=8.0, terminal_equality=lambda x: x - GOAL, path_inequality=row, **changes,
    )  # fmt: skip


def wall(x, u):
    """A row that depends on something near the goal alone, where comparisons hide it."""
    return jnp.where(jnp.abs(x[:1] - GOAL[0]) < 0.3, 0.25, -1.0)


def test_a_row_that_seems_to_depend_on_nothing_is_looked_at_again():
    given = passing(wall)
    for solution in (
        oc.solve(given),
        jax.jit(lambda x0: oc.solve(given.replace(x0=x0), method="interior_point"))(jnp.zeros(2)),
        oc.solve(given, method=oc.InteriorPoint(time_limit=60.0)),
    ):
        assert not solution.converged
        assert solution.status == oc.Status.STALLED
        assert float(solution.certificate.primal_feasibility) == 0.25
    assert {(v.constraint, v.amount) for v in solution.violations()} == {("path_inequality", 0.25)}
    assert "violated: path_inequality[0] at stage" in solution.message


def test_a_row_with_a_price_is_paid_where_it_is_missed():
    solution = oc.solve(passing(oc.Soft(wall, l1=3.0))).raise_if_failed()
    missed = np.sum(np.abs(np.asarray(solution.xs)[:-1, 0] - 1.2) < 0.3)
    plain = oc.solve(passing(lambda x, u: -1 - 0 * u))
    np.testing.assert_allclose(solution.cost, plain.cost + 3.0 * 0.25 * missed, rtol=1e-7)
    assert missed > 3
    np.testing.assert_allclose(solution.history.cost[-1], solution.cost, rtol=1e-9)


@pytest.mark.skipif(not _native.available(), reason="tapes are run by the compiled kernels")
def test_a_tape_that_nobody_can_check_is_not_used(monkeypatch):
    """A loop that NumPy gives up is no exception of ours: JAX iterates, and nobody claims to have checked."""
    gain = lambda p: jax.lax.while_loop(lambda c: c[0] < 6, lambda c: (c[0] + 1, 0.9 * c[1]), (0, p))[1]
    problem = oc.Problem(
        oc.Dynamics(lambda x, u, t, p: gain(p) * x + u, nx=1, nu=1), lambda x, u: x @ x + u @ u, horizon=4, x0=[1.0],
        params=1.5, u_max=0.1,
    )  # fmt: skip
    right = oc.solve(problem, method="interior_point").raise_if_failed()
    assert right.checked == "NumPy"
    for cache in (native._TAPES, graphs._GRAPHS, evaluation._FUNCTIONS):
        cache.clear()
    monkeypatch.setattr(interpreter, "MOST_TURNS", 3)
    solution = oc.solve(problem, method="interior_point").raise_if_failed()
    np.testing.assert_allclose(solution.us, right.us, atol=1e-9)
    assert solution.checked == ""
    with pytest.raises(ValueError, match="a function that NumPy cannot check: a loop of it takes more than 3 turns"):
        oc.solve(problem, method=oc.InteriorPoint(backend="native"))
    native._TAPES.clear()
    graphs._GRAPHS.clear()
