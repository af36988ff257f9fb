"""The march and the costate recursion by compiled code: an ODE's functions on tapes, one call for all steps.

`march.py`, `crossing.py` and `replay.py` are the definition. This takes their place where numbers are asked for now, in
double precision, of an explicit scheme, and of functions that fit on tapes (`find_flow`): XLA then compiles nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from optctl import _native
from optctl._record import changed
from optctl._validate import runs_now
from optctl.continuous.functions import LONGEST, Function, direction, rows_alike
from optctl.continuous.march import Mesh, Suspect
from optctl.continuous.steps import PAIRS
from optctl.continuous.system import Free, Grid, System
from optctl.engine.graphs import known_or_made
from optctl.problem import signature
from optctl.result import Status
from optctl.tape import Unsupported, memories_now, trace

REMEMBERED = 64
STAGES = 1 << 23
"""Most numbers that the points of all stages may be to be kept."""
FIRST_ROOM = 512
"""Steps that there is room for at first; fresh memory costs more than a second march that seldom is."""
_FUNCTIONS: dict[Any, Any] = {}
_FIXED: dict[str, tuple] = {  # as a tableau: A, b, c
    "euler": ([[0.0]], [1.0], [0.0]),
    "midpoint": ([[0.0, 0.0], [0.5, 0.0]], [0.0, 1.0], [0.0, 0.5]),
    "rk4": (
        [[0.0] * 4, [0.5, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]],
        [1 / 6, 1 / 3, 1 / 3, 1 / 6],
        [0.0, 0.5, 0.5, 1.0],
    ),
}


@dataclass(frozen=True, eq=False)
class Scheme:
    """An explicit scheme as the kernel reads it.

    Attributes:
        A: (inner, inner) stage matrix.
        b: (inner,) weights of the end.
        c: times of the stages; of a pair also that of the last one, the slope at the end.
        e: weights of the error; of a fixed scheme none.
        order: of a pair; 0 for fixed steps.
    """

    A: np.ndarray
    b: np.ndarray
    c: np.ndarray
    e: np.ndarray
    order: int


def _scheme(method: str) -> Scheme:
    if method in _FIXED:
        A, b, c = map(np.array, _FIXED[method])
        return Scheme(A, b, c, np.zeros(1), 0)
    pair = PAIRS[method]
    inner = len(pair.A)
    A = np.zeros((inner, inner))
    for i, row in enumerate(pair.A[:-1], 1):
        A[i, : len(row)] = row
    return Scheme(A, np.array(pair.A[-1]), np.array(pair.c), np.array(pair.e), pair.order)


SCHEMES = {method: _scheme(method) for method in (*_FIXED, *(m for m in PAIRS if not PAIRS[m].diagonal))}


class Functions:
    """The functions of a system: the same ones for systems that differ in numbers alone.

    Attributes:
        m: number of components of y.
        rows: where the state is a batch, each of whose rows moves by itself, their number, else 1.
        rate: dy/dt of (y, u, t); of one row, if there are several.
        surfaces: the events' g of (y, t).
        resets: the states after them, None where the integration ends.
    """

    def __init__(self, system: System, free: Free) -> None:
        shape = free.z0.shape
        held = _held(system, free)
        leaves, structure = jax.tree.flatten(held)
        of_params = jax.tree.leaves(jax.tree.unflatten(structure, range(len(leaves)))[-1])
        self.m = system.size(free)
        nu = 0 if free.signal is None else free.signal.values.shape[1]

        def of(held: Any) -> tuple[System, Any]:
            ode, events, running_cost, params = held
            return changed(system, ode=ode, events=events, running_cost=running_cost), params

        def rate(y: Any, u: Any, t: Any, held: Any) -> Any:
            system, params = of(held)
            return system.slope(shape, y, u if nu else None, t[0], params)

        def surface(k: int) -> Any:
            def value(y: Any, t: Any, held: Any) -> Any:
                system, params = of(held)
                return system.at_event(system.events[k], shape, y, t[0], params).reshape(1)

            return value

        def reset(k: int) -> Any:
            def after(y: Any, t: Any, held: Any) -> Any:
                system, params = of(held)
                return system.after_event(system.events[k], shape, y, t[0], params)

            return after

        def made(function: Any, *sizes: int) -> Function:
            return Function(function, sizes, held, of_params)

        self.rows = len(free.z0) if _may_be_rows(system, free) else 1
        q = self.m // max(self.rows, 1)

        def rate_of_rows(y: Any, u: Any, t: Any, held: Any) -> Any:
            system, params = of(held)
            z = y.reshape(-1, *shape[1:])
            return system.slope(z.shape, y.reshape(-1), u if nu else None, t[0], params).reshape(y.shape)

        if self.rows > 1 and _each_row_alone(rate_of_rows, (self.rows, q), nu, held):
            self.rate = Function(rate_of_rows, (q, nu, 1), held, of_params, self.rows, rate)
        else:
            self.rows, self.rate = 1, made(rate, self.m, nu, 1)
        self.surfaces = [made(surface(k), self.m, 1) for k in range(len(system.events))]
        self.resets = [None if e.ends else made(reset(k), self.m, 1) for k, e in enumerate(system.events)]
        self._programs: dict[Any, Any] = {}

    @property
    def every(self) -> list[Function]:
        """All of them."""
        return [self.rate, *self.surfaces, *[one for one in self.resets if one is not None]]

    @property
    def captured(self) -> bool:
        """True if a function holds values that are being traced."""
        return any([function.captured for function in self.every])

    def kinds(self, sensitive: bool, back: bool) -> list[tuple[Function, str]]:
        """Return the tapes that the kernel reads, in its order."""
        along = sensitive or bool(self.surfaces)
        wanted = [(self.rate, "values")]
        wanted += [(self.rate, "along")] if along else []
        wanted += [(self.rate, "back")] if back else []
        for surface, reset in zip(self.surfaces, self.resets, strict=True):
            wanted.append((surface, "priced" if back else "slopes"))
            if reset is not None:
                wanted.append((reset, "values"))
                wanted += [(reset, "along")] if sensitive else []
                wanted += [(reset, "back")] if back else []
        return wanted

    def program(self, leaves: Sequence[np.ndarray], sensitive: bool, back: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the tapes one after another, and their memory."""
        key = sensitive, back
        if key not in self._programs:
            tapes = [function.tape(kind) for function, kind in self.kinds(sensitive, back)]
            _, begins = memories_now(tapes, leaves)
            packed = np.concatenate([tape.packed(begin) for tape, begin in zip(tapes, begins, strict=True)])
            self._programs[key] = tapes, packed
        tapes, packed = self._programs[key]
        return packed, memories_now(tapes, leaves)[0]


def _may_be_rows(system: System, free: Free) -> bool:
    """Return whether the state may be a batch whose rows move by themselves."""
    return free.z0.ndim > 1 and len(free.z0) > 1 and not system.events and system.running_cost is None


def _each_row_alone(rate: Any, shape: tuple[int, int], nu: int, held: Any) -> bool:
    """Return whether the right side treats all rows alike, each by itself, as its graph says."""
    S = jax.ShapeDtypeStruct
    specs = S(shape, np.float64), S((nu,), np.float64), S((1,), np.float64)
    try:
        graph = trace(rate, specs, held, limit=2 * LONGEST)
    except Unsupported:
        return False
    return not graph.captured and rows_alike(graph)


def _held(system: System, free: Free) -> tuple:
    return system.ode, system.events, system.running_cost, free.params


class Flow:
    """A system with its numbers, ready to march."""

    def __init__(self, functions: Functions, system: System, free: Free) -> None:
        self.functions, self.system, self.free = functions, system, free
        self.leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(_held(system, free))]
        self.scheme = SCHEMES[system.method]
        self._mesh: Mesh | None = None

    @cached_property
    def grid(self) -> Grid:
        """All times that end a step."""
        return self.system.grid(self.free)

    @cached_property
    def pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the pieces of the signal begin, and their coefficients."""
        if self.free.signal is None:
            return np.zeros(0), np.zeros((0, 1, 0))
        pieces = self.free.signal.pieces()
        return np.ascontiguousarray(pieces.starts), np.ascontiguousarray(pieces.coefficients)

    def _run(
        self, kernel: str, tapes: tuple[bool, bool], rest: Sequence[int], more: Sequence[Any],
        results: Sequence[np.ndarray], marks: Sequence[np.ndarray],
    ) -> None:  # fmt: skip
        """Run a kernel on the tapes for (sensitive, back), with more sizes and operands than all kernels have."""
        system, grid, scheme, (starts, coefficients) = self.system, self.grid, self.scheme, self.pieces
        (sensitive, back), events = tapes, system.events
        program, memory = self.functions.program(self.leaves, sensitive, back)
        sizes = [
            self.functions.m, system.moved_by_f(self.free.z0.shape), coefficients.shape[2], coefficients.shape[1] - 1,
            len(self.functions.rate.params), len(grid.anchors), len(scheme.b), scheme.order, sensitive, grid.strict,
            sensitive or bool(events), back, self.functions.rows, len(events),
        ]  # fmt: skip
        for event in events:
            sizes += [event.ends, event.direction, event.most, not event.ends]
        longest = np.inf if system.dt is None else float(system.dt)
        numbers = [float(system.sign), float(system.rtol), float(system.atol), longest]
        along = [direction(part.size) for part in (starts, coefficients)]
        operands = [scheme.A, scheme.b, scheme.c, scheme.e, grid.anchors, starts, coefficients, *along]
        whole = np.array([*sizes, *rest], np.int64)
        given = [program, memory, whole, np.array(numbers), grid.pieces, *operands, *more]
        _native.step_through(kernel, given, [*results, *marks])

    def march(self, sensitive: bool, stages: bool = False) -> tuple[Mesh, Any]:
        """Solve forward; `sensitive`: with step lengths that suit the solution's derivatives, too.

        Returns also a time at which f seems to jump inside steps, NaN if there is none. With `stages` their points
        are kept, if they are not too many: `pull_back` on the same mesh need not find them again.
        """
        system, grid, m, inner = self.system, self.grid, self.functions.m, len(self.scheme.b)
        sensitive = sensitive and self.scheme.order > 0
        last, jumps = int(grid.where[-1]), self.free.signal is not None or grid.strict
        y0 = system.start(self.free)
        y0 = np.concatenate([y0, direction(m)]) if sensitive else y0
        figures, y, suspect_y, at = np.empty(4), np.empty(m), np.empty(m), np.zeros((len(grid.anchors), m))
        counts = np.empty(6 + len(system.events), np.int32)
        event_steps = [np.empty(event.most + 1, np.int32) for event in system.events]
        rows = min(system.max_steps, FIRST_ROOM)
        while True:
            for steps in event_steps:
                steps.fill(-1)
            ts, ys, anchor, end = np.empty(rows + 1), np.empty((rows + 1, m)), *np.empty((2, rows), np.int32)
            self._stages = np.empty((rows, inner, m) if stages and rows * inner * m <= STAGES else 0)
            results, marks = [ts, ys, at, figures, y, suspect_y, self._stages], [anchor, end, counts, *event_steps]
            self._run("march", (sensitive, False), (last, rows, jumps, True), [y0], results, marks)
            if counts[2] != Status.MESH_FULL or rows == system.max_steps:
                break
            rows = min(8 * rows, system.max_steps)
        count, rejected, status, last, retried, j = counts[:6]
        t, jump_at, suspect_t, suspect_h = figures
        suspect = Suspect(retried, suspect_t, suspect_h, j, suspect_y)
        self._mesh = mesh = Mesh(
            ts, ys, anchor, end, count, rejected, status, at, last, t, y, y, counts[6:],
            tuple([steps[:-1] for steps in event_steps]), suspect,
        )  # fmt: skip
        return mesh, jump_at

    def between(self, mesh: Mesh, s: np.ndarray) -> np.ndarray:
        """Return the states at times s, (n, m), each by one step from the stored state before it."""
        steps = np.searchsorted(mesh.ts[: mesh.count + 1], s, side="right") - 1
        steps = np.clip(steps, 0, max(int(mesh.count) - 1, 0)).astype(np.int32)
        made = np.empty((len(s), self.functions.m))
        operands = [mesh.ts, mesh.ys, np.ascontiguousarray(s)]
        self._run("dense", (False, False), (len(s),), operands, [made], [mesh.anchor, steps])
        return made

    def slopes_of_loss(self, mesh: Mesh, value: Any, gzs: np.ndarray, gtimes: Any) -> tuple[Any, ...]:
        """Return a loss, running cost included, and its slopes: at the anchors, at the end, in the mesh's times.

        Args:
            mesh: the steps.
            value: the loss without the running cost.
            gzs: (K, ...) its slope in the states observed.
            gtimes: that in the times of events, as `replay.event_times` has them.
        """
        system, grid, shape = self.system, self.grid, self.free.z0.shape
        gzs = gzs.reshape(len(gzs), -1)
        gat, gy_end, gts = np.zeros(mesh.at.shape), np.zeros(mesh.y.size), np.zeros(int(mesh.count) + 1)
        reached = grid.where <= mesh.last
        gat[grid.where[reached], : gzs.shape[1]] = gzs[reached]
        gy_end[: gzs.shape[1]] = gzs[~reached].sum(0)
        if system.running_cost is not None:
            value = value + system.integral(mesh.y, shape)
            gy_end[gzs.shape[1]] = 1.0
        every = gtimes if system.listed else [gtimes] if system.events else []
        for steps, gtime in zip(mesh.event_steps, every, strict=True):
            gts[steps[steps >= 0] + 1] += system.sign * gtime[steps >= 0]
        return value, gat, gy_end, gts

    def pull_back(
        self, mesh: Mesh, gat: np.ndarray, gy_end: np.ndarray, gts: np.ndarray, gys: Any = None
    ) -> tuple[Free, Any]:
        """Return the slope in what is free, and the costates at ts; operands as of `replay.pull_back`."""
        m, grid, (starts, coefficients) = self.functions.m, self.grid, self.pieces
        gy0, ganchors, gp = np.empty(m), np.empty(len(grid.anchors)), np.empty(len(self.functions.rate.params))
        gstarts, gcoefficients, costates = np.zeros(starts.shape), np.zeros(coefficients.shape), np.empty(gat.shape)
        results = [gy0, ganchors, gp, gstarts, gcoefficients, costates]
        nothing = np.zeros(0)
        stages = self._stages if mesh is self._mesh else nothing
        operands = [mesh.ts, mesh.ys, gat, gy_end, gts, nothing if gys is None else gys, stages]
        self._run("pull_back", (False, True), (int(mesh.count),), operands, results, [mesh.anchor, mesh.end])
        slope = self._gather(gy0, ganchors, gp, gstarts, gcoefficients)
        return slope, self.system.state(costates[grid.where], self.free.z0.shape)

    def _gather(self, gy0: Any, ganchors: Any, gp: Any, gstarts: Any, gcoefficients: Any) -> Free:
        """Return the slope in what is free from the slopes in y_0, the anchors, parameters and the signal's pieces."""
        system, free = self.system, self.free
        moved = system.moved_by_f(free.z0.shape)
        leaves, structure = jax.tree.flatten(free.params)
        gp = gp + gy0[moved:] if system.moving else gp
        parts = np.split(gp, np.cumsum([leaf.size for leaf in leaves])[:-1]) if leaves else []
        params = jax.tree.unflatten(structure, [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)])
        gts, gknots, gjumps = system.grid_slopes(free, ganchors)
        signal = None
        if free.signal is not None:
            gtimes, gvalues = free.signal.pull_pieces(gstarts, gcoefficients)
            signal = changed(free.signal, ts=gknots + gtimes, values=gvalues)
        return Free(gy0[: free.z0.size].reshape(free.z0.shape), params, gts, signal, gjumps)


def find_flow(system: System, free: Free, *, sensitive: bool = False, back: bool = False) -> Flow | None:
    """Return the flow of a system whose numbers are asked for now; None where the definition is to do it.

    That is where something is being traced, for implicit schemes, and where no tape that NumPy agrees with holds a
    function; or its derivatives, if these are needed.
    """
    arrays = jax.tree.leaves((system, free))
    if system.method not in SCHEMES or not all([type(leaf) is np.ndarray for leaf in arrays]):
        return None
    if not all([leaf.dtype == np.float64 for leaf in arrays]) or not _native.available() or not runs_now(()):
        return None
    try:
        key = signature((_held(system, free), free.z0, free.signal, system.moving))
        functions = known_or_made(_FUNCTIONS, key, lambda: Functions(system, free), REMEMBERED)
        if functions.captured or not _judged(functions, system, free, sensitive, back):
            return None
    except Unsupported:
        return None
    return Flow(functions, system, free)


def _judged(functions: Functions, system: System, free: Free, sensitive: bool, back: bool) -> bool:
    """Return whether NumPy agrees with all tapes that are needed."""
    wanted = functions.kinds(sensitive, False) + (functions.kinds(False, True) if back else [])
    if all([function._judged.get(kind) for function, kind in wanted]):
        return True
    y, t = system.start(free), free.ts[:1]
    u = np.zeros(0) if free.signal is None else np.asarray(free.signal.values)[0]
    held = _held(system, free)
    for function, kind in wanted:
        at = (y, u, t) if function is functions.rate else (y, t)
        if not function.judged(kind, at, held):
            return False
    return True
