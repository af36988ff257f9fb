"""The engine by compiled code: functions on tapes, one call for the whole horizon, from NumPy's arrays to NumPy's.

`gradient.py` is the definition. This takes its place where numbers are asked for now (`find_engine`): XLA then
compiles nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from optctl import _native
from optctl._arrays import to_host
from optctl._validate import runs_now
from optctl.adjoint.graphs import Graphs, graphs_of, parts_of
from optctl.adjoint.interpreter import Uninterpreted
from optctl.adjoint.tape_check import check_priced, check_tapes
from optctl.dynamics import AbstractDynamics
from optctl.problem import Problem
from optctl.tape import Tape, Unsupported, memories


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
        sizes: (2,), sum |d slope| and d'W d of the cost, where signs of d were given: the sizes of a step.
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
    sizes: np.ndarray


class Engine:
    """A problem's functions on tapes, with its numbers in their memory; calls of one solve share it."""

    def __init__(self, graphs: Graphs, problem: Problem, params: Any) -> None:
        self.graphs, self.problem = graphs, problem
        self.leaves, self.structure = jax.tree.flatten(params)
        self._memories: dict[str, Any] = {}

    def _held(self, kind: str, tapes: tuple[Tape, ...], params: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """Return tapes packed into one program, and their memory for these parameters."""
        leaves = jax.tree.leaves(params)
        if any(new is not old for new, old in zip(leaves, self.leaves, strict=True)):
            self.leaves, self._memories = leaves, {}
        if kind not in self._memories:
            memory, begins = memories(tapes, to_host(parts_of(self.problem, params)))
            self._memories[kind] = self.graphs.packed(kind, tapes, begins), np.asarray(memory), begins
        return self._memories[kind]

    def slopes(self, us: Any, x0: Any, params: Any, xs: Any = None, signs: Any = None) -> Slopes:
        """Return cost, states, Jacobians, costates and derivatives; along `xs` if given, else along the rollout.

        With `signs`, one for each number of xs, then of us, also the `sizes` of slope and curvature of the cost.
        """
        kind = "slopes" if signs is None else "curved"
        of_stage, slope, _, of_end, _, of_start = self._judged(kind, params, xs, us, x0)
        priced = self.graphs.priced() if self.leaves else ()
        program, memory, _ = self._held(f"{kind} of a horizon", (of_stage, slope, of_end, of_start, *priced), params)
        us = np.ascontiguousarray(us, np.float64)
        (N, nu), nx, lengths = us.shape, x0.size, [leaf.size for leaf in self.leaves]
        shapes = (
            (), (N + 1, nx), (N, nx), (N, nx, nx), (N, nx, nu), (N + 1, nx), (N, nu), (nx,), (N + 1, nx), (N, nu),
            (nx,), (sum(lengths),), (2,),
        )  # fmt: skip
        made = [np.empty(shape) for shape in shapes]
        made[1][...] = x0 if xs is None else xs  # the first row counts, where there is a rollout
        _native.gradient(program, memory, (N, nx, nu, sum(lengths), int(xs is None)), us, signs, made)
        cost, states, reached, A, B, qs, rs, q0, costates, gus, gx0, flat, sizes = made
        parts = np.split(flat, np.cumsum(lengths)[:-1]) if lengths else []
        gradients = [part.reshape(leaf.shape) for part, leaf in zip(parts, self.leaves, strict=True)]
        of_params = jax.tree.unflatten(self.structure, gradients)
        return Slopes(cost, states, reached, A, B, qs, rs, q0, costates, gus, gx0, of_params, sizes)

    def _judged(self, kind: str, params: Any, xs: Any, us: Any, x0: Any) -> tuple[Tape, ...]:
        """Return tapes that NumPy agrees with.

        Raises:
            Unsupported: where it does not.
        """
        tapes = self.graphs.tapes(kind)
        if kind not in self.graphs.judged:
            xs, uniform = np.tile(x0, (len(us) + 1, 1)) if xs is None else xs, parts_of(self.problem, params)
            wrong = check_tapes(tapes, self.problem, params, uniform, xs, us, exact=kind == "exact")
            self.graphs.judged[kind] = wrong is None
        if not self.graphs.judged[kind]:
            raise Unsupported("its derivatives rightly, by NumPy")
        return tapes

    def follow(
        self, x_aim: Any, u_aim: Any, K: Any, low: Any, high: Any, x0: Any, params: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Roll out u = clip(u_aim + K (x - x_aim), low, high); return states, inputs and cost."""
        every = self.graphs.tapes("slopes")
        program, memory, _ = self._held("values", every[::2], params)
        (N, nu), nx = u_aim.shape, len(x0)
        xs, us, cost = np.empty((N + 1, nx)), np.empty((N, nu)), np.empty(())
        xs[0] = x0
        operands = [np.ascontiguousarray(array, np.float64) for array in (x_aim, u_aim, K, low, high)]
        _native.follow(program, memory, (N, nx, nu), operands, [xs, us, cost])
        return xs, us, cost

    def curvature(
        self, xs: Any, us: Any, costates: Any, params: Any, *, exact: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the curvature in (x, u) of all stages, of the end and of the start: (N, nz, nz), (nx, nx), (nx, nx).

        It is that of the cost, and if `exact` of costate'f, too.

        Raises:
            Unsupported: where no tape holds it.
        """
        (N, nu), nx = us.shape, xs.shape[1]
        nz, (rows, columns), kind = nx + nu, np.triu_indices(nx + nu), "exact" if exact else "curved"
        tapes = self._judged(kind, params, xs, us, xs[0])
        _, memory, begins = self._held(kind, tapes, params)

        def run(k: int, values: np.ndarray) -> np.ndarray:
            tape = tapes[k]
            rest = np.zeros((len(values), tape.inputs.size - values.shape[1]))  # prices of rows, which play no part
            packed = self.graphs.packed(f"{kind} {k}", (tape,), (begins[k],))
            return _native.run_tape(packed, memory, np.hstack([values, rest]), tape.outputs.size)

        ts = np.arange(N, dtype=float)[:, None]
        flat = run(1, np.hstack([xs[:-1], us, ts, costates[1:]]))[:, -len(rows) :]
        W = np.empty((N, nz, nz))
        W[:, rows, columns] = flat
        W[:, columns, rows] = flat
        ends = [run(k, x[None])[0, -nx * nx :].reshape(nx, nx) for k, x in ((3, xs[-1]), (5, xs[0]))]
        return W, ends[0], ends[1]

    def hessian(self, found: Slopes, us: Any, params: Any) -> Callable:
        """Return the Hessian of the cost at the point of the slopes, as a function of a direction (dus, dx0).

        It returns the derivatives along the direction of xs, costates, us and x0, those of the cost's slopes.
        """
        W, Wf, W0 = self.curvature(found.xs, us, found.costates, params, exact=True)
        (N, nu), nx = us.shape, found.x0.size

        def product(dus: np.ndarray, dx0: np.ndarray) -> tuple[np.ndarray, ...]:
            gx0, gus, dxs, dcostates = np.empty(nx), np.empty((N, nu)), np.empty((N + 1, nx)), np.empty((N + 1, nx))
            operands = [found.A, found.B, W, Wf, W0, np.ascontiguousarray(dx0), np.ascontiguousarray(dus)]
            _native.hessian_product((N, nx, nu), operands, [gx0, gus, dxs, dcostates])
            return dxs, dcostates, gus, gx0

        return product


def find_engine(problem: Problem, us: Any, x0: Any, params: Any) -> Engine | None:
    """Return the engine of a problem whose numbers are asked for now; None where the definition is to do it.

    That is where something is being traced, or where no tape that NumPy agrees with holds a function.
    """
    arrays = (problem, us, x0, params)
    if us is None or not runs_now(arrays) or not _native.available() or not _fits(problem, us, x0, params):
        return None
    try:
        graphs = graphs_of(problem, params, x0.size, us.shape[1])
        if "slopes" not in graphs.judged:
            graphs.judged["slopes"] = _judge(graphs, problem, us, x0, params)
    except Unsupported:
        return None
    return Engine(graphs, problem, params) if graphs.judged["slopes"] else None


def _fits(problem: Problem, us: Any, x0: Any, params: Any) -> bool:
    """True if states are vectors that a step in JAX makes, all kept, in double precision."""
    dynamics = problem.dynamics
    plain = type(dynamics).roll is AbstractDynamics.roll and dynamics.has_jax_step and problem.memory == "full"
    return plain and all(leaf.dtype == np.float64 for leaf in jax.tree.leaves((us, x0, params)))


def _judge(graphs: Graphs, problem: Problem, us: Any, x0: Any, params: Any) -> bool:
    """Return whether NumPy agrees with the tapes; it may not be able to tell."""
    if graphs.captured:
        return False
    xs, uniform = np.tile(np.asarray(x0), (len(us) + 1, 1)), parts_of(problem, params)
    try:
        wrong = check_tapes(graphs.tapes("slopes"), problem, params, uniform, xs, us, exact=False)
        if wrong is None and jax.tree.leaves(params):
            wrong = check_priced(graphs.priced(), problem, params, uniform, xs, us)
    except Uninterpreted:
        return False
    return wrong is None
