"""A derivative that is known: slopes, computed with a value, times tangents, as one linear operation of JAX.

    inner(slopes, tangents) = sum over all arrays of slope . tangent,     its transpose:  factor -> factor slopes.

JAX linearizes, transposes and maps it like its own. With numbers on a CPU it is NumPy's work, so that `jax.grad` of a
call that the kernels answer compiles nothing, where a product and a sum for each array would each be compiled.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad, batching, mlir

from optctl._jaxpr import Primitive


def inner(slopes: Sequence[Any], tangents: Sequence[Any], dtype: Any) -> Any:
    """Return the sum of slope . tangent, a scalar; tangents that are symbolic zeros count nothing.

    Each slope has the shape and type of its tangent.
    """
    pairs = [pair for pair in zip(slopes, tangents, strict=True) if not isinstance(pair[1], SymbolicZero | ad.Zero)]
    if not pairs:
        return jnp.zeros((), dtype)
    return _inner.bind(*[slope for slope, _ in pairs], *[tangent for _, tangent in pairs], dtype=np.dtype(dtype))


_inner, _scaled = Primitive("optctl_inner"), Primitive("optctl_scaled")
_scaled.multiple_results = True


def _inner_defined(*arrays: Any, dtype: Any) -> Any:
    half = len(arrays) // 2
    return jnp.asarray(sum(jnp.sum(a * b) for a, b in zip(arrays[:half], arrays[half:], strict=True)), dtype)


def _inner_now(*arrays: Any, dtype: Any) -> Any:
    if jax.default_backend() != "cpu":
        return _inner_defined(*arrays, dtype=dtype)
    a, half = [np.asarray(array) for array in arrays], len(arrays) // 2
    return jax.device_put(np.asarray(sum(np.sum(x * y) for x, y in zip(a[:half], a[half:], strict=True)), dtype))


def _scaled_defined(factor: Any, *slopes: Any) -> list[Any]:
    return [factor.astype(slope.dtype) * slope for slope in slopes]


def _scaled_now(factor: Any, *slopes: Any) -> list[Any]:
    if jax.default_backend() != "cpu":
        return _scaled_defined(factor, *slopes)
    return [jax.device_put(made) for made in _scaled_defined(np.asarray(factor), *map(np.asarray, slopes))]


def _inner_tangent(primals: Sequence[Any], tangents: Sequence[Any], *, dtype: Any) -> tuple[Any, Any]:
    half = len(primals) // 2  # where one of a pair moves, the other stands still
    others = [*primals[half:], *primals[:half]]
    return _inner.bind(*primals, dtype=dtype), inner(others, tangents, dtype)


def _inner_transpose(factor: Any, *arrays: Any, dtype: Any) -> list[Any]:
    half = len(arrays) // 2
    others = [*arrays[half:], *arrays[:half]]
    linear = [ad.is_undefined_primal(array) for array in arrays]
    if isinstance(factor, ad.Zero):
        return [ad.Zero(array.aval) if is_linear else None for array, is_linear in zip(arrays, linear, strict=True)]
    made = iter(_scaled.bind(factor, *[other for other, is_linear in zip(others, linear, strict=True) if is_linear]))
    return [next(made) if is_linear else None for is_linear in linear]


def _scaled_tangent(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list, list]:
    (factor, *slopes), (dfactor, *dslopes) = primals, tangents
    moved = [ad.instantiate_zeros(d) for d in dslopes]
    parts = [_scaled.bind(factor, *moved)]
    if not isinstance(dfactor, ad.Zero):
        parts.append(_scaled.bind(dfactor, *slopes))
    return _scaled.bind(*primals), [sum(part[1:], part[0]) for part in zip(*parts, strict=True)]


def _scaled_transpose(cotangents: Sequence[Any], factor: Any, *slopes: Any) -> list[Any]:
    known = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    if ad.is_undefined_primal(factor):
        return [inner(slopes, known, factor.aval.dtype), *[None] * len(slopes)]
    made = _scaled.bind(factor, *known)
    return [None, *[m if ad.is_undefined_primal(slope) else None for m, slope in zip(made, slopes, strict=True)]]


def _batched(definition: Any) -> Any:
    def rule(arrays: Sequence[Any], axes: Sequence[Any], **options: Any) -> tuple[Any, Any]:
        made = jax.vmap(lambda *arrays: definition(*arrays, **options), in_axes=tuple(axes))(*arrays)
        return made, ([0] * len(made) if isinstance(made, list) else 0)

    return rule


_inner.def_impl(_inner_now)
_inner.def_abstract_eval(lambda *arrays, dtype: jax.core.ShapedArray((), dtype))
_scaled.def_impl(_scaled_now)
_scaled.def_abstract_eval(lambda factor, *slopes: [jax.core.ShapedArray(s.shape, s.dtype) for s in slopes])
for primitive, defined in ((_inner, _inner_defined), (_scaled, _scaled_defined)):
    mlir.register_lowering(primitive, mlir.lower_fun(defined, multiple_results=primitive.multiple_results))
    batching.primitive_batchers[primitive] = _batched(defined)
ad.primitive_jvps |= {_inner: _inner_tangent, _scaled: _scaled_tangent}
ad.primitive_transposes |= {_inner: _inner_transpose, _scaled: _scaled_transpose}
