r"""The independent check: values and slopes of a problem found by NumPy, to judge those of tapes, kernels and solvers.

Values come from jaxprs that `interpreter` runs, for all stages at once. Slopes are differences of such values along one
random direction d a stage, scaled like the trajectory. With v(h) = v(z + h d) and D(h) = (v(h) - v(-h)) / 2h,

    D = (4 D(h) - D(2h)) / 3                                        error O(h^4), rounding eps |v| / h
    |D(h) - D(2h)|                                                  tells of truncation, kinks nearby, rounding within v
    |4 (v(h) + v(-h) - 2v) - (v(2h) + v(-2h) - 2v)| / h             tells of a kink right here

and only what exceeds all of these, for three sizes of h that agree with each other, is called a disagreement. So a
kink, the edge of a domain, or a function that is all rounding makes the check inconclusive there, never a failure.

`judge` asks of a solution what its certificate says, from the problem and the solution alone: the cost, the gaps, rows
and bounds, the signs of multipliers, their products with the distances and, along d, the stationarity at each stage,

    d'(dl + f'costates_{t+1} + y'(g, h) + bounds) - d_x'costates_t  no larger than the largest slope claimed allows.

Of a point that claims to be no solution it asks all but the last: what it says about itself must be true as well.

References: Nocedal and Wright (2006), Numerical Optimization, section 8.1 (differences), chapter 12 (conditions).
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from optctl.adjoint.evaluation import END, Evaluator
from optctl.problem import Problem

STEPS = (1e-4, 1e-3, 1e-5)
"""Sizes of h: the first is tried, the others where it finds something."""
STENCIL = np.array([0.0, 1.0, -1.0, 2.0, -2.0])
VALUE, SLOPE = 1e-8, 1e-6
"""Relative differences of values and of slopes that may be rounding."""
ROUNDING = 1e-12
"""States and inputs that are nowhere larger are rounding, and say nothing about the size of a direction."""
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
        error: bound on the error of D, infinite where v is not finite nearby.
        noise: bound on the error of v.
    """

    values: np.ndarray
    slope: np.ndarray
    error: np.ndarray
    noise: np.ndarray


def differences(v: np.ndarray, h: float) -> Slope:
    """Return the slope from values at the points of STENCIL, (5, ...)."""
    with np.errstate(all="ignore"):
        near, far = (v[1] - v[2]) / (2 * h), (v[3] - v[4]) / (4 * h)
        bend = np.abs(4 * (v[1] + v[2] - 2 * v[0]) - (v[3] + v[4] - 2 * v[0]))
        error = np.abs(near - far) + bend / h + 1e-13 * np.abs(v[0]) / h
        finite = np.isfinite(v).all(axis=0)
        return Slope(v[0], (4 * near - far) / 3, np.where(finite, error, np.inf), np.where(finite, bend, np.inf))


def directions(xs: np.ndarray, us: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a random direction for each stage, (N+1, nx) and (N, nu), each component scaled like the trajectory's."""
    rng = np.random.default_rng(seed)

    def draw(z: np.ndarray) -> np.ndarray:
        size = np.abs(z).max(axis=0, initial=0.0)
        size = np.where((size > ROUNDING) & np.isfinite(size), size, 1.0)
        scale = np.clip(np.abs(z), 0.1 * size, size)
        return np.nan_to_num(scale) * rng.uniform(0.5, 1.0, z.shape) * rng.choice([-1.0, 1.0], z.shape)

    return draw(xs), draw(us)


def around(z: np.ndarray, d: np.ndarray, h: float) -> np.ndarray:
    """Return the points of the stencil, (5, ...)."""
    return z[None] + (h * STENCIL).reshape(-1, *[1] * z.ndim) * d[None]


def differ(claimed: Any, found: list[Slope], scale: Any, relative: float) -> np.ndarray:
    """Return where slopes that are claimed are refuted by all of several estimates, which agree with each other."""
    with np.errstate(all="ignore"):
        gaps = [np.abs(claimed - s.slope) for s in found]
        wrong = [~(gap <= relative * scale + s.error) for gap, s in zip(gaps, found, strict=True)]
        least = np.min(gaps, axis=0)
        agree = [np.abs(s.slope - found[0].slope) <= 0.2 * least for s in found[1:]]
        known = [np.isfinite(s.error) for s in found]
        return np.logical_and.reduce([*wrong, *agree, *known])


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
class Row:
    """The rows of one constraint at a point.

    Attributes:
        name: the constraint's.
        c: values, <= 0 or = 0.
        room: what may be rounding.
        y: multipliers.
        l1: price of a miss, infinite for hard rows.
        l2: price of half its square.
        miss: how much is missed.
        equal: c = 0.
    """

    name: str
    c: np.ndarray
    room: np.ndarray
    y: np.ndarray
    l1: np.ndarray
    l2: np.ndarray
    miss: np.ndarray
    equal: bool

    @classmethod
    def hard(cls, name: str, c: np.ndarray, room: np.ndarray, y: np.ndarray) -> "Row":
        """Return rows c <= 0 without a price."""
        return cls(name, c, room, y, np.full(c.shape, np.inf), np.zeros(c.shape), np.maximum(c, 0.0), False)

    def wrong(self) -> np.ndarray:
        """Return by how much each multiplier has the wrong sign, or exceeds the price."""
        limit = self.l1 + self.l2 * self.miss
        above = np.maximum((np.abs(self.y) if self.equal else self.y) - limit, 0.0)
        return above if self.equal else np.maximum(-self.y, above)

    def product(self) -> np.ndarray:
        """Return the products of multipliers and distances, and of misses and what is left of their prices."""
        soft = np.isfinite(self.l1)
        distance = np.zeros_like(self.c) if self.equal else np.abs(np.where(soft, self.miss - self.c, self.c) * self.y)
        limit = np.where(soft, self.l1, 0.0) + self.l2 * self.miss
        return np.maximum(
            distance, np.where(soft, np.abs(limit * self.miss - self.y * np.where(self.miss > 0, self.c, 0.0)), 0.0)
        )


class Judge:
    """The conditions of optimality at one solution, from the problem and the solution alone."""

    def __init__(self, problem: Problem, solution: Any, free: tuple[str, ...]) -> None:
        self.problem, self.free = problem, free
        self.xs, self.us, self.costates = (np.asarray(v) for v in (solution.xs, solution.us, solution.costates))
        self.params = jax.tree.map(np.asarray, solution.params)
        self.y = {name: value for name, value in solution.multipliers.items()}
        self.claimed = {k: float(v) for k, v in vars(solution.certificate).items() if np.ndim(v) == 0 and k != "by"}
        self.cost, self.residuals = float(solution.cost), solution.residuals or {}
        N, nu = self.us.shape
        self.evaluate = Evaluator(problem, self.params, (N, self.xs.shape[1], nu), len(STENCIL))
        self.dxs, self.dus = directions(self.xs, self.us)
        if "us" not in free:
            self.dus = np.zeros_like(self.dus)
        self.found: list[Disagreement] = []

    def values(self, h: float) -> dict[str, np.ndarray]:
        """Return all values at the points of the stencil."""
        return self.evaluate(around(self.xs, self.dxs, h), around(self.us, self.dus, h))

    def multiplier(self, name: str, like: np.ndarray) -> np.ndarray:
        """Return the multiplier of a constraint, zero where there is none."""
        value = self.y.get(name)
        return np.zeros_like(like) if value is None else np.broadcast_to(np.asarray(value), like.shape)

    def verdict(self, slopes: bool) -> Verdict:
        """Return what is found, slopes included or not."""
        v = self.values(STEPS[0])
        first = {name: differences(value, STEPS[0]) for name, value in v.items()}
        self._judge_cost(first)
        primal, product, dual = self._judge_rows(first)
        if slopes:
            self._judge_slopes(v)
        if slopes and "params" in self.free:
            self._judge_params()
        by_jax = frozenset(self.evaluate.functions.by_jax)
        return Verdict(primal, dual, product, tuple(self.found), by_jax)

    def _note(self, function: str, stage: int | None, what: str, claimed: Any, found: Any) -> None:
        self.found.append(Disagreement(function, stage, what, float(claimed), float(found)))

    def _judge_cost(self, found: dict[str, Slope]) -> None:
        costs = [found[name] for name in COSTS if name in found]
        total = sum(float(s.values.sum()) for s in costs)
        size = sum(float((np.abs(s.values) + np.abs(s.slope)).sum()) for s in costs)
        room = sum(float(np.where(np.isfinite(s.noise), s.noise, 0.0).sum()) for s in costs)
        for name in (*PATH, *END[1:]):
            if name in found:
                row = self._row(name, found[name])
                soft = np.isfinite(row.l1)
                price = np.where(soft, row.l1, 0.0) * row.miss + row.l2 * row.miss**2 / 2
                total, size = total + float(price.sum()), size + float(price.sum())
                room += float((np.where(soft, row.l1 + row.l2 * row.miss, 0.0) * row.room).sum())
        size = size if np.isfinite(size) else abs(total)
        if not abs(total - self.cost) <= VALUE * max(size, abs(self.cost)) + room:
            self._note("cost", None, "value", self.cost, total)

    def _row(self, name: str, s: Slope) -> "Row":
        """Return a constraint's rows at the solution, with their prices; infinite ones of hard rows."""
        held = getattr(self.problem, name)
        c, equal = s.values, name.endswith("_equality")
        on = np.broadcast_to(True if held.on is None else np.asarray(held.on), c.shape)
        l1 = np.broadcast_to(np.inf if held.l1 is None else np.asarray(held.l1), c.shape)
        l2 = np.broadcast_to(0.0 if held.l1 is None else np.asarray(held.l2), c.shape)
        l2 = np.where(np.isfinite(l1), l2, 0.0)
        c = np.where(on, c, 0.0 if equal else -1.0)
        room = np.where(on, VALUE * (np.abs(s.values) + np.abs(s.slope)) + s.noise, 0.0)
        y = np.where(on, self.multiplier(name, c), 0.0)
        return Row(name, c, room, y, l1, l2, np.abs(c) if equal else np.maximum(c, 0.0), equal)

    def _judge_rows(self, found: dict[str, Slope]) -> tuple[float, float, float]:
        """Compare gaps, rows, bounds and multipliers with the claims; return primal, products, dual."""
        claimed = self.claimed
        f = found["f"]
        scale = np.abs(f.values) + np.abs(f.slope)
        gaps = np.abs(f.values - self.xs[1:])
        self._exceeds(
            "f", "gap", gaps, 2 * claimed["primal_feasibility"] + VALUE * scale + f.noise, "primal_feasibility"
        )
        self._judge_residual("dynamics", gaps, VALUE * scale + f.noise)
        worst, products, wrong = np.max(gaps, initial=0.0), 0.0, 0.0
        rows = [self._row(name, found[name]) for name in (*PATH, *END[1:]) if name in found]
        for row in rows + self._bounds() + self._params_bounds():
            hard = np.where(np.isfinite(row.l1), 0.0, row.miss)
            self._judge_residual(row.name, hard, row.room)
            self._exceeds(
                row.name, "violation", hard, 2 * claimed["primal_feasibility"] + row.room, "primal_feasibility"
            )
            bad, product = row.wrong(), row.product()
            most = 2 * claimed["complementarity"] + (np.abs(row.y) + 1e-9) * row.room
            self._exceeds(row.name, "product of multiplier and distance", product, most, "complementarity")
            most = 2 * claimed["dual_feasibility"] + 1e-9 * np.abs(row.y).max(initial=0.0)
            self._exceeds(row.name, "multiplier", bad, most, "dual_feasibility")
            worst = max(worst, np.max(hard, initial=0.0))
            products, wrong = max(products, np.max(product, initial=0.0)), max(wrong, np.max(bad, initial=0.0))
        return float(worst), float(products), float(wrong)

    def _judge_residual(self, name: str, own: np.ndarray, room: np.ndarray) -> None:
        """Compare what each row is missed by with what the solution says; not those of x_0 and parameters."""
        claimed = np.asarray(self.residuals.get(name, own))
        if name[:2] == "x_":  # has a row for x_0, too, whose bounds may be another block's matter
            claimed, own, room = claimed[1:], own[-len(self.us) :], room[-len(self.us) :]
        own, room = np.atleast_2d(own), np.atleast_2d(room)
        wrong = ~(np.abs(claimed - own) <= room) if own.shape == claimed.shape and name[:2] != "x0" else np.zeros(0)
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            stage = None if name.startswith("terminal") else int(at[0]) + (name[:2] == "x_")
            self._note(name, stage, "residual", claimed[at], own[at])

    def _exceeds(self, name: str, what: str, value: np.ndarray, most: Any, claim: str) -> None:
        over = ~(value <= most)
        if over.any():
            worst = np.unravel_index(np.argmax(np.where(over, np.nan_to_num(value, nan=np.inf), -1.0)), value.shape)
            staged = name in (*PATH, "f") or (name[:2] in ("x_", "u_") and value.ndim == 2)
            offset = 1 if name[:2] == "x_" and len(value) == self.xs.shape[0] - 1 else 0
            self._note(name, int(worst[0]) + offset if staged else None, what, self.claimed[claim], value[worst])

    def _bounds(self) -> list["Row"]:
        """Return the bounds of states and inputs as rows."""
        rows = []
        start = "x0" in self.free or self.problem.x0 is None
        free = {"x": self.xs if start else self.xs[1:], "u": self.us, "x0": self.xs[0]}
        for stem, z in free.items():
            if (stem == "u" and "us" not in self.free) or (stem == "x0" and not start):
                continue
            for side, sign in (("min", -1.0), ("max", 1.0)):
                bound = getattr(self.problem, f"{stem}_{side}")
                if bound is None:
                    continue
                full = np.broadcast_to(np.asarray(bound), (self.xs if stem == "x" else z).shape)
                full = full[len(full) - len(z) :]
                there = np.isfinite(full)
                c = np.where(there, sign * (z - np.where(there, full, 0.0)), -1.0)
                y = self.y.get(f"{stem}_{side}")
                y = np.zeros_like(z) if y is None else np.asarray(y)[-len(z) :] if z.ndim > 1 else np.asarray(y)
                y = np.where(there, np.broadcast_to(y, z.shape), 0.0)
                other = getattr(self.problem, f"{stem}_{'min' if side == 'max' else 'max'}")
                if other is not None:  # bounds that are equal have a multiplier of either sign, and no slack
                    fixed = np.broadcast_to(np.asarray(other), (self.xs if stem == "x" else z).shape)
                    y = np.where(fixed[len(fixed) - len(z) :] == full, 0.0, y)
                room = VALUE * (np.abs(z) + np.abs(np.where(there, full, 0.0)))
                rows.append(Row.hard(f"{stem}_{side}", c, room, y))
        return rows

    def _params_bounds(self) -> list["Row"]:
        rows = []
        for side, sign in (("min", -1.0), ("max", 1.0)):
            bound = getattr(self.problem, f"params_{side}")
            if bound is None or "params" not in self.free:
                continue
            y = self.y.get(f"params_{side}")
            for k, (p, b) in enumerate(zip(jax.tree.leaves(self.params), jax.tree.leaves(bound), strict=True)):
                b = np.broadcast_to(np.asarray(b), p.shape)
                there = np.isfinite(b)
                c = np.where(there, sign * (p - np.where(there, b, 0.0)), -1.0)
                mine = np.zeros(p.shape) if y is None else np.where(there, np.asarray(jax.tree.leaves(y)[k]), 0.0)
                rows.append(Row.hard(f"params_{side}", c, VALUE * np.abs(p), mine))
        return rows

    def _lagrangian(self, v: dict[str, np.ndarray], size: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Return l + costates'f + y'(g, h) of the stages, (5, N), and of the end, (5,)."""
        with np.errstate(all="ignore"):
            stages = (v["f"] * self.costates[1:]).sum(-1)
            ends = np.zeros(len(STENCIL))
            for name, value in v.items():
                if name in ("stage_cost", *PATH):
                    stages = stages + (value if name == "stage_cost" else value * self.multiplier(name, value[0])).sum(
                        -1
                    )
                elif name in END:
                    ends = ends + (value if name == "terminal_cost" else value * self.multiplier(name, value[0])).sum(
                        -1
                    )
            return stages, ends

    def _pulls(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the slopes along d that need no function, of states 0..N, of the start, and the sizes of both."""
        y_xs = self.multiplier("x_max", self.xs) - self.multiplier("x_min", self.xs)
        y_us = self.multiplier("u_max", self.us) - self.multiplier("u_min", self.us)
        y_x0 = self.multiplier("x0_max", self.xs[0]) - self.multiplier("x0_min", self.xs[0]) + y_xs[0]
        y_xs = np.concatenate([np.zeros_like(y_xs[:1]), y_xs[1:]])
        of_states, of_us = (y_xs - self.costates) * self.dxs, y_us * self.dus
        sizes = ((np.abs(y_xs) + np.abs(self.costates)) * np.abs(self.dxs)).sum(-1)
        sums = of_states.sum(-1)
        sums[:-1] += of_us.sum(-1)
        sizes[:-1] += np.abs(of_us).sum(-1)
        start = (self.costates[0] + y_x0) * self.dxs[0]
        return sums, sizes, start.sum(), np.abs(start).sum()

    def _judge_slopes(self, v: dict[str, np.ndarray]) -> None:
        """Compare the stationarity along d with what the largest slope that is claimed allows."""
        if not np.isfinite(self.claimed["stationarity"]):
            return
        pulls, sizes, start, start_size = self._pulls()
        terms = {name: differences(value, STEPS[0]) for name, value in v.items()}
        size = sizes + self._term_sizes(terms)
        moved = np.abs(self.dxs).sum(-1)
        moved[:-1] += np.abs(self.dus).sum(-1)
        estimates = [self._slopes_of(v, STEPS[0])]
        allowed = 2 * self.claimed["stationarity"] * moved
        suspects = differ(-pulls, estimates, size, SLOPE) & (np.abs(estimates[0].slope + pulls) > allowed)
        if suspects.any():
            estimates += [self._slopes_of(self.values(h), h) for h in STEPS[1:]]
            sure = differ(-pulls, estimates, size, SLOPE)
            sure &= np.min([np.abs(e.slope + pulls) for e in estimates], axis=0) > allowed
            if sure.any():
                excess = np.where(sure, np.abs(estimates[0].slope + pulls) / np.maximum(size, 1e-300), -1.0)
                t = int(np.argmax(excess))
                if not self._blame(t, v):
                    self._note("the Lagrangian", t, "slope", allowed[t] / 2, estimates[0].slope[t] + pulls[t])
        if self.problem.x0 is None and "x0" in self.free:
            s = terms.get("initial_cost")
            slope, error = (0.0, 0.0) if s is None else (float(s.slope[0]), float(s.error[0]))
            most = 2 * self.claimed["stationarity"] * np.abs(self.dxs[0]).sum() + error
            if abs(start + slope) > most + SLOPE * (start_size + abs(slope)):
                self._note("initial_cost", 0, "slope", most, start + slope)

    def _blame(self, t: int, v: dict[str, np.ndarray]) -> bool:
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

    def _slopes_of(self, v: dict[str, np.ndarray], h: float) -> Slope:
        stages, ends = self._lagrangian(v)
        return differences(np.concatenate([stages, ends[:, None]], axis=1), h)

    def _term_sizes(self, terms: dict[str, Slope]) -> np.ndarray:
        """Return the sum of the sizes of all terms of the slope, for each stage and the end."""
        with np.errstate(all="ignore"):
            size = np.zeros(len(self.xs))
            size[:-1] += np.abs(terms["f"].slope * self.costates[1:]).sum(-1)
            for name, s in terms.items():
                weight = 1.0 if name in COSTS else self.multiplier(name, s.slope) if name != "f" else 0.0
                if name in ("stage_cost", *PATH):
                    size[:-1] += np.abs(s.slope * weight).sum(-1)
                elif name in END:
                    size[-1] += np.abs(s.slope * weight).sum()
            return size

    def _judge_params(self) -> None:
        """The same along a direction in the parameters, for the whole horizon."""
        rng, leaves = np.random.default_rng(1), jax.tree.leaves(self.params)
        structure = jax.tree.structure(self.params)
        d = [
            np.maximum(np.abs(p), 0.1 * np.abs(p).max(initial=0.0) or 1.0) * rng.uniform(-1, 1, p.shape) for p in leaves
        ]
        zeros = np.zeros((len(STENCIL), 1, 1))
        xs, us = self.xs[None] + zeros, self.us[None] + zeros

        def estimate(h: float) -> tuple[Slope, float]:
            rows = []
            for c in STENCIL:
                params = jax.tree.unflatten(structure, [p + c * h * q for p, q in zip(leaves, d, strict=True)])
                v = {name: value[:1] for name, value in self.evaluate(xs, us, params).items()}
                stages, ends = self._lagrangian({n: np.repeat(a, len(STENCIL), 0) for n, a in v.items()})
                first = float(v["initial_cost"].sum()) if "initial_cost" in v else 0.0
                rows.append(np.concatenate([stages[0], ends[:1], [first]]))
            each = differences(np.stack(rows), h)
            return differences(np.stack(rows).sum(1)[:, None], h), float(np.abs(each.slope).sum())

        pull = 0.0
        for side, sign in (("min", -1.0), ("max", 1.0)):
            y = self.y.get(f"params_{side}")
            if y is not None:
                pull += sign * sum(float((np.asarray(a) * b).sum()) for a, b in zip(jax.tree.leaves(y), d, strict=True))
        first, size = estimate(STEPS[0])
        size += abs(pull)
        allowed = 2 * self.claimed["stationarity"] * sum(float(np.abs(q).sum()) for q in d)

        def refuted(found: list[Slope]) -> bool:
            over = min(abs(float(s.slope[0]) + pull) for s in found) > allowed
            return over and bool(differ(np.array([-pull]), found, size, SLOPE)[0])

        if refuted([first]) and refuted([first, *(estimate(h)[0] for h in STEPS[1:])]):
            self._note("the Lagrangian", None, "slope in `params`", allowed / 2, float(first.slope[0]) + pull)


def judge(problem: Problem, solution: Any, free: tuple[str, ...], *, slopes: bool = True) -> Verdict:
    """Judge a solution; `free` names what was free among "us", "x0" and "params".

    Without slopes only what holds at any point is asked: cost, gaps, rows, and the figures made of them.

    Raises:
        Uninterpreted: where functions hold values that are being traced.
    """
    with np.errstate(all="ignore"):
        return Judge(problem, solution, free).verdict(slopes)
