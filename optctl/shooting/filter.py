r"""A filter: which pairs of infeasibility and barrier cost a line search has ruled out.

A trial point is acceptable if it improves on every entry in one of both, by a small margin:

    theta < (1 - gamma_theta) theta_i    or    phi < phi_i - gamma_phi theta_i.

Reference: Fletcher and Leyffer (2002), Nonlinear programming without a penalty function.
"""

from typing import Any

import jax.numpy as jnp

from optctl._record import record

SIZE = 32
GAMMA_THETA, GAMMA_PHI = 1e-5, 1e-8


@record()
class Filter:
    """A ring of entries; unused ones are infinite.

    Attributes:
        theta: (SIZE,) infeasibilities.
        phi: (SIZE,) barrier costs.
    """

    theta: Any
    phi: Any

    def accepts(self, theta: Any, phi: Any) -> Any:
        """True if no entry dominates this pair."""
        better = (theta < (1 - GAMMA_THETA) * self.theta) | (phi < self.phi - GAMMA_PHI * self.theta)
        return jnp.all(better | (self.theta == jnp.inf))

    def add(self, theta: Any, phi: Any, when: Any, before: Any) -> "Filter":
        """Return the filter with one more entry, if `when`, after so many before; beyond SIZE the oldest goes."""
        here = (jnp.arange(SIZE) == before % SIZE) & when
        return Filter(jnp.where(here, theta, self.theta), jnp.where(here, phi, self.phi))

    def clear(self, when: Any) -> "Filter":
        """Return an empty filter, if `when`."""
        return Filter(jnp.where(when, jnp.inf, self.theta), jnp.where(when, jnp.inf, self.phi))


def empty(like: Any) -> Filter:
    """Return a filter without entries, of arrays like this one."""
    nothing = jnp.full(SIZE, jnp.inf, like.dtype)
    return Filter(nothing, nothing)
