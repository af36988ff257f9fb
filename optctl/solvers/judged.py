"""A solution judged on the host by a computation of its own: neither tapes, kernels nor XLA have a part in it."""

from typing import Any

import numpy as np

from optctl._arrays import on_host
from optctl._record import changed
from optctl._validate import is_concrete
from optctl.judge.culprit import culprit
from optctl.judge.independent import Verdict, can_judge, judge
from optctl.judge.interpreter import Uninterpreted
from optctl.problem import Problem
from optctl.result import Status
from optctl.solution import Certificate, Solution

NAMED = 2
"""How many disagreements a message names."""
FLAT = (
    "the first-order conditions hold, second-order ones do not: a saddle point, a maximum, or one of several optima"
    " (so there are no gains K)"
)


def judged(problem: Problem, solution: Solution) -> Solution:
    """Return a solution with the figures that NumPy finds, with status DISAGREEMENT where it refutes what is claimed.

    A point that claims to be no solution is judged, too, but for its slopes. Where inf or NaN ended the solve, the
    function that made it is named. Under `jit` and `vmap`, and where the check cannot be made (`can_judge`), the
    solution stays as it is, and `checked` is empty.
    """
    if not (on_host(solution.xs) or is_concrete((problem, solution))) or np.ndim(solution.status):
        return solution
    status = Status(int(solution.status))
    if status is Status.NON_FINITE:
        return changed(solution, note=culprit(problem, solution.xs, solution.us, solution.params))
    if not can_judge(problem, solution):
        return solution
    solved = status is Status.SOLVED
    if not (solved or all(np.isfinite(value).all() for value in (solution.cost, solution.xs, solution.us))):
        return solution
    try:
        found = judge(problem, solution, solution.free, slopes=solved)
    except Uninterpreted:
        return solution
    by = "NumPy" + "".join(f", `{name}` by JAX" for name in sorted(found.by_jax))
    if found.disagreements:
        note = "; ".join(map(str, found.disagreements[:NAMED]))
        no, failed = np.asarray(False), np.asarray(int(Status.DISAGREEMENT))
        return changed(solution, status=failed, converged=no, note=note, checked=by)
    note = FLAT if solved and solution.K is not None and np.isnan(solution.K).any() else ""
    return changed(solution, certificate=_with_figures(solution.certificate, found), checked=by, note=note)


def _with_figures(certificate: Certificate, found: Verdict) -> Certificate:
    """Return the certificate with what was found apart from the solver, the scaled figures by the same factor."""
    made: dict[str, Any] = {}
    for name in ("primal_feasibility", "dual_feasibility", "complementarity"):
        claimed, own = float(getattr(certificate, name)), getattr(found, name)
        made[name] = np.asarray(own)
        if own > claimed > 0:
            made[f"{name}_scaled"] = np.asarray(float(getattr(certificate, f"{name}_scaled")) * own / claimed)
    return changed(certificate, **made)
