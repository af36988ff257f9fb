"""What the compiled solvers carry from iteration to iteration."""

from typing import Any

import numpy as np

from optctl._arrays import namespace, put
from optctl._record import record
from optctl.result import Status
from optctl.solution import History


@record()
class Iterate:
    """A point, and how the solver came there.

    Attributes:
        z: the free variables.
        cost: J(z).
        slope: dJ/dz.
        iterations: number of iterations so far.
        status: a `Status`; SOLVED stands for "stopped by the tolerance" until the certificate is computed.
        running: False once the solver has stopped.
        history: a `History` with room for all iterations.
        xs: (N+1, nx) states under feedback, where the solver has them.
        costates: (N+1, nx) that go with them.
        K: (N, nu, nx) gains of the policy u = K x + k there, where the solver has them,
        k: (N, nu) and its offsets.
    """

    z: Any
    cost: Any
    slope: Any
    iterations: Any
    status: Any
    running: Any
    history: History
    xs: Any = None
    costates: Any = None
    K: Any = None
    k: Any = None


def start(z: Any, cost: Any, slope: Any, stationarity: Any, max_iterations: int, tolerance: Any) -> Iterate:
    """Return the first iterate with an empty history."""
    xp = namespace(z)
    empty = xp.full(max_iterations + 1, np.nan, z.dtype)
    history = History(*[put(empty, 0, value) for value in (cost, stationarity, 0.0)])
    finite = xp.isfinite(cost) & xp.all(xp.isfinite(slope))
    status = xp.where(finite, int(Status.ITERATION_LIMIT), int(Status.NON_FINITE))
    status = xp.where(finite & (stationarity <= tolerance), int(Status.SOLVED), status)
    return Iterate(z, cost, slope, xp.asarray(0), status, status == int(Status.ITERATION_LIMIT), history)


def advance(
    old: Iterate, z: Any, cost: Any, slope: Any, *, stationarity: Any, step: Any, status: Any, tolerance: Any
) -> Iterate:
    """Return the next iterate; a status other than ITERATION_LIMIT stops the solver.

    A point with a non-finite cost or slope is not taken: the old one stays, and the status says so.
    """
    xp, i = namespace(z), old.iterations + 1
    finite = xp.isfinite(cost) & xp.all(xp.isfinite(slope))
    status = xp.where(finite, status, int(Status.NON_FINITE))
    status = xp.where(finite & (stationarity <= tolerance), int(Status.SOLVED), status)
    history = History(
        put(old.history.cost, i, cost),
        put(old.history.stationarity, i, stationarity),
        put(old.history.step, i, step),
    )
    keep = lambda new, old: xp.where(finite, new, old)  # noqa: E731
    return Iterate(
        keep(z, old.z), keep(cost, old.cost), keep(slope, old.slope), i, status,
        status == int(Status.ITERATION_LIMIT), history,
    )  # fmt: skip
