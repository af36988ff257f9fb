"""Constraints: a function of a stage or of the end, and what a miss of it costs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from optctl._arrays import as_device
from optctl._record import record
from optctl._validate import as_float, default_float, is_concrete
from optctl.dynamics.stage import STAGE, STATE, StageFunction, stage_function, takes_all
from optctl.dynamics.view import View, through


@record()
class Soft:
    """A constraint that may be missed at a price, row by row.

    An inequality g <= e may be missed by e >= 0 at the price l1 e + l2 e^2 / 2, an equality by h of either sign at the
    price l1 |h| + l2 h^2 / 2. With l1 above the multiplier of the hard constraint the optimum does not miss it where
    it can be kept (the penalty is exact); so a controller that meets a disturbance still has a plan. With l1 = 0 every
    constraint that costs anything is missed a little, by its multiplier over l2.

    Args:
        g: the function of a path or terminal constraint.
        l1: price of a miss: a number >= 0, or one for each row; infinity makes a row hard.
        l2: price of half its square: numbers >= 0; above 0 where l1 is 0.

    Raises:
        ValueError: for prices that are negative or NaN, or both zero.

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
        if not callable(self.g):
            raise ValueError(f"`g` is a {type(self.g).__name__}; expected a function, as for a hard constraint.")
        for name in ("l1", "l2"):
            price = as_float(getattr(self, name), name, finite=False)
            bad = is_concrete(price) and not (np.asarray(price) >= 0).all()
            if np.ndim(price) > 1 or bad or (name == "l2" and is_concrete(price) and np.isinf(price).any()):
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected a number >= 0, or one for each row.")
            object.__setattr__(self, name, as_device(price, price.dtype))
        if np.ndim(self.l1) and np.ndim(self.l2) and np.shape(self.l1) != np.shape(self.l2):
            raise ValueError(f"`l2` has shape {np.shape(self.l2)}; expected a number, or {np.shape(self.l1)} as `l1`.")
        if is_concrete((self.l1, self.l2)) and not (np.asarray(self.l1) + np.asarray(self.l2) > 0).all():
            raise ValueError("`l1` and `l2` are both 0, a constraint without a price; leave it out, or make one > 0.")


@record()
class Constraint:
    """A constraint of a problem, as every transformation of the problem carries it.

    Attributes:
        function: its rows at a stage (x, u, t, params), or at the end (x, params).
        l1: None for a hard constraint; or the price of a miss, a number or one for each row, infinity for hard rows.
        l2: None, or the price of half the squared miss.
        on: None, or booleans, (m,) or (N, m): the rows that count. The others are known to hold whatever one does.
    """

    function: StageFunction
    l1: Any = None
    l2: Any = None
    on: Any = None

    @property
    def soft(self) -> bool:
        """True if rows of it may have a finite price."""
        return self.l1 is not None

    def takes(self, argument: str) -> bool:
        """True if this is among the function's arguments."""
        return self.function.takes(argument)

    def __call__(self, *arguments: Any) -> Any:
        """Return the rows."""
        return self.function(*arguments)

    def through(self, view: View) -> "Constraint":
        """Return the constraint in the variables of another problem."""
        return replace(self, function=through(self.function, view))

    def prices(self, shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
        """Return l1 and l2 for rows of this shape; infinity and zero of a hard constraint."""
        l1, l2 = (np.asarray(np.inf), np.asarray(0.0)) if self.l1 is None else (self.l1, self.l2)
        xp = np if is_concrete((l1, l2)) else jnp
        return xp.broadcast_to(xp.asarray(l1, dtype), shape), xp.broadcast_to(xp.asarray(l2, dtype), shape)

    def __repr__(self) -> str:
        return f"Soft({self.function!r}, l1={self.l1}, l2={self.l2})" if self.soft else repr(self.function)


def constraint(given: Any, name: str) -> Constraint:
    """Return the constraint that a user gave: a function, or `Soft`.

    Raises:
        ValueError: for anything else, or functions of the wrong arguments.
    """
    if isinstance(given, Constraint):
        return given
    arguments, least = (STAGE, 2) if name.startswith("path") else (STATE, 1)
    if isinstance(given, Soft):
        return Constraint(stage_function(given.g, name, arguments, least, vector=True), given.l1, given.l2)
    return Constraint(stage_function(given, name, arguments, least, vector=True))


@record()
class Stacked:
    """Rows of several functions, one below the other."""

    functions: tuple[Any, ...]

    def check_stages(self, horizon: int) -> None:
        """Let helpers that hold data per stage compare their rows with the horizon."""
        for function in self.functions:
            check = getattr(getattr(function, "call", function), "check_stages", None)
            if check is not None:
                check(horizon)

    def __call__(self, *arguments: Any) -> Any:
        """Return all rows."""
        return jnp.concatenate([function(*arguments) for function in self.functions])


def stacked(parts: Sequence[tuple[Constraint, int]], name: str) -> Constraint:
    """Return one constraint from several, each with its number of rows; each keeps its prices and what is on."""
    arguments = STAGE if name.startswith("path") else STATE
    call = Stacked(tuple([part.function for part, _ in parts]))
    function = takes_all(call, name, arguments)
    l1 = l2 = on = None
    if any(part.soft for part, _ in parts):
        prices = [part.prices((m,), default_float()) for part, m in parts]
        l1, l2 = ((np if is_concrete(price) else jnp).concatenate(price) for price in zip(*prices, strict=True))
    if any(part.on is not None for part, _ in parts):
        masks = [np.ones(m, bool) if part.on is None else part.on for part, m in parts]
        xp, stages = np if is_concrete(masks) else jnp, np.broadcast_shapes(*[mask.shape[:-1] for mask in masks])
        masks = [xp.broadcast_to(mask, (*stages, m)) for mask, (_, m) in zip(masks, parts, strict=True)]
        on = xp.concatenate(masks, axis=-1)
    return Constraint(function, l1, l2, on)
