"""Jaxprs by NumPy against JAX: every primitive, and values that pass through all structure."""

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from primitives import BINARY, CONTROL, MOVES, REFERENCES, SPECIAL, UNARY

import optctl as oc
from optctl.judge import evaluation, interpreter, primitives
from optctl.judge.interpreter import Uninterpreted, interpret
from optctl.tape import unroll


def check(function, *varying, uniform=None, rtol=1e-12, atol=1e-15, by_jax=()):
    varying, uniform = jax.tree.map(jnp.asarray, (varying, uniform))
    batched = jax.vmap(function, in_axes=(*[0] * len(varying), None))
    interpreted = interpret(batched, *varying, uniform)
    assert interpreted.by_jax == set(by_jax)
    got = interpreted(*map(np.asarray, jax.tree.leaves((varying, uniform))))
    want = jax.tree.leaves_with_path(jax.jit(batched)(*varying, uniform))
    for value, (path, leaf) in zip(got, want, strict=True):
        assert (value.shape, value.dtype) == (leaf.shape, leaf.dtype), jax.tree_util.keystr(path)
        np.testing.assert_allclose(value, leaf, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_every_primitive_of_tapes_has_a_rule():
    assert set(unroll.RULES) <= set(primitives.RULES) | interpreter.INLINED


def test_functions_of_one_and_two_numbers():
    check(lambda x, p: {name: f(x) for name, f in UNARY.items() if name != "pow 1.5"}, SPECIAL)
    a, b = (g.ravel() for g in np.meshgrid(SPECIAL, SPECIAL))
    check(lambda a, b, p: {name: f(a, b) for name, f in BINARY.items()}, a, b)
    check(lambda n, p: (n // 3, n % 4, lax.div(n, 4), lax.rem(n, 4), n**2, abs(n), n / 7), np.arange(-9, 10))


def test_arrays(rng):
    A, p = jnp.asarray(rng.normal(size=(5, 2, 6))), rng.normal(size=(2, 6))
    check(lambda A, p: {name: f(A * p) for name, f in MOVES.items()}, A, uniform=p)
    check(lambda A, p: (jnp.sort(A, 1), jnp.argsort(A, 0), lax.cumlogsumexp(A, 1)), A)


def test_control_flow_and_its_derivatives(rng):
    def both(f):
        return lambda z: (f(z), jax.jacfwd(f)(z))

    check(lambda x, p: {name: both(f)(x) for name, f in CONTROL.items()}, rng.normal(size=(20, 3)), rtol=1e-11)


def test_time_varying_data(rng):
    p = {"A": jnp.asarray(rng.normal(size=(6, 3, 3))), "ref": jnp.asarray(rng.normal(size=(6, 3)))}
    check(lambda t, p: {name: f(t, p) for name, f in REFERENCES.items()}, np.arange(6), uniform=p)


def test_linear_algebra_and_what_is_left_to_jax(rng):
    A = rng.normal(size=(6, 3, 3))
    check(lambda A, p: (jnp.linalg.solve(A, A[:, 0]), jnp.linalg.inv(A), jnp.linalg.det(A)), A, rtol=1e-9)
    check(lambda A, p: jnp.linalg.svd(A, compute_uv=False), A, rtol=1e-9, by_jax=["svd"])
    check(lambda A, p: jnp.linalg.cholesky(A), A)  # not positive definite: NaN, as JAX's


def test_a_loop_that_depends_on_data_and_one_without_end():
    turns = lambda x, p: lax.while_loop(lambda c: c < 10.0, lambda c: 2 * c, x)
    check(turns, np.array([0.3, 1.0, 20.0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "MOST_TURNS", 50)
        with pytest.raises(Uninterpreted, match="more than 50 turns"):
            interpret(jax.vmap(turns, (0, None)), jnp.ones(2), None)(-np.ones(2))


def test_values_that_are_being_traced_are_refused_or_replaced():
    @jax.jit
    def outer(a):
        with pytest.raises(Uninterpreted, match="traced"):
            interpret(lambda x: a * x, jnp.ones(2))
        two = interpret(lambda x: a * x, jnp.ones(2), substitute=lambda value: np.full(value.shape, 2.0))
        np.testing.assert_array_equal(two(np.array([1.0, 3.0]))[0], [2.0, 6.0])
        return a

    outer(1.0)


def test_long_horizons_are_evaluated_in_blocks(rng):
    """All stages, those of the last block too, each with its own index."""
    N = 2 * evaluation.ROWS // 5 + 3
    dynamics = oc.Dynamics(lambda x, u, t: x + t * u, nx=1, nu=1)
    problem = oc.Problem(
        dynamics, lambda x, u, t, p: p * t * x[0], lambda x, p: p + x[0], horizon=N, x0=[0.0], params=2.0
    )
    xs, us = rng.normal(size=(5, N + 1, 1)), rng.normal(size=(5, N, 1))
    v = evaluation.Evaluator(problem, 2.0, (N, 1, 1))(xs, us)
    t = np.arange(N)[None, :, None]
    np.testing.assert_allclose(v["f"], xs[:, :-1] + t * us, rtol=1e-14)
    np.testing.assert_allclose(v["stage_cost"], 2.0 * t * xs[:, :-1], rtol=1e-14)
    np.testing.assert_allclose(v["terminal_cost"], 2.0 + xs[:, -1], rtol=1e-14)


def test_arrays_are_used_again_and_results_stay(rng):
    """More values than arrays; a result belongs to its caller; threads do not share arrays."""

    def chain(x):
        terms = [jnp.sin((k + 1.0) * x) for k in range(12)]
        return x[::-1] + functools.reduce(lambda a, b: a * b + x, terms), jnp.stack([x[1:], x[:-1]])

    x, y = rng.normal(size=(2, 7))
    made = interpret(chain, x)
    frame = interpreter.Frame(made)
    assert len({id(a) for a in frame.arrays if isinstance(a, np.ndarray) and a.base is None}) < 0.7 * len(made.calls)
    first = made(x)
    kept = [np.array(v) for v in first]
    made(y)
    for value, old, right in zip(first, kept, chain(x), strict=True):
        np.testing.assert_array_equal(value, old)
        np.testing.assert_allclose(value, right, rtol=1e-13)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda k: [made((x, y)[k % 2])[0] for _ in range(50)], range(8)))
    for k, several in enumerate(results):
        for value in several:
            np.testing.assert_array_equal(value, (kept[0], made(y)[0])[k % 2])


def test_a_scan_carries_values_between_turns(rng):
    def swap(x, p):
        return lax.scan(lambda c, a: ((c[1], c[0] + a), c[0]), (x[0], x[1]), jnp.arange(5.0))

    check(swap, rng.normal(size=(4, 2)))
