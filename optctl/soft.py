"""Constraints that may be missed at a price."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import Identity, Static, record
from optctl._validate import as_float, is_concrete
from optctl.dynamics.stage import STAGE, STATE, StageFunction, stage_function


@record()
class Soft:
    """An inequality g <= e that may be missed by e >= 0 at the price l1 e + l2 e^2 / 2, row by row.

    With l1 above the multiplier of the hard constraint the optimum does not miss it where it can be kept (the penalty
    is exact); so a controller that meets a disturbance still has a plan.

    Args:
        g: the function of a `path_inequality` or `terminal_inequality`.
        l1: price of a miss: a positive number, or one for each row; infinity makes a row hard.
        l2: price of half its square: numbers >= 0.

    Raises:
        ValueError: for prices that are negative or NaN.

    Example:
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.LinearDynamics([[1.0]], [[1.0]]),
        ...     lambda x, u: u @ u,
        ...     horizon=2,
        ...     x0=[3.0],
        ...     terminal_inequality=oc.Soft(lambda x: x - 1.0, l1=1.0),
        ... )
        >>> print(oc.solve(problem).xs[:, 0].round(6))  # two steps of 1/2, at the price 1 for the rest
        [3.  2.5 2. ]

    References:
        Nocedal and Wright (2006), Numerical Optimization, section 17.2.
    """

    g: Any
    l1: Any = 1.0
    l2: Any = 0.0

    def __post_init__(self) -> None:
        if not callable(self.g) and not isinstance(self.g, Static):
            raise ValueError(f"`g` is a {type(self.g).__name__}; expected a function, as for a hard constraint.")
        if not isinstance(self.g, Static) and jax.tree_util.all_leaves([self.g]):
            object.__setattr__(self, "g", Static(Identity(self.g)))
        for name in ("l1", "l2"):
            price = as_float(getattr(self, name), name, finite=False)
            low = np.asarray(price) > 0 if name == "l1" and is_concrete(price) else None
            low = np.asarray(price) >= 0 if name == "l2" and is_concrete(price) else low
            if np.ndim(price) > 1 or (low is not None and not low.all()):
                raise ValueError(
                    f"`{name}` is {price}; expected a number {'> 0' if name == 'l1' else '>= 0'}, or a row of them."
                )
            object.__setattr__(self, name, jnp.asarray(price))

    def __call__(self, *arguments: Any) -> Any:
        """Return g at a stage (x, u, t, params) or at the end (x, params)."""
        return self._function(len(arguments))(*arguments)

    def _function(self, n: int) -> StageFunction:
        g = self.g.identity.value if isinstance(self.g, Static) else self.g
        return stage_function(g, "g", STAGE, least=2) if n == 4 else stage_function(g, "g", STATE, least=1)
