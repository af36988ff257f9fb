"""NumPy's products of vectors and matrices, and what factorizes them."""

import functools
import math
from typing import Any

import numpy as np

from optctl.tape import unroll
from optctl.tape.expressions import MINUS_ONE, ONE, ZERO
from optctl.tape.plain.along import along_sum
from optctl.tape.plain.arrays import (
    BOOL,
    FUNCTIONS,
    UFUNCS,
    Array,
    Refused,
    as_array,
    function,
    stack,
)
from optctl.tape.unroll import Unroller

LARGEST = 24
"""Most rows of a matrix that is factorized."""


def _product(un: Unroller, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the nodes of a matrix product, (m, k) times (k, n)."""
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit: {a.shape[1]} is not {b.shape[0]}")
    if a.shape[0] * a.shape[1] * b.shape[1] > 4 * un.limit:
        raise Refused("multiplies large matrices; write it with jnp, which keeps them whole")
    add, mul = un.g.add, un.g.mul
    columns = b.T.tolist()
    made = [[functools.reduce(add, map(mul, row, column), ZERO) for column in columns] for row in a.tolist()]
    return np.array(made, np.intp).reshape(a.shape[0], b.shape[1])


def _matmul(un: Unroller, a: Array, b: Array) -> Array:
    if not a.ndim or not b.ndim:
        raise ValueError("matmul: an operand has no axis; write * for the product with a number")
    dtype = np.result_type(a.dtype, b.dtype)
    if dtype == BOOL:
        raise Refused("multiplies matrices of truth values; write (x > 0) * 1.0")
    left = a.nodes[None] if a.ndim == 1 else a.nodes
    right = b.nodes[:, None] if b.ndim == 1 else b.nodes
    many = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left = np.broadcast_to(left, many + left.shape[-2:])
    right = np.broadcast_to(right, many + right.shape[-2:])
    made = np.empty((*many, left.shape[-2], right.shape[-1]), np.intp)
    for at in np.ndindex(many):
        made[at] = _product(un, left[at], right[at])
    if b.ndim == 1:
        made = made[..., 0]
    if a.ndim == 1:
        made = made[..., 0, :] if b.ndim > 1 else made[..., 0]
    return Array(un, made, dtype)


UFUNCS[np.matmul] = _matmul


@function(np.dot)
def _dot(un: Unroller, a: Any, b: Any, out: Any = None) -> Array:
    a, b = as_array(un, a), as_array(un, b)
    if not a.ndim or not b.ndim:
        return a * b
    if b.ndim <= 2:
        return _matmul(un, a, b)
    return FUNCTIONS[np.tensordot](un, a, b, (-1, -2))


@function(np.inner)
def _inner(un: Unroller, a: Any, b: Any) -> Array:
    a, b = as_array(un, a), as_array(un, b)
    if a.dtype == BOOL == b.dtype and a.ndim and b.ndim:
        raise Refused("multiplies matrices of truth values; write (x > 0) * 1.0")
    return a * b if not a.ndim or not b.ndim else _tensordot(un, a, b, (-1, -1))


@function(np.vdot)
def _vdot(un: Unroller, a: Any, b: Any) -> Array:
    return _dot(un, as_array(un, a).ravel(), as_array(un, b).ravel())


@function(np.outer)
def _outer(un: Unroller, a: Any, b: Any, out: Any = None) -> Array:
    a, b = as_array(un, a).ravel(), as_array(un, b).ravel()
    return a[:, None] * b[None, :]


@function(np.tensordot)
def _tensordot(un: Unroller, a: Any, b: Any, axes: Any = 2) -> Array:
    a, b = as_array(un, a), as_array(un, b)
    if isinstance(axes, int):
        first, second = list(range(a.ndim - axes, a.ndim)), list(range(axes))
    else:
        first, second = ([k] if isinstance(k, int) else list(k) for k in axes)
    first, second = [k % a.ndim for k in first], [k % b.ndim for k in second]
    rest_a, rest_b = ([k for k in range(z.ndim) if k not in of] for z, of in ((a, first), (b, second)))
    left = a.nodes.transpose(rest_a + first).reshape(-1, math.prod(a.shape[k] for k in first))
    right = b.nodes.transpose(second + rest_b).reshape(math.prod(b.shape[k] for k in second), -1)
    shape = [a.shape[k] for k in rest_a] + [b.shape[k] for k in rest_b]
    return Array(un, _product(un, left, right).reshape(shape), np.result_type(a.dtype, b.dtype))


@function(np.einsum)
def _einsum(un: Unroller, subscripts: Any, *operands: Any, **_: Any) -> Array:
    if not isinstance(subscripts, str):
        raise Refused('uses np.einsum without a string such as "ij,j->i"')
    arrays = [as_array(un, operand) for operand in operands]
    objects = []
    for array in arrays:
        made = np.empty(array.shape, object)
        for at in np.ndindex(array.shape):
            made[at] = Array(un, array.nodes[at], array.dtype)
        objects.append(made)
    return as_array(un, np.einsum(subscripts, *objects))


def _square(un: Unroller, a: Any) -> Array:
    a = as_array(un, a)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise np.linalg.LinAlgError(f"an array of shape {a.shape} is no square matrix")
    if a.shape[-1] > LARGEST:
        raise Refused(f"factorizes a matrix of {a.shape[-1]} rows, too many to trace; write it with jnp.linalg")
    return a


@function(np.linalg.solve)
def _solve(un: Unroller, a: Any, b: Any) -> Array:
    a, b = _square(un, a), as_array(un, b)
    if a.ndim > 2 or b.ndim > 2:
        return stack(un, [_solve(un, *pair) for pair in zip(a, b, strict=True)])
    columns = b.nodes[:, None] if b.ndim == 1 else b.nodes
    if columns.shape[0] != a.shape[0]:
        raise ValueError(f"np.linalg.solve: shapes {a.shape} and {b.shape} do not fit")
    return Array(un, _solved(un, a.nodes, columns).reshape(b.shape))


@function(np.linalg.inv)
def _inv(un: Unroller, a: Any) -> Array:
    a = _square(un, a)
    if a.ndim > 2:
        return stack(un, [_inv(un, part) for part in a])
    return Array(un, _solved(un, a.nodes, un.numbers(np.eye(len(a)))))


def _solved(un: Unroller, A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return X of A X = B, with the derivative of what is solved: A dX = dB - dA X."""
    g, n = un.g, len(A)
    factors, _, order = unroll._lu(un, None, A)
    values = _substituted(un, factors, order, B)
    if un.is_constant(A, B):
        return values
    numbers = [i for i in dict.fromkeys(A.ravel().tolist()) if i not in g.values]
    found = np.empty_like(values)

    @functools.cache
    def products(column: int) -> list[list[int]]:
        """Return d (A x) / d numbers of A, where x does not move."""
        x = found[:, column].tolist()
        places = [[[k for k, i in enumerate(row) if i == number] for number in numbers] for row in A.tolist()]
        return [[functools.reduce(g.add, [x[k] for k in at], ZERO) for at in row] for row in places]

    @functools.cache
    def inverse() -> list[list[int]]:
        return _solved(un, A, un.numbers(np.eye(n))).tolist() if B.shape[1] < n or B is not A else []

    for column in range(B.shape[1]):
        residuals = [
            g.given(ZERO, [i, *numbers], functools.partial(lambda c, j: [ONE, *map(g.neg, products(c)[j])], column, j))
            for j, i in enumerate(B[:, column].tolist())
        ]
        for i in range(n):
            rule = functools.partial(lambda i: inverse()[i], i)
            found[i, column] = g.given(int(values[i, column]), residuals, rule)
    return found


def _substituted(un: Unroller, factors: np.ndarray, order: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return X of L U X = B[order]."""
    g, n = un.g, len(factors)
    X = np.empty_like(B)
    L = factors.tolist()
    for column in range(B.shape[1]):
        b = B[:, column].tolist()
        y: list[int] = []
        for i in range(n):
            picked = b[0]
            for k in range(1, n):
                picked = g.select(g.symmetric("eq", int(order[i]), g.constant(float(k))), b[k], picked)
            for k in range(i):
                picked = g.sub(picked, g.mul(L[i][k], y[k]))
            y.append(picked)
        for i in reversed(range(n)):
            rest = y[i]
            for k in range(i + 1, n):
                rest = g.sub(rest, g.mul(L[i][k], int(X[k, column])))
            X[i, column] = g.div(rest, L[i][i])
    return X


def _diagonal_of_lu(un: Unroller, a: Array) -> tuple[list[int], int]:
    """Return the pivots of a matrix and the sign of the order of its rows."""
    g = un.g
    factors, pivots, _ = unroll._lu(un, None, a.nodes)
    sign = ONE
    for k, pivot in enumerate(pivots.tolist()):
        sign = g.mul(sign, g.select(g.symmetric("eq", pivot, g.constant(float(k))), ONE, MINUS_ONE))
    return [int(factors[k, k]) for k in range(len(factors))], sign


@function(np.linalg.det)
def _det(un: Unroller, a: Any) -> Array:
    """Return the determinant: by minors of up to three rows, which have derivatives everywhere; else by pivots."""
    a = _square(un, a)
    if a.ndim > 2:
        return stack(un, [_det(un, part) for part in a])
    if len(a) <= 3:
        return as_array(un, _minor(a))
    diagonal, sign = _diagonal_of_lu(un, a)
    return Array(un, functools.reduce(un.g.mul, diagonal, sign))


def _minor(a: Array) -> Any:
    if len(a) == 0:
        return 1.0
    if len(a) == 1:
        return a[0, 0]
    rest = [k for k in range(len(a))]
    return sum((-1.0) ** k * a[0, k] * _minor(a[1:][:, [j for j in rest if j != k]]) for k in rest)


@function(np.linalg.slogdet)
def _slogdet(un: Unroller, a: Any) -> Any:
    a, g = _square(un, a), un.g
    diagonal, sign = _diagonal_of_lu(un, a)
    signs = functools.reduce(g.mul, [g.unary("sign", i) for i in diagonal], sign)
    sizes = functools.reduce(g.add, [g.unary("log", g.unary("abs", i)) for i in diagonal], ZERO)
    return type(np.linalg.slogdet(np.eye(1)))(Array(un, signs), Array(un, sizes))


@function(np.linalg.cholesky)
def _cholesky(un: Unroller, a: Any, *, upper: bool = False) -> Array:
    made = Array(un, unroll._cholesky(un, None, _square(un, a).nodes))
    return made.mT if upper else made


@function(np.kron)
def _kron(un: Unroller, a: Any, b: Any) -> Array:
    a, b = as_array(un, a), as_array(un, b)
    deep = max(a.ndim, b.ndim)
    a, b = (z.reshape((1,) * (deep - z.ndim) + z.shape) for z in (a, b))
    pairs = a.reshape([n for size in a.shape for n in (size, 1)]) * b.reshape(
        [n for size in b.shape for n in (1, size)]
    )
    return pairs.reshape([m * n for m, n in zip(a.shape, b.shape, strict=True)])


@function(np.cross)
def _cross(un: Unroller, a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: Any = None) -> Array:
    first, second, last = (axisa, axisb, axisc) if axis is None else (axis, axis, axis)
    a, b = (np.moveaxis(as_array(un, z).nodes, axis, 0) for z, axis in ((a, first), (b, second)))
    a, b = Array(un, a), Array(un, b)
    if len(a) != 3 or len(b) != 3:
        raise ValueError("np.cross: both or either (arrays of) input vectors are not (arrays of) 3-dimensional vectors")
    parts = [a[i] * b[j] - a[j] * b[i] for i, j in ((1, 2), (2, 0), (0, 1))]
    return Array(un, np.moveaxis(stack(un, parts).nodes, 0, last))


@function(np.convolve)
def _convolve(un: Unroller, a: Any, v: Any, mode: str = "full") -> Array:
    a, v = as_array(un, a), as_array(un, v)
    a, v = (a, v) if len(a) >= len(v) else (v, a)
    full = [
        sum(a[i] * v[k - i] for i in range(max(0, k - len(v) + 1), min(k + 1, len(a))))
        for k in range(len(a) + len(v) - 1)
    ]
    sizes = {"full": len(full), "same": len(a), "valid": len(a) - len(v) + 1}
    start = (len(full) - sizes[mode]) // 2
    return as_array(un, full[start : start + sizes[mode]])


@function(np.trace)
def _trace(
    un: Unroller, a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: Any = None
) -> Array:
    return along_sum(un, np.diagonal(as_array(un, a), offset, axis1, axis2), -1)  # type: ignore[arg-type]
