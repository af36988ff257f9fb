r"""Solve the quadratic model: one call over all methods, and its exact derivative.

The solution satisfies the linear system `kkt.apply(lq, z) = kkt.right_hand_side(lq)`. So its derivative, forward or
reverse, in every leaf of the model, is the solution for another right-hand side with the factors at hand; no method is
differentiated through. That holds whichever method solves, and for derivatives of derivatives.
"""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _door, _native
from optctl._arrays import namespace, on_host
from optctl._record import record
from optctl._validate import check_choice
from optctl.lq import cg, kkt, native, parallel, riccati
from optctl.lq.model import LQ
from optctl.lq.riccati import Factors
from optctl.lq.value import value_function
from optctl.problem import Problem
from optctl.result import Result, Status

METHODS = ("auto", "native", "scan", "parallel", "cg")
NOT_CONVERGED = -2


@record()
class LQSolution(Result):
    """The solution of a quadratic model.

    Attributes:
        xs: (N+1, nx) states; None where no x_0 was asked for, as us, costates and cost.
        us: (N, nu) inputs.
        costates: (N+1, nx), dJ/dx_t = P_t x_t + p_t.
        K: (N, nu, nx) gains, u = K x + k; None with method "cg", as k, P and p.
        k: (N, nu) offsets.
        P: (N+1, nx, nx) value function's Hessian.
        p: (N+1, nx) value function's slope at the origin.
        cost: total cost.
        failed_stage: the stage where R + B'PB was not positive definite, -1 if none; earlier gains are NaN. With a free
            x_0 it is 0 where Q0 + P_0 was not. -2: conjugate gradients did not converge. `stage` is the same, or -1.
    """

    xs: Any
    us: Any
    costates: Any
    K: Any
    k: Any
    P: Any
    p: Any
    cost: Any
    failed_stage: Any

    @property
    def status(self) -> Any:
        """A `Status`: SOLVED, NOT_CONVEX, ITERATION_LIMIT (conjugate gradients), or OVERFLOW."""
        failed, xp = self.failed_stage, namespace(self.failed_stage)
        finite = True if self.cost is None else xp.isfinite(self.cost)
        status = xp.where(finite, int(Status.SOLVED), int(Status.OVERFLOW))
        status = xp.where(failed == NOT_CONVERGED, int(Status.ITERATION_LIMIT), status)
        return xp.where(failed >= 0, int(Status.NOT_CONVEX), status)

    @property
    def stage(self) -> Any:
        """The stage where the model is not convex, -1 if there is none."""
        return namespace(self.failed_stage).maximum(self.failed_stage, -1)

    @property
    def converged(self) -> Any:
        """True if the model was convex and its solution is finite."""
        return self.status == int(Status.SOLVED)

    def explanation(self) -> str:
        """Return what failed, and what to check."""
        failed, check = int(self.failed_stage), "check the signs of the weights there and later"
        if failed == 0 and self.K is not None and np.isfinite(np.asarray(self.K)).all():
            return f"Q0 + P_0, the weight of the free components of x_0, is not positive definite; {check}"
        if failed >= 0:
            return f"R + B'PB not positive definite at stage {failed}; {check}"
        if failed == NOT_CONVERGED:
            return "conjugate gradients did not converge, or the model is not convex; use another method"
        return "solved" if self else "not finite: the states overflow"

    def __repr__(self) -> str:
        if isinstance(self.failed_stage, jax.core.Tracer):
            return "LQSolution, traced"
        if np.ndim(self.status) > 0:
            return f"LQSolution: {self.message}, a batch of shape {np.shape(self.failed_stage)}"
        cost = "gains only" if self.cost is None else f"cost {float(self.cost):.10g}"
        N, nu, nx = self.K.shape if self.K is not None else (*self.us.shape, self.xs.shape[1])
        return f"LQSolution: {self.message}, {cost}, N = {N}, nx = {nx}, nu = {nu}"


def solve(lq: LQ, method: str = "auto", *, factors: Factors | None = None) -> LQSolution:
    """Solve a quadratic model in time linear in N.

    Works under `jit`, `vmap` (batches run on all cores) and `grad`; the derivative is one more solve with the same
    factors.

    Args:
        lq: the model; x_0 given, free with weights Q0, q0, or partly free.
        method: "native", compiled code; "scan", the same recursion in JAX; "parallel", O(log N) deep, for
            accelerators, R positive definite; "cg", matrix-free, no gains. "auto" takes native code on a CPU, else
            "parallel". All give the same numbers.
        factors: what `lq.factor` gave for the same A, B, Q, R, M, Qf, Q0 and x0_free; c, q, r, qf, q0 and x0 may
            differ. The solve then costs the vector sweeps only.

    Returns:
        An `LQSolution`; `failed_stage` tells where the model is not convex in u.

    Raises:
        ValueError: for an unknown method, or "native" where it is not available.

    Example:
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.LinearDynamics(A=[[1.0]], B=[[1.0]]),
        ...     oc.costs.Quadratic(Q=[[1.0]], R=[[1.0]]),
        ...     oc.costs.TerminalQuadratic(Q=[[1.0]]),
        ...     horizon=30,
        ...     x0=[1.0],
        ... )
        >>> round(float(oc.lq.solve(oc.lq.LQ.from_problem(problem)).P[0, 0, 0]), 10)
        1.6180339887

    References:
        Anderson and Moore (1990), Optimal Control: Linear Quadratic Methods, section 2.4.
    """
    _check(lq, factors)
    if method == "cg" and factors is not None:
        raise ValueError("`factors` are given, but method 'cg' uses none; leave one of them out.")
    method = _pick(method)
    lq, factors = _door.enter((lq, factors), natively=method == "native")
    return _solve_now(lq, factors) if on_host(lq.A) else _solve(lq, factors, method)


def factor(lq: LQ, method: str = "auto") -> Factors:
    """Sweep over the matrices only: gains, value function's Hessian and factors, to be used for many right-hand sides.

    A later `solve(lq, factors=...)` is differentiated in every leaf of its `lq`, as if it had made the factors itself;
    the factors' own derivatives are those of the scan.

    Args:
        lq: the model; c, q, r, qf, q0 and x0 play no part.
        method: as for `solve`, without "cg".

    Example:
        >>> import optctl as oc
        >>> lq = oc.lq.LQ([[1.0]], [[1.0]], Q=[[1.0]], R=[[1.0]], Qf=[[1.0]], x0=[1.0], horizon=3)
        >>> factors = oc.lq.factor(lq)
        >>> print(oc.lq.solve(lq.replace(x0=-lq.x0), factors=factors).us[:, 0].round(4))
        [0.6154 0.2308 0.0769]

    References:
        Anderson and Moore (1990), Optimal Control: Linear Quadratic Methods, section 2.4.
    """
    _check(lq, None)
    method = _pick(method)
    if method == "cg":
        raise ValueError("`method` is 'cg', which has no factors; expected 'auto', 'native', 'scan' or 'parallel'.")
    lq = _door.enter(lq, natively=method == "native")
    return native.factor(lq) if on_host(lq.A) else _factor(lq, method)


def _check(lq: Any, factors: Any) -> None:
    if not isinstance(lq, LQ):
        raise ValueError(f"`lq` is a {type(lq).__name__}; expected optctl.lq.LQ, such as LQ.from_problem(problem).")
    if factors is not None and not isinstance(factors, Factors):
        raise ValueError(f"`factors` is a {type(factors).__name__}; expected what optctl.lq.factor returned.")
    if factors is not None and factors.x0_free != lq.x0_free:
        raise ValueError(
            f"`factors` are of a model with free components of x_0 {factors.x0_free}; `lq` has {lq.x0_free}."
        )
    if factors is not None and factors.K.dtype != lq.A.dtype:
        raise ValueError(f"`factors` are {factors.K.dtype}, but `lq` is {lq.A.dtype}; expected the same type.")
    if factors is not None and factors.K.shape != (lq.horizon, lq.nu, lq.nx):
        raise ValueError(
            f"`factors` are of a model with K {factors.K.shape}; expected {(lq.horizon, lq.nu, lq.nx)} as of `lq`."
        )


def _pick(method: str) -> str:
    check_choice(method, "method", METHODS)
    if method == "native":
        _native.require()
    if method == "auto":
        if _native.available():
            return "native"
        return "scan" if jax.default_backend() == "cpu" else "parallel"
    return method


_MODULES: dict[str, ModuleType] = {"native": native, "scan": riccati, "parallel": parallel, "cg": cg}


@functools.partial(jax.jit, static_argnames="method")
def _factor(lq: LQ, method: str) -> Factors:
    if method != "native":
        return _MODULES[method].factor(lq.symmetrized())
    return _native_factor(lq)


@jax.custom_jvp
def _native_factor(lq: LQ) -> Factors:
    return native.factor(lq)


@_native_factor.defjvp
def _factor_tangent(primals: tuple, tangents: tuple) -> tuple:
    factors = _native_factor(*primals)
    return factors, jax.jvp(lambda lq: riccati.factor(lq.symmetrized()), primals, tangents)[1]


def module_of(method: str) -> ModuleType:
    """Return the module that holds the sweeps of a method."""
    return _MODULES[_pick(method)]


def _as_read(lq: LQ, method: str) -> LQ:
    """Return the model as a method is to be given it: the kernels take symmetric parts themselves, while loading."""
    return lq if method == "native" else lq.symmetrized()


@functools.partial(jax.jit, static_argnames="method")
def _solve(lq: LQ, factors: Factors | None, method: str) -> LQSolution:
    still = jax.lax.stop_gradient(_as_read(lq, method))
    lq = lq.symmetrized()
    if factors is None and method != "cg":
        factors = _MODULES[method].factor(still)
    factors = jax.lax.stop_gradient(factors)

    z, (k, p) = _solve_system(lq, still, factors, kkt.right_hand_side(lq), method)
    cost = kkt.cost(lq, z.xs, z.us)
    if factors is None:
        failed = jnp.where(jnp.all(jnp.isfinite(z.us)), -1, NOT_CONVERGED)
        return LQSolution(z.xs, z.us, z.costates, None, None, None, None, cost, failed)
    k, p = jax.lax.stop_gradient((k, p))
    K, k, P, p = value_function(lq, factors.K, k, factors.P, p)
    return LQSolution(z.xs, z.us, z.costates, K, k, P, p, cost, factors.failed_stage)


def _solve_now(lq: LQ, factors: Factors | None) -> LQSolution:
    """Solve by the kernels from NumPy's arrays to NumPy's: what `_solve` does besides is for derivatives."""
    factors = native.factor(lq) if factors is None else factors
    z, k, p = native.sweep(lq, factors, kkt.right_hand_side(lq))
    cost = kkt.cost(lq, z.xs, z.us)
    return LQSolution(z.xs, z.us, z.costates, factors.K, k, factors.P, p, cost, factors.failed_stage)


def _solve_system(lq: LQ, still: LQ, factors: Any, b: kkt.Point, method: str) -> tuple[kkt.Point, tuple[Any, Any]]:
    """Solve kkt.apply(lq, z) = b by the sweeps over `still`, the same model without derivatives; return z and k, p."""

    def system(z: Any) -> Any:
        return kkt.apply(lq, kkt.Point.unpack(z, lq)).pack()

    def solve(_: Any, b: Any) -> tuple[Any, Any]:
        z, k, p = _MODULES[method].sweep(still, factors, kkt.Point.unpack(b, lq))
        return z.pack(), (k, p)

    z, aux = jax.lax.custom_linear_solve(system, b.pack(), solve, symmetric=True, has_aux=True)
    return kkt.Point.unpack(z, lq), aux


def solve_system(lq: LQ, factors: Factors, b: kkt.Point) -> kkt.Point:
    """Solve the optimality system of a model with symmetric weights for any right-hand side.

    It is linear in b, and JAX can transpose it.
    """
    return _solve_system(lq, jax.lax.stop_gradient(lq), factors, b, _pick("auto"))[0]


def covariances(model: LQ | Problem, solution: LQSolution | None = None) -> Any:
    """Return (N+1, nx, nx), covariances of the states if the cost is a negative log density.

    With a free x_0 its covariance is (Q0 + P_0)^{-1}; under the optimal feedback the inputs scatter around
    K x + k with covariance S^{-1} = (R + B'PB)^{-1}, so Sigma_{t+1} = (A + BK) Sigma_t (A + BK)' + B S^{-1} B'.
    For a smoothing problem these are the smoother's covariances.

    Args:
        model: a linear-quadratic problem, such as `smoothing_problem` makes, or its `LQ` model.
        solution: what `lq.solve` gave for that model; None solves it.

    Example:
        >>> import optctl as oc
        >>> problem = oc.smoothing_problem(oc.problems.local_level(1.0, 1.0, 1.0), [1.0, 2.0, 3.0])
        >>> print((13 * oc.lq.covariances(problem)[:, 0, 0]).round(9))
        [5. 6. 8.]
    """
    lq = LQ.from_problem(model) if isinstance(model, Problem) else model
    if not isinstance(lq, LQ) or not isinstance(solution, LQSolution | None):
        got = f"{type(model).__name__} and {type(solution).__name__}"
        raise ValueError(
            f"`model` and `solution` are {got}; expected a Problem or LQ, and what lq.solve returned, or None."
        )
    solution = solve(lq) if solution is None else solution
    got, expected = np.shape(solution.K), (lq.horizon, lq.nu, lq.nx)
    if got != expected:
        what = "has no gains (method 'cg')" if solution.K is None else f"has gains K {got}; expected {expected}"
        raise ValueError(f"`solution` {what}; pass what lq.solve returned for this model.")
    return _covariances(*_door.enter((lq, solution)))


@_door.compiled()
def _covariances(lq: LQ, solution: LQSolution) -> Any:
    xp, lq, P = namespace(lq.A), lq.symmetrized().per_stage(), solution.P
    if on_host(lq.A) and solution.failed_stage != -1:
        return np.full_like(P, np.nan)
    Bt = lq.B.swapaxes(1, 2)
    scatter = lq.B @ xp.linalg.solve(lq.R + Bt @ P[1:] @ lq.B, Bt)
    is_free = xp.asarray(lq.x0_free)
    both = is_free[:, None] & is_free[None, :]
    Sigma0 = xp.where(both, xp.linalg.inv(xp.where(both, lq.Q0 + P[0], xp.eye(lq.nx, dtype=P.dtype))), 0.0)
    spread = native.spread if on_host(lq.A) else riccati.spread
    return xp.where(solution.failed_stage == -1, spread(lq.A + lq.B @ solution.K, scatter, Sigma0), xp.nan)
