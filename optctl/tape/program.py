"""Functions as tapes: flat programs of scalar instructions, which C++ runs for many stages at once without XLA.

    jaxpr -> scalar expressions, simplified -> fused, ordered, with slots for their results

An instruction (operation, d, a, b, c) writes slot d and reads slots a, b, c, of which each holds one number per stage.
An operand of the operations `*_m` (a) and `*_c` (c) is an address in memory, the same numbers for all stages;
`load` reads address a, and `lookup` reads address b + c * slot a. The first instructions, the prologue, do not depend
on what changes between calls; the others, the body, can be run again and again without them.
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
    ONE,
    OPERATIONS,
    TABLES,
    Expressions,
)
from optctl.tape.unroll import INDEX, Unroller, Unsupported

_ADD, _SUB, _MUL, _DIV = (CODE[name] for name in ("add", "sub", "mul", "div"))
_MULADD, _NEGMULADD, _MULSUB = (CODE[name] for name in ("muladd", "negmuladd", "mulsub"))
_BINARY = ("add", "sub", "mul", "div", "min", "max", "eq", "ne", "lt", "le", "pow", "atan2", "rem")
_TERNARY = ("muladd", "negmuladd", "mulsub", "select")


def _slots_read(name: str) -> tuple[int, ...]:
    if name == "load":
        return ()
    if name.endswith("_m"):
        return (1, 2) if name[:-2] in _TERNARY else (1,)
    if name.endswith("_c"):
        return (0, 1)
    return (0, 1, 2) if name in _TERNARY else (0, 1) if name in _BINARY else (0,)


_WINDOW = 1024  # instructions; found by timing
READS = [_slots_read(name) for name in OPERATIONS]  # which of the operands a, b, c are slots
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
    nodes, outputs = _plain(g, outputs)
    instructions = _fuse(nodes, g.varies, outputs)
    _use_memory(g, instructions, outputs)
    body, before = _order(instructions, g.varies, outputs)
    if len(body) + len(before) > limit:
        raise Unsupported(f"{len(body) + len(before)} instructions; the limit is {limit}")
    used, slot_of, slots = _slots(instructions, before, body, inputs, outputs, g.varies)
    given, addresses = frozenset(inputs), dict[int, int]()
    constants = list(g.tables)

    def address(node: int) -> int:
        operation, place, _, _ = g.nodes[node]
        if operation == LOAD:
            return place
        if node not in addresses:
            addresses[node] = TABLES + len(constants)
            constants.append(g.values[node])
        return addresses[node]

    code = []
    for i in before + body:
        operation, *operands = instructions[i]
        reads = READS[operation]
        if operation == LOAD or reads[0] == 1:
            operands[0] = address(operands[0])
        elif reads == (0, 1) and operation in _WITH_TERM.values():
            operands[2] = address(operands[2])
        for k in reads:
            operands[k] = slot_of[operands[k]]
        code.append((operation, slot_of[i], *operands))
    table = np.array(code, np.int64).reshape(-1, 5)
    table = np.where(table >= CAPTURED, table - CAPTURED + uniforms + len(constants), table)
    table = np.where(table >= TABLES, table - TABLES + uniforms, table)
    return Tape(
        code=table.astype(np.int32),
        prologue=len(before),
        slots=slots,
        inputs=np.array([slot_of[i] if i in used else -1 for i in inputs], np.int32),
        outputs=np.array([slot_of[i] for i in outputs], np.int32),
        once=np.array([not g.varies[i] for i in outputs], bool),
        constants=np.array(constants, np.float64),
        captured=captured,
        numbers=uniforms + len(constants) + sum(array.size for array in captured),
        staged=any([instructions[i][k + 1] in given for i in before for k in READS[instructions[i][0]]]),
    )


def _plain(g: Expressions, outputs: list[int]) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """Return nodes and outputs that read values in place of expressions with given derivatives."""
    if not any([node[0] == GIVEN for node in g.nodes]):
        return g.nodes, outputs
    value = list(range(len(g.nodes)))
    nodes: list[tuple[int, int, int, int]] = []
    for i, (operation, a, b, c) in enumerate(g.nodes):
        if operation == GIVEN:
            value[i] = value[a]
        reads = READS[operation] if operation >= 0 else ()
        a, b, c = [value[x] if k in reads else x for k, x in enumerate((a, b, c))]
        nodes.append((operation, a, b, c))
    return nodes, [value[i] for i in outputs]


def _fuse(
    nodes: list[tuple[int, int, int, int]], varies: list[bool], outputs: list[int]
) -> dict[int, tuple[int, int, int, int]]:
    """Return the nodes that the outputs need, a product with one use as part of the sum that uses it."""
    uses = [0] * len(nodes)
    for i in outputs:
        uses[i] += 1
    needed = []
    for i in range(len(nodes) - 1, -1, -1):
        if uses[i] and nodes[i][0] >= 0:
            needed.append(i)
            node = nodes[i]
            for k in READS[node[0]]:
                uses[node[k + 1]] += 1
    instructions: dict[int, tuple[int, int, int, int]] = {}

    def product(i: int, j: int) -> tuple[int, int] | None:
        found = instructions.get(i)
        if found is None or found[0] != _MUL or uses[i] > 1 or varies[i] != varies[j]:
            return None
        del instructions[i]
        return found[1], found[2]

    for i in reversed(needed):
        operation, a, b, c = nodes[i]
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


def _use_memory(g: Expressions, instructions: dict[int, tuple[int, int, int, int]], outputs: list[int]) -> None:
    """Let instructions read from memory where they can; loads are added for other operands that lie there."""
    nodes = g.nodes
    loads = set(outputs)
    for i, (operation, a, b, c) in instructions.items():
        in_memory = [k in READS[operation] and nodes[(a, b)[k]][0] in (LOAD, CONSTANT) for k in (0, 1)]
        if operation in _WITH_FACTOR and (in_memory[0] or in_memory[1]):
            if not in_memory[0]:
                a, b = b, a
            instructions[i] = (_WITH_FACTOR[operation], a, b, c)
        elif operation in (_SUB, _DIV) and in_memory[0]:
            instructions[i] = (CODE["sub_m" if operation == _SUB else "div_m"], a, b, c)
        elif operation == _SUB and in_memory[1]:
            instructions[i] = (CODE["rsub_m"], b, a, c)
        elif operation in _WITH_TERM and nodes[c][0] in (LOAD, CONSTANT):
            instructions[i] = (_WITH_TERM[operation], a, b, c)
        found = instructions[i]
        loads.update(found[k + 1] for k in READS[found[0]])
    for i in loads:
        if nodes[i][0] in (LOAD, CONSTANT):
            instructions[i] = (LOAD, i, 0, 0)


def _order(instructions: dict, varies: list[bool], outputs: list[int]) -> tuple[list[int], list[int]]:
    """Return the body and the prologue, each depth-first from the outputs: results are used soon."""
    coefficients: dict[int, None] = {}
    body = _depth_first(instructions, [i for i in outputs if varies[i]], varies, coefficients)
    body = _group(instructions, body)
    roots = [*coefficients, *(i for i in outputs if not varies[i])]
    return body, _depth_first(instructions, roots, None, {})


def _group(instructions: dict, order: list[int]) -> list[int]:
    """Return an order in which equal operations follow each other, which processors predict, within a window."""
    place = {i: at for at, i in enumerate(order)}
    users: list[list[int]] = [[] for _ in order]
    waiting = [0] * len(order)
    ready: dict[int, list[int]] = {}
    for at, i in enumerate(order):
        node = instructions[i]
        for operand in {node[k + 1] for k in READS[node[0]]}:
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


def _depth_first(instructions: dict, roots: list[int], varies: list[bool] | None, skipped: dict) -> list[int]:
    order: list[int] = []
    done: set[int] = set()
    stack = roots[::-1]
    while stack:
        i = stack.pop()
        if i < 0:
            order.append(~i)
        elif i not in done and i in instructions:
            if varies and not varies[i]:
                skipped[i] = None
                continue
            done.add(i)
            stack.append(~i)
            node = instructions[i]
            stack.extend([node[k + 1] for k in READS[node[0]]])
    return order


def _slots(
    instructions: dict, before: list[int], body: list[int], inputs: list[int], outputs: list[int], varies: list[bool]
) -> tuple[set[int], dict[int, int], int]:
    """Return the inputs that are used, the slot of each node, and the number of slots."""
    order = before + body
    last: dict[int, int] = {}
    for at, i in enumerate(order):
        node = instructions[i]
        for k in READS[node[0]]:
            last[node[k + 1]] = at
    kept = set(outputs)
    kept.update(i for i, at in last.items() if at >= len(before) and not varies[i])
    used = {i for i in inputs if i in last or i in kept}
    slot_of = {i: slot for slot, i in enumerate(i for i in inputs if i in used)}
    slots = len(slot_of)
    free: list[int] = []
    for at, i in enumerate(order):
        node = instructions[i]
        operands = {node[k + 1] for k in READS[node[0]]}
        over = [j for j in operands if last[j] == at and j not in kept and (at >= len(before) or j not in used)]
        free.extend(slot_of[j] for j in over)
        if free:
            slot_of[i] = free.pop()
        else:
            slot_of[i] = slots
            slots += 1
    return used, slot_of, slots
