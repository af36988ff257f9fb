"""What `jax.extend.core` hands out, without its import, which loads Pallas and takes a thirtieth of that of JAX."""

try:
    from jax._src.core import Literal, Primitive, get_opaque_trace_state
except ImportError:  # where another version of JAX keeps them elsewhere
    from jax.extend.core import Literal, Primitive, get_opaque_trace_state

__all__ = ["Literal", "Primitive", "get_opaque_trace_state"]
