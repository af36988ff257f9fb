"""NumPy's functions of each element, as functions of expressions."""

import functools
import math
from collections.abc import Callable

import numpy as np

from optctl.tape import unroll
from optctl.tape.expressions import ONE, ZERO, Expressions
from optctl.tape.plain.arrays import (
    BOOL,
    FLOAT,
    UFUNCS,
    Array,
    Refused,
)
from optctl.tape.unroll import Unroller


def _elementwise(name: str, scalar: Callable, kind: str = "f") -> None:
    """Add a ufunc by its function(g, *nodes); its result is float ("f"), bool ("b"), or as its operands ("o")."""
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


_OF_FLOATS: dict[str, Callable] = {
    "radians": _times(math.pi / 180), "deg2rad": _times(math.pi / 180), "degrees": _times(180 / math.pi),
    "rad2deg": _times(180 / math.pi), "log2": lambda g, a: g.mul(g.constant(1 / math.log(2)), g.unary("log", a)),
    "log10": lambda g, a: g.mul(g.constant(1 / math.log(10)), g.unary("log", a)),
    "divide": Expressions.div, "arctan2": lambda g, a, b: g.binary("atan2", a, b), "hypot": _hypot,
    "logaddexp": _logaddexp, "heaviside": _heaviside, "copysign": _copysign, "float_power": _power,
    "reciprocal": lambda g, a: g.reciprocal(a),
}  # fmt: skip
for _name, _scalar in _OF_FLOATS.items():
    _elementwise(_name, _scalar)
_LIKE_OPERANDS: dict[str, Callable] = {
    "add": Expressions.add, "subtract": Expressions.sub, "multiply": Expressions.mul, "negative": Expressions.neg,
    "positive": lambda g, a: a, "square": lambda g, a: g.mul(a, a), "power": _power, "conjugate": lambda g, a: a,
    "floor_divide": lambda g, a, b: g.unary("floor", g.binary("div", a, b)), "remainder": _remainder,
    "fmod": lambda g, a, b: g.binary("rem", a, b), "maximum": Expressions.maximum, "minimum": Expressions.minimum,
    "fmax": lambda g, a, b: g.select(_is_nan(g, a), b, g.select(_is_nan(g, b), a, g.maximum(a, b))),
    "fmin": lambda g, a, b: g.select(_is_nan(g, a), b, g.select(_is_nan(g, b), a, g.minimum(a, b))),
}  # fmt: skip
for _name, _scalar in _LIKE_OPERANDS.items():
    _elementwise(_name, _scalar, "o")
_sum = UFUNCS[np.add]
UFUNCS[np.add] = lambda un, a, b: (
    UFUNCS[np.logical_or](un, a, b) if a.dtype == BOOL == b.dtype else _sum(un, a, b)  # as NumPy has it
)
_TRUTHS: dict[str, Callable] = {
    "equal": lambda g, a, b: g.symmetric("eq", a, b), "not_equal": lambda g, a, b: g.symmetric("ne", a, b),
    "less": lambda g, a, b: g.binary("lt", a, b), "less_equal": lambda g, a, b: g.binary("le", a, b),
    "greater": lambda g, a, b: g.binary("lt", b, a), "greater_equal": lambda g, a, b: g.binary("le", b, a),
    "logical_and": lambda g, a, b: g.both(_truth(g, a), _truth(g, b)), "logical_not": lambda g, a: g.negation(a),
    "logical_or": lambda g, a, b: g.either(_truth(g, a), _truth(g, b)),
    "logical_xor": lambda g, a, b: g.symmetric("ne", _truth(g, a), _truth(g, b)), "isnan": _is_nan,
    "isfinite": _by_name("isfinite"),
    "isinf": lambda g, a: g.symmetric("eq", g.unary("abs", a), g.constant(math.inf)),
    "signbit": lambda g, a: g.binary("lt", a, ZERO),
}  # fmt: skip
for _name, _scalar in _TRUTHS.items():
    _elementwise(_name, _scalar, "b")


def _on_booleans(name: str, scalar: Callable) -> Callable:
    def rule(un: Unroller, *args: Array) -> Array:
        if any(a.dtype != BOOL for a in args):
            raise Refused(f"uses np.{name} of whole numbers, which cannot be traced")
        return _rule(scalar, "b")(un, *args)

    return rule


_OF_BOOLEANS: dict[str, Callable] = {
    "bitwise_and": Expressions.both,
    "bitwise_or": Expressions.either,
    "bitwise_xor": lambda g, a, b: g.symmetric("ne", a, b),
    "invert": Expressions.negation,
}
for _name, _scalar in _OF_BOOLEANS.items():
    UFUNCS[getattr(np, _name)] = _on_booleans(_name, _scalar)
UFUNCS[np.divmod] = lambda un, a, b: (UFUNCS[np.floor_divide](un, a, b), UFUNCS[np.remainder](un, a, b))
UFUNCS[np.modf] = lambda un, a: (UFUNCS[np.subtract](un, a, UFUNCS[np.trunc](un, a)), UFUNCS[np.trunc](un, a))


_OF_SCIPY: dict[str, Callable] = {
    "erf": _by_name("erf"),
    "erfc": _by_name("erfc"),
    "expit": unroll._logistic,
    "xlogy": lambda g, a, b: g.select(g.symmetric("eq", a, ZERO), ZERO, g.mul(a, g.unary("log", b))),
}
for _name, _scalar in _OF_SCIPY.items():
    UFUNCS[_name] = _rule(_scalar, "f")
