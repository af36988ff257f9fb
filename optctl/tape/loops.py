"""Loops of a graph: what is worked out in each turn, and the derivatives of what they leave.

    carry <- following(carry, outside)   as long as   condition(carry, outside) is not zero

The derivative of all that is carried in something from outside, a start or an expression that a turn reads, is carried
along by the loop itself, which thereby gets more to carry, not another loop:

    D = d carry / d outside:    D <- d following / d carry D + d following / d outside

starting from one for the start itself, else from zero. A tape carries only what its results need. The number of turns
has no derivative, so the condition plays no part. All of this are expressions, so derivatives of any order follow,
sparse where the turns are.

Griewank & Walther, Evaluating Derivatives (2008), ch. 15.
"""

import math
from collections.abc import Sequence

from optctl.tape.derivatives import smooth_operands, tangents
from optctl.tape.expressions import LOOPED, ONE, VARIABLE, ZERO, Expressions, Loop


class Part:
    """The expressions that are worked out in one place: outside of all loops, or in each turn of one.

    Attributes:
        loop: None outside of all.
        nodes: what is worked out here.
        places: which of the carried numbers.
        loops: number -> the part of each loop that runs here.
        reads: what the turns read from elsewhere.
    """

    def __init__(self, g: Expressions, number: int | None = None) -> None:
        self.g, self.number = g, number
        self.loop = Loop() if number is None else g.loops[number]
        self.nodes: list[int] = []
        self.places: dict[int, None] = {}
        self.loops: dict[int, Part] = {}
        self.reads: dict[int, None] = {}
        self._seen: set[int] = set()
        self._inside: dict[int, bool] = {}

    def carry(self, place: int) -> list[int]:
        """Add one of the carried numbers, and the condition; return what it needs from elsewhere that none did."""
        reads, places = len(self.reads), len(self.places)
        self.places.setdefault(place)
        self.need([self.loop.condition, self.loop.following[place]])
        return [*list(self.reads)[reads:], *[self.loop.starts[k] for k in list(self.places)[places:]]]

    def need(self, roots: Sequence[int]) -> None:
        """Add what these expressions need."""
        stack = list(roots)
        while stack:
            i = stack.pop()
            if i in self._seen:
                continue
            self._seen.add(i)
            operation, number, place, _ = self.g.nodes[i]
            if self.number is not None and not self.is_inside(i):
                self.reads[i] = None
            elif operation == VARIABLE:
                self.places.setdefault(place)
                stack.append(self.loop.following[place])
            else:
                self.nodes.append(i)
                stack.extend(self._looped(number, place) if operation == LOOPED else self.operands(i))

    def operands(self, node: int) -> Sequence[int]:
        """Return the expressions that one needs here."""
        return self.g.operands(node)

    def depends(self, node: int) -> Sequence[int]:
        """Return the expressions that one depends on."""
        return self.g.operands(node)

    def _looped(self, number: int, place: int) -> Sequence[int]:
        if number not in self.loops:
            self.loops[number] = Part(self.g, number)
        return self.loops[number].carry(place)

    def is_inside(self, node: int) -> bool:
        """Return whether an expression depends on the variables of the loop."""
        known, first, nodes = self._inside, self.loop.variables[0], self.g.nodes
        if node < first:
            return False
        if node not in known:
            stack, found = [node], []
            while stack:
                i = stack.pop()
                if i >= first and i not in known:
                    known[i] = False
                    found.append(i)
                    stack.extend(self.depends(i))
            for i in sorted(found):
                operation, number, _, _ = nodes[i]
                own = operation == VARIABLE and number == self.number
                known[i] = own or any([known.get(k, False) for k in self.depends(i)])
        return known[node]

    def order(self, roots: Sequence[int]) -> list[int]:
        """Return what is worked out here, each after what it needs; ~number is a loop."""
        order: list[int] = []
        begun, done, stack = set(), set(), list(roots)
        own = set(self.nodes)
        while stack:
            i = stack[-1]
            if i in done or (i >= 0 and i not in own):
                stack.pop()
            elif i in begun:
                done.add(i)
                order.append(stack.pop())
            else:
                begun.add(i)
                if i < 0:
                    inner = self.loops[~i]
                    stack.extend([*inner.reads, *[inner.loop.starts[k] for k in inner.places]])
                else:
                    operation, number, _, _ = self.g.nodes[i]
                    stack.extend([~number] if operation == LOOPED else self.operands(i))
        return order


class _Whole(Part):
    """What carried numbers and their derivatives may depend on."""

    def operands(self, node: int) -> Sequence[int]:
        return self.depends(node)

    def depends(self, node: int) -> Sequence[int]:
        return [*self.g.operands(node), *smooth_operands(self.g, node)]

    def _looped(self, number: int, place: int) -> Sequence[int]:
        return self.g.loops[number].reads[place]


class _Smooth(_Whole):
    """What carried numbers have derivatives in."""

    def carry(self, place: int) -> list[int]:
        self.places.setdefault(place)
        self.need([self.loop.following[place]])
        return []

    def operands(self, node: int) -> Sequence[int]:
        return smooth_operands(self.g, node)


def is_within(g: Expressions, node: int) -> bool:
    """Return whether an expression depends on the variables of some loop."""
    return any(Part(g, number).is_inside(node) for number, loop in enumerate(g.loops) if loop.results)


def new_loop(g: Expressions, starts: Sequence[int], varies: bool) -> tuple[int, list[int]]:
    """Begin a loop that carries these numbers; return its number, and its variables."""
    number = len(g.loops)
    g.constant(math.nan)  # what a loop leaves that is given up
    g.loops.append(Loop(starts=list(starts)))
    return number, g.carried(number, len(starts), varies)


def end_loop(g: Expressions, number: int, condition: int, following: Sequence[int]) -> list[int]:
    """Say what the variables of a loop become; return what is left of them in the end."""
    loop = g.loops[number]
    loop.condition = condition
    loop.following.extend(following)
    return _left(g, number)


def _left(g: Expressions, number: int) -> list[int]:
    """Return what is left of those carried numbers that are new."""
    loop = g.loops[number]
    places = range(len(loop.results), len(loop.variables))
    whole = _Whole(g, number)
    for place in places:
        whole.carry(place)
    starts = [loop.starts[k] for k in whole.places]
    reads = [i for i in dict.fromkeys([*starts, *whole.reads]) if i not in g.values]
    for place in places:
        made = len(g.nodes)
        g.nodes.append((LOOPED, number, place, 0))
        g.varies.append(g.varies[loop.variables[place]])
        loop.results.append(made)
        loop.reads.append(reads)
        g.rules[made] = reads, lambda place=place: _slopes(g, number, place, reads)
    return loop.results[places.start :]


def _slopes(g: Expressions, number: int, place: int, operands: Sequence[int]) -> list[int]:
    """Return the derivatives of what a loop leaves."""
    loop = g.loops[number]
    if place not in loop.slopes:
        _differentiate(g, number, place)
    found = loop.slopes[place]
    return [loop.results[found[i]] if i in found else ZERO for i in operands]


def _differentiate(g: Expressions, number: int, place: int) -> None:
    """Let a loop carry the derivatives of one of its numbers, and of those that it depends on."""
    loop, add, mul = g.loops[number], g.add, g.mul
    smooth = _Smooth(g, number)
    smooth.carry(place)
    every = list(smooth.places)
    new = [k for k in every if k not in loop.slopes]
    outside = [i for i in smooth.reads if i not in g.values]
    rows = tangents(g, [loop.following[k] for k in new], [*[loop.variables[k] for k in every], *outside])
    through = [{every[j]: row[j] for j in row if j < len(every)} for row in rows]
    directly = [{outside[j - len(every)]: row[j] for j in row if j >= len(every)} for row in rows]
    moves: dict[int, dict[int, None]] = {k: dict.fromkeys(loop.slopes.get(k, ())) for k in every}
    for k, row in zip(new, directly, strict=True):
        moves[k].update(dict.fromkeys(row if loop.starts[k] in g.values else (loop.starts[k], *row)))
    while True:  # until none gets a derivative from another any more
        before = sum(map(len, moves.values()))
        for k, row in zip(new, through, strict=True):
            for j in row:
                moves[k].update(moves[j])
        if sum(map(len, moves.values())) == before:
            break
    first = len(loop.variables)
    wanted = [(k, i) for k in new for i in moves[k]]
    varies = g.varies[loop.variables[0]]
    g.carried(number, len(wanted), varies)
    for k in new:
        loop.slopes[k] = {}
    for at, (k, i) in enumerate(wanted):
        loop.slopes[k][i] = first + at
        loop.starts.append(ONE if loop.starts[k] == i else ZERO)
    for k, some, others in zip(new, through, directly, strict=True):
        for i in moves[k]:
            total = others.get(i, ZERO)
            for j, partial in some.items():
                if i in loop.slopes[j]:
                    total = add(total, mul(partial, loop.variables[loop.slopes[j][i]]))
            loop.following.append(total)
    _left(g, number)
