"""The engine by compiled code: functions on tapes, one call for the whole horizon, from NumPy's arrays to NumPy's.

`gradient.py` is the definition. This takes its place where numbers are asked for now (`runs_on_host`): XLA then
compiles nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from optctl import _native
from optctl._validate import runs_now
from optctl.adjoint.graphs import Graphs, graphs_of, parts_of
from optctl.adjoint.interpreter import Uninterpreted
from optctl.adjoint.tape_check import check_priced, check_tapes
from optctl.dynamics import AbstractDynamics
from optctl.problem import Problem
from optctl.tape import Tape, Unsupported, memories


@dataclass(frozen=True, eq=False)
class Engine:
    """A problem's functions on tapes; the same object for problems that differ in numbers alone.

    Attributes:
        graphs: what they are made from.
        tapes: of a stage's values, and slopes of a stage, the end and the start.
        priced: derivatives in the parameters, where there are any.
    """

    graphs: Graphs
    tapes: tuple[Tape, ...]
    priced: tuple[Tape, ...]
    _packed: dict[Any, np.ndarray] = field(default_factory=dict)

    def packed(self, begins: tuple[int, ...]) -> np.ndarray:
        """Return the program whose tapes' memories begin there."""
        if begins not in self._packed:
            every = zip((*self.tapes, *self.priced), begins, strict=True)
            self._packed[begins] = np.concatenate([tape.packed(begin) for tape, begin in every])
        return self._packed[begins]


@dataclass(frozen=True)
class Slopes:
    """What one pass of the engine finds.

    Attributes:
        cost: total cost.
        xs: (N+1, nx) states.
        reached: (N, nx), the states that follow from each.
        A, B: (N, nx, nx) and (N, nx, nu), the Jacobians of the dynamics.
        qs, rs, q0: (N+1, nx), (N, nu), (nx,): the slopes of the costs.
        costates: (N+1, nx).
        us, x0: (N, nu) and (nx,), the derivatives of the cost.
        params: a pytree, likewise.
    """

    cost: np.ndarray
    xs: np.ndarray
    reached: np.ndarray
    A: np.ndarray
    B: np.ndarray
    qs: np.ndarray
    rs: np.ndarray
    q0: np.ndarray
    costates: np.ndarray
    us: np.ndarray
    x0: np.ndarray
    params: Any


def runs_on_host(problem: Problem, us: Any, x0: Any, params: Any) -> bool:
    """True if compiled code gives the numbers of this call: nothing is being traced, and tapes hold the functions."""
    return find_engine(problem, us, x0, params) is not None


def find_engine(problem: Problem, us: Any, x0: Any, params: Any) -> Engine | None:
    """Return the engine of a problem whose numbers are asked for now; None where the definition is to do it."""
    arrays = (problem, us, x0, params)
    if us is None or not runs_now(arrays) or not _native.available() or not _fits(problem, us, x0, params):
        return None
    try:
        graphs = graphs_of(problem, params, x0.size, us.shape[1])
        if "slopes" not in graphs.judged:
            graphs.judged["slopes"] = _judged(graphs, problem, us, x0, params)
    except Unsupported:
        return None
    return graphs.judged["slopes"]


def _fits(problem: Problem, us: Any, x0: Any, params: Any) -> bool:
    """True if states are vectors that a step in JAX makes, all kept, in double precision."""
    dynamics = problem.dynamics
    plain = type(dynamics).roll is AbstractDynamics.roll and dynamics.has_jax_step and problem.memory == "full"
    return plain and all(leaf.dtype == np.float64 for leaf in jax.tree.leaves((us, x0, params)))


def _judged(graphs: Graphs, problem: Problem, us: Any, x0: Any, params: Any) -> Engine | None:
    """Return the engine on tapes that NumPy agrees with; None where it does not, or cannot tell."""
    if graphs.captured:
        return None
    tapes = graphs.tapes("slopes")
    priced = graphs.priced() if jax.tree.leaves(params) else ()
    xs, uniform = np.tile(np.asarray(x0), (len(us) + 1, 1)), parts_of(problem, params)
    try:
        wrong = check_tapes(tapes, problem, params, uniform, xs, us, exact=False)
        if wrong is None and priced:
            wrong = check_priced(priced, problem, params, uniform, xs, us)
    except Uninterpreted:
        return None
    return Engine(graphs, (tapes[0], tapes[1], tapes[3], tapes[5]), priced) if wrong is None else None


def slopes(engine: Engine, problem: Problem, us: Any, x0: Any, params: Any, xs: Any = None) -> Slopes:
    """Return cost, states, Jacobians, costates and derivatives; along `xs` if given, else along the rollout."""
    memory, begins = memories((*engine.tapes, *engine.priced), parts_of(problem, params))
    us = np.ascontiguousarray(us, np.float64)
    (N, nu), nx = us.shape, x0.size
    leaves, structure = jax.tree.flatten(params)
    sizes = [leaf.size for leaf in leaves]
    made = [
        np.empty(shape)
        for shape in (
            (), (N + 1, nx), (N, nx), (N, nx, nx), (N, nx, nu), (N + 1, nx), (N, nu), (nx,), (N + 1, nx), (N, nu),
            (nx,), (sum(sizes),),
        )
    ]  # fmt: skip
    made[1][...] = x0 if xs is None else xs  # the first row counts, where there is a rollout
    numbers = (N, nx, nu, sum(sizes), int(xs is None))
    _native.gradient(engine.packed(begins), np.asarray(memory), numbers, us, made)
    flat, at, gradients = made.pop(), 0, []
    for leaf, size in zip(leaves, sizes, strict=True):
        gradients.append(flat[at : at + size].reshape(leaf.shape))
        at += size
    cost, xs, reached, A, B, qs, rs, q0, costates, gus, gx0 = made
    return Slopes(cost, xs, reached, A, B, qs, rs, q0, costates, gus, gx0, jax.tree.unflatten(structure, gradients))


def curvature(
    problem: Problem, xs: Any, us: Any, costates: Any, params: Any, *, exact: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the curvature in (x, u) of all stages, of the end and of the start: (N, nz, nz), (nx, nx), (nx, nx).

    It is that of the cost, and if `exact` of costate'f, too.

    Raises:
        Unsupported: where no tape holds it.
    """
    (N, nu), nx = us.shape, xs.shape[1]
    nz, upper = nx + nu, np.triu_indices(nx + nu)
    graphs = graphs_of(problem, params, nx, nu)
    kind = "exact" if exact else "curved"
    tapes = graphs.tapes(kind)
    if kind not in graphs.judged:
        uniform = parts_of(problem, params)
        graphs.judged[kind] = check_tapes(tapes, problem, params, uniform, xs, us, exact=exact) is None
    if not graphs.judged[kind]:
        raise Unsupported("its curvature rightly, by NumPy")
    memory, begins = memories(tapes, parts_of(problem, params))

    def run(k: int, values: np.ndarray) -> np.ndarray:
        tape = tapes[k]
        rest = np.zeros((len(values), tape.inputs.size - values.shape[1]))  # prices of rows, which play no part
        return _native.run_tape(tape.packed(begins[k]), memory, np.hstack([values, rest]), tape.outputs.size)

    ts = np.arange(N, dtype=float)[:, None]
    flat = run(1, np.hstack([xs[:-1], us, ts, costates[1:]]))[:, -len(upper[0]) :]
    W = np.empty((N, nz, nz))
    W[:, upper[0], upper[1]] = flat
    W[:, upper[1], upper[0]] = flat
    ends = [run(k, x[None])[0, -nx * nx :].reshape(nx, nx) for k, x in ((3, xs[-1]), (5, xs[0]))]
    return W, ends[0], ends[1]


def hessian(problem: Problem, found: Slopes, us: Any, params: Any) -> Callable:
    """Return the Hessian of the cost as a function of a direction (dus, dx0), at the point of the slopes."""
    W, Wf, W0 = curvature(problem, found.xs, us, found.costates, params, exact=True)
    (N, nu), nx = us.shape, found.x0.size

    def product(dus: np.ndarray, dx0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gx0, gus = np.empty(nx), np.empty((N, nu))
        operands = [found.A, found.B, W, Wf, W0, np.ascontiguousarray(dx0), np.ascontiguousarray(dus)]
        _native.hessian_product((N, nx, nu), operands, [gx0, gus])
        return gus, gx0

    return product
