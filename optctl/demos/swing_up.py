"""A cart-pole swung up from rest by two gradient-based solvers."""

from pathlib import Path

from optctl import plot, problems
from optctl.adjoint import costate_growth
from optctl.demos.row import Row, save, timed
from optctl.solvers import solve


def run(out: Path) -> list[Row]:
    """Swing up from zero inputs: L-BFGS within the force limits, Newton-CG without them (they are not active)."""
    problem = problems.cartpole_swing_up()
    exact = problems.OPTIMAL_COST["cartpole_swing_up"]
    rows, solutions = [], {}
    for method, form in (("lbfgs", problem), ("newton_cg", problem.replace(u_min=None, u_max=None))):
        sol, seconds = timed(solve, form, method=method)
        solutions[method] = sol.raise_if_failed()
        rows.append(Row("cart-pole swing-up", method, float(sol.cost), exact, int(sol.iterations), seconds))
    save(plot.trajectory(sol, problem), out, "swing_up_trajectory")
    save(plot.costates(sol, problem), out, "swing_up_costates")
    save(plot.convergence(solutions, best=exact), out, "swing_up_convergence")
    growth = costate_growth(problem.dynamics, sol.xs, sol.us)
    save(plot.costate_growth(growth, dt=0.02), out, "swing_up_costate_growth")
    return rows
