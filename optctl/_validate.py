"""Checks at the public boundary: which argument, expected, got, likely fix; before any work is done.

Values are looked at only when they are concrete: under `jit`, `vmap` or `grad` shapes are still checked,
numbers cannot be.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state


def is_concrete(value: Any) -> bool:
    """True if no leaf of `value` is being traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


_IDLE = get_opaque_trace_state(convention="flax")


def runs_now(value: Any) -> bool:
    """True if what is computed from `value` is a number at once: no leaf is traced, nor the call itself.

    Inside `jax.jit` even what is computed from constants, such as a problem that the function closes over, is recorded
    for later. Whoever needs its numbers (a clock, a callback, NumPy) asks this; who looks at given numbers asks
    `is_concrete`.
    """
    if not is_concrete(value):
        return False
    return get_opaque_trace_state(convention="flax") == _IDLE or is_concrete(jnp.zeros(()))


def cast(value: Any, dtype: Any) -> Any:
    """Return an array of a type; itself where it has that type, which saves a call of compiled code."""
    return value if value.dtype == dtype else value.astype(dtype)


def check_time_limit(value: Any) -> None:
    """Raise unless a time limit is None or a positive number of seconds."""
    if value is not None and (not isinstance(value, int | float | np.number) or not value > 0):
        raise ValueError(f"`time_limit` is {value!r}; expected seconds > 0, or None.")


def as_float(value: Any, name: str, shape: tuple[int | None, ...] | None = None, *, finite: bool = True) -> Any:
    """Return `value` as a floating array of the given shape (None matches any length).

    Lists of Python numbers become the default float type; arrays keep theirs.

    Raises:
        ValueError: for integer arrays, wrong shapes, NaN or inf (unless `finite=False`).
    """
    if value is None:
        raise ValueError(f"`{name}` is missing; expected an array{'' if shape is None else f' of shape {shape}'}.")
    if isinstance(value, np.floating):
        value = np.asarray(value)
    if not isinstance(value, jax.Array | np.ndarray):
        try:
            array = np.asarray if is_concrete(value) else jnp.asarray
            value = array(value, dtype=jnp.zeros(()).dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{name}` is not numeric: expected an array, got {type(value).__name__}.") from error
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


def is_whole(value: Any, least: int = 1) -> bool:
    """True for a whole number, at least `least`; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def as_whole(value: Any, name: str, of: str = "", least: int = 1) -> int:
    """Return a whole number (of what it counts) as an int, or raise ValueError where it is none or too small."""
    if not is_whole(value, least):
        many = f"whole number of {of}" if of else "whole number"
        expected = f"a positive {many}" if least == 1 else f"a {many}, at least {least}"
        raise ValueError(f"`{name}` is {value!r}; expected {expected}.")
    return int(value)


def check_shape(value: Any, name: str, shape: tuple[int | None, ...]) -> None:
    """Raise unless `value.shape` is `shape`, where None matches any length."""
    got = tuple(np.shape(value))
    if len(got) != len(shape) or any(want is not None and want != have for want, have in zip(shape, got, strict=True)):
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"`{name}` has shape {got}; expected {wanted}.")


def result_shape(function: Any, name: str, *arguments: Any) -> Any:
    """Return the shape and type of a user's function without running it.

    Raises:
        ValueError: if the function cannot be evaluated, with the shapes it was given and its own words.
    """
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        shapes = ", ".join(
            "None" if a is None else str(np.shape(a)) for a in arguments if not isinstance(a, dict | list)
        )
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "__array__" in reason or "TracerArrayConversionError" in type(error).__name__:
            reason = "it calls NumPy on traced arrays; use jax.numpy inside models and costs"
        missing = " Its `params` are None: pass params=..." if arguments[-1] is None and "None" in reason else ""
        raise ValueError(f"`{name}` fails on arguments of shapes {shapes}: {reason}.{missing}") from error


def check_scalar(function: Any, name: str, *arguments: Any, dtype: Any = None, hint: str = "") -> None:
    """Raise unless a user's function returns one floating number, of this type if given, without running it."""
    got = result_shape(function, name, *arguments)
    shape = getattr(got, "shape", type(got).__name__)
    if shape != ():
        raise ValueError(f"`{name}` returns shape {shape}; expected a scalar.{hint}")
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

    Raises:
        ValueError: if not symmetric, or with an eigenvalue below zero (`definite`: not above zero), with its size.
    """
    value = as_float(value, name)
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
    scale = np.maximum(np.abs(matrix).max(axis=(-1, -2), keepdims=True), 1e-300)
    single = value.dtype == np.float32
    skew = np.abs(matrix - np.swapaxes(matrix, -1, -2))
    if (skew > (1e-6 if single else 1e-9) * scale).any():
        raise ValueError(
            f"`{name}` is not symmetric: |{name} - {name}'| reaches {skew.max():.3g}. Use ({name} + {name}.T) / 2."
        )
    lowest = np.linalg.eigvalsh(matrix)[..., 0]
    worst = float(lowest.min())
    where = f" at stage {int(np.argmin(lowest))}" if matrix.ndim == 3 else ""
    if definite and worst <= 0:
        raise ValueError(
            f"`{name}` is not positive definite: its lowest eigenvalue{where} is {worst:.3g}; expected > 0."
        )
    if (lowest < -(1e-6 if single else 1e-12) * scale[..., 0, 0]).any():
        raise ValueError(
            f"`{name}` is not positive semidefinite: its lowest eigenvalue{where} is {worst:.3g}; expected >= 0."
        )
    return value
