"""Functions that users write with as many arguments as they need: `f(x, u)` up to `f(x, u, t, params)`.

They are written with JAX or in plain NumPy. JAX is asked first; a function that it cannot trace is one in NumPy, which
is traced by NumPy's protocols (`optctl.tape.plain`) and is a primitive of JAX from then on.

A plain function is structure (static): the same function object never recompiles. A callable that is itself
a pytree (a cost helper, a model with masses and lengths) is data: its arrays may change without recompilation.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._code import FRESH, changes_in_place, forget_what_changed, note, warn_of_changes
from optctl._record import Identity, Static, record, remember
from optctl._validate import NEEDS_NUMBERS, explained, through_jax

STAGE = ("x", "u", "t", "params")
POLICY = ("x", "t", "params")
STATE = ("x", "params")


PARAMETERS = ("p", "parameters", "args", "theta", "weights")
TIME_NAMES = ("t", "k", "i", "j", "n", "time", "tau", "stage", "step", "seconds", "index", "layer")

REMEMBERED = 256
_NUMPY: dict[Any, bool] = {}  # functions that JAX could not trace and NumPy could
_REBINDING: dict[Any, bool] = {}
"""Functions to which JAX and NumPy give one meaning, as far as their code tells."""
_MODELS: dict[Any, Any] = {}


@record(static=("picks", "keywords", "arguments", "name", "vector"))
class StageFunction:
    """A user's function, called with those of the full argument list that it takes.

    Attributes:
        call: the function: structure if plain, data if it is a pytree.
        picks: positions in the full argument list, in the order of the function's own arguments.
        keywords: names of the last ones of these where they are passed by keyword.
        arguments: the full argument list.
        name: what errors call it.
        vector: whether it returns a vector, which may then be a list or tuple of scalars.
    """

    call: Any
    picks: tuple[int, ...]
    keywords: tuple[str, ...]
    arguments: tuple[str, ...]
    name: str
    vector: bool = False

    def takes(self, argument: str) -> bool:
        """True if this is among its arguments."""
        return argument in [self.arguments[k] for k in self.picks]

    def __repr__(self) -> str:
        return repr(self.call.identity if isinstance(self.call, Static) else self.call)

    def __call__(self, *arguments: Any) -> Any:
        """Evaluate with the full argument list; those that the user left out are dropped.

        Raises:
            ValueError: where the function asks a traced array for its numbers, with the line and the remedy.
        """
        given = [arguments[k] for k in self.picks]
        result = self._value(given)
        if FRESH:
            forget_what_changed()
        if self.vector and isinstance(result, list | tuple):
            result = jnp.stack([jnp.asarray(v) for v in result])
        return result

    def _value(self, given: list[Any]) -> Any:
        if self._changes_arrays(given) or (_NUMPY and self._key in _NUMPY):
            return self._in_numpy(given)
        try:
            return self._run((self.call, given))
        except Exception as error:
            if not jax.tree.leaves((self.call, given)):
                raise
            return self._tried_in_numpy(given, error)

    def warn_of_changes(self) -> None:
        """Warn where numbers that the function read from outside when it was traced are others by now."""
        if isinstance(self.call, Static):
            warn_of_changes(self.call.identity.value, self.name)

    def _run(self, tree: tuple[Any, list[Any]], prepare: Callable = lambda f: f) -> Any:
        """Call the user's function, or what `prepare` makes of it."""
        call, given = tree
        call = prepare(call.identity.value if isinstance(call, Static) else call)
        many = len(given) - len(self.keywords)
        return call(*given[:many], **dict(zip(self.keywords, given[many:], strict=True)))

    def _changes_arrays(self, given: list[Any]) -> bool:
        """True for a function that changes arrays in place and that NumPy's front end can trace.

        JAX would trace many of these, too, and give `y += u` another meaning: there it makes a new array, which whoever
        else holds the old one does not see.
        """
        if not isinstance(self.call, Static) or self._key in _REBINDING:
            return False
        if self._key in _NUMPY:
            return True
        if not any([isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)]):
            return False
        note(self.call.identity.value)
        if changes_in_place(self.call.identity.value):
            try:
                self._in_numpy(given)
            except Exception:
                pass
            else:
                return remember(_NUMPY, self._key, True, REMEMBERED)
        remember(_REBINDING, self._key, True, REMEMBERED)
        return False

    @property
    def _key(self) -> Any:
        return self.call.identity if isinstance(self.call, Static) else jax.tree.structure(self.call)

    def _tried_in_numpy(self, given: list[Any], error: Exception) -> Any:
        """Call a function that JAX cannot trace as one that is written in plain NumPy.

        Raises:
            Exception: the error of JAX, where it is no such function either; else what is to be changed in it.
        """
        cannot = isinstance(error, tuple(NEEDS_NUMBERS))
        assigns = isinstance(error, TypeError) and ("item assignment" in str(error) or "immutable" in str(error))
        from optctl.tape.plain import Mixed

        try:
            result = self._in_numpy(given)
        except Exception as other:
            of_numpy = not through_jax(other) and not isinstance(other, Mixed)
            if (cannot or assigns) and of_numpy:
                raise other from error
            if cannot:
                raise explained(error, self.name) from error
            raise error from None
        remember(_NUMPY, self._key, True, REMEMBERED)
        return result

    def _in_numpy(self, given: list[Any]) -> Any:
        """Return the value of a function in plain NumPy: its own for numbers; for what is traced, by its graph."""
        leaves, structure = jax.tree.flatten((self.call, given))
        if not any([isinstance(leaf, jax.core.Tracer) for leaf in leaves]):
            numbers = [np.array(leaf) if isinstance(leaf, np.ndarray | jax.Array) else leaf for leaf in leaves]
            return self._run(jax.tree.unflatten(structure, numbers))
        from optctl.tape.plain import Model, bind

        avals = [jax.typeof(leaf) for leaf in leaves]
        key = self._key, self.picks, self.keywords, structure, tuple([(a.shape, a.dtype) for a in avals])
        model = _MODELS.get(key)
        if model is None:
            varying = [name != "params" for name in (self.arguments[k] for k in self.picks)]
            held = jax.tree.leaves(self.call)
            uniform = [True] * len(held)
            for argument, varies in zip(given, varying, strict=True):
                uniform += [not varies] * len(jax.tree.leaves(argument))
            model = Model(self._run, structure, avals, uniform, self.name)
            remember(_MODELS, key, model, REMEMBERED)
        return bind(model, leaves)


def stage_function(
    f: Callable, name: str, arguments: tuple[str, ...] = STAGE, least: int = 2, *, vector: bool = False
) -> StageFunction:
    """Wrap `f`, reading its positional arguments without a default (those named `t` or `params` count too).

    Arguments are taken in order; where all of them carry the names in `arguments`, they are taken by name. A last one
    named `params` receives the parameters even where `t` is left out.

    Raises:
        ValueError: if `f` is not callable, takes fewer than `least` or more than `len(arguments)` arguments, or has
            an argument whose name suggests another place, such as `f(t, x)`, or `f(x, u, mass)` with mass in that of t.
    """
    if isinstance(f, StageFunction):
        return f
    forms = " or ".join(f"{name}({', '.join(arguments[:k])})" for k in range(least, len(arguments) + 1))
    if not callable(f):
        raise ValueError(f"`{name}` is a {type(f).__name__}; expected a function {forms}.")
    own, keywords = own_arguments(f)
    if own is None:
        own = list(arguments)
    if not least <= len(own) <= len(arguments):
        raise ValueError(f"`{name}` takes {len(own)} arguments; expected {forms}.")
    picks = list(range(len(own)))
    if set(own) <= set(arguments):
        picks = [arguments.index(argument) for argument in own]
    elif own[-1] == "params" and "params" in arguments:
        picks[-1] = arguments.index("params")
    for argument, place in zip(own, (arguments[k] for k in picks), strict=True):
        early = argument in PARAMETERS and place == "t" and argument != own[-1]
        time_elsewhere = argument in ("time", "seconds") and place != "t" and "t" in arguments
        if (argument in arguments and argument != place) or time_elsewhere or early:
            raise ValueError(f"`{name}` has the argument `{argument}` in the place of {place}; expected {forms}.")
    if arguments[picks[-1]] == "t" and not (own[-1].startswith("_") or own[-1] in TIME_NAMES):
        raise ValueError(
            f"`{name}` ends with the argument `{own[-1]}`, in the place of t; expected {forms}. Call it `params` if it"
            " stands for the parameters."
        )
    plain = jax.tree_util.all_leaves([f])
    return StageFunction(Static(Identity(f)) if plain else f, tuple(picks), keywords, arguments, name, vector)


def takes_all(call: Callable, name: str, arguments: tuple[str, ...]) -> StageFunction:
    """Wrap a record of the package that takes the full argument list."""
    return StageFunction(call, tuple(range(len(arguments))), (), arguments, name)


def own_arguments(f: Callable) -> tuple[list[str] | None, tuple[str, ...]]:
    """Return the names of the arguments that a function takes, and those of them to be passed by keyword.

    The names are None if it takes any number of arguments, or does not tell.
    """
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return None, ()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None, ()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = [p.default is p.empty or p.name in ("t", "params") for p in positional]
    left_out = taken.index(False) if False in taken else len(taken)  # what follows it can only be passed by keyword
    names = [p.name for p, take in zip(positional, taken, strict=True) if take]
    return names, tuple(names[left_out:])
