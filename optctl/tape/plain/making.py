"""NumPy's functions that make arrays, those of `math`, and all without a rule.

A function without a rule that NumPy writes in Python (`np.trapezoid`, `np.linalg.norm`) is called with Arrays, its own
calls being done likewise.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from optctl.tape.plain.arrays import (
    FUNCTIONS,
    Array,
    Mixed,
    Refused,
    as_array,
    call,
    function,
    known,
    stack,
)
from optctl.tape.plain.moving import take
from optctl.tape.plain.names import MADE, OBJECTS, opened
from optctl.tape.unroll import Unroller


def _without_rule(un: Unroller, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call NumPy's own function: with numbers where all are known, with Arrays where it is written in Python."""
    numbers = _tree(known, (args, kwargs))
    if not _holds(lambda value: value is None, (args, kwargs), numbers):
        return _tree(
            lambda v: as_array(un, v) if isinstance(v, np.ndarray | np.number) else v,
            function(*numbers[0], **numbers[1]),
        )
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
    shared = isinstance(value, Array) and np.may_share_memory(made.nodes, value.nodes)
    return made.copy() if shared and copy else made


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


_CONSTANT: tuple[Callable, ...] = (
    np.zeros,
    np.ones,
    np.empty,
    np.eye,
    np.identity,
    np.arange,
    np.tri,
    np.logspace,
    np.geomspace,
)
for _f in _CONSTANT:
    MADE[_f] = _constants(_f)


@function(np.linspace)
def _linspace(un: Unroller, start: Any, stop: Any, num: int = 50, endpoint: bool = True, **kwargs: Any) -> Any:
    steps = as_array(un, np.linspace(0.0, 1.0, num, endpoint, **kwargs))
    start, stop = as_array(un, start), as_array(un, stop)
    return start + steps.reshape((-1,) + (1,) * max(start.ndim, stop.ndim)) * (stop - start)


MADE[np.linspace] = _linspace


def _take_known(un: Unroller, a: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:  # NumPy asks `a` alone
    if isinstance(a, Array) or isinstance(indices, Array):
        return take(un, a, indices, *args, **kwargs)
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
        parts = [
            np.r_[part] if isinstance(part, slice) else part for part in (key if isinstance(key, tuple) else (key,))
        ]
        if any(isinstance(part, str) for part in parts):
            raise Refused("uses np.r_ with a string, which cannot be traced; write np.concatenate")
        return np.concatenate([np.atleast_1d(as_array(self.un, part)) for part in parts])


class _Columns(_Rows):
    """`np.c_`, likewise."""

    def __getitem__(self, key: Any) -> Any:
        parts = [as_array(self.un, part) for part in (key if isinstance(key, tuple) else (key,))]
        return np.concatenate([part if part.ndim > 1 else part.reshape(-1, 1) for part in parts], axis=-1)


OBJECTS.update({np.vectorize: _Vectorized, np.r_: _Rows, np.c_: _Columns})


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
    *("cbrt", "ceil", "copysign", "cos", "cosh", "degrees", "exp", "exp2", "expm1", "floor", "fmod", "isfinite"),
    *("isinf", "isnan", "log10", "log1p", "log2", "radians", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
):
    MADE[getattr(math, _name)] = _real_or(getattr(np, _name), getattr(math, _name))


def _math_log(un: Unroller, x: Any, *base: Any) -> Any:
    if not any(isinstance(value, Array) for value in (x, *base)):
        return math.log(x, *base)
    return np.log(x) / np.log(base[0]) if base else np.log(x)


def _erf(name: str) -> Callable:
    def rule(un: Unroller, x: Any) -> Any:
        return (
            Array(un, un.map(lambda i: un.g.unary(name, i), x.nodes))
            if isinstance(x, Array)
            else getattr(math, name)(x)
        )

    return rule


MADE[math.log] = _math_log


def _math_hypot(un: Unroller, *values: Any) -> Any:
    if not any(isinstance(value, Array) for value in values):
        return math.hypot(*values)
    return np.sqrt(sum(value * value for value in values))


def _math_dist(un: Unroller, p: Any, q: Any) -> Any:
    return _math_hypot(un, *[a - b for a, b in zip(p, q, strict=True)])


MADE[math.hypot], MADE[math.dist] = _math_hypot, _math_dist
MADE[math.erf], MADE[math.erfc] = _erf("erf"), _erf("erfc")
MADE[math.prod] = lambda un, values, *, start=1: functools.reduce(lambda a, b: a * b, values, start)
MADE[math.fsum] = lambda un, values: functools.reduce(lambda a, b: a + b, values, 0.0)


def _greatest(own: Callable, ufunc: np.ufunc) -> Callable:
    def rule(un: Unroller, *args: Any, **kwargs: Any) -> Any:
        values = list(args[0]) if len(args) == 1 else list(args)
        if kwargs or not any(isinstance(value, Array) for value in values):
            return own(values, **kwargs)
        return functools.reduce(ufunc, values)

    return rule


MADE[max], MADE[min] = _greatest(max, np.maximum), _greatest(min, np.minimum)
