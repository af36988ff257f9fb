"""Functions as tapes: flat programs of scalar instructions, which C++ runs for many stages at once without XLA.

    jaxpr -> scalar expressions, simplified -> fused, ordered, with slots for their results

An instruction (operation, d, a, b, c) writes slot d and reads slots a, b, c, of which each holds one number per stage.
An operand of the operations `*_m` (a) and `*_c` (c) is an address in memory, the same numbers for all stages;
`load` reads address a, and `lookup` reads address b + c * slot a. The first instructions, the prologue, do not depend
on what changes between calls; the others, the body, can be run again and again without them.

Loops jump, by c instructions: `leave` goes on if slot a is zero at all stages that are run together, `repeat` goes
back, for b turns at most, which it counts in slot d. What a loop carries has slots of its own; a turn writes into them
but for stages whose condition is zero, which keep what they have, whatever the others still do:

    var <- start; count <- 0
    A:  condition; leave B; what follows; var <- condition ? what follows : var; repeat A
        var <- condition ? NaN : var
    B:
"""

import dataclasses
import heapq
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _native
from optctl.tape.expressions import (
    CAPTURED,
    CODE,
    CONSTANT,
    GIVEN,
    INPUT,
    LOAD,
    LOOPED,
    ONE,
    READS,
    TABLES,
    TURNS,
    ZERO,
    Expressions,
)
from optctl.tape.loops import Part
from optctl.tape.unroll import INDEX, Unroller, Unsupported

_ADD, _SUB, _MUL, _DIV = (CODE[name] for name in ("add", "sub", "mul", "div"))
_MULADD, _NEGMULADD, _MULSUB, _SELECT = (CODE[name] for name in ("muladd", "negmuladd", "mulsub", "select"))
_COPY, _LEAVE, _REPEAT = (CODE[name] for name in ("copy", "leave", "repeat"))
_LOOP, _LEAVE_HERE = -6, -7  # a whole loop, as one instruction; where its turns may end

_WINDOW = 1024  # instructions; found by timing
_WITH_FACTOR = {CODE[name]: CODE[name + "_m"] for name in ("add", "mul", "muladd", "negmuladd", "mulsub")}
_WITH_TERM = {CODE[name]: CODE[name + "_c"] for name in ("muladd", "negmuladd")}


@dataclasses.dataclass(frozen=True, eq=False)
class Tape:
    """A function as instructions.

    Attributes:
        code: (n, 5) int32: operation, d, a, b, c; operands that an operation does not have are 0.
        prologue: the first so many instructions depend on nothing but memory and fixed inputs.
        slots: number of slots.
        inputs: int32, the slot of each number of the varying inputs, -1 where it is not used.
        outputs: int32, the slot of each number of the results.
        once: bool, which results are there after the prologue.
        constants: float64, behind the uniform values in memory.
        captured: arrays behind the constants in memory: JAX tracers that the function holds.
        numbers: how many numbers lie in memory; no instruction reads outside of them.
        staged: whether the prologue reads inputs; else its results are the same at all stages.
    """

    code: np.ndarray
    prologue: int
    slots: int
    inputs: np.ndarray
    outputs: np.ndarray
    once: np.ndarray
    constants: np.ndarray
    captured: tuple
    numbers: int
    staged: bool

    @cached_property
    def alone(self) -> np.ndarray:
        """The tape as the kernels read it, at the beginning of its memory."""
        return self.packed()

    def packed(self, offset: int = 0) -> np.ndarray:
        """Return the tape as the kernels read it; its memory begins at an offset."""
        counts = len(self.code), self.prologue, self.slots, len(self.inputs), len(self.outputs)
        head = [*counts, offset, self.numbers, self.staged]
        return np.concatenate([head, self.code.ravel(), self.inputs, self.outputs, self.once]).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A function as expressions; tapes are made of those that are wanted, such as its derivatives.

    Attributes:
        g: the expressions.
        inputs: arrays of them, the leaves of what varies.
        results: arrays of them.
        uniform: arrays of them, the leaves of what is the same for all stages, which lie first in memory.
        captured: JAX tracers that the function holds.
        limit: the greatest number of instructions of a tape.
    """

    g: Expressions
    inputs: list[np.ndarray]
    results: list[np.ndarray]
    uniform: list[np.ndarray]
    captured: list[Any]
    limit: int

    def variable(self, size: int) -> np.ndarray:
        """Return new inputs."""
        return self.g.leaves(INPUT, 0, size, True)

    def tape(self, inputs: Sequence[np.ndarray], results: Sequence[Any]) -> Tape:
        """Return the results as a tape of the inputs.

        Raises:
            Unsupported: if it would be too long.
        """
        given, wanted = [[int(i) for array in arrays for i in np.ravel(array)] for arrays in (inputs, results)]
        uniforms = sum([leaf.size for leaf in self.uniform])
        return _assemble(self.g, given, wanted, uniforms, tuple(self.captured), self.limit)


def trace(
    function: Callable, varying: Sequence[Any], uniform: Any, *, fixed: Sequence[int] = (), limit: int = 200_000
) -> Graph:
    """Return `function(*varying, uniform)` as expressions.

    Args:
        function: of arrays, written in JAX; its results are a tree of arrays.
        varying: trees of arrays or `ShapeDtypeStruct`s that differ between stages; whole numbers arrive as doubles.
        uniform: tree of arrays that are the same for all stages; they are read from `memory`.
        fixed: which of `varying` do not change between calls, such as the stage's index.
        limit: the greatest number of instructions.

    Raises:
        Unsupported: naming a primitive that tapes do not have, or that the tape would be too long.
    """
    specs = [jax.tree.map(_spec, tree) for tree in (*varying, uniform)]
    closed = jax.make_jaxpr(function)(*specs)
    walk = Unroller(limit)
    g = walk.g
    inputs, held, place = [], [], 0
    for position, tree in enumerate(specs[:-1]):
        for leaf in jax.tree.leaves(tree):
            inputs.append(g.leaves(INPUT, 0, leaf.size, position not in fixed).reshape(leaf.shape))
            walk.sizes.update(dict.fromkeys(inputs[-1].ravel().tolist(), INDEX))
    for leaf in jax.tree.leaves(specs[-1]):
        held.append(g.leaves(LOAD, place, leaf.size, False).reshape(leaf.shape))
        place += leaf.size
    with np.errstate(all="ignore"):
        results = walk.closed(closed, [*inputs, *held])
    return Graph(g, inputs, results, held, walk.captured, limit)


def compile_tape(
    function: Callable, varying: Sequence[Any], uniform: Any, *, fixed: Sequence[int] = (), limit: int = 200_000
) -> Tape:
    """Return `function(*varying, uniform)` as a tape; arguments and errors are those of `trace`.

    Slots of inputs are loaded before each run (fixed ones before the prologue) and may be overwritten by the body;
    the results of the prologue that the body needs are not.
    """
    graph = trace(function, varying, uniform, fixed=fixed, limit=limit)
    return graph.tape(graph.inputs, graph.results)


def memories(tapes: Sequence[Tape], uniform: Any) -> tuple[Any, tuple[int, ...]]:
    """Return what tapes read, one after another, and where each begins.

    Each has the uniform values, its constants and what it captured, side by side; of NumPy where all of that is.
    """
    leaves = jax.tree.leaves(uniform)
    captured = [part for tape in tapes for part in tape.captured]
    if not any(isinstance(leaf, jax.Array) for leaf in (*leaves, *captured)):
        return memories_now(tapes, leaves)

    def flat(parts: Sequence[Any]) -> Any:
        return jnp.concatenate([jnp.ravel(jnp.asarray(part, np.float64)) for part in parts] or [jnp.zeros(0)])

    same, parts, begins = flat(leaves), [], [0]
    for tape in tapes:
        parts += [same, tape.constants, *([flat(tape.captured)] if tape.captured else [])]
        begins.append(begins[-1] + same.size + tape.constants.size + sum([part.size for part in tape.captured]))
    return jnp.concatenate(parts), tuple(begins[:-1])


def memories_now(tapes: Sequence[Tape], leaves: Sequence[Any]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the same as NumPy's array, from the uniform values' leaves, none of which is being traced."""
    leaves = [np.asarray(leaf) for leaf in leaves]
    size, at = sum([leaf.size for leaf in leaves]), 0
    ends = list(accumulate([size + tape.constants.size + sum([np.size(c) for c in tape.captured]) for tape in tapes]))
    made, begins = np.empty(ends[-1]), (0, *ends[:-1])
    for leaf in leaves:
        made[at : at + leaf.size] = leaf.ravel()
        at += leaf.size
    for begin, tape in zip(begins, tapes, strict=True):
        made[begin : begin + size], at = made[:size], begin + size
        for part in (tape.constants, *tape.captured):
            made[at : at + np.size(part)] = np.ravel(part)
            at += np.size(part)
    return made, begins


def memory(tape: Tape, uniform: Any) -> Any:
    """Return what a tape reads."""
    return memories((tape,), uniform)[0]


def run(tape: Tape, values: Any, uniform: Any, repeat: int = 1) -> Any:
    """Return the results (N, outputs) of a tape for varying inputs (N, inputs); the body is run `repeat` times."""
    _native.require()
    return _native.run_tape(tape.packed(), memory(tape, uniform), jnp.asarray(values), tape.outputs.size, repeat)


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    if aval.dtype not in ("float64", "int64", "int32", "bool"):
        raise Unsupported(f"an argument of {aval.dtype}")
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def _assemble(
    g: Expressions, inputs: list[int], outputs: list[int], uniforms: int, captured: tuple, limit: int
) -> Tape:
    nodes, value = _plain(g)
    part = Part(g)
    part.need(outputs)
    block = _Block(g, nodes, value, part, [value[i] for i in outputs])
    writer = _Writer(g, nodes)
    used, slot_of, prologue = writer.write_all(block, inputs)
    if len(writer.code) > limit:
        raise Unsupported(f"{len(writer.code)} instructions; the limit is {limit}")
    given, constants = frozenset(inputs), writer.constants
    table = np.array(writer.code, np.int64).reshape(-1, 5)
    table = np.where(table >= CAPTURED, table - CAPTURED + uniforms + len(constants), table)
    table = np.where(table >= TABLES, table - TABLES + uniforms, table)
    return Tape(
        code=table.astype(np.int32),
        prologue=prologue,
        slots=writer.slots,
        inputs=np.array([slot_of[i] if i in used else -1 for i in inputs], np.int32),
        outputs=np.array([slot_of[value[i]] for i in outputs], np.int32),
        once=np.array([not g.varies[i] for i in outputs], bool),
        constants=np.array(constants, np.float64),
        captured=captured,
        numbers=uniforms + len(constants) + sum(array.size for array in captured),
        staged=any([j in given for i in block.before for j in _reads(block.instructions[i])]),
    )


def _plain(g: Expressions) -> tuple[list[tuple[int, int, int, int]], Sequence[int]]:
    """Return nodes that read values in place of expressions with given derivatives, and the value of each node."""
    value = list(range(len(g.nodes)))
    if not any([node[0] == GIVEN for node in g.nodes]):
        return g.nodes, value
    nodes: list[tuple[int, int, int, int]] = []
    for i, (operation, a, b, c) in enumerate(g.nodes):
        if operation == GIVEN:
            value[i] = value[a]
        reads = READS[operation] if operation >= 0 else ()
        a, b, c = [value[x] if k in reads else x for k, x in enumerate((a, b, c))]
        nodes.append((operation, a, b, c))
    return nodes, value


def _reads(instruction: tuple[int, ...]) -> Sequence[int]:
    """Return the nodes that an instruction reads."""
    operation = instruction[0]
    return [instruction[k + 1] for k in READS[operation]] if operation >= 0 else instruction[1:]


class _Block:
    """The instructions of a part, in their order; those of the loops within stand in blocks of their own.

    Attributes:
        instructions: (operation, operands) of each node; a loop is one that reads what it needs from here, and whose
            results read it.
        order: of the turns of a loop: up to its condition, then `LEAVE`, then the rest. Outside, the body's.
        before: the prologue's order.
        reads: nodes that a loop needs from elsewhere.
        following: place -> what a loop carries into its next turn.
    """

    def __init__(self, g: Expressions, nodes: list, value: Sequence[int], part: Part, outputs: Sequence[int]) -> None:
        self.part, self.varies, self.outputs = part, g.varies, outputs
        self.inner: dict[int, _Block] = {}
        self.following: dict[int, int] = {}
        if part.number is not None:
            self.condition = value[part.loop.condition]
            self.starts = {k: value[part.loop.starts[k]] for k in part.places}
            self.following = {k: value[part.loop.following[k]] for k in part.places}
            self.outputs = outputs = [self.condition, *self.following.values()]
        for number, inner in part.loops.items():
            self.inner[len(nodes) + number] = _Block(g, nodes, value, inner, ())
        self.instructions = _fuse(nodes, g.varies, self, len(nodes))
        loads = _use_memory(nodes, self.instructions, outputs)
        if part.number is None:
            self.instructions.update((i, (LOAD, i, 0, 0)) for i in loads)
            self.order, self.before = self._outside(nodes)
        else:
            own = {*self.instructions, *[part.loop.variables[k] for k in part.places]}
            outside = [i for i in self.starts.values() if nodes[i][0] not in (LOAD, CONSTANT)]
            every = [*outputs, *[i for instruction in self.instructions.values() for i in _reads(instruction)]]
            self.reads = list(dict.fromkeys([*[i for i in every if i not in own], *outside]))
            order = _depth_first(self.instructions, outputs, None, {})
            first = len(_depth_first(self.instructions, [self.condition], None, {}))
            self.order = [*order[:first], _LEAVE_HERE, *_group(self.instructions, order[first:])]

    def _outside(self, nodes: list) -> tuple[list[int], list[int]]:
        """Return the body and the prologue, each depth-first from the outputs: results are used soon."""
        outputs, count = self.outputs, len(nodes)

        def varies(i: int) -> bool:
            return self.varies[i] if i < count else self.varies[self.inner[i].part.loop.variables[0]]

        coefficients: dict[int, None] = {}
        body = _depth_first(self.instructions, [i for i in outputs if varies(i)], varies, coefficients)
        body = _group(self.instructions, body)
        roots = [*coefficients, *(i for i in outputs if not varies(i))]
        return body, _depth_first(self.instructions, roots, None, {})


def _fuse(nodes: list, varies: list[bool], block: _Block, count: int) -> dict[int, tuple[int, ...]]:
    """Return the nodes of a block as instructions, a product with one use as part of the sum that uses it."""
    uses = [0] * count
    needed = sorted(block.part.nodes)
    for i in block.outputs:
        uses[i] += 1
    for inner in block.inner.values():
        for i in inner.reads:
            uses[i] += 1
    for i in needed:
        node = nodes[i]
        if node[0] >= 0:
            for k in READS[node[0]]:
                uses[node[k + 1]] += 1
    instructions: dict[int, tuple[int, ...]] = {key: (_LOOP, *inner.reads) for key, inner in block.inner.items()}

    def product(i: int, j: int) -> tuple[int, int] | None:
        found = instructions.get(i)
        if found is None or found[0] != _MUL or uses[i] > 1 or varies[i] != varies[j]:
            return None
        del instructions[i]
        return found[1], found[2]

    for i in needed:
        operation, a, b, c = nodes[i]
        if operation == LOOPED:
            instructions[i] = (LOOPED, count + a)
            continue
        if operation < 0:
            continue
        if operation == _MUL:
            for x, y in ((a, b), (b, a)):
                quotient = instructions.get(y)
                if quotient and uses[y] == 1 and quotient[0] == _DIV and quotient[1] == ONE and varies[y] == varies[i]:
                    del instructions[y]
                    operation, a, b = _DIV, x, quotient[2]
                    break
        elif operation == _ADD:
            if factors := product(b, i):
                operation, (a, b), c = _MULADD, factors, a
            elif factors := product(a, i):
                operation, (a, b), c = _MULADD, factors, b
        elif operation == _SUB:
            if factors := product(b, i):
                operation, (a, b), c = _NEGMULADD, factors, a
            elif factors := product(a, i):
                operation, (a, b), c = _MULSUB, factors, b
        instructions[i] = (operation, a, b, c)
    return instructions


def _use_memory(nodes: list, instructions: dict[int, tuple[int, ...]], outputs: Sequence[int]) -> list[int]:
    """Let instructions read from memory where they can; return the other operands and outputs that lie there."""
    loads = dict.fromkeys(outputs)
    for i, instruction in instructions.items():
        if instruction[0] >= 0:
            instructions[i] = instruction = _with_memory(nodes, *instruction)
        if instruction[0] != LOOPED:
            loads.update(dict.fromkeys(_reads(instruction)))
    return [i for i in loads if nodes[i][0] in (LOAD, CONSTANT)]


def _with_memory(nodes: list, operation: int, a: int, b: int, c: int) -> tuple[int, int, int, int]:
    in_memory = [k in READS[operation] and nodes[(a, b)[k]][0] in (LOAD, CONSTANT) for k in (0, 1)]
    if operation in _WITH_FACTOR and (in_memory[0] or in_memory[1]):
        if not in_memory[0]:
            a, b = b, a
        return _WITH_FACTOR[operation], a, b, c
    if operation in (_SUB, _DIV) and in_memory[0]:
        return CODE["sub_m" if operation == _SUB else "div_m"], a, b, c
    if operation == _SUB and in_memory[1]:
        return CODE["rsub_m"], b, a, c
    if operation in _WITH_TERM and nodes[c][0] in (LOAD, CONSTANT):
        return _WITH_TERM[operation], a, b, c
    return operation, a, b, c


def _group(instructions: dict, order: list[int]) -> list[int]:
    """Return an order in which equal operations follow each other, which processors predict, within a window."""
    place = {i: at for at, i in enumerate(order)}
    users: list[list[int]] = [[] for _ in order]
    waiting = [0] * len(order)
    ready: dict[int, list[int]] = {}
    for at, i in enumerate(order):
        node = instructions[i]
        for operand in set(_reads(node)):
            if operand in place:
                users[place[operand]].append(at)
                waiting[at] += 1
        if not waiting[at]:
            ready.setdefault(node[0], []).append(at)
    done = [False] * (len(order) + 1)
    grouped: list[int] = []
    first, current = 0, -1
    while len(grouped) < len(order):
        end = first + _WINDOW
        queue = ready.get(current)
        if not queue or queue[0] >= end:
            current = max((op for op, q in ready.items() if q and q[0] < end), key=lambda op: len(ready[op]))
            queue = ready[current]
        at = heapq.heappop(queue)
        grouped.append(order[at])
        done[at] = True
        while done[first]:
            first += 1
        for user in users[at]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready.setdefault(instructions[order[user]][0], []), user)
    return grouped


def _depth_first(
    instructions: dict, roots: Sequence[int], varies: Callable[[int], bool] | None, skipped: dict
) -> list[int]:
    order: list[int] = []
    done: set[int] = set()
    stack = list(roots[::-1])
    while stack:
        i = stack.pop()
        if i < 0:
            order.append(~i)
        elif i not in done and i in instructions:
            if varies and not varies(i):
                skipped[i] = None
                continue
            done.add(i)
            stack.append(~i)
            stack.extend(_reads(instructions[i]))
    return order


class _Writer:
    """Gives results their slots, and writes the instructions that fill them."""

    def __init__(self, g: Expressions, nodes: list) -> None:
        self.g, self.nodes = g, nodes
        self.code: list[tuple[int, int, int, int, int]] = []
        self.slots, self.free = 0, list[int]()
        self.constants = list(g.tables)
        self._addresses: dict[int, int] = {}

    def write_all(self, block: _Block, inputs: list[int]) -> tuple[set[int], dict[int, int], int]:
        """Write prologue and body; return the inputs that are used, slots of nodes, and the length of the prologue."""
        last = _last(block.instructions, block.before + block.order)
        before = {*block.before, *[i for i in inputs if not self.g.varies[i]]}
        kept = {*block.outputs, *before.intersection(_last(block.instructions, block.order))}
        used = {i for i in inputs if i in last or i in kept}
        slot_of = {i: slot for slot, i in enumerate(i for i in inputs if i in used)}
        self.slots = len(slot_of)
        self.write(block, block.before, slot_of, last, kept | used)
        prologue = len(self.code)
        self.write(block, block.order, slot_of, last, kept)
        return used, slot_of, prologue

    def write(
        self, block: _Block, order: Sequence[int], slot_of: dict[int, int], last: dict[int, int], kept: set[int]
    ) -> None:
        """Write instructions one after another; a slot is used again when its number is read no more and not kept."""
        for i in order:
            instruction = block.instructions[i]
            if instruction[0] == LOOPED:
                continue  # the loop itself left it in its slot
            over = [slot_of[j] for j in set(_reads(instruction)) if last[j] == i and j not in kept]
            if instruction[0] == _LOOP:
                self.write_loop(block, i, slot_of)
                self.free.extend(over)
                continue
            self.free.extend(over)
            slot_of[i] = self.slot()
            operation, *operands = instruction
            reads = READS[operation]
            if operation == LOAD or reads[0] == 1:
                operands[0] = self.address(operands[0])
            elif reads == (0, 1) and operation in _WITH_TERM.values():
                operands[2] = self.address(operands[2])
            for k in reads:
                operands[k] = slot_of[operands[k]]
            self.put(operation, slot_of[i], *operands)

    def write_loop(self, outer: _Block, key: int, slot_of: dict[int, int]) -> None:
        """Write a loop; what it needs from elsewhere stays where it is, what it leaves gets slots of its own."""
        block, nodes = outer.inner[key], self.nodes
        loop, free, first = block.part.loop, list(self.free), self.slots
        inside = {i: slot_of[i] for i in block.reads}
        for k, start in block.starts.items():
            inside[loop.variables[k]] = (
                self.load(start) if nodes[start][0] in (LOAD, CONSTANT) else self.copy(inside[start])
            )
        count = self.load(ZERO)
        begin = len(self.code)
        split = block.order.index(_LEAVE_HERE)
        last = _last(block.instructions, [*block.order[:split], *block.order[split + 1 :]])
        kept = {*block.outputs, *inside}
        self.write(block, block.order[:split], inside, last, kept)
        own = {loop.variables[k] for k in block.starts}

        def taken(i: int) -> int:  # before variables are written over
            return self.copy(inside[i]) if i in own else inside[i]

        condition, leave = taken(block.condition), len(self.code)
        self.put(_LEAVE, 0, condition)
        self.write(block, block.order[split + 1 :], inside, last, kept)
        ends = {k: taken(i) for k, i in block.following.items()}
        for k, end in ends.items():
            variable = inside[loop.variables[k]]
            self.put(_SELECT, variable, condition, end, variable)
        self.put(_REPEAT, count, 0, TURNS, begin - len(self.code))
        missing, left = self.load(self.g.constant(np.nan)), {}
        for k in ends:
            if loop.results[k] in outer.instructions:
                left[loop.results[k]] = variable = inside[loop.variables[k]]
                self.put(_SELECT, variable, condition, missing, variable)
        self.code[leave] = (_LEAVE, 0, condition, 0, len(self.code) - leave)
        slot_of.update(left)
        self.free = [slot for slot in (*free, *range(first, self.slots)) if slot not in set(left.values())]

    def put(self, operation: int, d: int, a: int = 0, b: int = 0, c: int = 0) -> None:
        """Write an instruction."""
        self.code.append((operation, d, a, b, c))

    def slot(self) -> int:
        """Return a slot that is free."""
        if self.free:
            return self.free.pop()
        self.slots += 1
        return self.slots - 1

    def load(self, node: int) -> int:
        """Return a new slot with a number from memory."""
        slot = self.slot()
        self.put(LOAD, slot, self.address(node))
        return slot

    def copy(self, slot: int) -> int:
        """Return a new slot with the number of another."""
        made = self.slot()
        self.put(_COPY, made, slot)
        return made

    def address(self, node: int) -> int:
        """Return where a number lies in memory."""
        operation, place, _, _ = self.g.nodes[node]
        if operation == LOAD:
            return place
        if node not in self._addresses:
            self._addresses[node] = TABLES + len(self.constants)
            self.constants.append(self.g.values[node])
        return self._addresses[node]


def _last(instructions: dict, order: Sequence[int]) -> dict[int, int]:
    """Return for each node the instruction that reads it last."""
    return {j: i for i in order for j in _reads(instructions[i])}
