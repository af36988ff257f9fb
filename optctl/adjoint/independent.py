r"""The independent check: values and slopes of a problem found by NumPy, to judge those of tapes, kernels and solvers.

Values come from jaxprs that `interpreter` runs, for all stages at once. Slopes are differences of such values along one
random direction d a stage, scaled like the trajectory. With v(h) = v(z + h d) and D(h) = (v(h) - v(-h)) / 2h,

    D = (4 D(h) - D(2h)) / 3                                        error O(h^4), rounding eps |v| / h
    |D(h) - D(2h)|                                                  tells of truncation, kinks nearby, rounding within v
    |4 (v(h) + v(-h) - 2v) - (v(2h) + v(-2h) - 2v)| / h             tells of a kink right here

and only what exceeds all of these, for three sizes of h that agree with each other, is called a disagreement. So a
kink, the edge of a domain, or a function that is all rounding makes the check inconclusive there, never a failure.
A solution is looked at with v(0), v(h) and v(-h) first, as if D(h) were exact: what passes so needs no excuse, and only
what does not is looked at with all of this.

`judge` asks of a solution what its certificate says, from the problem and the solution alone: the cost, the gaps, rows
and bounds, the signs of multipliers, their products with the distances and, along d, the stationarity at each stage,

    d'(dl + f'costates_{t+1} + y'(g, h) + bounds) - d_x'costates_t  no larger than the largest slope claimed allows.

Of a point that claims to be no solution it asks all but the last: what it says about itself must be true as well.

References: Nocedal and Wright (2006), Numerical Optimization, section 8.1 (differences), chapter 12 (conditions).
"""

import dataclasses
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from optctl.adjoint.evaluation import END, MANY, Evaluator
from optctl.problem import Problem

STEPS = (1e-4, 1e-3, 1e-5)
"""Sizes of h: the first is tried, the others where it finds something."""
STENCIL = np.array([0.0, 1.0, -1.0, 2.0, -2.0])
VALUE, SLOPE = 1e-8, 1e-6
"""Relative differences of values and of slopes that may be rounding."""
ROUNDING = 1e-12
"""States and inputs that are nowhere larger are rounding, and say nothing about the size of a direction."""
FARTHEST = 1e300
"""Stands for the distance from a bound that is not there."""
PATH = ("path_inequality", "path_equality")
COSTS = ("stage_cost", "terminal_cost", "initial_cost")


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """What two computations do not agree on.

    Attributes:
        function: name of the function as the problem calls it; "f" is the dynamics.
        stage: its stage, None where it has none.
        what: "value", "derivative" or another word for what differs.
        claimed: what is judged.
        found: what NumPy finds.
    """

    function: str
    stage: int | None
    what: str
    claimed: float
    found: float

    def __str__(self) -> str:
        where = "" if self.stage is None else f" at stage {self.stage}"
        return f"the {self.what} of `{self.function}`{where} is {self.found:.6g}, not {self.claimed:.6g}"


@dataclasses.dataclass(frozen=True)
class Slope:
    """Differences of values along a direction, with what is known about their error.

    Attributes:
        values: v at the point itself, (...).
        slope: D, (...).
        error: bound on the error of D, infinite where v is not finite nearby; zero where nobody looked.
        noise: bound on the error of v.
    """

    values: np.ndarray
    slope: np.ndarray
    error: Any
    noise: Any

    def part(self, columns: slice) -> "Slope":
        """Return some of the columns."""
        some = [v[..., columns] if np.ndim(v) else v for v in (self.error, self.noise)]
        return Slope(self.values[..., columns], self.slope[..., columns], *some)


def differences(v: np.ndarray, h: float) -> Slope:
    """Return the slope from values at the points of STENCIL, (5, ...), or at the first three, which tell no error."""
    if len(v) == 3:
        return Slope(v[0], (v[1] - v[2]) / (2 * h), 0.0, 0.0)
    with np.errstate(all="ignore"):
        near, far = (v[1] - v[2]) / (2 * h), (v[3] - v[4]) / (4 * h)
        bend = np.abs(4 * (v[1] + v[2] - 2 * v[0]) - (v[3] + v[4] - 2 * v[0]))
        error = np.abs(near - far) + bend / h + 1e-13 * np.abs(v[0]) / h
        finite = np.isfinite(v).all(axis=0)
        return Slope(v[0], (4 * near - far) / 3, np.where(finite, error, np.inf), np.where(finite, bend, np.inf))


def directions(xs: np.ndarray, us: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a random direction for each stage, (N+1, nx) and (N, nu), each component scaled like the trajectory's."""
    made = []
    for z, drawn in zip((xs, us), _drawn(xs.shape, us.shape, seed), strict=True):
        size = np.abs(z)
        most = size.max(axis=0, initial=0.0)
        most = np.where((most > ROUNDING) & np.isfinite(most), most, 1.0)
        scale = np.minimum(np.maximum(size, 0.1 * most), most)
        scale[np.isnan(scale)] = 0.0
        made.append(scale * drawn)
    return made[0], made[1]


@lru_cache(maxsize=16)
def _drawn(shape_x: tuple[int, ...], shape_u: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """Return random numbers of either sign, between a half and one in size."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.5, 1.0, shape) * rng.choice([-1.0, 1.0], shape) for shape in (shape_x, shape_u)]


def around(z: np.ndarray, d: np.ndarray, h: float, points: int = len(STENCIL)) -> np.ndarray:
    """Return the points of the stencil, (5, ...), or so many of the first."""
    made = np.empty((points, *z.shape))
    for place, c in zip(made, STENCIL, strict=False):
        np.multiply(d, c * h, out=place)
        place += z
    return made


def differ(claimed: Any, found: list[Slope], scale: Any, relative: float) -> np.ndarray:
    """Return where slopes that are claimed are refuted by all of several estimates, which agree with each other."""
    with np.errstate(all="ignore"):
        gaps = [np.abs(claimed - s.slope) for s in found]
        wrong = [~(gap <= relative * scale + s.error) for gap, s in zip(gaps, found, strict=True)]
        least = np.min(gaps, axis=0)
        agree = [np.abs(s.slope - found[0].slope) <= 0.2 * least for s in found[1:]]
        refuted = wrong[0]
        for true in (*wrong[1:], *agree, *(np.isfinite(s.error) for s in found)):
            refuted = refuted & true
        return refuted


def differ_in_value(claimed: Any, found: Slope, scale: Any) -> np.ndarray:
    """Return where values that are claimed are not those found; what is not finite in both is the same."""
    with np.errstate(all="ignore"):
        gap = np.abs(claimed - found.values)
        both = ~np.isfinite(claimed) & ~np.isfinite(found.values)
        noise = np.where(np.isfinite(found.noise), found.noise, 0.0)
        return ~(gap <= VALUE * scale + noise) & ~both


# Verdict on a solution.


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What NumPy finds at a solution.

    Attributes:
        primal_feasibility: largest gap, or violation of a hard row or a bound.
        dual_feasibility: largest multiplier of the wrong sign, or above its price.
        complementarity: largest product of a multiplier and a distance.
        disagreements: what the solution claims and NumPy refutes, the worst of each kind.
        by_jax: primitives without a rule of NumPy's.
    """

    primal_feasibility: float
    dual_feasibility: float
    complementarity: float
    disagreements: tuple[Disagreement, ...]
    by_jax: frozenset[str]


def can_judge(problem: Problem, solution: Any) -> bool:
    """True for solutions in float64, with states, of dynamics with a step in JAX."""
    plain = problem.dynamics.has_jax_step and not problem.dynamics.roll_without_inputs
    return plain and hasattr(solution.xs, "dtype") and solution.xs.dtype == np.float64


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one kind at a point, flat: those of several constraints without prices, or of one with them.

    Attributes:
        parts: name, shape and first stage of each constraint; None where its rows are of no stage.
        c: values, <= 0 or = 0.
        room: what may be rounding.
        y: multipliers.
        equal: c = 0.
        l1: price of a miss, infinite for hard rows; None where all are hard.
        l2: price of half its square.
    """

    parts: tuple[tuple[str, tuple[int, ...], int | None], ...]
    c: np.ndarray
    room: np.ndarray
    y: np.ndarray
    equal: bool
    l1: Any = None
    l2: Any = 0.0

    @classmethod
    def together(cls, several: "list[Rows]") -> "Rows":
        """Return hard rows of one kind as one; where there is no bound, there is no multiplier."""
        c, room, y = (np.concatenate([getattr(rows, name) for rows in several]) for name in ("c", "room", "y"))
        none = c == -np.inf
        if none.any():
            c[none], y[none] = -FARTHEST, 0.0
        return cls(sum((rows.parts for rows in several), ()), c, room, y, several[0].equal)

    def miss(self) -> np.ndarray:
        """Return how much is missed."""
        return np.abs(self.c) if self.equal else np.maximum(self.c, 0.0)

    def wrong(self) -> np.ndarray:
        """Return by how much each multiplier has the wrong sign, or exceeds the price."""
        if self.l1 is None:
            return np.maximum(-self.y, 0.0)
        limit = self.l1 + self.l2 * self.miss()
        above = np.maximum((np.abs(self.y) if self.equal else self.y) - limit, 0.0)
        return above if self.equal else np.maximum(-self.y, above)

    def product(self) -> np.ndarray:
        """Return the products of multipliers and distances, and of misses and what is left of their prices."""
        if self.l1 is None:
            return np.abs(self.c * self.y)
        miss, soft = self.miss(), np.isfinite(self.l1)
        distance = np.zeros_like(self.c) if self.equal else np.abs(np.where(soft, miss - self.c, self.c) * self.y)
        limit = np.where(soft, self.l1, 0.0) + self.l2 * miss
        return np.maximum(
            distance, np.where(soft, np.abs(limit * miss - self.y * np.where(miss > 0, self.c, 0.0)), 0.0)
        )

    def price(self) -> np.ndarray:
        """Return what the misses cost."""
        miss = self.miss()
        return np.where(np.isfinite(self.l1), self.l1, 0.0) * miss + self.l2 * miss**2 / 2


class Judge:
    """The conditions of optimality at one solution, from the problem and the solution alone.

    The rows of all stages and constraints are judged side by side; names are looked up where something is wrong.
    """

    def __init__(self, problem: Problem, solution: Any, free: tuple[str, ...], slopes: bool = True) -> None:
        self.problem, self.free, self.slopes = problem, free, slopes
        self.xs, self.us, self.costates = (np.asarray(v) for v in (solution.xs, solution.us, solution.costates))
        self.params = jax.tree.map(np.asarray, solution.params)
        self.y = {n: jax.tree.map(np.asarray, value) for n, value in solution.multipliers.items() if value is not None}
        claims = {name: value for name, value in vars(solution.certificate).items() if name != "by"}
        self.claimed = {name: np.asarray(value).item() for name, value in claims.items() if np.ndim(value) == 0}
        self.cost, self.residuals = np.asarray(solution.cost).item(), solution.residuals or {}
        self.rounding = ROUNDING * max(np.abs(self.xs).max(initial=0.0), np.abs(self.us).max(initial=0.0))
        N, nu = self.us.shape
        self.evaluate = Evaluator(problem, self.params, (N, self.xs.shape[1], nu))
        self.dxs, self.dus = directions(self.xs, self.us)
        if "us" not in free:
            self.dus = np.zeros_like(self.dus)
        self.found: list[Disagreement] = []
        self.figures = 0.0, 0.0, 0.0
        weights: tuple[list, list, list] = ([], [], [])
        for name, (k, columns) in self.evaluate.functions.columns.items():
            shape = (N, columns.stop - columns.start) if k == 0 else (columns.stop - columns.start,)
            y = self.costates[1:] if name == "f" else np.ones(shape) if name in COSTS else self.multiplier(name, shape)
            weights[k].append(y)
        self.weights = [np.concatenate(several, axis=-1) if several else np.zeros(0) for several in weights]

    def values(self, h: float, points: int = len(STENCIL)) -> tuple[np.ndarray, ...]:
        """Return all values at the points of the stencil."""
        return self.evaluate.together(around(self.xs, self.dxs, h, points), around(self.us, self.dus, h, points))

    def multiplier(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the multiplier of a constraint, zero where there is none."""
        value = self.y.get(name)
        if value is None:
            return np.zeros(shape)
        return value if value.shape == shape else np.broadcast_to(value, shape)

    def verdict(self) -> Verdict:
        """Return what is found."""
        self._look(3)
        if self.found:
            self.found.clear()
            self._look(len(STENCIL))
        primal, product, dual = self.figures
        by_jax = frozenset(self.evaluate.functions.by_jax)
        return Verdict(primal, dual, product, tuple(self.found), by_jax)

    def _look(self, points: int) -> None:
        """Note what so many points of the stencil refute."""
        v = self.values(STEPS[0], points)
        together = [differences(part, STEPS[0]) for part in v]
        first = {name: together[k].part(columns) for name, (k, columns) in self.evaluate.functions.columns.items()}
        rows = [self._rows(name, first[name]) for name in (*PATH, *END[1:]) if name in first]
        self._judge_cost(first, rows)
        self._judge_rows(first["f"], rows)
        if self.slopes:
            self._judge_slopes(v, together)
        if self.slopes and "params" in self.free:
            self._judge_params(points)

    def _note(self, function: str, stage: int | None, what: str, claimed: Any, found: Any) -> None:
        self.found.append(Disagreement(function, stage, what, float(claimed), float(found)))

    def _judge_cost(self, found: dict[str, Slope], rows: list[Rows]) -> None:
        costs = [found[name] for name in COSTS if name in found]
        total = sum(float(s.values.sum()) for s in costs)
        size = sum(float((np.abs(s.values) + np.abs(s.slope)).sum()) for s in costs)
        room = sum(float(np.where(np.isfinite(s.noise), s.noise, 0.0).sum()) for s in costs)
        for row in rows:
            if row.l1 is not None:
                price = float(row.price().sum())
                total, size = total + price, size + price
                room += 10 * self.claimed["complementarity"] * float(np.isfinite(row.l1).sum())
        size = size if np.isfinite(size) else abs(total)
        if not abs(total - self.cost) <= VALUE * max(size, abs(self.cost)) + room:
            self._note("cost", None, "value", self.cost, total)

    def _rows(self, name: str, s: Slope) -> Rows:
        """Return a constraint's rows at the solution, with their prices."""
        held, c, equal = getattr(self.problem, name), s.values, name.endswith("_equality")
        room, y = VALUE * (np.abs(c) + np.abs(s.slope)) + s.noise, self.multiplier(name, c.shape)
        if held.on is not None:
            on = np.broadcast_to(np.asarray(held.on), c.shape)
            c, room, y = np.where(on, c, 0.0 if equal else -1.0), np.where(on, room, 0.0), np.where(on, y, 0.0)
        l1: Any = None
        l2: Any = 0.0
        if held.l1 is not None:
            l1 = np.broadcast_to(np.asarray(held.l1), c.shape).ravel()
            l2 = np.where(np.isfinite(l1), np.broadcast_to(np.asarray(held.l2), c.shape).ravel(), 0.0)
        parts = ((name, c.shape, 0 if name in PATH else None),)
        return Rows(parts, c.ravel(), room.ravel(), y.ravel(), equal, l1, l2)

    def _judge_rows(self, f: Slope, rows: list[Rows]) -> None:
        """Compare gaps, rows, bounds and multipliers with the claims; keep the figures found."""
        claimed = self.claimed
        gaps = np.abs(f.values - self.xs[1:])
        most = 2 * claimed["primal_feasibility"] + VALUE * (np.abs(f.values) + np.abs(f.slope)) + f.noise
        self._exceeds((("f", gaps.shape, 0),), "gap", gaps, most, "primal_feasibility")
        primal, products, dual = np.max(gaps, initial=0.0), 0.0, 0.0
        self._judge_residual("dynamics", gaps, VALUE * (np.abs(f.values) + np.abs(f.slope)) + f.noise)
        rows = rows + self._bounds() + self._params_bounds()
        for row in rows:
            (name, shape, _), miss = row.parts[0], row.miss()
            hard = miss if row.l1 is None else np.where(np.isfinite(row.l1), 0.0, miss)
            self._judge_residual(name, hard.reshape(shape), np.broadcast_to(row.room, miss.shape).reshape(shape))
        plain = [[r for r in rows if r.l1 is None and r.equal == equal] for equal in (False, True)]
        for row in [r for r in rows if r.l1 is not None] + [Rows.together(several) for several in plain if several]:
            miss = row.miss()
            if row.l1 is not None:
                miss = np.where(np.isfinite(row.l1), 0.0, miss)
            most = 2 * claimed["primal_feasibility"] + row.room
            self._exceeds(row.parts, "violation", miss, most, "primal_feasibility")
            primal = max(primal, np.max(miss, initial=0.0))
            if row.l1 is None and row.equal:
                continue
            product, bad, y = row.product(), row.wrong(), np.abs(row.y)
            most = 2 * claimed["complementarity"] + (y + 1e-9) * row.room
            self._exceeds(row.parts, "product of multiplier and distance", product, most, "complementarity")
            self._exceeds(row.parts, "multiplier", bad, 2 * claimed["dual_feasibility"], "dual_feasibility", 1e-9 * y)
            products, dual = max(products, np.max(product, initial=0.0)), max(dual, np.max(bad, initial=0.0))
        self.figures = float(primal), float(products), float(dual)

    def _judge_residual(self, name: str, own: np.ndarray, room: np.ndarray) -> None:
        """Compare what each row is missed by with what the solution says; not those of x_0 and parameters."""
        claimed = np.asarray(self.residuals.get(name, own))
        if name[:2] == "x_":  # has a row for x_0, too, whose bounds may be another block's matter
            claimed, own, room = claimed[1:], own[-len(self.us) :], room[-len(self.us) :]
        own, room = np.atleast_2d(own), np.atleast_2d(room) + self.rounding
        wrong = ~(np.abs(claimed - own) <= room) if own.shape == claimed.shape and name[:2] != "x0" else np.zeros(0)
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            stage = None if name.startswith("terminal") else int(at[0]) + (name[:2] == "x_")
            self._note(name, stage, "residual", claimed[at], own[at])

    def _exceeds(
        self, parts: tuple, what: str, value: np.ndarray, most: Any, claim: str, sizes: np.ndarray | None = None
    ) -> None:
        """Note the worst that exceeds of each constraint; the greatest of `sizes` in a constraint is allowed, too."""
        if np.all(value <= most):
            return
        value, begin, most = value.ravel(), 0, np.broadcast_to(most, value.shape).ravel()
        for name, shape, first in parts:
            own = slice(begin, begin + int(np.prod(shape, dtype=int)))
            begin = own.stop
            allowed = most[own] + (0.0 if sizes is None else sizes[own].max(initial=0.0))
            over = ~(value[own] <= allowed)
            if over.any():
                at = int(np.argmax(np.where(over, np.nan_to_num(value[own], nan=np.inf), -1.0)))
                stage = None if first is None else int(np.unravel_index(at, shape)[0]) + first
                self._note(name, stage, what, self.claimed[claim], value[own][at])

    def _bounds(self) -> list[Rows]:
        """Return the bounds of states and inputs as rows."""
        rows = []
        start = "x0" in self.free or self.problem.x0 is None
        free = {"x": (self.xs if start else self.xs[1:], 0 if start else 1)}
        if "us" in self.free:
            free["u"] = self.us, 0
        if start:
            free["x0"] = self.xs[0], None  # type: ignore[assignment]
        for stem, (z, stage) in free.items():
            bounds = {}
            for side in ("min", "max"):
                bound = getattr(self.problem, f"{stem}_{side}")
                if bound is not None:
                    bound = np.asarray(bound)
                    bounds[side] = bound[len(bound) - len(z) :] if bound.ndim == 2 else bound
            room = VALUE * np.abs(z).ravel() if bounds else z
            for side, bound in bounds.items():
                c = z - bound if side == "max" else bound - z
                y = self.y.get(f"{stem}_{side}")
                if y is None:
                    y = np.zeros(z.shape)
                elif y.shape != z.shape:
                    y = np.broadcast_to(y[-len(z) :] if y.ndim > 1 else y, z.shape)
                if len(bounds) == 2 and np.any(bounds["min"] == bounds["max"]):
                    # Bounds that are equal have a multiplier of either sign, and no slack.
                    y = np.where(bounds["min"] == bounds["max"], 0.0, y)
                rows.append(Rows(((f"{stem}_{side}", z.shape, stage),), c.ravel(), room, y.ravel(), False))
        return rows

    def _params_bounds(self) -> list[Rows]:
        rows = []
        for side in ("min", "max"):
            bound = getattr(self.problem, f"params_{side}")
            if bound is None or "params" not in self.free:
                continue
            y = self.y.get(f"params_{side}")
            for k, (p, b) in enumerate(zip(jax.tree.leaves(self.params), jax.tree.leaves(bound), strict=True)):
                b = np.broadcast_to(np.asarray(b), p.shape)
                c = p - b if side == "max" else b - p
                mine = np.zeros(p.shape) if y is None else np.broadcast_to(jax.tree.leaves(y)[k], p.shape)
                room = VALUE * np.abs(p)
                rows.append(Rows(((f"params_{side}", p.shape, None),), c.ravel(), room.ravel(), mine.ravel(), False))
        return rows

    def _lagrangian(self, v: Iterable[np.ndarray]) -> np.ndarray:
        """Return l + costates'f + y'(g, h) of the stages and, in the last column, of the end, (points, N+1)."""
        stages, end, _ = v
        made = np.empty((len(stages), stages.shape[1] + 1))
        np.einsum("ktm,tm->kt", stages, self.weights[0], out=made[:, :-1])
        made[:, -1] = (end * self.weights[1]).sum(-1)
        return made

    def _pulls(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the slopes along d that need no function, of states 0..N, of the start, and the sizes of both."""

        def pull(stem: str, like: np.ndarray) -> np.ndarray:
            high, low = (self.y.get(f"{stem}_{side}") for side in ("max", "min"))
            return np.broadcast_to((0.0 if high is None else high) - (0.0 if low is None else low), like.shape)

        y_xs = pull("x", self.xs)
        start = (self.costates[0] + pull("x0", self.xs[0]) + y_xs[0]) * self.dxs[0]
        of_states, of_us = (y_xs - self.costates) * self.dxs, pull("u", self.us) * self.dus
        of_states[0] = -self.costates[0] * self.dxs[0]
        sizes = ((np.abs(y_xs) + np.abs(self.costates)) * np.abs(self.dxs)).sum(-1)
        sums = of_states.sum(-1)
        sums[:-1] += of_us.sum(-1)
        sizes[:-1] += np.abs(of_us).sum(-1)
        return sums, sizes, start.sum(), np.abs(start).sum()

    def _judge_slopes(self, v: tuple[np.ndarray, ...], terms: list[Slope]) -> None:
        """Compare the stationarity along d with what the largest slope that is claimed allows."""
        if not np.isfinite(self.claimed["stationarity"]):
            return
        pulls, size, start, start_size = self._pulls()
        size[:-1] += np.abs(terms[0].slope * self.weights[0]).sum(-1)
        size[-1] += np.abs(terms[1].slope * self.weights[1]).sum()
        moved = np.abs(self.dxs).sum(-1)
        moved[:-1] += np.abs(self.dus).sum(-1)
        L = self._lagrangian(v)
        estimates = [differences(L, STEPS[0])]
        # No point is closer to a stationary one than its last digit, of which curvature makes a slope, and costates
        # carry it to other stages; digits are lost at each of them.
        rounding = 8 * len(self.xs) * np.finfo(float).eps * np.abs(L[1] + L[2] - 2 * L[0]).max() / STEPS[0] ** 2
        allowed = 2 * self.claimed["stationarity"] * moved + rounding
        suspects = differ(-pulls, estimates, size, SLOPE) & (np.abs(estimates[0].slope + pulls) > allowed)
        if suspects.any():
            if len(v[0]) > 3:
                estimates += [differences(self._lagrangian(self.values(h)), h) for h in STEPS[1:]]
            sure = differ(-pulls, estimates, size, SLOPE)
            sure &= np.min([np.abs(e.slope + pulls) for e in estimates], axis=0) > allowed
            if sure.any():
                excess = np.where(sure, np.abs(estimates[0].slope + pulls) / np.maximum(size, 1e-300), -1.0)
                t = int(np.argmax(excess))
                if len(v[0]) == 3 or not self._blame(t, self.evaluate.by_name(v)):
                    self._note("the Lagrangian", t, "slope", allowed[t] / 2, estimates[0].slope[t] + pulls[t])
        if self.problem.x0 is None and "x0" in self.free:
            slope = float(terms[2].slope.sum())
            error = float(np.sum(terms[2].error)) if terms[2].slope.size else 0.0
            most = 2 * self.claimed["stationarity"] * np.abs(self.dxs[0]).sum() + error
            if abs(start + slope) > most + SLOPE * (start_size + abs(slope)):
                self._note("initial_cost", 0, "slope", most, start + slope)

    def _blame(self, t: int, v: dict[str, Any]) -> bool:
        """Name the functions whose derivative by JAX is not that of their values, at the end or at a stage."""
        N, blamed = len(self.us), False
        x, u, params = self.xs[t], self.us[min(t, N - 1)], self.params
        directions = self.dxs[t], self.dus[min(t, N - 1)]
        for name in END if t == N else ("f", "stage_cost", *PATH):
            if name not in v:
                continue
            function = self.problem.dynamics.step if name == "f" else getattr(self.problem, name)

            def here(x: Any, u: Any, function: Any = function) -> Any:
                return function(x, params) if t == N else function(x, u, t, params)

            claimed = np.atleast_1d(np.asarray(jax.jvp(here, (x, u), directions)[1]))
            own = differences(v[name] if t == N else v[name][:, t], STEPS[0])
            wrong = differ(claimed, [own], np.abs(claimed) + np.abs(own.slope), SLOPE)
            if wrong.any():
                k = int(np.argmax(wrong))
                self._note(name, t, "derivative along a direction", claimed[k], own.slope[k])
                blamed = True
        return blamed

    def _judge_params(self, points: int) -> None:
        """The same along a direction in the parameters, for the whole horizon."""
        rng, leaves = np.random.default_rng(1), jax.tree.leaves(self.params)
        structure = jax.tree.structure(self.params)
        d = [
            np.maximum(np.abs(p), 0.1 * np.abs(p).max(initial=0.0) or 1.0) * rng.uniform(-1, 1, p.shape) for p in leaves
        ]
        xs, us = around(self.xs, 0.0 * self.xs, 0.0, MANY), around(self.us, 0.0 * self.us, 0.0, MANY)

        def estimate(h: float) -> tuple[Slope, float]:
            rows = []
            for c in STENCIL[:points]:
                params = jax.tree.unflatten(structure, [p + c * h * q for p, q in zip(leaves, d, strict=True)])
                one = [values[:1] for values in self.evaluate.together(xs, us, params)]
                rows.append(np.concatenate([self._lagrangian(one)[0], one[2].sum(-1)]))
            each = differences(np.stack(rows), h)
            return differences(np.stack(rows).sum(1)[:, None], h), float(np.abs(each.slope).sum())

        pull = 0.0
        for side, sign in (("min", -1.0), ("max", 1.0)):
            y = self.y.get(f"params_{side}")
            if y is not None:
                pull += sign * sum(float((a * b).sum()) for a, b in zip(jax.tree.leaves(y), d, strict=True))
        first, size = estimate(STEPS[0])
        size += abs(pull)
        allowed = 2 * self.claimed["stationarity"] * sum(float(np.abs(q).sum()) for q in d)

        def refuted(found: list[Slope]) -> bool:
            over = min(abs(float(s.slope[0]) + pull) for s in found) > allowed
            return over and bool(differ(np.array([-pull]), found, size, SLOPE)[0])

        if refuted([first]) and (points == 3 or refuted([first, *(estimate(h)[0] for h in STEPS[1:])])):
            self._note("the Lagrangian", None, "slope in `params`", allowed / 2, float(first.slope[0]) + pull)


def judge(problem: Problem, solution: Any, free: tuple[str, ...], *, slopes: bool = True) -> Verdict:
    """Judge a solution; `free` names what was free among "us", "x0" and "params".

    Without slopes only what holds at any point is asked: cost, gaps, rows, and the figures made of them.

    Raises:
        Uninterpreted: where functions hold values that are being traced.
    """
    with np.errstate(all="ignore"):
        return Judge(problem, solution, free, slopes).verdict()
