"""Loops whose number of turns depends on data: values and derivatives of their tapes against JAX, stage by stage."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optctl as oc
from optctl import _native
from optctl import tape as tapes
from optctl.engine.graphs import graphs_of
from optctl.tape import Unsupported, adjoints, expressions, jacobian, program, trace
from optctl.tape.evaluate import by_jax, by_numpy
from optctl.tape.expressions import CODE

pytestmark = pytest.mark.skipif(not _native.available(), reason="tapes are run by the compiled kernels")


def settled(x):
    """Babylonian square root of 1 + x0^2, until two guesses agree; as many turns as that takes."""
    a = 1.0 + x[0] ** 2
    going = lambda c: jnp.abs(c[0] - c[1]) > 1e-12
    return lax.while_loop(going, lambda c: (0.5 * (c[0] + a / c[0]), c[0]), (3.0 + x[1] ** 2, 0.0))[0] * x[2]


def exchanged(x):
    """What is carried changes places, counts, and stays."""
    body = lambda c: (1.5 * c[0] + 0.2, x[1] * c[2], c[1] + jnp.sin(c[0] * x[2]), c[3] + 1, c[4])
    c = lax.while_loop(lambda c: c[0] < 3.0 + c[4], body, (0.5 + x[0] ** 2, x[1], x[2], 0, x[0]))
    return jnp.stack([c[1], c[2] * c[3], c[4]])


def flag(x):
    body = lambda c: (c[1] < 1.0 + x[0], 1.3 * c[1] + 0.1 * x[1])
    return lax.while_loop(lambda c: c[0], lambda c: body((c[0], c[1] + 0.1)), (x[1] > -0.5, x[2] ** 2))[1]


def nested(x):
    def outer(c):
        y, k = c
        inner = lambda d: (1.3 * d[0] + 0.5, d[1] + y * jnp.cos(d[0] * x[1]))
        s = lax.while_loop(lambda d: d[0] < y + 1.0, inner, (x[2] ** 2, 0.0))[1]
        return y + 0.5 + 0.1 * s**2, k + 1

    return lax.while_loop(lambda c: c[0] < 4.0 + x[0], outer, (x[0], 0))[0]


def counted(x):
    """As many turns as a whole number that is computed says; rows of a table are looked up."""
    table = jnp.array([[0.3, -0.7], [1.1, 0.2], [0.5, 0.9], [-0.4, 0.6]])
    turns = jnp.clip(4 * jnp.abs(x[0]), 0, 4).astype(int)
    body = lambda i, c: jnp.sin(c) + x[1] * table[i] * i
    return lax.fori_loop(0, turns, body, x[1:])


def in_a_branch(x):
    return lax.cond(x[0] > 0.0, settled, lambda x: nested(x) * x[1], x)


def two(x):
    """The result of a loop is the start of another, and both are results."""
    a = lax.while_loop(lambda c: c < 2.0, lambda c: c * (1.4 + x[1] ** 2), 0.3 + x[0] ** 2)
    b = lax.while_loop(lambda c: c > 0.1 * a, lambda c: c * 0.6 * jnp.cos(x[2]), a * x[1])
    return jnp.stack([a, b])


def own_rule(x):
    @jax.custom_jvp
    def f(y):
        return y**2

    f.defjvp(lambda p, d: (f(*p), 3.0 * p[0] * d[0]))
    return lax.while_loop(
        lambda c: c < 2.0, lambda c: c + 0.3 + f(0.7 + c * x[1]) + lax.stop_gradient(c * x[2]) ** 2, x[0] ** 2
    )


CASES = [settled, exchanged, flag, nested, counted, in_a_branch, two, own_rule]


def tape_of(f, n=3):
    """Values, Jacobian, slope by one sweep down, and Hessian of weighted results; and the same by JAX."""
    graph = trace(lambda x, p: f(x), (jax.ShapeDtypeStruct((n,), float),), None)
    g, z, results = graph.g, graph.inputs[0].tolist(), graph.results[0].ravel().tolist()
    w = 0.3 + np.cos(np.arange(len(results)))
    prices: dict = {}
    for i, weight in zip(results, w.tolist(), strict=True):
        prices[i] = g.add(prices.get(i, 0), g.constant(weight))
    J = jacobian(g, results, z)
    slope = adjoints(g, prices, z)
    parts = [results, J, slope, jacobian(g, slope, z)]

    def known(x):
        F = lambda x: jnp.ravel(f(x))
        L = lambda x: F(x) @ w
        of = [F(x), jax.jacfwd(F)(x), jax.jacfwd(L)(x), jax.jacfwd(jax.jacfwd(L))(x)]
        return jnp.concatenate([jnp.ravel(a) for a in of])

    return graph, graph.tape(graph.inputs, [np.array(part, np.intp) for part in parts]), jax.jit(known)


def agree(got, want, tolerance=1e-11):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * (1.0 + np.abs(np.nan_to_num(want)).max()))


@pytest.mark.parametrize("f", CASES)
def test_values_and_derivatives_of_any_order_are_jaxs(f, rng):
    x = rng.uniform(-1, 1, (37, 3))  # three blocks, the last not full; stages take different numbers of turns
    graph, tape, known = tape_of(f)
    assert CODE["repeat"] in tape.code[:, 0]
    found = np.asarray(tapes.run(tape, x, None))
    agree(found, np.stack([known(row) for row in x]))
    alone = np.concatenate([np.asarray(tapes.run(tape, row[None], None)) for row in x])
    np.testing.assert_array_equal(found, alone)  # whatever the other stages do
    np.testing.assert_array_equal(found, np.asarray(tapes.run(tape, x, None, repeat=3)))
    values = found[:, : graph.results[0].size]
    agree(np.reshape(by_numpy(graph, x.T, many=len(x))[0], (-1, len(x))).T, values)
    of = jax.jit(jax.vmap(lambda x: jnp.ravel(by_jax(graph, x)[0])))
    agree(of(x), values)


def random_loop(seed):
    """A loop that carries three numbers and counts; its turns are random sums of products."""
    rng = np.random.default_rng(seed)
    functions = [jnp.sin, jnp.tanh, lambda y: y, jnp.cos, lambda y: 1.0 / (1.0 + y**2), lambda y: jnp.maximum(y, 0.2)]
    W = [rng.normal(size=(3, 3)) * (rng.random((3, 3)) < 0.6) for _ in range(2)]
    picked = rng.integers(0, len(functions), 3)
    limit, start = rng.uniform(0.5, 2.0), rng.normal(size=3)

    def f(x):
        def body(c):
            y, k = c
            z = W[0] @ y + W[1] @ x * jnp.cos(k * x[0])
            return 0.8 * jnp.stack([functions[j](a) for j, a in zip(picked, z, strict=True)]) * (
                1 + x[1] * y[::-1]
            ), k + 1

        return lax.while_loop(
            lambda c: (c[0] @ c[0] > 0.1 * limit * x[2] ** 2) & (c[1] < 6 + 3 * x[0]), body, (start * x, 0)
        )[0]

    return f


@pytest.mark.parametrize("seed", range(8))
def test_random_loops(seed, rng):
    x = rng.uniform(-1, 1, (19, 3))
    _, tape, known = tape_of(random_loop(seed))
    agree(np.asarray(tapes.run(tape, x, None)), np.asarray(jax.vmap(known)(x)), 1e-10)


def test_what_is_not_reached_is_not_run(rng):
    """A loop that would never end in a branch that is not taken, and one within a loop that has ended."""
    endless = lambda x: lax.while_loop(lambda c: c < 3.0, lambda c: c + x[0], x[1])
    _, tape, _ = tape_of(lambda x: lax.cond(x[0] > 0.5, endless, lambda x: x[1] ** 2, x))
    x = np.array([[0.7, 0.2, 0.0], [-1.0, 0.5, 0.0]])
    found = np.asarray(tapes.run(tape, x, None))
    agree(found[:, 0], [0.2 + 4 * 0.7, 0.25])
    agree(found[:, 1:3], [[4.0, 1.0], [0.0, 1.0]])
    within = lambda x: lax.while_loop(
        lambda c: c > 1.0,
        lambda c: c - 1.0 + 0.0 * lax.while_loop(lambda d: d < 1.0, lambda d: d + (c > 1.0), 0.0),
        x[0],
    )
    agree(np.asarray(tapes.run(tape_of(within)[1], np.array([[2.5, 0, 0], [50.5, 0, 0]]), None))[:, 0], [0.5, 0.5])


def test_a_loop_that_does_not_end_leaves_nan(monkeypatch):
    for module in (program, importlib.import_module("optctl.tape.evaluate")):
        monkeypatch.setattr(module, "TURNS", 50)
    graph, tape, _ = tape_of(lambda x: lax.while_loop(lambda c: c < 3.0, lambda c: c + x[0], x[1]) + x[2])
    x = np.array([[0.0, 1.0, 0.0], [1.0, 0.5, 0.0], [0.0, 4.0, 1.0], [0.07, 0.0, 0.0]])
    agree(np.asarray(tapes.run(tape, x, None))[:, 0], [np.nan, 3.5, 5.0, 43 * 0.07])
    agree(by_numpy(graph, x.T, many=4)[0].ravel(), [np.nan, 3.5, 5.0, 43 * 0.07])
    agree(jax.vmap(lambda x: by_jax(graph, x)[0])(x).ravel(), [np.nan, 3.5, 5.0, 43 * 0.07])


def test_nan_ends_a_loop():
    _, tape, _ = tape_of(lambda x: lax.while_loop(lambda c: c < 3.0, lambda c: c * 2.0 + jnp.sqrt(x[0]), x[1]))
    found = np.asarray(tapes.run(tape, np.array([[-1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), None))[:, 0]
    agree(found, [np.nan, 4.0])


def test_what_no_turn_changes_is_worked_out_once():
    """Neither the cosine, nor what is carried and stays, is within the loop."""
    f = lambda x: lax.while_loop(
        lambda c: c[0] < c[1] + 2.0, lambda c: (c[0] + 1.0 + jnp.cos(x[0]) ** 2, c[1]), (x[1], x[2])
    )
    tape = tape_of(lambda x: f(x)[0] * f(x)[1])[0].tape
    graph, _, _ = tape_of(lambda x: f(x)[0] * f(x)[1])
    code = graph.tape(graph.inputs, graph.results).code[:, 0].tolist()
    assert code.count(CODE["repeat"]) == 1  # the same loop, met twice
    assert code.index(CODE["cos"]) < code.index(CODE["leave"])
    assert len(graph.g.loops[-1].variables) <= 4  # the number, and its derivatives
    assert tape is not None


def test_a_loop_of_what_is_fixed_is_run_before(rng):
    def f(x, t, p):
        a = lax.while_loop(lambda c: c < 4.0 + t, lambda c: c * p[0], 1.0)
        return a * x + lax.while_loop(lambda c: c < a, lambda c: c * 1.7 + p[1], x[0] ** 2)

    S = jax.ShapeDtypeStruct
    p = np.array([1.4, 0.3])
    graph = trace(f, (S((2,), float), S((), int)), p, fixed=(1,))
    tape = graph.tape(graph.inputs, graph.results)
    first = tape.code[: tape.prologue, 0].tolist()
    assert first.count(CODE["repeat"]) == 1
    x = rng.normal(size=(20, 2))
    found = np.asarray(tapes.run(tape, np.column_stack([x, np.arange(20.0)]), p, repeat=2))
    agree(found, np.stack([f(row, t, p) for t, row in enumerate(x)]))


def test_derivatives_in_data_that_a_loop_picks_are_refused():
    """Not silently zero."""
    weights = np.array([0.5, 0.7, 0.9])

    def step(x, u, t, p):
        going = lambda c: c[0] < x[0] + 1.5
        return jnp.stack([lax.while_loop(going, lambda c: (c[0] + p["w"][c[1] % 3], c[1] + 1), (x[0], 0))[0] + u[0]])

    problem = oc.Problem(
        oc.Dynamics(step, 1, 1), lambda x, u: u @ u, lambda x: x @ x, horizon=3, x0=[0.1], params={"w": weights}
    )
    made = graphs_of(problem, problem.params, 1, 1)
    with pytest.raises(Unsupported, match="picks"):
        made.path.priced(made.of_params)
    with pytest.raises(Unsupported, match="picks"):
        made.path.moved(made.of_params)


# Implicit schemes.


def van_der_pol(x, u, t, p):
    return jnp.stack([x[1], p["mu"] * (1.0 - x[0] ** 2) * x[1] - x[0] + u[0]])


def problem_of(method, mu=3.0, dt=0.1):
    goal = np.array([0.5, 0.0])
    return oc.Problem(
        oc.discretize(van_der_pol, dt, method, nx=2, nu=1),
        lambda x, u: x @ x + 0.1 * (u @ u),
        lambda x: 10.0 * (x - goal) @ (x - goal),
        horizon=21,
        x0=[1.0, 0.2],
        params={"mu": np.array(mu)},
    )


@pytest.mark.parametrize("method", ["implicit_midpoint", "trapezoid"])
@pytest.mark.parametrize("mu", [3.0, 8.0])  # 8 is stiff: dt is as long as the shortest time
def test_implicit_schemes_are_those_of_jax(method, mu):
    problem = problem_of(method, mu)
    us = 0.3 * np.sin(np.arange(21.0))[:, None]
    mine = oc.gradient(problem, us)
    assert isinstance(mine.us, np.ndarray)  # by the tapes
    assert np.isfinite(mine.us).all()
    theirs = jax.jit(lambda us, p: oc.gradient(problem, us, params=p))(us, problem.params)
    for got, want in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10 * (1 + np.abs(want).max(initial=0)))
    product = oc.hessian_vector_product(problem, us, dus=np.cos(us))
    traced = jax.jit(lambda us: oc.hessian_vector_product(problem, us, dus=jnp.cos(us)).us)(us)
    np.testing.assert_allclose(product.us, traced, rtol=1e-8, atol=1e-8 * np.abs(traced).max())


@functools.cache
def counting():
    compiled: list = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **about: compiled.append(about) if event.endswith("backend_compile_duration") else None
    )
    return compiled


@pytest.mark.parametrize("method", ["ilqr", "newton_cg", "interior_point"])
def test_solves_compile_nothing(method):
    problem, compiled = problem_of("trapezoid"), counting()
    compiled.clear()
    solution = oc.solve(problem, method=method, tolerance=1e-6)
    assert solution.converged
    assert {about["fun_name"] for about in compiled} <= {"jit(stage)"}  # at most to hand over the parameters
    slopes = jax.grad(lambda x0: oc.solve(problem.replace(x0=x0), method="interior_point").cost)(np.array([1.0, 0.2]))
    near = [oc.solve(problem.replace(x0=[1.0 + h, 0.2]), method="interior_point").cost for h in (1e-4, -1e-4)]
    np.testing.assert_allclose(slopes[0], (near[0] - near[1]) / 2e-4, rtol=1e-5)


def test_newton_that_does_not_converge_gives_nan():
    # x+ = x + h (1 + x+^2) has no root for h = 1
    problem = oc.Problem(
        oc.discretize(lambda x, u: jnp.stack([1.0 + ((x[0] + 1.0) ** 2) + u[0]]), 4.0, "trapezoid", nx=1, nu=1),
        lambda x, u: u @ u,
        lambda x: x @ x,
        horizon=2,
        x0=[0.0],
    )
    found = oc.gradient(problem, np.zeros((2, 1)))
    assert isinstance(found.us, np.ndarray)
    assert np.isnan(found.xs[1:]).all()
    assert np.isnan(np.asarray(problem.dynamics.rollout([0.0], np.zeros((2, 1))))[1:]).all()


def test_every_loop_is_given_up_after_as_many_turns():
    assert expressions.TURNS == 2**20
