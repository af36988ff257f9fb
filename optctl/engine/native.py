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

    cost: Any
    xs: Any
    costates: Any
    us: Any
    x0: Any
    params: Any = None
    reached: Any = None
    A: Any = None
    B: Any = None
    qs: Any = None
    rs: Any = None
    q0: Any = None
    sizes: Any = None
    W: Any = None
    Wf: Any = None
    W0: Any = None
    V: Any = None


KINDS = ("slopes", "curved", "exact")
RESULTS = (
    "cost", "xs", "reached", "A", "B", "qs", "rs", "q0", "costates", "us", "x0", "params", "sizes", "W", "Wf", "W0", "V",
)  # fmt: skip
"""What the gradient engine finds, in its order."""


class Engine:
    """A problem's functions on tapes, with its numbers in their memory; calls of one solve share it."""

    def __init__(self, graphs: Graphs, problem: Problem, params: Any) -> None:
        self.graphs, self.problem = graphs, problem
        self.leaves, self.structure = jax.tree.flatten(params)
        self._memories: dict[str, Any] = {}

    def _held(self, kind: str, tapes: tuple[Tape, ...], params: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return tapes packed into one program, and their memory for these parameters."""
        leaves = jax.tree.leaves(params) if self.leaves else []
        if any([new is not old for new, old in zip(leaves, self.leaves, strict=True)]):
            self.leaves, self._memories = leaves, {}
        if kind not in self._memories:
            memory, begins = memories(tapes, to_host(parts_of(self.problem, params)))
            self._memories[kind] = self.graphs.packed(kind, tapes, begins), np.asarray(memory)
        return self._memories[kind]

    def _horizon(self, kind: str, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the program of the gradient engine and its memory."""
        of_stage, slope, _, of_end, _, of_start = self.graphs.tapes(kind)
        priced = self.graphs.priced() if self.leaves else ()
        return self._held(f"{kind} of a horizon", (of_stage, slope, of_end, of_start, *priced), params)

    def gradient(self, us: Any, x0: Any, params: Any) -> Slopes:
        """Return cost, states, costates and derivatives along the rollout; all else is None."""
        (N, nu), nx = us.shape, x0.size
        shapes = {"cost": (), "xs": (N + 1, nx), "costates": (N + 1, nx), "us": (N, nu), "x0": (nx,)}
        return self._run("slopes", us, x0, params, True, None, {name: np.empty(of) for name, of in shapes.items()})

    def slopes(
        self, us: Any, x0: Any, params: Any, xs: Any = None, signs: Any = None, *, exact: bool = False
    ) -> Slopes:
        """Return cost, states, Jacobians, costates and derivatives; along `xs` if given, else along the rollout.

        With `signs`, one for each number of xs, then of us, also the `sizes` of slope and curvature of the cost, and
        the curvature W, Wf, W0 of the cost; with `exact` that of cost + costate'f, V, too. What is not found is None.
        """
        kind = "exact" if exact else "slopes" if signs is None else "curved"
        (N, nu), nx = us.shape, x0.size
        square, small = (N, nx + nu, nx + nu), (nx, nx)
        shapes: dict[str, tuple[int, ...]] = {
            "cost": (), "xs": (N + 1, nx), "reached": (N, nx), "A": (N, nx, nx), "B": (N, nx, nu), "qs": (N + 1, nx),
            "rs": (N, nu), "q0": (nx,), "costates": (N + 1, nx), "us": (N, nu), "x0": (nx,),
        }  # fmt: skip
        shapes |= {} if signs is None else {"sizes": (2,)}
        shapes |= {} if kind == "slopes" else {"W": square, "Wf": small, "W0": small}
        shapes |= {"V": square} if exact else {}
        made = {name: np.empty(shape) for name, shape in shapes.items()}
        return self._run(kind, us, x0 if xs is None else xs, params, xs is None, signs, made)

    def _run(self, kind: str, us: Any, xs: Any, params: Any, rolls: bool, signs: Any, made: dict[str, Any]) -> Slopes:
        """Run the gradient engine along `xs`, or where it `rolls` from x_0; it writes into the arrays made."""
        program, memory = self._horizon(kind, params)
        made["xs"][: 1 if rolls else None] = xs
        lengths = [leaf.size for leaf in self.leaves]
        found = np.empty(sum(lengths)) if lengths else None
        sizes = *us.shape[:1], made["x0"].size, us.shape[1], sum(lengths), int(rolls), KINDS.index(kind)
        us = np.ascontiguousarray(us, np.float64)
        results = [found if name == "params" else made.get(name) for name in RESULTS]
        _native.on_host_run("gradient", sizes, (program, memory, us, signs, *results))
        params = None
        if lengths:
            parts = np.split(found, np.cumsum(lengths)[:-1])  # type: ignore[arg-type]
            parts = [part.reshape(leaf.shape) for part, leaf in zip(parts, self.leaves, strict=True)]
            params = jax.tree.unflatten(self.structure, parts)
        return Slopes(**made, params=params)

    def follow(
        self, x_aim: Any, u_aim: Any, K: Any, low: Any, high: Any, x0: Any, params: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Roll out u = clip(u_aim + K (x - x_aim), low, high); return states, inputs and cost."""
        every = self.graphs.tapes("slopes")
        program, memory = self._held("values", every[::2], params)
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
