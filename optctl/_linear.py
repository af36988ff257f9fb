"""A linear map that NumPy applies, as one operation of JAX: the derivative of a call that the kernels answer.

JAX differentiates, transposes and maps it like its own, and XLA compiles nothing for it: numbers pass from NumPy's
arrays to NumPy's. Inside compiled code the map is a call back to the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad, batching, mlir

from optctl._jaxpr import Primitive
from optctl._validate import is_concrete


class LinearMap(Protocol):
    """A map from arrays to arrays, and its transpose, both on NumPy's."""

    @property
    def inputs(self) -> Sequence[jax.ShapeDtypeStruct]:
        """Shapes and types of what it takes."""

    @property
    def outputs(self) -> Sequence[jax.ShapeDtypeStruct]:
        """Shapes and types of what it makes."""

    def forward(self, tangents: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Return the outputs for these inputs."""

    def backward(self, cotangents: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """Return the transpose's; None stands for an output that plays no part."""


@dataclass(frozen=True, eq=False)
class _Transposed:
    """The transpose of a map, of those outputs that play a part."""

    of: Any
    present: tuple[bool, ...]

    @property
    def inputs(self) -> Sequence[Any]:
        return self._some(self.of.outputs)

    @property
    def outputs(self) -> Sequence[Any]:
        return self.of.inputs

    def forward(self, cotangents: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        given = iter(cotangents)
        return self.of.backward([next(given) if there else None for there in self.present])

    def backward(self, tangents: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        known = [np.zeros(of.shape, of.dtype) if t is None else t for t, of in zip(tangents, self.outputs, strict=True)]
        return self._some(self.of.forward(known))

    def _some(self, values: Sequence[Any]) -> list[Any]:
        return [value for value, there in zip(values, self.present, strict=True) if there]


_apply = Primitive("optctl_linear")
_apply.multiple_results = True


def apply(of: LinearMap, tangents: Sequence[Any]) -> list[Any]:
    """Return what a linear map makes of tangents, whatever JAX does with them."""
    return _apply.bind(*tangents, of=of)


def inner(slopes: Sequence[Any], tangents: Sequence[Any], dtype: Any) -> Any:
    """Return the sum of slope . tangent over all arrays, a scalar; tangents that are symbolic zeros count nothing.

    Each slope has the shape and type of its tangent.
    """
    pairs = [pair for pair in zip(slopes, tangents, strict=True) if not isinstance(pair[1], SymbolicZero)]
    if not pairs:
        return jnp.zeros((), dtype)
    known, moves = zip(*pairs, strict=True)
    if is_concrete(known) and jax.default_backend() == "cpu":
        return apply(_Inner([np.asarray(slope) for slope in known], np.dtype(dtype)), moves)[0]
    return jnp.asarray(sum(jnp.sum(a * b) for a, b in pairs), dtype)


@dataclass(frozen=True, eq=False)
class _Inner:
    """Slopes times tangents; its transpose is a factor times slopes."""

    slopes: list[np.ndarray]
    dtype: Any

    @property
    def inputs(self) -> Sequence[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(slope.shape, slope.dtype) for slope in self.slopes]

    @property
    def outputs(self) -> Sequence[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct((), self.dtype)]

    def forward(self, tangents: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [np.asarray(sum(np.sum(a * b) for a, b in zip(self.slopes, tangents, strict=True)))]

    def backward(self, cotangents: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        factor = 0.0 if cotangents[0] is None else cotangents[0]
        return [np.asarray(factor * slope) for slope in self.slopes]


def _on_host(of: LinearMap, arrays: Sequence[Any]) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        made = of.forward([np.asarray(array) for array in arrays])
    return [np.asarray(value, spec.dtype) for value, spec in zip(made, of.outputs, strict=True)]


def _now(*arrays: Any, of: LinearMap) -> list[Any]:
    return [jax.device_put(value) for value in _on_host(of, arrays)]


def _in_turns(*arrays: Any, of: LinearMap) -> list[Any]:
    """Call the host from compiled code, once for each member of a batch."""
    return jax.pure_callback(lambda *a: _on_host(of, a), list(of.outputs), *arrays, vmap_method="sequential")


def _batched(arrays: Sequence[Any], axes: Sequence[Any], *, of: LinearMap) -> tuple[list[Any], list[int]]:
    if not is_concrete(arrays):
        made = jax.vmap(lambda *a: _in_turns(*a, of=of), in_axes=tuple(axes))(*arrays)
        return list(made), [0] * len(made)
    moved = [
        np.asarray(array) if axis is None else np.moveaxis(np.asarray(array), axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    ]
    mapped = [axis is not None for axis in axes]
    size = next(len(array) for array, varies in zip(moved, mapped, strict=True) if varies)
    pairs = list(zip(moved, mapped, strict=True))
    made = [_on_host(of, [array[i] if varies else array for array, varies in pairs]) for i in range(size)]
    return [jax.device_put(np.stack(column)) for column in zip(*made, strict=True)], [0] * len(of.outputs)


def _transpose(cotangents: Sequence[Any], *tangents: Any, of: LinearMap) -> list[Any]:
    present = tuple([not isinstance(cotangent, ad.Zero) for cotangent in cotangents])
    if not any(present):
        return [ad.Zero(t.aval) if ad.is_undefined_primal(t) else None for t in tangents]
    known = [cotangent for cotangent, there in zip(cotangents, present, strict=True) if there]
    made = apply(_Transposed(of, present), known)
    return [m if ad.is_undefined_primal(t) else None for m, t in zip(made, tangents, strict=True)]


_apply.def_impl(_now)
_apply.def_abstract_eval(lambda *arrays, of: [jax.core.ShapedArray(spec.shape, spec.dtype) for spec in of.outputs])
ad.deflinear2(_apply, _transpose)
mlir.register_lowering(_apply, mlir.lower_fun(_in_turns, multiple_results=True))
batching.primitive_batchers[_apply] = _batched
