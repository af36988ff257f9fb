"""NumPy's functions along axes, and those that choose."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from optctl.tape import unroll
from optctl.tape.expressions import ONE, ZERO, Expressions
from optctl.tape.plain.arrays import (
    BOOL,
    FUNCTIONS,
    REDUCTIONS,
    REFUSED,
    WHOLE,
    Array,
    Refused,
    as_array,
    cast,
    function,
)
from optctl.tape.unroll import Unroller


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
    def rule(
        un: Unroller, a: Any, axis: Any = None, dtype_: Any = None, out: Any = None, keepdims: Any = False, **kw: Any
    ) -> Array:
        asked = [dtype_, kw.pop("dtype", None)]
        if any(one is not None and np.dtype(one) != a.dtype for one in asked if isinstance(a, Array)):
            raise Refused("asks for a sum or the like of another type; write a.astype(float) first")
        kw = {k: v for k, v in kw.items() if v is not np._NoValue}
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
    return functools.reduce(g.both, [g.symmetric("ne", i, ZERO) for i in row], ONE)


def _any(g: Expressions, row: list[int]) -> int:
    return functools.reduce(g.either, [g.symmetric("ne", i, ZERO) for i in row], ZERO)


def _extreme(name: str) -> Callable:
    def scalar(g: Expressions, row: list[int]) -> int:
        if not row:
            raise ValueError(f"zero-size array to reduction operation {name} which has no identity")
        return unroll._extreme(g, g.maximum if name == "maximum" else g.minimum, row, ZERO)

    return scalar


along_sum = _reduction(_reduce_by(Expressions.add, ZERO), _numeric)
along_sum.first = 0.0  # type: ignore[attr-defined]
_PROD = _reduction(_reduce_by(Expressions.mul, ONE), _numeric)
_PROD.first = 1.0  # type: ignore[attr-defined]
_MAX, _MIN = (_reduction(_extreme(name), lambda dtype: dtype) for name in ("maximum", "minimum"))
_ALL, _ANY = (_reduction(scalar, lambda dtype: BOOL) for scalar in (_all, _any))
FUNCTIONS.update({np.sum: along_sum, np.prod: _PROD, np.max: _MAX, np.min: _MIN, np.amax: _MAX, np.amin: _MIN})
FUNCTIONS.update({np.all: _ALL, np.any: _ANY})


def _from_first(rule: Callable) -> Callable:
    return lambda un, a, axis=0, **kw: rule(un, a, axis, **kw)


for _ufunc, _rule in {
    np.add: along_sum, np.multiply: _PROD, np.maximum: _MAX, np.minimum: _MIN, np.logical_and: _ALL, np.logical_or: _ANY
}.items():  # fmt: skip
    REDUCTIONS[_ufunc, "reduce"] = _from_first(_rule)


@function(np.mean)
def _mean(un: Unroller, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False) -> Array:
    a = as_array(un, a)
    total = along_sum(un, a, axis, keepdims=keepdims)
    return total / (a.size / max(total.size, 1))


@function(np.var)
def _var(
    un: Unroller, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False
) -> Array:
    a = as_array(un, a)
    gap = a - _mean(un, a, axis, keepdims=True)
    total = along_sum(un, gap * gap, axis, keepdims=keepdims)
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
            first_nan = g.both(g.symmetric("ne", x, x), g.symmetric("eq", best, best))
            wins = g.either(beats(g, x, best), first_nan)
            best, place = g.select(wins, x, best), g.select(wins, g.constant(float(k)), place)
        return place

    def rule(un: Unroller, a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Array:
        return _rows(un, a, axis, keepdims is True, functools.partial(scalar, un.g), WHOLE)

    return rule


FUNCTIONS[np.argmax] = _place_of(lambda g, x, best: g.binary("lt", best, x))
FUNCTIONS[np.argmin] = _place_of(lambda g, x, best: g.binary("lt", x, best))


def _in_order(un: Unroller, a: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return rows in order along the first axis, NaN last, and their places: neighbors change places."""
    g, rows = un.g, list(a)
    places = [np.full(a.shape[1:], g.constant(float(k))) for k in range(len(rows))]
    for end in range(len(rows), 1, -1):
        for i in range(end - 1):
            swap = un.map(functools.partial(unroll._before, g), rows[i + 1], rows[i])
            for of in (rows, places):
                first, second = of[i], of[i + 1]
                of[i], of[i + 1] = un.map(g.select, swap, second, first), un.map(g.select, swap, first, second)
    return rows, places


def _ordering(which: int) -> Callable:
    def rule(un: Unroller, a: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Array:
        a = as_array(un, a)
        if axis is None:
            a, axis = a.ravel(), 0
        rows = _in_order(un, np.moveaxis(a.nodes, axis, 0))[which]
        nodes = np.moveaxis(np.stack(rows), 0, axis) if rows else a.nodes
        return Array(un, nodes, WHOLE if which else a.dtype)

    return rule


FUNCTIONS[np.sort], FUNCTIONS[np.argsort] = _ordering(0), _ordering(1)


@function(np.searchsorted)
def _searchsorted(un: Unroller, a: Any, v: Any, side: str = "left", sorter: Any = None) -> Array:
    a, v = as_array(un, a), as_array(un, v)
    behind = np.less(a, v[..., None]) if side == "left" else np.less_equal(a, v[..., None])
    return along_sum(un, behind, -1)


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
    y = y if right is None else np.where(x > xp[-1], right, y)
    return np.where(np.isnan(x), math.nan, y)


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
    parts = [
        as_array(un, value) for value in (-math.inf if low is None else low, a, math.inf if high is None else high)
    ]
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


@function(np.median)
def _median(
    un: Unroller, a: Any, axis: Any = None, out: Any = None, overwrite_input: Any = False, keepdims: Any = False
) -> Any:
    a = as_array(un, a)
    rows = np.moveaxis(a, axis, 0) if axis is not None else a.ravel()
    rows, n = np.sort(rows, 0), a.size if axis is None else a.shape[axis]
    middle = np.where(np.isnan(rows[-1]), math.nan, (rows[(n - 1) // 2] + rows[n // 2]) / 2)
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
