"""The values of a problem's functions at all stages of several trajectories at once, by NumPy (`interpreter`)."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from optctl._record import remember
from optctl.judge.interpreter import Interpreted, Uninterpreted, interpret
from optctl.problem import STAGE_FUNCTIONS, Problem, kinds, parts_of

MANY = 3
"""Trajectories that are evaluated at once."""
ROWS = 3072
"""Most rows that are evaluated at once: stages times trajectories."""
REMEMBERED = 64
END = ("terminal_cost", "terminal_inequality", "terminal_equality")
_FUNCTIONS: dict[Any, tuple["Functions", list[int]]] = {}


class Functions:
    """A problem's functions, interpreted for MANY times `block` rows at once.

    Attributes:
        stage, end, start: the functions of a stage, of the end and of the start, None where there is none.
        names: theirs, "f" for the dynamics.
        by_jax: names of what JAX has to evaluate.
        columns: which of the three, and which columns of its results, each name has.
        widths: number of columns of each of the three.
    """

    def __init__(self, parts: Any, params: Any, nx: int, nu: int, block: int, substitute: Any) -> None:
        S = jax.ShapeDtypeStruct
        rows = MANY * block
        x, u, t = S((rows, nx), np.float64), S((rows, nu), np.float64), S((rows,), jax.dtypes.canonicalize_dtype(int))
        last = S((MANY, nx), np.float64)
        at_stages = [name for name in STAGE_FUNCTIONS if parts[name] is not None]
        at_end = [name for name in END if parts[name] is not None]
        at_start = ["initial_cost"] if parts["initial_cost"] is not None else []
        self.names = ["f", *at_stages], at_end, at_start

        def stage(x: Any, u: Any, t: Any, parts: Any, params: Any) -> list:
            return [parts["dynamics"].step(x, u, t, params), *(parts[n](x, u, t, params) for n in at_stages)]

        def state(names: list[str]) -> Callable:
            return lambda x, parts, params: [parts[name](x, params) for name in names]

        def made(function: Callable, *varying: Any) -> Interpreted:
            axes = (*[0] * len(varying), None, None)
            return interpret(jax.vmap(function, axes), *varying, parts, params, substitute=substitute)

        self.stage = made(stage, x, u, t)
        self.end = made(state(at_end), last) if at_end else None
        self.start = made(state(at_start), last) if at_start else None
        three = (self.stage, self.end, self.start)
        self.by_jax: set[str] = set().union(*(m.by_jax for m in three if m is not None))
        self.columns: dict[str, tuple[int, slice]] = {}
        self.widths = []
        for k, (made_of, names) in enumerate(zip(three, self.names, strict=True)):
            begin = 0
            for name, slot in zip(names, made_of.outputs if made_of is not None else (), strict=True):
                shape = made_of.avals[slot].shape  # type: ignore[union-attr]
                width = shape[1] if len(shape) == 2 else 1
                self.columns[name] = k, slice(begin, begin + width)
                begin += width
            self.widths.append(begin)


class Evaluator:
    """The functions of a problem along several trajectories at once, evaluated by NumPy in float64.

    Args:
        problem: the problem; its dynamics have a step in JAX.
        params: its parameters.
        sizes: N, nx and nu.
        substitute: from a value that is being traced to numbers in its place; None refuses such values.

    Raises:
        Uninterpreted: where values are being traced and there is nothing to put in their place.
    """

    def __init__(
        self, problem: Problem, params: Any, sizes: tuple[int, int, int], substitute: Callable | None = None
    ) -> None:
        leaves, structure = jax.tree.flatten((problem, params))
        traced = any([isinstance(leaf, jax.core.Tracer) for leaf in leaves])
        if substitute is None and traced:
            raise Uninterpreted("it holds values that are being traced")
        self.N, self.nx, self.nu = sizes
        turns = -(-self.N * MANY // ROWS)
        self.block = -(-self.N // max(turns, 1))
        key = structure, kinds(leaves), self.nx, self.nu, self.block
        found = None if traced else _FUNCTIONS.get(key)
        if found is None:
            specs = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in map(jax.typeof, leaves)]
            like = _parts(*jax.tree.unflatten(structure, specs))
            read = jax.tree.leaves(_parts(*jax.tree.unflatten(structure, list(range(len(leaves))))))
            found = Functions(*like, self.nx, self.nu, self.block, substitute), read
            if not traced and substitute is None:
                remember(_FUNCTIONS, key, found, REMEMBERED)
        self.functions, read = found
        self.count = self.N * self.functions.widths[0] + self.functions.widths[1] + self.functions.widths[2]
        numbers = [leaves[k] for k in read]
        if traced:
            numbers = [substitute(n) if isinstance(n, jax.core.Tracer) else n for n in numbers]  # type: ignore[misc]
        self.leaves = [np.asarray(number) for number in numbers]

    def __call__(self, xs: Any, us: Any, params: Any = None) -> dict[str, np.ndarray]:
        """Return values by name: (many, N, m) of stages, (many, m) of the end and the start; "f" is the dynamics'.

        Args:
            xs: (many, N+1, nx); at least MANY of them.
            us: (many, N, nu).
            params: other parameters of the same shapes, or None.
        """
        return self.by_name(self.flat(xs, us, params))

    def by_name(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values of each function in what `flat` returned, or in its derivatives."""
        parts = self.parts(flat)
        return {name: parts[k][..., columns] for name, (k, columns) in self.functions.columns.items()}

    def parts(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the values of the functions of a stage, of the end and of the start, side by side."""
        of_stage, of_end, _ = self.functions.widths
        end = self.N * of_stage
        stages = flat[..., :end].reshape(*flat.shape[:-1], self.N, of_stage)
        return stages, flat[..., end : end + of_end], flat[..., end + of_end :]

    def flat(self, xs: Any, us: Any, params: Any = None) -> np.ndarray:
        """Return all values at each point, (many, all): N times those of a stage, then those of the end and start."""
        if len(xs) > MANY:
            first, rest = self.flat(xs[:MANY], us[:MANY], params), self.flat(xs[-MANY:], us[-MANY:], params)
            return np.concatenate([first, rest[2 * MANY - len(xs) :]])
        N, block, f, leaves = self.N, self.block, self.functions, self.leaves
        if params is not None:
            given = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
            leaves = leaves[: len(leaves) - len(given)] + given
        made = np.empty((MANY, self.count))
        stages, end, start = self.parts(made)
        for begin in range(0, N, block):
            ts, tiled = _stages(N, begin, block)
            x, u = xs[:, ts].reshape(-1, self.nx), us[:, ts].reshape(len(tiled), self.nu)
            _fill(f.stage, (x, u, tiled, *leaves), stages[:, begin : begin + block])
        for function, x, to in ((f.end, xs[:, -1], end), (f.start, xs[:, 0], start)):
            if function is not None:
                _fill(function, (x, *leaves), to[:, None])
        return made


def _parts(problem: Problem, params: Any) -> tuple[dict[str, Any], Any]:
    """Return the functions of a problem by name, and its parameters: all that values depend on."""
    parts = parts_of(problem, params)
    return parts, parts.pop("params")


@lru_cache(maxsize=REMEMBERED)
def _stages(N: int, begin: int, block: int) -> tuple[Any, np.ndarray]:
    """Return the stages of a block, where the last one may stand for stages beyond the end; those of all its rows."""
    ts = np.minimum(np.arange(begin, begin + block), N - 1)
    return slice(begin, begin + block) if begin + block <= N else ts, np.tile(ts, MANY)


def _fill(function: Interpreted, arguments: tuple, to: np.ndarray) -> None:
    """Evaluate and put the results side by side into (MANY, stages, m)."""
    stages = to.shape[1]

    def take(results: list[np.ndarray]) -> None:
        begin = 0
        for value in results:
            rows = value.reshape(MANY, len(value) // MANY, -1)[:, :stages]
            to[..., begin : begin + rows.shape[-1]] = rows
            begin += rows.shape[-1]

    function.run(arguments, take)
