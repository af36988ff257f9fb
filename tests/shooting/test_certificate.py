"""The certificate tells a point that is optimal from one that is not, in each of its figures."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl import _native
from optctl.engine import graphs
from optctl.judge import evaluation
from optctl.shooting import native
from optctl.shooting.certificate import certify_point
from optctl.shooting.interior_point import Settings, expansion_at, make_program, start
from optctl.tape import unroll

PROBLEM = oc.Problem(
    oc.discretize(lambda x, u: jnp.array([x[1], u[0] - jnp.sin(x[0])]), 0.2, nx=2, nu=1),
    lambda x, u: x @ x + 0.1 * u @ u, lambda x: 4.0 * x @ x, horizon=6, x0=[1.0, 0.0], u_min=-0.4, u_max=0.4,
)  # fmt: skip


def test_an_unfinished_solve_is_not_certified():
    """Whoever says that each certificate holds fails here, on the host, under jit and under vmap."""
    few = lambda x0: oc.solve(PROBLEM.replace(x0=x0), method=oc.InteriorPoint(max_iterations=2))
    x0 = jnp.array([1.0, 0.0])
    for solution in (few(x0), jax.jit(few)(x0), jax.tree.map(lambda leaf: leaf[0], jax.vmap(few)(x0[None]))):
        assert not solution.converged
        assert not solution.certificate.holds
    for method in (oc.LBFGS, oc.GradientDescent, oc.ILQR):
        solution = oc.solve(PROBLEM, method=method(max_iterations=1))
        assert not solution.converged
        assert not solution.certificate.holds


FIGURES = {
    "stationarity": lambda z: replace(z, costates=z.costates + 0.1),
    "primal_feasibility": lambda z: replace(z, xs=z.xs.at[3].add(0.1)),
    "dual_feasibility": lambda z: replace(z, y=z.y.at[0].set(-0.3)),
    "complementarity": lambda z: replace(z, y=z.y + 0.5),
}


@pytest.fixture(scope="module")
def judged():
    """The solution as the interior point method knows it, and the certificate as a function of such a point."""
    solved = oc.solve(PROBLEM, method="interior_point").raise_if_failed()
    settings = replace(Settings(1e-8, None, True, 50, backend="jax"), barrier=1e-9)
    warm = {"costates": solved.costates, "multipliers": solved.multipliers}
    make = jax.jit(lambda xs, us: make_program(PROBLEM, xs, us, None, (False, False), settings))
    program = make(solved.xs, solved.us)
    begin = jax.jit(lambda xs, us, warm: start(program, xs, us, warm, settings))
    state = begin(solved.xs, solved.us, warm)

    @jax.jit
    def figures(z):
        e = expansion_at(program, z, settings)
        return certify_point(program, e, z, state.scales, first_cost=1.0, floor=0.0, tolerance=1e-8)

    return replace(state.z, costates=solved.costates), figures


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_sees_its_own_condition(judged, figure):
    z, figures = judged
    right, wrong = figures(z), figures(FIGURES[figure](z))
    assert float(getattr(wrong, figure)) > 0.05
    assert float(getattr(wrong, f"{figure}_scaled")) > 1e-3
    assert not wrong.holds
    assert float(getattr(right, figure)) < 1e-2


@pytest.mark.parametrize("method", ["interior_point", "lbfgs"])
def test_bounds_on_a_free_start_are_kept(method):
    """The start wants to be at zero; its bounds, as states or as x_0, say 0.5, and the multiplier is the slope there."""
    step = oc.LinearDynamics([[1.0]], [[1.0]])
    bounds = {"x_min": [0.5]} if method == "interior_point" else {"x0_min": [0.5]}
    free = oc.Problem(step, lambda x, u: x @ x + 1e3 * u @ u, horizon=2, **bounds)
    solution = oc.solve(free, x0=[2.0], method=method).raise_if_failed()
    assert abs(float(solution.x0[0]) - 0.5) < 1e-5
    multiplier = (
        solution.multipliers["x_min"][0, 0] if method == "interior_point" else solution.multipliers["x0_min"][0]
    )
    assert multiplier > 0.5
    assert solution.checked == "NumPy"


@pytest.mark.skipif(not _native.available(), reason="tapes are run by the compiled kernels")
@pytest.mark.parametrize("rule", ["sin", "mul", "dot_general"])
def test_a_wrong_tape_that_nobody_judged_is_found_out_at_the_end(rule, monkeypatch):
    right = unroll.RULES[rule]

    def wrong(un, eqn, *args):
        return un.map(lambda i: un.g.mul(un.g.constant(1.02), i), right(un, eqn, *args))

    for cache in (native._TAPES, graphs._GRAPHS, evaluation._FUNCTIONS):
        cache.clear()
    monkeypatch.setattr(native, "check_tapes", lambda *_: None)
    monkeypatch.setitem(unroll.RULES, rule, wrong)
    solution = oc.solve(PROBLEM, method=oc.InteriorPoint(backend="native"))
    native._TAPES.clear()
    graphs._GRAPHS.clear()
    assert not solution.converged
    if solution.status == oc.Status.DISAGREEMENT:
        assert "two computations" in solution.message
        assert any(f"`{name}`" in solution.message for name in ("f", "cost", "the Lagrangian"))
    assert np.isfinite(solution.cost)
