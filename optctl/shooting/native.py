"""The iterations by the compiled kernel, which runs the problem's functions from tapes; no XLA program is made of them.

`interior_point.iterate` is the definition. The kernel does the same for functions whose scalar operations fit on a tape
(`optctl.tape`): such a solve starts at once and runs several times faster than compiled row algebra.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _native
from optctl._arrays import namespace, on_host
from optctl._record import remember
from optctl._slow import refused
from optctl.engine.graphs import graphs_of, known_or_made
from optctl.engine.tape_check import check_tapes
from optctl.judge.interpreter import Uninterpreted
from optctl.problem import Problem, kinds, parts_of, signature
from optctl.shooting.barrier import NUMBERS, State
from optctl.shooting.expansion import Expansion, Values, function_values
from optctl.shooting.filter import SIZE, Filter
from optctl.shooting.primal_dual import Program, Unknowns
from optctl.shooting.rows import BLOCKS, PATH, TERMINAL, flatten
from optctl.shooting.scaling import Scales
from optctl.solution import History, reachable
from optctl.tape import Tape, Unsupported, memories_now

REMEMBERED = 128
_TAPES: dict[Any, Any] = {}
"""Tapes, why there are none, and what is `Seen`, by structure and shapes."""


@dataclass(frozen=True, eq=False)
class Tapes:
    """The functions of a problem on tapes; it is the same object for problems that differ in numbers alone.

    Attributes:
        every: values and expansion of a stage, of the end, and of the start.
        shapes: of the functions among the rows, by name.
        nx: number of states.
        nu: number of inputs.
    """

    every: tuple[Tape, ...]
    shapes: dict[str, tuple[int, ...]]
    nx: int
    nu: int
    _packed: dict[Any, np.ndarray] = field(default_factory=dict)
    _made: dict[Any, Any] = field(default_factory=dict)

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what `make()` returned for these functions and this key."""
        return self._made[key] if key in self._made else remember(self._made, key, make(), REMEMBERED)

    @property
    def captured(self) -> bool:
        """True if functions hold values that are being traced."""
        return any([tape.captured for tape in self.every])

    @cached_property
    def quadratic(self) -> bool:
        """True if all Jacobians and curvatures are constant."""
        _, stage, _, end, _, start = self.every
        nx, nz = self.nx, self.nx + self.nu
        values, values_end = len(stage.inputs) - nz, len(end.inputs) - nx + 1  # then slopes, Jacobians, curvature
        slopes = ((stage, values + nz), (end, values_end + nx), (start, 1 + nx))
        return all(tape.once[behind:].all() for tape, behind in slopes)

    @cached_property
    def linear_states(self) -> tuple[bool, ...]:
        """Which states have dynamics that are linear in states and inputs."""
        nx, stage = self.nx, self.every[1]
        begin = len(stage.inputs)  # behind the values and the slope of the cost
        A, B = np.split(stage.once[begin : begin + nx * (nx + self.nu)], [nx * nx])
        return tuple([bool(np.all(a) and np.all(b)) for a, b in zip(A.reshape(nx, nx), B.reshape(nx, -1), strict=True)])

    def packed(self, sizes: tuple[int, ...], begins: tuple[int, ...]) -> np.ndarray:
        """Return sizes and tapes as the kernel reads them; the tapes' memories begin at `begins`."""
        key = sizes, begins
        if key not in self._packed:
            pairs = zip(self.every, begins, strict=True)
            made = np.concatenate([sizes, *(tape.packed(begin) for tape, begin in pairs)])
            self._packed[key] = made.astype(np.int32)
        return self._packed[key]


def find_tapes(problem: Problem, xs: Any, us: Any, params: Any, settings: Any) -> tuple[Tapes | None, bool]:
    """Return the tapes of a problem, None where there are none, and whether the compiled kernel is to iterate on them.

    Raises:
        ValueError: if the kernel was asked for and cannot.
    """
    found = _usable(problem, xs, us, params, settings.exact)
    if isinstance(found, Tapes):
        return found, settings.backend != "jax"
    if settings.backend == "native":
        raise ValueError(f"`backend` is 'native', but {found}; use 'auto' or 'jax'.")
    return None, False


def _usable(problem: Problem, xs: Any, us: Any, params: Any, exact: bool) -> Tapes | str:
    """Return the tapes, or why the kernel cannot run this problem."""
    if not _native.available():
        return "the compiled kernels are not available, or arrays do not live on a CPU"
    if xs.dtype != jnp.float64:
        refused(f"{xs.dtype} numbers")
        return f"it computes in float64, and the data are {xs.dtype}"
    try:
        return tapes(problem, xs, us, params, exact)
    except Unsupported as why:
        return f"no tape holds {why}"


def run_on_host(tapes: Tapes | None, natively: bool) -> bool:
    """True if the kernel and NumPy can do all of a solve that traces nothing, with what `find_tapes` returned."""
    return natively and tapes is not None and not tapes.captured


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of a problem on the host by its structure and shapes alone.

    Attributes:
        tapes: its tapes.
        natively: whether the kernel is to iterate.
        here: whether the kernel and NumPy can do all of a solve.
        uniform: which of the leaves of problem and parameters the tapes read, in their order.
    """

    tapes: Tapes | None
    natively: bool
    here: bool
    uniform: list[int]


def look(leaves: list[Any], structure: Any, problem: Problem, xs: Any, us: Any, params: Any, settings: Any) -> Seen:
    """Return what is known of a problem of which nothing is being traced, from leaves and structure of it and params.

    Raises:
        ValueError: if the kernel was asked for and cannot.
    """
    key = structure, kinds(leaves), xs.shape, us.shape, xs.dtype, settings.exact, settings.backend, _native.available()
    found = _TAPES.get(key)
    if found is None:
        made, natively = find_tapes(problem, xs, us, params, settings)
        here = run_on_host(made, natively)
        numbered = jax.tree.unflatten(structure, list(range(len(leaves))))
        found = Seen(made, natively, here, jax.tree.leaves(parts_of(*numbered)))
        if here:
            remember(_TAPES, key, found, REMEMBERED)
    return found


def tapes(problem: Problem, xs: Any, us: Any, params: Any, exact: bool) -> Tapes:
    """Return the tapes of a problem's functions.

    Raises:
        Unsupported: if a function holds something that no tape can.
    """
    uniform = parts_of(problem, params)

    def make() -> Tapes:
        made = _make_tapes(problem, params, xs, us, exact)
        try:
            wrong = check_tapes(made.every, problem, params, uniform, xs, us, exact)
        except Uninterpreted as why:
            raise Unsupported(f"a function that NumPy cannot check: {why}") from why
        if wrong is None:
            return made
        refused = Unsupported(f"`{wrong.function}` rightly: {wrong}, by NumPy (please report this)")
        warnings.warn(f"Not used, which is slower: no tape holds {refused}.", RuntimeWarning, stacklevel=4)
        raise refused

    key = signature(uniform), xs.shape, us.shape, exact  # N, too: where JAX traces a function anew, so does this
    return known_or_made(_TAPES, key, make, REMEMBERED)


def roll(program: Program, x0: Any, us: Any) -> Any:
    """Return the states (N+1, nx) that inputs lead to."""
    if not on_host(x0):
        return program.problem.dynamics.roll(x0, us, program.params)
    return _native.roll(program.tapes.every[0].alone, program.memory[0], x0, us)


def step(program: Program, x: Any, u: Any, t: int) -> Any:
    """Return the state that follows at stage t."""
    if not on_host(x):
        return program.problem.dynamics.step(x, u, jnp.asarray(t), program.params)
    memory, begins = program.memory
    tape = program.tapes.every[0]
    values = np.concatenate([x, u, [float(t)]])[None]
    return _native.run_tape(tape.packed(begins[0]), memory, values, tape.outputs.size)[0, -x.size :]


def row_values(program: Program, xs: Any, us: Any) -> dict[str, Any]:
    """Return the values (N, m) of the path's functions by name."""
    if not program.natively:
        values = function_values(program.problem, xs, us, program.params)
        return {name: value for name, value in values.items() if name in PATH}
    packed, held = program.tapes.every[0].alone, program.memory[0]
    values = namespace(xs).concatenate([xs[:-1], us, np.arange(len(us), dtype=float)[:, None]], axis=1)
    results, at = _native.run_tape(packed, held, values, program.tapes.every[0].outputs.size), 1  # behind the cost
    found = {}
    for name in PATH:
        if name in program.tapes.shapes:
            found[name] = results[:, at : at + program.tapes.shapes[name][1]]
            at += program.tapes.shapes[name][1]
    return found


def _make_tapes(problem: Problem, params: Any, xs: Any, us: Any, exact: bool) -> Tapes:
    N, nx, nu = us.shape[0], xs.shape[1], us.shape[1]
    graphs = graphs_of(problem, params, nx, nu)
    shapes = {name: (N, *of) if name in PATH else of for name, of in graphs.shapes.items()}
    return Tapes(graphs.tapes("exact" if exact else "curved"), shapes, nx, nu)


def begin(program: Program, xs: Any, us: Any, warm: dict[str, Any] | None, settings: Any, stop: Any) -> Any:
    """Return the state after the start and `stop` iterations; the start alone where `stop` is negative.

    `warm` holds costates and the rows' multipliers y of a similar solution.
    """
    xp, given = namespace(xs), {} if settings.scale is None else settings.scale
    more = {"x_scale": given.get("x"), "u_scale": given.get("u")} | (warm or {})
    known = {name: xp.asarray(value, xs.dtype) for name, value in more.items() if value is not None}
    known |= {"xs": xs, "us": us, "numbers": xp.asarray(_first_numbers())}
    return _call(program, known, {"begin": 1, "warm": int(warm is not None)}, settings, stop)


@cache
def _first_numbers() -> np.ndarray:
    return np.array([float(NUMBERS.get(name, 0.0)) for name in _native.operand_names()["numbers"]])


def iterate(program: Program, state: Any, settings: Any, stop: Any) -> Any:
    """Iterate until the tolerance, a failure, or `stop` iterations."""
    return _go_on(program, state, settings, stop, {"warm": int(settings.warm)})


def measured(program: Program, state: Any, settings: Any) -> Any:
    """Return a state with the expansion at its point and the figures of the certificate there."""
    return _go_on(program, state, settings, 0, {"measure": 1})


def _go_on(program: Program, state: Any, settings: Any, stop: Any, flags: dict[str, int]) -> Any:
    xp, names = namespace(state.z.xs), _native.operand_names()["numbers"]
    numbers = xp.stack([xp.asarray(getattr(state, name), state.z.xs.dtype) for name in names])
    scales = {f"{name}_scale": getattr(state.scales, field) for name, field in _SCALES.items()}
    known = vars(state.z) | scales | {
        "numbers": numbers, "filter": xp.stack(list(vars(state.filter).values())),
        "history": xp.stack(list(vars(state.history).values())),
    }  # fmt: skip
    return _call(program, known, flags, settings, stop)


def expansion(program: Program, z: Unknowns, settings: Any) -> Expansion:
    """Return the expansion at a point."""
    xp, columns = namespace(z.xs), len(fields(History))
    known = vars(z) | {
        "x_scale": xp.ones(z.xs.shape[1]), "u_scale": xp.ones(z.us.shape[1]), "row_scale": xp.ones(z.s.size),
        "cost_scale": xp.ones(()), "numbers": xp.zeros(len(_native.operand_names()["numbers"])),
        "filter": xp.zeros((2, SIZE)), "history": xp.zeros((columns, 1)),
    }  # fmt: skip
    return _call(program, known, {"measure": 1}, replace(settings, gains=False), 0).e


def curved(program: Program, z: Unknowns, leaves: Sequence[Any], settings: Any) -> Expansion:
    """Return the expansion at a point on the host with the curvature of dynamics and rows.

    `leaves` are those of what the functions read.

    Raises:
        Unsupported: where no tape holds it.
    """
    of = tapes(program.problem, z.xs, z.us, program.params, True)
    read, _ = memories_now(of.every, leaves)
    return expansion(replace(program, tapes=of, read=read), z, replace(settings, exact=True))


_SCALES = {"x": "x", "u": "u", "row": "rows", "cost": "cost"}


def _call(program: Program, known: dict[str, Any], flags: dict[str, int], settings: Any, stop: Any) -> State:
    """Call the kernel with the operands that are known; the others are empty."""
    rows = program.rows
    xp, names, dtype = namespace(known["xs"]), _native.operand_names(), known["xs"].dtype
    known = {name: value for name, value in known.items() if value is not None}
    known["memory"], begins = program.memory
    barrier = np.nan if settings.barrier is None else settings.barrier
    how = (reachable(settings.tolerance, dtype), stop, settings.seconds, barrier, settings.floor)
    known["settings"] = np.array(how, dtype) if xp is np else xp.stack([xp.asarray(value, dtype) for value in how])
    if xp is np:
        out = _kernel(program, known, begins, flags, settings)(known)
    else:
        operands, shapes = _around_numbers(program, known, begins, flags, settings)
        out = _native.solve(operands | known, shapes)
    soft, of_rows = rows.soft is not None, dict(rows.shapes)
    unknowns = {name: None if name in "ev" and not soft else out[name] for name in _UNKNOWNS}
    numbers = dict(zip(names["numbers"], out["numbers"], strict=True))
    if xp is np:
        numbers |= {name: np.int64(numbers[name]) for name in _WHOLE}
    else:
        numbers |= {name: numbers[name].astype(int) for name in _WHOLE}
    return State(
        z=Unknowns(**unknowns),
        e=Expansion(
            at=Values(out["cost"], out["gaps"], out["c"]),
            J={name: out[name] for name in (*PATH, *TERMINAL) if name in of_rows},
            **{name: out[name] for name in ("q0", "qs", "rs", "A", "B", "W0", "W", "Wf")},
        ),
        scales=Scales(**{field: out[f"{name}_scale"] for name, field in _SCALES.items()}),
        filter=Filter(*out["filter"]), history=History(*out["history"]), K=out["K"],
        figures=dict(zip(names["figures"], out["figures"], strict=True)), **numbers,
    )  # fmt: skip


def _kernel(
    program: Program, known: dict[str, Any], begins: tuple[int, ...], flags: dict[str, int], settings: Any
) -> _native.SolveNow:
    """Return the kernel for these rows and flags, ready to be called on the host; it is remembered with the rows."""
    given, columns = settings.scale or {}, known["history"].shape[1] if "history" in known else settings.max_iterations
    key = (*known, *flags.items(), *given, settings.gains, columns, program.tapes)
    memo = program.rows.memo
    if key not in memo:
        operands, shapes = _around_numbers(program, known, begins, flags, settings)
        memo[key] = _native.SolveNow(operands, {name: np.shape(value) for name, value in known.items()}, shapes)
    return memo[key]


def _around_numbers(
    program: Program, known: dict[str, Any], begins: tuple[int, ...], flags: dict[str, int], settings: Any
) -> tuple[dict[str, Any], dict[str, tuple]]:
    """Return the operands that follow from rows and sizes, empty ones for what is not known, and shapes of results."""
    rows, xs, us, made = program.rows, known["xs"], known["us"], program.tapes
    xp, (N, nu), nx = namespace(xs), us.shape, xs.shape[1]
    names, of_rows, given = _native.operand_names(), dict(rows.shapes), settings.scale or {}
    columns = known["history"].shape[1] if "history" in known else settings.max_iterations + 1
    m, z, misses = rows.inequality.size, nx + nu, 0 if rows.soft is None else rows.inequality.size
    widths = {name: of_rows[name][-1] if name in of_rows else 0 for name in (*PATH, *TERMINAL)}
    sizes = {
        "N": N, "nx": nx, "nu": nu, "path_inequalities": widths["path_inequality"],
        "path_equalities": widths["path_equality"], "terminal_inequalities": widths["terminal_inequality"],
        "terminal_equalities": widths["terminal_equality"], "rows": m, "has_soft": int(rows.soft is not None),
        "history": columns, "gains": int(settings.gains), "quadratic": int(made.quadratic),
        "x_given": int("x" in given), "u_given": int("u" in given),
        **dict.fromkeys(("begin", "measure", "warm"), 0), **flags, **_offsets(rows.shapes),
    }  # fmt: skip
    kinds = (rows.inequality, rows.equality, rows.elastic, rows.soft, rows.off)
    operands = {
        "info": xp.asarray(made.packed(tuple([sizes[name] for name in names["sizes"]]), begins)),
        "kind": xp.asarray(sum(xp.where(on, 2**k, 0) for k, on in enumerate(kinds) if on is not None), xp.int32),
        "bounds": flatten(rows.bounds, xs.dtype, xs), "l1": rows.l1, "l2": rows.l2,
        "x0_free": xp.asarray(program.x0_free, xs.dtype), "x_linear": xp.asarray(made.linear_states, xs.dtype),
    }  # fmt: skip
    there = {name for name, operand in operands.items() if operand is not None} | {*known}
    missing = [name for name in names["operands"] if name not in there]
    operands |= {name: xp.zeros(_NOTHING.get(name, (0,)), xs.dtype) for name in missing}
    shapes = {
        "x_scale": (nx,), "u_scale": (nu,), "row_scale": (m,), "cost_scale": (), "filter": (2, SIZE),
        "numbers": (len(names["numbers"]),), "history": (len(fields(History)), columns), "xs": (N + 1, nx),
        "us": (N, nu), "costates": (N + 1, nx), "s": (m,), "y": (m,), "e": (misses,), "v": (misses,),
        "cost": (), "gaps": (N, nx), "c": (m,), "q0": (nx,), "qs": (N + 1, nx), "rs": (N, nu), "A": (N, nx, nx),
        "figures": (len(names["figures"]),), "B": (N, nx, nu), "W0": (nx, nx), "W": (N, z, z),
        "Wf": (nx, nx), "K": (N, nu, nx),
    }  # fmt: skip
    shapes |= {name: (N, width, z) if name in PATH else (width, nx) for name, width in widths.items()}
    return operands, shapes


_NOTHING: dict[str, tuple] = {"cost_scale": (), "costates": (0, 0), "filter": (0, 0), "history": (0, 0)}
_UNKNOWNS = tuple([field.name for field in fields(Unknowns)])
_WHOLE = tuple([name for name, value in NUMBERS.items() if isinstance(value, int)])


def _offsets(shapes: Any) -> dict[str, int]:
    """Return where each block of rows begins; -1 for bounds that are not there, 0 for such functions."""
    starts, at = {}, 0
    for name, shape in shapes:
        starts[name] = at
        at += int(np.prod(shape, dtype=int))
    return {name: starts.get(name, 0 if name in (*PATH, *TERMINAL) else -1) for name in BLOCKS}
