"""What the code of a user's function tells: whether it changes arrays in place, and what it reads from outside."""

import dis
import inspect
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from optctl._reads import is_library
from optctl._record import remember

CHANGING = {"sort", "argsort", "fill", "put", "resize", "partition", "itemset"}
"""Methods that change an array, and `argsort`, which JAX's arrays take from NumPy's function and cannot compile."""
REMEMBERED = 1024
MOST = 1000
"""Most numbers of one value that are looked at."""
_READ: dict[Any, list[tuple[str, Callable, Any]]] = {}
FRESH: dict[int, Any] = {}
"""Functions that are being traced for the first time."""


def changes_in_place(function: Any) -> bool:
    """True if the code of a function, or of functions of the user that it calls, may change an array in place."""
    for code in _codes(function):
        for step in dis.get_instructions(code):
            called = step.opname in ("LOAD_METHOD", "LOAD_ATTR") and step.argval in CHANGING
            if called or step.opname == "STORE_SUBSCR" or (step.opname == "BINARY_OP" and step.argrepr.endswith("=")):
                return True
    return False


def note(function: Any) -> None:
    """Remember the numbers that a function reads from outside, when it is being traced for the first time."""
    key = id(function)
    if key not in _READ or _READ[key][0][1]() is not function:
        found = [(name, get, _copied(get())) for name, get in _outside(function)]
        remember(_READ, key, [("", lambda: function, None), *found], REMEMBERED)
        FRESH[key] = function


def forget_what_changed() -> None:
    """Forget numbers that functions changed while they were traced: those count their calls, or keep a record."""
    for key in FRESH:
        known = _READ.get(key, [])
        known[1:] = [read for read in known[1:] if _equal(read[2], _copied(read[1]()))]
    FRESH.clear()


def warn_of_changes(function: Any, name: str) -> None:
    """Warn once where numbers that a function reads from outside are others than when it was traced."""
    known = _READ.get(id(function), [])
    if not known or known[0][1]() is not function:
        return
    for place, (outside, get, before) in enumerate(known[1:], 1):
        now = get()
        copy = _copied(now)
        if now is not before and not _equal(before, copy):
            del known[place]
            warnings.warn(
                f"`{name}` read `{outside}` = {_short(before)} when it was traced; now it is {_short(copy)}, which what"
                " was traced before does not see. Hand it over as params, or make the function anew.",
                stacklevel=5,
            )
            return


def _codes(function: Any) -> Iterator[types.CodeType]:
    """Yield the code of a function, of those within it, and of functions of the user that they name."""
    for one in _functions(function):
        codes = [one.__code__]
        while codes:
            code = codes.pop()
            codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
            yield code


def _functions(function: Any) -> Iterator[Any]:
    seen, waiting = [], [function]
    while waiting:
        named = waiting.pop()
        one = inspect.unwrap(getattr(named, "__func__", named))
        code = getattr(one, "__code__", None)
        if code is None or one in seen or is_library(code.co_filename):
            continue
        seen.append(one)
        yield one
        waiting += [value for _, get in _names(one) if inspect.isfunction(value := get())]


def _names(function: Any) -> Iterator[tuple[str, Callable]]:
    """Yield the names that a function reads from outside, and what gets their values."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if _filled(cell):
            yield name, lambda cell=cell: cell.cell_contents
    held = function.__globals__
    for name in _globals(function.__code__):
        if name in held:
            yield name, lambda name=name: held.get(name)


def _globals(code: types.CodeType) -> set[str]:
    found = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return found.union(*[_globals(constant) for constant in code.co_consts if inspect.iscode(constant)])


def _outside(function: Any) -> list[tuple[str, Callable]]:
    return [(name, get) for one in _functions(function) for name, get in _names(one) if _copied(get()) is not None]


def _copied(value: Any) -> Any:
    """Return numbers, an array, or a list or the like of them, as they are now; None for all else."""
    if isinstance(value, bool | int | float | complex | np.number):
        return value
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer) and value.size <= MOST:
        return np.array(value) if value.dtype.kind in "fiubc" else None
    if isinstance(value, dict):
        value = tuple(value.items()) if all(isinstance(key, str) for key in value) else None
        return None if value is None else _all([(key, _copied(part)) for key, part in value])
    if isinstance(value, list | tuple) and len(value) <= MOST:
        return _all([(k, _copied(part)) for k, part in enumerate(value)])
    return None


def _all(parts: list[tuple[Any, Any]]) -> list[tuple[Any, Any]] | None:
    return None if any(part is None for _, part in parts) else parts


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(k == j and _equal(x, y) for (k, x), (j, y) in zip(a, b, strict=True))
    if a is None or b is None or isinstance(a, list) or isinstance(b, list):
        return a is b
    return np.shape(a) == np.shape(b) and bool(np.array_equal(a, b, equal_nan=True))


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        value = [part for _, part in value]
    text = repr(value) if not isinstance(value, np.ndarray) else np.array2string(value, precision=6, threshold=6)
    return text if len(text) < 60 else text[:57] + "..."


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
