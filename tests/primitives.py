"""Functions made of every primitive that stage functions may hold, for those who evaluate them without XLA."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SPECIAL = np.array(
    [0.0, 0.5, -0.7, 1.0, -1.0, 2.0, -2.5, 3.5, 40.0, -40.0, 1e3, np.inf, -np.inf, np.nan, 1e-9, 0.25, -3.0]
)


UNARY = {
    name: getattr(lax, name)
    for name in (
        *("neg", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "exp"),
        *("exp2", "expm1", "log", "log1p", "logistic", "sqrt", "rsqrt", "cbrt", "square", "abs", "sign", "floor"),
        *("ceil", "is_finite", "erf", "erfc"),
    )
}
UNARY |= {f"power {n}": lambda x, n=n: lax.integer_pow(x, n) for n in (-3, -2, -1, 0, 1, 2, 3, 4, 7)}
UNARY |= {f"pow {y}": lambda x, y=y: x**y for y in (1.5, 3.0, 2.3)}
UNARY |= {
    "round": lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO),
    "rint": lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
    "whole": lambda x: jnp.where(jnp.abs(x) < 1e6, x, 0.0).astype(int) // 2,
    "not": lambda x: ~(x > 1.0),
}


BINARY = {name: getattr(lax, name) for name in ("add", "sub", "mul", "div", "pow", "atan2", "rem", "max", "min")}
BINARY |= {name: getattr(lax, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
BINARY |= {
    "and": lambda a, b: (a > 0) & (b > 0),
    "or": lambda a, b: (a > 0) | (b > 0),
    "xor": lambda a, b: (a > 0) ^ (b > 0),
    "where": lambda a, b: jnp.where(a > 0, jnp.where(b == 0, a, b), 1.0),
    "clamp": lambda a, b: lax.clamp(-1.0, a, 2.0) + lax.clamp(0.0, b, jnp.abs(b)),
}


MOVES = {
    "reshape": lambda A: A.reshape(3, 4).T[::-1, 1:3],
    "stack": lambda A: jnp.stack([A[0], A[1] ** 2, jnp.concatenate([A[0, :1], A[1, 1:]])]),
    "at": lambda A: A.at[1].set(3.0).at[:, 2].add(A[0, 0]).at[jnp.array([0, 1, 0]), jnp.array([1, 1, 1])].multiply(2.0),
    "at min": lambda A: A.at[0, 1].min(0.0).at[1].max(A[0]),
    "pad": lambda A: lax.pad(A, 7.0, ((1, -1, 0), (-1, 2, 1))),
    "diag": lambda A: jnp.diag(A[0]) + jnp.tri(6) * jnp.triu(A[0][None, :] * A[0][:, None]),
    "split": lambda A: jnp.split(A, 2, axis=1)[1] + jnp.tile(jnp.roll(A, 1, axis=1)[:, :1], (1, 3)),
    "take": lambda A: A[:, jnp.array([2, 0, -1])] + jnp.take(A, jnp.array([5, 9, 1]), axis=1, mode="clip"),
    "fill": lambda A: jnp.take(A, jnp.array([5, 9, 1]), axis=1, mode="fill", fill_value=2.0),
    "reduce": lambda A: (A.sum(), A.sum(0), A.max(1), A.min(), A.prod(0), jnp.any(A > 2, axis=0), jnp.all(A > -1)),
    "arg": lambda A: (A.argmax(), A.argmin(0), A.argmax(1)),
    "cumulative": lambda A: (jnp.cumsum(A, 1), jnp.cumprod(A, 0), lax.cummax(A, 1), lax.cumsum(A, 1, reverse=True)),
    "matmul": lambda A: (A @ A.T, A.T @ A, jnp.einsum("ij,ik,jl->kl", A, A, jnp.ones((6, 2)))),
    "products": lambda A: (jnp.cross(A[0, :3], A[1, 3:]), jnp.outer(A[0], A[1]), jnp.linalg.norm(A), jnp.vdot(A, A)),
    "batched": lambda A: jax.vmap(jnp.dot)(A.reshape(3, 2, 2), A.reshape(3, 2, 2)),
    "cholesky": lambda A: jnp.linalg.cholesky(A @ A.T + jnp.eye(2)),
    "triangular": lambda A: jax.scipy.linalg.solve_triangular(jnp.tril(A[:, :2] ** 2) + jnp.eye(2), A, lower=True, trans=1),
    "cho_solve": lambda A: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(A @ A.T + jnp.eye(2)), True), A),
    "empty": lambda A: jnp.concatenate([A[:, :0], A], axis=1) + jnp.sum(A[:0]),
    "constants": lambda A: A @ jnp.linalg.inv(jnp.arange(36.0).reshape(6, 6) + 40 * jnp.eye(6)),
    "solve": lambda A: jnp.linalg.solve(A[:, :2] + jnp.array([[0.0, 3.0], [1.0, 0.0]]), A[:, 2]),
    "solve many": lambda A: jnp.linalg.solve((A.T @ A + jnp.eye(6))[:3, :3], A.T[:3]),
    "inverse": lambda A: jnp.linalg.inv((A.T @ A)[:3, :3] + jnp.eye(3)) @ A[0, :3],
    "determinant": lambda A: jnp.linalg.det((A.T @ A)[:4, :4] + jnp.eye(4)),
    "lu": lambda A: jax.scipy.linalg.lu((A.T @ A)[:3, :3] + jnp.eye(3) + A[:1, :3])[1:],
    "sort": lambda A: (jnp.sort(A, axis=1), jnp.sort(A, axis=0), jnp.median(A[0])),
    "order": lambda A: A[0][jnp.argsort(A[1])],
    "interp": lambda A: jnp.where(A > 0, jnp.exp(-A), jnp.log1p(A**2)),
}  # fmt: skip


def loop(x):
    y = lax.fori_loop(0, 4, lambda i, c: jnp.sin(c) + i * x[0], x[1])
    carry, ys = lax.scan(lambda c, a: (c * a + 1.0, c), y, x, reverse=True)
    return carry + ys @ x


CONTROL = {
    "loop": loop,
    "while": lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x[0]), (0, x[1]))[1],
    "cond": lambda x: lax.cond(x[0] > 0, lambda y: jnp.sin(y[1]), lambda y: y[2] ** 2, x),
    "switch": lambda x: lax.switch((10 * x[0]).astype(int), [lambda y: y[0], lambda y: y[1], lambda y: y[2]], x),
    "checkpoint": lambda x: jax.checkpoint(lambda y: jnp.tanh(y) @ y)(x),
    "custom": lambda x: jnp.sum(jax.nn.softplus(x) + jax.nn.relu(x) + jax.nn.gelu(x)) + jax.nn.logsumexp(x),
    "safe": lambda x: jnp.where(x[0] > 0, jnp.sqrt(jnp.where(x[0] > 0, x[0], 1.0)), 0.0) + jnp.hypot(x[1], x[2]),
}


REFERENCES = {
    "element": lambda t, p: p["ref"][t],
    "negative": lambda t, p: p["ref"][-1 - t, 1] + p["ref"][t, -2],
    "window": lambda t, p: lax.dynamic_slice(p["ref"], (t, 1), (2, 1)),
    "both": lambda t, p: p["ref"][t, t % 2],
    "take": lambda t, p: jnp.take(p["ref"], t + 1, axis=0, mode="fill", fill_value=5.0),
    "clip": lambda t, p: jnp.take(p["ref"].T, 2 * t, axis=1, mode="clip"),
    "reversed": lambda t, p: p["ref"][::-1, ::2][t],
    "computed": lambda t, p: (p["ref"] ** 2)[t],
    "constant": lambda t, p: jnp.arange(18.0).reshape(6, 3)[t] * p["ref"][0],
    "matrix": lambda t, p: p["A"][t] @ p["ref"][t],
    "write": lambda t, p: p["ref"][:, 0].at[t].set(1.0).at[t + 2].add(2.0),
    "update": lambda t, p: lax.dynamic_update_slice(p["ref"], jnp.ones((2, 1)) * t, (t, 1)),
    "interp": lambda t, p: jnp.interp(t * 0.7, jnp.arange(6.0), p["ref"][:, 0]),
}


def is_smooth(f, *args):
    return all(leaf.dtype == float for leaf in jax.tree.leaves(jax.eval_shape(f, *args)))
