"""From a jaxpr to scalar expressions: arrays become arrays of expressions, loops are unrolled.

Each primitive has a rule, which is given the arrays of expressions of its operands and returns those of its results.
Equations of constants without a rule are evaluated by JAX.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from optctl._reads import line_of
from optctl.tape.derivatives import jacobian
from optctl.tape.expressions import CAPTURED, INPUT, LOAD, ONE, ZERO, Expressions
from optctl.tape.walk import INLINED, LOOPS, MOVES, Walker, bind, call, factors, registrar

CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
CALLS = {*INLINED, *LOOPS, *CUSTOM}
RULES: dict[str, Callable] = MOVES | LOOPS
_TYPES = {np.dtype(name) for name in ("float64", "int64", "int32", "uint32", "bool")}

INDEX, WHOLE = 2.0**20, 2.0**29
"""Largest sizes that are taken for granted: of stage indices, and of other whole numbers that come from outside."""
_SATURATED = {"int32": (-(2.0**31), 2.0**31 - 1), "uint32": (0.0, 2.0**32 - 1), "int64": (-(2.0**63), 2.0**63)}
"""Where numbers end that are too large for a type, when they are made whole."""
_LARGEST = {"int32": 2.0**31, "uint32": 2.0**32, "int64": 2.0**53}


class Unsupported(Exception):  # noqa: N818
    """The function has no tape; the message says why, and where."""

    line = ""

    def __str__(self) -> str:
        return super().__str__() + self.line


def _growth(name: str, of: list[float], count: int, params: Any) -> float:
    """Return a bound on the size of a primitive's results from those of its operands, and the length of the first."""
    if name in ("add", "sub"):
        return of[0] + of[-1]
    if name in ("mul", "dot_general"):
        return of[0] * of[-1] * (1 if name == "mul" else count)
    if name in ("reduce_sum", "cumsum", "scatter-add", "scatter-sub"):
        return sum(of) * count
    if name in ("integer_pow", "reduce_prod", "cumprod", "scatter-mul"):
        return float("inf") if name == "scatter-mul" else of[0] ** params.get("y", count)
    if name == "rem":
        return min(of)
    if name == "clamp":
        return max(of[0], of[-1])
    return float(count) if name in ("iota", "argmax", "argmin") else max(of)


class Unroller(Walker):
    """Walks jaxprs, and holds what it has found: the expressions, and the arrays that are tracers."""

    def __init__(self, limit: int) -> None:
        self.g = Expressions()
        self.limit = limit
        self.captured: list[Any] = []
        self._addresses = 0
        self._known: dict[int, np.ndarray] = {}
        self.trusts = False  # whole numbers not to wrap around
        self.asked: Any = None  # by NumPy for its index, a moment ago
        self.inside = 0  # functions of NumPy's that are being traced
        self.sizes: dict[int, float] = {}  # of whole numbers: bounds, since a tape's do not wrap around

    def constant(self, value: Any) -> np.ndarray:
        """Return the expressions of an array that the function holds: numbers, or a tracer's."""
        if isinstance(value, jax.core.Tracer):
            if id(value) not in self._known:
                if value.dtype not in _TYPES:
                    raise Unsupported(f"an array of {value.dtype}")
                self.captured.append(value)
                first = CAPTURED + self._addresses
                self._addresses += value.size
                self._known[id(value)] = self.g.leaves(LOAD, first, value.size, False).reshape(value.shape)
            return self._known[id(value)]
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
            raise Unsupported("a random key")
        return self.numbers(np.asarray(value))

    def numbers(self, value: np.ndarray) -> np.ndarray:
        """Return the expressions of constants."""
        if value.dtype.kind not in "fiub":
            raise Unsupported(f"an array of {value.dtype}")
        if value.dtype.kind in "iu" and value.size and max(-int(value.min()), int(value.max())) > 2**53:
            raise Unsupported("whole numbers beyond 2^53")
        constant = self.g.constant
        return np.array([constant(float(v)) for v in value.ravel().tolist()], np.intp).reshape(value.shape)

    def equation(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        """Return the expressions of an equation's results.

        Raises:
            Unsupported: naming the primitive, and the user's line.
        """
        try:
            return self._expressed(eqn, args)
        except Unsupported as why:
            if not why.line:  # of the innermost equation that tells
                why.line = line_of(eqn)
            raise

    def _expressed(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        if len(self.g.nodes) > 8 * self.limit:
            raise Unsupported(f"more than {self.limit} instructions")
        name = eqn.primitive.name
        rule = RULES.get(name)
        avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
        if sum(v.aval.size for v in eqn.outvars) > 4 * self.limit:
            raise Unsupported(f"`{name}` of large arrays")
        narrow = [str(aval.dtype) for aval in avals if aval.dtype not in _TYPES]
        if name not in CALLS and (narrow or not rule) and not eqn.effects and self.is_constant(*args):
            return self.evaluate(eqn, args)
        if rule and (name in CALLS or not narrow):
            results = rule(self, eqn, *args)
            results = results if isinstance(results, list) else [results]
            if name not in CALLS and not self.trusts:
                self._bound(eqn, args, results)
            return results
        raise Unsupported(f"the primitive `{name}`" + (f" of {narrow[0]}" if narrow else ""))

    def scan(self, eqn: Any, body: Callable, carry: list[np.ndarray], rows: list[np.ndarray]) -> list[np.ndarray]:
        """Unroll a loop over rows."""
        steps = range(eqn.params["length"])[:: -1 if eqn.params["reverse"] else 1]
        stacked = [np.empty(v.aval.shape, np.intp) for v in eqn.outvars[len(carry) :]]
        for i in steps:
            carry, results = body(carry, [row[i] for row in rows])
            for column, result in zip(stacked, results, strict=True):
                column[i] = result
        return carry + stacked

    def loop(self, eqn: Any, going: Callable, body: Callable, carry: list[np.ndarray]) -> list[np.ndarray]:
        """Unroll a loop whose number of turns is known."""
        for _ in range(self.limit):
            goes = self.value(going(carry))
            if goes is None:
                raise Unsupported("the primitive `while` with a number of steps that depends on data")
            if goes == 0:
                return carry
            carry = body(carry)
        raise Unsupported("the primitive `while` with many steps")

    def branch(self, index: np.ndarray, cases: list[Callable]) -> list[np.ndarray]:
        """Take the branch that is known, or select among the results of all."""
        g, known = self.g, self.value(index)
        if known is not None:
            return cases[min(max(int(known), 0), len(cases) - 1)]()
        chosen, *others = [case() for case in cases]
        for k, other in enumerate(others, 1):
            here = g.binary("le", g.constant(float(k)), index.item())
            chosen = [self.map(g.select, np.intp(here), a, b) for a, b in zip(other, chosen, strict=True)]
        return chosen

    def _bound(self, eqn: Any, args: list[np.ndarray], results: list[np.ndarray]) -> None:
        """Bound the sizes of whole numbers; raise where they might leave their type."""
        name = eqn.primitive.name
        if name == "sort":  # each array keeps its own
            for arg, result in zip(args, results, strict=True):
                largest = max([self._size(i, WHOLE) for i in arg.flat], default=0.0)
                self.sizes.update((i, largest) for i in result.flat if i not in self.g.values)
            return
        kinds = [v.aval.dtype.kind for v in eqn.invars]
        for v, result in zip(eqn.outvars, results, strict=True):
            if v.aval.dtype.kind not in "iu":
                continue
            given = [(a, 1.0 if kind == "b" else WHOLE) for a, kind in zip(args, kinds, strict=True) if kind in "biu"]
            of = [max([self._size(i, most) for i in a.flat], default=0.0) for a, most in given] or [WHOLE]
            bound = _growth(name, of, args[0].size if args else result.size, eqn.params)
            if name in ("div", "rem"):
                least = min([self._size(i, 0.0) for i in args[1].flat], default=1.0)
                if not self.is_constant(args[1]) or least == 0:
                    raise Unsupported(f"the primitive `{name}` of whole numbers by what may be zero")
                bound = of[0] / least if name == "div" else bound
            signed = "i" in kinds or "f" in kinds
            if v.aval.dtype.kind == "u" and (name in ("sub", "neg", "not") or (signed and name != "select_n")):
                bound = float("inf")  # negative numbers would wrap around
            if bound > _LARGEST[str(v.aval.dtype)] and not self.is_constant(result):
                raise Unsupported(f"the primitive `{name}` of {v.aval.dtype} numbers, which may wrap around")
            self.sizes.update((i, bound) for i in result.flat if i not in self.g.values)

    def _size(self, node: int, most: float) -> float:
        value = self.g.values.get(node)
        return self.sizes.get(node, most) if value is None else abs(value)

    def evaluate(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        """Return the results of an equation between constants, as JAX has them."""
        values = self.g.values
        numbers = [
            np.array([values[i] for i in arg.flat]).reshape(arg.shape).astype(v.aval.dtype)
            for arg, v in zip(args, eqn.invars, strict=True)
        ]
        with jax.ensure_compile_time_eval():
            results = bind(eqn, list(map(jax.numpy.asarray, numbers)))
        return [self.constant(result) for result in results]

    def is_constant(self, *arrays: np.ndarray) -> bool:
        """Return whether all elements are constants."""
        return all(i in self.g.values for array in arrays for i in array.flat)

    def value(self, scalar: np.ndarray) -> float | None:
        """Return the number that a scalar is, None if it is not known."""
        return self.g.values.get(scalar.item())

    def map(self, function: Callable, *arrays: Any) -> np.ndarray:
        """Return the function of scalars, for each element."""
        if len(arrays) > 1 and any(array.shape != arrays[0].shape for array in arrays):
            arrays = tuple(np.broadcast_arrays(*arrays))
        results = list(map(function, *[array.ravel().tolist() for array in arrays]))
        return np.array(results, np.intp).reshape(arrays[0].shape)

    def fold(self, function: Callable, array: np.ndarray, axes: Sequence[int], first: int) -> np.ndarray:
        """Return function(... function(function(x0, x1), x2) ...) along axes; `first` where they have no elements."""
        return self.fold_rows(lambda row: functools.reduce(function, row) if row else first, array, axes)

    def fold_rows(self, function: Callable, array: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        """Return function([x0, x1, ...]) along axes."""
        kept = [axis for axis in range(array.ndim) if axis not in axes]
        shape = tuple(array.shape[axis] for axis in kept)
        rows = array.transpose((*kept, *axes)).reshape(int(np.prod(shape)), -1).tolist()
        return np.array([function(row) for row in rows], np.intp).reshape(shape)

    def read_block(self, array: np.ndarray, starts: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
        """Return the block of an array that begins at `starts`, which lie within."""
        values, g = self.g.values, self.g
        block, moving = array, []
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            if start in values:
                begin = int(values[start])
                block = block.take(range(begin, begin + size), axis)
            else:
                moving.append(axis)
        if not moving or block.size == 0:
            return block
        addresses = self._addresses_of(block)
        if addresses is not None:
            steps = [int(addresses.take(1, axis).flat[0] - addresses.flat[0]) for axis in moving]
            grid = np.indices(addresses.shape)
            at_start = addresses[tuple(slice(0, 1) if axis in moving else slice(None) for axis in range(block.ndim))]
            if (addresses == at_start + sum(s * grid[axis] for s, axis in zip(steps, moving, strict=True))).all():
                bases = addresses[tuple(slice(0, size) for size in sizes)].ravel().tolist()
                step, index = 1, ZERO
                if len(moving) == 1:
                    step, index = steps[0], starts[moving[0]]
                else:
                    for s, axis in zip(steps, moving, strict=True):
                        index = g.add(index, g.mul(g.constant(s), starts[axis]))
                return np.array([g.lookup(index, base, step) for base in bases], np.intp).reshape(sizes)
        for axis in moving:
            start, size = starts[axis], sizes[axis]
            chosen = block.take(range(size), axis)
            for begin in range(1, block.shape[axis] - size + 1):
                here = g.symmetric("eq", start, g.constant(float(begin)))
                chosen = self.map(g.select, np.intp(here), block.take(range(begin, begin + size), axis), chosen)
            block = chosen
        return block

    def _addresses_of(self, array: np.ndarray) -> np.ndarray | None:
        nodes, values = self.g.nodes, self.g.values
        if all(i in values for i in array.flat):
            return self.g.table(np.array([values[i] for i in array.flat]).reshape(array.shape))
        if all(nodes[i][0] == LOAD for i in array.flat):
            return np.array([nodes[i][1] for i in array.flat]).reshape(array.shape)
        return None

    def write_block(self, array: np.ndarray, starts: Sequence[int], block: np.ndarray, combine: Callable) -> None:
        """Combine a block into an array, in place; nothing happens if the block does not lie within."""
        g, values = self.g, self.g.values
        choices = []
        for start, size, length in zip(starts, block.shape, array.shape, strict=True):
            places = range(length - size + 1)
            if start not in values:
                choices.append([(begin, g.symmetric("eq", start, g.constant(float(begin)))) for begin in places])
            else:
                choices.append([(int(values[start]), ONE)] if int(values[start]) in places else [])
        for choice in itertools.product(*choices):
            here = functools.reduce(g.both, (condition for _, condition in choice), ONE)
            region = tuple(slice(begin, begin + n) for (begin, _), n in zip(choice, block.shape, strict=True))
            old = array[region]
            array[region] = self.map(g.select, np.intp(here), self.map(combine, old, block), old)


rule = registrar(RULES)


def _elementwise(name: str, function: Callable) -> None:
    RULES[name] = lambda un, eqn, *args: un.map(functools.partial(function, un.g), *args)


def _unary(name: str) -> Callable:
    return lambda g, a: g.unary(name, a)


for _name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"):
    _elementwise(_name, _unary(_name))
for _name in ("exp", "exp2", "expm1", "log", "log1p", "sqrt", "cbrt", "erf", "erfc", "abs", "sign", "floor", "ceil"):
    _elementwise(_name, _unary(_name))
_elementwise("is_finite", _unary("isfinite"))
_elementwise("add", Expressions.add)
_elementwise("add_any", Expressions.add)
_elementwise("sub", Expressions.sub)
_elementwise("mul", Expressions.mul)
_elementwise("neg", Expressions.neg)
_elementwise("max", Expressions.maximum)
_elementwise("min", Expressions.minimum)
_elementwise("square", lambda g, a: g.mul(a, a))
_elementwise("rsqrt", lambda g, a: g.reciprocal(g.unary("sqrt", a)))
_elementwise("atan2", lambda g, a, b: g.binary("atan2", a, b))
_elementwise("rem", lambda g, a, b: g.binary("rem", a, b))
_elementwise("eq", lambda g, a, b: g.symmetric("eq", a, b))
_elementwise("ne", lambda g, a, b: g.symmetric("ne", a, b))
_elementwise("lt", lambda g, a, b: g.binary("lt", a, b))
_elementwise("le", lambda g, a, b: g.binary("le", a, b))
_elementwise("gt", lambda g, a, b: g.binary("lt", b, a))
_elementwise("ge", lambda g, a, b: g.binary("le", b, a))


def _logistic(g: Expressions, a: int) -> int:
    r = g.reciprocal(g.add(ONE, g.unary("exp", g.neg(a))))
    return g.improve(r, (a,), lambda: (g.mul(r, g.sub(ONE, r)),))  # exp overflows, this does not


def _clamp(g: Expressions, low: int, a: int, high: int) -> int:
    def partials() -> tuple[int, int, int]:
        lt, both = functools.partial(g.binary, "lt"), g.both
        inside = both(lt(low, a), lt(a, high)), both(lt(a, low), lt(low, high)), lt(high, a)
        of_a, of_low, of_high = [g.select(condition, ONE, ZERO) for condition in inside]
        return of_low, of_a, of_high

    r = g.clamp(low, a, high)
    return r if r in g.values else g.given(r, (low, a, high), partials)  # at its edges other than max and min are


_elementwise("logistic", _logistic)
_elementwise("clamp", _clamp)


def _before(g: Expressions, a: int, b: int) -> int:
    """Return whether a comes before b in the order in which NaN is last."""
    is_number = g.both(g.symmetric("eq", a, a), g.symmetric("ne", b, b))
    return g.either(g.binary("lt", a, b), is_number)


_elementwise("lt_to", _before)
_elementwise("le_to", lambda g, a, b: g.negation(_before(g, b, a)))


def _is_integer(v: Any) -> bool:
    return v.aval.dtype.kind in "iu"


@rule("div")
def _div(un: Unroller, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    g = un.g
    if _is_integer(eqn.outvars[0]):
        return un.map(lambda x, y: g.unary("trunc", g.binary("div", x, y)), a, b)
    return un.map(g.div, a, b)


@rule("pow")
def _pow(un: Unroller, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    g = un.g

    def power(x: int, y: int) -> int:
        r, exponent = g.pow(x, y), g.values.get(y)
        if exponent is None:
            return r
        return g.improve(r, (x,), lambda: (g.mul(y, g.pow(x, g.constant(exponent - 1))),))

    return un.map(power, a, b)


@rule("integer_pow")
def _integer_pow(un: Unroller, eqn: Any, a: np.ndarray) -> np.ndarray:
    g, n = un.g, eqn.params["y"]
    return un.map(
        lambda x: g.improve(g.power(x, n), (x,), lambda: (g.mul(g.constant(float(n)), g.power(x, n - 1)),)), a
    )


@rule("round")
def _round(un: Unroller, eqn: Any, a: np.ndarray) -> np.ndarray:
    name = "round" if eqn.params["rounding_method"] == jax.lax.RoundingMethod.AWAY_FROM_ZERO else "rint"
    return un.map(lambda x: un.g.unary(name, x), a)


@rule("and", "or", "xor", "not")
def _logic(un: Unroller, eqn: Any, *args: np.ndarray) -> np.ndarray:
    name, g = eqn.primitive.name, un.g
    if eqn.outvars[0].aval.dtype != bool:
        if un.is_constant(*args):
            return un.evaluate(eqn, list(args))  # type: ignore[return-value]
        raise Unsupported(f"the primitive `{name}` of integers")
    functions: dict[str, Callable] = {
        "and": g.both,
        "or": g.either,
        "xor": functools.partial(g.symmetric, "ne"),
        "not": g.negation,
    }
    return un.map(functions[name], *args)


@rule("convert_element_type")
def _convert(un: Unroller, eqn: Any, a: np.ndarray) -> np.ndarray:
    old, new = eqn.invars[0].aval.dtype.kind, eqn.outvars[0].aval.dtype.kind
    if new == "b" and old != "b":
        return un.map(lambda x: un.g.symmetric("ne", x, ZERO), a)
    if new not in "iu" or old != "f":
        return a
    low, high = map(un.g.constant, _SATURATED[str(eqn.outvars[0].aval.dtype)])
    return un.map(lambda x: un.g.clamp(low, un.g.unary("trunc", x), high), a)


@rule("select_n")
def _select_n(un: Unroller, eqn: Any, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    g = un.g
    if eqn.invars[0].aval.dtype == bool:
        return un.map(lambda p, a, b: g.select(p, b, a), which, *cases)
    return functools.reduce(
        lambda chosen, k: un.map(
            lambda i, a, b: g.select(g.symmetric("eq", i, g.constant(float(k))), a, b), which, cases[k], chosen
        ),
        range(1, len(cases)),
        cases[0],
    )


@rule("copy", "copy_p", "device_put", "optimization_barrier", "name", "reduce_precision")
def _same(un: Unroller, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    if eqn.params.get("mantissa_bits", 52) < 52 or eqn.params.get("exponent_bits", 11) < 11:
        raise Unsupported("the primitive `reduce_precision`")
    return list(args)


@rule("stop_gradient")
def _stop_gradient(un: Unroller, eqn: Any, a: np.ndarray) -> np.ndarray:
    return a if un.is_constant(a) else un.map(lambda x: un.g.given(x, (), tuple), a)


# Elements in other places.


@rule("pad")
def _pad(un: Unroller, eqn: Any, a: np.ndarray, padding: np.ndarray) -> np.ndarray:
    for axis, (low, high, interior) in enumerate(eqn.params["padding_config"]):
        a = np.moveaxis(a, axis, 0)
        length = max(len(a) + interior * (len(a) - 1), 0)
        spread = np.full((length, *a.shape[1:]), padding)
        spread[:: interior + 1] = a
        ends = [np.full((max(n, 0), *a.shape[1:]), padding) for n in (low, high)]
        spread = np.concatenate([ends[0], spread[max(-low, 0) : length - max(-high, 0)], ends[1]])
        a = np.moveaxis(spread, 0, axis)
    return a


@rule("iota")
def _iota(un: Unroller, eqn: Any) -> np.ndarray:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    counts = un.numbers(np.arange(shape[axis]))
    return np.broadcast_to(counts.reshape([-1 if k == axis else 1 for k in range(len(shape))]), shape)


# Places that may depend on expressions.


def _starts(un: Unroller, indices: Sequence[int], shape: Sequence[int], sizes: Sequence[int]) -> list[int]:
    g = un.g
    return [
        g.clamp(ZERO, index, g.constant(float(length - size)))
        for index, length, size in zip(indices, shape, sizes, strict=True)
    ]


@rule("dynamic_slice")
def _dynamic_slice(un: Unroller, eqn: Any, a: np.ndarray, *indices: np.ndarray) -> np.ndarray:
    sizes = eqn.params["slice_sizes"]
    return un.read_block(a, _starts(un, [i.item() for i in indices], a.shape, sizes), sizes)


@rule("dynamic_update_slice")
def _dynamic_update_slice(un: Unroller, eqn: Any, a: np.ndarray, new: np.ndarray, *indices: np.ndarray) -> np.ndarray:
    a = a.copy()
    un.write_block(a, _starts(un, [i.item() for i in indices], a.shape, new.shape), new, lambda _, b: b)
    return a


@rule("gather")
def _gather(un: Unroller, eqn: Any, a: np.ndarray, indices: np.ndarray) -> np.ndarray:
    g, d, sizes = un.g, eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    fills = eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    if fills:
        kind, fill = eqn.outvars[0].aval.dtype.kind, eqn.params["fill_value"]
        if fill is None:
            fill = np.iinfo(eqn.outvars[0].aval.dtype).min if kind == "i" else {"f": np.nan, "b": 1.0}[kind]
        missing = g.constant(float(fill))
    gone = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    window = tuple(size for axis, size in enumerate(sizes) if axis not in gone)
    batch = indices.shape[:-1]
    out = np.empty((*batch, *window), np.intp)
    for at in np.ndindex(batch):
        wanted = [ZERO] * a.ndim
        for axis, index in zip(d.start_index_map, indices[at].tolist(), strict=True):
            wanted[axis] = index
        for axis, place in zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True):
            wanted[axis] = g.constant(float(at[place]))
        starts = _starts(un, wanted, a.shape, sizes)
        block = un.read_block(a, starts, sizes).reshape(window)
        if fills:
            inside = [g.symmetric("eq", x, y) for x, y in zip(wanted, starts, strict=True) if x != y]
            block = un.map(g.select, np.intp(functools.reduce(g.both, inside, ONE)), block, np.intp(missing))
        out[at] = block
    rest = [axis for axis in range(out.ndim) if axis not in d.offset_dims]
    return np.moveaxis(out, range(out.ndim), (*rest, *d.offset_dims))


@rule("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def _scatter(un: Unroller, eqn: Any, a: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    g, d = un.g, eqn.params["dimension_numbers"]
    combines = {"add": g.add, "sub": g.sub, "mul": g.mul, "min": g.minimum, "max": g.maximum}
    combine = combines.get(eqn.primitive.name[8:], lambda _, b: b)
    clips = eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP
    gone = (*d.inserted_window_dims, *d.operand_batching_dims)
    rest = [axis for axis in range(updates.ndim) if axis not in d.update_window_dims]
    updates = updates.transpose((*rest, *d.update_window_dims))
    a = a.copy()
    for at in np.ndindex(indices.shape[:-1]):
        starts = [ZERO] * a.ndim
        for axis, index in zip(d.scatter_dims_to_operand_dims, indices[at].tolist(), strict=True):
            starts[axis] = index
        for axis, place in zip(d.operand_batching_dims, d.scatter_indices_batching_dims, strict=True):
            starts[axis] = g.constant(float(at[place]))
        block = np.expand_dims(updates[at], gone)
        un.write_block(a, _starts(un, starts, a.shape, block.shape) if clips else starts, block, combine)
    return a


# Along axes.


@rule("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or")
def _reduce(un: Unroller, eqn: Any, a: np.ndarray) -> np.ndarray:
    g, infinite = un.g, un.g.constant(np.inf)
    function, first = {
        "sum": (g.add, ZERO),
        "prod": (g.mul, ONE),
        "max": (g.maximum, g.neg(infinite)),
        "min": (g.minimum, infinite),
        "and": (g.both, ONE),
        "or": (g.either, ZERO),
    }[eqn.primitive.name[7:]]
    if eqn.primitive.name in ("reduce_and", "reduce_or") and eqn.outvars[0].aval.dtype != bool:
        raise Unsupported(f"the primitive `{eqn.primitive.name}` of integers")
    if eqn.primitive.name in ("reduce_max", "reduce_min"):
        return un.fold_rows(lambda row: _extreme(g, function, row, first), a, eqn.params["axes"])
    return un.fold(function, a, eqn.params["axes"], first)


def _extreme(g: Expressions, function: Callable, row: list[int], first: int) -> int:
    """Return the greatest or the least; those that tie share its derivative."""
    r = functools.reduce(function, row) if row else first

    def partials() -> list[int]:
        ties = [g.select(g.symmetric("eq", x, r), ONE, ZERO) for x in row]
        share = g.reciprocal(functools.reduce(g.add, ties))
        return [g.mul(tie, share) for tie in ties]

    return g.given(r, row, partials) if len(set(row)) > 2 and r not in g.values else r


@rule("argmax", "argmin")
def _argmax(un: Unroller, eqn: Any, a: np.ndarray) -> np.ndarray:
    g, largest = un.g, eqn.primitive.name == "argmax"
    (axis,) = eqn.params["axes"]

    def better(x: int, best: int) -> int:
        beats = g.binary("lt", best, x) if largest else g.binary("lt", x, best)
        return g.either(beats, g.both(g.symmetric("ne", x, x), g.symmetric("eq", best, best)))

    rows = np.moveaxis(a, axis, 0)
    best, place = rows[0], np.full(rows.shape[1:], ZERO)
    for k in range(1, len(rows)):
        wins = un.map(better, rows[k], best)
        best = un.map(g.select, wins, rows[k], best)
        place = un.map(g.select, wins, np.intp(g.constant(float(k))), place)
    return place


@rule("cumsum", "cumprod", "cummax", "cummin")
def _cumulative(un: Unroller, eqn: Any, a: np.ndarray) -> np.ndarray:
    g = un.g
    function = {"sum": g.add, "prod": g.mul, "max": g.maximum, "min": g.minimum}[eqn.primitive.name[3:]]
    rows = np.moveaxis(a, eqn.params["axis"], 0)
    if eqn.params["reverse"]:
        rows = rows[::-1]
    sums = list(itertools.accumulate(rows, functools.partial(un.map, function)))
    result = np.stack(sums) if sums else rows
    return np.moveaxis(result[::-1] if eqn.params["reverse"] else result, 0, eqn.params["axis"])


@rule("dot_general")
def _dot_general(un: Unroller, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    rows, columns = factors(a, b, eqn.params["dimension_numbers"])
    shape, inner = eqn.outvars[0].aval.shape, rows.shape[-1]
    if int(np.prod(shape)) * inner > 4 * un.limit:
        raise Unsupported("`dot_general` of large arrays")
    add, mul = un.g.add, un.g.mul
    results = [
        functools.reduce(add, map(mul, row, column), ZERO)
        for some, others in zip(rows.tolist(), columns.tolist(), strict=True)
        for row in some
        for column in others
    ]
    return np.array(results, np.intp).reshape(shape)


@rule("cholesky")
def _cholesky(un: Unroller, eqn: Any, a: np.ndarray) -> np.ndarray:
    g = un.g
    out = np.full(a.shape, ZERO)
    for at in np.ndindex(a.shape[:-2]):
        A, L, good = a[at].tolist(), out[at], ONE
        for j in range(len(A)):
            for i in range(j, len(A)):
                rest = A[i][j]
                for k in range(j):
                    rest = g.sub(rest, g.mul(int(L[i, k]), int(L[j, k])))
                L[i, j] = g.unary("sqrt", rest) if i == j else g.div(rest, int(L[j, j]))
                good = g.both(good, g.binary("lt", ZERO, rest)) if i == j else good
        nan = g.constant(np.nan)
        for j in range(len(A)):
            for i in range(j, len(A)):
                L[i, j] = g.select(good, int(L[i, j]), nan)  # all of it, where the matrix is not positive definite
    return out


@rule("triangular_solve")
def _triangular_solve(un: Unroller, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    g, p = un.g, eqn.params
    out = np.empty_like(b)
    for at in np.ndindex(b.shape[:-2]):
        A, B, X = a[at], b[at], out[at]
        lower = p["lower"]
        if p["transpose_a"]:
            A, lower = A.T, not lower
        if not p["left_side"]:  # X A = B is A' X' = B'
            A, B, X, lower = A.T, B.T, X.T, not lower
        order = range(len(A)) if lower else range(len(A))[::-1]
        for column in range(B.shape[1]):
            done: list[int] = []
            for i in order:
                rest = int(B[i, column])
                for k in done:
                    rest = g.sub(rest, g.mul(int(A[i, k]), int(X[k, column])))
                X[i, column] = rest if p["unit_diagonal"] else g.div(rest, int(A[i, i]))
                done.append(i)
    return out


@rule("sort")
def _sort(un: Unroller, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    """Return the operands in the order of the first of them: neighbors change places where the later one is less."""
    g, keys = un.g, eqn.params["num_keys"]
    rows = [list(np.moveaxis(a, eqn.params["dimension"], 0)) for a in args]

    def less(*pairs: int) -> int:
        later, before = pairs[:keys], pairs[keys:]
        found = ZERO
        for b, a in reversed(list(zip(later, before, strict=True))):
            found = g.either(_before(g, b, a), g.both(g.negation(_before(g, a, b)), found))
        return found

    for end in range(len(rows[0]), 1, -1):
        for i in range(end - 1):
            swap = un.map(less, *[row[i + 1] for row in rows[:keys]], *[row[i] for row in rows[:keys]])
            for row in rows:
                first, second = row[i], row[i + 1]
                row[i], row[i + 1] = un.map(g.select, swap, second, first), un.map(g.select, swap, first, second)
    stacked = [np.stack(row) if row else a for row, a in zip(rows, args, strict=True)]
    return [np.moveaxis(a, 0, eqn.params["dimension"]) for a in stacked]


@rule("lu")
def _lu(un: Unroller, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
    """Eliminate with partial pivoting: rows change places by selection."""
    g, (m, n) = un.g, a.shape[-2:]
    steps = min(m, n)
    if a.size * steps > un.limit:
        raise Unsupported("the primitive `lu` of a large matrix")
    out = a.copy()
    pivots = np.full((*a.shape[:-2], steps), ZERO)
    order = np.empty((*a.shape[:-2], m), np.intp)
    order[...] = un.numbers(np.arange(m))

    def exchange(rows: np.ndarray, k: int, i: int, chosen: int) -> None:
        upper, lower = rows[k].copy(), rows[i].copy()
        rows[k] = un.map(g.select, np.intp(chosen), lower, upper)
        rows[i] = un.map(g.select, np.intp(chosen), upper, lower)

    for at in np.ndindex(a.shape[:-2]):
        A, places = out[at], order[at].reshape(m, 1)
        for k in range(steps):
            pivot, best = g.constant(float(k)), g.unary("abs", int(A[k, k]))
            for i in range(k + 1, m):
                size = g.unary("abs", int(A[i, k]))
                beats = g.binary("lt", best, size)
                best, pivot = g.select(beats, size, best), g.select(beats, g.constant(float(i)), pivot)
            pivots[(*at, k)] = pivot
            for i in range(k + 1, m):
                chosen = g.symmetric("eq", pivot, g.constant(float(i)))
                for rows in (A, places):
                    exchange(rows, k, i, chosen)
            for i in range(k + 1, m):
                factor = A[i, k] = g.div(int(A[i, k]), int(A[k, k]))
                for j in range(k + 1, n):
                    A[i, j] = g.sub(int(A[i, j]), g.mul(int(factor), int(A[k, j])))
        order[at] = places[:, 0]
    return [out, pivots, order]


@rule("lu_pivots_to_permutation")
def _permutation(un: Unroller, eqn: Any, pivots: np.ndarray) -> np.ndarray:
    g, size = un.g, eqn.params["permutation_size"]
    out = np.empty((*pivots.shape[:-1], size), np.intp)
    out[...] = un.numbers(np.arange(size))
    for at in np.ndindex(pivots.shape[:-1]):
        order = out[at]
        for k, pivot in enumerate(pivots[at].tolist()):
            for i in range(k + 1, size):
                chosen, (upper, lower) = g.symmetric("eq", pivot, g.constant(float(i))), (int(order[k]), int(order[i]))
                order[k], order[i] = g.select(chosen, lower, upper), g.select(chosen, upper, lower)
    return out


@rule("custom_linear_solve")
def _linear_solve(un: Unroller, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    """Return x of A x = b with the derivative of what it solves, whatever solves it: A dx = db - dA x."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    ends = np.cumsum([lengths.matvec, lengths.vecmat, lengths.solve, lengths.transpose_solve])
    matrix, solver, given = args[: ends[0]], args[ends[1] : ends[2]], list(args[ends[3] :])
    return _solved(un, jaxprs, matrix, solver, given)


def _solved(un: Unroller, jaxprs: Any, matrix: Sequence[Any], solver: Sequence[Any], b: list[Any]) -> list[Any]:
    g = un.g
    values = un.closed(jaxprs.solve, [*solver, *b])
    if un.is_constant(*matrix, *b):
        return values
    numbers = list(dict.fromkeys([i for i in _flat(matrix) if i not in g.values]))  # of A
    found: list[int] = []  # x, when it is there
    size = sum(v.size for v in values)

    def split(flat: Sequence[int]) -> list[np.ndarray]:
        ends = np.cumsum([v.size for v in values])[:-1]
        return [part.reshape(v.shape) for part, v in zip(np.split(np.array(flat, np.intp), ends), values, strict=True)]

    @functools.cache
    def products() -> list[list[int]]:
        """Return d (A x) / d numbers of A, where x does not move."""
        rows = _flat(un.closed(jaxprs.matvec, [*matrix, *split(found)]))
        return jacobian(g, rows, numbers, held=found)

    @functools.cache
    def inverse() -> list[list[int]]:
        columns = []
        for j in range(size):
            unit = [ONE if i == j else ZERO for i in range(size)]
            columns.append(_flat(_solved(un, jaxprs, matrix, solver, split(unit))))
        return [list(row) for row in zip(*columns, strict=True)]

    # The residuals r = b - A x, whose values nobody asks for, with x in dA x and nowhere else; then x = A^-1 r.
    residuals = [
        g.given(ZERO, [i, *numbers], functools.partial(lambda j: [ONE, *map(g.neg, products()[j])], j))
        for j, i in enumerate(_flat(b))
    ]
    found += [g.given(x, residuals, functools.partial(lambda i: inverse()[i], i)) for i, x in enumerate(_flat(values))]
    return split(found)


@rule("platform_index")
def _platform_index(un: Unroller, eqn: Any) -> np.ndarray:
    names = [tuple(group) if group else None for group in eqn.params["platforms"]]
    own = [k for k, group in enumerate(names) if group is None or "cpu" in group]
    return un.numbers(np.asarray(own[0]))


# Functions within the function.


@rule(*INLINED)
def _call(un: Unroller, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    before = un.trusts
    un.trusts = before or str(eqn.params.get("name")) == "searchsorted"  # its bisection takes unsigned differences
    results = call(un, eqn, *args)
    un.trusts = before
    return results


@rule(*CUSTOM)
def _with_own_rule(un: Unroller, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    """Return the results of a function that brings its derivatives with it; JAX traces those when they are needed."""
    g, results = un.g, call(un, eqn, *args)
    if un.is_constant(*args):
        return results
    operands = _flat([a for a, v in zip(args, eqn.invars, strict=True) if v.aval.dtype.kind == "f"])
    rows = functools.cache(lambda: _own_partials(un, eqn, args))
    places = itertools.count()

    def with_rule(x: int) -> int:
        k = next(places)
        return g.given(x, operands, lambda: rows()[k])

    smooth = [v.aval.dtype.kind == "f" for v in eqn.outvars]
    return [un.map(with_rule, result) if on else result for result, on in zip(results, smooth, strict=True)]


def _own_partials(un: Unroller, eqn: Any, args: Sequence[np.ndarray]) -> list[list[int]]:
    """Return the derivatives of the results by a function's own rule, which is linear in what it is given."""
    g = un.g
    inner = [k for k, v in enumerate(eqn.invars) if v.aval.dtype.kind == "f"]
    outer = [k for k, v in enumerate(eqn.outvars) if v.aval.dtype.kind == "f"]

    def of_floats(*values: Any) -> tuple[Callable, list[Any]]:
        def restricted(*floats: Any) -> list[Any]:
            given = list(values)
            for k, value in zip(inner, floats, strict=True):
                given[k] = value
            results = bind(eqn, given)
            return [results[k] for k in outer]

        return restricted, [values[k] for k in inner]

    def forward(values: Sequence[Any], moves: Sequence[Any]) -> Any:
        restricted, floats = of_floats(*values)
        return jax.jvp(restricted, floats, list(moves))[1]

    def backward(values: Sequence[Any], weights: Sequence[Any]) -> Any:
        restricted, floats = of_floats(*values)
        return jax.vjp(restricted, *floats)[1](list(weights))

    is_forward = "jvp" in eqn.primitive.name
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    seeds = [(eqn.invars[k] if is_forward else eqn.outvars[k]).aval for k in (inner if is_forward else outer)]
    closed = jax.make_jaxpr(forward if is_forward else backward)(
        shapes, [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in seeds]
    )
    leaves = [g.leaves(INPUT, 0, a.size, True).reshape(a.shape) for a in seeds]
    with np.errstate(all="ignore"):
        results = _flat(un.closed(closed, [*args, *leaves]))
        J = np.array(jacobian(g, results, _flat(leaves)), np.intp).reshape(len(results), -1)
    if g.reach(J.ravel().tolist(), _flat(leaves)):
        raise Unsupported("a derivative rule that is not linear")
    return (J if is_forward else J.T).tolist()


def _flat(arrays: Sequence[np.ndarray]) -> list[int]:
    return [i for array in arrays for i in array.ravel().tolist()]
