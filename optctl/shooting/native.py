"""The iterations by the compiled kernel, which runs the problem's functions from tapes; no XLA program is made of them.

`interior_point.iterate` is the definition. The kernel does the same for functions whose scalar operations fit on a tape
(`optctl.tape`): such a solve starts at once and runs several times faster than compiled row algebra.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _native
from optctl.adjoint.interpreter import Uninterpreted
from optctl.constraint import Constraint
from optctl.problem import STAGE_FUNCTIONS, STATE_FUNCTIONS, Problem
from optctl.shooting.expansion import Expansion, Values, differentiate
from optctl.shooting.filter import Filter
from optctl.shooting.primal_dual import Program, Unknowns
from optctl.shooting.rows import BLOCKS, PATH, TERMINAL, flatten
from optctl.shooting.scaling import scale_prices
from optctl.shooting.tape_check import check_tapes
from optctl.solution import History
from optctl.tape import Tape, Unsupported, compile_tape, memory

LONGEST = 30_000
"""Most instructions of a tape; beyond, matrices are large and XLA is the better choice."""
REMEMBERED = 64
_TAPES: dict[Any, Any] = {}


def reason_against(problem: Problem, xs: Any, us: Any, params: Any, exact: bool) -> str | None:
    """Return why the kernel cannot run this problem, or None."""
    if not _native.available():
        return "the compiled kernels are not available, or arrays do not live on a CPU"
    if xs.dtype != jnp.float64:
        return f"it computes in float64, and the data are {xs.dtype}"
    try:
        tapes(problem, xs, us, params, exact)
    except Unsupported as why:
        return f"no tape holds {why}"
    return None


def tapes(problem: Problem, xs: Any, us: Any, params: Any, exact: bool) -> tuple[Tape, ...]:
    """Return the tapes of a problem's functions: of a stage, of the end and of the start, values and expansion of each.

    Raises:
        Unsupported: if a function holds something that no tape can.
    """
    uniform = _parts(problem, params)
    leaves, structure = jax.tree.flatten(uniform)
    kinds = tuple([(v.shape, v.dtype) if hasattr(v, "dtype") else type(v) for v in leaves])
    key = structure, kinds, xs.shape, us.shape, exact  # N, too: where JAX traces a function anew, so does this
    found = _TAPES.get(key)
    if found is None:
        try:
            found = _make_tapes(uniform, xs, us, exact)
            wrong = check_tapes(found, problem, params, uniform, xs, us, exact)
            if wrong is not None:
                found = Unsupported(f"`{wrong.function}` rightly: {wrong}, by NumPy (please report this)")
                warnings.warn(f"Not used, which is slower: no tape holds {found}.", RuntimeWarning, stacklevel=2)
        except Unsupported as why:
            found = why
        except Uninterpreted as why:
            found = Unsupported(f"a function that NumPy cannot check: {why}")
        if isinstance(found, Unsupported) or not any(tape.captured for tape in found):
            if len(_TAPES) >= REMEMBERED:
                _TAPES.clear()
            _TAPES[key] = found
    if isinstance(found, Unsupported):
        raise found
    return found


def is_quadratic(problem: Problem, xs: Any, us: Any, params: Any, exact: bool) -> bool:
    """True if the tapes tell that all Jacobians and curvatures are constant."""
    try:
        _, stage, _, end, _, start = tapes(problem, xs, us, params, exact)
    except Unsupported:
        return False
    nx, nz = xs.shape[1], xs.shape[1] + us.shape[1]
    values, values_end = len(stage.inputs) - nz, len(end.inputs) - nx + 1  # then come slopes, then Jacobians, curvature
    slopes = ((stage, values + nz), (end, values_end + nx), (start, 1 + nx))
    return all(tape.once[behind:].all() for tape, behind in slopes)


def linear_states(problem: Problem, xs: Any, us: Any, params: Any, exact: bool) -> tuple[bool, ...]:
    """Return which states have dynamics that are linear in states and inputs, as far as the tapes tell."""
    nx, nz = xs.shape[1], xs.shape[1] + us.shape[1]
    try:
        stage = tapes(problem, xs, us, params, exact)[1]
    except Unsupported:
        return (False,) * nx
    begin = len(stage.inputs)  # behind the values and the slope of the cost
    A, B = np.split(stage.once[begin : begin + nx * nz], [nx * nx])
    return tuple([bool(np.all(a) and np.all(b)) for a, b in zip(A.reshape(nx, nx), B.reshape(nx, -1), strict=True)])


def _parts(problem: Problem, params: Any) -> dict[str, Any]:
    """Return what the functions need: all but bounds, prices and x_0."""
    held = {name: getattr(problem, name) for name in (*STAGE_FUNCTIONS, *STATE_FUNCTIONS)}
    functions = {name: f.function if isinstance(f, Constraint) else f for name, f in held.items()}
    return {"dynamics": problem.dynamics, "params": params} | functions


def _make_tapes(uniform: Any, xs: Any, us: Any, exact: bool) -> tuple[Tape, ...]:
    nx, nu = xs.shape[1], us.shape[1]
    upper = np.triu_indices(nx + nu)

    def cost(z: Any, t: Any, parts: Any) -> Any:
        f = parts["stage_cost"]
        return jnp.zeros((), z.dtype) if f is None else f(z[:nx], z[nx:], t, parts["params"])

    def rows(name: str, z: Any, t: Any, parts: Any) -> Any:
        f = parts[name]
        return jnp.zeros(0, z.dtype) if f is None else f(z[:nx], z[nx:], t, parts["params"])

    def step(z: Any, t: Any, parts: Any) -> Any:
        return parts["dynamics"].step(z[:nx], z[nx:], t, parts["params"])

    def stage_values(x: Any, u: Any, t: Any, parts: Any) -> tuple[Any, ...]:
        z = jnp.concatenate([x, u])
        return cost(z, t, parts), *(rows(name, z, t, parts) for name in PATH), step(z, t, parts)

    def stage_expansion(x: Any, u: Any, t: Any, costate: Any, g: Any, h: Any, parts: Any) -> tuple[Any, ...]:
        functions = [lambda z: step(z, t, parts), *(lambda z, name=name: rows(name, z, t, parts) for name in PATH)]
        ys = [costate, g, h] if exact else None
        slope, W, (F, *J) = differentiate(lambda z: cost(z, t, parts), functions, ys, jnp.concatenate([x, u]))
        return *stage_values(x, u, t, parts), slope, F[:, :nx], F[:, nx:], *J, W[upper]

    def of_state(name: str, x: Any, parts: Any) -> Any:
        f = parts[name]
        if f is None:
            return jnp.zeros(() if name.endswith("cost") else 0, x.dtype)
        return f(x, parts["params"])

    def end_values(x: Any, parts: Any) -> tuple[Any, ...]:
        return of_state("terminal_cost", x, parts), *(of_state(name, x, parts) for name in TERMINAL)

    def end_expansion(x: Any, g: Any, h: Any, parts: Any) -> tuple[Any, ...]:
        functions = [lambda x, name=name: of_state(name, x, parts) for name in TERMINAL]
        ys = [g, h] if exact else None
        slope, W, J = differentiate(lambda x: of_state("terminal_cost", x, parts), functions, ys, x)
        return *end_values(x, parts), slope, *J, W

    def start_values(x: Any, parts: Any) -> tuple[Any, ...]:
        return (of_state("initial_cost", x, parts),)

    def start_expansion(x: Any, parts: Any) -> tuple[Any, ...]:
        slope, W, _ = differentiate(lambda x: of_state("initial_cost", x, parts), [], None, x)
        return *start_values(x, parts), slope, W

    x, u = jax.ShapeDtypeStruct((nx,), xs.dtype), jax.ShapeDtypeStruct((nu,), us.dtype)
    t = jax.ShapeDtypeStruct((), jnp.zeros((), int).dtype)
    path = jax.eval_shape(lambda x, u, t, parts: stage_values(x, u, t, parts)[1:3], x, u, t, uniform)
    end = jax.eval_shape(lambda x, parts: end_values(x, parts)[1:], x, uniform)
    arguments: dict[Callable, tuple] = {
        stage_values: (x, u, t),
        stage_expansion: (x, u, t, x, *path),
        end_values: (x,),
        end_expansion: (x, *end),
        start_values: (x,),
        start_expansion: (x,),
    }
    return tuple(
        compile_tape(f, inputs, uniform, fixed=(2,) if t in inputs else (), limit=LONGEST)
        for f, inputs in arguments.items()
    )


def iterate(program: Program, state: Any, settings: Any, stop: Any) -> Any:
    """Iterate until the tolerance, a failure, or `stop` iterations."""
    problem, rows, z, xs, us = program.problem, program.rows, state.z, state.z.xs, state.z.us
    N, nx, nu = problem.steps, xs.shape[1], us.shape[1]
    made = tapes(problem, xs, us, program.params, settings.exact)
    uniform = _parts(problem, program.params)
    memories = [memory(tape, uniform) for tape in made]
    names, shapes = _native.operand_names(), dict(rows.shapes)
    widths = {name: shapes[name][-1] if name in shapes else 0 for name in (*PATH, *TERMINAL)}
    sizes = {
        "N": N, "nx": nx, "nu": nu, "path_inequalities": widths["path_inequality"],
        "path_equalities": widths["path_equality"], "terminal_inequalities": widths["terminal_inequality"],
        "terminal_equalities": widths["terminal_equality"], "rows": z.s.size, "has_soft": rows.soft is not None,
        "history": state.history.cost.size, "gains": settings.gains, "warm": settings.warm,
        **_offsets(rows.shapes),
    }  # fmt: skip
    begins = np.cumsum([0, *(m.size for m in memories)])
    info = np.concatenate([
        [sizes[name] for name in names["sizes"]],
        *(tape.packed(begin) for tape, begin in zip(made, begins, strict=False)),
    ]).astype(np.int32)  # fmt: skip
    kinds = (rows.inequality, rows.equality, rows.elastic, rows.soft)
    kind = sum(jnp.where(on, 2**k, 0) for k, on in enumerate(kinds) if on is not None)

    scales, priced = state.scales, scale_prices(state.scales, rows)

    def stack(values: dict[str, Any], which: str) -> Any:
        return jnp.stack([jnp.asarray(values[name], xs.dtype) for name in names[which]])

    def given(value: Any) -> Any:
        return jnp.zeros(0, xs.dtype) if value is None else value

    operands = {
        "info": jnp.asarray(info), "kind": jnp.asarray(kind, jnp.int32), "memory": jnp.concatenate(memories),
        "bounds": flatten(rows.bounds, xs.dtype), "l1": given(priced.l1), "l2": given(priced.l2),
        "x_scale": scales.x, "u_scale": scales.u, "row_scale": scales.rows, "cost_scale": scales.cost,
        "x0_free": jnp.asarray(program.x0_free, xs.dtype),
        "settings": stack(vars(settings) | {"stop": stop}, "settings"),
        "numbers": stack(vars(state), "numbers"), "filter": jnp.stack([state.filter.theta, state.filter.phi]),
        "history": jnp.stack(list(vars(state.history).values())), **{name: given(v) for name, v in vars(z).items()},
    }  # fmt: skip
    of_rows = {name: (N, m, nx + nu) if name in PATH else (m, nx) for name, m in widths.items()}
    e = state.e
    like = {"K": state.K, "cost": e.at.cost, "gaps": e.at.gaps, "c": e.at.c} | {
        name: getattr(e, name) for name in ("q0", "qs", "rs", "A", "B", "W0", "W", "Wf")
    }
    out = _native.solve(operands, {name: jnp.shape(value) for name, value in (operands | like).items()} | of_rows)
    numbers = dict(zip(names["numbers"], out["numbers"], strict=True))
    return type(state)(
        z=Unknowns(**{name: None if value is None else out[name] for name, value in vars(z).items()}),
        e=Expansion(
            at=Values(out["cost"], out["gaps"], out["c"]), J={name: out[name] for name in e.J},
            **{name: out[name] for name in ("q0", "qs", "rs", "A", "B", "W0", "W", "Wf")},
        ),
        scales=scales, filter=Filter(*out["filter"]), history=History(*out["history"]), K=out["K"],
        **{name: numbers[name].astype(getattr(state, name).dtype) for name in numbers},
    )  # fmt: skip


def _offsets(shapes: Any) -> dict[str, int]:
    """Return where each block of rows begins; -1 for bounds that are not there, 0 for such functions."""
    starts, at = {}, 0
    for name, shape in shapes:
        starts[name] = at
        at += int(np.prod(shape, dtype=int))
    return {name: starts.get(name, 0 if name in (*PATH, *TERMINAL) else -1) for name in BLOCKS}
