r"""How sensitivity travels through time: Phi_t = A_{N-1} ... A_t, the derivative of the end state in x_t.

If nothing but the end state counts, the costate is a row of Phi: it decays towards early times when A is stable and
grows exponentially when it is not. That decides whether a gradient over a long horizon vanishes, explodes, or stays
useful, for a control problem and for a deep network alike (Recht 2016, Mates of Costate; Bengio et al. 1994).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from optctl._arrays import eigenvalues, namespace, scan, spectral_norm
from optctl._door import compiled
from optctl._record import record
from optctl._validate import as_float
from optctl.dynamics.base import AbstractDynamics, check_dynamics


@record()
class CostateGrowth:
    """Sensitivity of the end state to each earlier state.

    Attributes:
        log10_norms: (N+1,), log10 of the 2-norm of dx_N/dx_t; never overflows.
        spectral_radius: the spectral radius of dx_N/dx_0 to the power 1/N; that of A for time-invariant dynamics.
        rate: factor per step going backwards, |dx_N/dx_0|^(1/N).
    """

    log10_norms: Any
    spectral_radius: Any
    rate: Any

    @property
    def norms(self) -> Any:
        """(N+1,), the 2-norm of dx_N/dx_t (inf where it exceeds the number range)."""
        return 10.0**self.log10_norms

    @property
    def verdict(self) -> str:
        """What the numbers mean, in plain words."""
        log_norms = np.asarray(self.log10_norms)
        steps, radius = len(log_norms) - 1, float(self.spectral_radius)
        size = f"1e{log_norms[0]:+.1f}" if np.isfinite(log_norms[0]) else "0"
        change = f"|dx_N/dx_0| = {size} after {steps} steps (spectral radius {radius:.4g} a step)"
        if log_norms[0] > 1 and radius > 1:
            return (
                f"Costates grow exponentially towards early times: {change}. The system is unstable over this horizon;"
                " early inputs dominate the gradient. If solvers struggle, shorten the horizon, stabilize with feedback"
                " first, or use a second-order method."
            )
        if log_norms[0] > 1:
            return (
                f"Costates grow for a while towards early times: {change}. The system is stable but amplifies before it"
                " decays; over a longer horizon the growth ends."
            )
        if log_norms[0] < -1:
            return (
                f"Costates decay towards early times: {change}. The system is stable and forgets; early inputs hardly"
                " move the end state, so their gradient is small and right."
            )
        return f"Costates keep their size: {change}. Gradients stay well scaled over this horizon."

    def __repr__(self) -> str:
        return f"CostateGrowth: {self.verdict}"


def costate_growth(dynamics: AbstractDynamics, xs: Any, us: Any, params: Any = None) -> CostateGrowth:
    """Measure how the sensitivity of the end state to earlier states decays or grows along a trajectory.

    Args:
        dynamics: any kind of dynamics with Jacobians.
        xs: (N+1, nx) states, as `rollout` gives them (a list of activations for `Layers`).
        us: (N, nu) inputs.
        params: parameters.

    Returns:
        A `CostateGrowth`; print it for the verdict in words.

    Raises:
        ValueError: for wrong shapes, NaN or inf.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> dynamics = oc.LinearDynamics(A=[[1.5]], B=[[1.0]])
        >>> us = jnp.zeros((20, 1))
        >>> growth = oc.costate_growth(dynamics, dynamics.rollout([1.0], us), us)
        >>> round(float(growth.spectral_radius), 12), round(float(growth.norms[-2]), 12)
        (1.5, 1.5)

    References:
        Recht (2016), Mates of Costate.
    """
    check_dynamics(dynamics)
    for i, x in enumerate(xs if isinstance(xs, list | tuple) else [xs]):
        as_float(x, f"xs[{i}]" if isinstance(xs, list | tuple) else "xs")
    A, _ = dynamics.linearize(xs, us, params)
    if isinstance(A, list):
        return _measure(_products_of_list(A))
    return _measure(_products(A))


@compiled()
def _products(A: Any) -> tuple[Any, Any]:
    """Phi_t scaled to norm 1 and the log of its norm, for t = N..0."""
    xp = namespace(A)

    def backward(carry: tuple, A_t: Any) -> tuple:
        Phi, log_norm = carry
        scaled = Phi @ A_t
        norm = spectral_norm(scaled)
        unit = scaled / xp.where(norm > 0, norm, 1)
        log_norm = log_norm + xp.log10(norm)
        return (unit, log_norm), log_norm

    start = xp.eye(A.shape[-1], dtype=A.dtype), xp.zeros((), A.dtype)
    carry, logs = scan(backward, start, A, reverse=True)
    return carry[0], xp.append(logs, 0.0)


def _products_of_list(A: list[Any]) -> tuple[Any, Any]:
    Phi, logs = jnp.eye(A[-1].shape[0]), [jnp.zeros(())]
    for A_t in reversed(A):
        Phi = Phi @ A_t
        norm = jnp.linalg.norm(Phi, ord=2)
        logs.append(logs[-1] + jnp.log10(norm))
        Phi = Phi / jnp.where(norm > 0, norm, 1)
    return Phi, jnp.stack(logs[::-1])


def _measure(products: tuple[Any, Any]) -> CostateGrowth:
    Phi, log_norms = products
    xp, steps = namespace(Phi), len(log_norms) - 1
    if Phi.shape[0] == Phi.shape[1]:
        radius = xp.max(xp.abs(eigenvalues(Phi)))
    else:  # widths differ: singular values take the place of eigenvalues
        radius = spectral_norm(Phi)
    with np.errstate(all="ignore"):
        return CostateGrowth(
            log10_norms=log_norms,
            spectral_radius=10.0 ** ((xp.log10(radius) + log_norms[0]) / steps),
            rate=10.0 ** (log_norms[0] / steps),
        )
