"""Jaxprs run by NumPy: what a function of the user's is worth, found without XLA and without tapes.

    function -> jaxpr (traced once, by `jax.make_jaxpr`) -> a list of NumPy calls -> values

Nothing here is shared with the tape compiler or with JAX's evaluation of primitives, so that a value found here is a
second opinion on theirs. All stages are evaluated at once, since the function is traced under `jax.vmap`. A primitive
without a rule (`primitives`) is evaluated by JAX, and `by_jax` names it. What depends on constants alone is worked out
when the list is made; a result is dropped after its last use.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from optctl.adjoint.primitives import RULES, rule

INLINED = {
    *("jit", "pjit", "closed_call", "core_call", "call", "composite", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"),
}
MOST_TURNS = 1_000_000
"""Turns after which a `while` loop is given up."""


class Uninterpreted(Exception):  # noqa: N818
    """The function cannot be interpreted; the message says why."""


class Interpreted:
    """A closed jaxpr as a list of NumPy calls.

    Attributes:
        by_jax: names of primitives that JAX evaluates, since NumPy's rule is missing.
        primitives: name of each call, for those who look for the first that went wrong.
    """

    def __init__(self, closed: Any, substitute: Callable | None = None) -> None:
        self._substitute = substitute
        self.by_jax: set[str] = set()
        self.primitives: list[str] = []
        self._values: list[Any] = []  # constants, in their slots; None elsewhere
        self._known: list[bool] = []
        self._calls: list[tuple[Callable, tuple[int, ...], tuple[int, ...]]] = []
        self._inputs = [self._slot() for _ in closed.jaxpr.invars]
        with np.errstate(all="ignore"):
            self._outputs = self._add(closed.jaxpr, closed.consts, self._inputs)
        self._dropped = self._last_uses()

    def __call__(self, *arguments: Any) -> list[np.ndarray]:
        """Return the results for flat arguments, arrays of the shapes that were traced."""
        values = self.run(arguments)
        return [np.asarray(values[i]) for i in self._outputs]

    def run(self, arguments: Sequence[Any], watch: Callable | None = None) -> list[Any]:
        """Return the values of all slots; `watch(name, operands, results)` sees each call."""
        values = self._values.copy()
        for slot, value in zip(self._inputs, arguments, strict=True):
            values[slot] = value
        with np.errstate(all="ignore"):
            for k, (function, ins, outs) in enumerate(self._calls):
                result = function(*[values[i] for i in ins])
                if len(outs) == 1 and not isinstance(result, list):
                    values[outs[0]] = result
                else:
                    for slot, value in zip(outs, result, strict=True):
                        values[slot] = value
                if watch is not None:
                    watch(self.primitives[k], [values[i] for i in ins], [values[i] for i in outs])
                for i in self._dropped[k]:
                    values[i] = None
        return values

    def _last_uses(self) -> list[tuple[int, ...]]:
        """Return what each call uses last."""
        seen, dropped = set(self._outputs), []
        for _, ins, outs in reversed(self._calls):
            last = {i for i in (*ins, *outs) if i not in seen}
            seen |= last
            dropped.append(tuple(last))
        return dropped[::-1]

    def _slot(self, value: Any = None) -> int:
        self._values.append(value)
        self._known.append(value is not None)
        return len(self._values) - 1

    def _constant(self, value: Any, aval: Any = None) -> int:
        if isinstance(value, jax.core.Tracer):
            if self._substitute is None:
                raise Uninterpreted("it holds values that are being traced")
            value = self._substitute(value)
        if jax.dtypes.issubdtype(getattr(value, "dtype", float), jax.dtypes.extended):
            return self._slot(value)  # a random key, which JAX evaluates
        return self._slot(np.asarray(value, None if aval is None else aval.dtype))

    def _add(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[int]) -> list[int]:
        """Append the calls of a jaxpr; return the slots of its results."""
        where: dict[Any, int] = {}
        where.update(zip(jaxpr.constvars, [self._constant(c) for c in consts], strict=True))
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
        if all(self._known[i] for i in ins) and name not in ("while", "pure_callback"):
            results = made(*[self._values[i] for i in ins])
            return [self._slot(r) for r in (results if isinstance(results, list) else [results])]
        outs = [self._slot() for _ in eqn.outvars]
        self._calls.append((made, tuple(ins), tuple(outs)))
        self.primitives.append(name)
        return outs


def interpret(function: Callable, *arguments: Any, substitute: Callable | None = None) -> Interpreted:
    """Return a function as NumPy calls; arguments are trees of arrays or shapes, its results flat.

    `substitute` gives numbers for values that the function holds and that are being traced.

    Raises:
        Uninterpreted: where it holds such values, and there is nothing to put in their place.
    """
    return Interpreted(jax.make_jaxpr(function)(*arguments), substitute)


def _by_jax(eqn: Any) -> Callable:
    found = eqn.primitive.get_bind_params(eqn.params)
    subfuns, params = found if isinstance(found, tuple) else ((), found)
    several = eqn.primitive.multiple_results

    def evaluate(*arguments: Any) -> Any:
        with jax.ensure_compile_time_eval():
            results = eqn.primitive.bind(*subfuns, *map(jax.numpy.asarray, arguments), **params)
        keys = jax.dtypes.extended
        results = list(results) if several else [results]
        return [r if jax.dtypes.issubdtype(r.dtype, keys) else np.asarray(r) for r in results]

    return evaluate


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
