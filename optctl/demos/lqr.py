"""A linear-quadratic regulator: Riccati, cvxpy and gradient methods on one problem."""

from pathlib import Path
from typing import Any

import numpy as np

from optctl import plot
from optctl.costs import Quadratic, TerminalQuadratic
from optctl.demos.row import Row, save, timed
from optctl.dynamics import discretize, models
from optctl.lq import lqr, to_cvxpy
from optctl.problem import Problem
from optctl.solvers import solve


def run(out: Path) -> list[Row]:
    """Bring a mass on rails to rest, and again with bounded force."""
    dynamics: Any = discretize(models.DoubleIntegrator(m=2.0), 0.1, "zoh")
    Q, R, Qf = np.diag([1.0, 0.1]), np.array([[0.1]]), np.diag([10.0, 1.0])
    x0 = np.array([1.0, 0.0])
    problem = Problem(dynamics, Quadratic(Q, R), TerminalQuadratic(Qf), horizon=50, x0=x0)
    exact, cvxpy_seconds = timed(lambda: float(to_cvxpy(problem).solve()))
    riccati, seconds = timed(lqr, dynamics.A, dynamics.B, Q, R, Qf=Qf, x0=x0, horizon=50)
    rows = [
        Row("LQR", "cvxpy (oracle)", exact, exact, 1, cvxpy_seconds),
        Row("LQR", "Riccati", float(riccati.cost), exact, 1, seconds),
    ]
    for method in ("cg", "lbfgs"):
        sol, seconds = timed(solve, problem, method=method)
        sol.raise_if_failed()
        rows.append(Row("LQR", method, float(sol.cost), exact, int(sol.iterations), seconds))
    bounded = problem.replace(u_min=-1.0, u_max=1.0)
    exact, _ = timed(lambda: float(to_cvxpy(bounded).solve()))
    sol, seconds = timed(solve, bounded)
    rows.append(Row("LQR, |u| <= 1", sol.method, float(sol.cost), exact, int(sol.iterations), seconds))
    save(plot.trajectory(sol.raise_if_failed(), bounded), out, "lqr_bounded")
    save(plot.costates(riccati, problem), out, "lqr_costates")
    return rows
