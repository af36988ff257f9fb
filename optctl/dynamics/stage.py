"""Functions that users write with as many arguments as they need: `f(x, u)` up to `f(x, u, t, params)`.

A plain function is structure (static): the same function object never recompiles. A callable that is itself
a pytree (a cost helper, a model with masses and lengths) is data: its arrays may change without recompilation.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax

from optctl._record import Identity, Static, record

STAGE = ("x", "u", "t", "params")
POLICY = ("x", "t", "params")
STATE = ("x", "params")


TIME_NAMES = ("t", "k", "i", "j", "n", "time", "tau", "stage", "step", "seconds", "index", "layer")


@record(static=("picks", "takes_params", "name"))
class StageFunction:
    """A user's function, called with those of the full argument list that it takes.

    Attributes:
        call: the function: structure if plain, data if it is a pytree.
        picks: positions in the full argument list, in the order of the function's own arguments.
        takes_params: whether the parameters are among them.
        name: what errors call it.
    """

    call: Any
    picks: tuple[int, ...]
    takes_params: bool
    name: str

    def __repr__(self) -> str:
        return repr(self.call.identity if isinstance(self.call, Static) else self.call)

    def __call__(self, *arguments: Any) -> Any:
        """Evaluate with the full argument list; those that the user left out are dropped."""
        call = self.call.identity.value if isinstance(self.call, Static) else self.call
        return call(*(arguments[k] for k in self.picks))


def stage_function(f: Callable, name: str, arguments: tuple[str, ...] = STAGE, least: int = 2) -> StageFunction:
    """Wrap `f`, reading its positional arguments without a default (those named `t` or `params` count too).

    Arguments are taken in order; a last one named `params` receives the parameters even where `t` is left out.

    Raises:
        ValueError: if `f` is not callable, takes fewer than `least` or more than `len(arguments)` arguments, or has
            a last argument in the place of `t` with a name that suggests something else.
    """
    if isinstance(f, StageFunction):
        return f
    forms = " or ".join(f"{name}({', '.join(arguments[:k])})" for k in range(least, len(arguments) + 1))
    if not callable(f):
        raise ValueError(f"`{name}` is a {type(f).__name__}; expected a function {forms}.")
    own = _own_arguments(f, arguments)
    if not least <= len(own) <= len(arguments):
        raise ValueError(f"`{name}` takes {len(own)} arguments; expected {forms}.")
    picks = list(range(len(own)))
    if "params" in arguments and own[-1] == "params":
        picks[-1] = arguments.index("params")
    elif arguments[len(own) - 1] == "t" and not (own[-1].startswith("_") or own[-1] in TIME_NAMES):
        raise ValueError(
            f"`{name}` ends with the argument `{own[-1]}`, in the place of the stage index t; expected {forms}. Call it"
            " `params` if it stands for the parameters."
        )
    plain = jax.tree_util.all_leaves([f])
    takes_params = "params" in arguments and arguments.index("params") in picks
    return StageFunction(Static(Identity(f)) if plain else f, tuple(picks), takes_params, name)


def _own_arguments(f: Callable, arguments: tuple[str, ...]) -> list[str]:
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return list(arguments)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return list(arguments)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [p.name for p in positional if p.default is p.empty or p.name in ("t", "params")]
