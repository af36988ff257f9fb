r"""Scales of a problem: the iterations see states, inputs, rows and cost of size one, whatever units the user has.

    x = S_x x~,   u = S_u u~,   c~ = D c,   J~ = J / sigma;      so  lambda~ = S_x lambda / sigma,   y~ = y / (D sigma)

Scales are powers of two, and 1 for all that is between a hundredth and a hundred already: a problem in sensible units
is left as it is. Only `interior_point.iterate` (and its kernel) work on scaled numbers; whatever goes in and comes out
is in the user's units.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from optctl._record import record
from optctl._validate import as_float
from optctl.problem import Problem
from optctl.shooting.expansion import Expansion, Values, evaluate, expand
from optctl.shooting.rows import BOUNDS, PATH, Rows, flatten
from optctl.solution import FLOOR

SMALL, LARGE = 1e-2, 1e2
"""What lies between needs no scale."""
RELATIVE = 1e-3
"""A state is at least this part of what the others make of it in one step: the rest is rounding."""


@record()
class Scales:
    """Units that the iterations count in.

    Attributes:
        x: (nx,) of the states.
        u: (nu,) of the inputs.
        rows: what rows are multiplied by, flat; the same at all stages.
        cost: of the cost.
    """

    x: Any
    u: Any
    rows: Any
    cost: Any

    def inverse(self) -> "Scales":
        """Return the scales that undo these."""
        return jax.tree.map(lambda leaf: 1 / leaf, self)


def no_scales(nx: int, nu: int, rows: int, like: Any) -> Scales:
    """Return scales of one, of arrays like this one."""
    return Scales(*(jnp.ones(shape, like.dtype) for shape in (nx, nu, rows, ())))


def given_scales(scale: dict[str, Any] | None, nx: int, nu: int) -> dict[str, Any] | None:
    """Return the user's scales of states and inputs, one for each, or None.

    Raises:
        ValueError: for another number of them than there are states or inputs.
    """
    if scale is None:
        return None
    made = {}
    for name, width in (("x", nx), ("u", nu)):
        if name in scale:
            value = as_float(scale[name], f'scale["{name}"]')
            if value.shape not in ((), (width,)):
                raise ValueError(f'`scale["{name}"]` has shape {value.shape}; expected a number or ({width},).')
            made[name] = jnp.broadcast_to(value, (width,))
    return made


def rounded(size: Any) -> Any:
    """Return the power of two next to a size, 1 where it is usual, or unknown (zero or not finite)."""
    usual = (size >= SMALL) & (size <= LARGE) | ~jnp.isfinite(size) | (size <= 0)
    return jnp.where(usual, 1.0, jnp.exp2(jnp.round(jnp.log2(jnp.where(usual, 1.0, size)))))


def guess_sizes(rows: Rows, stem: str, z: Any) -> Any:
    """Return how large states or inputs are, 0 where it is not known.

    A guess that is large says so, and bounds that are small; a small guess, or a large bound, says nothing.
    """
    said = jnp.max(jnp.abs(z), axis=0, initial=0.0)
    bounds = [jnp.abs(b) for name, b in rows.bounds.items() if name[:-4] in (stem, f"{stem}0")]
    finite = [jnp.max(jnp.where(jnp.isfinite(b), b, 0.0).reshape(-1, z.shape[1]), axis=0, initial=0.0) for b in bounds]
    limit = jnp.max(jnp.stack([jnp.zeros_like(said), *finite]), axis=0)
    return jnp.where(said >= 1, said, jnp.where((limit < 1) & (limit > said), limit, 0.0))


def choose(rows: Rows, xs: Any, us: Any, e: Expansion, given: Any, later: Any = 0.0, least: float = 1.0) -> Scales:
    """Return scales from the guess, the bounds, and the first derivatives.

    `given` holds the user's for x and u; `later` is how steep the cost gets, for guesses where it is flat; `least` the
    size of states of which nothing is known.
    """
    size_x, size_u = guess_sizes(rows, "x", xs), guess_sizes(rows, "u", us)
    of_x, of_u = (None, None) if given is None else (given.get("x"), given.get("u"))
    N, nx = e.at.gaps.shape
    u = rounded(size_u) if of_u is None else jnp.broadcast_to(jnp.asarray(of_u, us.dtype), size_u.shape)
    if of_x is None:
        # What nothing tells follows from what moves it; what is small beside that is rounding.
        others = jnp.max(jnp.abs(e.A), axis=0) * (1 - jnp.eye(nx, dtype=xs.dtype))
        by_u = jnp.max(jnp.max(jnp.abs(e.B), axis=0) * u[None], axis=1, initial=0.0)
        known = size_x
        for _ in range(2):
            moved = jnp.maximum(by_u, jnp.max(others * size_x[None], axis=1, initial=0.0))
            size_x = jnp.where(known > 0, jnp.maximum(known, RELATIVE * moved), jnp.maximum(least, N**0.5 * moved))
        x = rounded(size_x)
    else:
        x = jnp.broadcast_to(jnp.asarray(of_x, xs.dtype), size_x.shape)
    slope = steepness(e, x, u)
    slope = jnp.where(slope < SMALL, jnp.maximum(slope, later), slope)
    cost = rounded(jnp.maximum(slope, curvature_of(e, x, u)))
    cost = jnp.where(slope > LARGE, rounded(slope) / LARGE, jnp.minimum(cost, 1.0))
    return Scales(x, u, row_scales(rows, e, x, u), cost)


def steepness(e: Expansion, x: Any, u: Any) -> Any:
    """Return the largest slope of the cost along a single variable, times its size."""
    slopes = ((e.q0[None], x), (e.qs, x), (e.rs, u))
    return jnp.max(jnp.stack([jnp.max(jnp.abs(g) * s[None], initial=0.0) for g, s in slopes]))


def row_scales(rows: Rows, e: Expansion, x: Any, u: Any) -> Any:
    """Return what rows are to be multiplied by, for scales of states and inputs, flat."""
    z = jnp.concatenate([x, u])
    values, made = rows.split(e.at.c), {}
    for name, shape in rows.shapes:
        if name in BOUNDS:
            made[name] = jnp.broadcast_to(1 / (u if name[0] == "u" else x), shape)
        else:
            J, c = jnp.abs(e.J[name]), jnp.abs(values[name])
            slope = jnp.max(
                J.reshape(-1, *J.shape[-2:]) * (z if name in PATH else x)[None, None], axis=(0, 2), initial=0.0
            )
            value = jnp.max(c.reshape(-1, c.shape[-1]), axis=0)
            made[name] = jnp.broadcast_to(
                1 / rounded(jnp.where(slope < SMALL, jnp.maximum(slope, value), slope)), shape
            )
    return flatten(made, x.dtype, x)


def sizes_within_reach(by: Scales, z: Any, d: Any, others: dict[str, Any]) -> dict[str, Any]:
    """Return scales of states and inputs where a point z and a step d (in units of `by`) say that all is small.

    Where not all is, they are the `others`.
    """
    parts = ((z.xs, d.xs, by.x), (z.us, d.us, by.u))
    reach = [scale * jnp.max(jnp.maximum(jnp.abs(a), jnp.abs(a + b)), axis=0) for a, b, scale in parts]
    most = jnp.maximum(jnp.max(reach[0]), jnp.max(reach[1], initial=0.0))
    small = (most > 0) & (most < SMALL)
    least = RELATIVE**2 * most  # the rest is rounding
    x, u = [rounded(jnp.maximum(size, least)) for size in reach]
    return {"x": jnp.where(small, x, others["x"]), "u": jnp.where(small, u, others["u"])}


def curvature_of(e: Expansion, x: Any, u: Any) -> Any:
    """Return the largest curvature of the cost along a single variable, times the square of its size."""
    z = jnp.concatenate([x, u])
    diagonals = [(jnp.diagonal(W, axis1=1, axis2=2), s) for W, s in ((e.W0[None], x), (e.W, z), (e.Wf[None], x))]
    return jnp.max(jnp.stack([jnp.max(jnp.abs(d) * s[None] ** 2, initial=0.0) for d, s in diagonals]))


def least_size(e: Expansion, xs: Any, us: Any, x: Any, u: Any) -> Any:
    """Return the least size of the cost that tolerances refer to; x and u are the scales of states and inputs.

    It is a part of what the cost would be, by its slope and its curvature at this point, if a variable changed by as
    much as it is. (`optctl.solvers.objective.least_size` says so of trajectories without an expansion.)
    """
    size_x, size_u = [jnp.maximum(s, jnp.max(jnp.abs(z), axis=0)) for s, z in ((x, xs), (u, us))]
    return FLOOR * jnp.maximum(steepness(e, size_x, size_u), curvature_of(e, size_x, size_u))


def scale_point(by: Scales, z: Any) -> Any:
    """Return `Unknowns` in the units of `by`."""
    D, over, some = by.rows, 1 / (by.rows * by.cost), z.e is not None
    return replace(
        z, xs=z.xs / by.x[None], us=z.us / by.u[None], costates=z.costates * by.x[None] / by.cost, s=z.s * D,
        y=z.y * over, e=z.e * D if some else None, v=z.v * over if some else None,
    )  # fmt: skip


def scale_prices(by: Scales, rows: Rows) -> Rows:
    """Return rows whose prices are in the units of `by`."""
    if rows.soft is None:
        return rows
    return replace(rows, l1=rows.l1 / (by.rows * by.cost), l2=rows.l2 / (by.rows**2 * by.cost))


def scale_values(by: Scales, at: Values) -> Values:
    """Return cost, gaps and rows in the units of `by`."""
    return Values(at.cost / by.cost, at.gaps / by.x[None], at.c * by.rows)


def scale_expansion(by: Scales, rows: Rows, e: Expansion) -> Expansion:
    """Return an expansion in the units of `by`."""
    x, u, z = by.x, by.u, jnp.concatenate([by.x, by.u])
    D = rows.split(by.rows)
    J = {name: value * D[name][..., None] * (z[None, None] if name in PATH else x[None]) for name, value in e.J.items()}
    return Expansion(
        at=scale_values(by, e.at), q0=e.q0 * x / by.cost, qs=e.qs * x[None] / by.cost, rs=e.rs * u[None] / by.cost,
        A=e.A * jnp.outer(1 / x, x)[None], B=e.B * jnp.outer(1 / x, u)[None], J=J,
        W0=e.W0 * jnp.outer(x, x) / by.cost, W=e.W * jnp.outer(z, z)[None] / by.cost,
        Wf=e.Wf * jnp.outer(x, x) / by.cost,
    )  # fmt: skip


def values_at(problem: Problem, rows: Rows, params: Any, by: Scales, z: Any) -> Values:
    """Return the values of a problem at a point, both in the units of `by`."""
    return scale_values(by, evaluate(problem, rows, z.xs * by.x[None], z.us * by.u[None], params))


def expansion_in(problem: Problem, rows: Rows, params: Any, by: Scales, z: Any, exact: bool) -> Expansion:
    """Return the expansion of a problem at a point, both in the units of `by`."""
    z = scale_point(by.inverse(), z)
    return scale_expansion(by, rows, expand(problem, rows, z.xs, z.us, params, z.costates if exact else None, z.y))
