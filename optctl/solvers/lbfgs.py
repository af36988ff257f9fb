"""SciPy's L-BFGS-B on the costate gradient: the workhorse for many unknowns and for bounds.

The iterations run on the host; each evaluation is one compiled call of the gradient engine.

Reference: Byrd, Lu, Nocedal and Zhu (1995), SIAM Journal on Scientific Computing 16.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from optctl._arrays import namespace, on_host
from optctl._door import compiled
from optctl._validate import keep_whole, runs_now
from optctl.result import Status
from optctl.solution import History
from optctl.solvers.iterate import Iterate
from optctl.solvers.method import Method, method
from optctl.solvers.objective import Objective, projected_gradient, scaled_stationarity

MEMORY = 20


@method(static=("max_iterations",))
class LBFGS(Method):
    """SciPy's L-BFGS-B on the costate gradient: `oc.solve(problem, method=oc.LBFGS(max_iterations=50))`.

    Args:
        max_iterations: limit.

    Raises:
        ValueError: for a limit that is no whole number; from `solve` under `jit` or `vmap`, since it runs on the host.

    Example:
        >>> import optctl as oc
        >>> oc.solve(oc.problems.cartpole_push(), method=oc.LBFGS(max_iterations=3)).iterations.item()
        3
    """

    name = "lbfgs"
    summary = "SciPy's L-BFGS-B; takes bounds on us and x0"
    takes = "bounds"
    on_host = True

    max_iterations: int = 10_000

    def __post_init__(self) -> None:
        keep_whole(self, "max_iterations", least=0)

    def run(self, objective: Objective, tolerance: Any, us: Any, xs: Any) -> Iterate:
        """Minimize from the guess."""
        z = objective.pack(objective)
        if not runs_now((objective, z)):
            raise ValueError(
                "method 'lbfgs' runs on the host; under jit or vmap use 'newton_cg' or 'gradient_descent'. No iterative"
                " method is differentiated through: the costates and multipliers of a solution are its sensitivities."
            )
        return lbfgs(objective, z, tolerance=float(tolerance), max_iterations=int(self.max_iterations))


@compiled()
def _evaluate(objective: Objective, z: Any, first_cost: Any) -> tuple[Any, Any, Any]:
    cost, slope, size = objective.measure(z, first_cost)
    lower, upper = objective.bounds()
    return cost, slope, scaled_stationarity(z, projected_gradient(z, slope, lower, upper), size)


class _ReachedError(Exception):
    """Raised out of SciPy's loop once an evaluated point meets the tolerance."""


@functools.cache
def _blas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return what gets and what sets the number of threads of SciPy's BLAS; None where it is not an OpenBLAS."""
    import scipy.linalg.cython_blas

    library = ctypes.CDLL(scipy.linalg.cython_blas.__file__)
    for name in ("scipy_openblas", "openblas"):
        if hasattr(library, f"{name}_set_num_threads"):
            return getattr(library, f"{name}_get_num_threads"), getattr(library, f"{name}_set_num_threads")
    return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let SciPy's BLAS compute by one thread: products of 20 numbers wait for each other 200 times longer otherwise."""
    blas = _blas()
    before = 1 if blas is None else blas[0]()
    if blas is None or before == 1:
        yield
        return
    blas[1](1)
    try:
        yield
    finally:
        blas[1](before)


def lbfgs(objective: Objective, z: Any, *, tolerance: float, max_iterations: int) -> Iterate:
    """Minimize J from z within bounds by L-BFGS-B."""
    dtype, host, xp = z.dtype, on_host(z), namespace(z)
    lower, upper = (np.asarray(side, dtype=np.float64) for side in objective.bounds())
    z = np.clip(np.asarray(z, dtype=np.float64), lower, upper)
    best: dict[str, Any] = {"cost": np.inf, "z": z}
    last: dict[str, Any] = {}  # the last finite point
    base: dict[str, Any] = {}  # the last iterate, where the line search starts
    first_cost = np.asarray(np.nan, dtype)
    rows: list[tuple[float, float, float]] = []
    met_nonfinite = False

    def evaluate(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal first_cost, met_nonfinite
        at = z.astype(dtype) if host else jnp.asarray(z, dtype)
        cost, slope, stationarity = (np.asarray(a) for a in _evaluate(objective, at, first_cost))
        if not (np.isfinite(cost) and np.isfinite(slope).all()):
            met_nonfinite = True
            if np.isinf(best["cost"]):
                raise _ReachedError  # not even the first point can be evaluated
            # A wall that rises from the last iterate as fast as the cost falls there: the line search, which
            # interpolates between the two, comes back by a fraction of the step.
            with np.errstate(over="ignore"):
                fall = abs(float(base["slope"] @ (z - base["z"])))
            return min(base["cost"] + max(fall, 1e-10 * abs(base["cost"])), 1e300), -base["slope"]
        first_cost = cost if np.isnan(first_cost) else first_cost
        last.update(cost=float(cost), z=z.copy(), slope=slope.astype(np.float64))
        if cost <= best["cost"]:
            best.update(cost=cost, z=z.copy(), slope=slope, stationarity=stationarity)
            if stationarity <= tolerance:
                raise _ReachedError
        return float(cost), slope.astype(np.float64)

    def note(*_: Any) -> None:
        base.update(last)
        step = np.linalg.norm(best["z"] - best.get("noted", best["z"]))
        best["noted"] = best["z"]
        rows.append((float(best["cost"]), float(best["stationarity"]), float(step)))

    import scipy.optimize

    options = {"maxiter": max_iterations, "maxfun": 20 * max_iterations, "maxcor": MEMORY, "ftol": 0.0, "gtol": 0.0}
    bounded = np.isfinite(lower).any() or np.isfinite(upper).any()
    limits = scipy.optimize.Bounds(lower, upper) if bounded else None
    status = Status.STALLED
    try:
        if max_iterations > 0:
            evaluate(z)
            note()
            while status is Status.STALLED:
                before, met_nonfinite = best["cost"], False
                options["maxiter"] = max_iterations - len(rows) + 1
                with one_thread():
                    scipy.optimize.minimize(
                        evaluate, best["z"], jac=True, method="L-BFGS-B", bounds=limits, options=options, callback=note
                    )
                status = Status.ITERATION_LIMIT if len(rows) > max_iterations else Status.STALLED
                # A line search that ends at a wall leaves a spoiled memory; begin anew while that helps.
                if not (met_nonfinite and best["cost"] < before - 1e-6 * abs(before)):
                    break
        else:
            evaluate(z)
            status = Status.ITERATION_LIMIT
    except _ReachedError:
        status = Status.SOLVED
    if "slope" not in best:
        best.update(cost=np.nan, slope=np.full_like(z, np.nan), stationarity=np.nan)
        status = Status.NON_FINITE
    elif status is Status.STALLED and met_nonfinite:
        status = Status.NON_FINITE
    if not rows or rows[-1][0] != best["cost"]:
        note()
    cost_rows, stationarity_rows, step_rows = (xp.asarray(column, dtype) for column in zip(*rows, strict=True))
    return Iterate(
        z=xp.asarray(best["z"], dtype),
        cost=xp.asarray(best["cost"], dtype),
        slope=xp.asarray(best["slope"], dtype),
        iterations=xp.asarray(len(rows) - 1),
        status=xp.asarray(int(status)),
        running=xp.asarray(False),
        history=History(cost_rows, stationarity_rows, step_rows),
    )
