"""The host door: the one place that decides who computes a public call.

A call with numbers on a CPU goes from NumPy's arrays to the kernels and back: XLA compiles nothing, and the results are
NumPy's. What is traced (`jit`, `vmap`, `grad`), runs on an accelerator, or finds no kernels is JAX's, arrays and all.
The functions between have one text for both (`optctl/_arrays.py`).
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.interpreters.ad import JVPTracer

from optctl import _native
from optctl._arrays import as_device, kept, to_device, to_host
from optctl._validate import runs_now

PLAIN = frozenset((np.ndarray, np.float64, np.float32, np.int32))
"""Types of what NumPy computes with; JAX has arrays that derive from these."""


def opens(given: Any) -> bool:
    """True if what is computed from these arrays is a number at once, and by kernels on a CPU."""
    return _native.available() and runs_now(given)


def enter(given: Any, *, natively: bool = True) -> Any:
    """Return a pytree with all arrays of one kind: NumPy's if the door opens and is to (`natively`), else JAX's."""
    leaves = jax.tree.leaves(given)
    if all([type(leaf) in PLAIN for leaf in leaves]):
        return given if natively and opens(()) else to_device(given)
    return to_host(given) if natively and opens(leaves) else to_device(given)


def hold(fields: dict[str, Any], dtype: Any = None) -> dict[str, Any]:
    """Return arrays as a record holds them, perhaps of one type: NumPy's if all are and the door opens, else JAX's.

    Nobody can write to NumPy's: they are copies where somebody could. A field that is None stays so.
    """
    given = [value for value in fields.values() if value is not None]
    keep = kept if all(isinstance(value, np.ndarray) for value in given) and opens(given) else as_device
    return {n: None if v is None else keep(v, v.dtype if dtype is None else dtype) for n, v in fields.items()}


def numbers(tree: Any) -> Any:
    """Return a pytree with the numbers behind what `jax.grad` follows outside of `jit`; all else stays as it is."""

    def behind(leaf: Any) -> Any:
        if not isinstance(leaf, jax.core.Tracer):
            return leaf
        value = jax.lax.stop_gradient(leaf)
        return value if isinstance(value, jax.Array) else np.asarray(value, leaf.dtype)

    return jax.tree.map(behind, tree)


def followed(tree: Any) -> bool:
    """True if `jax.grad` follows leaves of a pytree, once and outside of all else: behind its tracers are numbers."""
    tracers = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.core.Tracer)]
    if not tracers or any([isinstance(leaf, JVPTracer) for leaf in tracers]):
        return False
    return not any([isinstance(getattr(leaf, "primal", leaf), jax.core.Tracer) for leaf in tracers])


EVALUATORS = {"dynamics": "optctl.engine.verbs"}
"""Who evaluates a room's calls by compiled code: a module of a room above, which is loaded when it is first asked."""


def evaluated(room: str, verb: str, *arguments: Any) -> Any:
    """Return what compiled code makes of a call; None where the definition is to do it."""
    if not opens(arguments):
        return None
    return importlib.import_module(EVALUATORS[room]).evaluate(verb, *arguments)


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

        run.by_xla = by_xla  # type: ignore[attr-defined]
        return run

    return wrap


def _all_on_host(arguments: Any) -> bool:
    return not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arguments))
