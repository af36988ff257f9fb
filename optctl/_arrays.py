"""One text for two kinds of arrays: NumPy's, where a call on the host computes now; JAX's, where it traces.

A function that both kinds may enter asks one of its arrays for the `namespace`, and writes `xp.where` for `jnp.where`.
XLA then compiles nothing for what runs once, and small arrays do not pay for its calls.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HOST = (np.ndarray, np.generic)
ARRAYS = (np.ndarray, jax.Array)


def on_host(value: Any) -> bool:
    """True for NumPy's arrays and numbers."""
    return isinstance(value, HOST)


def namespace(value: Any) -> Any:
    """Return `numpy` for an array of NumPy, else `jax.numpy`."""
    return np if on_host(value) else jnp


def to_host(tree: Any) -> Any:
    """Return a pytree with NumPy arrays in the place of JAX's; on a CPU they share their memory."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, ARRAYS) else leaf, tree)


def own(tree: Any) -> Any:
    """Return a pytree with copies of NumPy's arrays: what somebody writes into the one does not change the other."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, tree)


def to_device(tree: Any) -> Any:
    """Return a pytree with JAX arrays in the place of NumPy's."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf) if on_host(leaf) else leaf, tree)


def kept(value: Any, dtype: Any) -> np.ndarray:
    """Return an array for a record of NumPy's: nobody can write to it, and it is a copy where somebody could."""
    value = np.array(value, dtype, copy=True if isinstance(value, np.ndarray) and value.flags.writeable else None)
    value.setflags(write=False)
    return value


def as_device(value: Any, dtype: Any) -> Any:
    """Return an array of JAX's; of NumPy's arrays it is made without a program of XLA's."""
    if on_host(value):
        return jax.device_put(np.asarray(value, dtype))
    return value if value.dtype == dtype else value.astype(dtype)


def constant(tree: Any, like: Any) -> Any:
    """Return a pytree, of arrays like this one, whose derivative is zero; on the host it has none anyway."""
    return tree if on_host(like) else jax.lax.stop_gradient(tree)


def while_loop(condition: Callable, body: Callable, start: Any) -> Any:
    """Repeat `body` while `condition` holds: `jax.lax.while_loop`, and on the host a `while`."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(start)):
        return jax.lax.while_loop(condition, body, start)
    state = start
    while condition(state):
        state = body(state)
    return state


def solve(matrix: Any, right: Any) -> Any:
    """Solve a linear system; where the matrix is singular, there is no number in the solution."""
    if not on_host(matrix):
        return jnp.linalg.solve(matrix, right)
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return np.full_like(right, np.nan)


def eigenvalues(matrix: Any, *, symmetric: bool = False) -> Any:
    """Return the eigenvalues of a matrix; where they are not found, as of NaN, there are no numbers among them."""
    xp = namespace(matrix)
    try:
        return (xp.linalg.eigvalsh if symmetric else xp.linalg.eigvals)(matrix)
    except np.linalg.LinAlgError:
        return np.full(len(matrix), np.nan)


def eigh(matrix: Any) -> tuple[Any, Any]:
    """Return eigenvalues and eigenvectors of a symmetric matrix; where they are not found, NaN."""
    xp = namespace(matrix)
    try:
        return xp.linalg.eigh(matrix)
    except np.linalg.LinAlgError:
        return np.full(len(matrix), np.nan), np.full_like(matrix, np.nan)


def spectral_norm(matrix: Any) -> Any:
    """Return the largest singular value; where it is not found, as of NaN, NaN."""
    try:
        return namespace(matrix).linalg.norm(matrix, ord=2)
    except np.linalg.LinAlgError:
        return np.array(np.nan)


def scan(body: Callable, start: Any, rows: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """Carry a value through rows, and stack what comes beside it: `jax.lax.scan`, and on the host a `for`."""
    columns = jax.tree.leaves(rows)
    if not all([on_host(column) for column in columns]):
        return jax.lax.scan(body, start, rows, reverse=reverse)
    carry, made, order = start, [], range(len(columns[0]))[:: -1 if reverse else 1]
    for t in order:
        carry, result = body(carry, jax.tree.map(lambda column, t=t: column[t], rows))
        made.append(result)
    return carry, np.stack(made[:: -1 if reverse else 1])


def ravel(tree: Any) -> Any:
    """Return all numbers of a pytree side by side."""
    leaves = jax.tree.leaves(tree)
    xp = np if all([on_host(leaf) for leaf in leaves]) else jnp
    return xp.concatenate([xp.ravel(leaf) for leaf in leaves] or [xp.zeros(0)])


def size_of(tree: Any) -> int:
    """Return how many numbers a pytree holds."""
    return sum([np.size(leaf) for leaf in jax.tree.leaves(tree)])


def unravel(numbers: Any, like: Any) -> Any:
    """Return numbers as a pytree like another one, of which only shapes and types count."""
    leaves, structure = jax.tree.flatten(like)
    made, begin = [], 0
    for leaf in leaves:
        made.append(numbers[begin : begin + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        begin += leaf.size
    return jax.tree.unflatten(structure, made)


def either(condition: Any, yes: Callable, no: Callable, *operands: Any) -> Any:
    """Return `yes(*operands)` or `no(*operands)`: `jax.lax.cond`, and on the host an `if`."""
    if on_host(condition):
        return yes(*operands) if condition else no(*operands)
    return jax.lax.cond(condition, yes, no, *operands)


def do_while(condition: Callable, body: Callable, start: Any) -> Any:
    """Run `body` at least once, and while `condition` holds; parts of `start` that are None are made by it."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(start)):
        made = jax.eval_shape(body, start)
        blank = tuple([jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), part) for part in made])
        first = tuple([b if part is None else part for part, b in zip(start, blank, strict=True)])
        return jax.lax.while_loop(condition, body, first)
    state = body(start)
    while condition(state):
        state = body(state)
    return state


def keep(condition: Any, new: Any, old: Any) -> Any:
    """Return the new pytree where the condition holds, else the old one."""
    if on_host(condition):
        return new if condition else old
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


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
