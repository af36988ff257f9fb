"""Memory modes: the optimal schedule, the same gradient to rounding, bounded memory, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.dynamics.memory import schedule

BOUNDED = ("sqrt", oc.Binomial(1), oc.Binomial(3), oc.Binomial(100))


@pytest.mark.parametrize(
    ("N", "slots", "steps"),
    [(10, 2, 20), (10, 3, 15), (100, 5, 316), (100, 10, 222), (1000, 10, 3636), (1000, 20, 2747), (10000, 20, 37976)],
)
def test_known_counts(N, slots, steps):
    assert oc.Binomial(slots).forward_steps(N) == steps
    assert schedule(oc.Binomial(slots), N).forward_steps == steps


@functools.cache
def least_steps(N, slots):
    """The optimum by trying every cut."""
    if N <= 1:
        return 0
    if slots == 1:
        return N * (N - 1) // 2
    return min(cut + least_steps(cut, slots) + least_steps(N - cut, slots - 1) for cut in range(1, N))


def test_the_schedule_is_optimal_and_visits_every_stage():
    for N in range(1, 31):
        for slots in range(1, 8):
            plan = schedule(oc.Binomial(slots), N)
            assert plan.forward_steps == least_steps(N, slots)
            assert visited(plan, N) == list(range(N - 1, -1, -1))
        assert visited(schedule("sqrt", N), N) == list(range(N - 1, -1, -1))
        assert schedule("sqrt", N).slots <= 2 * np.sqrt(N) + 1
        assert schedule("sqrt", N).forward_steps <= 2 * N


def visited(plan, N):
    """Follow a schedule with stage indices in place of states."""
    kept, stages = {0: 0}, []
    for k in range(N):
        t = kept[plan.slot[k]]
        assert t == plan.start[k]
        for i in range(plan.first[k], plan.first[k + 1]):
            t += plan.advance[i]
            if plan.keep[i] < plan.slots:
                kept[plan.keep[i]] = t
        stages.append(t)
    return stages


@pytest.mark.parametrize("memory", BOUNDED, ids=str)
def test_gradient_and_hessian_are_the_same(memory, rng):
    problem = oc.problems.cartpole_push()
    us = rng.normal(size=(problem.horizon, 1))
    full, bounded = (oc.gradient(p, us) for p in (problem, problem.replace(memory=memory)))
    np.testing.assert_allclose(bounded.cost, full.cost, rtol=1e-14)
    for name in ("us", "x0"):
        size = np.abs(getattr(full, name)).max()
        np.testing.assert_allclose(getattr(bounded, name), getattr(full, name), atol=1e-13 * size)
    assert bounded.xs is None
    assert bounded.costates is None
    if memory == "sqrt":
        products = [oc.hessian_vector_product(p, us, dus=us) for p in (problem, problem.replace(memory=memory))]
        np.testing.assert_allclose(products[1].us, products[0].us, atol=1e-11 * np.abs(products[0].us).max())


def test_parameters_and_solvers():
    dynamics = oc.Dynamics(lambda x, u, t, p: p["a"] * x + u + 0.1 * t, nx=2, nu=2)
    problem = oc.Problem(
        dynamics,
        lambda x, u, t, p: x @ x + u @ u + p["b"] * x[0],
        lambda x, p: p["b"] * x @ x,
        lambda x: x[0] ** 2,
        horizon=7,
        x0=[1.0, -1.0],
        params={"a": 0.9, "b": 0.5},
    )
    us = np.zeros((7, 2))
    full, bounded = (oc.gradient(p, us) for p in (problem, problem.replace(memory=oc.Binomial(2))))
    for name in ("a", "b"):
        np.testing.assert_allclose(bounded.params[name], full.params[name], rtol=1e-13)
    found = [oc.solve(p, method="lbfgs").raise_if_failed() for p in (problem, problem.replace(memory="sqrt"))]
    np.testing.assert_allclose(found[1].us, found[0].us, atol=1e-6)


def test_bounded_memory_is_bounded():
    """XLA's own account of temporary memory: 2000 states of 500 numbers are 8 MB."""
    dynamics = oc.pde.Burgers(500, dt=1e-4, control="none")  # of a linear model XLA would keep no states at all
    problem = oc.Problem(dynamics, terminal_cost=lambda x: x @ x, horizon=2000, x0=jnp.sin(jnp.pi * dynamics.grid))
    us = jnp.zeros((2000, 0))

    def peak(memory):
        p = problem.replace(memory=memory)
        return jax.jit(lambda us: oc.gradient(p, us).x0).lower(us).compile().memory_analysis().temp_size_in_bytes

    assert peak("full") > 8e6
    assert peak("sqrt") < 1.5e6
    assert peak("sqrt") > 0.4e6
    assert peak(oc.Binomial(10)) < 0.5e6
    report = oc.memory_report(problem, us, modes=("full", oc.Binomial(10)))
    full, bounded = map(dict, report.rows)
    assert bounded["forward_steps"] == oc.Binomial(10).forward_steps(2000)
    assert full["predicted"] == 2000 * 500 * 8
    assert "Binomial(slots=10)" in repr(report)
    g = [oc.gradient(problem.replace(memory=m), us).x0 for m in ("full", oc.Binomial(10))]
    np.testing.assert_allclose(g[1], g[0], rtol=1e-12)


def test_bad_input():
    problem = oc.problems.cartpole_push()
    with pytest.raises(ValueError, match="`memory` is 'little'; expected 'full', 'sqrt' or Binomial"):
        problem.replace(memory="little")
    with pytest.raises(ValueError, match="`slots` is 0"):
        oc.Binomial(0)
    layers = oc.Layers([lambda x, W: x @ W])
    with pytest.raises(ValueError, match="Layers keeps all states"):
        oc.Problem(layers, terminal_cost=lambda x: jnp.sum(x), memory="sqrt")
