"""The one result type of all solvers: a trajectory, its multipliers, and the certificate that says what it is."""

from typing import Any, NamedTuple

import jax
import numpy as np

from optctl._arrays import namespace
from optctl._record import record
from optctl._validate import check_positive
from optctl.result import Result, Status

NAMED = 3
"""How many violated rows a message names."""


FLOOR = 1e-5
"""Least size of the cost, over what the cost would be if variables changed by as much as they are."""


BOTTOMLESS = 1e15
"""A cost that has fallen so many times below the first one falls without bound, if nothing bounds what is free."""
FALLEN, GROWN = 1e6, 1e3
"""So is one of which a solve got stuck where the cost had fallen by the first and the variables had grown by the
second: a cost that falls by much to a kink, or to a minimum, is no such evidence."""


def reachable(tolerance: Any, dtype: Any) -> Any:
    """Return a tolerance that rounding allows: what solvers work with where less is asked for."""
    least = 100 * float(np.finfo(dtype).eps)
    if isinstance(tolerance, int | float):
        return max(tolerance, least)
    return namespace(tolerance).maximum(tolerance, least)


def cost_size(cost: Any, first_cost: Any, least: Any) -> Any:
    """Return the size of the cost that tolerances refer to.

    It is |J|, or the change since the first guess where that is smaller (a constant in J must not make everything
    look small), but at least 1e-3 |J|, and `least` for a J that vanishes: FLOOR times what the cost would be at this
    point, not at the guess, beside which anything looks small if it is bad enough. It is 1 where all vanish. A first
    cost that is not finite counts as the cost itself.
    """
    xp = namespace(cost)
    first_cost = xp.where(xp.isfinite(first_cost), first_cost, cost)
    changed = xp.minimum(xp.abs(cost), xp.abs(first_cost - cost))
    size = xp.maximum(xp.maximum(changed, 1e-3 * xp.abs(cost)), least)
    size = xp.maximum(size, xp.finfo(cost.dtype).tiny ** 0.5)
    return xp.where((cost == 0) & (first_cost == 0) & (least == 0), 1.0, size)


@record()
class Certificate:
    """How well the optimality conditions hold at a point, computed apart from the solver that found it.

    It is a first-order certificate: it does not tell a minimum from a saddle (though "lq" and "cg" look at curvature).
    `holds` asks the scaled figures to be within the tolerance. The unscaled ones are in the units of the problem.
    Methods that know only bounds read multipliers off the gradient with their right sign, so that dual feasibility can
    fail only through NaN.

    Attributes:
        stationarity: largest slope of the Lagrangian; with bounds alone the projected gradient,
            max |z - clip(z - dJ/dz, lower, upper)|.
        stationarity_scaled: the same, each entry times max(1, |z|), over the size of the cost; or the rounding of the
            whole gradient on that scale, where that is larger.
        primal_feasibility: largest violation of a constraint or gap of the dynamics.
        primal_feasibility_scaled: the same, a gap over max(1, |x|).
        dual_feasibility: largest multiplier of the wrong sign, or above the price of a soft constraint.
        dual_feasibility_scaled: the same over the size of the cost.
        complementarity: largest product of a multiplier and the distance to its bound.
        complementarity_scaled: the sum of these products over the size of the cost: it bounds the error of the cost.
        tolerance: what `converged` asks of the scaled figures.
    """

    stationarity: Any
    stationarity_scaled: Any
    primal_feasibility: Any
    primal_feasibility_scaled: Any
    dual_feasibility: Any
    dual_feasibility_scaled: Any
    complementarity: Any
    complementarity_scaled: Any
    tolerance: Any

    @property
    def holds(self) -> Any:
        """True if every scaled figure is within the tolerance."""
        xp = namespace(self.stationarity)
        worst = xp.maximum(self.stationarity_scaled, self.complementarity_scaled)
        worst = xp.maximum(worst, xp.maximum(self.primal_feasibility_scaled, self.dual_feasibility_scaled))
        return worst <= self.tolerance


@record()
class History:
    """What each iteration did.

    Attributes:
        cost: cost after iterations 0, 1, 2, ...
        stationarity: scaled stationarity after each.
        step: size of the step that led there (0 for the first).
        infeasibility: largest violation, scaled; None from methods that keep to the constraints.
        barrier: barrier parameter mu; None from methods without one.
        regularization: what was added to [[Q, M], [M', R]] to make the step's model convex, or None.
    """

    cost: Any
    stationarity: Any
    step: Any
    infeasibility: Any = None
    barrier: Any = None
    regularization: Any = None


class Violation(NamedTuple):
    """A row of a constraint that does not hold.

    Attributes:
        constraint: its name: that of the field of `Problem`, or "dynamics".
        stage: its stage; that of a gap in the dynamics is where the step starts.
        row: its component.
        amount: by how much it is missed, in its own unit.
    """

    constraint: str
    stage: int
    row: int
    amount: float

    def __str__(self) -> str:
        return f"{self.constraint}[{self.row}] at stage {self.stage} by {self.amount:.3g}"


@record(static=("method", "free"), remarks=("note", "checked"))
class Solution(Result):
    """The result of `solve`; every field is always present.

    Of a batch (`jax.vmap`) each field has a leading axis, and the cost of members that did not converge is NaN, so that
    none of them is taken for the best; what they came to is in the other fields.

    Attributes:
        xs: (N+1, nx) states (a list of activations for `Layers`).
        us: (N, nu) inputs.
        x0: (nx,) initial state.
        params: parameters.
        costates: (N+1, nx), dJ/dx_t.
        multipliers: by bound name ("u_min", ...), each >= 0 and shaped like the variable.
        K: (N, nu, nx) feedback gains, u = K x + k; None from methods that do not find them.
        k: (N, nu) feedback offsets; likewise.
        cost: total cost.
        status: a `Status` value.
        converged: True only if the certificate holds.
        iterations: number of iterations.
        certificate: a `Certificate`.
        history: a `History`.
        method: the name of the solver.
        free: what was free, names among "us", "x0" and "params".
        residuals: by constraint, how far each row is from holding, >= 0 and shaped (stages, rows); a row with a price
            (`Soft`) may be missed and counts as zero. Empty from methods that keep to bounds and dynamics.
        note: what the message adds to the status: where inf or NaN came from, or what two computations disagree on.
        checked: by what the solution was judged after the solve, apart from the solver: "NumPy", with the primitives
            that JAX had to evaluate; empty where it was not, as under `jit`.
        strict_complementarity: the smallest over all inequalities of max(slack, multiplier over the size of the cost);
            where it is zero, a constraint is about to become active, or no longer to be, and the solution has a kink.
            None from methods whose solutions have no derivatives.
    """

    xs: Any
    us: Any
    x0: Any
    params: Any
    costates: Any
    multipliers: Any
    K: Any
    k: Any
    cost: Any
    status: Any
    converged: Any
    iterations: Any
    certificate: Certificate
    history: History
    method: str
    free: tuple[str, ...] = ("us",)
    residuals: Any = None
    strict_complementarity: Any = None
    note: str = ""
    checked: str = ""

    @property
    def derivative_exists(self) -> Any:
        """True if the solution converged and does not have a kink there, within the tolerance."""
        if self.strict_complementarity is None:
            return self.converged
        return self.converged & (self.strict_complementarity > self.certificate.tolerance)

    @property
    def stage(self) -> Any:
        """Stage of the worst violation where the solve failed and violates a constraint, else -1."""
        self._require_host("stage")
        failed = ~np.asarray(self.converged)
        worst, stage = np.zeros(failed.shape), np.full(failed.shape, -1)
        for name, block in (self.residuals or {}).items():
            by_stage = np.nan_to_num(np.asarray(block).max(axis=-1, initial=0.0))
            most = by_stage.max(axis=-1, initial=0.0)
            more = failed & (most > np.maximum(worst, np.asarray(self.certificate.tolerance)))
            if more.any():
                at = by_stage.argmax(axis=-1) + self._first_stage(name)
                worst, stage = np.where(more, most, worst), np.where(more, at, stage)
        return stage

    def violations(self, least: float | None = None) -> list[Violation]:
        """Return the rows of constraints that do not hold, the worst first.

        Args:
            least: amount from which on a row counts; None is the tolerance.
        """
        self._require_one("violations()")
        if least is not None:
            check_positive(least, "least", "an amount >= 0", zero=True)
        least = float(self.certificate.tolerance) if least is None else least
        found = []
        for name, block in (self.residuals or {}).items():
            block, first = np.asarray(block), self._first_stage(name)
            rows = np.argwhere(block > least)
            found += [Violation(name, int(t) + first, int(i), float(block[t, i])) for t, i in rows]
        return sorted(found, key=lambda v: -v.amount)

    def _first_stage(self, constraint: str) -> int:
        """Return the stage of the first row of a block of residuals."""
        return int(np.shape(self.us)[-2]) if constraint.startswith("terminal") else 0

    def explanation(self) -> str:
        """Return cause and remedy, with the rows that are violated."""
        status = Status(int(self.status))
        if status is Status.SOLVED:
            return "solved: the certificate holds" + (f"; {self.note}" if self.note else "")
        if self.note and status is Status.NON_FINITE:
            met = "met inf or NaN" if np.isfinite(self.cost) else "the first guess itself gives inf or NaN"
            return f"{met}: {self.note}"
        if self.note:
            return f"{status.message}: {self.note}"
        if status is Status.NON_FINITE and not np.isfinite(self.cost):
            return (
                "the first guess itself gives inf or NaN, so there is no finite iterate: start from other inputs, and"
                " keep the model defined outside its domain, such as a square root that is smooth below zero"
            )
        tolerance = np.asarray(self.certificate.tolerance)
        if status is Status.STALLED and tolerance < reachable(tolerance, tolerance.dtype):
            return f"no further decrease: the tolerance {tolerance:.0e} is below what rounding allows{self._violated()}"
        return status.message + self._violated()

    def _violated(self) -> str:
        """Name the rows of constraints that do not hold, the worst first, and the largest gap of the dynamics."""
        every = self.violations()
        rows, gaps = [v for v in every if v.constraint != "dynamics"], [v for v in every if v.constraint == "dynamics"]
        named = [str(row) for row in rows[:NAMED]]
        named += [f"{len(rows) - NAMED} more rows"] if len(rows) > NAMED else []
        named += [f"the dynamics' gaps by up to {gaps[0].amount:.3g} (at stage {gaps[0].stage})"] if gaps else []
        return f"; violated: {', '.join(named)}" if named else ""

    def failure(self) -> str:
        """Return what `raise_if_failed` says."""
        return f"{self.method} did not converge: {self!r}"

    def table(self) -> str:
        """Return the iterations as an aligned table."""
        self._require_one("table()")
        columns = {name: column for name, column in vars(self.history).items() if column is not None}
        titles = {"infeasibility": "infeasible", "regularization": "shift"}
        widths = {"cost": 18, "stationarity": 13}
        heads = [f"{titles.get(name, name):>{widths.get(name, 11)}}" for name in columns]
        rows = [f"{'iter':>6} {' '.join(heads)}"]
        for i in range(min(int(self.iterations) + 1, len(self.history.cost))):
            cells = [
                f"{float(column[i]):{widths.get(name, 11)}.{'10g' if name == 'cost' else '3e'}}"
                for name, column in columns.items()
            ]
            rows.append(f"{i:6d} {' '.join(cells)}")
        return "\n".join(rows)

    def _require_one(self, what: str) -> None:
        self._require_host(what)
        if np.ndim(self.status):
            raise ValueError(
                f"{what} shows one solution; pick one of the batch: jax.tree.map(lambda leaf: leaf[i], sol)."
            )

    def __repr__(self) -> str:
        if isinstance(self.status, jax.core.Tracer):
            return f"Solution ({self.method}), traced"
        if np.ndim(self.status):
            solved = int(np.sum(np.asarray(self.converged)))
            return f"Solution batch ({self.method}): {solved} of {np.size(self.status)} converged"
        of, tolerance = self.certificate, float(self.certificate.tolerance)
        missed = f", violation {float(of.primal_feasibility):.2e}" if float(of.primal_feasibility) > tolerance else ""
        return (
            f"{'Converged' if self else 'NOT converged'} ({self.method}): {self.message}.\n"
            f"  free: {', '.join(self.free)}; cost {float(self.cost):.12g}, {int(self.iterations)} iterations,"
            f" stationarity {float(of.stationarity):.2e} (scaled {float(of.stationarity_scaled):.2e},"
            f" tolerance {tolerance:.0e}){missed}"
        )
