"""The degree of a function in some of its arguments, read from its jaxpr: structure, whatever the numbers are.

Every element of every array gets a number: 0, it does not depend on the variables; 1 or 2, it is a polynomial in them
of that degree at most, whose coefficients may depend on all else (time, parameters, captured data); MORE, it may be
anything. Sums take the greater of two degrees, products add them, elements keep theirs where they are moved, and a
primitive without a rule turns what depends on the variables into MORE. So a degree is never claimed that is too low; it
may be too high, as for x - x, or |x|^2 by a norm that is squared (whose derivative at zero is not a quadratic's).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from optctl._jaxpr import Literal
from optctl.tape.walk import INLINED, LOOPS, MOVES, Walker, call, factors, registrar

MORE = 3

RULES: dict[str, Callable] = MOVES | LOOPS | dict.fromkeys(INLINED, call)
"""Degrees of the results from those of the operands, or None for MORE."""
rule = registrar(RULES)


def degree(function: Callable, variables: Sequence[Any], others: Sequence[Any]) -> tuple[int, str]:
    """Return the greatest degree of `function(*variables, *others)` in the variables, and the primitive behind MORE.

    Args:
        function: written in JAX; its results are a tree of arrays.
        variables: arrays, or `ShapeDtypeStruct`s.
        others: trees of arrays that are coefficients.

    Example:
        >>> import jax.numpy as jnp
        >>> degree(lambda x, t: t * x @ x + jnp.sin(t), [jnp.ones(2)], [1.0])
        (2, '')
        >>> degree(lambda x: jnp.sin(x), [jnp.ones(2)], [])
        (3, 'sin')
    """
    walk, results = _degrees(function, variables, others)
    found = max(map(_greatest, results), default=0)
    return found, walk.culprit if found == MORE else ""


def depends(function: Callable, variables: Sequence[Any], others: Sequence[Any]) -> list[np.ndarray]:
    """Return which elements of each array of the results may depend on the variables, by structure.

    Example:
        >>> import jax.numpy as jnp
        >>> depends(lambda u, x: jnp.array([x[0], x[0] * u[0]]), [jnp.ones(1)], [jnp.ones(1)])
        [array([False,  True])]
    """
    return [result > 0 for result in _degrees(function, variables, others)[1]]


def _degrees(function: Callable, variables: Sequence[Any], others: Sequence[Any]) -> tuple["Degrees", list[np.ndarray]]:
    closed = jax.make_jaxpr(function)(*variables, *others)
    count, walk = len(jax.tree.leaves(variables)), Degrees()
    given = [np.full(v.aval.shape, int(k < count), np.int8) for k, v in enumerate(closed.jaxpr.invars)]
    return walk, walk.closed(closed, given)


def _greatest(array: np.ndarray) -> int:
    return int(array.max(initial=0))


def _like(v: Any, value: int = 0) -> np.ndarray:
    return np.full(getattr(v.aval, "shape", ()), value, np.int8)


class Degrees(Walker):
    """Walks jaxprs and remembers the first primitive that made an element MORE."""

    def __init__(self) -> None:
        self.culprit = ""

    def constant(self, value: Any) -> np.ndarray:
        """Return zeros: what a function holds does not depend on the variables."""
        return np.zeros(np.shape(value), np.int8)

    def equation(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        """Return the degrees of an equation's results."""
        most = max(map(_greatest, args), default=0)
        if most == 0:
            return [_like(v) for v in eqn.outvars]
        rule = RULES.get(eqn.primitive.name)
        found = None if rule is None else rule(self, eqn, *args)
        if found is None:
            results = [_like(v, MORE) for v in eqn.outvars]
        else:
            found = found if isinstance(found, list) else [found]
            pairs = zip(found, eqn.outvars, strict=True)
            results = [np.broadcast_to(np.asarray(result, np.int8), v.aval.shape) for result, v in pairs]
        if not self.culprit and most < MORE and any((result == MORE).any() for result in results):
            self.culprit = eqn.primitive.name
        return results

    def scan(self, eqn: Any, body: Callable, carry: list[np.ndarray], rows: list[np.ndarray]) -> list[np.ndarray]:
        """Go through the loop until nothing is raised; each row has the greatest degrees of all."""
        row = [a.max(axis=0, initial=0) for a in rows]
        carry = _settled(lambda carry: body(carry, row)[0], carry)
        return [*carry, *body(carry, row)[1]]

    def loop(
        self, eqn: Any, going: Callable, body: Callable, carry: list[np.ndarray], held: list[np.ndarray]
    ) -> list[np.ndarray] | None:
        """Go through the loop until nothing is raised; its number of turns must not depend on the variables."""
        carry = _settled(body, carry)
        return None if _greatest(going(carry)) else carry

    def branch(self, index: np.ndarray, cases: list[Callable]) -> list[np.ndarray] | None:
        """Return the greatest degrees of all branches; which one is taken must not depend on the variables."""
        if _greatest(index):
            return None
        return [np.max(np.stack(results), axis=0) for results in zip(*[case() for case in cases], strict=True)]


def _settled(body: Callable, carry: list[np.ndarray]) -> list[np.ndarray]:
    """Return the degrees of what a loop carries: the least that its body does not raise."""
    while True:
        following = [np.maximum(a, b) for a, b in zip(carry, body(carry), strict=True)]
        if all((a == b).all() for a, b in zip(carry, following, strict=True)):
            return carry
        carry = following


@rule("add", "add_any", "sub")
def _sum(walk: Degrees, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(a, b)


@rule("neg", "copy", "copy_p", "device_put", "optimization_barrier", "name", "real", "imag", "conj")
def _same(walk: Degrees, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
    return list(args)


@rule("convert_element_type")
def _convert(walk: Degrees, eqn: Any, a: np.ndarray) -> np.ndarray | None:
    kinds = eqn.invars[0].aval.dtype.kind, eqn.outvars[0].aval.dtype.kind
    return a if set(kinds) <= {"f", "c"} else None


@rule("mul")
def _product(walk: Degrees, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.minimum(a + b, MORE)


@rule("div")
def _quotient(walk: Degrees, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    if eqn.outvars[0].aval.dtype.kind not in "fc":
        return None
    return np.where(b == 0, a, np.int8(MORE))


@rule("square")
def _square(walk: Degrees, eqn: Any, a: np.ndarray) -> np.ndarray:
    return np.minimum(2 * a, MORE)


@rule("integer_pow")
def _integer_pow(walk: Degrees, eqn: Any, a: np.ndarray) -> np.ndarray:
    return _power(a, eqn.params["y"])


@rule("pow")
def _pow(walk: Degrees, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    exponent = eqn.invars[1]
    if not isinstance(exponent, Literal) or np.ndim(exponent.val):
        return None
    return _power(a, float(exponent.val))


def _power(a: np.ndarray, exponent: float) -> np.ndarray:
    whole = exponent in (0, 1, 2)
    return np.where(a == 0, 0, np.minimum(int(exponent) * a, MORE) if whole else MORE)


@rule("select_n")
def _select(walk: Degrees, eqn: Any, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    greatest = np.max(np.stack(cases), axis=0)
    return np.where(which == 0, greatest, np.int8(MORE))


@rule("reduce_sum")
def _reduce_sum(walk: Degrees, eqn: Any, a: np.ndarray) -> np.ndarray:
    return a.max(axis=tuple(eqn.params["axes"]), initial=0)


@rule("dot_general")
def _dot_general(walk: Degrees, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = _like(eqn.outvars[0])
    rows, columns = factors(a, b, eqn.params["dimension_numbers"])
    for i in np.unique(a):
        for j in np.unique(b):
            if i + j:  # where a sum holds a product of elements of these degrees
                counts = (rows == i).astype(np.float32) @ np.swapaxes(columns == j, 1, 2).astype(np.float32)
                hit = counts.reshape(found.shape) > 0
                found[hit] = np.maximum(found[hit], min(i + j, MORE))
    return found


# Linear in some operands, which ones depends on numbers: every result gets the greatest degree.


@rule("pad", "cumsum", "reduce_window_sum", "fft")
def _mixed(walk: Degrees, eqn: Any, *args: np.ndarray) -> int:
    return max(map(_greatest, args))


@rule("gather", "dynamic_slice")
def _chosen(walk: Degrees, eqn: Any, a: np.ndarray, *indices: np.ndarray) -> int | None:
    return None if any(map(_greatest, indices)) else _greatest(a)


@rule("dynamic_update_slice")
def _updated(walk: Degrees, eqn: Any, a: np.ndarray, new: np.ndarray, *indices: np.ndarray) -> int | None:
    return None if any(map(_greatest, indices)) else max(_greatest(a), _greatest(new))


@rule("scatter", "scatter-add", "scatter-sub")
def _scattered(walk: Degrees, eqn: Any, a: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> int | None:
    return None if _greatest(indices) else max(_greatest(a), _greatest(updates))


@rule("conv_general_dilated")
def _convolution(walk: Degrees, eqn: Any, a: np.ndarray, b: np.ndarray) -> int:
    return min(_greatest(a) + _greatest(b), MORE)


@rule("triangular_solve")
def _triangular_solve(walk: Degrees, eqn: Any, a: np.ndarray, b: np.ndarray) -> int | None:
    return None if _greatest(a) else _greatest(b)


@rule("custom_linear_solve", "linear_solve")
def _linear_solve(walk: Degrees, eqn: Any, *args: np.ndarray) -> list[np.ndarray] | None:
    constants = sum(eqn.params["const_lengths"])
    if any(map(_greatest, args[:constants])):
        return None
    most = max(map(_greatest, args[constants:]), default=0)
    return [_like(v, most) for v in eqn.outvars]
