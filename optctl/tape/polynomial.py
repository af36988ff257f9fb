"""The degree of a function in some of its arguments, read from its jaxpr: structure, whatever the numbers are.

Every element of every array gets a number: 0, it does not depend on the variables; 1 or 2, it is a polynomial in them
of that degree at most, whose coefficients may depend on all else (time, parameters, captured data); MORE, it may be
anything. Sums take the greater of two degrees, products add them, elements keep theirs where they are moved, and a
primitive without a rule turns what depends on the variables into MORE. So a degree is never claimed that is too low; it
may be too high, as for x - x, or |x|^2 by a norm that is squared (whose derivative at zero is not a quadratic's).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

MORE = 3

RULES: dict[str, Callable] = {}


def degree(function: Callable, variables: Sequence[Any], others: Sequence[Any]) -> tuple[int, str]:
    """Return the greatest degree of `function(*variables, *others)` in the variables, and the primitive behind MORE.

    Args:
        function: written in JAX; its results are a tree of arrays.
        variables: arrays, or `ShapeDtypeStruct`s.
        others: trees of arrays that are coefficients.

    Example:
        >>> import jax.numpy as jnp
        >>> degree(lambda x, t: t * x @ x + jnp.sin(t), [jnp.ones(2)], [1.0])
        (2, '')
        >>> degree(lambda x: jnp.sin(x), [jnp.ones(2)], [])
        (3, 'sin')
    """
    closed = jax.make_jaxpr(function)(*variables, *others)
    count = len(jax.tree.leaves(variables))
    walk = _Walk()
    given = [np.full(v.aval.shape, int(k < count), np.int8) for k, v in enumerate(closed.jaxpr.invars)]
    results = walk.jaxpr(closed.jaxpr, given)
    found = max([_greatest(result) for result in results], default=0)
    return found, walk.culprit if found == MORE else ""


def _greatest(array: np.ndarray) -> int:
    return int(array.max(initial=0))


def _like(v: Any, value: int = 0) -> np.ndarray:
    return np.full(getattr(v.aval, "shape", ()), value, np.int8)


class _Walk:
    """Walks jaxprs and remembers the first primitive that made an element MORE."""

    def __init__(self) -> None:
        self.culprit = ""

    def jaxpr(self, jaxpr: Any, args: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the degrees of a jaxpr's results from those of its arguments."""
        known = {v: _like(v) for v in jaxpr.constvars}
        known.update(zip(jaxpr.invars, args, strict=True))

        def read(v: Any) -> np.ndarray:
            return _like(v) if isinstance(v, Literal) else known[v]

        for eqn in jaxpr.eqns:
            given = [read(v) for v in eqn.invars]
            most = max(map(_greatest, given), default=0)
            if most == 0:
                results = [_like(v) for v in eqn.outvars]
            else:
                results = self.equation(eqn, given)
            if not self.culprit and most < MORE and any((result == MORE).any() for result in results):
                self.culprit = eqn.primitive.name
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        """Return the degrees of an equation's results, of which some depend on the variables."""
        rule = RULES.get(eqn.primitive.name)
        results = None if rule is None else rule(self, eqn, *args)
        if results is None:
            return [_like(v, MORE) for v in eqn.outvars]
        results = results if isinstance(results, list) else [results]
        return [
            np.broadcast_to(np.asarray(result, np.int8), v.aval.shape)
            for result, v in zip(results, eqn.outvars, strict=True)
        ]


def rule(*names: str) -> Callable:
    """Register a rule: degrees of the results from those of the operands, or None for MORE."""

    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@rule("add", "add_any", "sub")
def _sum(walk: _Walk, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(a, b)


@rule("neg", "copy", "copy_p", "device_put", "optimization_barrier", "name", "real", "imag", "conj")
def _same(walk: _Walk, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    return list(args)


@rule("convert_element_type")
def _convert(walk: _Walk, eqn: Any, a: np.ndarray) -> np.ndarray | None:
    kinds = eqn.invars[0].aval.dtype.kind, eqn.outvars[0].aval.dtype.kind
    return a if set(kinds) <= {"f", "c"} else None


@rule("mul")
def _product(walk: _Walk, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.minimum(a + b, MORE)


@rule("div")
def _quotient(walk: _Walk, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    if eqn.outvars[0].aval.dtype.kind not in "fc":
        return None
    return np.where(b == 0, a, np.int8(MORE))


@rule("square")
def _square(walk: _Walk, eqn: Any, a: np.ndarray) -> np.ndarray:
    return np.minimum(2 * a, MORE)


@rule("integer_pow")
def _integer_pow(walk: _Walk, eqn: Any, a: np.ndarray) -> np.ndarray:
    return _power(a, eqn.params["y"])


@rule("pow")
def _pow(walk: _Walk, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    exponent = eqn.invars[1]
    if not isinstance(exponent, Literal) or np.ndim(exponent.val):
        return None
    return _power(a, float(exponent.val))


def _power(a: np.ndarray, exponent: float) -> np.ndarray:
    whole = exponent in (0, 1, 2)
    return np.where(a == 0, 0, np.minimum(int(exponent) * a, MORE) if whole else MORE)


@rule("select_n")
def _select(walk: _Walk, eqn: Any, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    greatest = np.max(np.stack(cases), axis=0)
    return np.where(which == 0, greatest, np.int8(MORE))


# Elements in other places.


@rule("reshape", "squeeze", "expand_dims")
def _reshape(walk: _Walk, eqn: Any, a: np.ndarray) -> np.ndarray:
    return a.reshape(eqn.outvars[0].aval.shape)


@rule("transpose")
def _transpose(walk: _Walk, eqn: Any, a: np.ndarray) -> np.ndarray:
    return a.transpose(eqn.params["permutation"])


@rule("broadcast_in_dim")
def _broadcast(walk: _Walk, eqn: Any, a: np.ndarray, *_: np.ndarray) -> np.ndarray:
    shape = eqn.outvars[0].aval.shape
    lengths = [1] * len(shape)
    for axis, length in zip(eqn.params["broadcast_dimensions"], a.shape, strict=True):
        lengths[axis] = length
    return np.broadcast_to(a.reshape(lengths), shape)


@rule("concatenate")
def _concatenate(walk: _Walk, eqn: Any, *args: np.ndarray) -> np.ndarray:
    return np.concatenate(args, eqn.params["dimension"])


@rule("stack")
def _stack(walk: _Walk, eqn: Any, *args: np.ndarray) -> np.ndarray:
    return np.stack(args, eqn.params["axis"])


@rule("unstack")
def _unstack(walk: _Walk, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
    return list(np.moveaxis(a, eqn.params["axis"], 0))


@rule("tile")
def _tile(walk: _Walk, eqn: Any, a: np.ndarray) -> np.ndarray:
    return np.tile(a, eqn.params["reps"])


@rule("slice")
def _slice(walk: _Walk, eqn: Any, a: np.ndarray) -> np.ndarray:
    p = eqn.params
    return a[tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or [1] * a.ndim))]


@rule("split")
def _split(walk: _Walk, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
    return list(np.split(a, np.cumsum(eqn.params["sizes"])[:-1], eqn.params["axis"]))


@rule("rev")
def _rev(walk: _Walk, eqn: Any, a: np.ndarray) -> np.ndarray:
    return np.flip(a, eqn.params["dimensions"])


@rule("reduce_sum")
def _reduce_sum(walk: _Walk, eqn: Any, a: np.ndarray) -> np.ndarray:
    return a.max(axis=tuple(eqn.params["axes"]), initial=0)


@rule("dot_general")
def _dot_general(walk: _Walk, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    found = _like(eqn.outvars[0])
    for i in np.unique(a):
        for j in np.unique(b):
            if i + j:
                hit = _count(a == i, b == j, a_sum, b_sum, a_batch, b_batch).reshape(found.shape) > 0
                found[hit] = np.maximum(found[hit], min(i + j, MORE))
    return found


def _count(a: Any, b: Any, a_sum: Any, b_sum: Any, a_batch: Any, b_batch: Any) -> np.ndarray:
    """Return how many products of true elements each sum holds."""
    rows = [axis for axis in range(a.ndim) if axis not in (*a_sum, *a_batch)]
    columns = [axis for axis in range(b.ndim) if axis not in (*b_sum, *b_batch)]
    size = lambda array, axes: int(np.prod([array.shape[axis] for axis in axes]))  # noqa: E731
    batch, inner = size(a, a_batch), size(a, a_sum)
    left = a.transpose((*a_batch, *rows, *a_sum)).reshape(batch, size(a, rows), inner)
    right = b.transpose((*b_batch, *b_sum, *columns)).reshape(batch, inner, size(b, columns))
    return left.astype(np.float32) @ right.astype(np.float32)


# Linear in some operands, which ones depends on numbers: every result gets the greatest degree.


@rule("pad", "cumsum", "reduce_window_sum", "fft")
def _mixed(walk: _Walk, eqn: Any, *args: np.ndarray) -> int:
    return max(map(_greatest, args))


@rule("gather", "dynamic_slice")
def _chosen(walk: _Walk, eqn: Any, a: np.ndarray, *indices: np.ndarray) -> int | None:
    return None if any(map(_greatest, indices)) else _greatest(a)


@rule("dynamic_update_slice")
def _updated(walk: _Walk, eqn: Any, a: np.ndarray, new: np.ndarray, *indices: np.ndarray) -> int | None:
    return None if any(map(_greatest, indices)) else max(_greatest(a), _greatest(new))


@rule("scatter", "scatter-add", "scatter-sub")
def _scattered(walk: _Walk, eqn: Any, a: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> int | None:
    return None if _greatest(indices) else max(_greatest(a), _greatest(updates))


@rule("conv_general_dilated")
def _convolution(walk: _Walk, eqn: Any, a: np.ndarray, b: np.ndarray) -> int:
    return min(_greatest(a) + _greatest(b), MORE)


@rule("triangular_solve")
def _triangular_solve(walk: _Walk, eqn: Any, a: np.ndarray, b: np.ndarray) -> int | None:
    return None if _greatest(a) else _greatest(b)


@rule("custom_linear_solve", "linear_solve")
def _linear_solve(walk: _Walk, eqn: Any, *args: np.ndarray) -> list[np.ndarray] | None:
    constants = sum(eqn.params["const_lengths"])
    if any(map(_greatest, args[:constants])):
        return None
    most = max(map(_greatest, args[constants:]), default=0)
    return [_like(v, most) for v in eqn.outvars]


# Functions within the function.


@rule("jit", "pjit", "closed_call", "core_call", "call", "composite", "remat", "remat2", "checkpoint")
def _call(walk: _Walk, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    inner = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)
    return walk.jaxpr(getattr(inner, "jaxpr", inner), args)


@rule("cond")
def _cond(walk: _Walk, eqn: Any, which: np.ndarray, *args: np.ndarray) -> list[np.ndarray] | None:
    if _greatest(which):
        return None
    cases = [walk.jaxpr(branch.jaxpr, args) for branch in eqn.params["branches"]]
    return [np.max(np.stack(results), axis=0) for results in zip(*cases, strict=True)]


def _settled(body: Callable, carry: list[np.ndarray]) -> list[np.ndarray]:
    """Return the degrees of what a loop carries: the least that its body does not raise."""
    while True:
        following = [np.maximum(a, b) for a, b in zip(carry, body(carry), strict=True)]
        if all((a == b).all() for a, b in zip(carry, following, strict=True)):
            return carry
        carry = following


@rule("scan")
def _scan(walk: _Walk, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    p = eqn.params
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
    consts, carry = list(args[:first]), list(args[first:last])
    rows = [a.max(axis=0, initial=0) for a in args[last:]]
    body = lambda carry: walk.jaxpr(p["jaxpr"].jaxpr, [*consts, *carry, *rows])  # noqa: E731
    carry = _settled(lambda carry: body(carry)[: len(carry)], carry)
    return [*carry, *body(carry)[len(carry) :]]


@rule("while")
def _while(walk: _Walk, eqn: Any, *args: np.ndarray) -> list[np.ndarray] | None:
    p = eqn.params
    first, last = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    carry = _settled(lambda carry: walk.jaxpr(p["body_jaxpr"].jaxpr, [*args[first:last], *carry]), list(args[last:]))
    going = walk.jaxpr(p["cond_jaxpr"].jaxpr, [*args[:first], *carry])
    return None if _greatest(going[0]) else carry
