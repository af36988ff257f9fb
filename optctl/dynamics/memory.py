r"""Bounded memory: which states to keep, and which to compute again on the way back.

The costate recursion needs the states in reverse order. Keeping all of them takes N numbers a state component; a
schedule keeps a few in slots, restores one and steps forward from it when a later state is needed again. For c slots,
one of which holds x_0, the least number of forward steps in which N stages can be reversed is

    r N - binomial(c + r, r - 1),   where r is the least integer with binomial(c + r, c) >= N:

no stage is computed more than r times. The optimal schedule cuts the horizon in two, keeps the state at the cut,
reverses the later part with c - 1 slots, and then the earlier part with c.

Reference: Griewank and Walther (2000), Algorithm 799: revolve, ACM Transactions on Mathematical Software 26, section 2;
Griewank and Walther (2008), Evaluating Derivatives, section 12.3.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._validate import as_whole, shown


@dataclass(frozen=True)
class Binomial:
    """Keep at most `slots` states, x_0 included, and recompute the others in the fewest forward steps.

    Args:
        slots: number of states kept at any time, at least one.

    Raises:
        ValueError: for fewer than one slot.

    Example:
        >>> import optctl as oc
        >>> oc.Binomial(5).forward_steps(100)
        316

    References:
        Griewank and Walther (2000), Algorithm 799: revolve, ACM Transactions on Mathematical Software 26.
    """

    slots: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", as_whole(self.slots, "slots", "states to keep"))

    def forward_steps(self, N: int) -> int:
        """Return how many steps forward reversing N stages takes; the adjoint steps' own are not counted."""
        return _least_steps(N, min(self.slots, N))


Memory = str | Binomial


def check_memory(memory: Any) -> Memory:
    """Return a memory mode, or raise ValueError."""
    if isinstance(memory, Binomial) or (isinstance(memory, str) and memory in ("full", "sqrt")):
        return memory
    raise ValueError(f"`memory` is {shown(memory)}; expected 'full', 'sqrt' or Binomial(slots).")


@dataclass(frozen=True)
class Schedule:
    """How to visit the stages N-1..0. Before the k-th of them a state is restored and `moves` are made from it.

    Attributes:
        slots: number of slots.
        slot: (N,) the slot restored, `start` the stage of its state.
        start: (N,).
        first: (N+1,) moves first[k]..first[k+1]-1 belong to visit k.
        advance: number of steps of each move.
        keep: the slot each move's end is kept in, `slots` for none.
    """

    slots: int
    slot: Any
    start: Any
    first: Any
    advance: Any
    keep: Any

    @property
    def forward_steps(self) -> int:
        """Steps forward in all."""
        return int(self.advance.sum())

    def arrays(self) -> tuple[Any, ...]:
        """Return what the compiled loop reads."""
        return tuple(jnp.asarray(a, jnp.int32) for a in (self.slot, self.start, self.first, self.advance, self.keep))


@functools.lru_cache(maxsize=32)
def schedule(memory: Memory, N: int) -> Schedule:
    """Return the schedule of a memory mode for N stages."""
    if memory == "full":
        return _segments(N, N)
    if memory == "sqrt":
        return _segments(N, math.isqrt(max(N - 1, 0)) + 1)
    assert isinstance(memory, Binomial)
    slots = min(memory.slots, max(N, 1))
    return _assemble(slots, _revolve(N, slots))


def _assemble(slots: int, visits: Iterator[tuple[int, int, list[tuple[int, int]]]]) -> Schedule:
    """Pack visits, each (slot, start, moves), into arrays."""
    slot, start, first, moves = [], [], [0], []
    for one_slot, one_start, some_moves in visits:
        slot.append(one_slot)
        start.append(one_start)
        moves += some_moves
        first.append(len(moves))
    pairs = np.array(moves, np.int32).reshape(-1, 2)
    return Schedule(
        slots, np.array(slot, np.int32), np.array(start, np.int32), np.array(first), pairs[:, 0], pairs[:, 1]
    )


def _segments(N: int, length: int) -> Schedule:
    """Keep the first state of each segment; going back, keep all states of one segment."""
    starts = list(range(0, N, length))
    many = len(starts)
    slots = many + min(length, N) - 1

    def visits() -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        for i in reversed(range(many)):
            end = min(starts[i] + length, N)
            walk = [(1, many + j) for j in range(end - starts[i] - 1)]
            if i == many - 1:  # the first way forward
                yield 0, 0, [(length, j) for j in range(1, many)] + walk
            else:
                yield i, starts[i], walk
            for j in reversed(range(end - starts[i] - 1)):
                yield (many + j - 1 if j else i), starts[i] + j, []

    return _assemble(slots, visits())


def _revolve(N: int, slots: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Visit the stages in the fewest forward steps."""
    parts = [(0, N, 0)]  # parts of the horizon still to reverse: first stage, end, slot of its first state; last on top
    at = None
    moves: list[tuple[int, int]] = []
    visit = (0, 0)
    while parts:
        begin, end, slot = parts.pop()
        if at is None:
            at, visit, moves = begin, (slot, begin), []
        free = slots - slot
        if end - begin == 1 or free == 1:
            if end - 1 > begin:
                moves.append((end - 1 - begin, slots))
                parts.append((begin, end - 1, slot))
            yield (*visit, moves)
            at = None
            continue
        cut = begin + _cut(end - begin, free)
        moves.append((cut - begin, slot + 1))
        parts += [(begin, cut, slot), (cut, end, slot + 1)]
        at = cut


def _reach(slots: int, repeats: int) -> int:
    """Return the most stages that `slots` can reverse with no stage computed more than `repeats` times."""
    return math.comb(slots + repeats, slots) if repeats >= 0 else 0


def _repeats(N: int, slots: int) -> int:
    """Return the least r with binomial(slots + r, slots) >= N."""
    r = 0
    while _reach(slots, r) < N:
        r += 1
    return r


@functools.lru_cache(maxsize=100_000)
def _least_steps(N: int, slots: int) -> int:
    if N <= 1:
        return 0
    r = _repeats(N, slots)
    return r * N - _reach(slots + 1, r - 1)


@functools.lru_cache(maxsize=100_000)
def _cut(N: int, slots: int) -> int:
    """Return where the optimal schedule cuts N stages: how many to advance before keeping a state."""
    r = _repeats(N, slots)
    return max(1, min(_reach(slots, r - 1), N - _reach(slots - 1, r - 1), N - 1))


def take(array: Any, i: Any) -> Any:
    """Return array[i]; cheaper in a loop than indexing, which allows for negative i."""
    return jax.lax.dynamic_index_in_dim(array, i, 0, keepdims=False)


def put(array: Any, value: Any, i: Any) -> Any:
    """Return the array with array[i] = value, in place in a loop; a scatter would not be."""
    return jax.lax.dynamic_update_index_in_dim(array, jnp.asarray(value, array.dtype), i, 0)


def reverse(
    plan: tuple[Any, ...], slots: int, step: Callable, x0: Any, finish: Callable, visit: Callable, carry: Any
) -> Any:
    """Run a schedule: one compiled loop over the stages N-1..0, with the state of each at hand.

    Args:
        plan: a schedule's `arrays()`.
        slots: its number of slots.
        step: `step(x, t)` returns the next state.
        x0: the first state.
        finish: `finish(x_N, carry)` returns the carry that the first visit gets.
        visit: `visit(x_t, t, carry)` returns the next carry.
        carry: what is handed on; known at the start.
    """
    slot, start, first, advance, keep = plan
    N = slot.shape[0]
    kept = jax.tree.map(lambda x: jnp.zeros((slots + 1, *x.shape), x.dtype).at[0].set(x), x0)  # the last is for nothing

    def walk(k: Any, kept: Any) -> tuple[Any, Any]:
        """Restore a state, make the moves of visit k."""

        def move(i: Any, state: tuple) -> tuple:
            x, kept, t = state
            x = jax.lax.fori_loop(t, t + advance[i], lambda t, x: step(x, t), x)
            kept = jax.tree.map(lambda slots, x: put(slots, x, keep[i]), kept, x)
            return x, kept, t + advance[i]

        x = jax.tree.map(lambda slots: take(slots, slot[k]), kept)
        if advance.shape[0] == 0:
            return x, kept
        x, kept, _ = jax.lax.fori_loop(first[k], first[k + 1], move, (x, kept, start[k]))
        return x, kept

    def back(k: Any, state: tuple) -> tuple:
        x, kept, carry = state
        carry = visit(x, N - 1 - k, carry)
        x, kept = walk(k + 1, kept)
        return x, kept, carry

    x, kept = walk(0, kept)
    carry = finish(step(x, N - 1), carry)
    x, kept, carry = jax.lax.fori_loop(0, N - 1, back, (x, kept, carry))
    return visit(x, 0, carry)
