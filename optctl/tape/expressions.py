"""Scalar expressions: built once each, folded and simplified as they are built.

An expression is a number: the index of its node (operation, a, b, c), whose operands are expressions built before it.
Equal nodes are the same expression, so common subexpressions are found by construction. An expression *varies* if it
depends on an input that changes from call to call; the others are coefficients, which are worked out once.

The rules are those of the real numbers: x * 0 = 0, x - x = 0 and 0 / x = 0 also where x is infinite or NaN, zero has
no sign, and products of coefficients are collected. Thus the zeros in a derivative cost nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

OPERATIONS = (
    *("load", "lookup", "add", "sub", "mul", "div", "muladd", "negmuladd", "mulsub"),
    *("add_m", "sub_m", "rsub_m", "mul_m", "div_m", "muladd_m", "negmuladd_m", "mulsub_m", "muladd_c", "negmuladd_c"),
    *("neg", "abs", "sign", "floor", "ceil", "round", "rint", "trunc", "sqrt", "isfinite"),
    *("min", "max", "select", "eq", "ne", "lt", "le", "sin", "cos", "exp", "log", "pow", "tan", "asin", "acos", "atan"),
    *("atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "exp2", "expm1", "log1p", "cbrt", "erf", "erfc"),
    "rem",
)
CODE = {name: code for code, name in enumerate(OPERATIONS)}
LOAD, LOOKUP, ADD, SUB, MUL, DIV = (CODE[name] for name in ("load", "lookup", "add", "sub", "mul", "div"))
NEG, SELECT, EQ, NE = (CODE[name] for name in ("neg", "select", "eq", "ne"))
CONSTANT, INPUT, GIVEN = -1, -2, -3  # nodes that are not instructions

# Where numbers lie in memory: addresses that are moved to their places when all are known.
TABLES, CAPTURED = 1 << 40, 1 << 41

ZERO, ONE, MINUS_ONE = 0, 1, 2


def _round(x: Any) -> Any:
    return np.copysign(np.floor(np.abs(x) + 0.5 * (np.abs(x) < 2.0**52)), x)


def _integer(x: Any) -> Any:
    return np.where(np.isnan(x), 0.0, np.trunc(x))


_erf, _erfc = np.vectorize(math.erf, otypes=[float]), np.vectorize(math.erfc, otypes=[float])

# What each operation does, for folding (and for reading).
EVALUATE: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": _round,
    "rint": np.rint,
    "trunc": _integer,
    "sqrt": np.sqrt,
    "isfinite": np.isfinite,
    "min": np.minimum,
    "max": np.maximum,
    "select": lambda p, a, b: np.where(p != 0, a, b),
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "sin": np.sin,
    "cos": np.cos,
    "exp": np.exp,
    "log": np.log,
    "pow": np.power,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "cbrt": np.cbrt,
    "erf": _erf,
    "erfc": _erfc,
    "rem": np.fmod,
}


class Expressions:
    """All expressions of one function."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, int, int, int]] = []
        self.varies: list[bool] = []
        self.values: dict[int, float] = {}  # of the constants
        self.tables: list[float] = []
        self.partials: dict[int, Sequence[tuple[int, int]]] = {}  # of nodes: operands, and the derivatives in them
        self.rules: dict[int, tuple[Sequence[int], Callable]] = {}  # operands, and what gives `partials` when asked for
        self._index: dict[tuple[int, int, int, int], int] = {}
        self._constants: dict[Any, int] = {}
        self._places: dict[bytes, int] = {}
        for value in (0.0, 1.0, -1.0):
            self.constant(value)

    def node(self, operation: int, a: int, b: int = 0, c: int = 0) -> int:
        """Return the expression `operation(a, b, c)` as it stands."""
        key = (operation, a, b, c)
        found = self._index.get(key)
        if found is None:
            found = self._index[key] = len(self.nodes)
            self.nodes.append(key)
            varies = self.varies
            varies.append(varies[a] or varies[b] or varies[c])
        return found

    def find(self, operation: int, a: int, b: int = 0, c: int = 0) -> int | None:
        """Return the expression `operation(a, b, c)` if it was made."""
        return self._index.get((operation, a, b, c))

    def leaves(self, operation: int, first: int, number: int, varies: bool) -> np.ndarray:
        """Return `number` new expressions: the inputs, or the numbers in memory, from `first`."""
        start = len(self.nodes)
        self.nodes.extend([(operation, a, 0, 0) for a in range(first, first + number)])
        self.varies.extend([varies] * number)
        return np.arange(start, start + number)

    def constant(self, value: float) -> int:
        """Return a constant."""
        key = value if value == value else "nan"
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = len(self.nodes)
            self.nodes.append((CONSTANT, 0, 0, 0))
            self.varies.append(False)
            self.values[found] = value + 0.0
        return found

    def lookup(self, index: int, base: int, step: int) -> int:
        """Return the number in memory at `base + step * index`."""
        key = (LOOKUP, index, base, step)
        found = self._index.get(key)
        if found is None:
            found = self._index[key] = len(self.nodes)
            self.nodes.append(key)
            self.varies.append(self.varies[index])
        return found

    def given(self, value: int, operands: Sequence[int], rule: Callable) -> int:
        """Return an expression of that value whose derivatives are those that `rule()` returns: one for each operand.

        It is another one than the value's own, which has its own derivatives.
        """
        node = len(self.nodes)
        self.nodes.append((GIVEN, value, 0, 0))
        self.varies.append(self.varies[value])
        self.rules[node] = operands, rule
        return node

    def improve(self, node: int, operands: Sequence[int], rule: Callable) -> int:
        """Return the expression; its derivatives are `rule()` from now on: a better form of the same numbers."""
        if self.nodes[node][0] >= 0 and all([i < node for i in operands]):
            self.rules.setdefault(node, (operands, rule))
        return node

    def reach(self, nodes: Sequence[int], leaves: Sequence[int]) -> bool:
        """Return whether the values of nodes depend on leaves."""
        stack, seen, sought = list(nodes), set(nodes), set(leaves)
        while stack:
            i = stack.pop()
            if i in sought:
                return True
            operation, *operands = self.nodes[i]
            if operation in (LOAD, CONSTANT, INPUT):
                continue
            for k in operands[: 1 if operation in (LOOKUP, GIVEN) else 3]:
                if k not in seen:
                    seen.add(k)
                    stack.append(k)
        return False

    def table(self, values: np.ndarray) -> np.ndarray:
        """Return the addresses of constants that are put into memory side by side."""
        flat = np.ascontiguousarray(values, np.float64)
        place = self._places.setdefault(flat.tobytes(), len(self.tables))
        if place == len(self.tables):
            self.tables.extend(flat.ravel().tolist())
        return TABLES + place + np.arange(flat.size).reshape(values.shape)

    def add(self, a: int, b: int) -> int:
        """Return a + b."""
        if a == ZERO:
            return b
        if b == ZERO:
            return a
        values = self.values
        if b in values:
            if a in values:
                return self.constant(values[a] + values[b])
            a, b = b, a
        elif a > b and a not in values:
            a, b = b, a
        op, inner, _, _ = self.nodes[b]
        if op == NEG:
            return self.sub(a, inner)
        op, inner, _, _ = self.nodes[a]
        if op == NEG:
            return self.sub(b, inner)
        if op == SELECT and self.nodes[b][0] == SELECT and self.nodes[b][1] == inner:
            (_, _, x, y), (_, _, v, w) = self.nodes[a], self.nodes[b]
            if (x == ZERO or v == ZERO) and (y == ZERO or w == ZERO):
                return self.select(inner, self.add(x, v), self.add(y, w))
        return self.mul(self.constant(2.0), a) if a == b else self.node(ADD, a, b)

    def sub(self, a: int, b: int) -> int:
        """Return a - b."""
        if b == ZERO:
            return a
        if a == b:
            return ZERO
        if a == ZERO:
            return self.neg(b)
        values = self.values
        if b in values:
            if a in values:
                return self.constant(values[a] - values[b])
            return self.add(self.constant(-values[b]), a)
        op, inner, _, _ = self.nodes[b]
        if op == NEG:
            return self.add(a, inner)
        op, inner, _, _ = self.nodes[a]
        if op == NEG:
            return self.neg(self.add(inner, b))
        return self.node(SUB, a, b)

    def neg(self, a: int) -> int:
        """Return -a."""
        if a in self.values:
            return self.constant(-self.values[a])
        op, x, y, _ = self.nodes[a]
        if op == NEG:
            return x
        if op == SUB:
            return self.node(SUB, y, x)
        if op == MUL and x in self.values:
            return self.mul(self.constant(-self.values[x]), y)
        return self.node(NEG, a)

    def mul(self, a: int, b: int) -> int:
        """Return a * b, a coefficient first."""
        if a == ZERO or b == ZERO:
            return ZERO
        if a == ONE:
            return b
        if b == ONE:
            return a
        values, varies = self.values, self.varies
        if b in values:
            if a in values:
                return self.constant(values[a] * values[b])
            a, b = b, a
        elif a not in values and (varies[a] > varies[b] if varies[a] != varies[b] else a > b):
            a, b = b, a
        if a == MINUS_ONE:
            return self.neg(b)
        op, x, y, _ = self.nodes[b]
        if op == NEG:
            return self.neg(self.mul(a, x))
        if op == MUL and (
            x in values if a in values and not varies[b] else varies[y] and not varies[x] and not varies[a]
        ):
            return self.mul(self.mul(a, x), y)
        if self.nodes[a][0] == NEG:
            return self.neg(self.mul(self.nodes[a][1], b))
        for chosen, factor in ((b, a), (a, b)):
            op, condition, x, y = self.nodes[chosen]
            if op == SELECT and x <= MINUS_ONE and y <= MINUS_ONE:  # 0, 1 and -1
                return self.select(condition, self.mul(factor, x), self.mul(factor, y))
        return self.node(MUL, a, b)

    def div(self, a: int, b: int) -> int:
        """Return a / b; where it varies, a times the reciprocal of b, which other quotients may share."""
        if b == ONE or a == ZERO:
            return a
        values = self.values
        if a in values and b in values:
            return self.constant(float(np.divide(values[a], values[b])))
        if self.varies[a] or self.varies[b]:
            return self.mul(a, self.reciprocal(b))
        return self.node(DIV, a, b)

    def reciprocal(self, a: int) -> int:
        """Return 1 / a."""
        if a in self.values:
            return self.constant(float(np.divide(1.0, self.values[a])))
        op, x, y, _ = self.nodes[a]
        if op == NEG:
            return self.neg(self.reciprocal(x))
        if op == DIV and x == ONE:
            return y
        if op == MUL and self.varies[y] and not self.varies[x]:
            return self.mul(self.reciprocal(x), self.reciprocal(y))
        return self.node(DIV, ONE, a)

    def power(self, a: int, n: int) -> int:
        """Return a to the power of the whole number n."""
        if n < 0:
            a, n = self.reciprocal(a), -n
        result = ONE
        while n:
            if n & 1:
                result = self.mul(result, a)
            n >>= 1
            if n:
                a = self.mul(a, a)
        return result

    def pow(self, a: int, b: int) -> int:
        """Return a to the power of b; by products and square roots where b is a small multiple of 1/2."""
        exponent = self.values.get(b)
        if exponent is not None and a not in self.values and abs(exponent) <= 8:
            whole = math.floor(exponent)
            if exponent == whole:
                return self.power(a, whole)
            if exponent == whole + 0.5 and exponent > 0:
                return self.mul(self.power(a, whole), self.unary("sqrt", a))
            if exponent == whole + 0.5:
                return self.mul(self.power(a, whole + 1), self.reciprocal(self.unary("sqrt", a)))
        return self.binary("pow", a, b)

    def select(self, condition: int, a: int, b: int) -> int:
        """Return a where the condition is not zero, else b."""
        if a == b:
            return a
        if condition in self.values:
            return b if self.values[condition] == 0 else a
        op, x, y, _ = self.nodes[condition]
        if op == EQ and x == ZERO:
            return self.select(y, b, a)
        return self.node(SELECT, condition, a, b)

    def unary(self, name: str, a: int) -> int:
        """Return name(a)."""
        if a in self.values:
            return self.constant(float(EVALUATE[name](self.values[a])))
        return self.node(CODE[name], a)

    def binary(self, name: str, a: int, b: int) -> int:
        """Return name(a, b)."""
        if a in self.values and b in self.values:
            return self.constant(float(EVALUATE[name](self.values[a], self.values[b])))
        return self.node(CODE[name], a, b)

    def symmetric(self, name: str, a: int, b: int) -> int:
        """Return name(a, b) = name(b, a)."""
        return self.binary(name, b, a) if a > b else self.binary(name, a, b)

    def minimum(self, a: int, b: int) -> int:
        """Return the lesser of the two, NaN if one is NaN."""
        return a if a == b else self.symmetric("min", a, b)

    def maximum(self, a: int, b: int) -> int:
        """Return the greater of the two, NaN if one is NaN."""
        return a if a == b else self.symmetric("max", a, b)

    def negation(self, a: int) -> int:
        """Return not a."""
        return self.symmetric("eq", ZERO, a)

    def both(self, a: int, b: int) -> int:
        """Return a and b."""
        return a if a == b else self.mul(a, b)

    def either(self, a: int, b: int) -> int:
        """Return a or b."""
        if a in (ZERO, ONE):
            a, b = b, a
        return b if b == ONE else a if b == ZERO else self.maximum(a, b)

    def clamp(self, low: int, a: int, high: int) -> int:
        """Return a, but `low` at least and `high` at most."""
        return low if low == high else self.minimum(self.maximum(a, low), high)
