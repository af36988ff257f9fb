"""The functions of a problem as graphs, traced once, for their values; what tapes of them are made, and how.

    values      stage (x, u, t): l, g, h, f          end (x): l, g, h      start (x): l
    slopes      the values; then the slope of the cost and the Jacobians: of a stage f_x, f_u, g_z, h_z with z = (x, u)
    curved      slopes, then the curvature of the cost in z: the upper triangle of a stage, all of an end
    exact       slopes, then the curvature of cost + costate'f + y'(g, h)
    priced      the derivatives in the parameters: of l + costate'f at stages, of l at the ends
    turned      the derivatives in z, in the parameters and in the costate of the derivative of l + costate'f along a
                direction (dz, dparams, dcostate), at the ends without costate: a Hessian times a vector
    pushed      the derivative of f along a direction in the parameters
    moved       the derivatives, in those of the uniform values that are wanted, of the derivative of
                k l + costate'f + y'(g, h) along a direction (dz, dk, dcostate, dy), at k = 1

Slopes and all behind have the inputs (x, u, t, costate, y) and (x, y). Tapes are judged (`tape_check`) before their
first use; `graphs_of` remembers graphs by the structure of the problem, whatever its numbers are.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from optctl._record import remember
from optctl._slow import refused
from optctl.problem import PATH, TERMINAL, Problem, parts_of, signature
from optctl.tape import Graph, Tape, Unsupported, adjoints, jacobian, trace
from optctl.tape.expressions import LOOKUP, ONE, TABLES, ZERO

LONGEST = 30_000
"""Most instructions of a tape; beyond, matrices are large and XLA is the better choice."""
REMEMBERED = 64
_GRAPHS: dict[Any, Any] = {}


class Place:
    """A stage, the end or the start: its graph, and expressions of derivatives in z, its first `count` inputs."""

    def __init__(self, graph: Graph, count: int) -> None:
        self.graph, self.staged = graph, count > 1
        self.cost, *rows = graph.results
        self.functions = [rows[-1], *rows[:-1]] if self.staged else rows
        self.ys = [graph.variable(of.size) for of in self.functions]
        self.z = [i for of in graph.inputs[:count] for i in of.tolist()]
        self._tapes: dict[str, Tape] = {}

    @cached_property
    def slopes(self) -> list[np.ndarray]:
        """The slope of the cost, then the Jacobians; that of the next state in its two parts."""
        g, z = self.graph.g, self.z
        with np.errstate(all="ignore"):
            slope = np.array(adjoints(g, {self.cost.item(): ONE}, z), np.intp)
            J = [np.array(jacobian(g, of.tolist(), z), np.intp).reshape(of.size, len(z)) for of in self.functions]
        if self.staged:
            nx = self.graph.inputs[0].size
            J = [J[0][:, :nx], J[0][:, nx:], *J[1:]]
        return [slope, *J]

    def curvature(self, exact: bool) -> np.ndarray:
        """Return the second derivative in z of the cost, with all functions at their prices if `exact`."""
        g, z = self.graph.g, self.z
        with np.errstate(all="ignore"):
            W = np.array(
                jacobian(g, adjoints(g, self.weights(len(self.functions) if exact else 0), z), z), np.intp
            ).reshape(len(z), len(z))
        return W[np.triu_indices(len(z))] if self.staged else W

    def weights(self, count: int) -> dict[int, int]:
        """Return what the cost and the first `count` functions, at their prices, count in a Lagrangian."""
        return self._sum(
            np.concatenate([self.cost.ravel(), *self.functions[:count]]), np.concatenate([[ONE], *self.ys[:count]])
        )

    def _sum(self, results: Any, weights: Any) -> dict[int, int]:
        """Return the weight of each expression in sum weight . result."""
        total: dict[int, int] = {}
        for i, weight in zip(map(int, results), map(int, weights), strict=True):
            total[i] = self.graph.g.add(total.get(i, ZERO), weight)
        return total

    def tape(self, kind: str) -> Tape:
        """Return a tape by its kind.

        Raises:
            Unsupported: if it would be too long.
        """
        if kind not in self._tapes:
            graph, inputs, values = self.graph, self.graph.inputs, self.graph.results
            if kind == "values":
                made = graph.tape(inputs, values)
            elif kind == "slopes":
                made = graph.tape([*inputs, *self.ys], [*values, *self.slopes])
            else:
                made = graph.tape([*inputs, *self.ys], [*values, *self.slopes, self.curvature(kind == "exact")])
            self._tapes[kind] = made
        return self._tapes[kind]

    def priced(self, leaves: list[int]) -> Tape:
        """Return the tape of the derivatives in those of the uniform values, each a leaf's place.

        Raises:
            Unsupported: where an index that is computed picks a parameter.
        """
        graph, wanted = self.graph, self._of_leaves(leaves)
        with np.errstate(all="ignore"):  # the next state has a price, and nothing else: rows play no part in a gradient
            found = adjoints(graph.g, self.weights(int(self.staged)), wanted)
        return graph.tape([*graph.inputs, self.ys[0]] if self.staged else graph.inputs, [np.array(found, np.intp)])

    def turned(self, leaves: list[int]) -> Tape:
        """Return the tape of second derivatives in z and the parameters, times a vector.

        Its inputs are x, u, t and costate (or x), and the direction dz, dparams and dcostate.

        Raises:
            Unsupported: where an index that is computed picks a parameter, or if the tape would be too long.
        """
        graph, g, wanted = self.graph, self.graph.g, self._of_leaves(leaves)
        prices = self.ys[:1] if self.staged else []
        dz, dp, dy = graph.variable(len(self.z)), graph.variable(len(wanted)), [graph.variable(y.size) for y in prices]
        along = [*self.z, *wanted]
        with np.errstate(all="ignore"):
            slope = adjoints(g, self.weights(len(prices)), along)
            every = np.concatenate([slope, *self.functions[: len(prices)]])
            weights = self._sum(every, np.concatenate([dz, dp, *dy]))
            found = adjoints(g, weights, [*along, *[i for y in prices for i in y.tolist()]])
        return graph.tape([*graph.inputs, *prices, dz, dp, *dy], [np.array(found, np.intp)])

    def pushed(self, leaves: list[int]) -> Tape:
        """Return the tape of the derivative of the next state along a direction in the parameters, behind (x, u, t).

        Raises:
            Unsupported: as `turned`.
        """
        graph, g, wanted = self.graph, self.graph.g, self._of_leaves(leaves)
        dp, y = graph.variable(len(wanted)), self.ys[0]
        with np.errstate(all="ignore"):
            slope = adjoints(g, self._sum(self.functions[0], y), wanted)
            found = adjoints(g, self._sum(slope, dp), y.tolist())
        return graph.tape([*graph.inputs, dp], [np.array(found, np.intp)])

    def _of_leaves(self, leaves: list[int]) -> list[int]:
        """Return the numbers of some of the uniform values, given by their places.

        Raises:
            Unsupported: where an index that is computed picks one of them.
        """
        nodes, uniform = self.graph.g.nodes, self.graph.uniform
        wanted = [i for leaf in leaves for i in uniform[leaf].ravel().tolist()]
        places = {nodes[i][1] for i in wanted}
        if any([operation == LOOKUP and base in places for operation, _, base, _ in nodes]):
            raise Unsupported("the derivative in parameters that an index picks")
        return wanted

    def moved(self, leaves: Sequence[int]) -> Tape:
        """Return the tape of the second derivatives in z and all prices, and in those of the uniform values.

        Its inputs are those of "exact" and the direction. Its results are the derivatives in all numbers of the leaves;
        then, where an index that is computed picks a number, its address among the uniform values, and the derivative
        in it, for each such place.

        Raises:
            Unsupported: if the tape would be too long.
        """
        graph, g = self.graph, self.graph.g
        wanted = [i for leaf in leaves for i in graph.uniform[leaf].ravel().tolist()]
        dz, dk, dys = graph.variable(len(self.z)), graph.variable(1), [graph.variable(y.size) for y in self.ys]
        with np.errstate(all="ignore"):
            slope = adjoints(g, self.weights(len(self.functions)), self.z)
            every = np.concatenate([slope, self.cost.ravel(), *self.functions])
            weights = self._sum(every, np.concatenate([dz, dk, *dys]))
            looked_up = [i for i, node in enumerate(g.nodes) if node[0] == LOOKUP and node[2] < TABLES]
            found = adjoints(g, weights, [*wanted, *looked_up])
            picked = [i for i, of in zip(looked_up, found[len(wanted) :], strict=True) if of != ZERO]
            places = [g.nodes[i][1:] for i in picked]
            addresses = [g.add(g.constant(base), g.mul(g.constant(step), index)) for index, base, step in places]
        slopes = [of for of in found[len(wanted) :] if of != ZERO]
        results = [np.array(of, np.intp) for of in (found[: len(wanted)], addresses, slopes)]
        return graph.tape([*graph.inputs, *self.ys, dz, dk, *dys], results)


class Graphs:
    """The three places of a problem.

    Attributes:
        path: a stage; results l, g, h, f.
        end: l, g, h.
        start: l.
        shapes: of the values of the functions among the rows, by name; those that the problem has.
        of_params: places of the parameters among the uniform values' leaves.
        captured: whether functions hold values that are being traced.
        judged: whether NumPy agreed with tapes, by their kind.
    """

    def __init__(self, problem: Problem, uniform: Any, nx: int, nu: int) -> None:
        S = jax.ShapeDtypeStruct
        x, u, t = S((nx,), np.float64), S((nu,), np.float64), S((), jax.dtypes.canonicalize_dtype(int))

        def stage(x: Any, u: Any, t: Any, parts: Any) -> tuple[Any, ...]:
            def value(name: str, absent: Any) -> Any:
                return absent if parts[name] is None else parts[name](x, u, t, parts["params"])

            rows = [value(name, np.zeros(0)) for name in PATH]
            return value("stage_cost", np.zeros(())), *rows, parts["dynamics"].step(x, u, t, parts["params"])

        def of_state(cost: str, rows: tuple[str, ...]) -> Callable:
            def values(x: Any, parts: Any) -> tuple[Any, ...]:
                def value(name: str, absent: Any) -> Any:
                    return absent if parts[name] is None else parts[name](x, parts["params"])

                return value(cost, np.zeros(())), *[value(name, np.zeros(0)) for name in rows]

            return values

        path = trace(stage, (x, u, t), uniform, fixed=(2,), limit=LONGEST)
        end = trace(of_state("terminal_cost", TERMINAL), (x,), uniform, limit=LONGEST)
        start = trace(of_state("initial_cost", ()), (x,), uniform, limit=LONGEST)
        shapes = {name: of.shape for name, of in zip(PATH, path.results[1:], strict=False)}
        shapes |= {name: of.shape for name, of in zip(TERMINAL, end.results[1:], strict=True)}
        self.shapes = {name: of for name, of in shapes.items() if getattr(problem, name) is not None}
        self.path, self.end, self.start = Place(path, 2), Place(end, 1), Place(start, 1)
        leaves, structure = jax.tree.flatten(uniform)
        self.of_params = jax.tree.leaves(jax.tree.unflatten(structure, range(len(leaves)))["params"])
        self.captured = any(graph.captured for graph in (path, end, start))
        self.judged: dict[str, bool] = {}
        self._packed: dict[Any, np.ndarray] = {}
        self._in_params: dict[str, tuple[Tape, ...]] = {}
        self._moved: dict[tuple[int, ...], tuple[Tape, ...]] = {}

    def tapes(self, kind: str) -> tuple[Tape, ...]:
        """Return the tapes of values and of a kind: of a stage, of the end, of the start."""
        return tuple([place.tape(k) for place in (self.path, self.end, self.start) for k in ("values", kind)])

    def in_params(self, kind: str) -> tuple[Tape, ...]:
        """Return the tapes of derivatives in the parameters, "priced" or "turned": of a stage, the end, the start.

        The kind "pushed" is of a stage alone.

        Raises:
            Unsupported: where an index that is computed picks a parameter, or if a tape would be too long.
        """
        if kind not in self._in_params:
            places = [self.path] if kind == "pushed" else [self.path, self.end, self.start]
            self._in_params[kind] = tuple([getattr(place, kind)(self.of_params) for place in places])
        return self._in_params[kind]

    def moved(self, leaves: tuple[int, ...]) -> tuple[Tape, ...]:
        """Return the tapes of how the conditions of an optimum move with those leaves: of a stage, the end, the start.

        Raises:
            Unsupported: if one would be too long.
        """
        if leaves not in self._moved:
            self._moved[leaves] = tuple([place.moved(leaves) for place in (self.path, self.end, self.start)])
        return self._moved[leaves]

    def packed(self, kind: str, tapes: tuple[Tape, ...], begins: tuple[int, ...]) -> np.ndarray:
        """Return tapes as kernels read them, one behind the other; their memories begin at `begins`."""
        key = kind, begins
        if key not in self._packed:
            parts = [tape.packed(begin) for tape, begin in zip(tapes, begins, strict=True)]
            self._packed[key] = np.concatenate(parts)
        return self._packed[key]


def graphs_of(problem: Problem, params: Any, nx: int, nu: int) -> Graphs:
    """Return the graphs of a problem; the same ones for problems that differ in numbers alone.

    Raises:
        Unsupported: if a function holds something that no graph can.
    """
    uniform = parts_of(problem, params)
    # the horizon, too: a function may have read it where it was made
    key = signature(uniform), nx, nu, problem.horizon
    return known_or_made(_GRAPHS, key, lambda: Graphs(problem, uniform, nx, nu), REMEMBERED)


def known_or_made(table: dict, key: Any, make: Callable[[], Any], most: int) -> Any:
    """Return what `make()` returned for a key, or raise the `Unsupported` that it raised.

    It is remembered unless functions hold values that are being traced (`captured`), which are those of one call.

    Raises:
        Unsupported: see above.
    """
    found = table.get(key)
    if found is None:
        try:
            found = make()
        except Unsupported as why:
            found = why
        if isinstance(found, Unsupported) or not found.captured:
            remember(table, key, found, most)
    if isinstance(found, Unsupported):
        refused(str(found))
        raise found
    return found
