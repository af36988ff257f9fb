"""One text for two kinds of arrays: NumPy's, where a call on the host computes now; JAX's, where it traces.

A function that both kinds may enter asks one of its arrays for the `namespace`, and writes `xp.where` for `jnp.where`.
XLA then compiles nothing for what runs once, and small arrays do not pay for its calls.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def on_host(value: Any) -> bool:
    """True for NumPy's arrays and numbers."""
    return isinstance(value, np.ndarray | np.generic)


def namespace(value: Any) -> Any:
    """Return `numpy` for an array of NumPy, else `jax.numpy`."""
    return np if on_host(value) else jnp


def to_host(tree: Any) -> Any:
    """Return a pytree with NumPy arrays in the place of JAX's; on a CPU they share their memory."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def to_device(tree: Any) -> Any:
    """Return a pytree with JAX arrays in the place of NumPy's."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if on_host(leaf) else leaf, tree)


def constant(tree: Any, like: Any) -> Any:
    """Return a pytree, of arrays like this one, whose derivative is zero; on the host it has none anyway."""
    return tree if on_host(like) else jax.lax.stop_gradient(tree)


def either(condition: Any, yes: Callable, no: Callable, *operands: Any) -> Any:
    """Return `yes(*operands)` or `no(*operands)`: `jax.lax.cond`, and on the host an `if`."""
    if on_host(condition):
        return yes(*operands) if condition else no(*operands)
    return jax.lax.cond(condition, yes, no, *operands)


def repeat(going: Callable, body: Callable, carry: Any) -> Any:
    """Return carry <- body(carry) as long as going(carry): `jax.lax.while_loop`, and on the host a `while`."""
    if not on_host(jax.tree.leaves(carry)[0]):
        return jax.lax.while_loop(going, body, carry)
    while going(carry):
        carry = body(carry)
    return carry


def each(function: Callable, rows: Any) -> Any:
    """Return the function of each row, side by side: `jax.vmap`, and on the host one after the other."""
    return np.stack([function(row) for row in rows]) if on_host(rows) else jax.vmap(function)(rows)


def put(array: Any, index: Any, value: Any) -> Any:
    """Return the array with another value at an index."""
    if not on_host(array):
        return array.at[index].set(value)
    array = array.copy()
    array[index] = value
    return array


def compiled(*static: str) -> Callable:
    """Let XLA compile a function, static in arguments of these names; on the host, for arrays of NumPy, run it."""

    def wrap(function: Callable) -> Callable:
        made = jax.jit(function, static_argnames=static)

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            leaves = jax.tree.leaves((arguments, named))
            if any(isinstance(leaf, jax.Array) for leaf in leaves) or not any(map(on_host, leaves)):
                return made(*arguments, **named)
            with np.errstate(all="ignore"):
                return function(*arguments, **named)

        return call

    return wrap
