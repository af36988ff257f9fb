"""Linear-quadratic problems behind the front door: one Riccati recursion, exact up to rounding."""

from typing import Any

import numpy as np

from optctl import lq
from optctl._arrays import namespace, on_host, to_device
from optctl.adjoint.gradient import Gradient
from optctl.lq.model import check_linear_quadratic
from optctl.result import Status
from optctl.solution import History
from optctl.solvers.iterate import Iterate
from optctl.solvers.method import Method, method
from optctl.solvers.objective import Objective


@method()
class LQ(Method):
    """The Riccati recursion, for linear-quadratic problems: `oc.solve(problem, method=oc.LQ())`.

    Not iterative, so there is nothing to choose. (The quadratic model itself is `oc.lq.LQ`.)

    Example:
        >>> import optctl as oc
        >>> oc.solve(oc.problems.nile(), method=oc.LQ()).iterations.item()
        1
    """

    name = "lq"
    summary = "exact solution of linear-quadratic problems by the Riccati recursion"
    differentiable = True
    on_host = True
    curved = True

    def check(self, objective: Objective) -> None:
        """Raise unless inputs, and perhaps x_0, are free."""
        if objective.free not in (("us",), ("us", "x0")):
            raise ValueError(f"method 'lq' solves for us (and x0); free is {objective.free}.")

    def run(self, objective: Objective, tolerance: Any, us: Any, xs: Any) -> Iterate:
        """Solve; the guess plays no part."""
        make = _model_now if on_host(objective.x0) else lambda objective: lq.LQ.from_problem(objective.problem)
        solution = lq.solve(make(objective))
        z = objective.pack(Gradient(None, None, None, us=solution.us, x0=solution.xs[0], params=None))
        xp = namespace(z)
        row = xp.stack([xp.asarray(xp.nan, z.dtype), solution.cost.astype(z.dtype)])
        status = xp.where(solution.failed_stage < 0, int(Status.SOLVED), int(Status.NOT_CONVEX))
        return Iterate(
            z, solution.cost, None, np.asarray(1), status, np.asarray(False), History(row, row, row),
            K=solution.K, k=solution.k,
        )  # fmt: skip


def _model_now(objective: Objective) -> lq.LQ:
    """Return `LQ.from_problem` by the engine of the objective: one expansion around zero, which is exact."""
    problem, x0, us = objective.problem, objective.x0, np.zeros_like(objective.us)
    check_linear_quadratic(to_device(problem))  # what indexes by stage needs JAX's arrays
    nx, xs = x0.size, np.zeros((len(us) + 1, x0.size))
    at = objective.engine.slopes(us, xs[0], objective.params, xs, objective.signs)
    start = {"Q0": at.W0, "q0": at.q0, "constant": at.cost}
    if problem.x0 is not None:
        start = {"x0": problem.x0, "constant": at.cost + at.q0 @ x0 + 0.5 * x0 @ at.W0 @ x0}
    return lq.LQ(
        A=at.A, B=at.B, c=at.reached, Q=at.W[:, :nx, :nx], R=at.W[:, nx:, nx:], M=at.W[:, :nx, nx:],
        q=at.qs[:-1], r=at.rs, Qf=at.Wf, qf=at.qs[-1], **start,
    )  # fmt: skip
