"""What the code of a user's function tells: whether it changes arrays in place, and what it reads from outside."""

import dis
import inspect
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
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
_STANDARD = Path(os.__file__).parent
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
        if now is before:
            continue
        copy = _copied(now)
        if not _equal(before, copy):
            del known[place]
            warnings.warn(
                f"`{name}` read `{outside}` = {_short(before)} when it was traced; now it is {_short(copy)}, which what"
                " was traced before does not see. Hand it over as params, or make the function anew.",
                stacklevel=_levels_to_user(),
            )
            return


def _levels_to_user() -> int:
    """Return how many frames above the caller's the user's code is."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and is_library(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    return level


def _codes(function: Any) -> Iterator[types.CodeType]:
    """Yield the code of a function, of those within it, and of functions of the user that they name."""
    for one in _functions(function):
        codes = [one.__code__]
        while codes:
            code = codes.pop()
            codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
            yield code


def _functions(function: Any) -> Iterator[Any]:
    """Yield a function, and those of the user that it names, methods as they are bound."""
    seen, waiting = [], [function]
    while waiting:
        one = inspect.unwrap(waiting.pop())
        if not hasattr(one, "__func__") and not inspect.isfunction(one):
            one = getattr(one, "__call__", None)  # noqa: B004
        code = getattr(one, "__code__", None)
        if code is None or one in seen or is_library(code.co_filename):
            continue
        seen.append(one)
        yield one
        waiting += [value for _, get in _names(one) if inspect.isroutine(value := get())]


def _names(function: Any) -> Iterator[tuple[str, Callable]]:
    """Yield the names that a function reads from outside, and what gets their values."""
    plain = getattr(function, "__func__", function)
    code, attributes = plain.__code__, _loaded(plain.__code__, "LOAD_ATTR", "LOAD_METHOD")
    found: list[tuple[str, Callable]] = []
    if plain is not function and code.co_varnames:
        found += _held_by(code.co_varnames[0], lambda: function.__self__, attributes)
    for name, cell in zip(code.co_freevars, plain.__closure__ or (), strict=True):
        if _filled(cell):
            found.append((name, lambda cell=cell: cell.cell_contents))
    held = plain.__globals__
    found += [(name, lambda name=name: held.get(name)) for name in _loaded(code, "LOAD_GLOBAL") if name in held]
    for name, get in found:
        yield name, get
        yield from _held_by(name, get, attributes)


def _held_by(name: str, get: Callable, attributes: set[str], depth: int = 2) -> Iterator[tuple[str, Callable]]:
    """Yield the attributes that may be read of an object or a module of the user's."""
    holder = get()
    kind = type(holder)
    module = holder if inspect.ismodule(holder) else sys.modules.get(kind.__module__)
    filename = getattr(module, "__file__", None)
    plain = kind is types.SimpleNamespace or kind.__module__ == "__main__"
    if not depth or not hasattr(holder, "__dict__") or isinstance(holder, type) or inspect.isroutine(holder):
        return
    if not plain and (filename is None or is_library(filename) or is_standard(filename)):
        return
    for attribute in sorted(attributes):
        if isinstance(inspect.getattr_static(holder, attribute, property()), property):  # or it is not there
            continue

        def value(attribute: str = attribute) -> Any:
            return getattr(get(), attribute, None)

        yield f"{name}.{attribute}", value
        yield from _held_by(f"{name}.{attribute}", value, attributes, depth - 1)


def _loaded(code: types.CodeType, *operations: str) -> set[str]:
    """Return the names that instructions load, those of functions within included."""
    found = {step.argval for step in dis.get_instructions(code) if step.opname in operations}
    return found.union(*[_loaded(constant, *operations) for constant in code.co_consts if inspect.iscode(constant)])


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


def is_standard(filename: str) -> bool:
    """True for files of Python's own library."""
    path = Path(filename)
    return path.is_relative_to(_STANDARD) and not {"site-packages", "dist-packages"} & set(path.parts)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
