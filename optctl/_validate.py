"""Checks at the public boundary: which argument, expected, got, likely fix; before any work is done.

Values are looked at only when they are concrete: under `jit`, `vmap` or `grad` shapes are still checked,
numbers cannot be.
"""

import inspect
import re
import traceback
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._jaxpr import get_opaque_trace_state
from optctl._reads import fault_in, is_jax, user_line
from optctl._record import brief

MOST = 2**31 - 1
"""Greatest whole number that anything may count."""
LONGEST = 80
"""Most characters of a value in a message."""


def is_concrete(value: Any) -> bool:
    """True if no leaf of `value` is being traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


_ZERO = np.zeros(())
_IDLE = get_opaque_trace_state(convention="flax")


def runs_now(value: Any) -> bool:
    """True if what is computed from `value` is a number at once: no leaf is traced, nor the call itself.

    Inside `jax.jit` even what is computed from constants, such as a problem that the function closes over, is recorded
    for later. Whoever needs its numbers (a clock, a callback, NumPy) asks this; who looks at given numbers asks
    `is_concrete`.
    """
    if not is_concrete(value):
        return False
    return get_opaque_trace_state(convention="flax") == _IDLE or is_concrete(jax.device_put(_ZERO))


def default_float() -> Any:
    """Return the type of floating numbers that come without one: float64, or float32 where 64-bit mode is off."""
    return jax.dtypes.canonicalize_dtype(np.float64)


def cast(value: Any, dtype: Any) -> Any:
    """Return an array of a type; itself where it has that type, which saves a call of compiled code."""
    return value if value.dtype == dtype else value.astype(dtype)


def is_number(value: Any) -> bool:
    """True for one real number, also as an array without axes; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        return False
    if isinstance(value, jax.Array) and not isinstance(value.dtype, np.dtype):  # a random key
        return False
    return np.ndim(value) == 0 and not np.ma.is_masked(value) and np.asarray(value).dtype.kind in "fiu"


def shown(value: Any) -> str:
    """Return a value as a message shows it: numbers and words as they are, what is long by its type."""
    if np.ma.is_masked(value):
        return "masked"
    text = repr(value) if isinstance(value, bool | float | complex | str | None | list | tuple | dict) else ""
    if isinstance(value, int):
        text = repr(value) if abs(value) < 10**20 else "a number of more than 20 digits"
    if isinstance(value, np.number | np.ndarray | jax.Array) and not np.ndim(value):
        text = str(value)
    return text if 0 < len(text) <= LONGEST else f"of type {type(value).__name__}"


def check_kind(value: Any, kind: Any, name: str, expected: str) -> None:
    """Raise unless a value is of a class, or one of several."""
    if not isinstance(value, kind):
        raise ValueError(f"`{name}` is a {type(value).__name__}; expected {expected}.")


def check_function(value: Any, name: str, expected: str) -> None:
    """Raise unless a value is a function that takes as many arguments as the one expected, such as "plant(x, u, k)"."""
    if not callable(value):
        raise ValueError(f"`{name}` is a {type(value).__name__}; expected a function {expected}.")
    many = expected[expected.index("(") : expected.index(")")].count(",") + 1
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * many)
    except TypeError as error:
        raise ValueError(f"`{name}` takes other arguments: {error}; expected a function {expected}.") from error


def check_choice(value: Any, name: str, choices: Iterable) -> None:
    """Raise unless an option is one of a few values, of the same type."""
    alike = [one for one in choices if value is one or (isinstance(value, str) and value == one)]
    if not alike and not (is_number(value) and any(is_number(one) and value == one for one in choices)):
        raise ValueError(f"`{name}` is {shown(value)}; expected one of {', '.join(map(repr, choices))}.")


def check_flag(value: Any, name: str) -> None:
    """Raise unless an option is True or False."""
    if not isinstance(value, bool | np.bool):
        raise ValueError(f"`{name}` is {shown(value)}; expected True or False.")


def check_positive(value: Any, name: str, expected: str = "a positive number", *, zero: bool = False) -> None:
    """Raise unless a value is one finite number above 0, or (`zero`) at least 0; nothing is said of traced ones."""
    if not is_concrete(value):
        check_shape(value, name, ())
    elif not is_number(value) or not (value >= 0 if zero else value > 0) or not _is_finite(value):
        raise ValueError(f"`{name}` is {shown(value)}; expected {expected}.")


def _is_finite(value: Any) -> bool:
    """True for a number that is finite as a float, too."""
    try:
        return bool(np.isfinite(float(value)))
    except OverflowError:
        return False


def check_time_limit(value: Any) -> None:
    """Raise unless a time limit is None or a positive number of seconds."""
    if value is not None and not (is_number(value) and value == np.inf):
        check_positive(value, "time_limit", "seconds > 0, or None")


def as_seed(value: Any) -> int:
    """Return the seed of random numbers, a whole number >= 0."""
    return as_whole(value, "seed", least=0)


def as_float(value: Any, name: str, shape: tuple[int | None, ...] | None = None, *, finite: bool = True) -> Any:
    """Return `value` as a floating array of the given shape (None matches any length).

    Lists of Python numbers and whole numbers become the default float type; floating arrays keep theirs.

    Raises:
        ValueError: for what is no number (booleans included), wrong shapes, NaN or inf (unless `finite=False`).
    """
    if value is None:
        raise ValueError(f"`{name}` is missing; expected an array{'' if shape is None else f' of shape {shape}'}.")
    if isinstance(value, np.floating):
        value = np.asarray(value)
    if not isinstance(value, jax.Array) and type(value) is not np.ndarray:
        value = _numbers(value, name)
    if value.dtype.kind in "iu":
        value = value.astype(default_float())
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.dtype.itemsize >= 8:
        value = np.asarray(value, np.float64)  # also from long double and the other byte order
    if value.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) == np.float32:  # 64-bit mode is off
        value = np.asarray(value, np.float32)
    if value.dtype.kind != "f" and not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"`{name}` has dtype {value.dtype}; expected floating point. Write {name}=np.asarray({name}, float)."
        )
    if value.dtype not in (np.float32, np.float64):
        raise ValueError(f"`{name}` has dtype {value.dtype}; expected float32 or float64, which the solvers work in.")
    if shape is not None:
        check_shape(value, name, shape)
    if finite and not isinstance(value, jax.core.Tracer) and not np.isfinite(np.asarray(value)).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(np.asarray(value)))[0])
        raise ValueError(f"`{name}` holds NaN or inf, first at index {first}; expected finite numbers.")
    return value


def _numbers(value: Any, name: str) -> Any:
    """Return an array of what is none yet: a number, a list of numbers, another library's array.

    Lists may hold arrays, also traced ones; what is no real number in them is refused, however NumPy would read it.
    """
    if np.ma.isMaskedArray(value):
        if np.ma.is_masked(value):
            raise ValueError(f"`{name}` has masked entries; expected numbers. Write {name}.filled(...) with a number.")
        return np.asarray(value)
    if isinstance(value, np.ndarray):  # a matrix, or another kind of array
        return np.asarray(value)
    leaves = jax.tree.leaves(value)
    odd = next((leaf for leaf in leaves if isinstance(leaf, bool | np.bool | str | bytes)), None)
    if odd is not None or np.ma.is_masked(value):
        what = f"it is {value!r}" if odd is value else f"it holds {odd!r}"
        raise ValueError(f"`{name}` is not numeric: {what}; expected a number, or an array of numbers.")
    try:
        array = np.asarray if is_concrete(value) else jnp.asarray
        if array is np.asarray and (kind := np.asarray(value).dtype.kind) not in "fiucO":
            raise TypeError(f"an array of kind {kind}")
        return array(value, dtype=default_float())
    except OverflowError as error:
        raise ValueError(f"`{name}` is too large for a number of type float; expected less than 1e308.") from error
    except (TypeError, ValueError) as error:
        dense = f" Write {name}.toarray()." if hasattr(value, "toarray") else ""
        reason = f": {error}" if "inhomogeneous" in str(error) else "."
        got = type(value).__name__
        raise ValueError(f"`{name}` is not numeric: expected an array, got {got}{reason}{dense}") from error


def is_whole(value: Any, least: int = 1) -> bool:
    """True for a whole number, 20.0 and arrays without axes included, at least `least`; True and False are none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value >= least
    return is_concrete(value) and is_number(value) and float(value).is_integer() and bool(value >= least)


def keep_whole(made: Any, name: str, of: str = "", least: int = 1, *, optional: bool = False) -> None:
    """Set a field of a frozen record to the int that it stands for (`optional`: or None), or raise ValueError."""
    value = getattr(made, name)
    if value is not None or not optional:
        object.__setattr__(made, name, as_whole(value, name, of, least))


def as_whole(value: Any, name: str, of: str = "", least: int = 1) -> int:
    """Return a whole number (of what it counts) as an int, or raise ValueError where it is none or too small."""
    if not is_whole(value, least):
        many = f"whole number of {of}" if of else "whole number"
        expected = f"a positive {many}" if least == 1 else f"a {many}, at least {least}"
        raise ValueError(f"`{name}` is {shown(value)}; expected {expected}.")
    if value > MOST:
        raise ValueError(f"`{name}` is {shown(value)}; expected at most {MOST}.")
    return int(value)


def shape_in_words(shape: tuple[int | None, ...]) -> str:
    """Return a shape for a message, such as "(3, 2)" or "2 rows and any number of columns"; None is any length."""
    if shape == ():
        return "a number"
    if None not in shape:
        return str(shape)
    if len(shape) == 1:
        return "a vector"
    if len(shape) > 2:
        return f"({', '.join('any number' if n is None else str(n) for n in shape)})"
    if shape == (None, None):
        return "a matrix"
    counts = zip(shape, ("row", "column"), strict=True)
    return " and ".join(f"any number of {what}s" if n is None else f"{n} {what}{'s' * (n != 1)}" for n, what in counts)


def check_shape(value: Any, name: str, shape: tuple[int | None, ...]) -> None:
    """Raise unless `value.shape` is `shape`, where None matches any length."""
    got = tuple(np.shape(value))
    if len(got) != len(shape) or any(want is not None and want != have for want, have in zip(shape, got, strict=True)):
        raise ValueError(f"`{name}` has shape {got}; expected {shape_in_words(shape)}.")


class TracedError(ValueError):
    """A user's function asked a traced array for its numbers; the message names the function and says what to write."""


NEEDS_NUMBERS = {
    jax.errors.TracerBoolConversionError: "decides by the value of an array (`if`, `while`, `and`, `not`, `max(a, b)`);"
    " write jnp.where(condition, a, b), jnp.maximum or jnp.logical_and (of np in a function without jnp)",
    jax.errors.TracerArrayConversionError: "hands an array to NumPy, beside functions of"
    " JAX; write jnp.sin for np.sin, jnp.array for np.array, jnp.asarray(table)[t] for table[t]",
    jax.errors.TracerIntegerConversionError: "counts or indexes a Python object by an array, such as range(t) or"
    " table[t]; write jax.lax.fori_loop, or jnp.asarray(table)[t]",
    jax.errors.NonConcreteBooleanIndexError: "picks entries by a mask, x[mask]; write jnp.where(mask, x, 0)",
    jax.errors.ConcretizationTypeError: "asks an array for its number, as float(x), int(x) or math.sin(x) do; keep the"
    " array, write x.astype(int) for int(x), jnp.sin for math.sin, jnp.where for `if`",
}
"""What JAX raises where a function needs numbers that are not there yet, and what it should do instead."""


def explained(error: Exception, name: str) -> TracedError:
    """Return an error of `NEEDS_NUMBERS` in the words of the user's function, with its line."""
    words = next(words for kind, words in NEEDS_NUMBERS.items() if isinstance(error, kind))
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    line = user_line([(frame.filename, frame.lineno or 0) for frame in frames])
    return TracedError(f"`{name}` {words}. It is traced once, for all stages and points{line}.")


def through_jax(error: BaseException) -> bool:
    """True if an error passed through JAX's own code."""
    return any(is_jax(frame.filename) for frame in traceback.extract_tb(error.__traceback__))


def result_shape(function: Any, name: str, *arguments: Any) -> Any:
    """Return the shape and type of a user's function without running it.

    A stage among the arguments, a NumPy integer, is the last one: entries are looked for at the first and at the last.

    Raises:
        ValueError: if the function cannot be evaluated, with the shapes it was given and its own words; or if it takes
            an entry beyond the end of an array.
    """
    try:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    except TracedError:
        raise
    except tuple(NEEDS_NUMBERS) as error:
        raise explained(error, name) from error
    except Exception as error:
        single = [a for a in arguments if a is None or hasattr(a, "shape") or is_number(a)]
        shapes = ", ".join("None" if a is None else str(np.shape(a)) for a in single)
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        reason = f"there is no key {reason}" if isinstance(error, KeyError) else reason
        kind = re.search(r"returned a value of type <class '([^']*)'>", reason)
        if kind:
            raise ValueError(f"`{name}` returns a {kind.group(1)}; expected arrays of numbers.") from error
        held = jax.tree.leaves(arguments[-1], is_leaf=lambda leaf: leaf is None)
        none = "None" in reason and any(leaf is None for leaf in held)
        params = " Its `params` are None: pass params=..." if none else ""
        takes = getattr(function, "takes", lambda argument: len(arguments) > 3)
        of_params = isinstance(error, KeyError | IndexError | TypeError | AttributeError) and held and not none
        if of_params and takes("params"):
            params = f" Its last argument, `params`, is {brief(arguments[-1])}."
        raise ValueError(f"`{name}` fails on arguments of shapes {shapes}: {reason}.{params}") from error
    _check_reads(closed, name, arguments)
    return shape


def _check_reads(closed: Any, name: str, arguments: Any) -> None:
    """Raise if a function takes an entry beyond the end of an array, at the first stage or the last."""
    leaves = jax.tree.leaves(arguments)
    stage = [isinstance(leaf, np.ndarray) and leaf.shape == () and leaf.dtype.kind == "i" for leaf in leaves]
    last = max((int(leaf) for leaf, is_stage in zip(leaves, stage, strict=True) if is_stage), default=0)
    for t in sorted({0, last}):
        fault = fault_in(closed, [t if is_stage else None for is_stage in stage])
        if fault is not None:
            at = f" at stage {t}" if t else ""
            instead = "takes the nearest one" if fault.verb == "takes" else "writes nothing"
            clip = "jnp.clip" if fault.silent else "np.clip"
            meant = f"; if the nearest one is meant, write {clip}" if t and fault.verb == "takes" else ""
            silently = f", where JAX {instead} without a word" if fault.silent else ""
            raise TracedError(
                f"`{name}` {fault.verb} entry {fault.at}{at} of an axis of {fault.size}{silently}; expected one from"
                f" {-fault.size} to {fault.size - 1}{meant}{fault.line}."
            )


def returned(got: Any) -> str:
    """Return what a function returned as a message tells it: its shape, or of which type it is where it has none."""
    if got is None:
        return "None (is a `return` missing?)"
    return f"shape {got.shape}" if hasattr(got, "shape") else f"a {type(got).__name__}"


def check_scalar(function: Any, name: str, *arguments: Any, dtype: Any = None, hint: str = "") -> None:
    """Raise unless a user's function returns one floating number, of this type if given, without running it."""
    got = result_shape(function, name, *arguments)
    if getattr(got, "shape", None) != ():
        raise ValueError(f"`{name}` returns {returned(got)}; expected a scalar.{hint}")
    if not jnp.issubdtype(got.dtype, jnp.floating) or (dtype is not None and got.dtype != dtype):
        expected = "floating point" if dtype is None else f"a {dtype} number"
        raise ValueError(f"`{name}` returns {got.dtype}; expected {expected}.")


def check_like(value: Any, name: str, other: Any) -> None:
    """Raise unless `value` has the shape of `other`, array by array."""
    for got, want in zip(jax.tree.leaves(value), jax.tree.leaves(other), strict=True):
        check_shape(got, name, np.shape(want))


def check_tree(value: Any, name: str) -> Any:
    """Check that every leaf of a pytree is a finite floating array; Python numbers become arrays."""

    def leaf(path: tuple, item: Any) -> Any:
        return as_float(item, name + jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(leaf, value)


def as_weight(
    value: Any, name: str, shape: tuple[int | None, ...], *, definite: bool = False, stages: bool = True
) -> Any:
    """Return a symmetric positive (semi)definite matrix, or (`stages`) a stack of them along a leading axis.

    One number stands for that multiple of the identity, a vector for a diagonal; where `shape` does not tell the size,
    the number is returned.

    Raises:
        ValueError: if not symmetric, or with an eigenvalue below zero (`definite`: not above zero), with its size.
    """
    value = _spread(as_float(value, name), shape)
    if value.ndim == 0:
        if is_concrete(value) and not (value > 0 if definite else value >= 0):
            raise ValueError(f"`{name}` is {value}; expected a number {'> 0' if definite else '>= 0'}, or a matrix.")
        return value
    if stages and value.ndim not in (len(shape), len(shape) + 1):
        wanted = ", ".join("n" if n is None else str(n) for n in shape)
        raise ValueError(f"`{name}` has shape {value.shape}; expected ({wanted}), or with a leading axis of stages.")
    if stages and value.ndim != len(shape):
        shape = (None, *shape)
    check_shape(value, name, shape)
    check_shape(value, name, (*shape[:-1], value.shape[-2]))
    if not is_concrete(value) or 0 in value.shape:
        return value
    matrix = np.asarray(value, dtype=float)
    scale = _check_symmetric(matrix, name, value.dtype)
    single = value.dtype == np.float32
    lowest = np.linalg.eigvalsh(matrix)[..., 0]
    worst = float(lowest.min())
    where = f" at stage {int(np.argmin(lowest))}" if matrix.ndim == 3 else ""
    if definite and worst <= 0:
        raise ValueError(
            f"`{name}` is not positive definite: its lowest eigenvalue{where} is {worst:.3g}; expected > 0."
        )
    if (lowest < -(1e-6 if single else 1e-12) * scale).any():
        raise ValueError(
            f"`{name}` is not positive semidefinite: its lowest eigenvalue{where} is {worst:.3g}; expected >= 0."
        )
    return value


def _spread(value: Any, shape: tuple[int | None, ...]) -> Any:
    """Return the matrix that a number or a vector stands for: a multiple of the identity, a diagonal."""
    size = next((n for n in (*shape, *value.shape) if n is not None), None)
    if value.ndim >= 2 or size is None:
        return value
    return value[..., None] * np.eye(size if value.ndim == 0 else len(value), dtype=value.dtype)


def as_symmetric(value: Any, name: str, shape: tuple[int, int]) -> Any:
    """Return a symmetric matrix of the given shape, which need not be definite; a number or a vector as in `as_weight`.

    Raises:
        ValueError: for another shape, NaN, or a matrix that is not symmetric.
    """
    value = _spread(as_float(value, name), shape)
    check_shape(value, name, shape)
    if is_concrete(value) and 0 not in value.shape:
        _check_symmetric(np.asarray(value, dtype=float), name, value.dtype)
    return value


def _check_symmetric(matrix: np.ndarray, name: str, dtype: Any) -> Any:
    """Raise unless a matrix, or each of a stack, is symmetric; return the size of its largest entry."""
    scale = np.maximum(np.abs(matrix).max(axis=(-1, -2)), 1e-300)
    skew = np.abs(matrix - np.swapaxes(matrix, -1, -2))
    if (skew > (1e-6 if dtype == np.float32 else 1e-9) * scale[..., None, None]).any():
        raise ValueError(
            f"`{name}` is not symmetric: |{name} - {name}'| reaches {skew.max():.3g}. Use ({name} + {name}.T) / 2."
        )
    return scale
