"""Functions that users write with as many arguments as they need: `f(x, u)` up to `f(x, u, t, params)`.

A plain function is structure (static): the same function object never recompiles. A callable that is itself
a pytree (a cost helper, a model with masses and lengths) is data: its arrays may change without recompilation.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax

from optctl._record import Static, record

STAGE = ("x", "u", "t", "params")
POLICY = ("x", "t", "params")
STATE = ("x", "params")


@record(static=("arity", "name"))
class StageFunction:
    """A user's function, called with the leading `arity` of its full argument list."""

    call: Any
    arity: int
    name: str

    def __repr__(self) -> str:
        call = self.call.value if isinstance(self.call, Static) else self.call
        return getattr(call, "__name__", None) or repr(call)

    def __call__(self, *arguments: Any) -> Any:
        """Evaluate with the full argument list; the trailing ones that the user left out are dropped."""
        call = self.call.value if isinstance(self.call, Static) else self.call
        return call(*arguments[: self.arity])


def stage_function(f: Callable, name: str, arguments: tuple[str, ...] = STAGE, least: int = 2) -> StageFunction:
    """Wrap `f`, counting its positional arguments without a default (those named `t` or `params` count too).

    Raises:
        ValueError: if `f` is not callable, or takes fewer than `least` or more than `len(arguments)` arguments.
    """
    if isinstance(f, StageFunction):
        return f
    forms = " or ".join(f"{name}({', '.join(arguments[:k])})" for k in range(least, len(arguments) + 1))
    if not callable(f):
        raise ValueError(f"`{name}` is a {type(f).__name__}; expected a function {forms}.")
    arity = _count_arguments(f, arguments)
    if not least <= arity <= len(arguments):
        raise ValueError(f"`{name}` takes {arity} arguments; expected {forms}.")
    plain = jax.tree_util.all_leaves([f])
    if plain and getattr(f, "__hash__", None) is None:
        raise ValueError(f"`{name}` is not hashable; expected a function, or a callable registered as a pytree.")
    return StageFunction(Static(f) if plain else f, arity, name)


def _count_arguments(f: Callable, arguments: tuple[str, ...]) -> int:
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return len(arguments)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return len(arguments)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty or p.name in ("t", "params") for p in positional)
