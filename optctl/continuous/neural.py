"""A neural ODE: the map from a state at time 0 to the state at t1, its weights to be trained."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from optctl._record import record
from optctl._validate import as_float, check_choice, is_concrete
from optctl.continuous.integrate import integrate
from optctl.continuous.ode import ODE
from optctl.continuous.steps import METHODS


@record(static=("ode", "method", "max_steps"))
class NeuralODE:
    """A network whose depth is time; made by `neural_ode`.

    Attributes:
        ode: the ODE.
        t1: how long it runs, in seconds.
        rtol: relative tolerance.
        atol: absolute tolerance.
        dt: longest step of a fixed scheme.
        method: the scheme.
        max_steps: most steps.
    """

    ode: ODE
    t1: Any
    rtol: Any
    atol: Any
    dt: Any
    method: str
    max_steps: int

    def __call__(self, z: Any, params: Any) -> Any:
        """Return the state at t1 from z at time 0; a layer for `Layers`."""
        z = jnp.asarray(as_float(z, "z"))
        end = jnp.asarray(self.t1, z.dtype)
        return self.trajectory(z, jnp.stack([jnp.zeros_like(end), end]), params)[-1]

    def trajectory(self, z: Any, ts: Any, params: Any) -> Any:
        """Return the states at increasing times ts, z the state at ts[0]."""
        return integrate(
            self.ode, z, ts, params, method=self.method,
            dt=self.dt, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps,
        ).zs  # fmt: skip


def neural_ode(
    f: Callable,
    t1: float = 1.0,
    *,
    method: str = "tsit5",
    dt: Any = None,
    rtol: float = 1e-4,
    atol: float = 1e-6,
    max_steps: int = 256,
) -> NeuralODE:
    """Make a model z(0) -> z(t1) of dz/dt = f, trained like a layer of a network.

    Its gradients under `jax.grad` are those of the numbers computed, by the costate recursion over the steps; their
    lengths suit state and sensitivities. A batch is one state of shape (batch, nz) with common steps; `jax.vmap` gives
    each sample its own.

    Args:
        f: `f(z, t, params)`, such as an `mlp`, acting on the last axis of z.
        t1: how long it runs, in seconds.
        method: as for `integrate`; "rk4" with dt has no error control and costs least.
        dt: step of a fixed scheme.
        rtol: relative tolerance; networks are trained loosely.
        atol: absolute tolerance.
        max_steps: most steps.

    Raises:
        ValueError: if f takes an input, or t1 is not positive.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> net = oc.mlp([2, 16, 2])
        >>> model = oc.neural_ode(net)
        >>> params, z = net.init(0), jnp.ones((5, 2))
        >>> model(z, params).shape
        (5, 2)
        >>> slope = jax.grad(lambda params: jnp.sum(model(z, params)))(params)

    References:
        Chen, Rubanova, Bettencourt and Duvenaud (2018), Neural ordinary differential equations.
    """
    ode = f if isinstance(f, ODE) else ODE(f)
    if ode.takes_input:
        raise ValueError("`f` takes an input u; expected f(z, t, params).")
    check_choice(method, "method", METHODS)
    end = jnp.asarray(as_float(t1, "t1", ()))
    if is_concrete(end) and not end > 0:
        raise ValueError(f"`t1` is {float(end):g}; expected a positive time in seconds.")
    return NeuralODE(ode, end, rtol, atol, dt, method, max_steps)
