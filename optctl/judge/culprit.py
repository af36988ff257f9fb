"""Where inf or NaN comes from: the function, the stage, value or derivative, and the likely cause.

Values, first and second derivatives of every function are evaluated by NumPy (`interpreter`) along a trajectory, in
this order. The first that is not finite is looked into: which primitive made it, or, of a derivative, which primitive
of the function sits at a point where it has none, such as a square root at zero. This is a diagnosis: nothing else
depends on derivatives found this way.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optctl._arrays import to_device
from optctl.judge.evaluation import END
from optctl.judge.interpreter import Uninterpreted, interpret
from optctl.problem import STAGE_FUNCTIONS, Problem

LEVELS = ("value", "derivative", "second derivative")
_SMOOTH = "keep it away from there, for example by a small constant under the root"

# Primitives without a derivative somewhere: where, and what to say.
_SINGULAR: dict[str, tuple[Callable, str]] = {
    "sqrt": (lambda x: x == 0, f"a norm or a square root at zero; {_SMOOTH}"),
    "rsqrt": (lambda x: x == 0, f"one over a norm or a square root of zero; {_SMOOTH}"),
    "cbrt": (lambda x: x == 0, "a cube root at zero"),
    "log": (lambda x: x == 0, "a logarithm at zero; bound its argument from below, a little above zero"),
    "log1p": (lambda x: x == -1, "a logarithm at zero (log1p of -1)"),
    "div": (lambda x, y: y == 0, "a division by zero"),
    "pow": (lambda x, y: (x == 0) & (y == y), "a power of zero"),
    "asin": (lambda x: np.abs(x) == 1, "an arcsine at 1 or -1"),
    "acos": (lambda x: np.abs(x) == 1, "an arccosine at 1 or -1"),
    "acosh": (lambda x: x == 1, "acosh at 1"),
    "atanh": (lambda x: np.abs(x) == 1, "atanh at 1 or -1"),
    "atan2": (lambda x, y: (x == 0) & (y == 0), "the angle of a vector that is zero (atan2)"),
}
# Primitives outside of their domain: where, and what to say.
_OUTSIDE: dict[str, tuple[Callable, str]] = {
    "sqrt": (lambda x: x < 0, "a square root of a negative number"),
    "rsqrt": (lambda x: x <= 0, "one over the square root of a number that is not positive"),
    "log": (lambda x: x <= 0, "a logarithm of a number that is not positive"),
    "log1p": (lambda x: x <= -1, "a logarithm of a number that is not positive (log1p)"),
    "div": (lambda x, y: y == 0, "a division by zero"),
    "pow": (lambda x, y: x <= 0, "a power of a number that is not positive"),
    "integer_pow": (lambda x: x == 0, "a negative power of zero"),
    "asin": (lambda x: np.abs(x) > 1, "an arcsine beyond 1"),
    "acos": (lambda x: np.abs(x) > 1, "an arccosine beyond 1"),
    "acosh": (lambda x: x < 1, "acosh of a number below 1"),
    "atanh": (lambda x: np.abs(x) >= 1, "atanh at or beyond 1"),
    "exp": (lambda x: x > 700, "an exponential that overflows"),
    "cholesky": (lambda a: np.asarray(True), "a Cholesky factor of a matrix that is not positive definite"),
    "triangular_solve": (lambda a, b: np.asarray(True), "a matrix that is singular"),
    "lu": (lambda a: np.asarray(True), "a matrix that is singular"),
}


def culprit(problem: Problem, xs: Any, us: Any, params: Any) -> str:
    """Return what is not finite along a trajectory, with its stage and likely cause; empty where all is finite.

    Args:
        problem: the problem; dynamics without a step in JAX are not looked into.
        xs: (N+1, nx) states.
        us: (N, nu) inputs.
        params: parameters.
    """
    problem, params = to_device((problem, params))  # data that the stage's index picks must be JAX's here
    if not hasattr(xs, "shape") or us is None or not problem.dynamics.has_jax_step:
        return ""
    xs, us = np.asarray(xs), np.asarray(us)
    if not (np.isfinite(xs).all() and np.isfinite(us).all()):
        rows = np.flatnonzero(~np.isfinite(xs).all(axis=1))
        if rows.size and rows[0] > 0:  # the step that left the finite numbers
            N = int(rows[0])
            xs, us = xs[:N], us[:N]
        elif rows.size:
            return "the initial state is inf or NaN"
    stages, last = np.arange(len(us)), xs[-1:]
    whole = len(xs) > len(us)
    at_stage = {"f": problem.dynamics.step} | {n: getattr(problem, n) for n in STAGE_FUNCTIONS}
    of_state = {n: (getattr(problem, n), last) for n in END if whole}
    of_state["initial_cost"] = problem.initial_cost, xs[:1]
    try:
        for level in range(len(LEVELS)):
            for name, f in at_stage.items():
                if f is not None and len(us):
                    found = _look(f, level, (xs[: len(us)], us, stages), params)
                    if found is not None:
                        return _words(name, level, *found)
            for name, (f, x) in of_state.items():
                found = None if f is None else _look(f, level, (x,), params)
                if found is not None:
                    return _words(name, level, len(us) if name in END else 0, *found[1:])
    except Uninterpreted:
        return ""
    return ""


def _look(f: Callable, level: int, rows: tuple, params: Any) -> tuple[int, str] | None:
    """Return the first row at which a function (0), its derivative (1) or its second one (2) is not finite, and why."""
    leaves, structure = jax.tree.flatten(params)
    moving = [k for k, leaf in enumerate(leaves) if np.asarray(leaf).dtype.kind == "f"]

    def plain(x: Any, u: Any, t: Any, p: Any) -> Any:
        mixed = list(leaves)
        for k, value in zip(moving, p, strict=True):
            mixed[k] = value
        params = jax.tree.unflatten(structure, mixed)
        return f(x, u, t, params) if len(rows) > 1 else f(x, params)

    function = plain
    which = (0, 1, 3) if len(rows) > 1 else (0, 3)
    for _ in range(level):
        function = jax.jacrev(function, which) if function is plain else jax.jacfwd(function, which)
    given = tuple(np.asarray(leaves[k]) for k in moving)
    x, u, t = rows if len(rows) > 1 else (rows[0], np.zeros((1, 0)), np.zeros(1, int))
    results = interpret(jax.vmap(function, (0, 0, 0, None)), x, u, t, given)(x, u, t, *given)
    bad = np.zeros(len(x), bool)
    for value in results:
        bad |= ~np.isfinite(value).reshape(len(x), -1).all(axis=1)
    if not bad.any():
        return None
    row = int(np.flatnonzero(bad)[0])
    return row, _cause(plain if level else function, level, (x[row], u[row], t[row], given))


def _cause(function: Callable, level: int, arguments: tuple) -> str:
    """Return the likely cause at one row, empty where there is none to be seen."""
    table, causes = (_SINGULAR if level else _OUTSIDE), []

    def watch(name: str, operands: list, results: list) -> None:
        if name in table and not causes:
            where, words = table[name]
            fresh = level or (
                all(np.isfinite(o).all() for o in operands) and not all(np.isfinite(r).all() for r in results)
            )
            hits = np.asarray(where(*map(np.asarray, operands[:2])))
            if fresh and hits.any():
                causes.append(words)

    flat = jax.tree.leaves(arguments)
    with np.errstate(all="ignore"):
        interpret(function, *arguments).run(flat, list, watch)
    return causes[0] if causes else ""


def _words(name: str, level: int, stage: int, cause: str) -> str:
    return f"the {LEVELS[level]} of `{name}` at stage {stage} is inf or NaN" + (f": {cause}" if cause else "")
