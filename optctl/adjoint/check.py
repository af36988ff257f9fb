r"""Checks that users run on their own models: is the derivative that of the function?

Dot-product test:   <w, J v> = <J'w, v> for random v and w, J v by `tangent_rollout`, J'w by `adjoint_rollout`.
Taylor tests, h -> 0 along a random direction d:

    |J(z + h d) - J(z)|                          = O(h)
    |J(z + h d) - J(z) - h g'd|                  = O(h^2)   if g is the gradient
    |J(z + h d) - J(z) - h g'd - h^2/2 d'H d|    = O(h^3)   if H is the Hessian

A wrong derivative loses an order. The observed order is taken at the smallest h whose remainder stands clear of
rounding; a remainder that is nothing but rounding counts as exact (order inf).

Reference: Farrell, Ham, Funke and Rognes (2013), SIAM Journal on Scientific Computing 35, section 6.
"""

from typing import Any

import jax
import numpy as np

from optctl._arrays import to_device, to_host
from optctl._record import record
from optctl._validate import as_float, as_seed, as_whole, cast, check_tree
from optctl.adjoint.gradient import arguments, gradient, total_cost
from optctl.adjoint.hessian import hessian_vector_product
from optctl.dynamics.base import AbstractDynamics, check_dynamics
from optctl.engine.native import Engine, find_engine
from optctl.judge.culprit import culprit
from optctl.problem import Problem
from optctl.result import Result, Status

STEPS = 0.1 * 0.5 ** np.arange(24)


@record(static=("rows", "notes"))
class CheckReport(Result):
    """The outcome of a check; print it for the table, `if report:` asks whether every row holds.

    Attributes:
        rows: by check: its name, the figure, what was asked, and whether it holds.
        notes: remarks, such as blocks on which nothing depends.
        converged: True if every row holds.
    """

    rows: tuple[tuple[str, float, str, bool], ...]
    notes: tuple[str, ...]

    @property
    def converged(self) -> bool:
        """True if every row holds."""
        return all(holds for *_, holds in self.rows)

    @property
    def status(self) -> int:
        """SOLVED if every row holds, else DISAGREEMENT: the derivative is not that of the function."""
        return int(Status.SOLVED if self.converged else Status.DISAGREEMENT)

    @property
    def stage(self) -> int:
        """-1: a check looks at all stages at once."""
        return -1

    def explanation(self) -> str:
        """Return the rows that do not hold."""
        if self:
            return "all hold"
        bad = ", ".join(f"{name} ({figure:.3g}, not {want})" for name, figure, want, holds in self.rows if not holds)
        return f"NOT all hold: a derivative is wrong, or the function is not smooth here: {bad}"

    def failure(self) -> str:
        """Return what `raise_if_failed` says."""
        return repr(self)

    def __repr__(self) -> str:
        lines = [f"{'check':<44} {'figure':>10}   {'expected':<10} result"]
        for name, figure, expected, holds in self.rows:
            lines.append(f"{name:<44} {figure:10.3g}   {expected:<10} {'ok' if holds else 'FAILS'}")
        return "\n".join(
            [
                *lines,
                *self.notes,
                self.explanation(),
            ]
        )

    def figure(self, name: str) -> float:
        """Return the figure of the row whose name starts with `name`."""
        return next(figure for row, figure, _, _ in self.rows if row.startswith(name))


def _report(rows: list[tuple[str, float, str, bool]], notes: list[str]) -> CheckReport:
    return CheckReport(tuple(rows), tuple(notes))


def check_adjoint(
    dynamics: AbstractDynamics,
    x0: Any = None,
    us: Any = None,
    params: Any = None,
    *,
    horizon: int = 10,
    seed: int = 0,
) -> CheckReport:
    """Check that the adjoint rollout is the transpose of the tangent, and the tangent the derivative of the rollout.

    Args:
        dynamics: any kind of dynamics.
        x0: (nx,) initial state; None draws one.
        us: (N, nu) inputs; None draws them over `horizon` steps.
        params: parameters, where the dynamics take any.
        horizon: number of steps where us is not given.
        seed: of the random directions.

    Returns:
        A `CheckReport`: the dot-product gap |<w, Jv> - <J'w, v>| / (|w| |Jv|), expected below 1e-12 (1e-4 in
        float32), and the Taylor order of the rollout, expected at least 1.9. For a simulator both sides of the dot
        product come from the user's derivative: there the Taylor order tells whether it is right.

    Raises:
        ValueError: for wrong shapes, or sizes that are unknown.

    Example:
        >>> import optctl as oc
        >>> bool(oc.check_adjoint(oc.discretize(oc.models.CartPole(), 0.05)))
        True

    References:
        Claerbout (2014), Geophysical image estimation by example, chapter 1 (dot-product test).
    """
    check_dynamics(dynamics)
    rng = np.random.default_rng(as_seed(seed))
    horizon = as_whole(horizon, "horizon", "steps")
    if x0 is None:
        if dynamics.nx is None:
            raise ValueError("`x0` is missing and the number of states unknown; pass x0=...")
        x0 = rng.normal(size=dynamics.nx)
    x0 = as_float(x0, "x0")
    if us is None and not dynamics.roll_without_inputs:
        if dynamics.nu is None:
            raise ValueError("`us` is missing and the number of inputs unknown; pass us=...")
        us = rng.normal(size=(dynamics.horizon or horizon, dynamics.nu))
    us = None if us is None else cast(as_float(us, "us"), x0.dtype)
    x0, us, params = to_host((x0, us, check_tree(params, "params")))

    def draw(like: Any) -> Any:
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), like)

    xs = dynamics.rollout(x0, us, params)
    dx0, dus, dparams, w = draw(x0), draw(us), draw(params), draw(xs)
    Jv = dynamics.tangent_rollout(xs, us, dx0, dus, params, dparams)
    back = dynamics.adjoint_rollout(xs, us, w, params)
    forward_product = _dot(w, Jv)
    backward_product = _dot((back.costates[0], back.us, back.params), (dx0, dus, dparams))
    gap = abs(forward_product - backward_product) / max(np.sqrt(_dot(w, w) * _dot(Jv, Jv)), 1e-300)
    limit = 1e-4 if x0.dtype == np.float32 else 1e-12

    def along(h: float) -> Any:
        return dynamics.rollout(
            *jax.tree.map(lambda p, d: p + np.asarray(h, p.dtype) * d, (x0, us, params), (dx0, dus, dparams))
        )

    flat, slope = _flat(xs), _flat(Jv)
    scale = float(np.max(np.abs(flat)))
    remainders = [float(np.linalg.norm(_flat(along(h)) - flat - np.asarray(h, flat.dtype) * slope)) for h in STEPS]
    order = observed_order(remainders, scale * np.sqrt(flat.size), x0.dtype)
    needed = 1.5 if x0.dtype == np.float32 else 1.9
    rows = [
        ("dot-product gap", float(gap), f"<= {limit:.0e}", bool(gap <= limit)),
        ("Taylor order of the rollout", order, f">= {needed}", bool(order >= needed)),
    ]
    return _report(rows, [])


def check_gradient(problem: Problem, us: Any, *, x0: Any = None, params: Any = None, seed: int = 0) -> CheckReport:
    """Check the gradient, and the Hessian where there is one, by Taylor tests in us, x0 and params.

    Args:
        problem: the problem.
        us: (N, nu) inputs where to check.
        x0: (nx,) initial state; None takes the problem's.
        params: parameters; None takes the problem's.
        seed: of the random directions.

    Returns:
        A `CheckReport`: orders without derivative (1), with the gradient (at least 1.9), with the Hessian (at least
        2.9), and the gap to a central difference. Blocks with an exactly zero gradient are named in the notes.

    Raises:
        ValueError: as `gradient`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.discretize(oc.models.Pendulum(), 0.1),
        ...     stage_cost=lambda x, u: x @ x + u @ u,
        ...     horizon=10,
        ...     x0=[1.0, 0.0],
        ... )
        >>> bool(oc.check_gradient(problem, jnp.ones((10, 1))))
        True

    References:
        Farrell, Ham, Funke and Rognes (2013), SIAM Journal on Scientific Computing 35, section 6.
    """
    us, x0, params = arguments(problem, us, x0, params)
    g = gradient(problem, us, x0=x0, params=params)
    engine = find_engine(problem, us, x0, params)
    point = (to_device if engine is None else to_host)({"us": us, "x0": x0, "params": params})
    slopes = {"us": g.us, "x0": g.x0, "params": g.params}
    rng = np.random.default_rng(as_seed(seed))
    rows, notes = [], []
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((g.cost, slopes))):
        found = culprit(problem, g.xs, us, params)
        notes.append(f"note: the gradient is inf or NaN: {found or 'no stage tells why'}.")
    for name, value in point.items():
        leaves = jax.tree.leaves(value)
        if not sum(leaf.size for leaf in leaves):
            continue
        notes += _zero_notes(name, slopes[name])
        direction = jax.tree.map(
            lambda leaf: np.asarray(rng.normal(size=leaf.shape), leaf.dtype) * np.maximum(1, np.max(np.abs(leaf))),
            value,
        )
        rows += _taylor_rows(problem, engine, point, name, direction, slopes[name])
    return _report(rows, notes)


def _taylor_rows(problem: Problem, engine: Engine | None, point: dict, name: str, direction: Any, slope: Any) -> list:
    dtype = point["x0"].dtype
    single = dtype == np.float32

    def along(h: float) -> float:
        moved = point | {name: jax.tree.map(lambda a, d: a + np.asarray(h, a.dtype) * d, point[name], direction)}
        if engine is not None:
            return float(engine.slopes(moved["us"], moved["x0"], moved["params"]).cost)
        return float(_cost(problem, moved["us"], moved["x0"], moved["params"]))

    here, first = along(0.0), _dot(slope, direction)
    values = np.array([along(h) for h in STEPS])
    remainder1 = np.abs(values - here - STEPS * first)
    order1 = observed_order(remainder1, abs(here), dtype)
    gap = _central_gap(along, first, here, dtype)
    limit = 1e-2 if single else 1e-7
    rows = [
        (f"{name}: order without derivative", observed_order(np.abs(values - here), abs(here), dtype), "(1)", True),
        (f"{name}: order with gradient", order1, ">= 1.9", bool(single or order1 >= 1.9)),
        (f"{name}: gap to central difference", gap, f"<= {limit:.0e}", bool(gap <= limit)),
    ]
    if problem.dynamics.twice_differentiable:
        names = {"us": "dus", "x0": "dx0", "params": "dparams"}
        kwargs = {"x0": point["x0"], "params": point["params"], names[name]: direction}
        product = hessian_vector_product(problem, point["us"], **kwargs)
        second = _dot(getattr(product, name), direction)
        order2 = observed_order(np.abs(values - here - STEPS * first - STEPS**2 / 2 * second), abs(here), dtype)
        rows.append((f"{name}: order with Hessian", order2, ">= 2.9", bool(single or order2 >= 2.9)))
    return rows


def _central_gap(along: Any, slope: float, here: float, dtype: Any) -> float:
    """Relative gap between the slope and a fourth-order central difference, at the step where that is most certain."""
    eps = float(np.finfo(dtype).eps)
    best, estimate, size = np.inf, np.nan, 1.0
    for h in (1e-1, 1e-2, 1e-3, 1e-4):
        coarse, fine = (along(2 * h) - along(-2 * h)) / (4 * h), (along(h) - along(-h)) / (2 * h)
        uncertainty = abs(fine - coarse) + eps * abs(here) / h
        if uncertainty < best:
            best, estimate = uncertainty, (4 * fine - coarse) / 3
            size = max(abs(slope), abs(estimate), 1e3 * eps * abs(here) / h, 1e-300)
    return float(abs(estimate - slope) / size)


def observed_order(remainders: Any, size: float, dtype: Any) -> float:
    """Return log2 of the remainder's fall per halving of h, at the smallest h clear of rounding; inf if none is."""
    remainders = np.asarray(remainders, dtype=float)
    noise = 1e3 * float(np.finfo(dtype).eps) * max(size, 1e-300)
    above = np.flatnonzero(np.isfinite(remainders) & (remainders > 10 * noise))
    clear = [int(k) for k in above if k + 1 < len(remainders) and remainders[k + 1] > noise]
    if not clear:
        return np.inf if np.isfinite(remainders[-1]) else np.nan
    k = clear[-1]
    return float(np.log2(remainders[k] / remainders[k + 1]))


def _zero_notes(name: str, slope: Any) -> list[str]:
    notes = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(slope):
        if leaf.size and not np.any(np.asarray(leaf)):
            label = name + jax.tree_util.keystr(path)
            notes.append(f"note: the gradient in {label} is exactly zero: at this point no cost depends on it.")
    return notes


@jax.jit
def _cost(problem: Problem, us: Any, x0: Any, params: Any) -> Any:
    return total_cost(problem, us, x0, params)


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _dot(a: Any, b: Any) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(sum(np.vdot(np.asarray(p), np.asarray(q)) for p, q in pairs))
