"""Any trajectory problem as a nonlinear program of CasADi: its functions' jaxprs, evaluated with SX expressions.

Nothing of optctl but the problem's own functions is used, so that IPOPT's answers, and the optimality conditions
checked here, share neither tapes nor kernels nor derivatives with what they judge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import casadi as ca
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.flatten_util import ravel_pytree

import optctl as oc

FAR = 1e20


def _select(which: Any, *cases: Any) -> Any:
    if not isinstance(which, ca.SX):
        return cases[int(which)]
    return ca.if_else(which, cases[1], cases[0])


ELEMENTWISE: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "add_any": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "sin": ca.sin,
    "cos": ca.cos,
    "tan": ca.tan,
    "atan2": ca.atan2,
    "tanh": ca.tanh,
    "cosh": ca.cosh,
    "sinh": ca.sinh,
    "exp": ca.exp,
    "log": ca.log,
    "log1p": lambda a: ca.log(1 + a),
    "sqrt": ca.sqrt,
    "rsqrt": lambda a: 1 / ca.sqrt(a),
    "square": lambda a: a * a,
    "abs": ca.fabs,
    "sign": ca.sign,
    "max": ca.fmax,
    "min": ca.fmin,
    "pow": lambda a, b: a**b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "and": lambda a, b: ca.logic_and(a, b),
    "or": lambda a, b: ca.logic_or(a, b),
    "not": ca.logic_not,
    "select_n": _select,
    "stop_gradient": lambda a: a,
    "copy": lambda a: a,
    "copy_p": lambda a: a,
    "convert_element_type": lambda a: a,
}
MOVES = (
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "slice", "dynamic_slice", "concatenate", "transpose"),
    *("rev", "gather", "split", "pad", "dynamic_update_slice", "scatter", "tile", "stack"),
)
"""They only move elements: applied to the elements' numbers, they tell where each result comes from."""
REDUCTIONS = {"reduce_sum": np.add, "reduce_prod": np.multiply, "reduce_max": np.frompyfunc(ca.fmax, 2, 1)}
REDUCTIONS["reduce_min"] = np.frompyfunc(ca.fmin, 2, 1)


def _is_number(value: np.ndarray) -> bool:
    return value.dtype != object


def evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Evaluate a jaxpr on arrays of numbers and of SX."""
    known = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [np.asarray(v.val) if isinstance(v, Literal) else known[v] for v in eqn.invars]
        known.update(zip(eqn.outvars, _equation(eqn, inputs), strict=True))
    return [np.asarray(v.val) if isinstance(v, Literal) else known[v] for v in jaxpr.outvars]


def _equation(eqn: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    name, params = eqn.primitive.name, eqn.params
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params and name not in ("scan", "while"):
            inner = params[key]
            closed = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            return evaluate(*closed, inputs)
    if name == "scan":
        return _scan(params, inputs)
    if all(map(_is_number, inputs)):
        made = eqn.primitive.bind(*map(jnp.asarray, inputs), **params)
        return [np.asarray(r) for r in (made if eqn.primitive.multiple_results else [made])]
    if name in MOVES:
        return _move(eqn, inputs)
    if name in REDUCTIONS:
        return [np.asarray(REDUCTIONS[name].reduce(inputs[0], axis=params["axes"]), object)]
    if name == "dot_general":
        return [_dot(*inputs, params["dimension_numbers"])]
    if name == "integer_pow":
        return [np.asarray(np.frompyfunc(lambda a: a ** params["y"], 1, 1)(inputs[0]), object)]
    if name == "cumsum":
        return [np.cumsum(inputs[0], params["axis"])]
    function = ELEMENTWISE[name]
    return [np.asarray(np.frompyfunc(function, len(inputs), 1)(*inputs), object)]


def _move(eqn: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    elements, numbered = [], []
    for v, value in zip(eqn.invars, inputs, strict=True):
        is_index = v.aval.dtype.kind in "iu" and _is_number(value)
        numbered.append(jnp.asarray(value) if is_index else jnp.arange(value.size).reshape(value.shape) + len(elements))
        elements += [] if is_index else list(value.ravel())
    params = {key: value for key, value in eqn.params.items() if key != "fill_value"}
    if "mode" in eqn.params:
        params |= {"fill_value": None}
    made = eqn.primitive.bind(*numbered, **params)
    results = made if eqn.primitive.multiple_results else [made]
    return [np.array([elements[i] for i in np.ravel(r)], object).reshape(np.shape(r)) for r in results]


def _dot(a: np.ndarray, b: np.ndarray, dimensions: Any) -> np.ndarray:
    (over_a, over_b), (batch_a, batch_b) = dimensions
    if not batch_a:
        return np.asarray(np.tensordot(a.astype(object), b.astype(object), (over_a, over_b)), object)
    a, b = np.moveaxis(a, batch_a, range(len(batch_a))), np.moveaxis(b, batch_b, range(len(batch_b)))
    assert len(batch_a) == 1
    less = [[k - 1 for k in axes] for axes in (over_a, over_b)]
    return np.stack([np.tensordot(x.astype(object), y.astype(object), less) for x, y in zip(a, b, strict=True)])


def _scan(params: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    consts, carries = params["num_consts"], params["num_carry"]
    held, carry, xs = inputs[:consts], inputs[consts : consts + carries], inputs[consts + carries :]
    order = range(params["length"])
    rows: list[list] = []
    for i in reversed(order) if params["reverse"] else order:
        out = evaluate(params["jaxpr"].jaxpr, params["jaxpr"].consts, [*held, *carry, *(x[i] for x in xs)])
        carry = out[:carries]
        rows.append(out[carries:])
    rows = rows[::-1] if params["reverse"] else rows
    return [*carry, *(np.stack(column) for column in zip(*rows, strict=True))]


def in_sx(function: Callable, *like: Any) -> Callable:
    """Return a function of flat lists of SX (or numbers), one for each argument, in place of one of arrays."""
    closed = jax.make_jaxpr(function)(*like)
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in like]

    def call(*flats: Any) -> list:
        arrays = []
        for flat, leaves in zip(flats, shapes, strict=True):
            at = 0
            for shape in leaves:
                size = int(np.prod(shape))
                part = flat[at : at + size]
                numeric = not any(isinstance(v, ca.SX) for v in part)
                arrays.append(np.array(part, None if numeric else object).reshape(shape))
                at += size
        return [v for result in evaluate(closed.jaxpr, closed.consts, arrays) for v in np.ravel(result)]

    return call


@dataclass
class Program:
    """A nonlinear program min J(w; d) subject to low <= w <= high, g(w; d) within its bounds; d holds all data.

    The variables are states, inputs, parameters if they are free, and misses of soft rows, in this order.
    """

    solver: Any
    nlp: dict[str, Any]
    check: Any


@dataclass
class Numbers:
    """What one problem of a kind adds to its `Program`: data, guess and bounds."""

    data: np.ndarray
    guess: np.ndarray
    low: np.ndarray
    high: np.ndarray
    g_low: np.ndarray
    g_high: np.ndarray


ROWS = ("path_inequality", "path_equality", "terminal_inequality", "terminal_equality")


def _prices(problem: oc.Problem, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the prices of the rows of a function, infinite for hard ones."""
    l1, l2 = getattr(problem, name).prices((count,), float)
    return np.asarray(l1), np.asarray(l2)


def _sizes(problem: oc.Problem, us: Any, xs: Any) -> dict[str, int]:
    """Return how many rows each function has."""
    x, u, p = jnp.asarray(xs[0], float), jnp.asarray(us[0], float), problem.params
    made = {}
    for name in ROWS:
        f = getattr(problem, name)
        if f is not None:
            arguments = (x, u, jnp.asarray(0), p) if name.startswith("path") else (x, p)
            made[name] = jax.eval_shape(f, *arguments).shape[0]
    return made


def build(problem: oc.Problem, us: Any, xs: Any, free: Sequence[str], options: dict[str, Any]) -> Program:
    """Build the program that a problem of this structure is, with its numbers as data."""
    N, nx, nu = problem.steps, np.shape(xs)[1], np.shape(us)[1]
    leaves, structure = jax.tree.flatten(problem)
    sizes = _sizes(problem, us, xs)
    d = ca.SX.sym("d", sum(int(np.size(leaf)) for leaf in leaves))
    X, U = ca.SX.sym("X", nx * (N + 1)), ca.SX.sym("U", max(nu * N, 0))
    flat_params = ravel_pytree(problem.params)[0] if problem.params is not None else np.zeros(0)
    P = ca.SX.sym("P", flat_params.size if "params" in free else 0)
    data = ca.vertsplit(d) if d.numel() else []
    x, u = [ca.vertsplit(v) if v.numel() else [] for v in (X, U)]

    def of_stage(pick: Callable, leaves: Any, x: Any, u: Any, t: Any, p: Any) -> Any:
        q = jax.tree.unflatten(structure, leaves)
        return pick(q)(x, u, t, p)

    def of_state(name: str, leaves: Any, x: Any, p: Any) -> Any:
        return getattr(jax.tree.unflatten(structure, leaves), name)(x, p)

    like = ([jnp.asarray(leaf, float) for leaf in leaves], jnp.zeros(nx), jnp.zeros(nu))
    p = ca.vertsplit(P) if P.numel() else _params_of(problem, leaves, data)
    picks = {"f": lambda q: q.dynamics.step, **{n: (lambda q, n=n: getattr(q, n)) for n in ROWS[:2] if n in sizes}}
    if problem.stage_cost is not None:
        picks["l"] = lambda q: q.stage_cost
    stage = {
        name: in_sx(lambda *a, pick=pick: of_stage(pick, *a), *like, jnp.asarray(0), problem.params)
        for name, pick in picks.items()
    }
    cost: Any = 0
    gaps, rows = [], {name: [] for name in sizes}
    for t in range(N):
        here = data, x[t * nx : (t + 1) * nx], u[t * nu : (t + 1) * nu], [t], p
        values = {name: f(*here) for name, f in stage.items()}
        gaps += [a - b for a, b in zip(values["f"], x[(t + 1) * nx : (t + 2) * nx], strict=True)]
        cost += values["l"][0] if "l" in values else 0
        for name in ROWS[:2]:
            if name in rows:
                rows[name] += values[name]
    ends = {"terminal_cost": x[N * nx :], "initial_cost": x[:nx], ROWS[2]: x[N * nx :], ROWS[3]: x[N * nx :]}
    for name, state in ends.items():
        if getattr(problem, name) is not None:
            f = in_sx(lambda leaves, x, p, n=name: of_state(n, leaves, x, p), *like[:2], problem.params)
            value = f(data, state, p)
            if name in rows:
                rows[name] += value
            else:
                cost += value[0]
    misses, priced = [], []
    for name, values in rows.items():
        l1, l2 = _prices(problem, name, sizes[name])
        for i, value in enumerate(values):
            k = i % sizes[name]
            if np.isfinite(l1[k]):
                e = ca.SX.sym(f"e{len(misses)}")
                misses.append(e)
                priced.append(value - e)
                cost += float(l1[k]) * e + 0.5 * float(l2[k]) * e * e
            else:
                priced.append(value)
    w = ca.vertcat(X, U, P, *misses)
    g = ca.vertcat(*gaps, *priced)
    nlp = {"x": w, "p": d, "f": cost, "g": g}
    solver = ca.nlpsol("peer", "ipopt", nlp, options)
    y = ca.SX.sym("y", g.numel())
    check = ca.Function("check", [w, d, y], [ca.SX(cost), g, ca.gradient(cost, w) + ca.jtimes(g, w, y, True)])
    return Program(solver, nlp, check)


def _params_of(problem: oc.Problem, leaves: Sequence[Any], data: Sequence[Any]) -> list:
    """Return the data that stand for the parameters."""
    paths = jax.tree_util.tree_flatten_with_path(problem)[0]
    made, at = [], 0
    for path, leaf in paths:
        size = int(np.size(leaf))
        if str(path[0]).lstrip(".") == "params":
            made += data[at : at + size]
        at += size
    return made


def numbers(problem: oc.Problem, us: Any, xs: Any, free: Sequence[str]) -> Numbers:
    """Return data, guess and bounds of one problem."""
    N, nx, nu = problem.steps, np.shape(xs)[1], np.shape(us)[1]
    leaves = jax.tree.leaves(problem)
    data = np.concatenate([np.zeros(0), *(np.ravel(np.asarray(leaf, float)) for leaf in leaves)])
    sizes = _sizes(problem, us, xs)

    def bound(name: str, shape: tuple, sign: float) -> np.ndarray:
        value = getattr(problem, name)
        return np.broadcast_to(np.asarray(sign * np.inf if value is None else value, float), shape).copy()

    x_low, x_high = bound("x_min", (N + 1, nx), -1), bound("x_max", (N + 1, nx), 1)
    if problem.x0 is not None:
        x_low[0] = x_high[0] = np.asarray(problem.x0)
    else:
        x_low[0] = np.maximum(x_low[0], bound("x0_min", (nx,), -1))
        x_high[0] = np.minimum(x_high[0], bound("x0_max", (nx,), 1))
    low, high = [x_low, bound("u_min", (N, nu), -1)], [x_high, bound("u_max", (N, nu), 1)]
    guess = [np.array(xs, float), np.asarray(us, float)]
    if problem.x0 is not None:
        guess[0][0] = np.asarray(problem.x0)
    if "params" in free:
        flat = np.asarray(ravel_pytree(problem.params)[0])
        guess.append(flat)
        for side, to, sign in (("params_min", low, -1), ("params_max", high, 1)):
            value = getattr(problem, side)
            to.append(np.full(flat.shape, sign * np.inf) if value is None else np.asarray(ravel_pytree(value)[0]))
    if "us" not in free:
        low[1] = high[1] = np.asarray(us, float)
    g_low, g_high, count = [np.zeros(N * nx)], [np.zeros(N * nx)], 0
    for name, m in sizes.items():
        many = m * (N if name.startswith("path") else 1)
        equal = name.endswith("_equality")
        g_low.append(np.full(many, 0.0 if equal else -np.inf))
        g_high.append(np.zeros(many))
        count += (many // m) * int(np.isfinite(_prices(problem, name, m)[0]).sum())
    low.append(np.zeros(count)), high.append(np.full(count, np.inf)), guess.append(np.full(count, 0.1))

    def flat_of(parts: list) -> np.ndarray:
        return np.concatenate([np.ravel(part) for part in parts])

    return Numbers(data, *map(flat_of, (guess, low, high, g_low, g_high)))


def solve(program: Program, n: Numbers) -> dict[str, Any]:
    """Solve by IPOPT."""
    found = program.solver(x0=n.guess, p=n.data, lbx=n.low, ubx=n.high, lbg=n.g_low, ubg=n.g_high)
    stats = program.solver.stats()
    g, w = np.ravel(found["g"]), np.ravel(found["x"])
    miss = max(
        *(np.max(v, initial=0.0) for v in (n.g_low - g, g - n.g_high, n.low - w, w - n.high)),
        0.0,
    )
    return {
        "status": stats["return_status"], "iterations": int(stats["iter_count"]), "cost": float(found["f"]),
        "violation": float(miss),
    }  # fmt: skip


@dataclass
class Check:
    """How far a claimed optimum is from the first-order conditions, by derivatives of CasADi's own."""

    cost: float
    violation: float
    slope: float
    products: float


def optimality(program: Program, n: Numbers, problem: oc.Problem, solution: Any, free: Sequence[str]) -> Check:
    """Return the conditions at a solution with its multipliers; slopes and products over the size of the slopes."""
    sizes = _sizes(problem, solution.us, solution.xs)
    w = [np.ravel(solution.xs), np.ravel(solution.us)]
    if "params" in free:
        w.append(np.asarray(ravel_pytree(solution.params)[0]))
    y = np.concatenate([np.ravel(solution.costates[1:]), *(np.ravel(solution.multipliers[name]) for name in sizes)])
    misses = np.zeros(n.low.size - sum(map(len, w)))
    value = np.ravel(program.check(np.concatenate([*w, misses]), n.data, y)[1])
    soft = [
        np.tile(np.isfinite(_prices(problem, name, m)[0]), problem.steps if name.startswith("path") else 1)
        for name, m in sizes.items()
    ]
    which = np.concatenate([np.zeros(problem.steps * np.shape(solution.xs)[1], bool), *soft])
    misses = np.maximum(value[which], 0.0)
    w = np.concatenate([*w, misses])
    J, g, slope = (np.ravel(v) for v in program.check(w, n.data, y))
    plain = np.ravel(program.check(w, n.data, 0 * y)[2])
    residual = w - np.clip(w - slope, n.low, n.high)
    size = 1e-8 + np.max(np.abs(plain), initial=0.0) + np.max(np.abs(y), initial=0.0)
    beyond = [g - n.g_high, n.g_low - g, w - n.high, n.low - w]
    inequality = n.g_low == -np.inf
    products = np.where(inequality, np.abs(y * g) + np.maximum(-y, 0), 0.0)
    return Check(
        float(J[0]), max(float(np.max(b, initial=0.0)) for b in beyond),
        float(np.max(np.abs(residual), initial=0.0)) / size, float(np.max(products, initial=0.0)) / size,
    )  # fmt: skip
