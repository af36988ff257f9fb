"""The Nile smoothed as a control problem: noise as input, free initial level."""

from pathlib import Path

from optctl import data, plot, problems
from optctl.costs import Huber
from optctl.demos.row import Row, save, timed
from optctl.lq import LQ, covariances
from optctl.lq import solve as solve_lq
from optctl.solvers import solve


def run(out: Path) -> list[Row]:
    """Smooth by the exact LQ solve and by three gradient methods, and robustly with Huber's loss."""
    problem = problems.nile()
    lq = LQ.from_problem(problem)
    exact, seconds = timed(solve_lq, lq)
    best = float(exact.cost)
    rows = [Row("Nile smoothing", "exact (Riccati)", best, problems.OPTIMAL_COST["nile"], 1, seconds)]
    solutions = {}
    for method in ("gradient_descent", "cg", "lbfgs"):
        sol, seconds = timed(solve, problem, method=method)
        solutions[method] = sol.raise_if_failed()
        rows.append(Row("Nile smoothing", method, float(sol.cost), best, int(sol.iterations), seconds))
    robust, seconds = timed(solve, problems.nile(Huber(1.345)), method="lbfgs")
    rows.append(
        Row("Nile, Huber loss", "lbfgs", float(robust.cost), problems.OPTIMAL_COST["nile_huber"],
            int(robust.iterations), seconds)
    )  # fmt: skip
    years, volumes = data.nile()
    labels = ("year", "annual flow at Aswan [10^8 m^3]")
    ax = plot.smoothing(volumes, exact.xs, covariances(lq, exact), times=years, labels=labels)
    plot.smoothing(volumes, robust.xs, times=years, label="Huber loss", ax=ax)
    save(ax, out, "nile_smoothing")
    save(plot.convergence(solutions, best=best), out, "nile_convergence")
    return rows
