"""A problem with its first guess and the optimum that closed forms or several independent solvers agree on."""

from typing import Any

from optctl._record import record
from optctl.problem import Problem
from optctl.solution import Solution
from optctl.solvers.solve import solve


@record(static=("free",))
class KnownProblem:
    """A problem whose optimal cost is known.

    Attributes:
        problem: the problem.
        optimum: its optimal cost; of the continuous problem, where there is one.
        us: (N, nu) first guess of the inputs, or None.
        xs: (N+1, nx) first guess of the states, or None.
        free: what is free, as `solve` takes it, or None.
    """

    problem: Problem
    optimum: Any
    us: Any = None
    xs: Any = None
    free: tuple[str, ...] | None = None

    def solve(self, method: Any = "interior_point", **options: Any) -> Solution:
        """Solve from the first guess.

        Args:
            method: as for `optctl.solve`.
            **options: as for `optctl.solve`.

        Example:
            >>> import optctl as oc
            >>> known = oc.problems.least_energy()
            >>> print(float(known.solve().cost).__round__(9), known.optimum)
            6.0 6.0
        """
        return solve(self.problem, self.us, method, xs=self.xs, free=self.free, **options)
