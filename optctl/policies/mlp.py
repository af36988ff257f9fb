"""A multilayer perceptron as a policy: weights in a plain pytree, the network a record without numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _door
from optctl._record import record
from optctl._validate import as_whole, check_choice, default_float, is_number, is_whole
from optctl.policies import draws

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "sin": jnp.sin,
}


@record(static=("widths", "activation"))
class MLP:
    """A multilayer perceptron; made by `mlp`.

    Attributes:
        widths: widths of input, hidden layers and output.
        activation: name of the activation of the hidden layers.
    """

    widths: tuple[int, ...]
    activation: str

    def init(self, key: Any) -> list[dict[str, Any]]:
        """Return fresh weights: one dictionary with W (out, in) and b (out,) per layer.

        Hidden weights have variance 1/in; the last layer is ten times smaller, so a fresh policy does little.

        Args:
            key: a JAX key or an integer seed.
        """
        if not hasattr(key, "dtype") or is_number(key):
            key = as_whole(key, "key", least=0)
        words = draws.words_of(key) if default_float() == np.float64 and _door.opens(()) else None
        if words is None:
            key = jax.random.key(key) if isinstance(key, int) else key
        by: Any = jax.random if words is None else draws
        keys = by.split(key if words is None else words, len(self.widths) - 1)
        layers, xp = [], jnp if words is None else np
        for i, (n_in, n_out) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            scale = (0.1 if i == len(self.widths) - 2 else 1.0) / n_in**0.5
            layers.append({"W": scale * by.normal(keys[i], (n_out, n_in)), "b": xp.zeros(n_out)})
        return layers

    def apply(self, params: Any, x: Any) -> Any:
        """Return the output (..., widths[-1]) for inputs x (..., widths[0])."""
        for layer in params[:-1]:
            x = ACTIVATIONS[self.activation](_affine(layer, x))
        return _affine(params[-1], x)

    def __call__(self, x: Any, t: Any, params: Any) -> Any:
        """Return u = apply(params, x): the network as a policy."""
        return self.apply(params, x)


def _affine(layer: dict[str, Any], x: Any) -> Any:
    y = x @ layer["W"].T
    return y + jnp.broadcast_to(layer["b"], y.shape)


def mlp(widths: Any, activation: str = "tanh") -> MLP:
    """Make a multilayer perceptron to use as a policy u = policy(x, t, params).

    Args:
        widths: whole numbers: inputs, hidden layers, outputs, such as [4, 64, 64, 1].
        activation: "tanh", "relu", "softplus", "silu", "gelu" or "sin".

    Raises:
        ValueError: for fewer than two widths, widths below 1, or an unknown activation.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> policy = oc.mlp([4, 16, 1])
        >>> policy(jnp.ones(4), 0, policy.init(0)).shape
        (1,)
    """
    whole = isinstance(widths, list | tuple) and all(is_whole(n) for n in widths)
    if not whole or len(widths) < 2:
        raise ValueError(f"`widths` is {widths!r}; expected a list of at least input and output, whole numbers >= 1.")
    sizes = tuple(int(n) for n in widths)
    check_choice(activation, "activation", ACTIVATIONS)
    return MLP(sizes, activation)
