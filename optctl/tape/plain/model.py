"""A function in plain NumPy as a primitive of JAX, so that it works wherever a function written with JAX does.

    traced by JAX          one equation, whatever the function does
    on a tape, its degree  the function is called once more, with expressions for numbers
    compiled, batched,     the graph as a function of JAX (`evaluate.by_jax`), with JAX's own derivatives
    differentiated
    by NumPy               the function itself, called with numbers: a second opinion on all of the others

When a model is made, its graph is compared with the function itself at a few random points.
"""

import functools
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from optctl._jaxpr import Primitive
from optctl._reads import user_line
from optctl._validate import TracedError, through_jax
from optctl.tape import polynomial, unroll
from optctl.tape.evaluate import by_jax, by_numpy, needed
from optctl.tape.expressions import CODE, CONSTANT, GIVEN, INPUT, LOAD, LOOKUP, OPERATIONS, TABLES
from optctl.tape.plain.arrays import BOOL, FLOAT, WHOLE, Array, Mixed, Refused, as_array, cast
from optctl.tape.plain.names import copied
from optctl.tape.program import Graph
from optctl.tape.unroll import Unroller

LONGEST = 100_000
"""Most expressions, an eighth of them, of a function in plain NumPy."""
FEW = 8
"""Rows for which a function is called in any case, beside the call for all of them."""
CLOSE = 1e-9
"""Greatest difference, to the size of the values, between a function and its graph."""


class Model:
    """A function in plain NumPy for arguments of certain shapes.

    Args:
        run: run(arguments, prepare) calls the user's function, after `prepare(function)`; the arguments are a tree.
        structure: of the tree of arguments.
        avals: shapes and types of its leaves.
        uniform: which leaves are the same for all stages.
        name: what errors call the function.

    Raises:
        TracedError: where it cannot be traced, or where its graph has other values than itself.
    """

    def __init__(self, run: Callable, structure: Any, avals: Sequence[Any], uniform: Sequence[bool], name: str) -> None:
        self.run, self.structure, self.avals, self.name = run, structure, tuple(avals), name
        un = Unroller(LONGEST)
        varying, held, place, nodes = [], [], 0, []
        for aval, same in zip(avals, uniform, strict=True):
            size = int(np.prod(aval.shape))
            made = un.g.leaves(LOAD if same else INPUT, place if same else 0, size, not same).reshape(aval.shape)
            nodes.append(made)
            (held if same else varying).append(made)
            place += size if same else 0
        self.order = [k for k, same in enumerate(uniform) if not same] + [k for k, same in enumerate(uniform) if same]
        self.graph = Graph(un.g, varying, [self.into(un, nodes)], held, [], LONGEST)
        self.shape = self.graph.results[0].shape
        self.broadcasts, self.turns = True, 0
        self._check()

    def into(self, un: Unroller, nodes: Sequence[np.ndarray]) -> np.ndarray:
        """Return the function of expressions, as expressions."""
        dtypes = [{"f": FLOAT, "b": BOOL}.get(aval.dtype.kind, WHOLE) for aval in self.avals]
        arrays = [Array(un, of.copy(), dtype) for of, dtype in zip(nodes, dtypes, strict=True)]
        try:
            with np.errstate(all="ignore"):
                result = self.run(self._tree(arrays), functools.partial(copied, un))
                if result is None:
                    raise ValueError("it returns None (is a `return` missing?)")
                return cast(un, as_array(un, result), FLOAT).nodes
        except Exception as error:
            refused = _refusal(error)
            if refused is None:
                raise
            if through_jax(refused):
                raise Mixed("a function of JAX is given an array of NumPy's") from error
            raise told(refused, self.name) from error

    def now(self, *leaves: Any) -> np.ndarray:
        """Return what the user's function returns for numbers, which it may overwrite."""
        numbers = [np.array(leaf) if np.ndim(leaf) else leaf for leaf in map(_plain, leaves)]
        with jax.ensure_compile_time_eval():  # it may hold arrays of JAX, while JAX is tracing
            return np.asarray(self.run(self._tree(numbers), lambda f: f), float)

    def rows(self, batches: tuple, *leaves: Any) -> np.ndarray:
        """Return what the user's function returns for many arguments.

        It is called once, if it broadcasts over a last axis; else for some of them (others each time), and if its
        graph, evaluated by NumPy, agrees there, the graph is evaluated for the rest; else for all.
        """
        sizes = level_sizes([np.shape(leaf) for leaf in leaves], batches)
        if len(sizes) == 1 and sizes[0] > FEW:
            columns = [
                np.moveaxis(leaf, 0, -1) if flag else leaf for leaf, flag in zip(leaves, batches[0], strict=True)
            ]
            self.turns += 1
            samples = [(k * sizes[0] // FEW + self.turns) % sizes[0] for k in range(FEW)]
            own = [self.now(*_parts(leaves, batches, (k,))) for k in samples]
            for found in (self._at_once(columns, sizes[0]), self._by_graph(columns, sizes[0])):
                if found is not None and all(_alike(a, found[k]) for a, k in zip(own, samples, strict=True)):
                    return found
        made = np.empty((*sizes, *self.shape))
        for place in np.ndindex(sizes):
            made[place] = self.now(*_parts(leaves, batches, place))
        return made

    def _by_graph(self, columns: Sequence[Any], size: int) -> np.ndarray:
        (found,) = by_numpy(self.graph, *[columns[k] for k in self.order], many=size)
        return np.moveaxis(found, -1, 0)

    def _at_once(self, columns: Sequence[Any], size: int) -> np.ndarray | None:
        if not self.broadcasts:
            return None
        try:
            found = self.now(*columns)
        except Exception:
            found = None
        if found is None or found.shape != (*self.shape, size):
            self.broadcasts = False
            return None
        return np.moveaxis(found, -1, 0)

    def _tree(self, leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(self.structure, leaves)

    def _check(self) -> None:
        """Compare the graph with the function itself.

        Raises:
            TracedError: where they differ.
        """
        rng = np.random.default_rng(5)
        for turn, (low, high) in enumerate(((0.2, 1.5), (-2.0, 2.0), (-0.6, 0.9))):
            leaves = [
                rng.uniform(low, high, aval.shape) if aval.dtype.kind == "f" else np.full(aval.shape, turn, aval.dtype)
                for aval in self.avals
            ]
            try:
                with np.errstate(all="ignore"):
                    own = self.now(*leaves)
            except (ArithmeticError, ValueError, IndexError, np.linalg.LinAlgError):
                continue  # no point of its domain
            (ours,) = by_numpy(self.graph, *[leaves[k] for k in self.order])
            if own.shape != ours.shape or not _alike(own, ours):
                wrong = "" if own.shape != ours.shape else f": {own.ravel()[:4]} and {ours.ravel()[:4]}"
                at = ", ".join(str(np.round(leaf, 3)) for leaf in leaves)
                raise TracedError(
                    f"`{self.name}` called with numbers and traced with NumPy's functions gives other values{wrong},"
                    f" at {at}. Does it decide by the type of its arguments, or by something outside that changes?"
                    " Write it with jnp."
                )


def _plain(leaf: Any) -> Any:
    return leaf if isinstance(leaf, np.ndarray | np.generic | int | float) else np.asarray(leaf)


def _alike(own: np.ndarray, ours: np.ndarray) -> bool:
    """Return whether values agree where the function's own are numbers: a graph has x * 0 = 0 for all x."""
    finite = np.isfinite(own)
    size = np.abs(own[finite]).max(initial=1e-3)
    return bool(np.all(np.abs(own - ours)[finite] <= CLOSE * size))


def _refusal(error: BaseException | None) -> Refused | None:
    """Return what was refused, also where NumPy made another error of it."""
    while error is not None:
        if isinstance(error, Refused):
            return error
        error = error.__cause__ or error.__context__
    return None


def told(error: Refused, name: str) -> TracedError:
    """Return a refusal in the words of the user's function, with its line."""
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    line = user_line([(frame.filename, frame.lineno or 0) for frame in frames])
    return TracedError(f"`{name}` {error}. It is traced once, for all stages and points{line}.")


def level_sizes(shapes: Sequence[Sequence[int]], batches: Sequence[Sequence[bool]]) -> tuple[int, ...]:
    """Return the size of each batch axis; `batches` says for each, the outermost first, which operands have it."""
    sizes = []
    for level, flags in enumerate(batches):
        k = flags.index(True)
        sizes.append(shapes[k][sum(before[k] for before in batches[:level])])
    return tuple(sizes)


# The primitive.

primitive = Primitive("numpy_model")


def bind(model: Model, leaves: Sequence[Any]) -> Any:
    """Return the value for arguments that JAX is tracing."""
    return primitive.bind(*leaves, model=model, batches=())


@functools.lru_cache(maxsize=256)
def _function(model: Model, batches: tuple) -> Callable:
    def evaluate(*leaves: Any) -> Any:
        return by_jax(model.graph, *[leaves[k] for k in model.order])[0]

    function: Callable = evaluate
    for flags in reversed(batches):
        function = jax.vmap(function, [0 if flag else None for flag in flags])
    return function


@primitive.def_abstract_eval
def _abstract(*avals: Any, model: Model, batches: tuple) -> Any:
    kinds = [aval.dtype for aval in avals if aval.dtype.kind == "f"]
    dtype = functools.reduce(np.promote_types, kinds) if kinds else jax.dtypes.canonicalize_dtype(np.float64)
    return jax.core.ShapedArray((*level_sizes([aval.shape for aval in avals], batches), *model.shape), dtype)


@primitive.def_impl
def _now(*leaves: Any, model: Model, batches: tuple) -> Any:
    return jax.jit(_function(model, batches))(*leaves)


def _batched(leaves: Sequence[Any], axes: Sequence[Any], *, model: Model, batches: tuple) -> tuple[Any, int]:
    flags = tuple([axis is not None for axis in axes])
    moved = [jnp.moveaxis(leaf, axis, 0) if on else leaf for leaf, axis, on in zip(leaves, axes, flags, strict=True)]
    return primitive.bind(*moved, model=model, batches=(flags, *batches)), 0


def _moved(primals: Sequence[Any], tangents: Sequence[Any], *, model: Model, batches: tuple) -> tuple[Any, Any]:
    moving = [k for k, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def restricted(*leaves: Any) -> Any:
        given = list(primals)
        for k, leaf in zip(moving, leaves, strict=True):
            given[k] = leaf
        return _function(model, batches)(*given)

    return jax.jvp(restricted, [primals[k] for k in moving], [tangents[k] for k in moving])


batching.primitive_batchers[primitive] = _batched
ad.primitive_jvps[primitive] = _moved
mlir.register_lowering(
    primitive,
    mlir.lower_fun(lambda *leaves, model, batches: _function(model, batches)(*leaves), multiple_results=False),
)


# What the walks through jaxprs make of it.


def _parts(arrays: Sequence[np.ndarray], batches: tuple, place: tuple[int, ...]) -> list[np.ndarray]:
    if not batches:
        return list(arrays)
    return [
        array[tuple([i for i, flag in zip(place, flags, strict=True) if flag])]
        for array, flags in zip(arrays, zip(*batches, strict=True), strict=True)
    ]


def _each(eqn: Any, arrays: Sequence[np.ndarray], dtype: Any, function: Callable) -> np.ndarray:
    """Return the function of the operands of each member of the batch."""
    model, batches = eqn.params["model"], eqn.params["batches"]
    sizes = level_sizes([array.shape for array in arrays], batches)
    made = np.empty((*sizes, *model.shape), dtype)
    for place in np.ndindex(sizes):
        made[place] = function(_parts(arrays, batches, place))
    return made


@unroll.rule("numpy_model")
def _unrolled(un: Unroller, eqn: Any, *arrays: np.ndarray) -> np.ndarray:
    model = eqn.params["model"]
    return _each(eqn, arrays, np.intp, lambda parts: model.into(un, parts))


_SUMS, _PRODUCT, _QUOTIENT, _CHOICE = (CODE["add"], CODE["sub"]), CODE["mul"], CODE["div"], CODE["select"]


@polynomial.rule("numpy_model")
def _degree(walk: Any, eqn: Any, *arrays: np.ndarray) -> np.ndarray:
    """Return the degrees of the results from those of the operands."""
    model = eqn.params["model"]
    return _each(eqn, arrays, np.int8, lambda parts: _degree_of(walk, model, parts))


def _degree_of(walk: Any, model: Model, arrays: Sequence[np.ndarray]) -> np.ndarray:
    graph, g = model.graph, model.graph.g
    ordered = [np.ravel(arrays[k]) for k in model.order]
    varying, uniform = ordered[: len(graph.inputs)], ordered[len(graph.inputs) :]
    held = np.concatenate([np.zeros(0, np.int8), *uniform])
    degree: dict[int, int] = {}
    for of, array in zip(graph.inputs, varying, strict=True):
        degree.update(zip(of.ravel().tolist(), array.tolist(), strict=True))
    for i in needed(graph):
        operation, a, b, _ = g.nodes[i]
        if operation == INPUT:
            continue
        degrees = [degree[k] for k in g.operands(i)]
        if operation in (CONSTANT, LOAD):
            degree[i] = int(held[a]) if operation == LOAD else 0
        elif operation == GIVEN or (not any(degrees) and operation != LOOKUP):
            degree[i] = degrees[0] if operation == GIVEN else 0
        elif operation == LOOKUP:
            degree[i] = polynomial.MORE if degrees[0] else 0 if b >= TABLES else int(held.max(initial=0))
        elif operation in _SUMS:
            degree[i] = max(degrees)
        elif operation == CODE["neg"]:
            degree[i] = degrees[0]
        elif operation == _PRODUCT:
            degree[i] = min(sum(degrees), polynomial.MORE)
        elif (operation == _QUOTIENT and degrees[1] == 0) or (operation == _CHOICE and degrees[0] == 0):
            degree[i] = max(degrees)
        else:
            degree[i] = polynomial.MORE
            walk.culprit = walk.culprit or OPERATIONS[operation]
    return np.array([degree[int(i)] for i in graph.results[0].flat], np.int8).reshape(model.shape)
