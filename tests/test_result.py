"""Every result tells in one way how its computation ended."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import optctl as oc
from optctl.result import Result

REACHABLE = oc.Problem(
    oc.LinearDynamics([[1.0]], [[1.0]]),
    lambda x, u: u @ u,
    horizon=3,
    x0=[1.0],
    u_min=-1.0,
    u_max=1.0,
    terminal_equality=lambda x: x,
)
TOO_FAR = REACHABLE.replace(x0=np.array([5.0]))  # three steps of one bring it to 2 at best


def results():
    """One converged and one failed result of each kind, as far as one can fail."""
    lq = oc.lqr([[1.0]], [[1.0]], [[1.0]], [[1.0]], x0=[1.0], horizon=5)
    flat = oc.lq.LQ.from_problem(zoo.lq_problem())
    bad = oc.lq.solve(dataclasses.replace(flat, R=-100 * flat.R))
    kinked = oc.Problem(oc.Dynamics(lambda x, u: x + jnp.abs(u), nx=1, nu=1), lambda x, u: x @ x, horizon=3, x0=[1.0])
    mpc = oc.MPC(REACHABLE)
    stiff = oc.MPC(REACHABLE, max_iterations=1)
    yield "Solution", oc.solve(REACHABLE), oc.solve(TOO_FAR)
    yield "LQSolution", lq, bad
    yield (
        "Multistart",
        oc.multistart(REACHABLE, np.zeros((3, 1)), guesses=2),
        oc.multistart(TOO_FAR, np.zeros((3, 1)), guesses=2),
    )
    yield (
        "CheckReport",
        oc.check_gradient(zoo.pendulum_problem(), np.ones((7, 1))),
        oc.check_gradient(kinked, np.zeros((3, 1))),
    )
    yield "MPCPlan", mpc.init([1.0]), stiff.step(stiff.init([1.0]), [0.5])[1]
    yield "MPCRun", mpc.simulate([1.0], 2), stiff.simulate([1.0], 2)


def test_one_protocol():
    kinds = set()
    for name, good, bad in results():
        kinds.add(name)
        for result in (good, bad):
            assert isinstance(result, Result)
            assert type(result).__name__ == name
            assert oc.Status(int(result.status)).succeeded == bool(result) == bool(result.converged)
            assert isinstance(result.message, str)
            assert int(result.stage) >= -1
            repr(result)
        assert good
        assert good.raise_if_failed() is good
        assert int(good.stage) == -1
        assert not bad
        with pytest.raises(RuntimeError, match=r"converge|NOT all hold|solved"):
            bad.raise_if_failed()
    assert kinds == {"Solution", "LQSolution", "Multistart", "CheckReport", "MPCPlan", "MPCRun"}


def test_every_public_record_with_a_status_is_a_result():
    for name in oc.__all__:
        kind = getattr(oc, name)
        if inspect.isclass(kind) and dataclasses.is_dataclass(kind) and "status" in kind.__dataclass_fields__:
            assert issubclass(kind, Result) or name in ("Trajectory", "ODEGradient"), name


def test_infeasible_names_the_rows():
    sol = oc.solve(TOO_FAR)
    assert int(sol.status) == oc.Status.INFEASIBLE
    worst = sol.violations()
    assert [v.amount for v in worst] == sorted((v.amount for v in worst), reverse=True)
    ours = next(v for v in worst if v.constraint == "terminal_equality")
    assert (ours.stage, ours.row) == (3, 0)
    np.testing.assert_allclose(sum(v.amount for v in worst), 2.0, atol=1e-4)  # what is missing, wherever it went
    assert "terminal_equality[0] at stage 3 by 0.5" in sol.message
    assert int(sol.stage) >= 0
    assert sol.violations(least=1.0) == []


def test_the_violated_row_is_told_apart_from_its_neighbors():
    """Of two rows at eight stages one cannot hold, at one stage: x_5[1] <= -1 where x_1 stays at 2 from x_0 on."""
    problem = oc.Problem(
        oc.LinearDynamics(np.eye(2), [[1.0], [0.0]]),
        lambda x, u: u @ u,
        horizon=8,
        x0=[0.0, 2.0],
        path_inequality=lambda x, u, t: jnp.array([x[0] - 50.0, jnp.where(t == 5, x[1] + 1, x[1] - 50.0)]),
    )
    sol = oc.solve(problem)
    rows = [v for v in sol.violations() if v.constraint == "path_inequality"]
    assert [(v.stage, v.row) for v in rows] == [(5, 1)]
    assert "path_inequality[1] at stage 5" in sol.message


def test_free_parameters_are_named_in_what_is_violated():
    problem = oc.Problem(
        oc.Dynamics(lambda x, u, t, p: x + p * u, nx=1, nu=1),
        lambda x, u, t, p: u @ u,
        horizon=3,
        x0=[5.0],
        params=1.0,
        params_min=0.1,
        params_max=1.2,
        u_min=-1.0,
        u_max=1.0,
        terminal_equality=lambda x: x,
    )
    sol = oc.solve(problem, free=("us", "params"))
    assert {v.constraint for v in sol.violations()} == {"terminal_equality", "dynamics"}
    assert sol.residuals["dynamics"].shape == (3, 1)
    assert "free: us, params" in repr(sol)


def test_failed_members_of_a_batch_cost_nothing_that_can_win():
    x0s = jnp.array([[1.0], [5.0], [-1.5]])
    batch = jax.jit(jax.vmap(lambda x0: oc.solve(TOO_FAR.replace(x0=x0))))(x0s)
    np.testing.assert_allclose(batch.cost, [1 / 3, np.nan, 0.75], rtol=1e-6)
    assert batch.converged.tolist() == [True, False, True]
    assert batch.stage.tolist()[::2] == [-1, -1]
    assert batch.message.startswith("2 x solved; 1 x locally infeasible")
    assert np.isfinite(oc.solve(TOO_FAR).cost)
    slopes = jax.vmap(jax.grad(lambda x0: oc.solve(TOO_FAR.replace(x0=x0)).cost))(x0s[::2])
    np.testing.assert_allclose(slopes, [[2 / 3], [-1.0]], rtol=1e-6)
    for method in ("ilqr", "lbfgs"):  # every method, one way
        one = oc.solve(zoo.pendulum_problem(), method=method, max_iterations=1, tolerance=1e-12)
        assert not one
        assert np.isfinite(one.cost)
    costs = jax.vmap(lambda x0: oc.solve(zoo.pendulum_problem().replace(x0=x0), method="ilqr", max_iterations=1).cost)(
        jnp.array([[2.0, 0.0], [0.0, 0.0]])
    )
    assert np.isnan(costs[0])


def test_a_batch_has_no_truth_and_a_tracer_none_yet():
    batch = jax.vmap(lambda x0: oc.solve(REACHABLE.replace(x0=x0)))(jnp.array([[1.0], [0.5]]))
    with pytest.raises(ValueError, match=r"batch of 2 results; use `result.converged`"):
        bool(batch)
    assert batch.raise_if_failed() is batch
    with pytest.raises(ValueError, match=r"that JAX traces has no value yet; use `converged`"):
        jax.jit(lambda x0: 1.0 if oc.solve(REACHABLE.replace(x0=x0)) else 0.0)(jnp.array([1.0]))
    with pytest.raises(ValueError, match=r"message of a Solution that JAX traces"):
        jax.jit(lambda x0: len(oc.solve(REACHABLE.replace(x0=x0)).message))(jnp.array([1.0]))
