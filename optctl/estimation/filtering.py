"""Kalman filter, smoother and log-likelihood: one call each over all methods, and their exact derivatives.

The covariance form runs first, and measures what rounding does to it (`kalman.rounding`). Where half of the digits of a
result are lost, since a prior or the process noise is vague beside the measurements, the square-root form gives the
answer: here for JAX's methods (`_sturdy`), in `native/estimate.cpp` for the compiled ones.

The derivative of the log-likelihood is one backward sweep (`kalman.score`, `square_root.score`), whichever method runs.
Filter and smoother are differentiated as their definitions in `kalman.py`; so are derivatives of derivatives. Where the
definition has lost its digits, these are NaN.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _door, _native
from optctl._arrays import namespace, on_host, to_device
from optctl._linear import inner
from optctl._record import record
from optctl._validate import check_choice, check_flag, is_concrete
from optctl.estimation import kalman, native, parallel, square_root
from optctl.estimation.kalman import LOST_DIGITS, NOT_FINITE, SINGULAR, Series
from optctl.estimation.linear_gaussian import LinearGaussian
from optctl.estimation.measurements import check_series, series_of, slopes_of_data
from optctl.result import Result, Status

METHODS = ("auto", "native", "scan", "parallel")
STATUS = {SINGULAR: Status.SINGULAR, NOT_FINITE: Status.OVERFLOW, LOST_DIGITS: Status.LOST_DIGITS}


@record(static=("given",))
class Posterior(Result):
    """Moments of the states given measurements.

    Attributes:
        means: (N+1, nx) of x_t given y_0..y_t (filter) or y_0..y_N (smoother).
        covs: (N+1, nx, nx).
        log_likelihood: log p(y_0..y_N).
        status: a `Status`: SOLVED; SINGULAR, an innovation covariance C P C' + V is; OVERFLOW, a covariance or the
            log-likelihood is not finite; LOST_DIGITS, a smoothed covariance has lost its digits, and is NaN. After a
            failure of the filter all that follows is NaN.
        failed_stage: where it failed, -1 if nowhere.
        predicted_means: (N+1, nx) of x_t given y_0..y_{t-1}; None from the smoother.
        predicted_covs: (N+1, nx, nx); None from the smoother.
        lag_one_covs: (N, nx, nx) covariance of x_{t+1} with x_t; None from the filter.
        costates: (N+1, nx) dJ/dx_t of smoothing as control, J = -log p(x, y); None from the filter.
        given: "past" (filter) or "all" (smoother).
    """

    means: Any
    covs: Any
    log_likelihood: Any
    status: Any
    failed_stage: Any
    predicted_means: Any = None
    predicted_covs: Any = None
    lag_one_covs: Any = None
    costates: Any = None
    given: str = "past"

    @property
    def converged(self) -> Any:
        """True if nothing failed."""
        return self.status == Status.SOLVED

    @property
    def stage(self) -> Any:
        """The stage that failed, -1 if none."""
        return self.failed_stage

    @property
    def stds(self) -> Any:
        """(N+1, nx) standard deviations."""
        xp = namespace(self.covs)
        return xp.sqrt(xp.diagonal(self.covs, axis1=-2, axis2=-1))

    def explanation(self) -> str:
        """Cause and remedy."""
        return _explain(int(self.status), int(self.stage))

    def __repr__(self) -> str:
        kind = "filtered" if self.given == "past" else "smoothed"
        if np.ndim(self.status):
            many = int(np.sum(np.asarray(self.converged)))
            return (
                f"Posterior: {many} of {np.size(self.status)} solved, {kind}, a batch of shape {np.shape(self.status)}"
            )
        n, nx = self.means.shape
        ended = "solved" if self.converged else self.message
        return f"Posterior: {ended}; {kind}, {n} times, nx = {nx}, log-likelihood {float(self.log_likelihood):.10g}"


def kalman_filter(
    model: LinearGaussian, ys: Any, us: Any = None, *, method: str = "auto", square_root: bool = False
) -> Posterior:
    """Filter a time series: the moments of x_t given y_0..y_t.

    m <- m + L (y - C m - D u), L = P C'(C P C' + V)^{-1}, then m <- A m + B u + c, P <- A P A' + W. The first
    measurement updates the prior of x_0. W and V may be singular.

    Args:
        model: the state-space model.
        ys: (N+1, ny) measurements, NaN where a component is missing; (N+1,) is taken as ny = 1.
        us: (N, nu) or (N+1, nu) known inputs, where the model has any (the last row matters only for D).
        method: "native", compiled code; "scan", the textbook recursion in JAX; "parallel", O(log N) deep, for
            accelerators, where C W C' + V must not be singular. "auto" takes native code on a CPU, else "parallel". All
            give the same numbers.
        square_root: propagate triangular factors of the covariances from the start, at two to four times the time;
            without it they take over where covariances have lost half of their digits. Not with method "parallel".

    Returns:
        A `Posterior`. Works under `jit`, `vmap` (batches run on all cores) and `grad`.

    Raises:
        ValueError: for shapes that do not fit, inf in ys, an unknown method.

    Example:
        >>> import optctl as oc
        >>> model = oc.LinearGaussian([[1.0]], [[1.0]], [[1.0]], [[1.0]], [0.0], [[1.0]])
        >>> print(oc.kalman_filter(model, [1.0, 2.0, 3.0]).means[:, 0].round(6))
        [0.5      1.4      2.384615]

    References:
        Anderson and Moore (1979), Optimal Filtering, section 5.2.
    """
    return _filter(*_prepared(model, ys, us, method, square_root))


def kalman_smoother(
    model: LinearGaussian, ys: Any, us: Any = None, *, method: str = "auto", square_root: bool = False
) -> Posterior:
    """Smooth a time series: the moments of x_t given all of y_0..y_N, with covariances and lag-one covariances.

    Args:
        model: the state-space model.
        ys: (N+1, ny) measurements, NaN where a component is missing; (N+1,) is taken as ny = 1.
        us: (N, nu) or (N+1, nu) known inputs, where the model has any.
        method: as for `kalman_filter`.
        square_root: as for `kalman_filter`.

    Returns:
        A `Posterior`. Works under `jit`, `vmap` (batches run on all cores) and `grad`.

    Raises:
        ValueError: as `kalman_filter`.

    Example:
        >>> import optctl as oc
        >>> model = oc.LinearGaussian([[1.0]], [[1.0]], [[1.0]], [[1.0]], [0.0], [[1.0]])
        >>> post = oc.kalman_smoother(model, [1.0, 2.0, 3.0])
        >>> print((13 * post.means[:, 0]).round(9), (13 * post.lag_one_covs[:, 0, 0]).round(9))
        [12. 23. 31.] [2. 3.]

    References:
        Bryson and Frazier (1963), Smoothing for linear and nonlinear dynamic systems; de Jong (1989), Smoothing and
        interpolation with the state-space model.
    """
    return _smoother(*_prepared(model, ys, us, method, square_root))


def log_likelihood(
    model: LinearGaussian, ys: Any, us: Any = None, *, method: str = "auto", square_root: bool = False
) -> Any:
    """Return log p(y_0..y_N) of a time series, a scalar.

    Its gradient in every matrix of the model, mean0, cov0, ys and us is exact and costs one backward sweep, however
    vague the prior or precise the measurements; second derivatives are those of the covariance form, NaN where that has
    lost its digits.

    Args:
        model: the state-space model.
        ys: (N+1, ny) measurements, NaN where a component is missing; (N+1,) is taken as ny = 1.
        us: (N, nu) or (N+1, nu) known inputs, where the model has any.
        method: as for `kalman_filter`.
        square_root: as for `kalman_filter`.

    Raises:
        ValueError: as `kalman_filter`.
        RuntimeError: if an innovation covariance is singular or not finite, naming the stage; under `jit` or `vmap`,
            where nothing can be raised, the result is NaN and `kalman_filter(...)` tells.

    Example:
        >>> import jax
        >>> import optctl as oc
        >>> model = oc.LinearGaussian([[1.0]], [[1.0]], [[1.0]], [[1.0]], [0.0], [[1.0]])
        >>> ys = [1.0, 2.0, 3.0]
        >>> round(float(oc.log_likelihood(model, ys)), 9)
        -5.231597971
        >>> print(jax.grad(oc.log_likelihood)(model, ys).W.round(6))
        [[0.12426]]

    References:
        Schweppe (1965), Evaluation of likelihood functions for Gaussian signals; Koopman and Shephard (1992), Exact
        score for time series models in state space form.
    """
    given = _prepared(model, ys, us, method, square_root)
    value, failure = (_evaluate if on_host(given[1]) else _log_likelihood)(*given)
    if is_concrete(failure) and int(np.max(np.asarray(failure))) >= 0:
        code = int(np.max(np.asarray(failure)))
        raise RuntimeError(f"log_likelihood failed: {_explain(int(STATUS[code % 4]), code // 4)}")
    return value


def _explain(status: int, stage: int) -> str:
    if status == Status.SOLVED:
        return Status.SOLVED.message
    if status == Status.SINGULAR:
        return (
            f"the innovation covariance C P C' + V is singular at stage {stage}: two measurements repeat each other, or"
            " nothing is uncertain there. Add measurement noise V, or remove one of them."
        )
    if status == Status.LOST_DIGITS:
        return (
            f"the smoothed covariance at stage {stage} lost its digits, also by square roots: the prior is vague, the"
            " model forgets its past, and little noise drives it. A less vague prior or more process noise W helps."
        )
    where = f"the covariance of the state is not finite at stage {stage}" if stage >= 0 else "the result is not finite"
    return (
        f"{where}: it overflows, since the model is unstable and too little is measured, or numbers of the model or"
        " the data are too large, or W, V or cov0 has a negative eigenvalue."
    )


def _prepared(model: LinearGaussian, ys: Any, us: Any, method: str, square_root: bool) -> tuple:
    """Return model, ys, us and the method that is to run on them."""
    ys, us = check_series(model, ys, us)
    method = _pick(method, square_root, model.ny)
    return *_door.enter((model, ys, us), natively=method.endswith("native")), method


def _pick(method: str, square_root: bool, ny: int) -> str:
    check_choice(method, "method", METHODS)
    check_flag(square_root, "square_root")
    roots = square_root and ny > 0  # nothing is measured: nothing to take roots of
    if method == "parallel" and roots:
        raise ValueError("`square_root` has no parallel form; use method='native' or 'scan'.")
    if method == "native":
        _native.require()
    if method == "auto":
        cpu = jax.default_backend() == "cpu"
        method = "native" if _native.available() else "scan" if cpu or roots else "parallel"
    return f"square_root_{method}" if roots else method


# Each method as functions of a series; the last result is 4 stage + reason, -1 where nothing failed.


def _sturdy(run: Callable, by_roots: Callable, series: Series) -> tuple:
    """Return `run(series)`, (results, whether digits are lost), or where they are, `by_roots(series)`."""
    results, lost = run(series)
    if not series.z.shape[1]:
        return results
    # S that is singular to rounding may not be.
    lost = lost | ((results[-1] >= 0) & (results[-1] % 4 == SINGULAR))
    return jax.lax.cond(lost, lambda: by_roots(series), lambda: results)


def _filtered(module: Any, series: Series) -> tuple[tuple, Any]:
    f = module.forward(series)
    results = f.log_likelihood, f.means, f.covs, f.predicted_means, f.predicted_covs, f.failure
    return results, kalman.loses_variances(f, module.rounding(series, f))


def _smoothed(module: Any, series: Series) -> tuple[tuple, Any]:
    f = module.forward(series)
    adjoint = module.backward(series, f)
    means, covs, lag_one = kalman.smoothed(series, f, adjoint)
    lost = kalman.loses_variances(f, module.rounding(series, f))
    lost = lost | kalman.loses_smoothed(f, covs, module.rounding_back(series, f, adjoint))
    return (f.log_likelihood, means, covs, lag_one, adjoint.r, f.failure), lost


def _scored(module: Any, series: Series) -> tuple[tuple, Any]:
    f = module.forward(series)
    gradient = kalman.score(series, f, module.backward(series, f))
    lost = kalman.loses_likelihood(series, f, module.rounding(series, f))
    return (f.log_likelihood, gradient, f.failure), lost


def _likelihood_of(module: Any, series: Series) -> tuple[tuple, Any]:
    f = module.forward(series)
    return (f.log_likelihood, f.failure), kalman.loses_likelihood(series, f, module.rounding(series, f))


def _root_filter(series: Series) -> tuple:
    f = square_root.forward(series)
    covs, predicted_covs = square_root.covariances(f.roots), square_root.covariances(f.predicted_roots)
    return f.log_likelihood, f.means, covs, f.predicted_means, predicted_covs, f.failure


def _root_smoother(series: Series) -> tuple:
    f = square_root.forward(series)
    means, covs, lag_one, r = square_root.smoothed(series, f)
    means, lost = square_root.check_means(series, f.means, square_root.covariances(f.roots), means, covs, r)
    spoil = jnp.where(lost, jnp.nan, 1.0).astype(covs.dtype)[:, None, None]
    failure = jnp.where(jnp.any(lost), 4 * jnp.argmax(lost) + LOST_DIGITS, -1).astype(jnp.int32)
    failure = jnp.where(f.failure >= 0, f.failure, failure)
    return f.log_likelihood, means, covs * spoil, lag_one * spoil[:-1], r, failure


def _root_score(series: Series) -> tuple:
    f = square_root.forward(series)
    return f.log_likelihood, square_root.score(series, f), f.failure


def _root_likelihood(series: Series) -> tuple:
    f = square_root.forward(series)
    return f.log_likelihood, f.failure


def _methods(run: Callable, by_roots: Callable, compiled: Callable) -> dict[str, Callable]:
    sturdy = {
        name: functools.partial(_sturdy, functools.partial(run, module), by_roots)
        for name, module in (("scan", kalman), ("parallel", parallel))
    }
    return sturdy | {
        "native": functools.partial(compiled, roots=False),
        "square_root_scan": by_roots,
        "square_root_native": functools.partial(compiled, roots=True),
    }


_FILTERS = _methods(_filtered, _root_filter, native.filtered)
_SMOOTHERS = _methods(_smoothed, _root_smoother, native.smoothed)
_SCORES = _methods(_scored, _root_score, native.score)
_LIKELIHOODS = _methods(_likelihood_of, _root_likelihood, native.log_likelihood)


@_door.compiled("method")
def _filter(model: LinearGaussian, ys: Any, us: Any, method: str) -> Posterior:
    run = _as_defined(_FILTERS[method], _filtered, method)
    value, means, covs, predicted_means, predicted_covs, failure = run(series_of(model, ys, us))
    return Posterior(means, covs, value, *_ended(value, failure), predicted_means, predicted_covs)


@_door.compiled("method")
def _smoother(model: LinearGaussian, ys: Any, us: Any, method: str) -> Posterior:
    run = _as_defined(_SMOOTHERS[method], _smoothed, method)
    value, means, covs, lag_one, r, failure = run(series_of(model, ys, us))
    ended = _ended(value, failure)
    return Posterior(means, covs, value, *ended, lag_one_covs=lag_one, costates=-r, given="all")


def _ended(value: Any, failure: Any) -> tuple[Any, Any]:
    """Return status and stage."""
    xp = namespace(failure)
    told = xp.asarray([int(STATUS[reason]) for reason in sorted(STATUS)], xp.int32)[failure % 4 % 3]
    calm = xp.where(xp.isfinite(value), int(Status.SOLVED), int(Status.OVERFLOW))
    return xp.where(failure >= 0, told, calm).astype(xp.int32), xp.where(failure >= 0, failure // 4, -1)


def _as_defined(run: Callable, definition: Callable, method: str) -> Callable:
    """Return `run` with the derivatives of the covariance form, NaN where that has lost its digits."""
    module = parallel if method == "parallel" else kalman
    function = jax.custom_jvp(run)

    def tangent(primals: tuple, tangents: tuple) -> tuple:
        values = function(*primals)
        if method.startswith("square_root"):  # as good as double precision makes them
            wide = jax.dtypes.canonicalize_dtype(np.float64)
            primals, tangents = jax.tree.map(lambda leaf: leaf.astype(wide), (primals, tangents))
        defined = lambda series: definition(module, series)[0]  # noqa: E731
        return values, jax.tree.map(_agreeing, values, *jax.jvp(defined, primals, tangents))

    function.defjvp(tangent)
    return lambda series: (run if on_host(series.z) else function)(series)  # on the host nothing is differentiated


def _agreeing(value: Any, defined: Any, slope: Any) -> Any:
    """Return the definition's slope, NaN where its value is not the one at hand."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return slope
    return (slope * _nan_if_far(defined, value, 30)).astype(value.dtype)


def _nan_if_far(other: Any, value: Any, factor: float) -> Any:
    """Return 1 where two computations of a value agree to half of its digits, times a factor, and NaN elsewhere."""
    far = ~(jnp.abs(other - value) <= factor * jnp.sqrt(jnp.finfo(value.dtype).eps) * (1 + jnp.abs(value)))
    return jnp.where(far, jnp.nan, 1.0)


@_door.compiled("method")
def _evaluate(model: LinearGaussian, ys: Any, us: Any, method: str) -> tuple[Any, Any]:
    """Return the log-likelihood and how it failed."""
    return _LIKELIHOODS[method](series_of(model, ys, us))


@_door.compiled("method")
def _differentiate(model: LinearGaussian, ys: Any, us: Any, method: str) -> tuple[Any, Any, Any]:
    """Return the log-likelihood, its slopes in model, ys and us, and how it failed."""
    value, gradient, failure = _as_defined(_SCORES[method], _scored, method)(series_of(model, ys, us))
    return value, slopes_of_data(model, ys, us, gradient), failure


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _log_likelihood(model: LinearGaussian, ys: Any, us: Any, method: str) -> tuple[Any, Any]:
    return _evaluate(model, ys, us, method)


def _likelihood_tangent(method: str, primals: tuple, tangents: tuple) -> tuple:
    # Under `grad`, but outside `jit`, the data are numbers still, and the kernels' score compiles nothing.
    value, slopes, failure = _differentiate(*_door.enter(primals, natively=method.endswith("native")), method)
    slope = inner(jax.tree.leaves(slopes), jax.tree.leaves(tangents), value.dtype)
    return to_device((value, failure)), (slope, np.zeros(failure.shape, jax.dtypes.float0))


_log_likelihood.defjvp(_likelihood_tangent, symbolic_zeros=True)
