"""The one result type of all solvers: a trajectory, its multipliers, and the certificate that says what it is."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl.result import Status


def cost_size(cost: Any, first_cost: Any) -> Any:
    """Return the size of the cost that tolerances refer to.

    It is |J|, or the change since the first guess where that is smaller (a constant in J must not make everything
    look small), but at least 1e-3 |J|, and 1e-6 of the first cost for a J that vanishes; 1 where both vanish.
    """
    changed = jnp.minimum(jnp.abs(cost), jnp.abs(first_cost - cost))
    least = jnp.maximum(1e-3 * jnp.abs(cost), 1e-6 * jnp.abs(first_cost))
    size = jnp.maximum(jnp.maximum(changed, least), jnp.finfo(cost.dtype).tiny ** 0.5)
    return jnp.where((cost == 0) & (first_cost == 0), 1.0, size)


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
        worst = jnp.maximum(self.stationarity_scaled, self.complementarity_scaled)
        worst = jnp.maximum(worst, jnp.maximum(self.primal_feasibility_scaled, self.dual_feasibility_scaled))
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


@record(static=("method",))
class Solution:
    """The result of `solve`; every field is always present.

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

    @property
    def message(self) -> str:
        """The status in words, with cause and remedy; for a batch, each status with its count."""
        if np.ndim(self.status):
            values, counts = np.unique(np.asarray(self.status), return_counts=True)
            return "; ".join(f"{n} x {Status(int(v)).message}" for v, n in zip(values, counts, strict=True))
        if int(self.status) == Status.NON_FINITE and not np.isfinite(self.cost):
            return (
                "the first guess itself gives inf or NaN, so there is no finite iterate: start from other inputs, and"
                " keep the model defined outside its domain, such as a square root that is smooth below zero"
            )
        return Status(int(self.status)).message

    def raise_if_failed(self) -> "Solution":
        """Return the solution itself if it converged.

        Raises:
            RuntimeError: if it did not, with cause and remedy.
        """
        if not bool(jnp.all(self.converged)):
            raise RuntimeError(f"{self.method} did not converge: {self!r}")
        return self

    def table(self) -> str:
        """Return the iterations as an aligned table."""
        if np.ndim(self.status):
            raise ValueError(
                "table() shows one solution; pick one of the batch: jax.tree.map(lambda leaf: leaf[i], sol)."
            )
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

    def __repr__(self) -> str:
        if np.ndim(self.status):
            solved = int(np.sum(np.asarray(self.converged)))
            return f"Solution batch ({self.method}): {solved} of {np.size(self.status)} converged"
        violation = float(self.certificate.primal_feasibility)
        missed = f", violation {violation:.2e}" if violation > float(self.certificate.tolerance) else ""
        return (
            f"{'Converged' if bool(self.converged) else 'NOT converged'} ({self.method}): {self.message}.\n"
            f"  cost {float(self.cost):.12g}, {int(self.iterations)} iterations, stationarity"
            f" {float(self.certificate.stationarity):.2e} (scaled {float(self.certificate.stationarity_scaled):.2e},"
            f" tolerance {float(self.certificate.tolerance):.0e}){missed}"
        )
