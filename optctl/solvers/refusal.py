"""Methods that are not differentiated through say so in their own words, not in those of a loop or a kernel inside.

The derivative of the last iterate is that of the iterations, not that of the solution, so none is better.
"""

from functools import partial
from typing import Any

import jax


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def without_derivative(name: str, values: Any) -> Any:
    """Return the values; to differentiate them is an error that names the method."""
    return values


@without_derivative.defjvp
def _refuse(name: str, primals: tuple, tangents: tuple) -> Any:
    raise ValueError(
        f"method '{name}' is not differentiated through: take method=oc.InteriorPoint(), whose solutions have"
        " derivatives (oc.LQ() for linear-quadratic problems); of the cost alone, hold the inputs found and"
        " differentiate oc.gradient(problem, us).cost."
    )
