"""Reads beyond the end of an array: JAX turns x[3] of two entries into x[1] and says nothing.

A function's jaxpr is walked once, with the numbers in it that are known before it runs: indices that are written there,
the stage. An array read beyond its end is a fault; it counts where it can reach the result, so that what `jnp.where` or
`jax.lax.cond` does not take for these numbers does no harm. Indices that depend on data are nobody's fault, nor are
reads that say what they want there (`jnp.take(x, i, mode="clip")`, `x.at[i].get(mode=...)`). A write beyond the end is
dropped, which is a fault where nothing at all is written and the line does not ask for it by `mode=`.
"""

import contextlib
import linecache
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np

from optctl._jaxpr import Literal

_OF_JAX = {Path(str(module.__file__)).parent for module in (jax, jaxlib)}
_LIBRARIES = {*_OF_JAX, Path(np.__file__).parent, Path(__file__).parent}

LARGEST = 10_000
"""Most entries of an array whose numbers are followed."""
NOTHING = 1e-9
"""Size of a factor that leaves nothing of a number, as the weight of a neighbor beyond the last one does."""
LONGEST = 3_000
"""Most equations of a loop that is followed turn by turn."""


class Fault(NamedTuple):
    """A read or a write beyond the end.

    Attributes:
        at: the index as it is written.
        size: entries along the axis.
        verb: "takes" or "writes to".
        line: where it stands in the user's file; empty if unknown.
        silent: whether the nearest entry is taken in its place, as JAX does; NumPy raises an error.
    """

    at: int
    size: int
    verb: str
    line: str
    silent: bool = True


class _Known(NamedTuple):
    """What is known of an array: its numbers or None, and a fault that it may hold."""

    value: Any = None
    fault: Fault | None = None


_NOTHING = _Known()


def fault_in(closed: Any, arguments: Sequence[Any]) -> Fault | None:
    """Return a read beyond the end that can reach the results of a closed jaxpr, None if there is none.

    Args:
        closed: the closed jaxpr.
        arguments: a number for each of its arguments where it is known, else None.
    """
    with np.errstate(all="ignore"):
        results = _walk(closed, [_Known(None if a is None else np.asarray(a)) for a in arguments])
    return _first(results)


def user_line(frames: Sequence[tuple[str, int]]) -> str:
    """Return the innermost of (file, line) that is the user's, as text with its code; empty if there is none."""
    for filename, number in frames:
        if not is_library(filename):
            return f" (line {number} of {Path(filename).name}: {linecache.getline(filename, number).strip()})"
    return ""


def line_of(eqn: Any) -> str:
    """Return the user's line from which an equation comes, as text."""
    return user_line(_frames(eqn))


def is_library(filename: str) -> bool:
    """True for files of this package, of JAX and of NumPy."""
    return not _LIBRARIES.isdisjoint(Path(filename).parents)


def is_jax(filename: str) -> bool:
    """True for files of JAX."""
    return not _OF_JAX.isdisjoint(Path(filename).parents)


def _walk(jaxpr: Any, arguments: Sequence[_Known]) -> list[_Known]:
    consts, jaxpr = getattr(jaxpr, "consts", ()), getattr(jaxpr, "jaxpr", jaxpr)
    known: dict[Any, _Known] = {v: _constant(c) for v, c in zip(jaxpr.constvars, consts, strict=True)}
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(v: Any) -> _Known:
        return _constant(v.val) if isinstance(v, Literal) else known[v]

    for eqn in jaxpr.eqns:
        known.update(zip(eqn.outvars, _equation(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _constant(value: Any) -> _Known:
    if isinstance(value, jax.core.Tracer) or np.size(value) > LARGEST:
        return _NOTHING
    dtype = getattr(value, "dtype", np.dtype(float))  # that of a random key is none of NumPy's
    return _Known(np.asarray(value)) if isinstance(dtype, np.dtype) and dtype.kind in "fiub" else _NOTHING


def _first(among: Sequence[_Known]) -> Fault | None:
    return next((a.fault for a in among if a.fault is not None), None)


def _equation(eqn: Any, args: list[_Known]) -> list[_Known]:
    name = eqn.primitive.name
    if name in _INNER:
        return _INNER[name](eqn, args)
    inner = next((eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params), None)
    if inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(args):
        return _walk(inner, args)
    fault = (_ACCESSES[name](eqn, args) if name in _ACCESSES else None) or _first(args)
    if name == "select_n" and args[0].value is not None:
        chosen = np.unique(args[0].value)
        fault = args[0].fault or (args[1 + int(chosen[0])].fault if chosen.size == 1 else None)
    if name == "mul" and any(a.value is not None and (np.abs(a.value) <= NOTHING).any() for a in args):
        fault = None  # a mask
    aval: Any = eqn.outvars[0].aval if eqn.outvars else None
    if name in _FOLDS and aval.size <= LARGEST and all(a.value is not None for a in args):
        with contextlib.suppress(ValueError, TypeError, IndexError):  # else it is not known
            value = np.asarray(_FOLDS[name](eqn, *[a.value for a in args]))
            return [_Known(np.broadcast_to(value.astype(aval.dtype), aval.shape), fault)]
    return [_Known(None, fault)] * len(eqn.outvars)


# Functions within the function.


def _cond(eqn: Any, args: list[_Known]) -> list[_Known]:
    index, branches = args[0].value, eqn.params["branches"]
    if index is not None:
        return _walk(branches[int(np.clip(index, 0, len(branches) - 1))], args[1:])
    cases = [_walk(branch, args[1:]) for branch in branches]
    return [_Known(None, _first(results)) for results in zip(*cases, strict=True)]


def _scan(eqn: Any, args: list[_Known]) -> list[_Known]:
    p = eqn.params
    first, last, turns = p["num_consts"], p["num_consts"] + p["num_carry"], p["length"]
    consts, carry, rows = args[:first], args[first:last], args[last:]
    followed = turns * len(p["jaxpr"].jaxpr.eqns) <= LONGEST
    fault = None
    order = range(turns)[:: -1 if p["reverse"] else 1] if followed else range(min(turns, 1))
    for i in order:
        if followed:
            row = [r if r.value is None else _Known(r.value[i], r.fault) for r in rows]
        else:
            carry, row = ([_Known(None, a.fault) for a in some] for some in (carry, rows))
        results = _walk(p["jaxpr"], [*consts, *carry, *row])
        carry, fault = results[: p["num_carry"]], fault or _first(results)
    carry = [_Known(c.value if followed else None, c.fault or fault) for c in carry]
    return [*carry, *[_Known(None, fault)] * (len(eqn.outvars) - len(carry))]


def _while(eqn: Any, args: list[_Known]) -> list[_Known]:
    start = eqn.params["cond_nconsts"]
    carry = [_Known(None, a.fault) for a in args[start + eqn.params["body_nconsts"] :]]
    results = _walk(eqn.params["body_jaxpr"], [*args[start : start + eqn.params["body_nconsts"]], *carry])
    return [_Known(None, old.fault or new.fault) for old, new in zip(carry, results, strict=True)]


def _numpy_model(eqn: Any, args: list[_Known]) -> list[_Known]:
    """Call a function in plain NumPy with the stage as it is known, and ones."""
    fault, model = _first(args), eqn.params["model"]
    if not eqn.params["batches"] and any(a.value is not None and a.value.dtype.kind == "i" for a in args):
        numbers = [np.ones(v.aval.shape) if a.value is None else a.value for a, v in zip(args, eqn.invars, strict=True)]
        try:
            model.now(*numbers)
        except IndexError as error:
            found = re.search(r"index (-?\d+) is out of bounds for axis \d+ with size (\d+)", str(error))
            frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
            if found:
                fault = Fault(int(found[1]), int(found[2]), "takes", user_line(frames[::-1]), silent=False)
        except Exception:
            pass
    return [_Known(None, fault)]


_INNER: dict[str, Callable] = {"cond": _cond, "scan": _scan, "while": _while, "numpy_model": _numpy_model}


# Reads and writes.


def _fault(eqn: Any, starts: Any, limit: int, size: int, verb: str = "takes") -> Fault | None:
    """Return the fault of the first of some starts that is not in 0..limit."""
    starts = np.ravel(starts)
    outside = starts[(starts < 0) | (starts > limit)]
    if not outside.size:
        return None
    index = int(outside[0])
    written = index - size if index < 0 else index  # negative ones have the size added to them
    return Fault(written, size, verb, line_of(eqn))


def _frames(eqn: Any) -> list[tuple[str, int]]:
    traceback = getattr(eqn.source_info, "traceback", None)
    return [] if traceback is None else [(frame.file_name, frame.line_num) for frame in traceback.frames]


def _says_mode(frames: Sequence[tuple[str, int]]) -> bool:
    """True if the user's statement may say `mode=`, which a write may also do on another line than it begins."""
    for filename, number in frames:
        if not is_library(filename):
            near = [linecache.getline(filename, number + k) for k in range(-4, 5)]
            return not near[4] or any("mode" in line for line in near)
    return True


def _sliced(eqn: Any, shape: Any, sizes: Any, starts: Sequence[_Known], verb: str = "takes") -> Fault | None:
    found = (
        _fault(eqn, start.value, n - size, n, verb)
        for start, n, size in zip(starts, shape, sizes, strict=True)
        if start.value is not None
    )
    return next((fault for fault in found if fault), None)


def _dynamic_slice(eqn: Any, args: list[_Known]) -> Fault | None:
    return _sliced(eqn, eqn.invars[0].aval.shape, eqn.params["slice_sizes"], args[1:])


def _dynamic_update_slice(eqn: Any, args: list[_Known]) -> Fault | None:
    return _sliced(eqn, eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, args[2:], "writes to")


def _gather(eqn: Any, args: list[_Known]) -> Fault | None:
    if args[1].value is None or eqn.params["mode"] != jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        return None
    shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    axes = eqn.params["dimension_numbers"].start_index_map
    found = (_fault(eqn, args[1].value[..., k], shape[axis] - sizes[axis], shape[axis]) for k, axis in enumerate(axes))
    return next((fault for fault in found if fault), None)


def _scatter(eqn: Any, args: list[_Known]) -> Fault | None:
    if args[1].value is None or not args[1].value.size:
        return None
    if _says_mode(_frames(eqn)):
        return None
    shape = eqn.invars[0].aval.shape
    for k, axis in enumerate(eqn.params["dimension_numbers"].scatter_dims_to_operand_dims):
        starts = args[1].value[..., k]
        fault = _fault(eqn, starts, shape[axis] - 1, shape[axis], "writes to")
        if fault and ((starts < 0) | (starts >= shape[axis])).all():
            return fault
    return None


_ACCESSES: dict[str, Callable] = {
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    **dict.fromkeys(("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul"), _scatter),
}


# What becomes of known numbers.


def _integer(x: Any) -> Any:
    return np.trunc(np.nan_to_num(x, posinf=2.0**31, neginf=-(2.0**31)))


def _convert(eqn: Any, x: Any) -> Any:
    return _integer(x) if x.dtype.kind == "f" and np.dtype(eqn.params["new_dtype"]).kind in "iu" else x


def _broadcast(eqn: Any, x: Any) -> Any:
    shape = eqn.params["shape"]
    lengths = [1] * len(shape)
    for axis, length in zip(eqn.params["broadcast_dimensions"], x.shape, strict=True):
        lengths[axis] = length
    return np.broadcast_to(x.reshape(lengths), shape)


def _slice(eqn: Any, x: Any) -> Any:
    p = eqn.params
    return x[tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or [1] * x.ndim))]


def _iota(eqn: Any) -> Any:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    return np.broadcast_to(np.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(shape))]), shape)


def _divided(eqn: Any, a: Any, b: Any) -> Any:
    quotient = np.true_divide(a, b)
    return _integer(quotient) if eqn.outvars[0].aval.dtype.kind in "iu" else quotient


_FOLDS: dict[str, Callable] = {
    "convert_element_type": _convert,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "iota": _iota,
    "div": _divided,
    "select_n": lambda eqn, which, *cases: np.choose(np.asarray(which, int), cases),
    "clamp": lambda eqn, low, x, high: np.minimum(np.maximum(x, low), high),
    "concatenate": lambda eqn, *parts: np.concatenate(parts, eqn.params["dimension"]),
    "transpose": lambda eqn, x: x.transpose(eqn.params["permutation"]),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), lambda eqn, x: x.reshape(eqn.outvars[0].aval.shape)),
    **dict.fromkeys(("stop_gradient", "copy", "copy_p"), lambda eqn, x: x),
    **{
        name: (lambda eqn, *values, function=function: function(*values))
        for name, function in {
            "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs, "sign": np.sign,
            "max": np.maximum, "min": np.minimum, "rem": np.fmod, "floor": np.floor, "ceil": np.ceil, "round": np.rint,
            "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal,
            "ne": np.not_equal, "and": np.bitwise_and, "or": np.bitwise_or, "not": np.invert,
        }.items()
    },
}  # fmt: skip
