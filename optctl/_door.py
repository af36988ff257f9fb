"""The host door: the one place that decides who computes a public call.

A call with numbers on a CPU goes from NumPy's arrays to the kernels and back: XLA compiles nothing, and the results are
NumPy's. What is traced (`jit`, `vmap`, `grad`), runs on an accelerator, or finds no kernels is JAX's, arrays and all.
The functions between have one text for both (`optctl/_arrays.py`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optctl import _native
from optctl._arrays import to_device, to_host
from optctl._validate import runs_now


def opens(given: Any) -> bool:
    """True if what is computed from these arrays is a number at once, and by kernels on a CPU."""
    return _native.available() and runs_now(given)


def enter(given: Any, *, natively: bool = True) -> Any:
    """Return a pytree with all arrays of one kind: NumPy's if the door opens and is asked to (`natively`), else JAX's."""
    if natively and opens(given):
        return given if all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(given)) else to_host(given)
    return to_device(given)


def numbers(tree: Any) -> Any:
    """Return a pytree with the numbers behind what `jax.grad` follows outside of `jit`; what else is traced stays so."""

    def behind(leaf: Any) -> Any:
        if not isinstance(leaf, jax.core.Tracer):
            return leaf
        value = jax.lax.stop_gradient(leaf)
        return value if isinstance(value, jax.Array) else np.asarray(value, leaf.dtype)

    return jax.tree.map(behind, tree)


def compiled(*static: str) -> Callable[[Callable], Callable]:
    """Make a function of arrays one that XLA compiles, and that runs as it is where all its arrays are NumPy's.

    Args:
        static: names of arguments that are no arrays.
    """

    def wrap(function: Callable) -> Callable:
        by_xla = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            if not _all_on_host((arguments, named)):
                return by_xla(*arguments, **named)
            with np.errstate(all="ignore"):
                return function(*arguments, **named)

        return run

    return wrap


def _all_on_host(arguments: Any) -> bool:
    return not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arguments))
