"""The functions of an ODE as graphs, traced once, for their values, and the tapes that steps through time need.

    values    (inputs): the function
    along     (inputs, their directions, that of the parameters): the function, and its derivative along the direction
    back      (inputs, weights w): the function, and w' times its derivatives in each input, then in each parameter
    slopes    (inputs): a scalar function, its derivatives in each input, then in each parameter if `priced`

Inputs are (y, u, t) of the right side, (y, t) of events, whose y is the flat state (`system.py`), states and times of
events of a loss. A tape is judged before its first use, by NumPy: the function at points around the first one, and
derivatives against differences along a random direction.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from optctl import _native
from optctl.judge.independent import SLOPE, STENCIL, STEPS, differ, differ_in_value, differences
from optctl.judge.interpreter import Uninterpreted, interpret
from optctl.tape import Graph, Tape, Unsupported, adjoints, memories_now, pushed, trace
from optctl.tape.evaluate import needed_for
from optctl.tape.expressions import CODE, CONSTANT, GIVEN, INPUT, LOAD, LOOKUP, LOOPED, ONE, ZERO
from optctl.tape.program import READS

LONGEST = 20_000
"""Most instructions of a tape; beyond, states or networks are large, and XLA is the better choice."""
SYMMETRIC = frozenset([CODE[name] for name in ("add", "mul", "min", "max", "eq", "ne")])
POINTS = 8
"""How many points a tape is judged at."""


class Function:
    """A function of vectors that vary and of data that are held, `function(*inputs, held)`, with its derivatives.

    Args:
        function: of vectors and of `held`; returns one vector.
        sizes: of the vectors.
        held: a pytree.
        of_params: which of its leaves are parameters, that derivatives are taken in.
        rows: where the first vector is a batch, its rows, and `function` that of one: results are of rows, too. Of
            derivatives in what the rows share, tapes have each row's.
        whole: the function of all rows, flat.

    Raises:
        Unsupported: if it holds something that no graph can.
    """

    def __init__(
        self, function: Callable, sizes: Sequence[int], held: Any, of_params: Sequence[int],
        rows: int = 1, whole: Callable | None = None,
    ) -> None:  # fmt: skip
        self.sizes, self.held, self.of_params = sizes, held, of_params
        self.rows, self.whole = rows, function if whole is None else whole
        specs = [jax.ShapeDtypeStruct((size,), np.float64) for size in sizes]
        self.graph: Graph = trace(function, specs, held, limit=LONGEST)
        self.inputs = [i for of in self.graph.inputs for i in of.tolist()]
        self.results = self.graph.results[0].ravel().tolist()
        self.params = [i for k in of_params for i in self.graph.uniform[k].ravel().tolist()]
        self._tapes: dict[str, Tape | Unsupported] = {}
        self._judged: dict[str, bool] = {}

    @property
    def captured(self) -> bool:
        """True if the function holds values that are being traced."""
        return bool(self.graph.captured)

    @cached_property
    def directions(self) -> np.ndarray:
        """The direction of each parameter: numbers without a pattern."""
        sizes = [self.graph.uniform[k].size for k in self.of_params]
        return np.concatenate([np.zeros(0), *map(direction, sizes)])

    def tape(self, kind: str) -> Tape:
        """Return a tape by its kind.

        Raises:
            Unsupported: if it would be too long.
        """
        found = self._tapes.get(kind)
        if found is None:
            try:
                with np.errstate(all="ignore"):
                    found = getattr(self, f"_{kind}")()
            except Unsupported as why:
                found = why
            self._tapes[kind] = found
        if isinstance(found, Unsupported):
            raise found
        return found

    def _values(self) -> Tape:
        return self.graph.tape(self.graph.inputs, self.graph.results)

    def _along(self) -> Tape:
        g, moves, of_params = self.graph.g, self.graph.variable(len(self.inputs)), self.graph.variable(1)
        self._refuse_lookups()
        along = dict(zip(self.inputs, moves.tolist(), strict=True))
        for i, d in zip(self.params, self.directions.tolist(), strict=True):
            along[i] = g.mul(g.constant(d), of_params.item())
        moved = np.array(pushed(g, self.results, along), np.intp)
        return self.graph.tape([*self.graph.inputs, moves, of_params], [*self.graph.results, moved])

    def _back(self) -> Tape:
        g, w = self.graph.g, self.graph.variable(len(self.results))
        self._refuse_lookups()
        weights: dict[int, int] = {}
        for i, weight in zip(self.results, w.tolist(), strict=True):
            weights[i] = g.add(weights.get(i, ZERO), weight)
        found = adjoints(g, weights, [*self.inputs, *self.params])
        return self.graph.tape([*self.graph.inputs, w], [*self.graph.results, np.array(found, np.intp)])

    def _slopes(self, priced: bool = False) -> Tape:
        wanted = [*self.inputs, *self.params] if priced else self.inputs
        if priced:
            self._refuse_lookups()
        found = adjoints(self.graph.g, {self.results[0]: ONE}, wanted)
        return self.graph.tape(self.graph.inputs, [*self.graph.results, np.array(found, np.intp)])

    def _priced(self) -> Tape:
        return self._slopes(True)

    def _refuse_lookups(self) -> None:
        nodes = self.graph.g.nodes
        places = {nodes[i][1] for i in self.params}
        if any([operation == LOOKUP and base in places for operation, _, base, _ in nodes]):
            raise Unsupported("the derivative in parameters that an index picks")

    def judged(self, kind: str, at: Sequence[np.ndarray], held: Any) -> bool:
        """Return whether NumPy agrees with a tape around a point; asked for the first time, it is looked at there.

        Raises:
            Unsupported: if the tape would be too long.
        """
        if kind not in self._judged:
            with np.errstate(all="ignore"):
                self._judged[kind] = self._agrees(self.tape(kind), kind, at, held)
        return self._judged[kind]

    @cached_property
    def _by_numpy(self) -> Any:
        many, (first, *others) = POINTS * len(STENCIL), self.sizes
        specs = [jax.ShapeDtypeStruct((many, size), np.float64) for size in (first * self.rows, *others)]
        axes = (*[0] * len(specs), None)
        return interpret(jax.vmap(self.whole, axes), *specs, self.held)

    def _run(self, tape: Tape, leaves: Sequence[np.ndarray], inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return the results of a tape at points, (POINTS, .) each input, those of rows side by side."""
        memory, _ = memories_now((tape,), leaves)
        if self.rows == 1:
            return _native.run_tape(tape.alone, memory, np.hstack(inputs), tape.outputs.size)
        q, B = self.sizes[0], self.rows
        parts = [part.reshape(-1, q) if part.shape[1] == B * q else np.repeat(part, B, axis=0) for part in inputs]
        made = _native.run_tape(tape.alone, memory, np.hstack(parts), tape.outputs.size)
        own = q * (1 if tape is self._tapes.get("values") else 2)
        of_rows = [made[:, k : k + q].reshape(POINTS, B * q) for k in range(0, own, q)]
        return np.hstack([*of_rows, made[:, own:].reshape(POINTS, B, -1).sum(1)])

    def _agrees(self, tape: Tape, kind: str, at: Sequence[np.ndarray], held: Any) -> bool:
        try:
            by_numpy = self._by_numpy
        except Uninterpreted:
            return False
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(held)]
        rng = np.random.default_rng(7)
        x = np.concatenate([np.ravel(part) for part in at])
        spread = np.where(x == 0, 0.5, 0.2 * np.abs(x))
        points = x + spread * rng.uniform(-1, 1, (POINTS, x.size))
        points[0] = x
        size = rng.uniform(0.5, 1.0, points.shape) * rng.choice([-1.0, 1.0], points.shape)
        d = np.maximum(np.abs(points), 0.1) * size
        move = self.directions if kind == "along" else rng.choice([-1.0, 1.0], len(self.params)) * 0.5
        with_params = kind in ("along", "back", "priced") and move.size > 0
        w = rng.normal(size=(POINTS, self.rows * len(self.results)))
        widths = [self.sizes[0] * self.rows, *self.sizes[1:]]

        def apart(columns: np.ndarray) -> list[np.ndarray]:
            return np.split(columns, np.cumsum(widths)[:-1], axis=1)

        def values(h: float) -> np.ndarray:
            """The function along the stencil, (5, POINTS, results)."""
            stencil = np.stack([points + c * h * d for c in STENCIL]).reshape(-1, x.size)
            parts = apart(stencil)
            if not with_params:
                return by_numpy(*parts, *leaves)[0].reshape(len(STENCIL), POINTS, -1)
            rows = []
            for k, c in enumerate(STENCIL):
                begin, moved = 0, list(leaves)
                for place in self.of_params:
                    size = leaves[place].size
                    step = move[begin : begin + size].reshape(leaves[place].shape)
                    moved[place] = leaves[place] + c * h * step
                    begin += size
                found = by_numpy(*parts, *moved)[0]
                rows.append(found.reshape(len(STENCIL), POINTS, -1)[k])
            return np.stack(rows)

        inputs = {"along": [*apart(d), np.full((POINTS, 1), float(with_params))], "back": [w]}.get(kind, [])
        claimed = self._run(tape, leaves, [*apart(points), *inputs])
        found, many = differences(values(STEPS[0]), STEPS[0]), self.rows * len(self.results)
        own, claimed = claimed[:, :many], claimed[:, many:]
        scale = np.abs(found.values) + np.abs(np.nan_to_num(found.slope))
        if differ_in_value(own, found, scale).any():
            return False
        if kind == "values":
            return True
        if kind == "along":
            slopes, size = claimed, np.abs(claimed)
            contract: Callable = lambda v: v  # noqa: E731
        else:
            along = np.hstack([d, np.tile(move, (POINTS, 1))])[:, : claimed.shape[1]]
            slopes, size = (claimed * along).sum(1), np.abs(claimed * along).sum(1)
            contract = (lambda v: (v * w).sum(-1)) if kind == "back" else (lambda v: v[..., 0])
        several = [differences(contract(values(h)), h) for h in STEPS]
        size = size + np.abs(several[0].slope) + np.abs(several[0].values)
        return not differ(slopes, several, size, SLOPE).any()


def rows_alike(graph: Graph) -> bool:
    """Return whether a function of a batch treats each row alone, and all alike.

    Its first input and its result are (rows, q): the expressions of each row are those of the first, with the row's
    inputs in the place of the first's.
    """
    g, (first, *others) = graph.g, graph.inputs[0].tolist()
    ones, *results = graph.results[0].tolist()
    of_others = {i for row in others for i in row}
    given: dict[int, list[int]] = {}
    for i, (operation, a, _, _) in enumerate(g.nodes):
        if operation == GIVEN:
            given.setdefault(a, []).append(i)
    needed = needed_for(g, ones)
    if any([i in of_others or g.nodes[i][0] == LOOPED for i in needed]):  # a loop is not compared
        return False
    for row, result in zip(others, results, strict=True):
        moved = dict(zip(first, row, strict=True))  # what stands for an expression in the other row
        for i in needed:
            operation, *abc = g.nodes[i]
            if i in moved or operation in (CONSTANT, LOAD, INPUT):
                moved.setdefault(i, i)
                continue
            if operation == GIVEN:
                alike = given.get(moved[abc[0]], [])
                found = alike[0] if len(given[abc[0]]) == len(alike) == 1 else None
            else:
                reads = (0,) if operation == LOOKUP else READS[operation]
                a, b, c = [moved[x] if k in reads else x for k, x in enumerate(abc)]
                found = g.find(operation, a, b, c)
                found = g.find(operation, b, a, c) if found is None and operation in SYMMETRIC else found
            if found is None:
                return False
            moved[i] = found
        if [moved[i] for i in ones] != result:
            return False
    return True


def direction(size: int) -> np.ndarray:
    """Return so many numbers between -1 and 1 without a pattern."""
    return np.cos(1.0 + np.arange(size) ** 2)
