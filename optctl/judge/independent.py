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
from functools import lru_cache
from math import prod
from typing import Any

import jax
import numpy as np

from optctl.judge.evaluation import END, MANY, Evaluator
from optctl.problem import Problem

STEPS = (1e-4, 1e-3, 1e-5)
"""Sizes of h: the first is tried, the others where it finds something."""
STENCIL = np.array([0.0, 1.0, -1.0, 2.0, -2.0])
VALUE, SLOPE = 1e-8, 1e-6
"""Relative differences of values and of slopes that may be rounding."""
EPS = float(np.finfo(float).eps)
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
    nx, d = xs.shape[1], _along(*_side_by_side(xs, us), seed)[0]
    return d[:, :nx], d[:-1, nx:]


def _side_by_side(xs: np.ndarray, us: np.ndarray) -> tuple[np.ndarray, int]:
    """Return states and inputs of each stage side by side, the last stage with inputs that are zero; and nx."""
    z = np.zeros((len(xs), xs.shape[1] + us.shape[1]))
    z[:, : xs.shape[1]], z[:-1, xs.shape[1] :] = xs, us
    return z, xs.shape[1]


def _along(z: np.ndarray, nx: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the direction d of `directions` side by side, |z|, and the largest of each column of |z|."""
    size = np.abs(z)
    largest = np.maximum.reduce(size, axis=0, initial=0.0)
    most = np.where((largest > ROUNDING) & np.isfinite(largest), largest, 1.0)
    d = np.minimum(np.maximum(size, 0.1 * most), most)
    d[np.isnan(d)] = 0.0
    d *= _drawn(z.shape, nx, seed)
    return d, size, largest


@lru_cache(maxsize=16)
def _drawn(shape: tuple[int, int], nx: int, seed: int) -> np.ndarray:
    """Return random numbers of either sign, between a half and one in size; zero for inputs of the last stage."""
    rng = np.random.default_rng(seed)
    made = rng.uniform(0.5, 1.0, shape) * rng.choice([-1.0, 1.0], shape)
    made[-1, nx:] = 0.0
    return made


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
        refuted = ~(gaps[0] <= relative * scale + found[0].error)
        if len(found) == 1 and np.ndim(found[0].error) == 0:  # nobody looked at the error
            return refuted
        least = np.min(gaps, axis=0)
        for gap, s in zip(gaps[1:], found[1:], strict=True):
            refuted = refuted & ~(gap <= relative * scale + s.error)
            refuted = refuted & (np.abs(s.slope - found[0].slope) <= 0.2 * least)
        for s in found:
            refuted = refuted & np.isfinite(s.error)
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


@dataclasses.dataclass(slots=True)
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
        c, room, y = (np.concatenate(of) for of in zip(*((r.c, r.room, r.y) for r in several), strict=True))
        none = c == -np.inf
        if none.any():
            np.copyto(c, -FARTHEST, where=none)
            np.copyto(y, 0.0, where=none)
        return cls(tuple([part for rows in several for part in rows.parts]), c, room, y, several[0].equal)

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


def _blocks(parts: tuple) -> list[tuple[str, tuple[int, ...], int | None, slice]]:
    """Return name, shape, first stage and place of each constraint among rows."""
    made, begin = [], 0
    for name, shape, first in parts:
        end = begin + prod(shape)
        made.append((name, shape, first, slice(begin, end)))
        begin = end
    return made


class Judge:
    """The conditions of optimality at one solution, from the problem and the solution alone.

    States and inputs of a stage lie side by side in `z`, the values of all functions in one vector, as `Evaluator` has
    them, and the rows of all stages and constraints are judged side by side, since a call of NumPy costs more than its
    numbers here; names are looked up where something is wrong.
    """

    def __init__(self, problem: Problem, solution: Any, free: tuple[str, ...], slopes: bool = True) -> None:
        self.problem, self.free, self.slopes = problem, free, slopes
        self.xs, self.us, self.costates = (np.asarray(v) for v in (solution.xs, solution.us, solution.costates))
        self.params = None if solution.params is None else jax.tree.map(np.asarray, solution.params)
        self.y = {
            name: jax.tree.map(np.asarray, value) if name.startswith("params") else np.asarray(value)
            for name, value in solution.multipliers.items()
            if value is not None
        }
        self.claimed = {name: float(value) for name, value in vars(solution.certificate).items()}
        self.cost, self.residuals = float(solution.cost), solution.residuals or {}
        self.z, nx = _side_by_side(self.xs, self.us)
        self.d, self.size, largest = _along(self.z, nx)
        self.rounding = ROUNDING * largest.max(initial=0.0)
        if "us" not in free:
            self.d[:, nx:] = 0.0
        self.dxs, self.dus = self.d[:, :nx], self.d[:-1, nx:]
        N, nu = self.us.shape
        self.evaluate = Evaluator(problem, self.params, (N, nx, nu))
        self.found: list[Disagreement] = []
        self.figures = 0.0, 0.0, 0.0
        self.weights = np.ones(self.evaluate.count)  # of all functions in the Lagrangian; of costs it is one
        for name, weight in self.evaluate.by_name(self.weights).items():
            if name == "f":
                weight[...] = self.costates[1:]
            elif name not in COSTS:
                weight[...] = self.multiplier(name)

    def values(self, h: float, points: int = len(STENCIL)) -> np.ndarray:
        """Return all values at the points of the stencil, (points, all)."""
        z, nx = around(self.z, self.d, h, points), self.xs.shape[1]
        return self.evaluate.flat(z[..., :nx], z[:, :-1, nx:])

    def multiplier(self, name: str) -> Any:
        """Return the multiplier of a constraint, zero where there is none."""
        return self.y.get(name, 0.0)

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
        found = differences(v, STEPS[0])
        size = np.abs(found.values)
        size += np.abs(found.slope)
        room = VALUE * size
        room += found.noise
        by_name = self.evaluate.by_name
        c, rooms, sizes = by_name(found.values), by_name(room), by_name(size)
        rows = [self._rows(name, c[name], rooms[name]) for name in (*PATH, *END[1:]) if name in c]
        noise = by_name(np.where(np.isfinite(found.noise), found.noise, 0.0)) if np.ndim(found.noise) else {}
        self._judge_cost([(c[n], sizes[n], noise.get(n)) for n in COSTS if n in c], rows)
        self._judge_rows(c["f"], rooms["f"], rows)
        if self.slopes:
            self._judge_slopes(v, found)
        if self.slopes and "params" in self.free:
            self._judge_params(points)

    def _note(self, function: str, stage: int | None, what: str, claimed: Any, found: Any) -> None:
        self.found.append(Disagreement(function, stage, what, float(claimed), float(found)))

    def _judge_cost(self, costs: list[tuple[np.ndarray, np.ndarray, Any]], rows: list[Rows]) -> None:
        """Compare the cost with the sum of values, sizes and noise of the costs and of what rows are missed by."""
        total = sum([float(values.sum()) for values, _, _ in costs])
        size = sum([float(sizes.sum()) for _, sizes, _ in costs])
        room = sum([float(noise.sum()) for _, _, noise in costs if noise is not None])
        for row in rows:
            if row.l1 is not None:
                price = float(row.price().sum())
                total, size = total + price, size + price
                room += 10 * self.claimed["complementarity"] * float(np.isfinite(row.l1).sum())
        size = size if np.isfinite(size) else abs(total)
        if not abs(total - self.cost) <= VALUE * max(size, abs(self.cost)) + room:
            self._note("cost", None, "value", self.cost, total)

    def _rows(self, name: str, c: np.ndarray, room: np.ndarray) -> Rows:
        """Return a constraint's rows at the solution, with their prices."""
        held, equal, y = getattr(self.problem, name), name.endswith("_equality"), np.empty(c.shape)
        y[...] = self.multiplier(name)
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

    def _judge_rows(self, f: np.ndarray, room: np.ndarray, rows: list[Rows]) -> None:
        """Compare gaps, rows, bounds and multipliers with the claims; keep the figures found."""
        claimed = self.claimed
        gaps = np.abs(f - self.xs[1:])
        parts, flat, room = (("f", gaps.shape, 0),), gaps.ravel(), room.ravel()
        self._exceeds(parts, "gap", flat, 2 * claimed["primal_feasibility"] + room, "primal_feasibility")
        self._judge_residuals((("dynamics", gaps.shape, 0),), flat, room)
        primal, products, dual = flat.max(initial=0.0), 0.0, 0.0
        rows = rows + self._bounds() + self._params_bounds()
        plain = [[r for r in rows if r.l1 is None and r.equal == equal] for equal in (False, True)]
        for row in [r for r in rows if r.l1 is not None] + [Rows.together(several) for several in plain if several]:
            miss = row.miss()
            if row.l1 is not None:
                miss = np.where(np.isfinite(row.l1), 0.0, miss)
            most = 2 * claimed["primal_feasibility"] + row.room
            self._exceeds(row.parts, "violation", miss, most, "primal_feasibility")
            self._judge_residuals(row.parts, miss, row.room)
            primal = max(primal, miss.max(initial=0.0))
            if row.l1 is None and row.equal:
                continue
            product, bad, y = row.product(), row.wrong(), np.abs(row.y)
            most = 2 * claimed["complementarity"] + (y + 1e-9) * row.room
            self._exceeds(row.parts, "product of multiplier and distance", product, most, "complementarity")
            self._exceeds(row.parts, "multiplier", bad, 2 * claimed["dual_feasibility"], "dual_feasibility", 1e-9 * y)
            products, dual = max(products, product.max(initial=0.0)), max(dual, bad.max(initial=0.0))
        self.figures = float(primal), float(products), float(dual)

    def _judge_residuals(self, parts: tuple, own: np.ndarray, room: np.ndarray) -> None:
        """Compare what each row is missed by with what the solution says; not those of x_0 and parameters."""
        blocks = _blocks(parts)
        claims = [self._residuals(name, own[place].reshape(shape)) for name, shape, _, place in blocks]
        claimed = claims[0].ravel() if len(claims) == 1 else np.concatenate([claim.ravel() for claim in claims])
        wrong = ~(np.abs(claimed - own) <= room + self.rounding)
        if not wrong.any():
            return
        for name, shape, first, place in blocks:
            if wrong[place].any():
                at = int(np.argmax(wrong[place]))
                stage = None if first is None else int(np.unravel_index(at, shape)[0]) + first
                self._note(name, stage, "residual", claimed[place][at], own[place][at])

    def _residuals(self, name: str, own: np.ndarray) -> np.ndarray:
        """Return what the solution says each row is missed by; what is found where it does not say it."""
        claimed = self.residuals.get(name)
        if claimed is None or name[:2] == "x0":
            return own
        claimed = np.asarray(claimed)
        if name[:2] == "x_":  # has a row for x_0, too, whose bounds may be another block's matter
            first = len(own) - len(self.us)
            claimed = np.concatenate([own[:first], claimed[1:]]) if first else claimed[1:]
        return claimed if claimed.size == own.size else own

    def _exceeds(
        self, parts: tuple, what: str, value: np.ndarray, most: Any, claim: str, sizes: np.ndarray | None = None
    ) -> None:
        """Note the worst that exceeds of each constraint; the greatest of `sizes` in a constraint is allowed, too."""
        if (value <= most).all():
            return
        most = np.broadcast_to(most, value.shape)
        for name, shape, first, own in _blocks(parts):
            allowed = most[own] + (0.0 if sizes is None else sizes[own].max(initial=0.0))
            over = ~(value[own] <= allowed)
            if over.any():
                at = int(np.argmax(np.where(over, np.nan_to_num(value[own], nan=np.inf), -1.0)))
                stage = None if first is None else int(np.unravel_index(at, shape)[0]) + first
                self._note(name, stage, what, self.claimed[claim], value[own][at])

    def _bounds(self) -> list[Rows]:
        """Return the bounds of states and inputs as rows."""
        rows: list[Rows] = []
        start, nx = "x0" in self.free or self.problem.x0 is None, self.xs.shape[1]
        self._bound(rows, "x", np.s_[:, :nx] if start else np.s_[1:, :nx], 0 if start else 1)
        if "us" in self.free:
            self._bound(rows, "u", np.s_[:-1, nx:], 0)
        if start:
            self._bound(rows, "x0", np.s_[0, :nx], None)
        return rows

    def _bound(self, rows: list[Rows], stem: str, where: Any, stage: int | None) -> None:
        """Add the bounds of x, u or x0, which are there in z."""
        bounds = {}
        for side in ("min", "max"):
            bound = getattr(self.problem, f"{stem}_{side}")
            if bound is not None:
                bound = np.asarray(bound)
                bounds[side] = bound[len(bound) - len(self.z[where]) :] if bound.ndim == 2 else bound
        if not bounds:
            return
        z, same = self.z[where], None
        room = (VALUE * self.size[where]).ravel()
        if len(bounds) == 2:
            same = bounds["min"] == bounds["max"]
            same = same if same.any() else None
        for side, bound in bounds.items():
            name = f"{stem}_{side}"
            c = z - bound if side == "max" else bound - z
            y = self.y.get(name)
            if y is None or y.shape[-z.ndim :] != z.shape:
                given, y = y, np.zeros(z.shape)
                if given is not None:
                    y[...] = given[-len(z) :] if given.ndim == 2 else given
            if same is not None:  # such bounds have a multiplier of either sign, and no slack
                y = np.where(same, 0.0, y)
            rows.append(Rows(((name, z.shape, stage),), c.ravel(), room, y.ravel(), False))

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

    def _lagrangian(self, v: np.ndarray) -> np.ndarray:
        """Return l + costates'f + y'(g, h) of the stages and, in the last column, of the end, (points, N+1)."""
        stages, end, _ = self.evaluate.parts(v * self.weights)
        made = np.empty((len(v), stages.shape[1] + 1))
        np.add.reduce(stages, axis=2, out=made[:, :-1])
        np.add.reduce(end, axis=1, out=made[:, -1])
        return made

    def _pulls(self) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Return the slopes along d that need no function, of stages 0..N, of the start, and the sizes of both."""
        nx, pull = self.xs.shape[1], np.zeros(self.z.shape)
        for stem, where in (("x", np.s_[:, :nx]), ("u", np.s_[:-1, nx:])):
            for side, add in (("max", np.add), ("min", np.subtract)):
                y = self.y.get(f"{stem}_{side}")
                if y is not None:
                    add(pull[where], y, out=pull[where])
        start = (self.costates[0] + pull[0, :nx] + self.multiplier("x0_max") - self.multiplier("x0_min")) * self.dxs[0]
        far = np.abs(self.d)
        size = np.abs(pull)
        size[:, :nx] += np.abs(self.costates)
        size *= far
        pull[0, :nx] = 0.0
        pull[:, :nx] -= self.costates
        pull *= self.d
        return pull.sum(-1), size.sum(-1), start.sum(), np.abs(start).sum()

    def _judge_slopes(self, v: np.ndarray, found: Slope) -> None:
        """Compare the stationarity along d with what the largest slope that is claimed allows."""
        if not np.isfinite(self.claimed["stationarity"]):
            return
        pulls, size, start, start_size = self._pulls()
        of_stages, of_end, _ = self.evaluate.parts(np.abs(found.slope * self.weights))
        size[:-1] += of_stages.sum(-1)
        size[-1] += of_end.sum()
        L = self._lagrangian(v)
        estimates = [differences(L, STEPS[0])]
        # No point is closer to a stationary one than its last digit, of which curvature makes a slope, and costates
        # carry it to other stages; digits are lost at each of them.
        rounding = 8 * len(self.xs) * EPS * np.abs(L[1] + L[2] - 2 * L[0]).max() / STEPS[0] ** 2
        allowed = 2 * self.claimed["stationarity"] * np.abs(self.d).sum(-1) + rounding
        suspects = differ(-pulls, estimates, size, SLOPE) & (np.abs(estimates[0].slope + pulls) > allowed)
        if suspects.any():
            if len(v) > 3:
                estimates += [differences(self._lagrangian(self.values(h)), h) for h in STEPS[1:]]
            sure = differ(-pulls, estimates, size, SLOPE)
            sure &= np.min([np.abs(e.slope + pulls) for e in estimates], axis=0) > allowed
            if sure.any():
                excess = np.where(sure, np.abs(estimates[0].slope + pulls) / np.maximum(size, 1e-300), -1.0)
                t = int(np.argmax(excess))
                if len(v) == 3 or not self._blame(t, self.evaluate.by_name(v)):
                    self._note("the Lagrangian", t, "slope", allowed[t] / 2, estimates[0].slope[t] + pulls[t])
        if self.problem.x0 is None and "x0" in self.free:
            slope = float(self.evaluate.parts(found.slope)[2].sum())
            error = float(np.sum(self.evaluate.parts(found.error)[2])) if np.ndim(found.error) else 0.0
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
                one = self.evaluate.flat(xs, us, params)[:1]
                rows.append(np.append(self._lagrangian(one)[0], self.evaluate.parts(one)[2].sum()))
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
