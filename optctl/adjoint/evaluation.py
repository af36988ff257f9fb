"""The values of a problem's functions at all stages of several trajectories at once, by NumPy (`interpreter`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl.adjoint.interpreter import Interpreted, Uninterpreted, interpret
from optctl.constraint import Constraint
from optctl.problem import STAGE_FUNCTIONS, STATE_FUNCTIONS, Problem

ROWS = 4096
"""Most rows that are evaluated at once: stages times trajectories."""
REMEMBERED = 64
END = ("terminal_cost", "terminal_inequality", "terminal_equality")
_FUNCTIONS: dict[Any, "Functions"] = {}


class Functions:
    """A problem's functions, interpreted for so many rows at once; `by_jax` names what JAX had to evaluate."""

    def __init__(self, parts: Any, params: Any, nx: int, nu: int, rows: int, many: int, substitute: Any) -> None:
        S = jax.ShapeDtypeStruct
        x, u, t = S((rows, nx), np.float64), S((rows, nu), np.float64), S((rows,), jnp.zeros((), int).dtype)
        last = S((many, nx), np.float64)
        self.at_stages = [name for name in STAGE_FUNCTIONS if parts[name] is not None]
        self.at_end = [name for name in END if parts[name] is not None]
        self.at_start = ["initial_cost"] if parts["initial_cost"] is not None else []

        def stage(x: Any, u: Any, t: Any, parts: Any, params: Any) -> list:
            return [parts["dynamics"].step(x, u, t, params), *(parts[n](x, u, t, params) for n in self.at_stages)]

        def state(names: list[str]) -> Callable:
            return lambda x, parts, params: [parts[name](x, params) for name in names]

        def made(function: Callable, *varying: Any) -> Interpreted:
            axes = (*[0] * len(varying), None, None)
            return interpret(jax.vmap(function, axes), *varying, parts, params, substitute=substitute)

        self.stage = made(stage, x, u, t)
        self.end = made(state(self.at_end), last) if self.at_end else None
        self.start = made(state(self.at_start), last) if self.at_start else None
        self.by_jax = set().union(*(m.by_jax for m in (self.stage, self.end, self.start) if m is not None))


class Evaluator:
    """The functions of a problem at `many` trajectories at once, evaluated by NumPy in float64.

    Args:
        problem: the problem; its dynamics have a step in JAX.
        params: its parameters.
        sizes: N, nx and nu.
        many: number of trajectories.
        substitute: from a value that is being traced to numbers in its place; None refuses such values.

    Raises:
        Uninterpreted: where values are being traced and there is nothing to put in their place.
    """

    def __init__(
        self, problem: Problem, params: Any, sizes: tuple[int, int, int], many: int, substitute: Callable | None = None
    ) -> None:
        held = {name: getattr(problem, name) for name in ("dynamics", *STAGE_FUNCTIONS, *STATE_FUNCTIONS)}
        parts = {name: f.function if isinstance(f, Constraint) else f for name, f in held.items()}
        leaves, structure = jax.tree.flatten((parts, params))
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        if substitute is None and traced:
            raise Uninterpreted("it holds values that are being traced")
        kinds = tuple([(np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves])
        self.N, self.nx, self.nu = sizes
        self.many, self.block = many, max(1, min(self.N, ROWS // many))
        key = structure, kinds, self.nx, self.nu, self.block, many
        found = None if traced else _FUNCTIONS.get(key)
        if found is None:
            specs = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in map(jax.typeof, leaves)]
            like, like_params = jax.tree.unflatten(structure, specs)
            found = Functions(like, like_params, self.nx, self.nu, self.block * many, many, substitute)
            if not traced and substitute is None:
                if len(_FUNCTIONS) >= REMEMBERED:
                    _FUNCTIONS.clear()
                _FUNCTIONS[key] = found
        self.functions = found
        numbers = [substitute(leaf) if isinstance(leaf, jax.core.Tracer) else leaf for leaf in leaves]  # type: ignore[misc]
        self.leaves = [np.asarray(number) for number in numbers]
        self.of_params = len(jax.tree.leaves(params))

    def __call__(self, xs: Any, us: Any, params: Any = None) -> dict[str, np.ndarray]:
        """Return values by name: (many, N, m) of stages, (many, m) of the end and the start; "f" is the dynamics'.

        Args:
            xs: (many, N+1, nx).
            us: (many, N, nu).
            params: other parameters of the same shapes, or None.
        """
        N, block, f, leaves = self.N, self.block, self.functions, self.leaves
        if params is not None:
            given = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
            leaves = leaves[: len(leaves) - self.of_params] + given
        blocks = []
        for begin in range(0, N, block):
            ts = np.minimum(np.arange(begin, begin + block), N - 1)
            x, u = xs[:, ts].reshape(-1, self.nx), us[:, ts].reshape(len(ts) * self.many, self.nu)
            results = f.stage(x, u, np.tile(ts, self.many), *leaves)
            blocks.append([r.reshape(self.many, block, -1)[:, : N - begin] for r in results])
        columns = [np.concatenate(column, axis=1) for column in zip(*blocks, strict=True)]
        values = dict(zip(("f", *f.at_stages), columns, strict=True))
        for function, names, x in ((f.end, f.at_end, xs[:, -1]), (f.start, f.at_start, xs[:, 0])):
            if function is not None:
                results = function(x, *leaves)
                values |= {name: r.reshape(self.many, -1) for name, r in zip(names, results, strict=True)}
        return values
