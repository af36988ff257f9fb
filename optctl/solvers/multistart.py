"""Many first guesses at once, and the best of their solutions."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from optctl._arrays import to_device
from optctl._record import changed, record
from optctl._validate import as_float, as_seed, as_whole, check_kind
from optctl.engine.native import find_engine
from optctl.problem import Problem, once
from optctl.result import Result
from optctl.solution import Solution
from optctl.solvers.solve import solve


@record()
class Multistart(Result):
    """Solutions from many guesses.

    Attributes:
        best: the converged `Solution` of least cost (of the least violation, if none converged).
        all: the batch of all solutions, along axis 0.
        optima: costs of the distinct optima found, in rising order, to six digits.
        counts: how many guesses led to each.
    """

    best: Solution
    all: Solution
    optima: Any
    counts: Any

    @property
    def status(self) -> Any:
        """The `Status` of the best one."""
        return self.best.status

    @property
    def stage(self) -> Any:
        """That of the best one."""
        return self.best.stage

    @property
    def converged(self) -> Any:
        """True if one of them converged."""
        return self.best.converged

    def explanation(self) -> str:
        """Return what the best one says, and how many converged."""
        return f"{int(np.sum(self.counts))} of {len(self.all.cost)} converged; the best: {self.best.message}"

    def __repr__(self) -> str:
        found = ", ".join(f"{cost:.6g} ({n} x)" for cost, n in zip(self.optima, self.counts, strict=True))
        return (
            f"Multistart: {int(np.sum(self.counts))} of {len(self.all.cost)} converged; optima {found}\n{self.best!r}"
        )


def multistart(
    problem: Problem,
    us: Any,
    *,
    xs: Any = None,
    guesses: int | None = None,
    spread: Any = 1.0,
    seed: int = 0,
    method: Any = "interior_point",
    **options: Any,
) -> Multistart:
    """Solve a problem from many guesses: on all cores by compiled code, or in one call that XLA compiles.

    Args:
        problem: the problem.
        us: (k, N, nu) guesses of the inputs; or one, (N, nu), around which `guesses` are drawn.
        xs: (k, N+1, nx) guesses of the states, or (N+1, nx) for all; None rolls out the inputs.
        guesses: how many to draw around one guess of the inputs, that one included.
        spread: standard deviation of the draws, a number or (nu,).
        seed: of the draws.
        method: as for `solve`, one that runs under `vmap`.
        **options: for `solve`.

    Returns:
        A `Multistart`.

    Raises:
        ValueError: for wrong shapes, or as `solve`.

    Example:
        >>> import numpy as np
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.LinearDynamics([[1.0]], [[1.0]]),
        ...     lambda x, u: 0.1 * u @ u,
        ...     lambda x: (x[0] ** 2 - 1) ** 2 + 0.1 * x[0],
        ...     horizon=1,
        ...     x0=[0.0],
        ... )
        >>> oc.multistart(problem, np.zeros((1, 1)), guesses=8).optima.round(4).tolist()
        [-0.0006, 0.1943]
    """
    check_kind(problem, Problem, "problem", "optctl.Problem")
    N, nu = problem.steps, problem.dynamics.nu
    us = np.asarray(as_float(us, "us"))
    if us.ndim == 2:
        many = as_whole(8 if guesses is None else guesses, "guesses")
        noise = _spread(spread, us.shape[1]) * np.random.default_rng(as_seed(seed)).normal(size=(many, *us.shape))
        noise[0] = 0.0
        us = us + noise
    elif guesses is not None:
        raise ValueError("`guesses` are to be drawn around one guess us (N, nu), but several are given; leave it out.")
    us = as_float(us, "us", (None, N, nu))
    if not len(us):
        raise ValueError("`us` holds no guesses; expected at least one.")
    if xs is not None:
        xs = as_float(xs, "xs")
    several = xs is not None and xs.ndim == 3

    def one(k: int) -> Solution:
        return solve(problem, us[k], method, xs=xs[k] if several else xs, **options)

    every: Any
    if _on_host(problem, us[0], options):
        first = one(0)  # which makes what all need
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            solutions = [first, *pool.map(one, range(1, len(us)))]
        every = _side_by_side(solutions)
    else:
        axes = 0, 0 if several else None
        solutions, (us, xs) = None, to_device((us, xs))
        every = jax.vmap(lambda us, xs: solve(problem, us, method, xs=xs, **options), axes)(us, xs)
    good = np.asarray(every.converged)
    cost = np.where(good, np.asarray(every.cost), np.inf)
    pick = int(np.argmin(cost)) if good.any() else int(np.argmin(np.asarray(every.certificate.primal_feasibility)))
    best = jax.tree.map(lambda leaf: leaf[pick], every) if solutions is None else solutions[pick]
    optima, counts = _distinct(np.sort(cost[good]))
    return Multistart(best, every, optima, counts)


def _on_host(problem: Problem, us: Any, options: dict[str, Any]) -> bool:
    """True if compiled code evaluates the problem from the host.

    Raises:
        ValueError: where shapes do not fit, or parameters are missing.
    """
    params, x0 = options.get("params"), options.get("x0")
    problem = problem if params is None else problem.replace(params=params)
    x0 = problem.x0 if x0 is None else as_float(x0, "x0")
    if x0 is None and problem.dynamics.nx is None:
        return False  # `solve` says what is missing
    x0 = np.zeros(problem.dynamics.nx) if x0 is None else x0
    at = problem, us, x0
    once(("shapes", at), lambda: jax.eval_shape(lambda p, us, x0: p.check_shapes(x0, us, p.params), *at))
    return find_engine(problem, us, x0, problem.params) is not None


def _side_by_side(solutions: list[Solution]) -> Solution:
    """Return a batch of solutions; those that did not converge cost NaN there, and short histories end in NaN."""
    most = max([len(solution.history.cost) for solution in solutions])

    def padded(solution: Solution) -> Solution:
        def longer(column: Any) -> Any:
            return np.concatenate([column, np.full(most - len(column), np.nan)])

        cost = solution.cost if solution.converged else np.full_like(solution.cost, np.nan)
        return changed(solution, cost=cost, history=jax.tree.map(longer, solution.history))

    return jax.tree.map(lambda *leaves: np.stack(leaves), *[padded(solution) for solution in solutions])


def _spread(spread: Any, nu: int) -> np.ndarray:
    """Return the standard deviations of the draws, or raise where they are not some."""
    spread = np.asarray(as_float(spread, "spread"))
    if spread.shape not in ((), (nu,)) or (spread < 0).any():
        raise ValueError(f"`spread` is {spread}; expected a number >= 0, or ({nu},) of them.")
    return spread


def _distinct(costs: Any) -> tuple[Any, Any]:
    """Group rising costs that agree to six digits."""
    scale = max(1e-12, np.abs(costs).max(initial=0.0))
    new = np.diff(costs, prepend=-np.inf) > 1e-6 * scale
    return costs[new], np.diff(np.append(np.flatnonzero(new), len(costs)))
