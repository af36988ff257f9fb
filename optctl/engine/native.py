"""The engine by compiled code: functions on tapes, one call for the whole horizon, from NumPy's arrays to NumPy's.

`gradient.py` is the definition. This takes its place where numbers are asked for now (`find_engine`): XLA then
compiles nothing.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from optctl import _native
from optctl._arrays import to_host
from optctl._validate import runs_now
from optctl.dynamics import AbstractDynamics
from optctl.engine.graphs import Graphs, graphs_of
from optctl.engine.tape_check import check_priced, check_tapes, check_turned
from optctl.judge.interpreter import Uninterpreted
from optctl.problem import PATH, TERMINAL, Problem, kinds, parts_of, warn_of_changes
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
    "cost", "xs", "reached", "A", "B", "qs", "rs", "q0", "costates", "us", "x0", "params", "sizes", "W", "Wf", "W0",
    "V",
)  # fmt: skip
"""What the gradient engine finds, in its order."""


class Engine:
    """A problem's functions on tapes, with its numbers in their memory; calls of one solve share it."""

    def __init__(self, graphs: Graphs, problem: Problem, params: Any) -> None:
        self.graphs, self.parts = graphs, parts_of(problem, params)
        self.leaves, self.structure = jax.tree.flatten(params)
        self._memories: dict[str, Any] = {}

    @cached_property
    def lasts(self) -> bool:
        """True if nobody can change the numbers of the problem's functions."""
        return all([_lasts(leaf) for leaf in jax.tree.leaves(self.parts)])

    def _held(self, kind: str, tapes: tuple[Tape, ...], params: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return tapes packed into one program, and their memory for these parameters."""
        leaves = jax.tree.leaves(params) if self.leaves else []
        if any([new is not old for new, old in zip(leaves, self.leaves, strict=True)]):
            self.leaves, self._memories = leaves, {}
        if kind not in self._memories:
            memory, begins = memories(tapes, to_host(self.parts | {"params": params}))
            self._memories[kind] = self.graphs.packed(kind, tapes, begins), np.asarray(memory)
        return self._memories[kind]

    def _horizon(self, kind: str, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the program of the gradient engine and its memory."""
        of_stage, slope, _, of_end, _, of_start = self.graphs.tapes(kind)
        priced = self.graphs.in_params("priced") if self.leaves else ()
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
        return Slopes(**made, params=params if found is None else self._like_params(found))

    def roll(self, us: Any, x0: Any, params: Any) -> np.ndarray:
        """Return the states."""
        program, memory = self._held("steps", self.graphs.tapes("slopes")[:1], params)
        return _native.roll(program, memory, np.asarray(x0), np.asarray(us))

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

    def ilqr(
        self, us: Any, x0: Any, params: Any, lower: Any, upper: Any, signs: Any, *, exact: bool, bounded: bool,
        counts: tuple[int, ...], numbers: tuple[float, ...],
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Solve by iterative LQR from us (`solvers/ilqr.py`); figures are cost, iterations and status."""
        horizon = self._horizon("exact" if exact else "curved", params)
        values = self._held("values", self.graphs.tapes("slopes")[::2], params)
        (N, nu), nx = us.shape, x0.size
        shapes = {
            "xs": (N + 1, nx), "us": (N, nu), "slope": (N, nu), "K": (N, nu, nx), "costates": (N + 1, nx),
            "history": (4, counts[0] + 1), "figures": (3,),
        }  # fmt: skip
        made = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        given = [np.ascontiguousarray(array, np.float64) for array in (x0, us, lower, upper, signs, numbers)]
        sizes = N, nx, nu, int(exact), int(bounded), *counts
        _native.on_host_run("ilqr", sizes, (*horizon, *values, *given, *made.values()))
        return made

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

    def mixed_hessian(self, us: Any, x0: Any, params: Any) -> tuple[Slopes, Callable]:
        """Return the same with parameters: directions are (dus, dx0, dparams), and derivatives in params are the last.

        One tangent rollout, one second-order costate sweep, as `hessian.py` has them.
        """
        found = self.slopes(us, x0, params)
        (N, nu), nx, count = us.shape, x0.size, sum([leaf.size for leaf in self.leaves])
        inputs = stages(found.xs, us, found.costates)
        still = np.zeros((N, nx))

        def turned(which: int, *columns: np.ndarray) -> list[np.ndarray]:
            made = self.at_each("turned", which, np.hstack(columns), params)
            return np.split(made, np.cumsum([nx, nu if which == 0 else 0, count]), axis=1)[:3]

        def product(dus: np.ndarray, dx0: np.ndarray, dparams: Any) -> tuple[Any, ...]:
            dp = flat(dparams)
            each = np.tile(dp, (N, 1))
            dxs = _native.tangent(found.A, found.B, self.push(found.xs, us, params, dparams), dx0, dus)
            of_xs, of_us, _ = turned(0, inputs, dxs[:-1], dus, each, still)
            of_end, _, end = turned(1, found.xs[-1:], dxs[-1:], dp[None])
            of_start, _, start = turned(2, found.xs[:1], dxs[:1], dp[None])
            dcostates, gus = _native.costates(found.A, found.B, np.vstack([of_xs, of_end]), of_us)
            _, _, of_params = turned(0, inputs, dxs[:-1], dus, each, dcostates[1:])
            gparams = self._like_params(of_params.sum(axis=0) + end[0] + start[0])
            return dxs, dcostates, gus, dcostates[0] + of_start[0], gparams

        return found, product

    def at_each(self, kind: str, which: int, inputs: np.ndarray, params: Any) -> np.ndarray:
        """Return the results of a tape of the stages, the end or the start, 0 to 2, for rows of its inputs."""
        in_params = kind in IN_PARAMS
        tape = self.graphs.in_params(kind)[which] if in_params else self.graphs.tapes(kind)[2 * which + 1]
        program, memory = self._held(f"{kind} of {which}", (tape,), params)
        rows = max(1, MANY // max(tape.outputs.size + tape.inputs.size, 1))
        parts = [inputs[begin : begin + rows] for begin in range(0, len(inputs), rows)]
        return np.concatenate([_native.run_tape(program, memory, part, tape.outputs.size) for part in parts])

    def push(self, xs: Any, us: Any, params: Any, dparams: Any) -> np.ndarray:
        """Return f_p dparams of all stages, (N, nx)."""
        dp = flat(dparams)
        if not dp.any():
            return np.zeros((len(us), xs.shape[1]))
        return self.at_each("pushed", 0, np.hstack([stages(xs, us), np.tile(dp, (len(us), 1))]), params)

    def pull(self, xs: Any, us: Any, costates: Any, params: Any) -> Any:
        """Return the sum of l_p + f_p' costate of all stages, like the parameters."""
        if not self.leaves:
            return params
        return self._like_params(self.at_each("priced", 0, stages(xs, us, costates), params).sum(axis=0))

    def _like_params(self, numbers: np.ndarray) -> Any:
        parts = np.split(numbers, np.cumsum([leaf.size for leaf in self.leaves])[:-1])
        leaves = [part.reshape(leaf.shape) for part, leaf in zip(parts, self.leaves, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    def along(self, xs: Any, us: Any, params: Any, costates: Any = None, *, curved: bool = False) -> dict[str, Any]:
        """Return values and derivatives at all stages, by name: the states `reached`, A, B, the cost `l` and its slope.

        With costates (N+1, nx) V, the curvature of the cost + costate'f, too; if `curved`, W, that of the cost.
        """
        kind = "slopes" if not curved else "curved" if costates is None else "exact"
        place, (N, nu), nx = self.graphs.path, us.shape, xs.shape[1]
        nz, rows = nx + nu, sum([of.size for of in place.functions[1:]])
        prices = np.zeros((N, nx)) if costates is None else costates[1:]
        values = np.hstack([stages(xs, us), prices, np.zeros((N, rows))])
        made = self.at_each(kind, 0, values, params)
        widths = [1, rows, nx, nz, nx * nx, nx * nu, rows * nz, nz * (nz + 1) // 2 if curved else 0]
        cost, _, reached, slope, A, B, _, W = np.split(made, np.cumsum(widths)[:-1], axis=1)
        found = {"l": cost[:, 0], "reached": reached, "slope": slope}
        found |= {"A": A.reshape(N, nx, nx), "B": B.reshape(N, nx, nu)}
        if curved:
            full, upper = np.zeros((N, nz, nz)), np.triu_indices(nz)
            full[:, upper[0], upper[1]] = full[:, upper[1], upper[0]] = W
            found["V" if costates is not None else "W"] = full
        return found

    def rows(self, xs: Any, us: Any, params: Any) -> dict[str, np.ndarray]:
        """Return the values of constraints that are functions, by name: (N, m) of the path, (m,) of the end."""
        at_path, at_end = self.at_each("values", 0, stages(xs, us), params), self.at_each("values", 1, xs[-1:], params)
        made = {}
        for names, values in ((PATH, at_path), (TERMINAL, at_end)):
            begin = 1
            for name in [name for name in names if name in self.graphs.shapes]:
                end = begin + int(np.prod(self.graphs.shapes[name]))
                made[name], begin = values[:, begin:end] if names is PATH else values[0, begin:end], end
        return made

    def at_end(self, which: int, x: Any, params: Any) -> tuple[float, np.ndarray, np.ndarray]:
        """Return value, slope and curvature of the cost of the end or the start, 1 or 2."""
        place, nx = (self.graphs.end, self.graphs.start)[which - 1], x.size
        rows = sum([of.size for of in place.functions])
        made = self.at_each("curved", which, np.concatenate([x, np.zeros(rows)])[None], params)[0]
        value, _, slope, _, W = np.split(made, np.cumsum([1, rows, nx, rows * nx]))
        return value[0], slope, W.reshape(nx, nx)


IN_PARAMS = ("priced", "turned", "pushed")
"""Kinds of tapes that hold derivatives in the parameters."""
MANY = 1 << 22
"""Most numbers that tapes take and give at once, about."""


def stages(xs: Any, us: Any, costates: Any = None) -> np.ndarray:
    """Return what tapes of the stages read, row by row: x, u, t, and the costate if given."""
    ts = np.arange(len(us), dtype=float)[:, None]
    return np.hstack([xs[:-1], us, ts] if costates is None else [xs[:-1], us, ts, costates[1:]])


def flat(params: Any) -> np.ndarray:
    """Return the numbers of a pytree as one array."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)] or [np.zeros(0)])


def find_engine(
    problem: Problem, us: Any, x0: Any, params: Any, *, curved: bool = False, mixed: bool = False
) -> Engine | None:
    """Return the engine of a problem whose numbers are asked for now; None where the definition is to do it.

    That is where something is being traced, or where no tape that NumPy agrees with holds a function; or, of an engine
    that is `curved`, its second derivatives; `mixed`, those in states, inputs and parameters.
    """
    known = known_engine(problem, us, x0, params, curved=curved, mixed=mixed)
    if known is not None:
        return known
    warn_of_changes(problem)
    arrays = (problem, us, x0, params)
    if us is None or not runs_now(arrays) or not _native.available() or not _fits(problem, us, x0, params):
        return None
    kinds = ["slopes", *(("curved", "exact") if curved else ()), *(("turned",) if mixed else ())]
    try:
        graphs = graphs_of(problem, params, x0.size, us.shape[1])
        for kind in kinds:
            if kind not in graphs.judged:
                graphs.judged[kind] = _judge(graphs, kind, problem, us, x0, params)
            if not graphs.judged[kind]:
                return None
    except Unsupported:
        return None
    engine = Engine(graphs, problem, params)
    _ENGINES.setdefault(problem, {})[us.shape, x0.shape, curved, mixed] = engine
    return engine


_ENGINES: weakref.WeakKeyDictionary[Problem, dict[tuple, Engine]] = weakref.WeakKeyDictionary()


def known_engine(
    problem: Problem, us: Any, x0: Any, params: Any, *, curved: bool = False, mixed: bool = False
) -> Engine | None:
    """Return the engine of this very problem where one was found for arrays like these, which fit therefore; or None.

    None is no verdict. Numbers that somebody can change, and parameters, are read anew: threads may share an engine
    whose memory stays as it is.
    """
    if us is None or problem not in _ENGINES:
        return None
    known = _ENGINES[problem].get((us.shape, x0.shape, curved, mixed))
    if known is None or us.dtype != np.float64 or x0.dtype != np.float64 or not runs_now((us, x0, params)):
        return None
    warn_of_changes(problem)
    leaves, structure = jax.tree.flatten(params)
    if (structure, kinds(leaves)) != (known.structure, kinds(known.leaves)):
        return None
    if known.lasts and not leaves:
        return known
    return Engine(known.graphs, problem, params)


def _lasts(leaf: Any) -> bool:
    """True if nobody can write to an array."""
    return not leaf.flags.writeable if isinstance(leaf, np.ndarray) else True


def _fits(problem: Problem, us: Any, x0: Any, params: Any) -> bool:
    """True if states are vectors that steps in JAX make, all kept, in double precision."""
    dynamics = problem.dynamics
    plain = dynamics.has_jax_step and steps_alone(dynamics) and problem.memory == "full"
    return plain and all(leaf.dtype == np.float64 for leaf in jax.tree.leaves((us, x0, params)))


VERBS = ("roll", "tangent", "adjoint", "jacobians", "hessians", "map_stages", "_state_jacobians", "_input_adjoint")
"""What a kind of dynamics may have its own way to do."""


def steps_alone(dynamics: AbstractDynamics) -> bool:
    """True if a step says all about dynamics: their verbs are those of the package, on vectors."""
    kind = type(dynamics)
    of_package = all([getattr(kind, verb).__module__.startswith("optctl.") for verb in VERBS])
    return of_package and kind.roll is AbstractDynamics.roll


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
            if kind == "turned":
                turned = graphs.in_params("turned"), graphs.in_params("pushed")
                wrong = check_turned(*turned, problem, params, uniform, *at)
            else:
                wrong = check_tapes(graphs.tapes(kind), problem, params, uniform, *at, exact=kind == "exact")
            if wrong is None and kind == "slopes" and jax.tree.leaves(params):
                wrong = check_priced(graphs.in_params("priced"), problem, params, uniform, *at)
            if wrong is None:
                return True
    except Uninterpreted:
        return False
    return False
