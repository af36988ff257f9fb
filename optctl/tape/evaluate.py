"""A graph as a function of arrays, by NumPy or by JAX: each expression that the results need, once.

With JAX it is a function like any other: compiled, batched, differentiated, in any precision, on any device.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl.tape.expressions import CONSTANT, EVALUATE, GIVEN, INPUT, LOAD, LOOKUP, OPERATIONS, TABLES, Expressions
from optctl.tape.program import READS, Graph


def _number(test: Callable) -> Callable:
    """Return a comparison whose result is 1 or 0."""
    return lambda *args: jax.lax.convert_element_type(test(*args), args[0].dtype)


def _constant(value: float) -> Callable:
    return lambda x: jnp.asarray(value, x.dtype)


lax = jax.lax
BY_JAX: dict[str, Callable] = {
    "add": lax.add, "sub": lax.sub, "mul": lax.mul, "div": lax.div, "neg": lax.neg, "abs": lax.abs, "sign": lax.sign,
    "floor": lax.floor, "ceil": lax.ceil, "round": lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO),
    "rint": lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
    "trunc": lambda x: lax.select(lax.ne(x, x), jnp.zeros_like(x), lax.mul(lax.sign(x), lax.floor(lax.abs(x)))),
    "sqrt": lax.sqrt, "isfinite": _number(lax.is_finite), "min": lax.min, "max": lax.max,
    "select": lambda p, a, b: lax.select(lax.ne(p, jnp.zeros_like(p)), a, b),
    "eq": _number(lax.eq), "ne": _number(lax.ne), "lt": _number(lax.lt), "le": _number(lax.le),
    "sin": lax.sin, "cos": lax.cos, "exp": lax.exp, "log": lax.log, "pow": lax.pow, "tan": lax.tan, "asin": lax.asin,
    "acos": lax.acos, "atan": lax.atan, "atan2": lax.atan2, "sinh": lax.sinh, "cosh": lax.cosh, "tanh": lax.tanh,
    "asinh": lax.asinh, "acosh": lax.acosh, "atanh": lax.atanh, "exp2": lax.exp2, "expm1": lax.expm1,
    "log1p": lax.log1p, "cbrt": lax.cbrt, "erf": lax.erf, "erfc": lax.erfc, "rem": lax.rem,
}  # fmt: skip


BY_NUMPY = EVALUATE | {
    name: (lambda *args, test=EVALUATE[name]: test(*args) * 1.0) for name in ("eq", "ne", "lt", "le", "isfinite")
}


def by_numpy(graph: Graph, *leaves: Any, many: int | None = None) -> list[np.ndarray]:
    """Return the results in double precision, from the inputs' leaves, then the uniform ones.

    With `many`, leaves may have so many values, along a last axis; the results have them.
    """
    shapes = [np.shape(of) for of in (*graph.inputs, *graph.uniform)]
    arrays = [np.asarray(leaf, float) for leaf in leaves]
    arrays = [a.reshape(math.prod(shape), *a.shape[len(shape) :]) for a, shape in zip(arrays, shapes, strict=True)]
    held = arrays[len(graph.inputs) :]
    flat = np.concatenate([np.zeros(0), *held, graph.g.tables]) if all(a.ndim == 1 for a in held) else None
    if flat is None:
        columns = [a if a.ndim == 2 else a[:, None] for a in (*held, np.array(graph.g.tables))]
        flat = np.concatenate([np.broadcast_to(a, (len(a), many or 1)) for a in columns])

    def look_up(flat: np.ndarray, first: int, step: int, index: Any) -> Any:
        place = first + step * np.asarray(np.nan_to_num(index), int)
        place = np.clip(place, 0, len(flat) - 1)
        return flat[place] if flat.ndim == 1 else flat[place, np.arange(many)]  # type: ignore[arg-type]

    with np.errstate(all="ignore"):
        values = _values(graph, arrays, flat, float, BY_NUMPY, look_up)
    shape = () if many is None else (many,)
    made = [np.empty((of.size, *shape)) for of in graph.results]
    for of, to in zip(graph.results, made, strict=True):
        for k, i in enumerate(of.flat):
            to[k] = values[int(i)]
    return [to.reshape((*of.shape, *shape)) for of, to in zip(graph.results, made, strict=True)]


def by_jax(graph: Graph, *leaves: Any) -> list[Any]:
    """Return the results in JAX, in the widest floating type of the leaves."""
    kinds = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    dtype = jnp.result_type(*kinds) if kinds else jax.dtypes.canonicalize_dtype(np.float64)
    arrays = [lax.convert_element_type(leaf, dtype).reshape(-1) for leaf in leaves]
    number: Callable = lambda value: np.asarray(value, dtype)  # noqa: E731
    uniform = arrays[len(graph.inputs) :]
    flat = jnp.concatenate([*uniform, number(graph.g.tables)]) if _looks_up(graph) or uniform else number([])

    def look_up(flat: Any, first: int, step: int, index: Any) -> Any:
        return flat[first + step * lax.convert_element_type(index, np.int32)]

    values = _values(graph, arrays, flat, number, BY_JAX, look_up)
    return [
        jnp.stack([jnp.asarray(values[i], dtype) for i in of.flat]).reshape(of.shape) if of.size else number(of)
        for of in graph.results
    ]


def needed(graph: Graph) -> list[int]:
    """Return the expressions that the results need, in an order in which they can be worked out."""
    return needed_for(graph.g, [int(i) for of in graph.results for i in of.flat])


def needed_for(g: Expressions, results: Sequence[int]) -> list[int]:
    """Return the expressions that these results need, in an order in which they can be worked out."""
    stack = list(results)
    found = set(stack)
    while stack:
        for i in operands(g, stack.pop()):
            if i not in found:
                found.add(i)
                stack.append(i)
    return sorted(found)


def operands(g: Expressions, node: int) -> Sequence[int]:
    """Return the expressions that one is made of."""
    operation, *abc = g.nodes[node]
    if operation in (CONSTANT, INPUT, LOAD):
        return ()
    if operation in (GIVEN, LOOKUP):
        return abc[:1]
    return [abc[k] for k in READS[operation]]


def _looks_up(graph: Graph) -> bool:
    return any(graph.g.nodes[i][0] == LOOKUP for i in needed(graph))


def _values(
    graph: Graph, arrays: Sequence[Any], flat: Any, number: Callable, functions: dict[str, Callable], look_up: Callable
) -> dict[int, Any]:
    g = graph.g
    uniforms = sum(leaf.size for leaf in graph.uniform)
    values: dict[int, Any] = {}
    wanted = needed(graph)
    used = set(wanted)
    for of, numbers in zip(graph.inputs, arrays, strict=False):
        values.update({i: numbers[k] for k, i in enumerate(of.ravel().tolist()) if i in used})
    for i in wanted:
        operation, a, b, c = g.nodes[i]
        if i in values:
            continue
        if operation == CONSTANT:
            values[i] = number(g.values[i])
        elif operation == LOAD:
            values[i] = flat[a]
        elif operation == LOOKUP:
            values[i] = look_up(flat, b - TABLES + uniforms if b >= TABLES else b, c, values[a])
        elif operation == GIVEN:
            values[i] = values[a]
        else:
            values[i] = functions[OPERATIONS[operation]](*[values[k] for k in operands(g, i)])
    return values
