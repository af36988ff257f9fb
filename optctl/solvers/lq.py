"""Linear-quadratic problems behind the front door: one Riccati recursion, exact up to rounding."""

from typing import Any

import numpy as np

from optctl import lq
from optctl._arrays import namespace
from optctl.adjoint.gradient import Gradient
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
        solution = lq.solve(lq.LQ.from_problem(objective.problem))
        z = objective.pack(Gradient(None, None, None, us=solution.us, x0=solution.xs[0], params=None))
        xp = namespace(z)
        row = xp.stack([xp.asarray(xp.nan, z.dtype), solution.cost.astype(z.dtype)])
        status = xp.where(solution.failed_stage < 0, int(Status.SOLVED), int(Status.NOT_CONVEX))
        return Iterate(
            z, solution.cost, None, np.asarray(1), status, np.asarray(False), History(row, row, row),
            K=solution.K, k=solution.k,
        )  # fmt: skip
