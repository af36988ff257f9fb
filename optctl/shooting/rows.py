r"""The constraints of a problem as rows, and what a barrier makes of them.

All constraints but the dynamics are stacked into one vector, c(x, u) + s = 0 with s >= 0 for inequalities and bounds,
c(x, u) = 0 for equalities (a bound whose two sides are equal is one, too). Each row has one multiplier y. With a
barrier mu, Newton's equations of a row, the slack eliminated, have one form,

    J dz - d dy = -r:      inequality  d = s/y,         r = c + mu/y        (from c + s = 0, s y = mu)
                           equality    d = delta,       r = c               (proximal: exact where dy vanishes)
                           soft        d = s/y + 1/w,   r = c - e + mu/y - (y + mu/e - l1 - l2 e)/w,  w = l2 + v/e
                                       (c + s = e, e >= 0 at the price l1 e + l2 e^2/2, v = l1 + l2 e - y, e v = mu)

so that a row adds J'(1/d)J to the Hessian of its stage and J'(y + r/d) to its slope. A row without a finite bound is
switched off: it adds nothing.

References: Waechter and Biegler (2006), On the implementation of an interior-point filter line-search algorithm;
Friedlander and Orban (2012), A primal-dual regularized interior-point method for convex quadratic programs.
"""

from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace, on_host
from optctl._record import record
from optctl.problem import PATH, TERMINAL, Problem

BOUNDS = ("x0_min", "x0_max", "x_min", "x_max", "u_min", "u_max")
BLOCKS = (*BOUNDS, *PATH, *TERMINAL)
DELTA = 1e-8
"""Proximal weight of equalities: their multipliers are unknowns, so it slows the last digits, not changes them."""
DELTA_SINGLE = 1e-5
"""The same in float32, which has not the digits for the other."""
MARGIN = 1e-2
"""How far a guess is kept away from its bounds, and the least first slack, in units of the sizes."""


@record(static=("shapes",))
class Rows:
    """What does not change about the rows during a solve.

    Attributes:
        bounds: bounds by the name of their block, infinite where there is none.
        shapes: ((name, shape), ...) of all blocks, in the order of the stacked vector.
        inequality: flat booleans: c <= 0, and the row counts.
        equality: flat booleans: c = 0, and the row counts.
        elastic: flat booleans: the feasibility phase may miss the row; bounds it keeps.
        soft: None, or flat booleans: an inequality that may be missed at a price.
        l1: None, or the flat price of missing a soft row, times the miss.
        l2: None, or the flat price, times half the squared miss.
        off: None, or flat booleans: a row that is switched off for this solve, and has to hold in the end.
    """

    bounds: dict[str, Any]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    inequality: Any
    equality: Any
    elastic: Any
    soft: Any
    l1: Any
    l2: Any
    off: Any = None

    @cached_property
    def places(self) -> list[tuple[str, tuple[int, ...], slice]]:
        """Name, shape and place of each block in the stacked vector."""
        made, start = [], 0
        for name, shape in self.shapes:
            made.append((name, shape, slice(start, start + prod(shape))))
            start += prod(shape)
        return made

    @cached_property
    def hard(self) -> Any:
        """Flat booleans: inequalities that may not be missed."""
        return self.inequality if self.soft is None else self.inequality & ~self.soft

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What others make of these rows alone, and want to find again."""
        return {}

    def split(self, flat: Any) -> dict[str, Any]:
        """Return the blocks of a flat vector by name."""
        return {name: flat[place].reshape(shape) for name, shape, place in self.places}


def make_rows(problem: Problem, xs: Any, us: Any, functions: dict[str, tuple], x0_free: tuple[bool, ...]) -> Rows:
    """Return the rows of a problem; `functions` holds the shapes of the functions among them."""
    xp = namespace(xs)
    bounds = bound_values(problem, xs, us, any(x0_free))
    inequality, equality, elastic = {}, {}, {}
    for name, value in bounds.items():
        stem, side = name[:-4], name[-3:]
        other = bounds.get(f"{stem}_{'max' if side == 'min' else 'min'}")
        there = xp.isfinite(value) & (xp.asarray(x0_free) if stem == "x0" else True)
        same = xp.zeros(value.shape, bool) if other is None else (value == other) & there
        inequality[name] = there & ~same
        equality[name] = same & (side == "min")
        elastic[name] = xp.zeros(value.shape, bool)
    for name, shape in functions.items():
        constraint = getattr(problem, name)
        on = xp.broadcast_to(True if constraint.on is None else constraint.on, shape)
        no = xp.zeros(shape, bool)
        inequality[name], equality[name] = (no, on) if name.endswith("_equality") else (on, no)
        elastic[name] = xp.ones(shape, bool)
    every = {name: value.shape for name, value in bounds.items()} | functions
    shapes = tuple((name, tuple(every[name])) for name in BLOCKS if name in every)
    soft, l1, l2 = None, None, None
    if any(getattr(problem, name).soft for name in functions):
        soft, l1, l2 = _prices(problem, bounds, functions, inequality, xs)
    flat = [flatten(blocks, bool, xs) for blocks in (inequality, equality, elastic)]
    return Rows(bounds, shapes, flat[0], flat[1], flat[2], soft, l1, l2)


def row_numbers(problem: Problem) -> list[Any]:
    """Return what `make_rows` reads of a problem whose arrays are NumPy's, beside its functions, as a key."""
    held = [getattr(problem, name) for name in BOUNDS]
    for name in (*PATH, *TERMINAL):
        constraint = getattr(problem, name)
        held += [None] if constraint is None else [constraint.l1, constraint.l2, constraint.on]
    arrays = [None if value is None else np.asarray(value) for value in held]
    return [None if array is None else (array.shape, array.dtype, array.tobytes()) for array in arrays]


def can_be_unbounded(rows: Rows, x0_free: tuple[bool, ...]) -> Any:
    """Return False where bounds hold all that is free, inputs and x_0: then they hold a rollout and its cost."""
    xp = namespace(rows.inequality)
    inequality, equality = rows.split(rows.inequality), rows.split(rows.equality)
    held, no = xp.asarray(True), xp.zeros((), bool)
    for stem, free in (("u", xp.asarray(True)), ("x0", xp.asarray(x0_free))):
        low, high = f"{stem}_min", f"{stem}_max"
        both = inequality.get(low, no) & inequality.get(high, no)
        held = held & xp.all(both | equality.get(low, no) | equality.get(high, no) | ~free)
    return ~held


def _prices(
    problem: Problem, bounds: dict[str, Any], functions: dict[str, tuple], inequality: dict[str, Any], like: Any
) -> tuple[Any, Any, Any]:
    """Return which rows are soft, and their prices, flat."""
    xp = namespace(like)
    soft = {name: xp.zeros(value.shape, bool) for name, value in bounds.items()}
    l1 = {name: xp.zeros(value.shape, like.dtype) for name, value in bounds.items()}
    l2 = dict(l1)
    for name, shape in functions.items():
        price, l2[name] = getattr(problem, name).prices(shape, like.dtype)
        soft[name] = inequality[name] & xp.isfinite(price)
        l1[name] = xp.where(soft[name], price, 0.0)
    return flatten(soft, bool, like), flatten(l1, like.dtype, like), flatten(l2, like.dtype, like)


def all_counted(rows: Rows) -> Rows:
    """Return the rows with those on that were switched off for a solve."""
    if rows.off is None:
        return rows
    on = {"inequality": rows.split(rows.inequality), "equality": rows.split(rows.equality)}
    off = rows.split(rows.off)
    for name, block in off.items():
        blocks = on["equality" if name == "path_equality" else "inequality"]
        blocks[name] = blocks[name] | block
    return replace(rows, off=None, **{kind: flatten(blocks, bool, rows.off) for kind, blocks in on.items()})


def bound_values(problem: Problem, xs: Any, us: Any, start_free: bool) -> dict[str, Any]:
    """Return the bounds that are present, each in the shape of what it bounds: x_0, x_1..x_N or u_0..u_{N-1}."""
    xp = namespace(xs)
    made = {}
    for side, nothing, tighter in (("min", -xp.inf, xp.maximum), ("max", xp.inf, xp.minimum)):
        x, x0, u = (getattr(problem, f"{name}_{side}") for name in ("x", "x0", "u"))
        if start_free and (x is not None or x0 is not None):
            first = xp.broadcast_to(xp.asarray(nothing if x is None else x, xs.dtype), xs.shape)[0]
            made[f"x0_{side}"] = tighter(first, xp.asarray(nothing if x0 is None else x0, xs.dtype))
        if x is not None:
            made[f"x_{side}"] = xp.broadcast_to(xp.asarray(x, xs.dtype), xs.shape)[1:]
        if u is not None:
            made[f"u_{side}"] = xp.broadcast_to(xp.asarray(u, us.dtype), us.shape)
    return {name: made[name] for name in BOUNDS if name in made}


def bounded_values(bounds: dict[str, Any], xs: Any, us: Any) -> dict[str, Any]:
    """Return c of the bounds: lower - z or z - upper, -1 where there is no bound."""
    made = {}
    xp = namespace(xs)
    for name, bound in bounds.items():
        z = {"x0": xs[0], "x": xs[1:], "u": us}[name[:-4]]
        there = xp.isfinite(bound)
        gap = xp.where(there, bound, 0.0) - z
        made[name] = xp.where(there, gap if name.endswith("min") else -gap, -1.0)
    return made


def flatten(blocks: dict[str, Any], dtype: Any, like: Any) -> Any:
    """Stack blocks into one vector, in a fixed order; none are an array like `like`."""
    ordered = [blocks[name] for name in BLOCKS if name in blocks]
    if not ordered:
        return namespace(like).zeros(0, dtype)
    xp = np if all(on_host(block) for block in ordered) else jnp
    return xp.concatenate([block.ravel() for block in ordered])


def along(rows: Rows, J: dict[str, Any], dxs: Any, dus: Any) -> Any:
    """Return J dz, flat; `J` holds the Jacobians of the functions among the rows."""
    xp, made = namespace(dxs), {}
    for name, _ in rows.shapes:
        if name in PATH:
            made[name] = xp.einsum("tij,tj->ti", J[name], xp.concatenate([dxs[:-1], dus], axis=1))
        elif name in TERMINAL:
            made[name] = J[name] @ dxs[-1]
        else:
            moved = {"x0": dxs[0], "x": dxs[1:], "u": dus}[name[:-4]]
            made[name] = -moved if name.endswith("min") else moved
    return flatten(made, dxs.dtype, dxs)


def transposed(rows: Rows, J: dict[str, Any], v: Any, N: int, nx: int, nu: int) -> tuple[Any, Any, Any]:
    """Return J'v: in a free x_0 (nx,), in the states (N+1, nx), in the inputs (N, nu)."""
    xp, vs = namespace(v), rows.split(v)
    start, later, us = xp.zeros(nx, v.dtype), xp.zeros((N, nx), v.dtype), xp.zeros((N, nu), v.dtype)
    for side, sign in (("min", -1.0), ("max", 1.0)):
        start = start + sign * vs.get(f"x0_{side}", 0.0)
        later = later + sign * vs.get(f"x_{side}", 0.0)
        us = us + sign * vs.get(f"u_{side}", 0.0)
    xs = xp.concatenate([xp.zeros((1, nx), v.dtype), later])
    for name in PATH:
        if name in vs:
            g = xp.einsum("tij,ti->tj", J[name], vs[name])
            us = us + g[:, nx:]
            xs = xs + xp.pad(g[:, :nx], ((0, 1), (0, 0)))
    for name in TERMINAL:
        if name in vs:
            xs = xs + xp.pad((J[name].T @ vs[name])[None], ((N, 0), (0, 0)))
    return start, xs, us


def squared(rows: Rows, J: dict[str, Any], weight: Any, N: int, nx: int, nu: int) -> tuple[Any, Any, Any]:
    """Return J' diag(weight) J: of x_0 (nx, nx), of the stages (N, nx+nu, nx+nu), of the end (nx, nx)."""
    xp, ws = namespace(weight), rows.split(weight)
    start, later, us = xp.zeros(nx, weight.dtype), xp.zeros((N, nx), weight.dtype), xp.zeros((N, nu), weight.dtype)
    for side in ("min", "max"):
        start, later, us = (z + ws.get(f"{name}_{side}", 0.0) for name, z in (("x0", start), ("x", later), ("u", us)))
    inner = xp.concatenate([xp.zeros((1, nx), weight.dtype), later[:-1]])
    diagonal = xp.concatenate([inner, us], axis=1)
    stages = diagonal[:, :, None] * xp.eye(nx + nu, dtype=weight.dtype)[None]
    end = xp.diag(later[-1])
    for name in PATH:
        if name in ws:
            stages = stages + xp.einsum("tki,tk,tkj->tij", J[name], ws[name], J[name])
    for name in TERMINAL:
        if name in ws:
            end = end + (J[name].T * ws[name][None]) @ J[name]
    return xp.diag(start), stages, end


def bound_arrays(rows: Rows, stem: str, z: Any) -> tuple[Any, Any]:
    """Return the lower and upper bounds of x0, x or u, infinite where there are none."""
    lower, upper = rows.bounds.get(f"{stem}_min"), rows.bounds.get(f"{stem}_max")
    lower = jnp.full_like(z, -jnp.inf) if lower is None else lower
    return lower, jnp.full_like(z, jnp.inf) if upper is None else upper


def inside(z: Any, lower: Any, upper: Any, size: Any) -> Any:
    """Return values in their bounds, a little away from them; on bounds that are equal."""
    width = upper - lower
    low = lower + MARGIN * jnp.minimum(jnp.maximum(size, jnp.abs(lower)), width)
    high = upper - MARGIN * jnp.minimum(jnp.maximum(size, jnp.abs(upper)), width)
    low, high = jnp.where(jnp.isfinite(lower), low, lower), jnp.where(jnp.isfinite(upper), high, upper)
    return jnp.where(lower == upper, lower, jnp.clip(z, low, high))


def residuals_by_name(problem: Problem, rows: Rows, c: Any, gaps: Any) -> dict[str, Any]:
    """Return by constraint how far each row is from holding, (stages, rows); one with a price may be missed.

    Blocks of x have a row for each of the stages 0..N, whatever the first one is bounded by.
    """
    xp = namespace(c)
    blocks = rows.split(xp.where(rows.equality, xp.abs(c), xp.where(rows.hard, xp.maximum(c, 0.0), 0.0)))
    for side in ("min", "max"):
        first, rest = blocks.pop(f"x0_{side}", None), blocks.pop(f"x_{side}", None)
        own = first is not None and getattr(problem, f"x0_{side}") is not None
        if own:
            blocks[f"x0_{side}"] = first
        if rest is not None:
            nothing = first is None or own
            blocks[f"x_{side}"] = xp.concatenate([xp.zeros_like(rest[:1]) if nothing else first[None], rest])
    return {name: xp.atleast_2d(block) for name, block in blocks.items()} | {"dynamics": xp.abs(gaps)}
