r"""The best policy of a quadratic model within bounds on the inputs, and a convex model where the given one is not.

    minimize over du = k + K dx   m(dx, du) = sum_t ( 1/2 [dx; du]'[[Q, M], [M', R]][dx; du] + q'dx + r'du ) + ...
    subject to  dx_{t+1} = A dx_t + B du_t,  dx_0 = 0,   low_t <= du_t <= high_t   on the model's own trajectory.

Every input is free or held at a bound. Held ones, du = v, leave the model: their columns of B and M and their rows of R
are taken out, B v and M v stay as offsets; the others' policy is one call of the core of `optctl.lq`. Then a free input
beyond a bound is held there, and a held one is let go if its price dm/du = R du + M'dx + r + B'costate pulls it inside,
until nothing changes: the solution. That takes a few rounds, one if the first guess, the inputs on a bound that the
slope presses against it, is right.

References: Bergounioux, Ito and Kunisch (1999), Primal-dual strategy for constrained optimal control problems;
Bertsekas (1982), Projected Newton methods for optimization problems with simple constraints.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from optctl._arrays import do_while, keep
from optctl._record import record
from optctl.lq import kkt, sweeps
from optctl.lq.model import LQ
from optctl.lq.riccati import Factors

ROUNDS = 10
FIRST_SHIFT, SHIFT_FACTOR, LARGEST_SHIFT = 0.1, 10.0, 1e16
"""The first multiple of the identity to be added to the weights, its growth, a hopeless one: in the model's unit."""


@record()
class Policy:
    """A policy du = k + K dx, by its gains and by what it does to the model.

    Attributes:
        K: (N, nu, nx) gains; rows of held inputs are zero.
        dxs: (N+1, nx), the model's own trajectory.
        dus: (N, nu), its inputs.
        costates: (N+1, nx), those of the model.
        fall: -(q'dx + r'du), the fall of the cost to first order.
        shift: multiple of the identity that was added to the weights (`shifted`).
    """

    K: Any
    dxs: Any
    dus: Any
    costates: Any
    fall: Any
    shift: Any


def unit(model: LQ) -> Any:
    """Return the size of the weights on the inputs, by which shifts are measured (or a trace of the others', or 1)."""
    others = jnp.maximum(jnp.max(jnp.abs(model.Q)), jnp.max(jnp.abs(model.Qf)))
    size = jnp.maximum(jnp.max(jnp.abs(model.R)), 1e-8 * others)
    return jnp.where(size > 0, size, 1.0)


def best_policy(full: LQ | None, plain: LQ, least: Any, slope: Any, low: Any, high: Any) -> Policy:
    """Return the best policy of the `full` model; of the `plain` one if that is not convex (or None).

    Args:
        full: Newton's model.
        plain: the same without curvature of the dynamics.
        least: least shift.
        slope: (N, nu), dm/du at du = 0.
        low: (N, nu) lower bounds of du, at most zero; None if there are no bounds.
        high: (N, nu) upper bounds.
    """
    if low is None:
        model, factors, shift = convexified(full, plain, None, least)
        d = solution(model, factors, None, jnp.zeros_like(plain.r))
        return policy(plain, factors, d, shift)

    def improve(carry: tuple) -> tuple:
        i, at_low, at_high, _ = carry
        held, values = at_low | at_high, jnp.where(at_low, low, jnp.where(at_high, high, 0.0))
        model, factors, shift = convexified(full, plain, held, least)
        d = solution(model, factors, held, values)
        price = kkt.times(model.R, d.us) + kkt.transposed_times(model.M, d.xs[:-1]) + model.r
        price = price + kkt.transposed_times(model.B, d.costates[1:])
        next_low = jnp.where(at_low, (price >= 0) | (low >= high), ~at_high & (d.us < low))
        next_high = jnp.where(at_high, price <= 0, ~at_low & (d.us > high))
        done = jnp.all(next_low == at_low) & jnp.all(next_high == at_high)
        return jnp.where(done, ROUNDS, i + 1), next_low, next_high, policy(plain, factors, d, shift)

    at_low = (low >= 0) & ((slope > 0) | (high <= 0))
    first = jnp.asarray(0), at_low, ~at_low & (high <= 0) & (slope < 0)
    return do_while(lambda carry: carry[0] < ROUNDS, improve, (*first, None))[-1]


def policy(plain: LQ, factors: Factors, d: kkt.Point, shift: Any) -> Policy:
    """Return the policy of a model's minimizer, its fall summed along states under feedback, which do not run away."""
    slope = (plain.q * d.xs[:-1]).sum() + plain.qf @ d.xs[-1] + (plain.r * d.us).sum()
    return Policy(factors.K, d.xs, d.us, d.costates, -slope, shift)


def convexified(full: LQ | None, plain: LQ, held: Any, least: Any) -> tuple[LQ, Factors, Any]:
    """Return a model that is convex in the inputs not held, its factors and its shift."""
    size = unit(plain)
    first = plain if full is None else full

    def attempt(carry: tuple) -> tuple:
        i, _, _, shift = carry
        model = keep(i == 0, first, plain)
        grown = jnp.maximum(FIRST_SHIFT * size, SHIFT_FACTOR * shift)
        keeps = (i == 0) & (full is not None)
        return i + 1, sweeps.factor(without(shifted(model, shift), held)), shift, jnp.where(keeps, shift, grown)

    def failed(carry: tuple) -> Any:
        small = jnp.isfinite(carry[3]) & (carry[3] <= LARGEST_SHIFT * size)
        return (carry[0] == 0) | (carry[1].failed_stage >= 0) & small

    shift = least.astype(plain.Q.dtype)
    i, factors, shift, _ = do_while(failed, attempt, (jnp.asarray(0), None, shift, shift))
    return shifted(keep(i == 1, first, plain), shift), factors, shift


def shifted(model: LQ, shift: Any) -> LQ:
    """Return the model with a multiple of the identity added to R, and to Q as well, but there in its own unit.

    That of R may be a world too large for Q: in an orbit given in meters, steps of the states would be next to nothing.
    """
    others = jnp.maximum(jnp.max(jnp.abs(model.Q)), jnp.max(jnp.abs(model.Qf)))
    eye_x = shift * jnp.minimum(1.0, others / unit(model)) * jnp.eye(model.nx, dtype=model.Q.dtype)
    eye_u = shift * jnp.eye(model.nu, dtype=model.R.dtype)
    return model.with_numbers(Q=model.Q + eye_x[None], R=model.R + eye_u[None], Qf=model.Qf + eye_x)


def solution(model: LQ, factors: Factors, held: Any, values: Any) -> kkt.Point:
    """Return the minimizer of the model in which held inputs have these values (the others' are zero)."""
    nothing = jnp.zeros_like(model.qf)
    r = model.r + kkt.times(model.R, values)
    b = kkt.Point(
        start=nothing,
        xs=-jnp.vstack([model.q + kkt.times(model.M, values), model.qf]),
        us=-r if held is None else jnp.where(held, 0.0, -r),
        costates=-jnp.vstack([nothing, kkt.times(model.B, values)]),
    )
    d = sweeps.sweep(without(model, held), factors, b)
    return replace(d, us=d.us + values)


def without(model: LQ, held: Any) -> LQ:
    """Return the model in which held inputs have no effect and cost 1/2 du^2."""
    if held is None:
        return model
    out = held[:, None, :]
    R = jnp.where(out | held[:, :, None], jnp.eye(model.nu, dtype=model.R.dtype), model.R)
    return model.with_numbers(B=jnp.where(out, 0.0, model.B), M=jnp.where(out, 0.0, model.M), R=R)
