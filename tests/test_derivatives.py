"""Derivatives of graphs against JAX's: each operation, each primitive, ties and edges, rules that functions bring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from primitives import BINARY, CONTROL, MOVES, SPECIAL, UNARY, is_smooth

from optctl import _native
from optctl import tape as tapes
from optctl.tape import Unsupported, adjoints, derivatives, expressions, jacobian, trace

pytestmark = pytest.mark.skipif(not _native.available(), reason="tapes are run by the compiled kernels")


FINITE = SPECIAL[np.abs(SPECIAL) < np.inf]  # and no NaN


def total(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    weights = [0.3 + 0.7 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) for leaf in leaves]
    return sum(jnp.sum(leaf * weight) for leaf, weight in zip(leaves, weights, strict=True)) + 0.0


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree) if leaf.dtype == float] or [jnp.zeros(0)])


def expanded(function, x):
    """The gradient, Hessian and Jacobian of a function of a vector, at rows of x, by the graph."""
    spec = jax.ShapeDtypeStruct(x.shape[1:], float)
    first = trace(lambda x, p: total(function(x)), (spec,), None)
    z = first.inputs[0].ravel().tolist()
    slope = adjoints(first.g, {first.results[0].item(): expressions.ONE}, z)
    bent = jacobian(first.g, slope, z)
    second = trace(lambda x, p: flat(function(x)), (spec,), None)
    v = second.inputs[0].ravel().tolist()
    J = jacobian(second.g, second.results[0].tolist(), v)
    made = [first.tape(first.inputs, [slope]), first.tape(first.inputs, bent), second.tape(second.inputs, J)]
    values = jnp.asarray(x).reshape(len(x), -1)
    slope, bent, J = (np.asarray(tapes.run(tape, values, None)) for tape in made)
    n = len(z)
    return slope, bent.reshape(-1, n, n), J.reshape(len(x), -1, n)


def check(function, x, rtol=1e-11, atol=1e-11, second=True):
    """Compare wherever JAX has a number; its rules are not those of the real numbers elsewhere (0 inf is NaN)."""
    x = jnp.asarray(x)
    slope, bent, J = expanded(function, x)
    of_row = lambda f: lambda x: f(lambda y: total(function(y)))(x)
    want = jax.jit(jax.vmap(of_row(jax.grad)))(x).reshape(slope.shape)
    wants = [(slope, want)]
    wants.append((J, jax.jit(jax.vmap(jax.jacrev(lambda y: flat(function(y)))))(x).reshape(J.shape)))
    if second:
        wants.append((bent, jax.jit(jax.vmap(jax.hessian(lambda y: total(function(y)))))(x).reshape(bent.shape)))
    for got, known in wants:
        known = np.asarray(known)
        there = np.isfinite(known)
        assert there.any()
        for one, row, on in zip(got, known, there, strict=True):
            np.testing.assert_allclose(one[on], row[on], rtol=rtol, atol=atol + rtol * np.abs(row[on]).max(initial=0))


@pytest.mark.parametrize("name", [name for name, f in UNARY.items() if is_smooth(f, jnp.float64(1.0))])
def test_functions_of_one_number(name):
    shift = 1.2 if name == "acosh" else 0.0
    check(lambda x: UNARY[name](x[0] + shift), np.linspace(0.1, 0.9, 9)[:, None])
    check(UNARY[name], np.concatenate([FINITE, [-1e3, 700.0]])[:, None], rtol=1e-10)


@pytest.mark.parametrize(
    "name", [name for name, f in BINARY.items() if is_smooth(f, jnp.float64(1.0), jnp.float64(1.0))]
)
def test_functions_of_two_numbers(name):
    a, b = (g.ravel() for g in np.meshgrid(FINITE, FINITE))
    check(lambda x: BINARY[name](x[0], x[1]), np.stack([a, b], 1), rtol=1e-10)
    check(lambda x: BINARY[name](x[0], 0.5) + BINARY[name](2.0, x[0]), FINITE[:, None], rtol=1e-10)


@pytest.mark.parametrize("name", [name for name in MOVES if name not in ("arg",)])
def test_functions_of_matrices(name, rng):
    check(MOVES[name], rng.normal(size=(3, 2, 6)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in CONTROL if name not in ("while",)])
def test_control(name, rng):
    check(CONTROL[name], rng.normal(size=(9, 3)))


@jax.custom_jvp
def cube(x, y):
    return x**3 * y


cube.defjvp(lambda primals, moves: (cube(*primals), 7.0 * primals[0] * moves[0] + jnp.cos(primals[1]) * moves[1]))


@jax.custom_vjp
def through(x, n):
    return jnp.round(x * n)


through.defvjp(lambda x, n: (through(x, n), (x, n)), lambda kept, w: (w * kept[1] * kept[0], None))


def test_a_functions_own_rules_are_honoured(rng):
    x = rng.normal(size=(5, 2))
    check(lambda x: cube(x[0], x[1]) + x[0] ** 3 * x[1], x)  # one and the same value, two derivatives
    check(lambda x: cube(x, x[::-1]), x)
    check(lambda x: through(x, 3) + jnp.round(x * 3), x, second=False)
    check(lambda x: lax.stop_gradient(x[0]) * x[1] + x[0], x)
    check(lambda x: jax.nn.relu(x) + jax.nn.softplus(50 * x) + jax.nn.silu(900 * x), np.concatenate([x, 0 * x]))


def test_a_linear_solve_in_numbers_that_depend_on_each_other(rng):
    def solved(x):
        h = 0.3 * x[2]
        A = jnp.eye(2) - h * jnp.array([[0.0, 0.5], [-jnp.cos(x[0]), 0.0]])  # -h/2, and a multiple of it
        return jnp.linalg.solve(A, x[:2])

    check(solved, rng.normal(size=(5, 3)))


def test_rules_that_are_not_linear_are_refused():
    clipped = jax.custom_vjp(lambda x: x)
    clipped.defvjp(lambda x: (x, None), lambda _, w: (jnp.clip(w, -1, 1),))
    with pytest.raises(Unsupported, match="not linear"):
        expanded(lambda x: clipped(x), np.ones((1, 2)))


def test_ties_are_jaxs():
    x = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    check(lambda x: jnp.max(x) + jnp.min(x), x, second=False)
    check(lambda x: jnp.maximum(x[0], x[1]) + jnp.minimum(x[2], 0.0) + jnp.abs(x[3]), x, second=False)
    check(lambda x: jnp.clip(x, 0.0, 1.0) + lax.clamp(x[0], x[2], x[1]), x, second=False)


def test_every_operation_has_partials_or_is_flat():
    fused = {
        name
        for name in expressions.OPERATIONS
        if name.endswith(("_m", "_c")) or name in ("muladd", "negmuladd", "mulsub")
    }
    fused |= {"copy", "leave", "repeat"}  # loops have a rule of their own
    listed = set(derivatives.PARTIALS) | set(derivatives.FLAT)
    assert listed | fused == set(expressions.OPERATIONS)
    assert not listed & fused


def test_what_is_zero_costs_nothing():
    graph = trace(lambda x, p: (jnp.diag(jnp.arange(50.0)) @ x, x @ x), [jax.ShapeDtypeStruct((50,), float)], None)
    z = graph.inputs[0].tolist()
    J = jacobian(graph.g, graph.results[0].tolist(), z)
    bent = jacobian(graph.g, adjoints(graph.g, {graph.results[1].item(): expressions.ONE}, z), z)
    assert len(graph.tape(graph.inputs, [*J, *bent]).code) <= 52  # 50 numbers of the diagonal, 0, and 2
