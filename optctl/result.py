"""How a computation ended: one enumeration for all results of the library."""

import enum


class Status(enum.IntEnum):
    """Why a solve ended; the value is what compiled code carries."""

    SOLVED = 0
    ITERATION_LIMIT = 1
    STALLED = 2
    NON_FINITE = 3
    NOT_CONVEX = 4
    UNBOUNDED = 5
    INFEASIBLE = 6
    TIME_LIMIT = 7

    @property
    def message(self) -> str:
        """Cause and remedy in one sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.SOLVED: "solved: the certificate holds",
    Status.ITERATION_LIMIT: "iteration limit reached before the tolerance; raise max_iterations, try another method,"
    " or scale inputs and costs to similar sizes",
    Status.STALLED: "no further decrease found before the tolerance; rounding limits the cost, or its gradient is not"
    " smooth: check_gradient(problem, us) tells which; a looser tolerance may be all that is possible; where"
    " constraints are violated, start from another guess",
    Status.NON_FINITE: "met inf or NaN and kept the last finite iterate; the dynamics leave their domain or diverge:"
    " start from other inputs, add bounds, shorten the step dt, or keep the model defined outside its domain",
    Status.NOT_CONVEX: "the quadratic problem is not strictly convex in the inputs (R + B'PB is singular or has a"
    " negative eigenvalue): check the signs of Q, R and the terminal weight, and give every input a small R > 0",
    Status.INFEASIBLE: "locally infeasible: from here no small change lowers the violation of the constraints; loosen"
    " the bounds, lengthen the horizon, or start from another guess",
    Status.TIME_LIMIT: "time limit reached before the tolerance; allow more time, or start closer",
    Status.UNBOUNDED: "the cost falls without bound; check its signs, or bound the inputs",
}
