"""Costs as data: callables whose matrices, references and labels are leaves of the problem.

Changing their numbers does not recompile, which a function that closes over arrays would. Any of them can be
added up inside a user's own function, too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import to_device
from optctl._record import record
from optctl._validate import as_float, as_weight, check_shape, is_concrete

__all__ = [
    "CrossEntropy",
    "HiddenPenalty",
    "Huber",
    "Quadratic",
    "SmoothL1",
    "SquaredLoss",
    "StudentT",
    "TerminalQuadratic",
    "Tracking",
]


def _at_stage(value: Any, t: Any, ndim: int) -> Any:
    return value[t] if value.ndim > ndim else value


def _times(weight: Any, z: Any) -> Any:
    """Return weight z, for a matrix or a number."""
    return weight * z if weight.ndim == 0 else weight @ z


def _check_rows(cost: Any, dimensions: dict[str, int], allowed: tuple[int, ...]) -> None:
    """Raise unless every field that is given per stage has one of the allowed numbers of rows."""
    for name, ndim in dimensions.items():
        value = getattr(cost, name)
        if value is not None and value.ndim > ndim and value.shape[0] not in allowed:
            expected = " or ".join(str(n) for n in allowed)
            raise ValueError(
                f"`{name}` has {value.shape[0]} rows; expected {expected}, as the horizon is {allowed[0]}."
            )


@record()
class Quadratic:
    """Stage cost 1/2 [x; u]' [[Q, M], [M', R]] [x; u] + q'x + r'u; every term may have a leading axis N.

    Args:
        Q: (nx, nx) state weight, symmetric; (nx,) is a diagonal, a number a multiple of the identity.
        R: (nu, nu) input weight, likewise.
        M: (nx, nu) cross weight, None is zero.
        q: (nx,) linear state weight, None is zero.
        r: (nu,) linear input weight, None is zero.

    Raises:
        ValueError: for a weight that is not symmetric or has a negative eigenvalue.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> cost = oc.costs.Quadratic(Q=[2.0, 0.0], R=1.0)
        >>> print(cost(jnp.array([3.0, 5.0]), jnp.array([2.0]), 0))
        11.0
    """

    Q: Any
    R: Any
    M: Any = None
    q: Any = None
    r: Any = None

    def __post_init__(self) -> None:
        Q = to_device(as_weight(self.Q, "Q", (None, None)))
        R = to_device(as_weight(self.R, "R", (None, None)))
        nx, nu = (None if weight.ndim == 0 else weight.shape[-1] for weight in (Q, R))
        object.__setattr__(self, "Q", Q)
        object.__setattr__(self, "R", R)
        for name, shape in {"M": (nx, nu), "q": (nx,), "r": (nu,)}.items():
            if getattr(self, name) is not None:
                value = to_device(as_float(getattr(self, name), name))
                if value.ndim not in (len(shape), len(shape) + 1):
                    raise ValueError(f"`{name}` has shape {value.shape}; expected {shape}, or (N, ...) per stage.")
                check_shape(value, name, shape if value.ndim == len(shape) else (None, *shape))
                object.__setattr__(self, name, value)

    def check_stages(self, horizon: int) -> None:
        """Raise ValueError unless what is given per stage has `horizon` rows."""
        _check_rows(self, {"Q": 2, "R": 2, "M": 2, "q": 1, "r": 1}, (horizon,))

    def __call__(self, x: Any, u: Any, t: Any) -> Any:
        """Return the cost of stage t."""
        Q, R = (_at_stage(m, t, 2) for m in (self.Q, self.R))
        cost = 0.5 * x @ _times(Q, x) + 0.5 * u @ _times(R, u)
        if self.M is not None:
            cost += x @ (_at_stage(self.M, t, 2) @ u)
        if self.q is not None:
            cost += _at_stage(self.q, t, 1) @ x
        return cost if self.r is None else cost + _at_stage(self.r, t, 1) @ u


@record()
class TerminalQuadratic:
    """Terminal (or initial) cost 1/2 (x - x_ref)' Q (x - x_ref).

    Args:
        Q: (nx, nx) weight, symmetric, positive semidefinite; (nx,) is a diagonal, a number a multiple of the identity.
        x_ref: (nx,) reference; None is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> print(oc.costs.TerminalQuadratic(Q=[[4.0]], x_ref=[1.0])(jnp.array([3.0])))
        8.0
    """

    Q: Any
    x_ref: Any = None

    def __post_init__(self) -> None:
        Q = to_device(as_weight(self.Q, "Q", (None, None)))
        if Q.ndim == 3:
            raise ValueError(f"`Q` has shape {Q.shape}; expected (nx, nx).")
        shape = (None,) if Q.ndim == 0 else Q.shape[:1]
        reference = np.zeros(Q.shape[:1], Q.dtype) if self.x_ref is None else as_float(self.x_ref, "x_ref", shape)
        object.__setattr__(self, "Q", Q)
        object.__setattr__(self, "x_ref", to_device(reference))

    def __call__(self, x: Any) -> Any:
        """Return the cost of x."""
        error = x - self.x_ref
        return 0.5 * error @ _times(self.Q, error)


@record()
class Tracking:
    """Stage cost 1/2 (x - x_ref)' Q (x - x_ref) + 1/2 (u - u_ref)' R (u - u_ref).

    Args:
        Q: (nx, nx) state weight; (nx,) is a diagonal, a number a multiple of the identity.
        R: (nu, nu) input weight, likewise.
        x_ref: (nx,) set point or (N, nx) trajectory; with N+1 rows the last is left to the terminal cost.
        u_ref: (nu,) or (N, nu); None is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> cost = oc.costs.Tracking(Q=[[1.0]], R=[[0.0]], x_ref=[[0.0], [2.0]])
        >>> print(cost(jnp.array([1.0]), jnp.zeros(1), 1))
        0.5
    """

    Q: Any
    R: Any
    x_ref: Any
    u_ref: Any = None

    def __post_init__(self) -> None:
        Q = to_device(as_weight(self.Q, "Q", (None, None)))
        R = to_device(as_weight(self.R, "R", (None, None)))
        u_ref = np.zeros(R.shape[-1:], R.dtype) if self.u_ref is None else self.u_ref
        for name, value, given, weight in (("x_ref", self.x_ref, True, Q), ("u_ref", u_ref, self.u_ref is not None, R)):
            value = as_float(value, name)
            if given and (value.ndim not in (1, 2) or weight.shape[-1:] not in ((), value.shape[-1:])):
                n = weight.shape[-1] if weight.ndim else "n"
                raise ValueError(f"`{name}` has shape {value.shape}; expected ({n},) or (N, {n}).")
            object.__setattr__(self, name, to_device(value))
        object.__setattr__(self, "Q", Q)
        object.__setattr__(self, "R", R)

    def check_stages(self, horizon: int) -> None:
        """Raise ValueError unless what is given per stage has `horizon` rows (x_ref may have one more)."""
        _check_rows(self, {"Q": 2, "R": 2, "u_ref": 1}, (horizon,))
        _check_rows(self, {"x_ref": 1}, (horizon, horizon + 1))

    def __call__(self, x: Any, u: Any, t: Any) -> Any:
        """Return the cost of stage t."""
        dx, du = x - _at_stage(self.x_ref, t, 1), u - _at_stage(self.u_ref, t, 1)
        return 0.5 * dx @ _times(_at_stage(self.Q, t, 2), dx) + 0.5 * du @ _times(_at_stage(self.R, t, 2), du)


@record()
class SquaredLoss:
    """rho(r) = r^2 / 2, elementwise: the loss of Gaussian residuals."""

    def __call__(self, r: Any) -> Any:
        """Return the loss of each residual."""
        return 0.5 * r**2


@record()
class Huber:
    """rho(r) = r^2/2 for |r| <= k, else k |r| - k^2/2: outliers pull with constant force.

    Args:
        k: threshold in standard deviations; 1.345 keeps 95 % efficiency on Gaussian data.

    References:
        Huber (1964), Robust estimation of a location parameter.
    """

    k: Any = 1.345

    def __post_init__(self) -> None:
        _check_positive(self.k, "k")

    def __call__(self, r: Any) -> Any:
        """Return the loss of each residual."""
        a = jnp.abs(r)
        inside = jnp.minimum(a, self.k)
        return 0.5 * inside**2 + self.k * (a - inside)


@record()
class StudentT:
    """rho(r) = (nu + 1)/2 log(1 + r^2/nu), the negative log density of Student's t up to a constant; not convex.

    Args:
        nu: degrees of freedom.

    References:
        Lange, Little and Taylor (1989), Robust statistical modeling using the t distribution.
    """

    nu: Any = 4.0

    def __post_init__(self) -> None:
        _check_positive(self.nu, "nu")

    def __call__(self, r: Any) -> Any:
        """Return the loss of each residual."""
        return 0.5 * (self.nu + 1) * jnp.log1p(r**2 / self.nu)


@record()
class SmoothL1:
    """rho(r) = sqrt(r^2 + eps^2) - eps: |r| with a round tip, twice differentiable.

    Args:
        eps: radius of the tip.
    """

    eps: Any = 1e-2

    def __post_init__(self) -> None:
        _check_positive(self.eps, "eps")

    def __call__(self, r: Any) -> Any:
        """Return the loss of each residual."""
        return jnp.sqrt(r**2 + self.eps**2) - self.eps


@record()
class HiddenPenalty:
    """Stage cost for `Layers`: weight/2 times the squared norm of the state, averaged over the batch.

    Args:
        weight: a number, or (N,) with one weight per layer's input; entry 0 weighs the network's input.
    """

    weight: Any

    def __post_init__(self) -> None:
        weight = to_device(as_float(self.weight, "weight"))
        if is_concrete(weight) and (np.asarray(weight) < 0).any():
            raise ValueError(f"`weight` is {self.weight}; expected numbers >= 0.")
        object.__setattr__(self, "weight", weight)

    def check_stages(self, horizon: int) -> None:
        """Raise ValueError unless there is one weight, or one per layer."""
        _check_rows(self, {"weight": 0}, (horizon,))

    def __call__(self, x: Any, u: Any, t: Any) -> Any:
        """Return the penalty of layer t's input."""
        return 0.5 * _at_stage(self.weight, t, 0) * jnp.mean(jnp.sum(x**2, axis=-1))


@record()
class CrossEntropy:
    """Terminal cost for classification: mean softmax cross-entropy of logits (batch, classes) against labels.

    Args:
        labels: (batch,) class numbers, integers from 0.

    Raises:
        ValueError: for labels that are not whole numbers or below 0; when called, for another number of labels than
            rows, or (where labels are not traced) a label beyond the last class.
    """

    labels: Any

    def __post_init__(self) -> None:
        labels = jnp.asarray(self.labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim > 1:
            raise ValueError(f"`labels` has dtype {labels.dtype} and shape {labels.shape}; expected (batch,) integers.")
        if is_concrete(labels) and labels.size and np.asarray(labels).min() < 0:
            raise ValueError(f"`labels` holds {np.asarray(labels).min()}; expected class numbers from 0.")
        object.__setattr__(self, "labels", labels)

    def __call__(self, x: Any) -> Any:
        """Return the mean loss over the batch."""
        if self.labels.shape != x.shape[:-1]:
            raise ValueError(f"`labels` has shape {self.labels.shape}; expected {x.shape[:-1]}, one per row of logits.")
        if is_concrete(self.labels) and self.labels.size and np.asarray(self.labels).max() >= x.shape[-1]:
            raise ValueError(
                f"`labels` holds {np.asarray(self.labels).max()}; expected below {x.shape[-1]}, the number of classes."
            )
        picked = jnp.take_along_axis(jax.nn.log_softmax(x), self.labels[..., None], axis=-1)
        return -jnp.mean(picked)


def _check_positive(value: Any, name: str) -> None:
    if is_concrete(value) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"`{name}` is {value}; expected a positive number.")
