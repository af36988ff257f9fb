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
from optctl.dynamics import AbstractDynamics
from optctl.engine.graphs import Graphs, graphs_of
from optctl.engine.tape_check import check_priced, check_tapes
from optctl.judge.interpreter import Uninterpreted
from optctl.problem import Problem, parts_of
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
        W, Wf, W0: (N, nz, nz), (nx, nx), (nx, nx): the curvature of the cost in z = (x, u) and at the ends.
        V: (N, nz, nz), that of cost + costate'f.
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
    W: np.ndarray
    Wf: np.ndarray
    W0: np.ndarray
    V: np.ndarray


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

    def slopes(
        self, us: Any, x0: Any, params: Any, xs: Any = None, signs: Any = None, *, exact: bool = False
    ) -> Slopes:
        """Return cost, states, Jacobians, costates and derivatives; along `xs` if given, else along the rollout.

        With `signs`, one for each number of xs, then of us, also the `sizes` of slope and curvature of the cost, and
        the curvature W, Wf, W0 of the cost; with `exact` that of cost + costate'f, V, too.
        """
        kind = "exact" if exact else "slopes" if signs is None else "curved"
        of_stage, slope, _, of_end, _, of_start = self.graphs.tapes(kind)
        priced = self.graphs.priced() if self.leaves else ()
        program, memory, _ = self._held(f"{kind} of a horizon", (of_stage, slope, of_end, of_start, *priced), params)
        us = np.ascontiguousarray(us, np.float64)
        (N, nu), nx, lengths = us.shape, x0.size, [leaf.size for leaf in self.leaves]
        bends = ("slopes", "curved", "exact").index(kind)
        square, small = (N, nx + nu, nx + nu), (nx, nx)
        shapes = {
            "cost": (), "xs": (N + 1, nx), "reached": (N, nx), "A": (N, nx, nx), "B": (N, nx, nu), "qs": (N + 1, nx),
            "rs": (N, nu), "q0": (nx,), "costates": (N + 1, nx), "us": (N, nu), "x0": (nx,), "params": (sum(lengths),),
            "sizes": (2,), "W": square if bends else (0,), "Wf": small if bends else (0,),
            "W0": small if bends else (0,), "V": square if exact else (0,),
        }  # fmt: skip
        made: dict[str, Any] = {name: np.empty(shape) for name, shape in shapes.items()}
        made["xs"][...] = x0 if xs is None else xs  # the first row counts, where there is a rollout
        sizes = (N, nx, nu, sum(lengths), int(xs is None), bends)
        _native.on_host_run("gradient", sizes, (program, memory, us, signs, *made.values()))
        parts = np.split(made["params"], np.cumsum(lengths)[:-1]) if lengths else []
        gradients = [part.reshape(leaf.shape) for part, leaf in zip(parts, self.leaves, strict=True)]
        made["params"] = jax.tree.unflatten(self.structure, gradients)
        return Slopes(**made)

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
        _native.on_host_run("follow", (N, nx, nu), (program, memory, *operands, xs, us, cost))
        return xs, us, cost

    def hessian(self, us: Any, x0: Any, params: Any) -> tuple[Slopes, Callable]:
        """Return the slopes at a point, and the Hessian of the cost there, as a function of a direction (dus, dx0).

        It returns the derivatives along the direction of xs, costates, us and x0, those of the cost's slopes.
        """
        found = self.slopes(us, x0, params, exact=True)
        (N, nu), nx = us.shape, x0.size

        def product(dus: np.ndarray, dx0: np.ndarray) -> tuple[np.ndarray, ...]:
            gx0, gus, dxs, dcostates = np.empty(nx), np.empty((N, nu)), np.empty((N + 1, nx)), np.empty((N + 1, nx))
            operands = [found.A, found.B, found.V, found.Wf, found.W0]
            operands += [np.ascontiguousarray(dx0), np.ascontiguousarray(dus)]
            _native.on_host_run("hessian_product", (N, nx, nu), (*operands, gx0, gus, dxs, dcostates))
            return dxs, dcostates, gus, gx0

        return found, product


def find_engine(problem: Problem, us: Any, x0: Any, params: Any, *, curved: bool = False) -> Engine | None:
    """Return the engine of a problem whose numbers are asked for now; None where the definition is to do it.

    That is where something is being traced, or where no tape that NumPy agrees with holds a function; or, of an engine
    that is `curved`, its second derivatives.
    """
    arrays = (problem, us, x0, params)
    if us is None or not runs_now(arrays) or not _native.available() or not _fits(problem, us, x0, params):
        return None
    try:
        graphs = graphs_of(problem, params, x0.size, us.shape[1])
        for kind in ("slopes", "curved", "exact") if curved else ("slopes",):
            if kind not in graphs.judged:
                graphs.judged[kind] = _judge(graphs, kind, problem, us, x0, params)
            if not graphs.judged[kind]:
                return None
    except Unsupported:
        return None
    return Engine(graphs, problem, params)


def _fits(problem: Problem, us: Any, x0: Any, params: Any) -> bool:
    """True if states are vectors that a step in JAX makes, all kept, in double precision."""
    dynamics = problem.dynamics
    plain = type(dynamics).roll is AbstractDynamics.roll and dynamics.has_jax_step and problem.memory == "full"
    return plain and all(leaf.dtype == np.float64 for leaf in jax.tree.leaves((us, x0, params)))


def _judge(graphs: Graphs, kind: str, problem: Problem, us: Any, x0: Any, params: Any) -> bool:
    """Return whether NumPy agrees with the tapes of a kind; it may not be able to tell.

    It is asked around the guess, and where that is no place to tell, around zero.
    """
    if graphs.captured:
        return False
    xs, us, uniform = np.tile(np.asarray(x0), (len(us) + 1, 1)), np.asarray(us), parts_of(problem, params)
    try:
        for scale in (1.0, 0.0):
            at = scale * np.nan_to_num(xs), scale * np.nan_to_num(us)
            wrong = check_tapes(graphs.tapes(kind), problem, params, uniform, *at, exact=kind == "exact")
            if wrong is None and kind == "slopes" and jax.tree.leaves(params):
                wrong = check_priced(graphs.priced(), problem, params, uniform, *at)
            if wrong is None:
                return True
    except Uninterpreted:
        return False
    return False
