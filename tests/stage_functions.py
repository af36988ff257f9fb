"""Random stage functions f(x, t, params) of all kinds of primitives: nested loops and branches, indexing by t, pytrees.

A function is a plan: operations on the results of those before, drawn from a seed; every call follows the same plan.
All values between operations are vectors of four numbers, of moderate size.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optctl.judge.interpreter import interpret
from optctl.tape import adjoints, jacobian, run, trace

N = 4
TABLE = np.sin(np.arange(20.0)).reshape(5, N)
PARAMS = {
    "ref": np.cos(np.arange(20.0)).reshape(5, N),
    "w": [0.3 * np.sin(np.arange(16.0)).reshape(N, N), np.array(0.7)],
}


def _matrix(a):
    return a.reshape(2, 2)


def _definite(a):
    A = _matrix(a)
    return A @ A.T + 2.0 * jnp.eye(2)


ONE = {
    "sin": jnp.sin, "cos": jnp.cos, "tanh": jnp.tanh, "atan": jnp.arctan, "erf": jax.scipy.special.erf,
    "logistic": jax.nn.sigmoid, "softplus": jax.nn.softplus, "asinh": jnp.arcsinh, "square": lambda a: 0.5 * a * a,
    "bell": lambda a: jnp.exp(-a * a), "root": lambda a: jnp.sqrt(1.0 + a * a), "log": lambda a: jnp.log1p(a * a),
    "sinh": lambda a: jnp.sinh(0.3 * a), "cube": lambda a: 0.1 * a**3, "abs": lambda a: jnp.abs(a + 0.31),
    "cbrt": lambda a: jnp.cbrt(1.0 + a * a), "floor": lambda a: a - 0.3 * jnp.floor(a), "acos": lambda a: jnp.arccos(0.9 * jnp.tanh(a)),
    "reverse": lambda a: a[::-1], "roll": lambda a: jnp.roll(a, 1), "halves": lambda a: jnp.concatenate([a[2:], 2.0 * a[:2]]),
    "transpose": lambda a: _matrix(a).T.ravel(), "set": lambda a: a.at[1].set(a[0] * a[3]).at[2].add(1.0), "cumsum": jnp.cumsum,
    "cumprod": lambda a: jnp.cumprod(0.5 * a), "sort": jnp.sort, "mean": lambda a: a - a.mean(), "norm": lambda a: a / jnp.linalg.norm(a + 3.0),
    "max": lambda a: a * a.max(), "softmax": jax.nn.softmax, "pad": lambda a: jnp.pad(a, 1)[:4], "argmax": lambda a: a * jnp.argmax(a),
    "cholesky": lambda a: jnp.linalg.cholesky(_definite(a)).ravel(), "inverse": lambda a: jnp.linalg.inv(_definite(a)).ravel(),
    "det": lambda a: a * jnp.linalg.det(_matrix(a) + 3.0 * jnp.eye(2)), "clip": lambda a: jnp.clip(a, -0.7, 0.9),
    "checkpoint": jax.checkpoint(lambda a: jnp.tanh(a) * a), "jit": jax.jit(lambda a: jnp.cos(a) + a[0]), "interp": lambda a: jnp.interp(a, jnp.arange(4.0), TABLE[1]),
    "vmap": jax.vmap(lambda b: jnp.sin(b) * b), "prod": lambda a: a + jnp.prod(0.5 * a), "wrap": lambda a: (a + 5.03) % 2.01,
}  # fmt: skip
TWO = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - 0.5 * b, "mul": lambda a, b: a * b, "div": lambda a, b: a / (1.5 + b * b),
    "max": jnp.maximum, "min": jnp.minimum, "atan2": lambda a, b: jnp.arctan2(a, 1.0 + b * b), "where": lambda a, b: jnp.where(a > b, a, b * b),
    "hypot": lambda a, b: jnp.hypot(a, 1.0 + jnp.abs(b)), "pow": lambda a, b: (1.0 + a * a) ** (0.3 * b), "dot": lambda a, b: a * (a @ b),
    "matmul": lambda a, b: (_matrix(a) @ _matrix(b)).ravel(), "outer": lambda a, b: jnp.outer(a, b).sum(0), "einsum": lambda a, b: jnp.einsum("ij,jk->ki", _matrix(a), _matrix(b)).ravel(),
    "solve": lambda a, b: jnp.linalg.solve(_definite(a), _matrix(b)).ravel(), "stack": lambda a, b: jnp.stack([a, b]).max(axis=0),
    "select": lambda a, b: lax.select_n((a > 0.1) & (b < 0.4), a, b), "cross": lambda a, b: jnp.append(jnp.cross(a[:3], b[1:]), a[3]),
    "logaddexp": jnp.logaddexp, "triangular": lambda a, b: jax.scipy.linalg.solve_triangular(jnp.tril(_definite(a)), _matrix(b), lower=True).ravel(),
}  # fmt: skip
BY_T = {
    "table": lambda a, t, p: a * jnp.asarray(TABLE)[t], "reference": lambda a, t, p: a - p["ref"][t], "window": lambda a, t, p: a + lax.dynamic_slice(p["ref"], (t, 0), (1, N))[0],
    "element": lambda a, t, p: a * a[t % N], "weights": lambda a, t, p: p["w"][0] @ a, "scalar": lambda a, t, p: p["w"][1] * a + 0.1 * t,
    "row": lambda a, t, p: a * p["w"][0][t % N, 1], "write": lambda a, t, p: a.at[t % N].set(a[0] * a[1]), "switch": lambda a, t, p: lax.switch(t % 3, [jnp.sin, jnp.cos, lambda a: a * a], a),
}  # fmt: skip
NESTED = ("scan", "fori", "cond", "while", "custom")


def plan(rng, length, depth):
    """Return operations: (kind, name, places of operands behind the end, an inner plan or None, a number)."""
    steps = []
    for _ in range(length):
        kind = rng.choice(["one", "two", "t", "nested"], p=[0.4, 0.3, 0.2, 0.1] if depth else [0.45, 0.35, 0.2, 0.0])
        names = {"one": list(ONE), "two": list(TWO), "t": list(BY_T), "nested": list(NESTED)}[kind]
        inner = plan(rng, 2, depth - 1) if kind == "nested" else None
        places = tuple(int(k) for k in rng.integers(1, 4, 2))
        steps.append((str(kind), str(rng.choice(names)), places, inner, float(rng.uniform(-0.5, 0.5))))
    return steps


def follow(steps, a, t, p):
    """Return the last result of a plan."""
    made = [a, jnp.cos(a), 0.5 * a]
    for kind, name, places, inner, number in steps:
        a, b = made[-min(places[0], len(made))], made[-min(places[1], len(made))]
        if kind == "one":
            result = ONE[name](a)
        elif kind == "two":
            result = TWO[name](a, b)
        elif kind == "t":
            result = BY_T[name](a, t, p)
        else:
            result = nested(name, inner, a, b, t, p, number)
        made.append(result / (1.0 + 0.1 * jnp.sum(result * result)))
    return sum(made[3:])


def nested(name, inner, a, b, t, p, number):
    """Return the result of a loop or a branch that holds a plan."""
    if name == "scan":
        carry, rows = lax.scan(lambda c, row: (follow(inner, c + row, t, p), c * row), a, p["ref"][:3])
        return carry + rows.sum(0)
    if name == "fori":
        return lax.fori_loop(0, 3, lambda i, c: follow(inner, c, t, p) + 0.1 * i, a)
    if name == "cond":
        return lax.cond(b[0] > number, lambda c: follow(inner, c, t, p), lambda c: c * c, a)
    if name == "while":
        return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, follow(inner, c[1], t, p)), (0, a))[1]

    @jax.custom_jvp
    def custom(c, t, p):
        return follow(inner, c, t, p)

    custom.defjvp(lambda values, moves: (custom(*values), jnp.cos(values[0]) * moves[0]))
    return custom(a, t, p)


def random_function(seed, length, depth):
    """Return f(x, t, params), x a tree {"q": (2,), "v": (2,)}, its results a tree."""
    steps = plan(np.random.default_rng(seed), length, depth)

    def f(x, t, params):
        result = follow(steps, jnp.concatenate([x["q"], x["v"]]), t, params)
        return {"y": result, "z": (result[0] * x["v"][1],)}

    return f, steps


def gap(seed, length, depth=2):
    """Compare a function's tape with JAX's derivatives, evaluated by NumPy, at three stages.

    Returns the greatest difference of values, Jacobian and Hessian, to their size, and the names of the operations.
    """
    f, steps = random_function(seed, length, depth)
    weights = 0.3 + np.cos(np.arange(5.0))

    def flat(z, t, params):
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(f({"q": z[:2], "v": z[2:]}, t, params))])

    def known(z, t, params):  # JAX traces the function once
        def slopes(z):
            J, y = jax.jacfwd(lambda z: (flat(z, t, params),) * 2, has_aux=True)(z)
            return J, (y, J)

        H, (y, J) = jax.jacfwd(slopes, has_aux=True)(z)
        return y, J, jnp.tensordot(weights, H, 1)

    graph = trace(flat, (np.zeros(4), 0), PARAMS)
    g, z, results = graph.g, graph.inputs[0].tolist(), graph.results[0].tolist()
    prices = {}
    for i, weight in zip(results, weights.tolist(), strict=True):
        prices[i] = g.add(prices.get(i, 0), g.constant(weight))
    with np.errstate(all="ignore"):
        parts = [graph.results[0], jacobian(g, results, z), jacobian(g, adjoints(g, prices, z), z)]
        tape = graph.tape(graph.inputs, [np.array(part, np.intp) for part in parts])
    by_jax, rng, worst = interpret(known, np.zeros(4), 0, PARAMS), np.random.default_rng(seed + 10**6), 0.0
    for t in range(3):
        point = rng.normal(size=4)
        found = np.asarray(run(tape, np.append(point, t)[None], PARAMS))[0]
        wanted = np.concatenate([np.ravel(a) for a in by_jax(point, np.asarray(t), *jax.tree.leaves(PARAMS))])
        assert np.isfinite(wanted).all()
        worst = max(worst, np.abs(found - wanted).max() / (1.0 + np.abs(wanted).max()))
    return worst, [name for _, name, *_ in steps]
