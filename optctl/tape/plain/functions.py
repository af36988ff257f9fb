"""What NumPy's functions do with expressions: the tables behind `Array`, and those of functions that make arrays.

Functions that only move elements are done to the nodes by NumPy itself. A function without a rule that NumPy writes in
Python (`np.cross`, `np.trapezoid`, `np.linalg.norm`) is called with Arrays, its own calls being done likewise.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optctl.tape import unroll
from optctl.tape.derivatives import jacobian
from optctl.tape.expressions import MINUS_ONE, ONE, ZERO, Expressions
from optctl.tape.plain.arrays import (
    REDUCTIONS,
    BOOL,
    FLOAT,
    FUNCTIONS,
    METHODS,
    REFUSED,
    UFUNCS,
    WHOLE,
    Array,
    Mixed,
    Refused,
    as_array,
    call,
    cast,
    known,
    stack,
)
from optctl.tape.plain.names import MADE, opened
from optctl.tape.unroll import Unroller

LARGEST = 24
"""Most rows of a matrix that is factorized."""


# Functions of each element.


def _elementwise(name: str, scalar: Callable, kind: str = "f") -> None:
    """Add a ufunc by its scalar function(g, *nodes); its result is float ("f"), bool ("b"), or as its operands ("o")."""
    UFUNCS[getattr(np, name)] = _rule(scalar, kind)


def _rule(scalar: Callable, kind: str) -> Callable:
    def rule(un: Unroller, *args: Array) -> Array:
        dtype = BOOL if kind == "b" else FLOAT if kind == "f" else np.result_type(*[a.dtype for a in args])
        return Array(un, un.map(functools.partial(scalar, un.g), *[a.nodes for a in args]), dtype)

    return rule


def _by_name(name: str) -> Callable:
    return lambda g, a: g.unary(name, a)


for _name, _own in {
    "sin": "sin", "cos": "cos", "tan": "tan", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "exp": "exp",
    "exp2": "exp2", "expm1": "expm1", "log": "log", "log1p": "log1p", "sqrt": "sqrt", "cbrt": "cbrt", "fabs": "abs",
}.items():  # fmt: skip
    _elementwise(_name, _by_name(_own))
for _name, _own in {
    "absolute": "abs", "sign": "sign", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint"
}.items():  # fmt: skip
    _elementwise(_name, _by_name(_own), "o")


def _times(factor: float) -> Callable:
    return lambda g, a: g.mul(g.constant(factor), a)


def _remainder(g: Expressions, a: int, b: int) -> int:
    r = g.binary("rem", a, b)
    return g.select(g.binary("lt", g.mul(r, b), ZERO), g.add(r, b), r)


def _power(g: Expressions, a: int, b: int) -> int:
    exponent = g.values.get(b)
    if exponent is None:
        return g.pow(a, b)
    if exponent == math.floor(exponent) and abs(exponent) < 64:
        n = int(exponent)
        return g.improve(g.power(a, n), (a,), lambda: (g.mul(b, g.power(a, n - 1)),))
    return g.improve(g.pow(a, b), (a,), lambda: (g.mul(b, g.pow(a, g.constant(exponent - 1))),))


def _hypot(g: Expressions, a: int, b: int) -> int:
    return g.unary("sqrt", g.add(g.mul(a, a), g.mul(b, b)))


def _logaddexp(g: Expressions, a: int, b: int) -> int:
    gap = g.neg(g.unary("abs", g.sub(a, b)))
    r = g.add(g.maximum(a, b), g.unary("log1p", g.unary("exp", gap)))
    share = unroll._logistic(g, g.sub(a, b))
    return g.improve(r, (a, b), lambda: (share, g.sub(ONE, share)))


def _heaviside(g: Expressions, a: int, b: int) -> int:
    return g.select(g.symmetric("eq", a, ZERO), b, g.select(g.binary("lt", ZERO, a), ONE, ZERO))


def _copysign(g: Expressions, a: int, b: int) -> int:
    size = g.unary("abs", a)
    return g.select(g.binary("lt", b, ZERO), g.neg(size), size)


def _is_nan(g: Expressions, a: int) -> int:
    return g.symmetric("ne", a, a)


def _truth(g: Expressions, a: int) -> int:
    return g.symmetric("ne", a, ZERO)


for _name, _scalar in {
    "radians": _times(math.pi / 180), "deg2rad": _times(math.pi / 180), "degrees": _times(180 / math.pi),
    "rad2deg": _times(180 / math.pi), "log2": lambda g, a: g.mul(g.constant(1 / math.log(2)), g.unary("log", a)),
    "log10": lambda g, a: g.mul(g.constant(1 / math.log(10)), g.unary("log", a)),
    "divide": Expressions.div, "arctan2": lambda g, a, b: g.binary("atan2", a, b), "hypot": _hypot,
    "logaddexp": _logaddexp, "heaviside": _heaviside, "copysign": _copysign, "float_power": _power,
    "reciprocal": lambda g, a: g.reciprocal(a),
}.items():  # fmt: skip
    _elementwise(_name, _scalar)
for _name, _scalar in {
    "add": Expressions.add, "subtract": Expressions.sub, "multiply": Expressions.mul, "negative": Expressions.neg,
    "positive": lambda g, a: a, "square": lambda g, a: g.mul(a, a), "power": _power, "conjugate": lambda g, a: a,
    "floor_divide": lambda g, a, b: g.unary("floor", g.binary("div", a, b)), "remainder": _remainder,
    "fmod": lambda g, a, b: g.binary("rem", a, b), "maximum": Expressions.maximum, "minimum": Expressions.minimum,
    "fmax": lambda g, a, b: g.select(_is_nan(g, a), b, g.select(_is_nan(g, b), a, g.maximum(a, b))),
    "fmin": lambda g, a, b: g.select(_is_nan(g, a), b, g.select(_is_nan(g, b), a, g.minimum(a, b))),
}.items():  # fmt: skip
    _elementwise(_name, _scalar, "o")
for _name, _scalar in {
    "equal": lambda g, a, b: g.symmetric("eq", a, b), "not_equal": lambda g, a, b: g.symmetric("ne", a, b),
    "less": lambda g, a, b: g.binary("lt", a, b), "less_equal": lambda g, a, b: g.binary("le", a, b),
    "greater": lambda g, a, b: g.binary("lt", b, a), "greater_equal": lambda g, a, b: g.binary("le", b, a),
    "logical_and": lambda g, a, b: g.both(_truth(g, a), _truth(g, b)), "logical_not": lambda g, a: g.negation(a),
    "logical_or": lambda g, a, b: g.either(_truth(g, a), _truth(g, b)),
    "logical_xor": lambda g, a, b: g.symmetric("ne", _truth(g, a), _truth(g, b)), "isnan": _is_nan,
    "isfinite": _by_name("isfinite"),
    "isinf": lambda g, a: g.symmetric("eq", g.unary("abs", a), g.constant(math.inf)),
    "signbit": lambda g, a: g.binary("lt", a, ZERO),
}.items():  # fmt: skip
    _elementwise(_name, _scalar, "b")


def _on_booleans(name: str) -> Callable:
    def rule(un: Unroller, *args: Array) -> Array:
        if any(a.dtype != BOOL for a in args):
            raise Refused(f"uses np.{name} of whole numbers, which cannot be traced")
        return UFUNCS[getattr(np, name.replace("bitwise", "logical").replace("invert", "logical_not"))](un, *args)

    return rule


for _name in ("bitwise_and", "bitwise_or", "bitwise_xor", "invert"):
    UFUNCS[getattr(np, _name)] = _on_booleans(_name)
UFUNCS[np.divmod] = lambda un, a, b: (UFUNCS[np.floor_divide](un, a, b), UFUNCS[np.remainder](un, a, b))
UFUNCS[np.modf] = lambda un, a: (UFUNCS[np.subtract](un, a, UFUNCS[np.trunc](un, a)), UFUNCS[np.trunc](un, a))


for _name, _scalar in {
    "erf": _by_name("erf"), "erfc": _by_name("erfc"), "expit": unroll._logistic,
    "xlogy": lambda g, a, b: g.select(g.symmetric("eq", a, ZERO), ZERO, g.mul(a, g.unary("log", b))),
}.items():  # fmt: skip
    UFUNCS[_name] = _rule(_scalar, "f")


# Along axes.


def _rows(un: Unroller, a: Any, axis: Any, keepdims: bool, scalar: Callable, dtype: Any = None) -> Array:
    """Return scalar([x0, x1, ...]) along an axis, several, or all."""
    a = as_array(un, a)
    axes = tuple(range(a.ndim)) if axis is None else tuple(np.atleast_1d(axis) % max(a.ndim, 1))
    if axis is not None and any(k >= a.ndim or k < -a.ndim for k in np.atleast_1d(axis)):
        raise np.exceptions.AxisError(axis, a.ndim)
    nodes = un.fold_rows(scalar, a.nodes, axes)
    if keepdims:
        nodes = np.expand_dims(nodes, axes)
    return Array(un, nodes, a.dtype if dtype is None else dtype)


def _reduction(scalar: Callable, dtype: Callable) -> Callable:
    def rule(un: Unroller, a: Any, axis: Any = None, dtype_: Any = None, out: Any = None, keepdims: Any = False, **kw: Any) -> Array:
        kw = {k: v for k, v in kw.items() if k not in ("dtype", "initial") and v is not np._NoValue}
        where = kw.pop("where", None)
        if kw:
            raise Refused(f"uses the option {next(iter(kw))!r} of a sum or the like, which cannot be traced")
        a = as_array(un, a)
        if where is not None:
            a = FUNCTIONS[np.where](un, where, a, rule.first)  # type: ignore[attr-defined]
        result = _rows(un, a, axis, keepdims is True, functools.partial(scalar, un.g), dtype(a.dtype))
        if out is not None:
            out[...] = result
        return result

    return rule


def _numeric(dtype: np.dtype) -> np.dtype:
    return WHOLE if dtype == BOOL else dtype


def _reduce_by(function: Callable, first: int) -> Callable:
    def scalar(g: Expressions, row: list[int]) -> int:
        return functools.reduce(functools.partial(function, g), row) if row else first

    return scalar


def _all(g: Expressions, row: list[int]) -> int:
    return functools.reduce(g.both, [_truth(g, i) for i in row], ONE)


def _any(g: Expressions, row: list[int]) -> int:
    return functools.reduce(g.either, [_truth(g, i) for i in row], ZERO)


def _extreme(name: str) -> Callable:
    def scalar(g: Expressions, row: list[int]) -> int:
        if not row:
            raise ValueError(f"zero-size array to reduction operation {name} which has no identity")
        return unroll._extreme(g, g.maximum if name == "maximum" else g.minimum, row, ZERO)

    return scalar


_SUM = _reduction(_reduce_by(Expressions.add, ZERO), _numeric)
_SUM.first = 0.0  # type: ignore[attr-defined]
_PROD = _reduction(_reduce_by(Expressions.mul, ONE), _numeric)
_PROD.first = 1.0  # type: ignore[attr-defined]
_MAX, _MIN = (_reduction(_extreme(name), lambda dtype: dtype) for name in ("maximum", "minimum"))
_ALL, _ANY = (_reduction(scalar, lambda dtype: BOOL) for scalar in (_all, _any))
FUNCTIONS.update({np.sum: _SUM, np.prod: _PROD, np.max: _MAX, np.min: _MIN, np.amax: _MAX, np.amin: _MIN})
FUNCTIONS.update({np.all: _ALL, np.any: _ANY})


def _from_first(rule: Callable) -> Callable:
    return lambda un, a, axis=0, **kw: rule(un, a, axis, **kw)


for _ufunc, _rule in {
    np.add: _SUM, np.multiply: _PROD, np.maximum: _MAX, np.minimum: _MIN, np.logical_and: _ALL, np.logical_or: _ANY
}.items():  # fmt: skip
    REDUCTIONS[_ufunc, "reduce"] = _from_first(_rule)


def function(*functions: Callable) -> Callable:
    """Register a rule for functions of NumPy's."""

    def register(rule: Callable) -> Callable:
        FUNCTIONS.update(dict.fromkeys(functions, rule))
        return rule

    return register


@function(np.mean)
def _mean(un: Unroller, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False) -> Array:
    a = as_array(un, a)
    total = _SUM(un, a, axis, keepdims=keepdims)
    return total / (a.size / max(total.size, 1))


@function(np.var)
def _var(
    un: Unroller, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False
) -> Array:
    a = as_array(un, a)
    gap = a - _mean(un, a, axis, keepdims=True)
    total = _SUM(un, gap * gap, axis, keepdims=keepdims)
    return total / (a.size / max(total.size, 1) - ddof)


@function(np.std)
def _std(un: Unroller, *args: Any, **kwargs: Any) -> Array:
    return np.sqrt(_var(un, *args, **kwargs))  # type: ignore[return-value]


def _cumulative(function: Callable) -> Callable:
    def rule(un: Unroller, a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Array:
        a = as_array(un, a)
        rows = np.moveaxis(a.nodes, axis, 0) if axis is not None else a.nodes.ravel()
        sums = list(itertools.accumulate(rows, lambda x, y: un.map(functools.partial(function, un.g), x, y)))
        nodes = np.stack(sums) if sums else rows
        return Array(un, nodes if axis is None else np.moveaxis(nodes, 0, axis), _numeric(a.dtype))

    return rule


FUNCTIONS[np.cumsum], FUNCTIONS[np.cumprod] = _cumulative(Expressions.add), _cumulative(Expressions.mul)
REDUCTIONS[np.add, "accumulate"] = _from_first(FUNCTIONS[np.cumsum])
REDUCTIONS[np.multiply, "accumulate"] = _from_first(FUNCTIONS[np.cumprod])
REDUCTIONS[np.maximum, "accumulate"] = _from_first(_cumulative(Expressions.maximum))
REDUCTIONS[np.minimum, "accumulate"] = _from_first(_cumulative(Expressions.minimum))


def _place_of(beats: Callable) -> Callable:
    def scalar(g: Expressions, row: list[int]) -> int:
        best, place = row[0], ZERO
        for k, x in enumerate(row[1:], 1):
            wins = beats(g, x, best)
            best, place = g.select(wins, x, best), g.select(wins, g.constant(float(k)), place)
        return place

    def rule(un: Unroller, a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Array:
        return _rows(un, a, axis, keepdims is True, functools.partial(scalar, un.g), WHOLE)

    return rule


FUNCTIONS[np.argmax] = _place_of(lambda g, x, best: g.binary("lt", best, x))
FUNCTIONS[np.argmin] = _place_of(lambda g, x, best: g.binary("lt", x, best))


@function(np.sort)
def _sort(un: Unroller, a: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Array:
    a, g = as_array(un, a), un.g
    rows = list(np.moveaxis(a.nodes, axis, 0))
    for end in range(len(rows), 1, -1):
        for i in range(end - 1):
            low, high = rows[i], rows[i + 1]
            rows[i], rows[i + 1] = un.map(g.minimum, low, high), un.map(g.maximum, low, high)
    return Array(un, np.moveaxis(np.stack(rows), 0, axis), a.dtype)


@function(np.searchsorted)
def _searchsorted(un: Unroller, a: Any, v: Any, side: str = "left", sorter: Any = None) -> Array:
    a, v = as_array(un, a), as_array(un, v)
    behind = np.less(a, v[..., None]) if side == "left" else np.less_equal(a, v[..., None])
    return _SUM(un, behind, -1)


@function(np.interp)
def _interp(un: Unroller, x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None, period: Any = None) -> Any:
    if period is not None:
        raise Refused("uses np.interp with `period`, which cannot be traced")
    x, xp, fp = (as_array(un, value) for value in (x, xp, fp))
    slopes = (fp[1:] - fp[:-1]) / (xp[1:] - xp[:-1])
    y = fp[0] if left is None else as_array(un, left)
    for k in range(len(slopes)):
        y = np.where(x >= xp[k], fp[k] + slopes[k] * (x - xp[k]), y)
    y = np.where(x >= xp[-1], fp[-1], y)
    return y if right is None else np.where(x > xp[-1], right, y)


# Choices.


@function(np.where)
def _where(un: Unroller, condition: Any, *cases: Any) -> Array:
    if not cases:
        raise Refused(REFUSED["mask"])
    condition, a, b = (as_array(un, value) for value in (condition, *cases))
    truth = cast(un, condition, BOOL)
    return Array(un, un.map(un.g.select, truth.nodes, a.nodes, b.nodes), np.result_type(a.dtype, b.dtype))


@function(np.clip)
def _clip(
    un: Unroller, a: Any, a_min: Any = None, a_max: Any = None, out: Any = None, *, min: Any = None, max: Any = None
) -> Array:
    low, high = a_min if a_min is not None else min, a_max if a_max is not None else max
    parts = [as_array(un, value) for value in (-math.inf if low is None else low, a, math.inf if high is None else high)]
    given = [part for part, value in zip(parts, (low, a, high), strict=True) if value is not None]
    result = Array(
        un,
        un.map(functools.partial(unroll._clamp, un.g), *[part.nodes for part in parts]),
        np.result_type(*[part.dtype for part in given]),
    )
    if out is not None:
        out[...] = result
    return result


@function(np.select)
def _select(un: Unroller, condlist: Any, choicelist: Any, default: Any = 0) -> Array:
    result = as_array(un, default)
    for condition, choice in reversed(list(zip(condlist, choicelist, strict=True))):
        result = _where(un, condition, choice, result)
    return result


@function(np.nan_to_num)
def _nan_to_num(un: Unroller, x: Any, copy: bool = True, nan: Any = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    x, most = as_array(un, x), np.finfo(float).max
    high, low = most if posinf is None else posinf, -most if neginf is None else neginf
    return np.where(np.isnan(x), nan, np.where(x == math.inf, high, np.where(x == -math.inf, low, x)))


# Linear algebra.


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
    return a * b if not a.ndim or not b.ndim else np.tensordot(a, b, (-1, -1))


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
        rows = [functools.reduce(g.add, map(g.mul, row, x), ZERO) for row in A.tolist()]
        return jacobian(g, rows, numbers, held=x)

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
            y.append(functools.reduce(lambda r, k, i=i: g.sub(r, g.mul(L[i][k], y[k])), range(i), picked))
        for i in reversed(range(n)):
            rest = functools.reduce(
                lambda r, k, i=i, c=column: g.sub(r, g.mul(L[i][k], int(X[k, c]))), range(i + 1, n), y[i]
            )
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


# Functions that only move elements: NumPy's own, of the nodes. What they fill in is the node ZERO, which is number 0.

MOVES = (
    np.reshape, np.ravel, np.transpose, np.matrix_transpose, np.swapaxes, np.moveaxis, np.rollaxis, np.squeeze,
    np.expand_dims, np.broadcast_to, np.tile, np.repeat, np.roll, np.flip, np.fliplr, np.flipud, np.rot90,
    np.diagonal, np.diag, np.diagflat, np.tril, np.triu, np.delete, np.atleast_1d, np.atleast_2d, np.atleast_3d,
    np.copy, np.resize,
)  # fmt: skip
SPLITS = (np.split, np.array_split, np.hsplit, np.vsplit, np.dsplit, np.unstack)
JOINS = (np.concatenate, np.stack, np.hstack, np.vstack, np.dstack, np.column_stack)


def _moving(function: Callable) -> Callable:
    def rule(un: Unroller, a: Any, *args: Any, **kwargs: Any) -> Any:
        a = as_array(un, a)
        args = tuple(known(value) for value in args)
        return Array(un, function(a.nodes, *args, **kwargs), a.dtype)

    return rule


def _splitting(function: Callable) -> Callable:
    def rule(un: Unroller, a: Any, *args: Any, **kwargs: Any) -> Any:
        a = as_array(un, a)
        return [Array(un, part, a.dtype) for part in function(a.nodes, *args, **kwargs)]

    return rule


def _joining(function: Callable) -> Callable:
    def rule(un: Unroller, parts: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("dtype", None)
        arrays = [as_array(un, part) for part in parts]
        dtype = np.result_type(*[a.dtype for a in arrays])
        return Array(un, function([a.nodes for a in arrays], *args, **kwargs), dtype)

    return rule


for _functions, _make in ((MOVES, _moving), (SPLITS, _splitting), (JOINS, _joining)):
    FUNCTIONS.update({_f: _make(_f) for _f in _functions})


@function(np.append)
def _append(un: Unroller, a: Any, values: Any, axis: Any = None) -> Array:
    parts = [as_array(un, a), as_array(un, values)]
    return np.concatenate(parts if axis is not None else [part.ravel() for part in parts], axis or 0)  # type: ignore


@function(np.block)
def _block(un: Unroller, arrays: Any) -> Any:
    def depth(part: Any) -> int:
        return 1 + max(map(depth, part)) if isinstance(part, list) else 0

    def joined(part: Any, axis: int) -> Any:
        if not isinstance(part, list):
            made = as_array(un, part)
            return made.reshape((1,) * (deep - made.ndim) + made.shape) if made.ndim < deep else made
        return np.concatenate([joined(inner, axis + 1) for inner in part], axis=axis)

    deep = depth(arrays)
    return joined(arrays, -deep)


@function(np.take)
def _take(un: Unroller, a: Any, indices: Any, axis: Any = None, out: Any = None, mode: str = "raise") -> Array:
    a, places = as_array(un, a), as_array(un, indices)
    if axis is None:
        return a.ravel()[places if known(places) is None else known(places)]
    key = (*[slice(None)] * (axis % a.ndim), places)
    return a[key]


@function(np.kron)
def _kron(un: Unroller, a: Any, b: Any) -> Array:
    a, b = as_array(un, a), as_array(un, b)
    deep = max(a.ndim, b.ndim)
    a, b = (z.reshape((1,) * (deep - z.ndim) + z.shape) for z in (a, b))
    pairs = a.reshape([n for size in a.shape for n in (size, 1)]) * b.reshape([n for size in b.shape for n in (1, size)])
    return pairs.reshape([m * n for m, n in zip(a.shape, b.shape, strict=True)])


@function(np.cross)
def _cross(un: Unroller, a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: Any = None) -> Array:
    first, second, last = (axisa, axisb, axisc) if axis is None else (axis, axis, axis)
    a, b = np.moveaxis(as_array(un, a), first, 0), np.moveaxis(as_array(un, b), second, 0)  # type: ignore[arg-type]
    if len(a) != 3 or len(b) != 3:
        raise ValueError("np.cross: both or either (arrays of) input vectors are not (arrays of) 3-dimensional vectors")
    parts = [a[i] * b[j] - a[j] * b[i] for i, j in ((1, 2), (2, 0), (0, 1))]
    return np.moveaxis(stack(un, parts), 0, last)  # type: ignore[return-value]


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


@function(np.insert)
def _insert(un: Unroller, arr: Any, obj: Any, values: Any, axis: Any = None) -> Array:
    a, more = as_array(un, arr), as_array(un, values)
    return Array(un, np.insert(a.nodes, known(obj), more.nodes, axis), a.dtype)


@function(np.median)
def _median(un: Unroller, a: Any, axis: Any = None, out: Any = None, overwrite_input: Any = False, keepdims: Any = False) -> Any:
    a = as_array(un, a)
    rows = np.moveaxis(a, axis, 0) if axis is not None else a.ravel()
    rows, n = _sort(un, rows, 0), a.size if axis is None else a.shape[axis]
    middle = (rows[(n - 1) // 2] + rows[n // 2]) / 2
    return np.expand_dims(middle, axis) if keepdims and axis is not None else middle


@function(np.piecewise)
def _piecewise(un: Unroller, x: Any, condlist: Any, funclist: Any, *args: Any, **kwargs: Any) -> Any:
    x = as_array(un, x)
    conditions = list(condlist) if isinstance(condlist, list | tuple) else [condlist]
    if len(funclist) not in (len(conditions), len(conditions) + 1):
        raise ValueError("np.piecewise: as many functions as conditions are expected, or one more")
    values = [f(x, *args, **kwargs) if callable(f) else f for f in funclist]
    result = as_array(un, values[len(conditions)] if len(values) > len(conditions) else 0.0)
    for condition, value in zip(conditions, values, strict=False):
        result = _where(un, condition, value, result)
    return result


@function(np.meshgrid)
def _meshgrid(un: Unroller, *xi: Any, indexing: str = "xy", copy: bool = True, sparse: bool = False) -> Any:
    arrays = [as_array(un, x).ravel() for x in xi]
    grids = np.meshgrid(*[a.nodes for a in arrays], indexing=indexing, sparse=sparse)  # type: ignore[call-overload]
    return [Array(un, grid, a.dtype) for grid, a in zip(grids, arrays, strict=True)]


@function(np.trace)
def _trace(un: Unroller, a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: Any = None) -> Array:
    return _SUM(un, np.diagonal(as_array(un, a), offset, axis1, axis2), -1)  # type: ignore[arg-type]


@function(np.pad)
def _pad(un: Unroller, a: Any, pad_width: Any, mode: Any = "constant", **kwargs: Any) -> Array:
    a = as_array(un, a)
    if set(map(float, np.ravel(kwargs.get("constant_values", 0.0)))) != {0.0}:
        raise Refused("uses np.pad with other numbers than zeros; write np.concatenate")
    return Array(un, np.pad(a.nodes, pad_width, mode, **kwargs), a.dtype)


def _filled(value: float | None) -> Callable:
    def rule(un: Unroller, a: Any, *args: Any, dtype: Any = None, shape: Any = None, **_: Any) -> Array:
        a = as_array(un, a)
        number = as_array(un, args[0] if value is None else value)
        nodes = np.broadcast_to(number.nodes, a.shape if shape is None else shape).copy()
        kind = a.dtype if dtype is None else dtype
        return cast(un, Array(un, nodes, FLOAT), kind) if np.dtype(kind) != FLOAT else Array(un, nodes)

    return rule


FUNCTIONS.update({np.zeros_like: _filled(0.0), np.ones_like: _filled(1.0), np.empty_like: _filled(0.0)})
FUNCTIONS[np.full_like] = _filled(None)
FUNCTIONS[np.shape] = lambda un, a: as_array(un, a).shape
FUNCTIONS[np.ndim] = lambda un, a: as_array(un, a).ndim
FUNCTIONS[np.size] = lambda un, a, axis=None: as_array(un, a).size if axis is None else as_array(un, a).shape[axis]
FUNCTIONS[np.real] = lambda un, a: as_array(un, a)
FUNCTIONS[np.round] = FUNCTIONS[np.around] = lambda un, a, decimals=0, out=None: (
    np.rint(as_array(un, a)) if decimals == 0 else np.rint(as_array(un, a) * 10.0**decimals) / 10.0**decimals
)
FUNCTIONS[np.broadcast_arrays] = lambda un, *arrays, subok=False: tuple(
    Array(un, nodes.copy(), a.dtype)
    for a in [None]
    for a, nodes in zip(
        [as_array(un, v) for v in arrays], np.broadcast_arrays(*[as_array(un, v).nodes for v in arrays]), strict=True
    )
)


@function(np.copyto)
def _copyto(un: Unroller, dst: Any, src: Any, casting: Any = "same_kind", where: Any = True) -> None:
    if not isinstance(dst, Array):
        raise Refused(REFUSED["array"])
    dst[...] = src if where is True else np.where(where, src, dst)


METHODS.update(
    {
        name: getattr(np, name)
        for name in (
            *("sum", "prod", "max", "min", "mean", "var", "std", "all", "any", "cumsum", "cumprod", "argmax", "argmin"),
            *("ravel", "swapaxes", "squeeze", "repeat", "diagonal", "dot", "clip", "take", "trace"),
            *("round", "conjugate"),
        )
    }
    | {"conj": np.conjugate, "flatten": np.ravel}
)



# All others.


def _without_rule(un: Unroller, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call NumPy's own function: with numbers where all are known, with Arrays where it is written in Python."""
    numbers = _tree(known, (args, kwargs))
    if not _holds(lambda value: value is None, (args, kwargs), numbers):
        return _tree(lambda v: as_array(un, v) if isinstance(v, np.ndarray | np.number) else v, function(*numbers[0], **numbers[1]))
    name = f"{getattr(function, '__module__', '') or 'numpy'}.{function.__name__}".replace("numpy", "np", 1)
    own = opened(un, function)
    if own is None or un.inside > 20:
        raise Refused(f"uses {name}, which cannot be traced; write the formula, or the function with jnp")
    un.inside += 1
    try:
        return own(*args, **kwargs)
    except Mixed:
        raise
    except (Refused, TypeError, AttributeError, NotImplementedError) as why:
        raise Refused(f"uses {name}, which cannot be traced; write the formula, or the function with jnp") from why
    finally:
        un.inside -= 1


FUNCTIONS[call] = _without_rule


def _tree(function: Callable, value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_tree(function, part) for part in value])
    if isinstance(value, list | tuple):
        return type(value)([_tree(function, part) for part in value])
    if isinstance(value, dict):
        return {key: _tree(function, part) for key, part in value.items()}
    return function(value)


def _holds(test: Callable, before: Any, after: Any) -> bool:
    """Return whether an Array has become what the test is for."""
    if isinstance(before, list | tuple):
        return any(_holds(test, b, a) for b, a in zip(before, after, strict=True))
    if isinstance(before, dict):
        return any(_holds(test, before[key], after[key]) for key in before)
    return isinstance(before, Array) and test(after)


# Functions that make arrays, and those of `math`.


def _new(un: Unroller, value: Any, dtype: Any = None, copy: Any = True, **_: Any) -> Any:
    made = as_array(un, value, dtype)
    return made.copy() if made is value and copy else made


MADE[np.array] = lambda un, value, dtype=None, **kw: _new(un, value, dtype)
for _f in (np.asarray, np.asanyarray, np.ascontiguousarray, np.asarray_chkfinite):
    MADE[_f] = lambda un, value, dtype=None, *args, **kw: _new(un, value, dtype, False)


def _constants(function: Callable) -> Callable:
    def rule(un: Unroller, *args: Any, **kwargs: Any) -> Any:
        numbers = _tree(known, (args, kwargs))
        if not _holds(lambda value: value is None, (args, kwargs), numbers):
            made = function(*numbers[0], **numbers[1])
            return _tree(lambda v: as_array(un, v) if isinstance(v, np.ndarray) and v.dtype.kind in "fiub" else v, made)
        own = opened(un, function)
        if own is None:
            raise Refused(f"uses np.{function.__name__} of an array that is not known yet")
        return own(*args, **kwargs)

    return rule


for _f in (np.zeros, np.ones, np.empty, np.eye, np.identity, np.arange, np.tri, np.logspace, np.geomspace):
    MADE[_f] = _constants(_f)


@function(np.linspace)
def _linspace(un: Unroller, start: Any, stop: Any, num: int = 50, endpoint: bool = True, **kwargs: Any) -> Any:
    steps = as_array(un, np.linspace(0.0, 1.0, num, endpoint, **kwargs))
    start, stop = as_array(un, start), as_array(un, stop)
    return start + steps.reshape((-1,) + (1,) * max(start.ndim, stop.ndim)) * (stop - start)


MADE[np.linspace] = _linspace


def _take_known(un: Unroller, a: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:  # NumPy asks `a` alone
    if isinstance(a, Array) or isinstance(indices, Array):
        return _take(un, a, indices, *args, **kwargs)
    return np.take(a, indices, *args, **kwargs)


MADE[np.take] = _take_known


class _Vectorized:
    """`np.vectorize`: a function of numbers, called for each element."""

    def __init__(self, un: Unroller) -> None:
        self.un = un

    def __call__(self, pyfunc: Callable, *_: Any, **options: Any) -> Callable:
        if {"signature", "excluded"} & set(options):
            raise Refused("uses np.vectorize with `signature` or `excluded`, which cannot be traced; write a loop")
        un = self.un

        def mapped(*args: Any) -> Any:
            arrays = np.broadcast_arrays(*[as_array(un, value) for value in args])
            rows = [as_array(un, pyfunc(*row)) for row in zip(*[a.ravel() for a in arrays], strict=True)]
            return stack(un, rows).reshape(arrays[0].shape)

        return mapped


class _Rows:
    """`np.r_`, of arrays and numbers."""

    def __init__(self, un: Unroller) -> None:
        self.un = un

    def __getitem__(self, key: Any) -> Any:
        parts = [np.r_[part] if isinstance(part, slice) else part for part in (key if isinstance(key, tuple) else (key,))]
        if any(isinstance(part, str) for part in parts):
            raise Refused("uses np.r_ with a string, which cannot be traced; write np.concatenate")
        return np.concatenate([np.atleast_1d(as_array(self.un, part)) for part in parts])


class _Columns(_Rows):
    """`np.c_`, likewise."""

    def __getitem__(self, key: Any) -> Any:
        parts = [as_array(self.un, part) for part in (key if isinstance(key, tuple) else (key,))]
        return np.concatenate([part if part.ndim > 1 else part.reshape(-1, 1) for part in parts], axis=-1)


MADE.update({np.vectorize: _Vectorized, np.r_: _Rows, np.c_: _Columns})


def _full(un: Unroller, shape: Any, fill_value: Any, dtype: Any = None, **_: Any) -> Array:
    value = as_array(un, fill_value, dtype)
    return Array(un, np.broadcast_to(value.nodes, shape).copy(), value.dtype)


MADE[np.full] = _full


def _real_or(ufunc: Callable, own: Callable) -> Callable:
    def rule(un: Unroller, *args: Any) -> Any:
        return ufunc(*args) if any(isinstance(value, Array) for value in args) else own(*args)

    return rule


for _name, _own in {
    "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan", "atan2": "arctan2",
    "atanh": "arctanh", "pow": "power", "fabs": "fabs",
} .items():  # fmt: skip
    MADE[getattr(math, _name)] = _real_or(getattr(np, _own), getattr(math, _name))
for _name in (
    *("cbrt", "ceil", "copysign", "cos", "cosh", "degrees", "exp", "exp2", "expm1", "floor", "fmod", "hypot", "isfinite"),
    *("isinf", "isnan", "log10", "log1p", "log2", "radians", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
):
    MADE[getattr(math, _name)] = _real_or(getattr(np, _name), getattr(math, _name))


def _math_log(un: Unroller, x: Any, *base: Any) -> Any:
    if not any(isinstance(value, Array) for value in (x, *base)):
        return math.log(x, *base)
    return np.log(x) / np.log(base[0]) if base else np.log(x)


def _erf(name: str) -> Callable:
    def rule(un: Unroller, x: Any) -> Any:
        return Array(un, un.map(lambda i: un.g.unary(name, i), x.nodes)) if isinstance(x, Array) else getattr(math, name)(x)

    return rule


MADE[math.log] = _math_log
MADE[math.erf], MADE[math.erfc] = _erf("erf"), _erf("erfc")
MADE[math.prod] = lambda un, values, *, start=1: functools.reduce(lambda a, b: a * b, values, start)
MADE[math.fsum] = lambda un, values: functools.reduce(lambda a, b: a + b, values, 0.0)
