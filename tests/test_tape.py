"""Tapes against JAX: every operation, structure, loops, memory, and the prologue run once."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from primitives import BINARY, CONTROL, MOVES, REFERENCES, SPECIAL, UNARY, is_smooth

import optctl as oc
from optctl import _native
from optctl import tape as tapes
from optctl.tape import Unsupported, compile_tape, expressions, memory

pytestmark = pytest.mark.skipif(not _native.available(), reason="tapes are run by the compiled kernels")


def flatten(tree, N):
    return jnp.concatenate([jnp.reshape(leaf, (N, -1)).astype(float) for leaf in jax.tree.leaves(tree)], axis=1)


def shapes(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)


def check(function, *varying, uniform=None, fixed=(), rtol=1e-12, atol=1e-12):
    """Compare for a batch of varying inputs, whose first axis counts stages."""
    varying, uniform = jax.tree.map(jnp.asarray, (varying, uniform))
    N = jax.tree.leaves(varying)[0].shape[0]
    tape = compile_tape(function, shapes(varying), uniform, fixed=fixed)
    got = np.asarray(tapes.run(tape, flatten(varying, N), uniform))
    want = jax.jit(jax.vmap(function, in_axes=(*[0] * len(varying), None)))(*varying, uniform)
    at = 0
    for path, leaf in jax.tree.leaves_with_path(want):
        columns = got[:, at : at + leaf[0].size].reshape(leaf.shape)
        np.testing.assert_allclose(columns, leaf, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))
        at += leaf[0].size
    return tape


def test_codes_are_those_of_the_header():
    header = (Path(tapes.__file__).parents[2] / "native" / "operations.h").read_text()
    listed = header.split("#define OPTCTL_OPERATIONS(X)")[1]
    assert tuple(re.findall(r"X\((\w+)\)", listed)) == expressions.OPERATIONS


def test_functions_of_one_number():
    check(lambda x, p: {name: f(x) for name, f in UNARY.items() if name != "pow 1.5"}, SPECIAL, rtol=1e-13, atol=0)
    smooth = {name: f for name, f in UNARY.items() if is_smooth(f, jnp.float64(1.0))}
    x = np.linspace(0.1, 0.9, 17)
    check(lambda x, p: {name: jax.grad(f)(x) for name, f in smooth.items()}, x, rtol=1e-12)
    check(lambda x, p: {name: jax.grad(jax.grad(f))(x) for name, f in smooth.items()}, x, rtol=1e-11)
    tape = check(lambda x, p: {name: f(jnp.float64(0.3)) + 0 * x for name, f in UNARY.items()}, x, rtol=1e-14)
    assert {expressions.OPERATIONS[code] for code in tape.code[:, 0]} == {"load"}  # all folded


def values_of(function, x):
    tape = compile_tape(lambda x, p: function(x), [jax.ShapeDtypeStruct((), float)], None)
    return np.asarray(tapes.run(tape, jnp.asarray(x)[:, None], None))[:, 0]


# Arguments, and the greatest error in units of the last place that native/functions.h claims.
ACCURACY = {
    "sin": ([(-1, 1), (-10, 10), (-1e5, 1e5), (-1e300, 1e300)], 2.2),
    "cos": ([(-1, 1), (-10, 10), (-1e5, 1e5), (-1e300, 1e300)], 2.2),
    "exp": ([(-1, 1), (-20, 20), (-700, 700), (700, 709.7)], 1.7),
    "log": ([(0.5, 2), (0.99, 1.01), (0, 1e3), (1e-300, 1e300)], 1.0),
    "tanh": ([(-0.6, 0.6), (-1, 1), (-20, 20), (-1e3, 1e3)], 3.3),
}


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="the reference needs more digits than a double has")
@pytest.mark.parametrize("name", ACCURACY)
def test_accuracy_in_units_of_the_last_place(name, rng):
    ranges, claim = ACCURACY[name]
    x = np.concatenate([rng.uniform(low, high, 20_000) for low, high in ranges])
    if name in ("sin", "cos"):  # next to their zeros
        x = np.concatenate([x, np.rint(rng.uniform(-6e4, 6e4, 20_000)) * np.pi / 2])
    want = getattr(np, name)(x.astype(np.longdouble))
    error = np.abs(values_of(getattr(jnp, name), x) - want) / np.spacing(np.abs(want.astype(float)))
    assert 0.4 < error.max() < claim


@pytest.mark.parametrize("name", ACCURACY)
def test_special_arguments(name):
    """NaN, infinity and subnormals go the standard library's way, and no lane depends on its neighbors."""
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e22, -1e22, 5e-324, 1e-310, 2.3e-308, 1e-300, 0.3, 2.0, -0.7])
    got = values_of(getattr(jnp, name), x)
    with np.errstate(all="ignore"):
        want = getattr(np, name)(x)
    np.testing.assert_allclose(got, want, rtol=5e-16, atol=1e-307 if name != "log" else 0)
    alone = [values_of(getattr(jnp, name), x[i : i + 1])[0] for i in range(x.size)]
    np.testing.assert_array_equal(got, alone)


@pytest.mark.parametrize("kind", [jnp.int32, jnp.int64])
def test_conversion_to_whole_numbers_saturates(kind):
    bounds = [2147483647.5, -2147483649.0, 4294967295.9, 9.3e18]
    x = np.array([np.nan, np.inf, -np.inf, 1e10, -1e10, 3e9, 1e19, -1e19, 1e300, -1.5, -0.5, 0.9, *bounds])
    check(lambda x, p: x.astype(kind).astype(float), x, rtol=0, atol=0)
    check(lambda x, p: (x.astype(kind) > 5, jnp.where(x.astype(kind) == 0, x, 1.0)), x, rtol=0, atol=0)


def test_whatever_the_index_nothing_outside_is_read(rng):
    x = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 1e10, -3.0, 2.5, 4.0, 5.0, -5.0, -6.0])
    check(lambda x, p: (p[x.astype(int)], p[::-1][x.astype(jnp.int32)]), x, uniform=rng.normal(size=5))
    pick = lambda x, p: jnp.take(p, jnp.stack([x, 0.5 * x]).astype(int), mode="clip")
    check(pick, x, uniform=rng.normal(size=5))
    table = rng.normal(size=(4, 3))
    both = lambda x, p: p[x.astype(int), (x / 2).astype(int)] + lax.dynamic_slice(p, (x.astype(int), 1), (2, 2)).sum()
    check(both, x, uniform=table)
    tape = compile_tape(lambda x, p: p[x.astype(int)], [jax.ShapeDtypeStruct((), float)], jnp.arange(5.0))
    lookup = tape.code[:, 0] == expressions.LOOKUP
    code = tape.code.copy()
    code[lookup, 2] = 0  # the index as it comes, without the clamps that a tape's maker puts before it
    wild = dataclasses.replace(tape, code=code)
    got = np.asarray(tapes.run(wild, jnp.asarray(x)[:, None], jnp.arange(5.0)))[:, 0]
    held = np.asarray(memory(tape, jnp.arange(5.0)))
    assert tape.numbers == held.size
    assert np.isin(got, held).all()


def test_functions_of_two_numbers():
    a, b = (g.ravel() for g in np.meshgrid(SPECIAL, SPECIAL))
    check(lambda a, b, p: {name: f(a, b) for name, f in BINARY.items()}, a, b, rtol=1e-13, atol=0)
    both = lambda a, p: {name: (f(a, p), f(p, a)) for name, f in BINARY.items()}
    check(both, SPECIAL, uniform=0.5, rtol=1e-13, atol=0)
    smooth = {
        name: f for name, f in BINARY.items() if is_smooth(f, jnp.float64(1.0), jnp.float64(1.0)) and name != "rem"
    }
    a, b = (g.ravel() for g in np.meshgrid(np.linspace(0.1, 0.9, 5), np.linspace(1.2, 2.0, 4)))
    hessians = lambda a, b, p: {n: jax.hessian(lambda z: f(z[0], z[1]))(jnp.array([a, b])) for n, f in smooth.items()}  # noqa: B023
    check(hessians, a, b, rtol=1e-11)


def test_integers():
    n = np.arange(-9, 10)
    check(
        lambda n, p: (
            n // 3,
            n % 4,
            lax.div(n, 4),
            lax.rem(n, 4),
            n**2,
            abs(n),
            jnp.sign(n),
            n / 7,
            lax.clamp(-2, n, 3),
        ),
        n,
    )
    check(lambda n, p: jnp.floor(n / 3.0), n)
    check(lambda n, p: lax.select_n(jnp.abs(n) % 3, n, 2 * n, n - 5), n)


def test_arrays(rng):
    A, p = jnp.asarray(rng.normal(size=(5, 2, 6))), rng.normal(size=(2, 6))
    check(lambda A, p: {name: f(A * p) for name, f in MOVES.items()}, A, uniform=p)
    smooth = {name: f for name, f in MOVES.items() if is_smooth(f, A[0])}

    def gradient(f, A):
        return jax.grad(lambda A: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(f(A))))(A)

    check(lambda A, p: {name: gradient(f, A) for name, f in smooth.items()}, A, uniform=p)


def test_control_flow_and_derivatives(rng):
    x = rng.normal(size=(20, 3))
    forward = lambda f: lambda z: (f(z), jax.jacfwd(f)(z))
    both = lambda f: lambda z: (f(z), jax.grad(f)(z), jax.hessian(f)(z))
    check(
        lambda x, p: {name: (forward if name == "while" else both)(f)(x) for name, f in CONTROL.items()}, x, rtol=1e-10
    )


def expansion(step, nx):
    def expand(x, u, costate, t, params):
        z = jnp.concatenate([x, u])
        f = lambda z: step(z[:nx], z[nx:], t, params)
        return f(z), jax.jacfwd(f)(z), jax.hessian(lambda z: costate @ f(z) + jnp.sum(jnp.cos(z)))(z)

    return expand


@pytest.mark.parametrize("model", [oc.models.CartPole(), oc.models.Quadrotor()], ids=lambda m: type(m).__name__)
def test_models(model, rng):
    dynamics = oc.discretize(model, 0.05)
    nx, nu = dynamics.nx, dynamics.nu
    step = (lambda x, u, t, p: model(x, u)) if nx > 10 else dynamics.step
    draw = lambda n: 0.5 * rng.normal(size=(9, n))
    check(expansion(step, nx), draw(nx), draw(nu), draw(nx), np.arange(9), fixed=(3,), rtol=1e-10)


def test_linear_dynamics_with_uniform_matrices(rng):
    p = {"A": rng.normal(size=(3, 3)), "B": rng.normal(size=(3, 2))}
    step = lambda x, u, t, p: p["A"] @ x + p["B"] @ u
    args = (rng.normal(size=(7, 3)), rng.normal(size=(7, 2)), rng.normal(size=(7, 3)), np.arange(7))
    tape = check(expansion(step, 3), *args, uniform=p, fixed=(3,))
    assert tape.once[3:18].all()  # the Jacobian
    assert not tape.once[:3].any()


def test_time_varying_data(rng):
    p = {"A": jnp.asarray(rng.normal(size=(6, 3, 3))), "ref": jnp.asarray(rng.normal(size=(6, 3)))}
    every = lambda t, p: {name: f(t, p) for name, f in REFERENCES.items()}
    check(
        lambda x, t, p: (every(t, p), jax.tree.map(lambda y: y * x, every(t, p))),
        rng.normal(size=6),
        np.arange(6),
        uniform=p,
    )
    tape = compile_tape(every, [jax.ShapeDtypeStruct((), int)], p, fixed=(0,))
    assert tape.prologue == len(tape.code)


def test_index_from_a_state(rng):
    x = np.array([0.3, 2.7, -4.0, np.nan, np.inf, 1.0])
    check(lambda x, p: p[jnp.nan_to_num(x, posinf=4.0).astype(int)] * x, x, uniform=rng.normal(size=5))
    check(lambda z, p: z[jnp.clip(z[0], 0, 2).astype(int)], rng.normal(size=(9, 3)))


def test_under_an_outer_jit_with_captured_tracers(rng):
    x, A = rng.normal(size=(5, 3)), rng.normal(size=(4, 3, 3))

    @jax.jit
    def outer(x, A, scale):
        half = A / 2
        f = lambda x, t, p: (
            jnp.sin(half[t] @ x) * p,
            jax.jit(lambda y: y * half[0, 0, 0])(x) + jnp.array([1.0, 2.0, 3.0]),
        )
        tape = compile_tape(f, shapes((x, jnp.arange(5))), scale, fixed=(1,))
        assert len(tape.captured) == 1
        values = jnp.concatenate([x, jnp.arange(5.0)[:, None] % 4], axis=1)
        return tapes.run(tape, values, scale), jax.vmap(f, (0, 0, None))(x, jnp.arange(5) % 4, scale)

    got, want = outer(x, A, 1.5)
    np.testing.assert_allclose(got, flatten(want, 5), rtol=1e-13)


def test_prologue_runs_once(rng):
    """The body twice after one prologue, with other inputs, which it may overwrite."""
    p = {"ref": jnp.asarray(rng.normal(size=(8, 2))), "h": 0.1}

    def f(x, t, p):
        goal = jnp.sin(p["ref"][t])
        error = x - goal
        return p["h"] * t * error, goal, x, t, jnp.exp(error) @ (error * jnp.cos(t)), p["h"], 3.0

    x, t = rng.normal(size=(8, 2)), np.arange(8)
    tape = check(f, x, t, uniform=p, fixed=(1,))
    assert 0 < tape.prologue < len(tape.code)
    assert tape.once.tolist() == [False, False, True, True, False, False, True, False, True, True]
    once = tapes.run(tape, flatten((x, t), 8), p)
    np.testing.assert_array_equal(tapes.run(tape, flatten((x, t), 8), p, repeat=3), once)


def test_slots_are_reused_but_nothing_that_is_needed_is_overwritten(rng):
    dynamics = oc.discretize(oc.models.CartPole(), 0.05)
    S = jax.ShapeDtypeStruct
    tape = compile_tape(expansion(dynamics.step, 4), [S((4,), float), S((1,), float), S((4,), float), S((), int)], None)
    assert tape.slots < len(tape.code) / 3
    assert tape.inputs[-1] == -1  # t is not used
    kept = set(tape.code[: tape.prologue, 1].tolist())
    assert kept.isdisjoint(tape.code[tape.prologue :, 1].tolist())


def test_zeros_cost_nothing():
    x = jax.ShapeDtypeStruct((50,), float)
    tape = compile_tape(lambda x, p: jnp.diag(x) @ jnp.ones(50) + 0.0 * jnp.sin(x), [x], None)
    assert len(tape.code) == 0
    assert jax.jit(lambda: memory(tape, None))().shape == tape.constants.shape


FAIL = {
    "grow in a loop": lambda x, p: x * lax.while_loop(lambda c: c < 9 * x[0], lambda c: 2 * c, 1),
    "changes nothing": lambda x, p: lax.while_loop(lambda c: c > x[0], lambda c: c, x[1]),
    "lu": lambda x, p: jnp.linalg.solve(jnp.outer(jnp.arange(30.0), jnp.ones(30)) + x[0], jnp.ones(30)),
    "pure_callback": lambda x, p: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((3,), float), x),
    "float32": lambda x, p: jnp.sin(x.astype(jnp.float32)).astype(float),
    "random": lambda x, p: x * jax.random.normal(jax.random.key(0), (3,)),
    "uint32": lambda x, p: x.astype(jnp.uint32) << 3,
    "convert_element_type.* wrap": lambda x, p: x * (jnp.arange(3) + jnp.argmax(x).astype(jnp.uint32) - jnp.uint32(3)),
    "mul.* wrap": lambda x, p: x * (jnp.argmax(x) * 1103515245 * 1103515245 % 1000),
    "beyond 2.53": lambda x, p: x * (jnp.argmax(x) + (2**53 + 1)),
    "may be zero": lambda x, p: x * (3 // jnp.argmax(x)),
    "debug": lambda x, p: (jax.debug.print("{}", x), x)[1],
    "instructions": lambda x, p: jnp.sin(jnp.outer(x, jnp.arange(1000.0))),
}


@pytest.mark.parametrize("name", FAIL)
def test_unsupported(name):
    with pytest.raises(Unsupported, match=name):
        compile_tape(FAIL[name], [jax.ShapeDtypeStruct((3,), float)], None, limit=1000)


def test_unsupported_arguments():
    with pytest.raises(Unsupported, match="float32"):
        compile_tape(lambda x, p: x, [jax.ShapeDtypeStruct((3,), jnp.float32)], None)
