"""Linear (affine) dynamics: x_{t+1} = A_t x_t + B_t u_t + c_t, invariant or with matrices per stage."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from optctl._arrays import as_device
from optctl._record import record
from optctl._validate import as_float
from optctl.dynamics.base import AbstractDynamics, Labels, check_labels


@record(static=("labels",))
class LinearDynamics(AbstractDynamics):
    """x_{t+1} = A x_t + B u_t + c, or with A_t, B_t, c_t given per stage along a leading axis N.

    Args:
        A: (nx, nx) or (N, nx, nx).
        B: (nx, nu) or (N, nx, nu).
        c: (nx,) or (N, nx); None is zero.
        labels: `Labels` with names and units for figures.
        dt: step length [s] for the time axis of figures.

    Raises:
        ValueError: for shapes that do not fit together, booleans, NaN or inf.

    Example:
        >>> import optctl as oc
        >>> dynamics = oc.LinearDynamics(A=[[1.0, 0.1], [0.0, 1.0]], B=[[0.0], [0.1]])
        >>> print(dynamics.rollout([0.0, 1.0], [[1.0], [0.0]])[-1])
        [0.21 1.1 ]
    """

    is_linear: ClassVar[bool] = True

    A: Any
    B: Any
    c: Any = None
    labels: Labels | None = None
    dt: Any = None

    def __post_init__(self) -> None:
        A = as_float(self.A, "A")
        if A.ndim not in (2, 3) or A.shape[-1] != A.shape[-2]:
            raise ValueError(f"`A` has shape {A.shape}; expected (nx, nx) or (N, nx, nx).")
        nx = A.shape[-1]
        B = as_float(self.B, "B")
        if B.ndim not in (2, 3) or B.shape[-2] != nx:
            raise ValueError(f"`B` has shape {B.shape}; expected ({nx}, nu) or (N, {nx}, nu), as `A` is {A.shape}.")
        c = np.zeros(nx, A.dtype) if self.c is None else as_float(self.c, "c")
        if c.ndim not in (1, 2) or c.shape[-1] != nx:
            raise ValueError(f"`c` has shape {c.shape}; expected ({nx},) or (N, {nx}), as `A` is {A.shape}.")
        lengths = {name: m.shape[0] for name, m, n in (("A", A, 3), ("B", B, 3), ("c", c, 2)) if m.ndim == n}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"stages differ: {lengths}; expected one number of stages N in all of them.")
        check_labels(self.labels, nx, B.shape[-1])
        for name, value in (("A", A), ("B", B), ("c", c)):
            object.__setattr__(self, name, as_device(value, value.dtype))

    @property
    def nx(self) -> int:  # type: ignore[override]
        """Number of states."""
        return self.A.shape[-1]

    @property
    def nu(self) -> int:  # type: ignore[override]
        """Number of inputs."""
        return self.B.shape[-1]

    @property
    def horizon(self) -> int | None:  # type: ignore[override]
        """Number of stages if any matrix is given per stage, else None."""
        for value, n in ((self.A, 3), (self.B, 3), (self.c, 2)):
            if value.ndim == n:
                return value.shape[0]
        return None

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Return A_t x + B_t u + c_t."""
        A, B = (m[t] if m.ndim == 3 else m for m in (self.A, self.B))
        return A @ x + B @ u + (self.c[t] if self.c.ndim == 2 else self.c)

    def jacobians(self, xs: Any, us: Any, params: Any) -> tuple[Any, Any]:
        """A and B of all stages: the given ones."""
        N = us.shape[0]
        return jnp.broadcast_to(self.A, (N, self.nx, self.nx)), jnp.broadcast_to(self.B, (N, self.nx, self.nu))
