"""Arrays of expressions that look like NumPy's: what a function in plain NumPy is called with, once, to be traced.

An `Array` takes part in NumPy's protocols: operators and ufuncs (`__array_ufunc__`), functions (`__array_function__`).
What they do with expressions stands in the tables `UFUNCS` and `FUNCTIONS`, which other modules fill. Views are views,
as in NumPy: an Array's nodes are an array of whole numbers, and NumPy itself does to it what only moves elements.

Where Python or compiled code wants a number that is not known yet (`if`, `range`), the error says what to write.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from optctl._validate import TracedError
from optctl.tape.expressions import LOAD, ZERO
from optctl.tape.unroll import Unroller

UFUNCS: dict[np.ufunc | str, Callable] = {}
"""ufunc, or the name of one of SciPy's -> rule(unroller, *Arrays), which returns an Array, or several."""
REDUCTIONS: dict[tuple[np.ufunc, str], Callable] = {}
"""ufunc and "reduce" or "accumulate" -> rule(unroller, *arguments)."""
FUNCTIONS: dict[Callable, Callable] = {}
"""NumPy's function -> rule(unroller, *arguments), which returns what the function does."""
METHODS: dict[str, Callable] = {}
"""Method of ndarray -> NumPy's function that does the same."""


def function(*functions: Callable) -> Callable:
    """Return a decorator that makes a function the rule of NumPy's functions."""

    def register(rule: Callable) -> Callable:
        FUNCTIONS.update(dict.fromkeys(functions, rule))
        return rule

    return register


FLOAT, WHOLE, BOOL = np.dtype(float), np.dtype(int), np.dtype(bool)

REFUSED = {
    "bool": "decides by the value of an array (`if`, `while`, `and`, `not`, `max(a, b)`); write"
    " np.where(condition, a, b) or jnp.where, np.maximum or jnp.maximum, np.logical_and or jnp.logical_and",
    "float": "asks an array for its number, as math.gcd(x) or complex(x) do; keep the array, write functions of NumPy"
    " or jnp., np.where or jnp.where for `if`",
    "index": "counts or indexes a Python object by an array, such as range(t) or table[t]; write np.asarray(table)[t]"
    " or jnp.asarray(table)[t], and jax.lax.fori_loop for a loop whose length is not known",
    "array": "hands an array to compiled code, which needs numbers; write the formula with functions of NumPy, or with"
    " jnp. and jax.",
    "mask": "picks entries by a mask, x[mask]; write np.where(mask, x, 0) or jnp.where(mask, x, 0)",
}
"""What cannot be done before numbers are known, and what to write instead."""


class Refused(TracedError):  # noqa: N818
    """What a function in plain NumPy did that cannot be traced; the message is without the function's name."""


class Mixed(TypeError):  # noqa: N818
    """A function of both worlds: it holds an array that JAX is tracing."""


class Array(NDArrayOperatorsMixin):
    """An array of expressions.

    Attributes:
        un: what holds the expressions.
        nodes: their numbers, of the shape of the array.
        dtype: float, int or bool.
    """

    __array_priority__ = 1e6

    def __init__(self, un: Unroller, nodes: Any, dtype: np.dtype = FLOAT) -> None:
        self.un, self.nodes, self.dtype = un, np.asarray(nodes, np.intp), dtype

    shape = property(lambda self: self.nodes.shape)
    ndim = property(lambda self: self.nodes.ndim)
    size = property(lambda self: self.nodes.size)
    T = property(lambda self: Array(self.un, self.nodes.T, self.dtype))
    mT = property(lambda self: Array(self.un, np.swapaxes(self.nodes, -1, -2), self.dtype))
    real = property(lambda self: self)
    flat = property(lambda self: iter(self.ravel()))

    def __repr__(self) -> str:
        return f"Array(shape={self.shape}, dtype={self.dtype})"

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return len(self.nodes)

    def __iter__(self) -> Iterator["Array"]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (Array(self.un, row, self.dtype) for row in self.nodes)

    def __getattr__(self, name: str) -> Any:
        function = METHODS.get(name)
        if function is None:
            raise AttributeError(f"an array that is being traced has no attribute {name!r}")
        return lambda *args, **kwargs: call(self.un, function, (self, *args), kwargs)

    # NumPy's protocols.

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        where = kwargs.pop("where", True)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("dtype", "casting") or method != "__call__"}
        rule = UFUNCS.get(ufunc) or UFUNCS.get(ufunc.__name__)
        if method == "__call__" and rule and not kwargs:
            result = rule(self.un, *[as_array(self.un, value) for value in inputs])
        elif (ufunc, method) in REDUCTIONS:
            result = REDUCTIONS[ufunc, method](self.un, *inputs, **kwargs)
        elif method == "outer" and rule and not kwargs:
            a, b = (as_array(self.un, value) for value in inputs)
            result = rule(self.un, a[(..., *[None] * b.ndim)], b)
        else:
            suffix = "" if method == "__call__" else f".{method}"
            numbers = [known(value) for value in inputs]
            if any(number is None for number in numbers):
                raise Refused(f"uses np.{ufunc.__name__}{suffix}, which cannot be traced yet")
            return as_array(self.un, getattr(ufunc, method)(*numbers, **kwargs))
        if where is not True:
            base = out[0] if out else result
            result = FUNCTIONS[np.where](self.un, where, result, base)
        if out is None:
            return result
        if not isinstance(out[0], Array):
            raise Refused(REFUSED["array"])
        out[0][...] = result
        return out[0]

    def __array_function__(self, function: Callable, types: Any, args: tuple, kwargs: dict) -> Any:
        return call(self.un, function, args, kwargs)

    # Numbers, where they are known.

    def _number(self, why: str) -> Any:
        number = known(self)
        if number is None:
            if why == "array" and self.un.asked is self:
                why = "index"  # NumPy asks for an index first, then for an array
            self.un.asked = self if why == "index" else None
            raise Refused(REFUSED[why])
        return number

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self._number("array"), dtype)

    def __bool__(self) -> bool:
        return bool(self._number("bool"))

    def __float__(self) -> float:
        return float(self._number("float"))

    def __int__(self) -> int:
        return int(self._number("float"))

    def __index__(self) -> int:
        if self.dtype != WHOLE or self.ndim:
            raise TypeError("only integer scalar arrays can be converted to a scalar index")
        return int(self._number("index"))

    def __round__(self, digits: int | None = None) -> Any:
        return np.round(self, digits or 0)  # type: ignore[call-overload]

    def __contains__(self, value: Any) -> bool:
        return bool(np.any(self == value))

    def item(self, *where: Any) -> "Array":
        """Return the number, which stays an expression."""
        return self.ravel()[where[0] if where else 0]

    def tolist(self) -> Any:
        """Return nested lists of expressions."""
        return [row.tolist() for row in self] if self.ndim else self

    def copy(self, order: str = "C") -> "Array":
        """Return a copy."""
        return Array(self.un, self.nodes.copy(), self.dtype)

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> "Array":
        return self.copy()

    def astype(self, dtype: Any, **_: Any) -> "Array":
        """Return the same numbers as another type: float, int or bool; a copy."""
        return cast(self.un, self, dtype).copy()

    def flatten(self, order: Any = "C") -> "Array":
        """Return a copy with one axis."""
        return Array(self.un, self.nodes.flatten(order), self.dtype)

    def reshape(self, *shape: Any, order: Any = "C") -> "Array":
        """Return the same elements in another shape."""
        return Array(self.un, self.nodes.reshape(*shape, order=order), self.dtype)

    def transpose(self, *axes: Any) -> "Array":
        """Return the elements with other axes."""
        return Array(self.un, self.nodes.transpose(*axes), self.dtype)

    def fill(self, value: Any) -> None:
        """Set all elements."""
        self[...] = value

    def sort(self, axis: int = -1, **options: Any) -> None:
        """Put the elements in order, in place."""
        self[...] = np.sort(self, axis, **options)  # type: ignore[call-overload]

    # Elements.

    def __getitem__(self, key: Any) -> "Array":
        key = _key(self, key)
        moving = [k for k, part in enumerate(key) if isinstance(part, Array)]
        if not moving:
            return Array(self.un, self.nodes[key], self.dtype)
        if len(moving) == 1 and key[moving[0]].ndim == 1 and moving[0] == 0:
            return stack(self.un, [self[(i, *key[1:])] for i in key[0]])
        self._check_moving(key, moving)
        block = self.nodes[tuple(slice(None) if k in moving else part for k, part in enumerate(key))]
        axes = [sum(not isinstance(part, int | np.integer) for part in key[:k]) for k in moving]
        starts = [ZERO] * block.ndim
        sizes = list(block.shape)
        for axis, k in zip(axes, moving, strict=True):
            starts[axis], sizes[axis] = within(self.un, key[k], block.shape[axis]), 1
        nodes = self.un.read_block(block, starts, sizes)
        return Array(self.un, nodes.squeeze(tuple(axes)), self.dtype)

    def __setitem__(self, key: Any, value: Any) -> None:
        un = self.un
        value = cast(un, as_array(un, value), self.dtype)
        if isinstance(key, Array) and key.dtype == BOOL and known(key) is None:
            if value.ndim:
                raise Refused(REFUSED["mask"])
            if key.shape != self.shape[: key.ndim]:
                raise IndexError(f"boolean index of shape {key.shape} did not match an array of shape {self.shape}")
            rows = key.nodes.reshape(*key.shape, *[1] * (self.ndim - key.ndim))  # it picks along the first axes
            self.nodes[...] = un.map(un.g.select, *np.broadcast_arrays(rows, value.nodes, self.nodes))
            return
        key = _key(self, key)
        moving = [k for k, part in enumerate(key) if isinstance(part, Array)]
        if not moving:
            self.nodes[key] = value.nodes
            return
        self._check_moving(key, moving)
        for at in np.ndindex(*[self.shape[k] for k in moving]):
            here = un.g.constant(1.0)
            for k, place in zip(moving, at, strict=True):
                index = within(un, key[k], self.shape[k])
                here = un.g.both(here, un.g.symmetric("eq", index, un.g.constant(float(place))))
            place_of = dict(zip(moving, at, strict=True))
            region = tuple(place_of.get(k, part) for k, part in enumerate(key))
            old = self.nodes[region]
            new = np.broadcast_to(value.nodes, np.shape(old))
            self.nodes[region] = un.map(un.g.select, np.full(np.shape(old), here), new, np.asarray(old))

    def _check_moving(self, key: tuple, moving: list[int]) -> None:
        odd = any(isinstance(part, np.ndarray) for part in key) or any(key[k].ndim for k in moving)
        if odd or any(part is None for part in key[: moving[-1]]):
            raise Refused("indexes by several arrays at once, one of which is not known yet; write one index at a time")


def _in_place(name: str) -> Callable:
    whole, plain = getattr(NDArrayOperatorsMixin, f"__i{name}__"), f"__{name}__"

    def operator(self: Array, other: Any) -> Any:
        """Change the elements in place; what has no axis is a number, as in NumPy, and others keep the old one."""
        return whole(self, other) if self.ndim else getattr(self, plain)(other)

    return operator


for _name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(Array, f"__i{_name}__", _in_place(_name))


def _key(array: Array, key: Any) -> tuple:
    """Return a key as a tuple without `...`; indices that are not known stay Arrays, the others are NumPy's."""
    parts: list[Any] = []
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, Array):
            number = known(part)
            if number is None and part.dtype == BOOL:
                raise Refused(REFUSED["mask"])
            if number is None and part.dtype != WHOLE:
                raise IndexError("only integers, slices and integer arrays are valid indices")
            part = part if number is None else int(number) if number.ndim == 0 and part.dtype == WHOLE else number
        elif isinstance(part, list):
            whole = as_array(array.un, part)
            part = known(whole) if known(whole) is not None else whole
        parts.append(part)
    dots = [k for k, part in enumerate(parts) if part is Ellipsis]
    if dots and any(isinstance(part, Array) for part in parts):
        taken = sum(part is not None and part is not Ellipsis for part in parts)
        parts[dots[0] : dots[0] + 1] = [slice(None)] * (array.ndim - taken)
    if len([part for part in parts if part is not None and part is not Ellipsis]) > array.ndim and not any(
        isinstance(part, np.ndarray) and part.dtype == bool for part in parts
    ):
        raise IndexError(
            f"too many indices for array: array is {array.ndim}-dimensional, but {len(parts)} were indexed"
        )
    return tuple(parts)


def within(un: Unroller, index: Array, size: int) -> int:
    """Return an index, negative ones counted from the end; beyond the ends it is the first or last."""
    g, i = un.g, index.nodes.item()
    from_end = g.select(g.binary("lt", i, ZERO), g.add(i, g.constant(float(size))), i)
    if g.nodes[i][0] in (LOAD, -2):  # a stage's index, or one that is given: never negative
        from_end = i
    return g.clamp(ZERO, from_end, g.constant(float(size - 1)))


def known(value: Any) -> Any:
    """Return the numbers of an Array, None if they are not known; whatever else there is as it is."""
    if not isinstance(value, Array):
        return value
    values = value.un.g.values
    flat = value.nodes.ravel().tolist()
    if any([i not in values for i in flat]):
        return None
    return np.array([values[i] for i in flat]).reshape(value.shape).astype(value.dtype)


def as_array(un: Unroller, value: Any, dtype: Any = None) -> Array:
    """Return an Array of numbers, Arrays, or nested lists of both."""
    if isinstance(value, Array):
        made = value
    elif isinstance(value, jax.core.Tracer):
        raise Mixed("an array that JAX is tracing, among those of NumPy")
    elif isinstance(value, list | tuple):
        made = stack(un, [as_array(un, part) for part in value])
    else:
        numbers = np.asarray(value)
        if numbers.dtype == object:
            if any(part is None or isinstance(part, str) for part in numbers.flat):
                raise TypeError("an array holds what is no number")
            parts = [as_array(un, part) for part in numbers.flat]
            nodes = np.array([part.nodes.item() for part in parts], np.intp).reshape(numbers.shape)
            made = Array(un, nodes, np.result_type(*[part.dtype for part in parts]) if parts else FLOAT)
        elif numbers.dtype.kind not in "fiub":
            raise TypeError(f"an array of {numbers.dtype}; expected real numbers")
        else:
            made = Array(un, un.numbers(numbers), {"f": FLOAT, "b": BOOL}.get(numbers.dtype.kind, WHOLE))
    return made if dtype is None else cast(un, made, dtype)


def stack(un: Unroller, parts: list[Array]) -> Array:
    """Return Arrays of one shape along a new first axis."""
    if not parts:
        return Array(un, np.zeros(0, np.intp))
    if any(part.shape != parts[0].shape for part in parts):
        shapes = ", ".join(str(part.shape) for part in parts)
        raise ValueError(f"setting an array element with a sequence: the parts have shapes {shapes}")
    return Array(un, np.stack([part.nodes for part in parts]), np.result_type(*[part.dtype for part in parts]))


def cast(un: Unroller, array: Array, dtype: Any) -> Array:
    """Return an Array as another type, as `astype` does."""
    kind = np.dtype(dtype).kind
    if kind not in "fiub":
        raise Refused(f"asks for an array of {np.dtype(dtype)}; expected float, int or bool")
    to = {"f": FLOAT, "b": BOOL}.get(kind, WHOLE)
    nodes = array.nodes
    if to == WHOLE and array.dtype == FLOAT:
        nodes = un.map(lambda i: un.g.unary("trunc", i), nodes)
    if to == BOOL and array.dtype != BOOL:
        nodes = un.map(lambda i: un.g.symmetric("ne", i, ZERO), nodes)
    return Array(un, nodes, to)


def call(un: Unroller, function: Callable, args: tuple, kwargs: dict) -> Any:
    """Return what a function of NumPy's does with Arrays among its arguments."""
    rule = FUNCTIONS.get(function)
    if rule is None and isinstance(function, np.ufunc):
        first = next(value for value in args if isinstance(value, Array))
        return first.__array_ufunc__(function, "__call__", *args, **kwargs)
    if rule is None:
        rule = FUNCTIONS[call]  # for those that have none
        return rule(un, function, *args, **kwargs)
    return rule(un, *args, **kwargs)
