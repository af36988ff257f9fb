"""What `solve` takes as `method`: a record for each way to solve a problem, which owns its options.

A new method is one module, with a subclass of `Method` made by `@method(...)`, and one line in `methods.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, dataclass_transform

from optctl._record import record
from optctl.solution import Solution
from optctl.solvers.iterate import Iterate
from optctl.solvers.objective import Objective

T = TypeVar("T", bound=type)


class Method:
    """A way to solve a problem, and its options.

    Attributes:
        name: what `Solution.method` says, and short for the record with default options.
        summary: what it does, in half a line.
        takes: what it takes of constraints: "none", "bounds" (on what is free) or "all".
        tolerance: the default tolerance in float64.
        differentiable: True if its solutions have derivatives.
        on_host: True if it runs on NumPy's arrays as well as on JAX's.
        curved: True if it asks for second derivatives.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    takes: ClassVar[str] = "none"
    tolerance: ClassVar[float] = 1e-6
    differentiable: ClassVar[bool] = False
    on_host: ClassVar[bool] = False
    curved: ClassVar[bool] = False

    @classmethod
    def options(cls) -> list[str]:
        """Return the names of its options."""
        return list(getattr(cls, "__dataclass_fields__", {}))

    def check(self, objective: Objective) -> None:
        """Raise ValueError where the method cannot solve for what is free, before any work."""

    def run(self, objective: Objective, tolerance: Any, us: Any, xs: Any) -> Iterate | Solution:
        """Minimize from the guess; an `Iterate` is certified by `solve`.

        Args:
            objective: the problem and what is free; its us, x0 and params are the guess.
            tolerance: on the certificate's scaled figures.
            us: the inputs as the caller gave them, None if not.
            xs: the states as the caller gave them; None but for a method that `takes` all.
        """
        raise NotImplementedError


@dataclass_transform(frozen_default=True, eq_default=False, kw_only_default=True)
def method(*, static: tuple[str, ...] = ()) -> Callable[[T], T]:
    """Make a class a record of options, which are given by name; others are refused, naming those that there are."""

    def wrap(cls: T) -> T:
        made: Any = record(static=static)(cls)
        options, init = made.options(), made.__init__

        @functools.wraps(init)
        def checked(self: Any, *args: Any, **given: Any) -> None:
            has = f"its options are {', '.join(options)}" if options else "it has no options"
            if args:
                raise ValueError(f"`{cls.__name__}` takes its options by name; {has}.")
            for name in given:
                if name not in options:
                    raise ValueError(f"`{cls.__name__}` has no option `{name}`; {has}.{_elsewhere(name)}")
            init(self, **given)

        made.__init__ = checked
        return made

    return wrap


def _elsewhere(option: str) -> str:
    """Say which other method has an option of this name."""
    having = [kind.__name__ for kind in Method.__subclasses__() if option in kind.options()]
    if option in ("tolerance", "verbose", "free", "xs", "x0", "params"):
        return f" `{option}` is for `solve` itself."
    return f" {', '.join(having)} {'has' if len(having) == 1 else 'have'} it." if having else ""
