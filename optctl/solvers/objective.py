"""A problem as a function of one vector: what is free is packed into z, the rest stays fixed.

    z = (us, x_0, params), those of them that are free;    J(z), dJ/dz and the bounds on z.

Every solver sees nothing else, so the choice of what is free is made in one place.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace, on_host
from optctl._record import record
from optctl.adjoint.gradient import Gradient, as_gradient, costate_gradient, total_cost
from optctl.engine.native import Engine, find_engine
from optctl.problem import Problem, signature
from optctl.solution import FLOOR, Certificate, cost_size

VARIABLE_BOUNDS = {
    "u_min": "us",
    "u_max": "us",
    "x0_min": "x0",
    "x0_max": "x0",
    "params_min": "params",
    "params_max": "params",
}
"""Bounds of what may be free, and what they bound."""


VARIABLES = ("us", "x0", "params")
"""What a solver may be free to choose."""


@record(static=("free",))
class Objective:
    """The cost of a problem as a function of its free variables.

    Attributes:
        problem: the problem.
        us: (N, nu) inputs: the values of the fixed variables and the shapes of the free ones.
        x0: (nx,) initial state, likewise.
        params: parameters, likewise.
        free: the names of the free ones among "us", "x0", "params".
    """

    problem: Problem
    us: Any
    x0: Any
    params: Any
    free: tuple[str, ...]

    @cached_property
    def signature(self) -> tuple:
        """What structure and shapes decide about follows from this key; looked at once a solve."""
        return signature(self)

    @cached_property
    def engine(self) -> Engine:
        """What evaluates on the host, for an objective of NumPy's arrays."""
        found = find_engine(self.problem, self.us, self.x0, self.params, curved=True)
        assert found is not None
        return found

    @cached_property
    def signs(self) -> np.ndarray:
        """Signs by chance, one for each number of the states, then of the inputs."""
        return signs_of(len(self.us), self.x0.size, self.us.shape[1])

    def least_size(self, xs: Any, us: Any, params: Any) -> Any:
        """Return `least_size` of the problem, by tapes on the host."""
        if not on_host(xs):
            return least_size(self.problem, xs, us, params)
        return least_of(self.engine.slopes(us, xs[0], params, xs, self.signs).sizes, len(xs))

    def leaves(self) -> list[Any]:
        """Return the arrays that are free."""
        return jax.tree.leaves([getattr(self, name) for name in self.free])

    def size(self) -> int:
        """Return the length of z."""
        return sum([leaf.size for leaf in self.leaves()])

    def pack(self, values: Any) -> Any:
        """Return one vector from a record with fields us, x0 and params."""
        leaves = jax.tree.leaves([getattr(values, name) for name in self.free])
        xp = np if all(on_host(leaf) for leaf in leaves) else jnp
        return xp.concatenate([xp.ravel(leaf) for leaf in leaves])

    def unpack(self, z: Any) -> dict[str, Any]:
        """Return us, x0 and params, the free ones read from z."""
        values = {"us": self.us, "x0": self.x0, "params": self.params}
        leaves, structure = jax.tree.flatten([values[name] for name in self.free])
        parts, start = [], 0
        for leaf in leaves:
            parts.append(z[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
            start += leaf.size
        return values | dict(zip(self.free, jax.tree.unflatten(structure, parts), strict=True))

    def cost(self, z: Any) -> Any:
        """Return J(z): one rollout."""
        if on_host(z):
            return self.gradient(z).cost
        return total_cost(self.problem, **self.unpack(z)).astype(z.dtype)

    def gradient(self, z: Any) -> Gradient:
        """Return the engine's full record at z."""
        if on_host(z):
            values = self.unpack(z)
            return as_gradient(self.engine.slopes(values["us"], values["x0"], values["params"]))
        return costate_gradient(self.problem, **self.unpack(z))

    def states(self, z: Any) -> Any:
        """Return the states (N+1, nx) at z."""
        if on_host(z):
            return self.gradient(z).xs
        values = self.unpack(z)
        return self.problem.dynamics.roll(values["x0"], values["us"], values["params"])

    def cost_and_slope(self, z: Any) -> tuple[Any, Any]:
        """Return J(z) and dJ/dz."""
        g = self.gradient(z)
        return g.cost.astype(z.dtype), self.pack(g).astype(z.dtype)

    def hessian(self, z: Any) -> Callable:
        """Return the second derivative at z as a function of a direction."""
        if not on_host(z):
            return jax.linearize(lambda z: self.cost_and_slope(z)[1], z)[1]
        values = self.unpack(z)
        mixed = "params" in self.free
        _, product = (self.engine.mixed_hessian if mixed else self.engine.hessian)(**values)
        still = jax.tree.map(np.zeros_like, values)

        def along(direction: np.ndarray) -> np.ndarray:
            parts = self.unpack(direction)
            moves = still | {name: parts[name] for name in self.free}
            _, _, *slopes = product(*[moves[name] for name in (VARIABLES if mixed else VARIABLES[:2])])
            return self.pack(SimpleNamespace(**dict(zip(VARIABLES, slopes, strict=False))))

        return along

    def measure(self, z: Any, first_cost: Any = np.nan) -> tuple[Any, Any, Any]:
        """Return J(z), dJ/dz, and the size of J that tolerances refer to; without a first cost z is the first guess."""
        values = self.unpack(z)
        if on_host(z):
            found = self.engine.slopes(values["us"], values["x0"], values["params"], signs=self.signs)
            size = cost_size(found.cost, first_cost, least_of(found.sizes, len(found.xs)))
            return found.cost, self.pack(found), size
        g = self.gradient(z)
        size = cost_size(g.cost, first_cost, self.least_size(g.xs, values["us"], values["params"]))
        return g.cost.astype(z.dtype), self.pack(g).astype(z.dtype), size.astype(z.dtype)

    def bounds(self) -> tuple[Any, Any]:
        """Return the lower and upper bounds of z, infinite where there are none."""
        return self._bounds_here if on_host(self.leaves()[0]) else self._bounds()

    @cached_property
    def _bounds_here(self) -> tuple[Any, Any]:
        return self._bounds()

    def _bounds(self) -> tuple[Any, Any]:
        sides, xp = [], namespace(self.leaves()[0])
        for side, nothing in (("min", -np.inf), ("max", np.inf)):
            us, x0, params = (getattr(self.problem, f"{name}_{side}") for name in ("u", "x0", "params"))
            full = Objective(
                self.problem,
                None if self.us is None else xp.broadcast_to(xp.asarray(nothing if us is None else us), self.us.shape),
                xp.broadcast_to(xp.asarray(nothing if x0 is None else x0), self.x0.shape),
                jax.tree.map(lambda leaf, n=nothing: xp.full_like(leaf, n), self.params) if params is None else params,
                self.free,
            )
            sides.append(self.pack(full))
        return sides[0], sides[1]

    def lagrangian(self, xs: Any, us: Any, costates: Any) -> tuple[Gradient, Any, Any]:
        """Return the slopes with states as unknowns of their own: in us, in states 1..N, and the gaps f(x, u) - x+.

        The first two vanish at an optimum for some costates, whatever rounding does to the reduced gradient.
        """
        problem, params = self.problem, self.params
        if on_host(us):
            found = self.engine.slopes(us, xs[0], params, xs=xs)
            in_us = found.rs + np.einsum("tji,tj->ti", found.B, costates[1:])
            in_xs = found.qs - costates
            in_xs[:-1] += np.einsum("tji,tj->ti", found.A, costates[1:])
            return Gradient(found.cost, xs, costates, in_us, None, None), in_xs[1:], found.reached - xs[1:]
        cost, (gxs, gus) = jax.value_and_grad(problem.trajectory_cost, (0, 1))(xs, us, params)
        step = problem.dynamics.step
        ends, pull = jax.vjp(
            lambda xs, us: problem.dynamics.map_stages(lambda x, u, t: step(x, u, t, params), xs, us), xs, us
        )
        pxs, pus = pull(costates[1:])
        cost = cost + problem.start_cost(xs[0], params)
        return Gradient(cost, xs, costates, gus + pus, None, None), (gxs + pxs - costates)[1:], ends - xs[1:]


def least_size(problem: Problem, xs: Any, us: Any, params: Any) -> Any:
    """Return the least size of the cost that tolerances refer to.

    It is a part of what the cost would be, by its slope and its curvature at this point, if the states and inputs of a
    stage changed by as much as they are. So a solution at rest, whose cost is all rounding, is judged by what its data
    make of rounding. Signs by chance keep what belongs to different variables apart (Hutchinson 1989). Where memory is
    bounded there are no states to ask, and it is 0.
    """
    if xs is None:
        return jnp.zeros(())
    point, structure = jax.tree.flatten((xs, us))
    signs = [jnp.asarray(sign, v.dtype) for sign, v in zip(signs_like([v.shape for v in point]), point, strict=True)]
    along = [s * jnp.maximum(1.0, jnp.abs(v)) for s, v in zip(signs, point, strict=True)]

    def cost(leaves: Any) -> Any:
        xs, us = jax.tree.unflatten(structure, leaves)
        return problem.trajectory_cost(xs, us, params) + problem.start_cost(xs[0], params)

    slope, change = jax.jvp(jax.grad(cost), (point,), (along,))
    steepness = sum([jnp.sum(jnp.abs(a * g)) for a, g in zip(along, slope, strict=True)])
    return least_of(jnp.stack([steepness, sum([jnp.sum(a * g) for a, g in zip(along, change, strict=True)])]), len(xs))


def least_of(sizes: Any, stages: int) -> Any:
    """Return the least size of the cost from those of its slope and curvature along a step."""
    xp = namespace(sizes)
    return FLOOR * xp.max(xp.where(xp.isfinite(sizes), xp.abs(sizes), 0.0)) / stages


@functools.lru_cache(maxsize=16)
def signs_of(N: int, nx: int, nu: int) -> np.ndarray:
    """Return signs by chance of all states, then of all inputs."""
    signs = np.concatenate([sign.ravel() for sign in signs_like([(N + 1, nx), (N, nu)])])
    signs.setflags(write=False)
    return signs


def signs_like(shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Return +1 and -1 by chance, the same ones every time."""
    rng = np.random.default_rng(0)
    return [rng.choice([-1.0, 1.0], shape) for shape in shapes]


def projected_gradient(z: Any, slope: Any, lower: Any, upper: Any) -> Any:
    """Return z - clip(z - slope): zero exactly at points that satisfy the first-order conditions within bounds."""
    return z - namespace(z).clip(z - slope, lower, upper)


def scaled_stationarity(z: Any, residual: Any, size: Any) -> Any:
    """Return max |residual| max(1, |z|) over the size of the cost: a relative change of cost."""
    xp = namespace(z)
    return xp.max(xp.abs(residual) * xp.maximum(1.0, xp.abs(z)), initial=0.0) / size


def certify(objective: Objective, z: Any, slope: Any, size: Any, tolerance: Any) -> tuple[Any, Any]:
    """Return the certificate at z and the multipliers of the bounds (lower, upper), flat like z."""
    xp = namespace(z)
    lower, upper = objective.bounds()
    residual = projected_gradient(z, slope, lower, upper)
    # A gradient whose rounding exceeds the tolerance certifies nothing, not even the sign of a multiplier.
    rounding = scaled_stationarity(z, xp.finfo(z.dtype).eps * slope, size)
    # A multiplier belongs to the bound that the step -slope would cross; the rest of the slope is the residual.
    mu_lower = xp.where(xp.isfinite(lower), xp.maximum(slope - residual, 0.0), 0.0)
    mu_upper = xp.where(xp.isfinite(upper), xp.maximum(residual - slope, 0.0), 0.0)
    slack_lower = xp.where(xp.isfinite(lower), z - lower, 0.0)
    slack_upper = xp.where(xp.isfinite(upper), upper - z, 0.0)
    violation = xp.max(xp.maximum(-slack_lower, -slack_upper), initial=0.0)
    wrong = xp.max(xp.maximum(xp.abs(mu_lower) - mu_lower, xp.abs(mu_upper) - mu_upper), initial=0.0)
    product = xp.max(mu_lower * slack_lower + mu_upper * slack_upper, initial=0.0)
    certificate = Certificate(
        stationarity=xp.max(xp.abs(residual), initial=0.0),
        stationarity_scaled=xp.maximum(scaled_stationarity(z, residual, size), rounding),
        primal_feasibility=violation,
        primal_feasibility_scaled=violation,
        dual_feasibility=wrong,
        dual_feasibility_scaled=wrong / size,
        complementarity=product,
        complementarity_scaled=product / size,
        tolerance=xp.asarray(tolerance, z.dtype),
    )
    return certificate, (mu_lower, mu_upper)


def certify_stages(objective: Objective, iterate: Any, first_cost: Any, tolerance: Any) -> tuple[Gradient, Any, Any]:
    """Certify the states and costates of a solver, stage by stage: an unstable plant has no other certificate."""
    xp = namespace(iterate.z)
    us, xs, costates = objective.unpack(iterate.z)["us"], iterate.xs, iterate.costates
    g, in_xs, gaps = objective.lagrangian(xs, us, costates)
    size = cost_size(g.cost, first_cost, objective.least_size(xs, us, objective.params))
    certificate, multipliers = certify(objective, iterate.z, objective.pack(g), size, tolerance)
    rounding = xp.finfo(xs.dtype).eps * costates[1:]
    in_states = xp.maximum(scaled_stationarity(xs[1:], in_xs, size), scaled_stationarity(xs[1:], rounding, size))
    gap, scaled_gap = xp.max(xp.abs(gaps)), xp.max(xp.abs(gaps) / xp.maximum(1.0, xp.abs(xs[1:])))
    certificate = replace(
        certificate,
        stationarity=xp.maximum(certificate.stationarity, xp.max(xp.abs(in_xs))),
        stationarity_scaled=xp.maximum(certificate.stationarity_scaled, in_states),
        primal_feasibility=xp.maximum(certificate.primal_feasibility, gap),
        primal_feasibility_scaled=xp.maximum(certificate.primal_feasibility_scaled, scaled_gap),
    )
    return g, certificate, multipliers
