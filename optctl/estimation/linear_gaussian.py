"""The linear-Gaussian state-space model of Kalman filtering and smoothing."""

from typing import Any

import numpy as np

from optctl import _door
from optctl._record import record
from optctl._validate import as_float, as_weight, is_concrete


@record()
class LinearGaussian:
    """x_{t+1} = A x_t + B u_t + c + w_t,  y_t = C x_t + D u_t + v_t,  w ~ N(0, W), v ~ N(0, V), x_0 ~ N(mean0, cov0).

    The first measurement y_0 is of x_0 itself, so it updates the prior. In Kalman texts A, C, W, V are F, H, Q, R.
    Every matrix of the dynamics may have a leading axis N, of the measurement a leading axis N+1.

    Args:
        A: (nx, nx).
        C: (ny, nx).
        W: (nx, nx) covariance of the process noise, positive semidefinite; singular is allowed. A number stands for
            that multiple of the identity, a vector for a diagonal, as in V and cov0.
        V: (ny, ny) covariance of the measurement noise, positive semidefinite.
        mean0: (nx,) prior mean of x_0.
        cov0: (nx, nx) prior covariance of x_0.
        B: (nx, nu) input matrix; None is zero.
        D: (ny, nu) feedthrough; None is zero.
        c: (nx,) offset; None is zero.

    Raises:
        ValueError: for shapes that do not fit, covariances that are not symmetric or have a negative eigenvalue.

    Example:
        >>> import optctl as oc
        >>> model = oc.LinearGaussian(
        ...     A=[[1.0]], C=[[1.0]], W=[[1469.1]], V=[[15099.0]], mean0=[0.0], cov0=[[1e7]]
        ... )
        >>> model.nx, model.ny
        (1, 1)

    References:
        Durbin and Koopman (2012), Time Series Analysis by State Space Methods, section 4.1.
    """

    A: Any
    C: Any
    W: Any
    V: Any
    mean0: Any
    cov0: Any
    B: Any = None
    D: Any = None
    c: Any = None

    def __post_init__(self) -> None:
        A = as_float(self.A, "A")
        if A.ndim not in (2, 3) or A.shape[-1] != A.shape[-2]:
            raise ValueError(f"`A` has shape {A.shape}; expected (nx, nx) or (N, nx, nx).")
        nx = A.shape[-1]
        C = as_float(self.C, "C")
        if C.ndim not in (2, 3) or C.shape[-1] != nx:
            raise ValueError(f"`C` has shape {C.shape}; expected (ny, {nx}) or (N+1, ny, {nx}), as `A` is {A.shape}.")
        ny = C.shape[-2]
        inputs = [np.shape(as_float(m, name)) for m, name in ((self.B, "B"), (self.D, "D")) if m is not None]
        nu = inputs[0][-1] if inputs and inputs[0] else 0
        fields = {
            "A": A,
            "C": C,
            "W": as_weight(self.W, "W", (nx, nx)),
            "V": as_weight(self.V, "V", (ny, ny)),
            "mean0": as_float(self.mean0, "mean0", (nx,)),
            "cov0": as_weight(self.cov0, "cov0", (nx, nx)),
            "B": _optional(self.B, "B", (nx, nu), A.dtype),
            "D": _optional(self.D, "D", (ny, nu), A.dtype),
            "c": _optional(self.c, "c", (nx,), A.dtype),
        }
        if fields["cov0"].ndim != 2:
            raise ValueError(f"`cov0` has shape {fields['cov0'].shape}; expected ({nx}, {nx}).")
        for name, value in _door.hold(fields).items():
            object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> "LinearGaussian":
        """Return the same model with other values in the named fields, such as `model.replace(V=...)`."""
        fields = {**vars(self), **changes}
        for name in {"B", "D"} - set(changes):  # zeros that stand for None, of another width
            dropped = any(name in changes and changes[name] is None for name in ("B", "D"))
            if self.nu == 0 or (dropped and _is_zero(fields[name])):
                fields[name] = None
        return LinearGaussian(**fields)

    @property
    def nx(self) -> int:
        """Number of states."""
        return self.A.shape[-1]

    @property
    def ny(self) -> int:
        """Number of measured quantities."""
        return self.C.shape[-2]

    @property
    def nu(self) -> int:
        """Number of known inputs."""
        return self.B.shape[-1]


def _is_zero(value: Any) -> bool:
    return is_concrete(value) and not np.asarray(value).any()


def _optional(value: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    if value is None:
        return np.zeros(shape, dtype)
    value = as_float(value, name)
    if value.ndim not in (len(shape), len(shape) + 1) or value.shape[value.ndim - len(shape) :] != shape:
        raise ValueError(f"`{name}` has shape {value.shape}; expected {shape}, or with a leading axis of stages.")
    return value
