"""Derivatives of scalar expressions, as expressions: each operation's partials stand in one table.

    adjoints    one sweep down from weighted results: sum_i weight_i d result_i / d variable_j for all j
    tangents    one sweep up: d result_i / d variable_j, those that are not zero
    pushed      one sweep up along a direction: sum_j move_j d result_i / d variable_j for all i

Both give what JAX's derivatives are, also where a function has none: at ties of max and min (half to each), at the edge
of a clamp (zero), at zero for |x| (one). A rule that a function brings with it (`jax.custom_jvp`, `jax.custom_vjp`)
stands in `Expressions.rules`, and so do derivatives in better form than those of what a primitive is made of.

Griewank & Walther, Evaluating Derivatives (2008), ch. 3.
"""

import inspect
import math
from collections.abc import Callable, Container, Mapping, Sequence

from optctl.tape.expressions import CODE, MINUS_ONE, ONE, OPERATIONS, ZERO, Expressions

PARTIALS: dict[str, Callable] = {
    "add": lambda g, r, a, b: (ONE, ONE),
    "sub": lambda g, r, a, b: (ONE, g.constant(-1.0)),
    "mul": lambda g, r, a, b: (b, a),
    "div": lambda g, r, a, b: (g.div(ONE, b), g.neg(g.mul(r, g.div(ONE, b)))),
    "neg": lambda g, r, a: (g.constant(-1.0),),
    "abs": lambda g, r, a: (g.select(g.binary("le", ZERO, a), ONE, MINUS_ONE),),
    "sqrt": lambda g, r, a: (g.mul(g.constant(0.5), g.reciprocal(r)),),
    "min": lambda g, r, a, b: (_wins(g, a, b), _wins(g, b, a)),
    "max": lambda g, r, a, b: (_wins(g, b, a), _wins(g, a, b)),
    "select": lambda g, r, p, a, b: (ZERO, g.select(p, ONE, ZERO), g.select(p, ZERO, ONE)),
    "sin": lambda g, r, a: (g.unary("cos", a),),
    "cos": lambda g, r, a: (g.neg(g.unary("sin", a)),),
    "exp": lambda g, r, a: (r,),
    "log": lambda g, r, a: (g.reciprocal(a),),
    "pow": lambda g, r, a, b: (
        g.mul(b, g.pow(a, g.sub(b, ONE))),
        g.mul(r, g.unary("log", g.select(g.symmetric("eq", a, ZERO), ONE, a))),
    ),
    "tan": lambda g, r, a: (g.add(ONE, g.mul(r, r)),),
    "asin": lambda g, r, a: (g.reciprocal(g.unary("sqrt", g.sub(ONE, g.mul(a, a)))),),
    "acos": lambda g, r, a: (g.neg(g.reciprocal(g.unary("sqrt", g.sub(ONE, g.mul(a, a))))),),
    "atan": lambda g, r, a: (g.reciprocal(g.add(ONE, g.mul(a, a))),),
    "atan2": lambda g, r, a, b: (
        g.mul(b, g.reciprocal(g.add(g.mul(a, a), g.mul(b, b)))),
        g.neg(g.mul(a, g.reciprocal(g.add(g.mul(a, a), g.mul(b, b))))),
    ),
    "sinh": lambda g, r, a: (g.unary("cosh", a),),
    "cosh": lambda g, r, a: (g.unary("sinh", a),),
    "tanh": lambda g, r, a: (g.mul(g.add(ONE, r), g.sub(ONE, r)),),
    "asinh": lambda g, r, a: (g.reciprocal(g.unary("sqrt", g.add(ONE, g.mul(a, a)))),),
    "acosh": lambda g, r, a: (g.reciprocal(g.unary("sqrt", g.sub(g.mul(a, a), ONE))),),
    "atanh": lambda g, r, a: (g.reciprocal(g.mul(g.add(ONE, a), g.sub(ONE, a))),),
    "exp2": lambda g, r, a: (g.mul(g.constant(math.log(2.0)), r),),
    "expm1": lambda g, r, a: (g.add(ONE, r),),
    "log1p": lambda g, r, a: (g.reciprocal(g.add(ONE, a)),),
    "cbrt": lambda g, r, a: (g.mul(g.constant(1 / 3), g.reciprocal(g.mul(r, r))),),
    "erf": lambda g, r, a: (_bell(g, a),),
    "erfc": lambda g, r, a: (g.neg(_bell(g, a)),),
    "rem": lambda g, r, a, b: (ONE, g.neg(g.unary("trunc", g.div(a, b)))),
}
"""Operation -> the partials of its result r in its operands: rule(g, r, *operands)."""

FLAT = ("load", "lookup", "sign", "floor", "ceil", "round", "rint", "trunc", "isfinite", "eq", "ne", "lt", "le")
"""Operations whose derivative is zero."""


def _wins(g: Expressions, a: int, b: int) -> int:
    """Return 1 where a < b, 1/2 where a = b, 0 elsewhere."""
    tie = g.select(g.symmetric("eq", a, b), g.constant(0.5), ZERO)
    return g.select(g.binary("lt", a, b), ONE, tie)


def _bell(g: Expressions, a: int) -> int:
    return g.mul(g.constant(2 / math.sqrt(math.pi)), g.unary("exp", g.neg(g.mul(a, a))))


_FLAT = {CODE[name] for name in FLAT}
_OPERANDS = {name: len(inspect.signature(rule).parameters) - 2 for name, rule in PARTIALS.items()}


def smooth_operands(g: Expressions, node: int) -> Sequence[int]:
    """Return the operands of a node in which it may have derivatives."""
    if node in g.rules:
        return g.rules[node][0]
    operation, *abc = g.nodes[node]
    return () if operation < 0 or operation in _FLAT else abc[: _OPERANDS[OPERATIONS[operation]]]


def partials(g: Expressions, node: int) -> Sequence[tuple[int, int]]:
    """Return the operands of a node and the partials in them that are not zero."""
    found = g.partials.get(node)
    if found is None:
        operands = smooth_operands(g, node)
        values: Sequence[int] = ()
        if node in g.rules:
            values = g.rules[node][1]()
        elif operands:
            values = PARTIALS[OPERATIONS[g.nodes[node][0]]](g, node, *operands)
        pairs = [pair for pair in zip(operands, values, strict=False) if pair[1] != ZERO]
        found = g.partials[node] = tuple(pairs)
    return found


def adjoints(g: Expressions, weights: Mapping[int, int], variables: Sequence[int]) -> list[int]:
    """Return sum_i weight_i d result_i / d variable_j, for each variable.

    Args:
        g: the expressions.
        weights: result -> weight, expressions both.
        variables: inputs.
    """
    add, mul = g.add, g.mul
    top = max(weights, default=-1)
    depends = _depends(g, top, variables)
    total = {i: weight for i, weight in weights.items() if depends[i]}
    for i in range(top, -1, -1):
        if i not in total or not depends[i]:
            continue
        weight = total[i]
        for operand, partial in partials(g, i):
            if depends[operand]:
                term = mul(weight, partial)
                total[operand] = add(total[operand], term) if operand in total else term
    return [total.get(i, ZERO) for i in variables]


def tangents(
    g: Expressions, results: Sequence[int], variables: Sequence[int], held: Sequence[int] = ()
) -> list[dict[int, int]]:
    """Return for each result its derivatives that are not zero: place of the variable -> derivative.

    Expressions that are `held` do not move.
    """
    add, mul = g.add, g.mul
    top = max(results, default=-1)
    depends = _depends(g, top, variables, held)
    moves: dict[int, dict[int, int]] = {i: {place: ONE} for place, i in enumerate(variables)}
    for i in _on_the_way(g, results, moves, depends):
        total: dict[int, int] = {}
        for operand, partial in partials(g, i):
            if depends[operand]:
                for place, move in moves[operand].items():
                    term = mul(partial, move)
                    total[place] = add(total[place], term) if place in total else term
        moves[i] = total
    return [moves[i] if depends[i] else {} for i in results]


def _on_the_way(g: Expressions, results: Sequence[int], moves: Container[int], depends: bytearray) -> list[int]:
    """Return in order what lies between the results and what moves: expressions whose derivatives are needed."""
    needed, stack = set(), [i for i in set(results) if depends[i]]
    while stack:
        i = stack.pop()
        if i not in needed and i not in moves:
            needed.add(i)
            stack.extend([operand for operand, _ in partials(g, i) if depends[operand]])
    return sorted(needed)


def pushed(g: Expressions, results: Sequence[int], moves: Mapping[int, int]) -> list[int]:
    """Return the derivative of each result along one direction: sum_j move_j d result_i / d variable_j.

    Args:
        g: the expressions.
        results: expressions.
        moves: variable -> its move, expressions both.
    """
    add, mul = g.add, g.mul
    top = max(results, default=-1)
    depends = _depends(g, top, list(moves))
    total = dict(moves)
    for i in _on_the_way(g, results, moves, depends):
        sums = [mul(partial, total[operand]) for operand, partial in partials(g, i) if depends[operand]]
        along = ZERO
        for term in sums:
            along = add(along, term)
        total[i] = along
    return [total[i] if depends[i] else ZERO for i in results]


def jacobian(
    g: Expressions, results: Sequence[int], variables: Sequence[int], held: Sequence[int] = ()
) -> list[list[int]]:
    """Return d result_i / d variable_j, row by row; expressions that are `held` do not move."""
    return [[row.get(j, ZERO) for j in range(len(variables))] for row in tangents(g, results, variables, held)]


def _depends(g: Expressions, top: int, variables: Sequence[int], held: Sequence[int] = ()) -> bytearray:
    """Return which nodes, up to the highest, have a derivative in the variables."""
    depends = bytearray(max(top, *variables, 0) + 1)
    for i in variables:
        depends[i] = 1
    nodes, rules, still = g.nodes, g.rules, set(held)
    first = min(variables, default=top)
    for i in range(first + 1, top + 1):
        operation, a, b, c = nodes[i]
        if i in still:
            continue
        if i in rules:
            depends[i] |= any([depends[operand] for operand in rules[i][0]])
        elif operation >= 0 and operation not in _FLAT and (depends[a] or depends[b] or depends[c]):
            depends[i] = 1
    return depends
