"""NumPy's functions that only move elements: done to the nodes by NumPy itself.

What they fill in is the node ZERO, which is number 0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from optctl.tape.plain.arrays import FLOAT, FUNCTIONS, METHODS, REFUSED, Array, Refused, as_array, cast, function, known
from optctl.tape.unroll import Unroller

MOVES = (
    np.reshape, np.ravel, np.transpose, np.matrix_transpose, np.swapaxes, np.moveaxis, np.rollaxis, np.squeeze,
    np.expand_dims, np.broadcast_to, np.tile, np.repeat, np.roll, np.flip, np.fliplr, np.flipud, np.rot90,
    np.diagonal, np.diag, np.diagflat, np.tril, np.triu, np.delete, np.atleast_1d, np.atleast_2d, np.atleast_3d,
    np.copy, np.resize,
)  # fmt: skip
SPLITS = (np.split, np.array_split, np.hsplit, np.vsplit, np.dsplit, np.unstack)
JOINS = (np.concatenate, np.stack, np.hstack, np.vstack, np.dstack, np.column_stack)


def _moving(function: Callable) -> Callable:
    def rule(un: Unroller, a: Any, *args: Any, **kwargs: Any) -> Any:
        a = as_array(un, a)
        args = tuple(known(value) for value in args)
        return Array(un, function(a.nodes, *args, **kwargs), a.dtype)

    return rule


def _splitting(function: Callable) -> Callable:
    def rule(un: Unroller, a: Any, *args: Any, **kwargs: Any) -> Any:
        a = as_array(un, a)
        return [Array(un, part, a.dtype) for part in function(a.nodes, *args, **kwargs)]

    return rule


def _joining(function: Callable) -> Callable:
    def rule(un: Unroller, parts: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("dtype", None)
        arrays = [as_array(un, part) for part in parts]
        dtype = np.result_type(*[a.dtype for a in arrays])
        return Array(un, function([a.nodes for a in arrays], *args, **kwargs), dtype)

    return rule


for _functions, _make in ((MOVES, _moving), (SPLITS, _splitting), (JOINS, _joining)):
    FUNCTIONS.update({_f: _make(_f) for _f in _functions})


@function(np.append)
def _append(un: Unroller, a: Any, values: Any, axis: Any = None) -> Array:
    parts = [as_array(un, a), as_array(un, values)]
    return np.concatenate(parts if axis is not None else [part.ravel() for part in parts], axis or 0)  # type: ignore


@function(np.block)
def _block(un: Unroller, arrays: Any) -> Any:
    def depth(part: Any) -> int:
        return 1 + max(map(depth, part)) if isinstance(part, list) else 0

    def joined(part: Any, axis: int) -> Any:
        if not isinstance(part, list):
            made = as_array(un, part)
            return made.reshape((1,) * (deep - made.ndim) + made.shape) if made.ndim < deep else made
        return np.concatenate([joined(inner, axis + 1) for inner in part], axis=axis)

    deep = depth(arrays)
    return joined(arrays, -deep)


@function(np.take)
def take(un: Unroller, a: Any, indices: Any, axis: Any = None, out: Any = None, mode: str = "raise") -> Array:
    """Return elements at places that may not be known yet."""
    a, places = as_array(un, a), as_array(un, indices)
    if axis is None:
        return a.ravel()[places if known(places) is None else known(places)]
    key = (*[slice(None)] * (axis % a.ndim), places)
    return a[key]


@function(np.insert)
def _insert(un: Unroller, arr: Any, obj: Any, values: Any, axis: Any = None) -> Array:
    a, more = as_array(un, arr), as_array(un, values)
    return Array(un, np.insert(a.nodes, known(obj), more.nodes, axis), a.dtype)


@function(np.meshgrid)
def _meshgrid(un: Unroller, *xi: Any, indexing: str = "xy", copy: bool = True, sparse: bool = False) -> Any:
    arrays = [as_array(un, x).ravel() for x in xi]
    grids = np.meshgrid(*[a.nodes for a in arrays], indexing=indexing, sparse=sparse)  # type: ignore[call-overload]
    return [Array(un, grid, a.dtype) for grid, a in zip(grids, arrays, strict=True)]


@function(np.pad)
def _pad(un: Unroller, a: Any, pad_width: Any, mode: Any = "constant", **kwargs: Any) -> Array:
    a = as_array(un, a)
    if set(map(float, np.ravel(kwargs.get("constant_values", 0.0)))) != {0.0}:
        raise Refused("uses np.pad with other numbers than zeros; write np.concatenate")
    return Array(un, np.pad(a.nodes, pad_width, mode, **kwargs), a.dtype)


@function(np.fill_diagonal)
def _fill_diagonal(un: Unroller, a: Any, val: Any, wrap: bool = False) -> None:
    if not isinstance(a, Array) or wrap:
        raise Refused(REFUSED["array"])
    places = np.arange(min(a.shape))
    a[(places,) * a.ndim] = val


def _filled(value: float | None) -> Callable:
    def rule(un: Unroller, a: Any, *args: Any, dtype: Any = None, shape: Any = None, **_: Any) -> Array:
        a = as_array(un, a)
        number = as_array(un, args[0] if value is None else value)
        nodes = np.broadcast_to(number.nodes, a.shape if shape is None else shape).copy()
        kind = a.dtype if dtype is None else dtype
        return cast(un, Array(un, nodes, FLOAT), kind) if np.dtype(kind) != FLOAT else Array(un, nodes)

    return rule


FUNCTIONS.update({np.zeros_like: _filled(0.0), np.ones_like: _filled(1.0), np.empty_like: _filled(0.0)})
FUNCTIONS[np.full_like] = _filled(None)
FUNCTIONS[np.shape] = lambda un, a: as_array(un, a).shape
FUNCTIONS[np.ndim] = lambda un, a: as_array(un, a).ndim
FUNCTIONS[np.size] = lambda un, a, axis=None: as_array(un, a).size if axis is None else as_array(un, a).shape[axis]
FUNCTIONS[np.real] = lambda un, a: as_array(un, a)
FUNCTIONS[np.round] = FUNCTIONS[np.around] = lambda un, a, decimals=0, out=None: (
    np.rint(as_array(un, a)) if decimals == 0 else np.rint(as_array(un, a) * 10.0**decimals) / 10.0**decimals
)
FUNCTIONS[np.broadcast_arrays] = lambda un, *arrays, subok=False: tuple(
    Array(un, nodes.copy(), a.dtype)
    for a in [None]
    for a, nodes in zip(
        [as_array(un, v) for v in arrays], np.broadcast_arrays(*[as_array(un, v).nodes for v in arrays]), strict=True
    )
)


@function(np.copyto)
def _copyto(un: Unroller, dst: Any, src: Any, casting: Any = "same_kind", where: Any = True) -> None:
    if not isinstance(dst, Array):
        raise Refused(REFUSED["array"])
    dst[...] = src if where is True else np.where(where, src, dst)


METHODS.update(
    {
        name: getattr(np, name)
        for name in (
            *(
                "sum",
                "prod",
                "max",
                "min",
                "mean",
                "var",
                "std",
                "all",
                "any",
                "cumsum",
                "cumprod",
                "argmax",
                "argmin",
                "argsort",
            ),
            *("ravel", "swapaxes", "squeeze", "repeat", "diagonal", "dot", "clip", "take", "trace"),
            *("round", "conjugate"),
        )
    }
    | {"conj": np.conjugate}
)
