"""A loss of states at given times and of events' times, with its slopes: on a tape, or where none holds it, by JAX."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optctl import _native
from optctl._arrays import to_host
from optctl.continuous.functions import Function
from optctl.dynamics.stage import StageFunction
from optctl.engine.graphs import known_or_made
from optctl.problem import signature
from optctl.tape import Unsupported, memories_now

REMEMBERED = 64
_LOSSES: dict[Any, Any] = {}


def loss_by_tape(loss: StageFunction, zs: np.ndarray, times: Any) -> tuple[Any, np.ndarray, Any] | None:
    """Return the loss, its slope in the states and in the events' times; None where no tape holds it."""
    leaves, structure = jax.tree.flatten(times)
    flat = zs.reshape(-1), np.concatenate([np.zeros(0), *leaves])
    key = signature((loss, zs, times))
    try:
        function = known_or_made(_LOSSES, key, lambda: _function(loss, zs.shape, times), REMEMBERED)
        at = flat[0], np.where(np.isfinite(flat[1]), flat[1], 1.0)
        if function.captured or not function.judged("slopes", at, loss):
            return None
    except Unsupported:
        return None
    tape = function.tape("slopes")
    memory, _ = memories_now((tape,), jax.tree.leaves(loss))
    made = _native.run_tape(tape.alone, memory, np.concatenate(flat)[None], tape.outputs.size)[0]
    ends = np.cumsum([1, zs.size, *[leaf.size for leaf in leaves]])
    value, gzs, *gtimes = np.split(made, ends[:-1])
    return value[0], gzs.reshape(zs.shape), jax.tree.unflatten(structure, gtimes)


def _function(loss: StageFunction, shape: tuple[int, ...], times: Any) -> Function:
    sizes = [leaf.size for leaf in jax.tree.leaves(times)]
    structure = jax.tree.structure(times)

    def value(zs: Any, times: Any, loss: Callable) -> Any:
        parts = [times[sum(sizes[:k]) : sum(sizes[: k + 1])] for k in range(len(sizes))]
        return jax.numpy.asarray(loss(zs.reshape(shape), jax.tree.unflatten(structure, parts))).reshape(1)

    return Function(value, (math.prod(shape), sum(sizes)), loss, ())


def loss_by_jax(loss: StageFunction, zs: np.ndarray, times: Any) -> tuple[Any, np.ndarray, Any]:
    """Return the same by XLA."""
    value, (gzs, gtimes) = _value_and_slopes(loss, zs, times)
    return to_host((value, gzs, gtimes))


@jax.jit
def _value_and_slopes(loss: StageFunction, zs: Any, times: Any) -> Any:
    return jax.value_and_grad(lambda zs, times: jax.numpy.asarray(loss(zs, times)), (0, 1))(zs, times)
