"""What NumPy's protocols do not reach: `np.zeros`, `np.array`, `math.sin`, and tables that are indexed by t.

A function is traced by calling a copy of it, in which a few names mean something else: the modules `numpy` and `math`,
their functions, and the user's own functions, copied likewise. The user's function is never changed, and neither is any
module: other code, and other threads, see nothing of it.
"""

import builtins
import functools
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optctl._code import is_standard
from optctl._reads import is_library
from optctl.tape.plain.arrays import FLOAT, WHOLE, Array, as_array, cast, known, within
from optctl.tape.unroll import Unroller

MADE: dict[Any, Callable] = {}
"""Functions that make arrays, those of `math`, `max` and `min` -> rule(unroller, *arguments)."""
OBJECTS: dict[Any, Callable] = {}
"""Other objects and classes -> what makes one in their place, of an unroller."""
HELD = 1000
"""Most entries of a list or the like in which tables and functions are looked for."""


class Namespace:
    """A module in which some functions are others."""

    def __init__(self, un: Unroller, module: types.ModuleType, memo: dict[int, Any]) -> None:
        self._un, self._module, self._memo = un, module, memo

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        whole = isinstance(value, types.ModuleType) or not _of_numpy(self._module)
        made = _other(self._un, value, self._memo, library=False) if whole else _replaced(self._un, value)
        setattr(self, name, made)
        return made


class Table(np.ndarray):
    """An array of numbers that may be indexed by what is not known yet."""

    un: Unroller

    def __array_finalize__(self, of: Any) -> None:
        self.un = getattr(of, "un", None)  # type: ignore[assignment]

    def __getitem__(self, key: Any) -> Any:
        parts = key if isinstance(key, tuple) else (key,)
        if not any(isinstance(part, Array) and known(part) is None for part in parts):
            return super().__getitem__(key)
        first, *rest = parts
        plain = np.asarray(self)
        by_row = isinstance(first, Array) and first.ndim == 0 and first.dtype == WHOLE and plain.dtype.kind in "fiu"
        if by_row and not any(isinstance(part, Array) for part in rest):
            return look_up(self.un, plain[(slice(None), *rest)], first)
        return as_array(self.un, plain)[key]


def look_up(un: Unroller, table: np.ndarray, index: Array) -> Array:
    """Return row `index` of a table of numbers, which lies in memory as it is."""
    addresses, at = un.g.table(table), within(un, index, len(table))
    step = int(addresses.flat[addresses[0].size] - addresses.flat[0]) if len(table) > 1 else 1
    nodes = [un.g.lookup(at, base, step) for base in addresses[0].ravel().tolist()]
    return Array(un, np.array(nodes, np.intp).reshape(table.shape[1:]), FLOAT if table.dtype.kind == "f" else WHOLE)


def _of_numpy(module: types.ModuleType) -> bool:
    return module is math or module.__name__.split(".")[0] == "numpy"


def _of_user(module: types.ModuleType) -> bool:
    filename = getattr(module, "__file__", None)
    return filename is not None and not is_library(filename) and not is_standard(filename)


def _replaced(un: Unroller, value: Any) -> Any:
    try:
        rule, made = MADE.get(value), OBJECTS.get(value)
    except TypeError:  # it has no hash
        return value
    return made(un) if made else functools.partial(rule, un) if rule else value


def _number(of: type) -> Callable:
    """Return what makes `float` or `int` of expressions, which they stay."""

    class Kind(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, of)

        def __call__(cls, *args: Any) -> Any:
            if args and isinstance(args[0], Array):
                return cast(args[0].un, args[0].reshape(()), of)
            return of(*args)

    return lambda un: Kind(of.__name__, (), {"dtype": np.dtype(of)})


OBJECTS.update({float: _number(float), int: _number(int)})


def copied(un: Unroller, function: Any) -> Any:
    """Return a function, a method or another object that can be called, with other names."""
    return _other(un, function, {}, library=False)


def opened(un: Unroller, function: Callable) -> Callable | None:
    """Return a function of NumPy's that is written in Python, to be called with Arrays; None if it is not."""
    inner = getattr(function, "_implementation", function)
    return _function(un, inner, {}, library=True) if isinstance(inner, types.FunctionType) else None


def _other(un: Unroller, value: Any, memo: dict[int, Any], *, library: bool) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, types.ModuleType):
        if not _of_numpy(value) and (library or not _of_user(value)):
            return value
        memo[id(value)] = space = Namespace(un, value, memo)
        return space
    if isinstance(value, types.FunctionType):
        if value in MADE:
            return _replaced(un, value)
        filename = value.__code__.co_filename
        own = is_library(filename) if library else not (is_library(filename) or is_standard(filename))
        return _function(un, value, memo, library=library) if own else value
    if isinstance(value, types.MethodType):
        function, of = (_other(un, part, memo, library=library) for part in (value.__func__, value.__self__))
        return types.MethodType(function, of)
    if isinstance(value, functools.partial):
        return functools.partial(_other(un, value.func, memo, library=library), *value.args, **value.keywords)
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and isinstance(value.dtype, np.dtype):
        value = np.asarray(value)
    if type(value) is np.ndarray and value.dtype.kind in "fiu" and value.ndim:
        table = value.view(Table)
        table.un = un
        return table
    if type(value) in (list, tuple, dict) and len(value) <= HELD and not library:
        if isinstance(value, dict):
            return {key: _other(un, part, memo, library=False) for key, part in value.items()}
        return type(value)([_other(un, part, memo, library=False) for part in value])
    if not library and isinstance(value, type) and _is_own(value):
        return _class(un, value, memo)
    if not library and _is_own(type(value)):
        return _object(un, value, memo)
    return _replaced(un, value)


def _is_own(kind: type) -> bool:
    """True for classes of the user's, whose objects keep their attributes in a dictionary."""
    if kind is types.SimpleNamespace:
        return True
    if kind.__module__ in ("builtins", "") or issubclass(kind, type | np.ndarray | tuple | list | dict):
        return False
    code = next((f.__code__ for f in vars(kind).values() if isinstance(f, types.FunctionType)), None)
    filename = getattr(code, "co_filename", getattr(sys.modules.get(kind.__module__), "__file__", None))
    own = filename is not None and not is_library(filename) and not is_standard(filename)
    return own and isinstance(kind.__dictoffset__, int) and kind.__dictoffset__ != 0


def _object(un: Unroller, value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of an object, with the same class but for the names in its methods."""
    kind = type(value)
    if kind is types.SimpleNamespace:
        memo[id(value)] = made = types.SimpleNamespace()
    else:
        memo[id(value)] = made = object.__new__(_class(un, kind, memo))
    vars(made).update({name: _other(un, part, memo, library=False) for name, part in vars(value).items()})
    return made


def _class(un: Unroller, kind: type, memo: dict[int, Any]) -> type:
    """Return a class that differs from one of the user's in the names in its methods, and in those of its parents."""
    if id(kind) in memo:
        return memo[id(kind)]
    methods: dict[str, Any] = {}
    parents = [_class(un, parent, memo) for parent in kind.__bases__ if _is_own(parent)]
    try:
        made = type(kind)(kind.__name__, (kind, *parents), {"__module__": kind.__module__})
    except TypeError:  # a class that is not to be inherited from
        memo[id(kind)] = kind
        return kind
    memo[id(kind)] = made
    for name, of in vars(kind).items():
        if isinstance(of, types.FunctionType) and name not in ("__new__", "__getattr__"):
            methods[name] = _other(un, of, memo, library=False)
        elif isinstance(of, property) and isinstance(of.fget, types.FunctionType):
            methods[name] = property(_other(un, of.fget, memo, library=False))
        elif isinstance(of, staticmethod | classmethod):
            methods[name] = type(of)(_other(un, of.__func__, memo, library=False))
        elif type(of) is np.ndarray:
            methods[name] = _other(un, of, memo, library=False)
    for name, method in methods.items():
        type.__setattr__(made, name, method)
    return made


def _function(un: Unroller, function: types.FunctionType, memo: dict[int, Any], *, library: bool) -> Callable:
    names = _names(function.__code__)
    others = dict(function.__globals__)
    if not library:
        others["__builtins__"] = vars(builtins) | {"__import__": functools.partial(_imported, un, memo)}
    made = types.FunctionType(function.__code__, others, function.__name__, function.__defaults__, function.__closure__)
    memo[id(function)] = made
    for name in names:
        if name in others:
            others[name] = _other(un, others[name], memo, library=library)
        elif not library and hasattr(builtins, name):
            others[name] = _replaced(un, getattr(builtins, name))
    cells = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:  # `super()` goes on behind the class where a method stands
            cells.append(
                cell if name == "__class__" else types.CellType(_other(un, cell.cell_contents, memo, library=library))
            )
        except ValueError:  # empty as yet
            cells.append(cell)
    defaults = tuple(_other(un, value, memo, library=library) for value in function.__defaults__ or ())
    if cells or defaults:
        final = types.FunctionType(
            function.__code__, others, function.__name__, defaults or None, tuple(cells) if cells else None
        )
        memo[id(function)] = made = final
    made.__dict__.update(function.__dict__)
    keywords = function.__kwdefaults__ or {}
    made.__kwdefaults__ = {name: _other(un, value, memo, library=library) for name, value in keywords.items()}
    return made


def _imported(un: Unroller, memo: dict[int, Any], name: str, *rest: Any) -> Any:
    """Return the module that an `import` within a function asks for."""
    return _other(un, builtins.__import__(name, *rest), memo, library=False)


def _names(code: types.CodeType) -> set[str]:
    """Return the names that a function and those within it may look up among the globals."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found
