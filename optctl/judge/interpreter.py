"""Jaxprs run by NumPy: what a function of the user's is worth, found without XLA and without tapes.

    function -> jaxpr (traced once, by `jax.make_jaxpr`) -> a list of NumPy calls -> values

Nothing here is shared with the tape compiler or with JAX's evaluation of primitives, so that a value found here is a
second opinion on theirs. All stages are evaluated at once, since the function is traced under `jax.vmap`. A primitive
without a rule (`primitives`) is evaluated by JAX, and `by_jax` names it. What depends on constants alone is worked out
when the list is made, and what depends on shapes alone when it is bound to arrays (`Frame`): then every call is a NumPy
function with all of its operands and its result in place, some 0.5 us each for a hundred numbers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from optctl._jaxpr import Literal
from optctl.judge.primitives import RULES, rule
from optctl.tape.walk import bind

INLINED = {
    *("jit", "pjit", "closed_call", "core_call", "call", "composite", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"),
}
MOST_TURNS = 1_000_000
"""Turns after which a `while` loop is given up."""
KEPT = 2**25
"""Bytes of arrays that are kept for the next call of a function."""


class Uninterpreted(Exception):  # noqa: N818
    """The function cannot be interpreted; the message says why."""


class Interpreted:
    """A closed jaxpr as a list of NumPy calls.

    Attributes:
        by_jax: names of primitives that JAX evaluates, since NumPy's rule is missing.
        primitives: name of each call, for those who look for the first that went wrong.
        calls: function, slots of the operands and slots of the results of each call.
        values: constants, in their slots; None elsewhere.
        avals: shape and type of each slot's value.
        inputs, outputs: slots of the arguments and the results.
    """

    def __init__(self, closed: Any, substitute: Callable | None = None) -> None:
        self._substitute = substitute
        self.by_jax: set[str] = set()
        self.primitives: list[str] = []
        self.values: list[Any] = []
        self.avals: list[Any] = []
        self.calls: list[tuple[Callable, tuple[int, ...], tuple[int, ...]]] = []
        self._idle: list[Frame] = []  # not in use by any thread
        self.inputs = [self._slot(v.aval) for v in closed.jaxpr.invars]
        with np.errstate(all="ignore"):
            self.outputs = self._add(closed.jaxpr, closed.consts, self.inputs)

    def __call__(self, *arguments: Any) -> list[np.ndarray]:
        """Return the results for flat arguments, arrays of the shapes that were traced."""
        return self.run(arguments, lambda results: [np.array(value) for value in results])

    def run(self, arguments: Sequence[Any], take: Callable, watch: Callable | None = None) -> Any:
        """Return `take(results)`; they are overwritten after. `watch(name, operands, results)` sees each call."""
        try:
            frame = self._idle.pop()
        except IndexError:
            frame = Frame(self)
        with np.errstate(all="ignore"):
            result = take(frame.run(arguments, watch))
        if frame.bytes <= KEPT:
            self._idle.append(frame)
        return result

    def _slot(self, aval: Any, value: Any = None) -> int:
        self.values.append(value)
        self.avals.append(aval)
        return len(self.values) - 1

    def _constant(self, value: Any, aval: Any) -> int:
        if isinstance(value, jax.core.Tracer):
            if self._substitute is None:
                raise Uninterpreted("it holds values that are being traced")
            value = self._substitute(value)
        return self._slot(aval, value if _is_key(aval) else np.asarray(value, aval.dtype))

    def _add(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[int]) -> list[int]:
        """Append the calls of a jaxpr; return the slots of its results."""
        where: dict[Any, int] = {}
        held = [self._constant(c, v.aval) for c, v in zip(consts, jaxpr.constvars, strict=True)]
        where.update(zip(jaxpr.constvars, held, strict=True))
        where.update(zip(jaxpr.invars, arguments, strict=True))

        def read(v: Any) -> int:
            return self._constant(v.val, v.aval) if isinstance(v, Literal) else where[v]

        for eqn in jaxpr.eqns:
            ins = [read(v) for v in eqn.invars]
            where.update(zip(eqn.outvars, self._equation(eqn, ins), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[int]) -> list[int]:
        name = eqn.primitive.name
        if name in INLINED:
            inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)
            return self._add(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), ins)
        if name in ("debug_callback", "debug_print"):
            return []
        rule = RULES.get(name)
        made = None if rule is None else rule(eqn)
        if made is None:
            made = _by_jax(eqn)
            self.by_jax.add(name)
        self.by_jax |= getattr(made, "by_jax", set())
        avals = [v.aval for v in eqn.outvars]
        if all(self.values[i] is not None for i in ins) and name not in ("while", "pure_callback"):
            results = made(*[self.values[i] for i in ins])
            results = results if isinstance(results, list) else [results]
            return [
                self._slot(aval, r if _is_key(aval) else np.asarray(r, aval.dtype).reshape(aval.shape))
                for aval, r in zip(avals, results, strict=True)
            ]
        outs = [self._slot(aval) for aval in avals]
        self.calls.append((made, tuple(ins), tuple(outs)))
        self.primitives.append(name)
        return outs


class Key:
    """The place of a random key, which no NumPy array holds."""

    value: Any = None


class Frame:
    """Arrays for all values of a list of calls, and the calls bound to them.

    A ufunc writes its result into its array; views are taken once, when the frame is made; an array is used again for
    results of the same shape once nobody reads it any more. Columns of tall matrices are contiguous, since a function
    of a stage's states takes them one by one.
    """

    def __init__(self, of: Interpreted) -> None:
        self.arrays: list[Any] = [None if v is None else v if isinstance(v, np.ndarray) else _key(v) for v in of.values]
        self.outputs, self.of = of.outputs, of
        needed = _needed(of)
        owner = list(range(len(self.arrays)))  # the slot whose array a view looks at
        for k in needed:
            function, ins, outs = of.calls[k]
            if getattr(function, "views", False):
                for slot in outs:
                    owner[slot] = owner[ins[0]]
        last: dict[int, int] = {}  # call that reads an array last
        for k in needed:
            _, ins, outs = of.calls[k]
            last.update((owner[i], k) for i in (*ins, *outs))
        for slot in (*of.inputs, *of.outputs, *[i for i, v in enumerate(of.values) if v is not None]):
            last.pop(owner[slot], None)
        ending: dict[int, list[int]] = {}
        for slot, k in last.items():
            ending.setdefault(k, []).append(slot)
        self.free: dict[Any, list[np.ndarray]] = {}
        self.bytes = 0
        for slot in of.inputs:
            self.arrays[slot] = self._array(of.avals[slot])
        read = set(of.outputs).union(*(of.calls[k][1] for k in needed))
        self.inputs = [(k, self.arrays[slot]) for k, slot in enumerate(of.inputs) if slot in read]
        self.calls = []
        for k in needed:
            bound = self._bind(*of.calls[k])
            if bound is not None:
                self.calls.append((bound, k))
            for slot in ending.get(k, ()):
                array = self.arrays[slot]
                if isinstance(array, np.ndarray):
                    self.free.setdefault((array.shape, array.dtype), []).append(array)
        self.bound = [bound for bound, _ in self.calls]

    def run(self, arguments: Sequence[Any], watch: Callable | None = None) -> list[Any]:
        """Return the results, views of the frame's arrays."""
        for k, place in self.inputs:
            if isinstance(place, Key):
                place.value = arguments[k]
            else:
                place[...] = arguments[k]
        if watch is None:
            for call in self.bound:
                call()
        else:
            for call, k in self.calls:
                call()
                _, ins, outs = self.of.calls[k]
                watch(self.of.primitives[k], *[[self.arrays[i] for i in slots] for slots in (ins, outs)])
        return [_value(self.arrays[i]) for i in self.outputs]

    def _array(self, aval: Any) -> Any:
        if _is_key(aval):
            return Key()
        idle = self.free.get((aval.shape, np.dtype(aval.dtype)))
        if idle:
            return idle.pop()
        tall = len(aval.shape) == 2 and aval.shape[0] > aval.shape[1]
        array: np.ndarray = np.empty(aval.shape, aval.dtype, order="F" if tall else "C")
        self.bytes += array.nbytes
        return array

    def _bind(self, function: Callable, ins: tuple[int, ...], outs: tuple[int, ...]) -> Callable | None:
        """Give the results of a call their arrays; return the call, None where nothing is to be done."""
        operands = [self.arrays[i] for i in ins]
        if getattr(function, "views", False) and not isinstance(operands[0], Key):
            results = function(*operands)
            results = results if isinstance(results, list) else [results]
            if all(np.may_share_memory(r, operands[0]) for r in results):
                for slot, r in zip(outs, results, strict=True):
                    self.arrays[slot] = r
                return None
            for slot, r in zip(outs, results, strict=True):  # a copy, not a view: an array of its own, never used again
                self.arrays[slot] = np.empty(r.shape, r.dtype)
        else:
            for slot in outs:
                self.arrays[slot] = self._array(self.of.avals[slot])
        places = [self.arrays[slot] for slot in outs]
        if getattr(function, "into", False) or (isinstance(function, np.ufunc) and _fits(function, operands, places)):
            return partial(function, *operands, out=places[0])
        return partial(_store, function, operands, places)


def _needed(of: Interpreted) -> list[int]:
    """Return the calls that the results depend on."""
    live, needed = set(of.outputs), []
    for k in reversed(range(len(of.calls))):
        _, ins, outs = of.calls[k]
        if live.intersection(outs) or of.primitives[k] == "pure_callback":
            live.update(ins)
            needed.append(k)
    return needed[::-1]


def _is_key(aval: Any) -> bool:
    return jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)


def _key(value: Any) -> Key:
    made = Key()
    made.value = value
    return made


def _value(place: Any) -> Any:
    return place.value if isinstance(place, Key) else place


def _fits(function: np.ufunc, operands: list[Any], places: list[Any]) -> bool:
    """Return whether the ufunc's own result has the type of its place."""
    if len(operands) != function.nin or len(places) != 1 or function.nout != 1:
        return False
    try:
        return function.resolve_dtypes((*(o.dtype for o in operands), None))[-1] == places[0].dtype
    except TypeError:
        return False


def _store(function: Callable, operands: list[Any], places: list[Any]) -> None:
    """Call a function that makes its own arrays, and copy them to their places."""
    results = function(*map(_value, operands))
    for place, value in zip(places, results if isinstance(results, list) else [results], strict=True):
        if isinstance(place, Key):
            place.value = value
        else:
            place[...] = value


def interpret(function: Callable, *arguments: Any, substitute: Callable | None = None) -> Interpreted:
    """Return a function as NumPy calls; arguments are trees of arrays or shapes, its results flat.

    `substitute` gives numbers for values that the function holds and that are being traced.

    Raises:
        Uninterpreted: where it holds such values, and there is nothing to put in their place.
    """
    return Interpreted(jax.make_jaxpr(function)(*arguments), substitute)


def _by_jax(eqn: Any) -> Callable:
    def evaluate(*arguments: Any) -> Any:
        with jax.ensure_compile_time_eval():
            results = bind(eqn, list(map(jax.numpy.asarray, arguments)))
        keys = jax.dtypes.extended
        return [r if jax.dtypes.issubdtype(r.dtype, keys) else np.asarray(r) for r in results]

    return evaluate


@rule("numpy_model")
def _numpy_model(eqn: Any) -> Callable:
    """Return the user's own function, called with numbers."""
    return partial(eqn.params["model"].rows, eqn.params["batches"])


# Functions within the function.


def _closed(jaxpr: Any) -> Interpreted:
    return Interpreted(jaxpr)


def _with_names(function: Callable, *inner: Interpreted) -> Callable:
    """Remember which primitives of the functions inside JAX evaluates."""
    function.by_jax = set().union(*(i.by_jax for i in inner))  # type: ignore[attr-defined]
    return function


@rule("custom_linear_solve")
def _linear_solve(eqn: Any) -> Callable:
    lengths = list(eqn.params["const_lengths"])
    start = sum(lengths[: list(eqn.params["const_lengths"]._fields).index("solve")])
    solve = _closed(eqn.params["jaxprs"].solve)
    many, all_consts = lengths[list(eqn.params["const_lengths"]._fields).index("solve")], sum(lengths)
    return _with_names(lambda *args: solve(*args[start : start + many], *args[all_consts:]), solve)


@rule("scan")
def _scan(eqn: Any) -> Callable:
    p = eqn.params
    body, length, n_consts, n_carry = _closed(p["jaxpr"]), p["length"], p["num_consts"], p["num_carry"]
    order = range(length)[::-1] if p["reverse"] else range(length)
    avals = [v.aval for v in eqn.outvars[n_carry:]]

    def scan(*args: Any) -> list[Any]:
        consts, carry, xs = args[:n_consts], list(args[n_consts : n_consts + n_carry]), args[n_consts + n_carry :]
        ys = [np.empty(aval.shape, aval.dtype) for aval in avals]
        for i in order:
            results = body(*consts, *carry, *[x[i] for x in xs])
            carry = results[:n_carry]
            for y, value in zip(ys, results[n_carry:], strict=True):
                y[i] = value
        return carry + ys

    return _with_names(scan, body)


@rule("while")
def _while(eqn: Any) -> Callable:
    p = eqn.params
    going, body = _closed(p["cond_jaxpr"]), _closed(p["body_jaxpr"])
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]

    def loop(*args: Any) -> list[Any]:
        carry = list(args[second:])
        for _ in range(MOST_TURNS):
            on = going(*args[:first], *carry)[0]
            if not on.any():
                return carry
            moved = body(*args[first:second], *carry)
            if on.ndim:  # a batch goes on until the last of it has ended; the others stay
                keep = [np.reshape(on, (*on.shape, *[1] * (m.ndim - on.ndim))) for m in moved]
                moved = [np.where(k, m, c) for k, m, c in zip(keep, moved, carry, strict=True)]
            carry = moved
        raise Uninterpreted(f"a loop of it takes more than {MOST_TURNS} turns")

    return _with_names(loop, going, body)


@rule("cond")
def _cond(eqn: Any) -> Callable:
    branches = [_closed(branch) for branch in eqn.params["branches"]]

    def choose(index: Any, *args: Any) -> list[Any]:
        return branches[min(max(int(index), 0), len(branches) - 1)](*args)

    return _with_names(choose, *branches)
