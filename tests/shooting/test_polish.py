"""The last step of the interior point method: inputs and derivatives are those of the solution, not of a barrier problem."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc

METHODS = [oc.InteriorPoint(backend="native"), oc.InteriorPoint(backend="jax")]
A, B = np.array([[1, 0.1], [0, 1.0]]), np.array([[0.005], [0.1]])
DOUBLE = oc.Problem(
    oc.LinearDynamics(A, B), lambda x, u: x @ x + 0.1 * u @ u, lambda x: 10 * x @ x, horizon=30, x0=[1.0, 0.0]
)


def bounded(seed, N=20, nx=8, nu=4):
    rng = np.random.default_rng(seed)
    A, B = np.eye(nx) + 0.1 * rng.normal(size=(nx, nx)), rng.normal(size=(nx, nu))
    A /= max(1.0, np.abs(np.linalg.eigvals(A)).max() + 0.01)
    return A, B, 5 * rng.normal(size=nx)


@jax.jit
def solve_bounded(A, B, x0, u_max):
    problem = oc.Problem(
        oc.LinearDynamics(A, B), oc.costs.Quadratic(Q=np.eye(8), R=np.eye(4)),
        oc.costs.TerminalQuadratic(Q=np.eye(8)), horizon=20, x0=x0, u_min=-u_max, u_max=u_max,
    )  # fmt: skip
    return oc.solve(problem, method="interior_point"), problem


def test_every_solved_member_of_a_batch_is_right():
    """128 bounded problems, half of their inputs at bounds. The cost is strongly convex in u with modulus 1, so that the
    projected gradient bounds the distance to the solution."""
    As, Bs, x0s = (jnp.asarray(np.stack(part)) for part in zip(*map(bounded, range(128)), strict=True))
    sols, problems = jax.vmap(solve_bounded, in_axes=(0, 0, 0, None))(As, Bs, x0s, 0.3)
    assert np.asarray(sols.converged).all()
    slopes = jax.vmap(lambda problem, us: oc.gradient(problem, us).us)(problems, sols.us)
    distance = np.abs(sols.us - np.clip(sols.us - slopes, -0.3, 0.3))
    assert distance.max() < 1e-9
    assert np.mean(np.abs(sols.us) > 0.3 - 1e-12) > 0.2
    assert np.asarray(sols.iterations).mean() < 15


@pytest.mark.big
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("short", [1e-4, 1e-2, 0.5])
def test_the_derivative_in_a_bound_that_is_barely_active(method, short):
    largest = float(jnp.abs(oc.solve(DOUBLE, method="lq").us).max())
    limit, h = largest * (1 - short), 1e-5 * largest

    def reached(limit, tolerance=1e-8):
        return oc.solve(DOUBLE.replace(u_min=-limit, u_max=limit), method=method, tolerance=tolerance).xs[5, 0]

    difference = (reached(limit + h, 1e-12) - reached(limit - h, 1e-12)) / (2 * h)
    assert abs(jax.grad(reached)(limit) / difference - 1) < 1e-6
    assert jax.grad(reached)(largest * (1 + short)) == 0  # not active


INTEGRATOR = oc.Problem(oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: u @ u, horizon=2, x0=[3.0])


def above_one(x):
    return x - 1.0


def first_input(x0, l1, l2=0.0, problem=INTEGRATOR, method=None):
    soft = oc.Soft(above_one, l1=l1, l2=l2)
    return oc.solve(problem.replace(x0=jnp.stack([x0]), terminal_inequality=soft), method=method).us[0, 0]


@pytest.mark.big
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("l1", "x0", "u", "in_x0", "in_l1"),
    [
        (1.0, 3.0, -0.5, 0.0, -0.5),  # missed: u = -l1/2 in both steps
        (5.0, 3.0, -1.0, -0.5, 0.0),  # kept with its multiplier 2 below the price: u = (1 - x0)/2
        (1.0, 0.5, 0.0, 0.0, 0.0),  # not active
    ],
)
def test_soft_rows_on_either_side_of_their_kinks(method, l1, x0, u, in_x0, in_l1):
    """Minimize u_0^2 + u_1^2 + l1 max(x_2 - 1, 0), x+ = x + u."""
    first = functools.partial(first_input, method=method)
    assert abs(first(jnp.asarray(x0), l1) - u) < 1e-10
    slopes = jax.grad(first, (0, 1))(x0, l1)
    np.testing.assert_allclose(slopes, (in_x0, in_l1), atol=1e-8)


def test_soft_rows_with_a_quadratic_price():
    """Minimize u^2 + l1 e + l2 e^2/2 with e = x0 + u - 1: u = -(l1 + l2 (x0 - 1)) / (2 + l2)."""
    first = functools.partial(first_input, problem=INTEGRATOR.replace(horizon=1))
    x0, l1, l2 = 3.0, 0.5, 0.4
    exact = lambda x0, l1, l2: -(l1 + l2 * (x0 - 1)) / (2 + l2)
    assert abs(first(x0, l1, l2) - exact(x0, l1, l2)) < 1e-10
    np.testing.assert_allclose(
        jax.grad(first, (0, 1, 2))(x0, l1, l2), jax.grad(exact, (0, 1, 2))(x0, l1, l2), atol=1e-8
    )


def test_a_nonlinear_solution_is_that_of_a_tighter_tolerance():
    known = oc.problems.cartpole_constrained()
    solve = lambda tolerance: oc.solve(known.problem, known.us, "interior_point", xs=known.xs, tolerance=tolerance)
    np.testing.assert_allclose(solve(1e-6).us, solve(1e-11).us, atol=1e-7)


def test_costs_of_many_rows_are_right_at_the_default_tolerance():
    wide = np.array([np.inf, 1.5])
    problem = oc.Problem(
        oc.LinearDynamics([[1, 0.01], [0, 1.0]], [[0.00005], [0.01]]), lambda x, u: 0.01 * (x[0] ** 2 + 0.1 * u @ u),
        lambda x: x @ x, horizon=2000, x0=[10.0, 0.0], u_min=-1.0, u_max=1.0, x_min=-wide, x_max=wide,
    )  # fmt: skip
    loose, tight = (oc.solve(problem, method="interior_point", tolerance=tolerance) for tolerance in (1e-8, 1e-12))
    assert abs(loose.cost / tight.cost - 1) < 1e-10


@pytest.mark.parametrize("transform", [jax.jit, lambda f: f, jax.vmap])
def test_a_problem_that_a_transformed_function_closes_over(transform):
    known = oc.problems.cartpole_constrained()
    bounds = known.problem.replace(terminal_equality=None)
    scale = jnp.array([2.0]) if transform is jax.vmap else 2.0
    for problem in (known.problem, bounds):
        cost = oc.solve(problem, known.us, "interior_point", xs=known.xs).cost
        solve = lambda s, p=problem: s * oc.solve(p, known.us, "interior_point", xs=known.xs).cost
        np.testing.assert_allclose(transform(solve)(scale), scale * cost, rtol=1e-12)
    assert (
        abs(jax.jit(jax.grad(lambda s: s * oc.solve(known.problem, known.us, xs=known.xs).cost))(2.0) - 58.888336)
        < 1e-5
    )


def test_a_kink_is_told():
    """With the bound exactly where the free solution ends, the derivative in it differs from side to side."""
    largest = float(jnp.abs(oc.solve(DOUBLE, method="lq").us).max())
    for share, exists in ((1.0, False), (1 - 1e-4, True), (1 + 1e-4, True)):
        for method in METHODS:
            sol = oc.solve(DOUBLE.replace(u_min=-largest * share, u_max=largest * share), method=method)
            assert sol.converged
            assert bool(sol.derivative_exists) == exists
    soft = INTEGRATOR.replace(terminal_inequality=oc.Soft(above_one, l1=2.0))
    assert not oc.solve(soft).derivative_exists  # a price that is just the multiplier
    assert oc.solve(soft.replace(x0=[4.0])).derivative_exists


def test_kernels_that_are_not_there_are_missed_aloud(monkeypatch):
    from optctl import _native

    monkeypatch.setattr(_native.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="10 to 20 times slower.*C\\+\\+ compiler"):
        assert _native._library.__wrapped__() is None


@pytest.mark.big
@pytest.mark.parametrize("method", METHODS)
def test_a_warm_start_from_a_near_solution_takes_a_step_or_two(method):
    """From the solution itself one step; from nearby a few; from afar it is never worse than cold by more than its tries."""
    limits = DOUBLE.replace(u_min=-1.0, u_max=1.0, x_min=-0.4, x_max=np.array([np.inf, np.inf]))
    first = oc.solve(limits, method=method)
    warm = oc.InteriorPoint(backend=method.backend, warm_start=first)
    again = oc.solve(limits, method=warm)
    near = oc.solve(limits.replace(x0=[1.001, 0.0]), method=warm)
    far_problem = limits.replace(x0=[-0.2, 1.0], x_min=-1.0)
    far, cold = oc.solve(far_problem, method=warm), oc.solve(far_problem, method=method)
    assert all(sol.converged for sol in (first, again, near, far, cold))
    assert again.iterations == 1
    assert near.iterations <= 3
    assert far.iterations <= cold.iterations + 6
    np.testing.assert_allclose(far.us, cold.us, atol=1e-8)
    np.testing.assert_allclose(again.us, first.us, atol=1e-10)
    assert np.isfinite(near.history.cost[: int(near.iterations) + 1]).all()


@pytest.mark.big
def test_single_precision_is_polished_too():
    def reached(limit):
        single = lambda value: jnp.asarray(value, jnp.float32)
        problem = DOUBLE.replace(dynamics=oc.LinearDynamics(single(A), single(B)), x0=single([1.0, 0.0]))
        return oc.solve(problem.replace(u_min=-limit, u_max=limit, x_min=single([-9.0, -0.5]))).xs[5, 0]

    value, slope = jax.value_and_grad(reached)(jnp.float32(0.9))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose((value, slope), (0.8875, -0.125), atol=1e-5)


def test_misses_of_soft_rows_close_to_the_last_digit():
    """A miss whose multiplier v is all but zero: dividing by v/e made rounding of 1e-8 of it, and no end of iterations."""
    rng = np.random.default_rng(0)
    swing = oc.discretize(lambda x, u: jnp.array([x[1], -jnp.sin(x[0]) - 0.1 * x[1] + u[0]]), dt=0.1, nx=2, nu=1)
    first = oc.Problem(
        swing, lambda x, u: x @ x + 0.1 * u @ u, lambda x: 10 * x @ x, horizon=10, x0=[1.0, 0.0],
        path_inequality=oc.Soft(lambda x, u: u + 0.1, l1=0.7), x_min=[-9.0, -0.3],
    )  # fmt: skip
    for _ in range(30):
        soft = replace(first.path_inequality, l1=jnp.asarray(10 ** rng.uniform(-1, 1.5)))
        low, x0 = [-9.0, -rng.uniform(0.1, 0.6)], [rng.uniform(0.5, 1.5), 0.0]
        sol = oc.solve(first.replace(path_inequality=soft, x_min=low, x0=x0))
        assert sol.converged, sol
        assert sol.iterations < 60


@pytest.mark.parametrize("dtype", [np.float32, ">f8"])
def test_scales_and_warm_starts_of_another_type_are_cast(dtype):
    problem = oc.problems.cartpole_push().replace(u_max=9.0)
    scale = {"x": np.ones(4, dtype), "u": np.ones(1, np.float32)}
    sol = oc.solve(problem, method=oc.InteriorPoint(scale=scale)).raise_if_failed()
    single = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype) if np.asarray(leaf).dtype == float else leaf, sol)
    again = oc.solve(problem, method=oc.InteriorPoint(warm_start=single)).raise_if_failed()
    np.testing.assert_allclose(again.us, sol.us, atol=1e-6)


def test_a_warm_start_with_other_rows_is_refused():
    problem = oc.problems.cartpole_push()
    one = problem.replace(path_inequality=lambda x, u: u - 50.0)
    two = problem.replace(path_inequality=lambda x, u: jnp.concatenate([u - 50.0, -50.0 - u]))
    with pytest.raises(ValueError, match="`warm_start` has multipliers of `path_inequality` of shape"):
        oc.solve(two, method=oc.InteriorPoint(warm_start=oc.solve(one)))


def test_rows_are_looked_at_with_nan_whatever_jax_debugs():
    problem = oc.problems.cartpole_push().replace(path_inequality=lambda x, u: u - 9.0)
    with jax.debug_nans(True):
        assert oc.solve(problem).converged
