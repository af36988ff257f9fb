r"""Partial differential equations on an interval as dynamics: differences in space, implicit steps in time.

With n interior points at distance h and L the second difference over h^2, zero beyond the ends (Dirichlet),

    heat      y' = a L y + u                     implicit Euler or Crank-Nicolson
    Burgers   y' = -(y^2/2)_x + nu L y + u       the convection explicit, by central differences; nu L implicit
    wave      y'' = c^2 L y + u                  Crank-Nicolson, which keeps the energy

Every implicit step is one tridiagonal solve, O(n); its transpose, in the costate recursion, is another. Inputs are held
over a step.

Reference: LeVeque (2007), Finite Difference Methods for Ordinary and Partial Differential Equations, chapters 9 and 10.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl._validate import as_float, check_choice, is_concrete, keep_whole
from optctl.dynamics.base import AbstractDynamics, Labels

SCHEMES = {"implicit_euler": 1.0, "crank_nicolson": 0.5}
CONTROLS = ("none", "distributed", "boundary")


def tridiagonal_solve(below: Any, diagonal: Any, above: Any, b: Any) -> Any:
    """Solve the system with these three diagonals, (n,) each, below[0] and above[-1] unused; b (n,) or (n, m).

    Raises:
        ValueError: for shapes that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> ones = jnp.ones(3)
        >>> print(oc.pde.tridiagonal_solve(-ones, 2 * ones, -ones, ones))
        [1.5 2.  1.5]

    References:
        Golub and Van Loan (2013), Matrix Computations, section 4.3.
    """
    below, diagonal, above, b = (jnp.asarray(v) for v in (below, diagonal, above, b))
    shapes = [np.shape(v) for v in (below, diagonal, above, b)]
    if len(set(shapes[:3])) > 1 or len(shapes[0]) != 1 or shapes[3][:1] != shapes[0] or len(shapes[3]) > 2:
        raise ValueError(f"shapes {shapes} do not fit; expected three diagonals (n,) and b (n,) or (n, m).")
    if shapes[0] == (0,):
        return b
    below, above = below.at[0].set(0.0), above.at[-1].set(0.0)
    columns = b.reshape(*shapes[0], -1)
    return jax.lax.linalg.tridiagonal_solve(below, diagonal, above, columns).reshape(shapes[3])


class _Interval(AbstractDynamics):
    """What the equations share: the grid, the second difference and the checks."""

    n: int
    length: Any
    dt: Any
    control: str
    positive: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        keep_whole(self, "n", "interior points")
        check_choice(self.control, "control", CONTROLS)
        for name in self.positive:
            given = getattr(self, name)
            value = as_float(given, name, ())
            if is_concrete(value) and not value > 0:
                raise ValueError(f"`{name}` is {float(value):g}; expected a positive number.")
            # A Python number takes the precision of the states.
            object.__setattr__(self, name, float(given) if isinstance(given, int | float) else jnp.asarray(value))

    @property
    def nx(self) -> int:  # type: ignore[override]
        """Number of states."""
        return self.n

    @property
    def spacing(self) -> Any:
        """Distance h of the grid points."""
        return self.length / (self.n + 1)

    @property
    def grid(self) -> Any:
        """The n interior points."""
        return self.spacing * jnp.arange(1, self.n + 1)

    @property
    def nu(self) -> int:  # type: ignore[override]
        """Number of inputs."""
        return {"none": 0, "distributed": self.n, "boundary": 2}[self.control]

    @property
    def labels(self) -> Any:  # type: ignore[override]
        """Names of states and inputs."""
        unit = {"none": (), "distributed": tuple(f"u({i})" for i in range(self.n)), "boundary": ("left", "right")}
        return Labels(tuple(f"y({i})" for i in range(self.nx)), unit[self.control])

    def _second_difference(self, y: Any, ends: Any = None) -> Any:
        """L y, with the values at the ends, zero if None."""
        left, right = (0.0, 0.0) if ends is None else ends
        padded = jnp.concatenate([jnp.asarray(left, y.dtype)[None], y, jnp.asarray(right, y.dtype)[None]])
        return (padded[2:] - 2 * y + padded[:-2]) / self.spacing**2

    def _solve(self, weight: Any, b: Any) -> Any:
        """Return (I - weight L)^{-1} b."""
        off = -weight / self.spacing**2 * jnp.ones_like(b)
        return tridiagonal_solve(off, 1 - 2 * off, off, b)

    def _force(self, u: Any, y: Any) -> Any:
        """What the input adds to y'."""
        return u if self.control == "distributed" else jnp.zeros_like(y)


@record(static=("n", "scheme", "control"))
class Heat(_Interval):
    """The heat equation y_t = a y_xx + u on (0, length), y given at both ends.

    Args:
        n: number of interior points, the states.
        dt: step in seconds.
        diffusivity: a.
        length: of the interval.
        scheme: "crank_nicolson" or "implicit_euler".
        control: "distributed", u (n,) at every point; "boundary", u (2,) the values at the two ends; or "none". Without
            "boundary" the ends are held at zero.

    Raises:
        ValueError: for numbers that are not positive, an unknown scheme or control.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> rod = oc.pde.Heat(31, dt=0.01, control="none")
        >>> xs = rod.rollout(jnp.sin(jnp.pi * rod.grid), jnp.zeros((10, 0)))
        >>> print((xs[-1] / xs[0])[:2].round(4))  # exp(-pi^2 / 10) = 0.3727 for fine meshes
        [0.3727 0.3727]

    References:
        LeVeque (2007), Finite Difference Methods for Ordinary and Partial Differential Equations, section 9.2.
    """

    is_linear: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = ("dt", "diffusivity", "length")
    n: int
    dt: Any
    diffusivity: Any = 1.0
    length: Any = 1.0
    scheme: str = "crank_nicolson"
    control: str = "distributed"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.scheme, "scheme", SCHEMES)

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """One implicit step."""
        theta = SCHEMES[self.scheme]
        ends = u if self.control == "boundary" else None
        rate = self.diffusivity * self._second_difference(x, ends) + self._force(u, x)
        return x + self._solve(theta * self.diffusivity * self.dt, self.dt * rate)


@record(static=("n", "control"))
class Burgers(_Interval):
    """Burgers' equation y_t + (y^2/2)_x = nu y_xx + u on (0, length), y zero at both ends or given there.

    Args:
        n: number of interior points, the states.
        dt: step in seconds; the convection is explicit, so dt max|y| should stay below the distance of points.
        viscosity: nu.
        length: of the interval.
        control: as for `Heat`.

    Raises:
        ValueError: for numbers that are not positive, or an unknown control.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> flow = oc.pde.Burgers(63, dt=0.005, viscosity=0.02, control="none")
        >>> xs = flow.rollout(jnp.sin(jnp.pi * flow.grid), jnp.zeros((100, 0)))
        >>> bool(flow.grid[xs[-1].argmax()] > 0.7)  # the crest moves to the right and steepens
        True

    References:
        LeVeque (2007), section 10.4; Burgers (1948), A mathematical model illustrating the theory of turbulence.
    """

    positive: ClassVar[tuple[str, ...]] = ("dt", "viscosity", "length")
    n: int
    dt: Any
    viscosity: Any = 0.01
    length: Any = 1.0
    control: str = "distributed"

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """One step: convection explicit, diffusion by Crank-Nicolson."""
        ends = u if self.control == "boundary" else jnp.zeros(2, x.dtype)
        flux = jnp.concatenate([ends[:1], x, ends[1:]]) ** 2 / 2
        convection = (flux[2:] - flux[:-2]) / (2 * self.spacing)
        rate = self.viscosity * self._second_difference(x, ends) - convection + self._force(u, x)
        return x + self._solve(self.viscosity * self.dt / 2, self.dt * rate)


@record(static=("n", "control"))
class Wave(_Interval):
    """The wave equation y_tt = c^2 y_xx + u on (0, length), as states (y, y_t), y given at both ends.

    Args:
        n: number of interior points; there are 2 n states, y first.
        dt: step in seconds.
        speed: c.
        length: of the interval.
        control: as for `Heat`.

    Raises:
        ValueError: for numbers that are not positive, or an unknown control.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> string = oc.pde.Wave(31, dt=0.01, control="none")
        >>> plucked = jnp.concatenate([jnp.sin(jnp.pi * string.grid), jnp.zeros(31)])
        >>> energy = string.energy(string.rollout(plucked, jnp.zeros((200, 0))))
        >>> bool(jnp.abs(energy / energy[0] - 1).max() < 1e-12)
        True

    References:
        LeVeque (2007), section 10.1; Strang (2007), Computational Science and Engineering, section 6.4.
    """

    is_linear: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = ("dt", "speed", "length")
    n: int
    dt: Any
    speed: Any = 1.0
    length: Any = 1.0
    control: str = "distributed"

    @property
    def nx(self) -> int:  # type: ignore[override]
        """Number of states."""
        return 2 * self.n

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """One Crank-Nicolson step: solve for the velocity, then move."""
        y, v = x[: self.n], x[self.n :]
        ends = u if self.control == "boundary" else None
        weight = self.speed**2
        rate = weight * (self._second_difference(y, ends) + self.dt / 2 * self._second_difference(v))
        v_next = v + self._solve(weight * self.dt**2 / 4, self.dt * (rate + self._force(u, y)))
        return jnp.concatenate([y + self.dt / 2 * (v + v_next), v_next])

    def energy(self, x: Any) -> Any:
        """Return h/2 (|v|^2 - c^2 y'L y), kept where nothing drives the ends; x (2 n,) or (..., 2 n)."""
        if x.ndim > 1:
            return jax.vmap(self.energy)(x)
        y, v = x[: self.n], x[self.n :]
        return self.spacing / 2 * (v @ v - self.speed**2 * (y @ self._second_difference(y)))
