"""A cost whose gradient was computed with it: `jax.grad` takes that gradient and leaves the computation alone."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def with_slope(value: Any, rest: Any, point: Any, slope: Any) -> tuple[Any, Any]:
    """Return value and rest, computed at a point; the derivative of value in the point is `slope`.

    That of the rest is not known: where it is asked for, the result is NaN.
    """
    return value, rest


def _forward(value: Any, rest: Any, point: Any, slope: Any) -> tuple[tuple[Any, Any], Any]:
    return (value, rest), slope


def _backward(slope: Any, g: tuple[Any, Any]) -> tuple[None, None, Any, None]:
    g_value, g_rest = g
    asked = [jnp.any(leaf != 0) for leaf in jax.tree.leaves(g_rest) if leaf.dtype != jax.dtypes.float0]
    factor = jnp.where(jnp.any(jnp.stack(asked)), jnp.nan, g_value) if asked else g_value
    return None, None, jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, slope), None


with_slope.defvjp(_forward, _backward)
