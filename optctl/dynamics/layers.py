"""A deep network as a dynamical system: the stage is a layer, the state its activations.

    x_{i+1} = f_i(x_i, params_i),   i = 0..N-1,   widths may differ.

Backpropagation is the costate recursion: lambda_N = dJ/dx_N, lambda_i = dl/dx_i + (df_i/dx)' lambda_{i+1}, and the
gradient of the weights is (df_i/dp)' lambda_{i+1}; shared weights collect the sum over the layers that use them
(LeCun 1988, A theoretical framework for back-propagation).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl._validate import as_float, result_shape
from optctl.dynamics.base import AbstractDynamics, Adjoint
from optctl.dynamics.stage import STATE, stage_function


@record(static=("share",))
class Layers(AbstractDynamics):
    """Stages of different widths. States are lists of N+1 arrays; there are no inputs (`us=None`).

    A state has shape (width,), or (batch, width) when the layers act on the last axis: then costs average over the
    batch and one gradient serves the whole batch.

    Args:
        layers: functions `f(x)` or `f(x, params)`, one per layer.
        share: `params[share[i]]` are the parameters of layer i; None gives each layer its own, `params[i]`.
            Layers with the same number share weights, and their gradients add up.

    Raises:
        ValueError: for no layers, or a `share` of another length.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> net = oc.Layers([lambda x, W: jnp.tanh(W @ x), lambda x, W: W @ x])
        >>> xs = net.rollout(jnp.ones(3), None, [jnp.ones((2, 3)), jnp.ones((1, 2))])
        >>> [x.shape for x in xs]
        [(3,), (2,), (1,)]
    """

    nu: ClassVar[int] = 0  # type: ignore[misc]
    roll_without_inputs: ClassVar[bool] = True
    bounds_memory: ClassVar[bool] = False

    layers: Any
    share: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Sequence) or not self.layers:
            raise ValueError("`layers` is empty or not a list; expected one function f(x) or f(x, params) per layer.")
        wrapped = tuple(stage_function(f, f"layers[{i}]", STATE, least=1) for i, f in enumerate(self.layers))
        object.__setattr__(self, "layers", wrapped)
        if self.share is not None:
            share = tuple(int(k) for k in self.share)
            if len(share) != len(wrapped) or min(share) < 0:
                raise ValueError(f"`share` is {share}; expected {len(wrapped)} numbers >= 0, one per layer.")
            object.__setattr__(self, "share", share)

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """Number of layers."""
        return len(self.layers)

    def layer(self, i: int, x: Any, params: Any) -> Any:
        """Return the activations after layer i."""
        return self.layers[i](x, None if params is None else params[i if self.share is None else self.share[i]])

    def roll(self, x0: Any, us: Any, params: Any) -> list[Any]:
        """Forward through all layers."""
        xs = [x0]
        for i in range(self.horizon):
            xs.append(self.layer(i, xs[i], params))
        return xs

    def tangent(self, xs: Any, us: Any, dx0: Any, dus: Any, params: Any, dparams: Any) -> list[Any]:
        """Forward-mode derivative through all layers."""
        dxs = [dx0]
        for i in range(self.horizon):
            f = self._bind(i)
            dxs.append(jax.jvp(f, (xs[i], params), (dxs[i], dparams))[1])
        return dxs

    def adjoint(self, xs: Any, us: Any, gxs: Any, params: Any) -> Adjoint:
        """Backpropagation: one vector-Jacobian product per layer, shared weights add up."""
        costates = [gxs[-1]]
        gparams = jax.tree.map(jnp.zeros_like, params)
        for i in reversed(range(self.horizon)):
            _, transpose = jax.vjp(self._bind(i), xs[i], params)
            gx, gp = transpose(costates[0])
            costates.insert(0, gxs[i] + gx)
            gparams = jax.tree.map(jnp.add, gparams, gp)
        return Adjoint(costates, None, gparams)

    def jacobians(self, xs: Any, us: Any, params: Any) -> tuple[list[Any], list[Any]]:
        """The Jacobian of each layer, (width_{i+1}, width_i), for states without a batch axis."""
        _check_single(xs[0])
        A = [jax.jacfwd(self._bind(i))(xs[i], params) for i in range(self.horizon)]
        return A, [jnp.zeros((a.shape[0], 0), a.dtype) for a in A]

    def hessians(self, xs: Any, us: Any, costates: Any, params: Any) -> list[Any]:
        """Second derivative of lambda_{i+1}' f_i in x_i for each layer, for states without a batch axis."""
        _check_single(xs[0])

        def contracted(i: int) -> Any:
            return lambda x: costates[i + 1] @ self.layer(i, x, params)

        return [jax.hessian(contracted(i))(xs[i]) for i in range(self.horizon)]

    def map_stages(self, function: Any, xs: Any, us: Any) -> Any:
        """Return `function(x_i, None, i)` for each layer, stacked."""
        return jnp.stack([function(xs[i], None, i) for i in range(self.horizon)])

    def check_data(self, x0: Any, us: Any, params: Any) -> None:
        """Raise ValueError if the list of parameters is too short for the layers."""
        if us is not None:
            raise ValueError("`us` is given, but layers have no inputs; pass us=None.")
        takes = [i for i, f in enumerate(self.layers) if f.takes("params")]
        needed = max((i if self.share is None else self.share[i] for i in takes), default=-1) + 1
        if needed and (not isinstance(params, Sequence) or len(params) < needed):
            got = "None" if params is None else f"{type(params).__name__} of length {len(params)}"
            raise ValueError(f"`params` is {got}; expected a list of {needed} entries, one per layer or shared group.")
        x = x0
        for i in range(self.horizon):
            x = result_shape(self._bind(i), f"layers[{i}]", x, params)

    def check_trajectory(self, xs: Any, us: Any, params: Any) -> None:
        """Raise ValueError unless xs is a list of N+1 activations."""
        if not isinstance(xs, list | tuple) or len(xs) != self.horizon + 1:
            raise ValueError(f"`xs` must be a list of {self.horizon + 1} activations, as rollout returns it.")
        self.check_data(xs[0], us, params)

    def _floats(self, **arrays: Any) -> list[Any]:
        """Check arrays and lists of arrays; None stays None."""
        return [
            [as_float(v, f"{name}[{i}]", finite=False) for i, v in enumerate(value)]
            if name in ("xs", "gxs", "costates")
            else None
            if value is None
            else as_float(value, name, finite=False)
            for name, value in arrays.items()
        ]

    def _bind(self, i: int) -> Any:
        return lambda x, params: self.layer(i, x, params)


def _check_single(x: Any) -> None:
    if x.ndim != 1:
        raise ValueError(
            f"`xs[0]` has shape {x.shape}; expected one sample (width,), not a batch: Jacobians mix its rows."
        )
