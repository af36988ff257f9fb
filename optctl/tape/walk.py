"""One walk through jaxprs, whatever the elements of arrays stand for: scalar expressions, or degrees of polynomials.

A `Walker` goes from equation to equation, and into functions within functions. What an element is, what primitives make
of them, and what a loop or a branch means say its subclasses. Rules that only move elements are NumPy's functions, and
the same for all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optctl._jaxpr import Literal

MOVES: dict[str, Callable] = {}
"""Rules of primitives that move elements: rule(walker, eqn, *arrays), its results an array or a list of them."""


class Walker:
    """Walks jaxprs. An array of the program is an array of elements, of the same shape."""

    def constant(self, value: Any) -> np.ndarray:
        """Return the elements of an array that the function holds."""
        raise NotImplementedError

    def equation(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        """Return the elements of an equation's results."""
        raise NotImplementedError

    def loop(
        self, eqn: Any, going: Callable, body: Callable, carry: list[np.ndarray], held: list[np.ndarray]
    ) -> list[np.ndarray] | None:
        """Return what `while` leaves: carry <- body(carry) as long as going(carry); both of them hold `held`."""
        raise NotImplementedError

    def scan(self, eqn: Any, body: Callable, carry: list[np.ndarray], rows: list[np.ndarray]) -> list[np.ndarray]:
        """Return what `scan` leaves: carry, result <- body(carry, row) for each row, and the stacked results."""
        raise NotImplementedError

    def branch(self, index: np.ndarray, cases: list[Callable]) -> list[np.ndarray] | None:
        """Return the results of cases[index]()."""
        raise NotImplementedError

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the elements of a jaxpr's results."""
        known = dict(zip(jaxpr.constvars, map(self.constant, consts), strict=True))
        known.update(zip(jaxpr.invars, args, strict=True))

        def read(v: Any) -> np.ndarray:
            return self.constant(v.val) if isinstance(v, Literal) else known[v]

        for eqn in jaxpr.eqns:
            known.update(zip(eqn.outvars, self.equation(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def closed(self, closed: Any, args: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the elements of the results of a jaxpr, which may be closed."""
        return self.run(getattr(closed, "jaxpr", closed), getattr(closed, "consts", ()), args)


def bind(eqn: Any, arguments: Sequence[Any]) -> list[Any]:
    """Return the results of an equation for other arguments, as JAX has them."""
    found = eqn.primitive.get_bind_params(eqn.params)
    subfuns, params = found if isinstance(found, tuple) else ((), found)
    results = eqn.primitive.bind(*subfuns, *arguments, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def registrar(rules: dict[str, Callable]) -> Callable:
    """Return a decorator that registers rules for primitives by their names, as in `@rule("add", "sub")`."""

    def rule(*names: str) -> Callable:
        def register(function: Callable) -> Callable:
            rules.update(dict.fromkeys(names, function))
            return function

        return register

    return rule


moves = registrar(MOVES)


@moves("reshape", "squeeze", "expand_dims")
def _reshape(walker: Walker, eqn: Any, a: np.ndarray) -> np.ndarray:
    return a.reshape(eqn.outvars[0].aval.shape)


@moves("transpose")
def _transpose(walker: Walker, eqn: Any, a: np.ndarray) -> np.ndarray:
    return a.transpose(eqn.params["permutation"])


@moves("broadcast_in_dim")
def _broadcast(walker: Walker, eqn: Any, a: np.ndarray) -> np.ndarray:
    shape = eqn.params["shape"]
    lengths = [1] * len(shape)
    for axis, length in zip(eqn.params["broadcast_dimensions"], a.shape, strict=True):
        lengths[axis] = length
    return np.broadcast_to(a.reshape(lengths), shape)


@moves("concatenate")
def _concatenate(walker: Walker, eqn: Any, *args: np.ndarray) -> np.ndarray:
    return np.concatenate(args, eqn.params["dimension"])


@moves("stack")
def _stack(walker: Walker, eqn: Any, *args: np.ndarray) -> np.ndarray:
    return np.stack(args, eqn.params["axis"])


@moves("unstack")
def _unstack(walker: Walker, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
    return list(np.moveaxis(a, eqn.params["axis"], 0))


@moves("tile")
def _tile(walker: Walker, eqn: Any, a: np.ndarray) -> np.ndarray:
    return np.tile(a, eqn.params["reps"])


@moves("slice")
def _slice(walker: Walker, eqn: Any, a: np.ndarray) -> np.ndarray:
    p = eqn.params
    return a[tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or [1] * a.ndim))]


@moves("split")
def _split(walker: Walker, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
    return list(np.split(a, np.cumsum(eqn.params["sizes"])[:-1], eqn.params["axis"]))


@moves("rev")
def _rev(walker: Walker, eqn: Any, a: np.ndarray) -> np.ndarray:
    return np.flip(a, eqn.params["dimensions"])


def factors(a: np.ndarray, b: np.ndarray, dimension_numbers: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands of `dot_general` as (batch, rows, inner) and (batch, columns, inner)."""
    (a_sum, b_sum), (a_batch, b_batch) = dimension_numbers

    def arranged(z: np.ndarray, batch: Sequence[int], inner: Sequence[int]) -> np.ndarray:
        rest = [axis for axis in range(z.ndim) if axis not in (*inner, *batch)]
        sizes = [int(np.prod([z.shape[axis] for axis in axes])) for axes in (batch, rest, inner)]
        return z.transpose((*batch, *rest, *inner)).reshape(sizes)

    return arranged(a, a_batch, a_sum), arranged(b, b_batch, b_sum)


# Functions within the function.


def call(walker: Walker, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    """Return the results of the function that a call holds."""
    inner = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)
    return walker.closed(inner, args)


def _scan(walker: Walker, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    p = eqn.params
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]

    def body(carry: list[np.ndarray], row: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        results = walker.closed(p["jaxpr"], [*args[:first], *carry, *row])
        return results[: p["num_carry"]], results[p["num_carry"] :]

    return walker.scan(eqn, body, list(args[first:last]), list(args[last:]))


def _while(walker: Walker, eqn: Any, *args: np.ndarray) -> list[np.ndarray] | None:
    p = eqn.params
    first, last = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]

    def going(carry: list[np.ndarray]) -> np.ndarray:
        return walker.closed(p["cond_jaxpr"], [*args[:first], *carry])[0]

    def body(carry: list[np.ndarray]) -> list[np.ndarray]:
        return walker.closed(p["body_jaxpr"], [*args[first:last], *carry])

    return walker.loop(eqn, going, body, list(args[last:]), list(args[:last]))


def _cond(walker: Walker, eqn: Any, index: np.ndarray, *args: np.ndarray) -> list[np.ndarray] | None:
    cases = [lambda branch=branch: walker.closed(branch, args) for branch in eqn.params["branches"]]
    return walker.branch(index, cases)


INLINED = ("jit", "pjit", "closed_call", "core_call", "call", "composite", "remat", "remat2", "checkpoint")
"""Primitives that are the functions they hold."""
LOOPS: dict[str, Callable] = {"scan": _scan, "while": _while, "cond": _cond}
