"""The certificate of a point with multipliers: the first-order conditions, computed apart from any solver's figures."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from optctl.shooting.barrier import largest
from optctl.shooting.expansion import Expansion
from optctl.shooting.primal_dual import Program, Unknowns, lagrangian_slopes, price_of_misses
from optctl.shooting.rows import all_counted
from optctl.shooting.scaling import Scales, choose, least_size, row_scales
from optctl.solution import Certificate, cost_size


def certify_point(
    program: Program,
    e: Expansion,
    z: Unknowns,
    scales: Scales,
    given: Any = None,
    *,
    first_cost: Any,
    floor: Any,
    tolerance: Any,
) -> Certificate:
    """Return the certificate of states, inputs, costates and multipliers of the rows.

    A change of a variable is compared with its scale, or with its own size where that is larger; rows are scaled, too.
    A scale that a large guess gave counts as far as the point says the same; `given` holds the user's for x and u.
    Rows that the solve has switched off have to hold like the others, in their own units.
    """
    rows, every = program.rows, all_counted(program.rows)
    slopes = lagrangian_slopes(program, e, z.costates, z.y)
    here = choose(rows, z.xs, z.us, e, given)
    scales = replace(scales, x=jnp.minimum(scales.x, here.x), u=jnp.minimum(scales.u, here.u))
    least = jnp.maximum(least_size(e, z.xs, z.us, scales.x, scales.u), floor)
    size = cost_size(e.at.cost + price_of_misses(rows, z), first_cost, least)
    in_x, in_u = jnp.maximum(scales.x[None], jnp.abs(z.xs)), jnp.maximum(scales.u[None], jnp.abs(z.us))
    worst = [largest(g) for g in slopes]
    scaled = [largest(g * v) for g, v in zip(slopes, (in_x[0], in_x, in_u), strict=True)]
    over = jnp.where(every.inequality, jnp.maximum(e.at.c, 0.0), jnp.where(every.equality, jnp.abs(e.at.c), 0.0))
    miss, price = jnp.zeros_like(over), jnp.full_like(over, jnp.inf)
    if rows.soft is not None:
        miss = jnp.where(rows.soft, over, 0.0)
        price = jnp.where(rows.soft, rows.l1 + rows.l2 * miss, jnp.inf)
        over = jnp.where(rows.soft, 0.0, over)
    # Slopes that were steep at the guess and are not here are no excuse.
    steep = jnp.maximum(scales.rows, jnp.minimum(1.0, row_scales(rows, e, scales.x, scales.u)))
    size_rows = jnp.where(rows.inequality | rows.equality, steep, 1.0)
    over_scaled = jnp.maximum(largest(e.at.gaps / in_x[1:]), largest(over * size_rows))
    product = jnp.where(rows.inequality, z.y * (miss - e.at.c), 0.0)
    wrong = jnp.where(rows.inequality, jnp.maximum(-z.y, jnp.maximum(z.y - price, 0.0)), 0.0)
    if rows.soft is not None:
        product = jnp.maximum(jnp.abs(product), jnp.where(rows.soft, miss * jnp.abs(price - z.y), 0.0))
    gaps = e.at.gaps
    return Certificate(
        stationarity=jnp.max(jnp.stack(worst)),
        stationarity_scaled=jnp.max(jnp.stack(scaled)) / size,
        primal_feasibility=jnp.maximum(largest(gaps), largest(over)),
        primal_feasibility_scaled=over_scaled,
        dual_feasibility=largest(wrong),
        dual_feasibility_scaled=largest(wrong / scales.rows) / size,
        complementarity=largest(product),
        complementarity_scaled=jnp.sum(jnp.abs(product)) / size,
        tolerance=jnp.asarray(tolerance, z.xs.dtype),
    )
