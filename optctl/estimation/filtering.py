"""Kalman filter, smoother and log-likelihood: one call each over all methods, and their exact derivatives.

The derivative of the log-likelihood is one backward sweep (`kalman.score`), whichever method runs. Filter and smoother
are differentiated as their definitions in `kalman.py`; so are derivatives of derivatives.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _native
from optctl._record import record
from optctl._validate import is_concrete
from optctl.estimation import kalman, native, parallel, square_root, square_root_native
from optctl.estimation.kalman import Series
from optctl.estimation.linear_gaussian import LinearGaussian
from optctl.estimation.measurements import series_of

METHODS = ("auto", "native", "scan", "parallel")


@record(static=("given",))
class Posterior:
    """Moments of the states given measurements.

    Attributes:
        means: (N+1, nx) of x_t given y_0..y_t (filter) or y_0..y_N (smoother).
        covs: (N+1, nx, nx).
        log_likelihood: log p(y_0..y_N).
        failed_stage: the stage whose innovation covariance C P C' + V was singular, -1 if none; what follows from it
            is NaN. From the smoother also the first stage whose covariance lost its digits (it is NaN and the
            log-likelihood finite): to a vague prior in the covariance form, to a model that forgets its past without
            noise in the square-root form; pass the other `square_root`.
        predicted_means: (N+1, nx) of x_t given y_0..y_{t-1}; None from the smoother.
        predicted_covs: (N+1, nx, nx); None from the smoother.
        lag_one_covs: (N, nx, nx) covariance of x_{t+1} with x_t; None from the filter.
        costates: (N+1, nx) dJ/dx_t of smoothing as control, J = -log p(x, y); None from the filter.
        given: "past" (filter) or "all" (smoother).
    """

    means: Any
    covs: Any
    log_likelihood: Any
    failed_stage: Any
    predicted_means: Any = None
    predicted_covs: Any = None
    lag_one_covs: Any = None
    costates: Any = None
    given: str = "past"

    @property
    def stds(self) -> Any:
        """(N+1, nx) standard deviations."""
        return jnp.sqrt(jnp.diagonal(self.covs, axis1=-2, axis2=-1))

    def raise_if_failed(self) -> "Posterior":
        """Return the posterior itself if no innovation covariance was singular.

        Raises:
            RuntimeError: if one was, naming the stage.
        """
        failed = int(np.max(np.asarray(self.failed_stage)))
        if failed >= 0 and self._finite():
            raise RuntimeError(
                f"the smoothed covariance at stage {failed} lost its digits: the prior is too vague for the covariance"
                " form. Pass square_root=True. (If it was passed: the model forgets its past, and little noise drives"
                " it; pass square_root=False.)"
            )
        if failed >= 0:
            raise RuntimeError(_singular(failed))
        if not self._finite():
            raise RuntimeError("the log-likelihood is not finite: the states or measurements overflow.")
        return self

    def _finite(self) -> bool:
        return bool(np.all(np.isfinite(np.asarray(self.log_likelihood))))

    def __repr__(self) -> str:
        failed = np.asarray(self.failed_stage)
        status = "done" if self._finite() else "not finite"
        if failed.max() >= 0:
            what = "smoothed covariance lost its digits" if self._finite() else "innovation covariance singular"
            status = f"{what} at stage {failed.max()}"
        kind = "filtered" if self.given == "past" else "smoothed"
        if failed.ndim:
            return f"Posterior: {status}, {kind}, a batch of shape {failed.shape}"
        n, nx = self.means.shape
        return f"Posterior: {status}, {kind}, {n} times, nx = {nx}, log-likelihood {float(self.log_likelihood):.10g}"


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
        square_root: propagate triangular factors of the covariances: for float32 and badly scaled models, never a
            negative variance; two to four times slower; not with method "parallel".

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
    series = series_of(model, ys, us)
    return _filter(series, _pick(method, square_root, series))


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
    series = series_of(model, ys, us)
    return _smoother(series, _pick(method, square_root, series))


def log_likelihood(
    model: LinearGaussian, ys: Any, us: Any = None, *, method: str = "auto", square_root: bool = False
) -> Any:
    """Return log p(y_0..y_N) of a time series, a scalar.

    Its gradient in every matrix of the model, mean0, cov0, ys and us is exact and costs one backward sweep. A prior
    variance more than about 1e10 times V costs digits; `square_root=True` keeps the value's, while the gradient is
    always that of the covariance form (in float64 where that is on, whatever the type of the data) and NaN where that
    form has lost the value.

    Args:
        model: the state-space model.
        ys: (N+1, ny) measurements, NaN where a component is missing; (N+1,) is taken as ny = 1.
        us: (N, nu) or (N+1, nu) known inputs, where the model has any.
        method: as for `kalman_filter`.
        square_root: as for `kalman_filter`.

    Raises:
        ValueError: as `kalman_filter`.
        RuntimeError: if an innovation covariance is singular, naming the stage; under `jit` or `vmap`, where nothing
            can be raised, the result is NaN and `kalman_filter(...).failed_stage` tells.

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
    series = series_of(model, ys, us)
    value, failed = _log_likelihood(series, _pick(method, square_root, series))
    if is_concrete(failed) and np.max(np.asarray(failed)) >= 0:
        raise RuntimeError(_singular(int(np.max(np.asarray(failed)))))
    return value


def _singular(stage: int) -> str:
    return (
        f"the innovation covariance C P C' + V is singular at stage {stage}: two measurements repeat each other, or"
        " nothing is uncertain there. Add measurement noise V, or remove one of them."
    )


def _pick(method: str, square_root: bool, series: Series) -> str:
    roots = square_root and series.z.shape[1] > 0  # nothing is measured: nothing to take roots of
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}; expected one of {list(METHODS)}.")
    if method == "parallel" and roots:
        raise ValueError("`square_root` has no parallel form; use method='native' or 'scan'.")
    if method == "native":
        _native.require()
    if method == "auto":
        cpu = jax.default_backend() == "cpu"
        method = "native" if _native.available() else "scan" if cpu or roots else "parallel"
    return f"square_root_{method}" if roots else method


@functools.partial(jax.jit, static_argnames="method")
def _filter(series: Series, method: str) -> Posterior:
    return _as_defined(_FILTERS[method], _FILTERS["scan"], method)(series)


@functools.partial(jax.jit, static_argnames="method")
def _smoother(series: Series, method: str) -> Posterior:
    return _as_defined(_SMOOTHERS[method], _SMOOTHERS["scan"], method)(series)


def _as_defined(run: Any, definition: Any, method: str) -> Any:
    """Return `run` with the derivatives of `definition`; what is plain JAX keeps its own."""
    if method in ("scan", "parallel"):
        return run
    function = jax.custom_jvp(run)

    def tangent(primals: tuple, tangents: tuple) -> tuple:
        values = function(*primals)
        if not method.startswith("square_root"):
            return values, jax.jvp(definition, primals, tangents)[1]
        wide = jax.dtypes.canonicalize_dtype(np.float64)
        primals, tangents = jax.tree.map(lambda leaf: leaf.astype(wide), (primals, tangents))
        return values, jax.tree.map(_agreeing, values, *jax.jvp(definition, primals, tangents))

    function.defjvp(tangent)
    return function


def _agreeing(value: Any, defined: Any, slope: Any) -> Any:
    """Return the definition's slope, NaN where its value is not the one at hand."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return slope
    return (slope * _nan_if_far(defined, value, 30)).astype(value.dtype)


def _nan_if_far(other: Any, value: Any, factor: float) -> Any:
    """Return 1 where two computations of a value agree to half of its digits, times a factor, and NaN elsewhere."""
    far = ~(jnp.abs(other - value) <= factor * jnp.sqrt(jnp.finfo(value.dtype).eps) * (1 + jnp.abs(value)))
    return jnp.where(far, jnp.nan, 1.0)


def _plain_filter(module: Any, series: Series) -> Posterior:
    f = module.forward(series)
    return Posterior(f.means, f.covs, f.log_likelihood, f.failed_stage, f.predicted_means, f.predicted_covs)


def _plain_smoother(module: Any, series: Series) -> Posterior:
    f = module.forward(series)
    adjoint = module.backward(series, f)
    means, covs, lag_one, lost = kalman.smoothed(series, f, adjoint)
    return _smoothed(means, covs, lag_one, adjoint.r, lost, f)


def _native_filter(series: Series) -> Posterior:
    f, predicted_means, predicted_covs = native.forward_and_predicted(series)
    return Posterior(f.means, f.covs, f.log_likelihood, f.failed_stage, predicted_means, predicted_covs)


def _native_smoother(series: Series) -> Posterior:
    f = native.forward(series)
    means, covs, lag_one, r, lost = native.smoothed(series, f)
    return _smoothed(means, covs, lag_one, r, lost, f)


def _root_filter(series: Series) -> Posterior:
    f = square_root.forward(series)
    covs, predicted_covs = square_root.covariances(f.roots), square_root.covariances(f.predicted_roots)
    return Posterior(f.means, covs, f.log_likelihood, f.failed_stage, f.predicted_means, predicted_covs)


def _native_root_filter(series: Series) -> Posterior:
    return Posterior(*square_root_native.filtered(series))


def _root_smoother(module: Any, series: Series) -> Posterior:
    f = module.forward(series)
    means, covs, lag_one, r = module.smoothed(series, f)
    kept = module.filtered_covariances(series, f)
    means, lost = square_root.check_means(series, f.means, kept, means, covs, r)
    spoil = jnp.where(lost, jnp.nan, 1.0).astype(covs.dtype)[:, None, None]
    stage = jnp.where(jnp.any(lost), jnp.argmax(lost), -1).astype(jnp.int32)
    return _smoothed(means, covs * spoil, lag_one * spoil[:-1], r, stage, f)


def _smoothed(means: Any, covs: Any, lag_one: Any, r: Any, lost: Any, f: Any) -> Posterior:
    failed = jnp.where(f.failed_stage >= 0, f.failed_stage, lost)
    return Posterior(means, covs, f.log_likelihood, failed, lag_one_covs=lag_one, costates=-r, given="all")


_FILTERS: dict[str, Any] = {
    "scan": functools.partial(_plain_filter, kalman),
    "parallel": functools.partial(_plain_filter, parallel),
    "native": _native_filter,
    "square_root_scan": _root_filter,
    "square_root_native": _native_root_filter,
}
_SMOOTHERS: dict[str, Any] = {
    "scan": functools.partial(_plain_smoother, kalman),
    "parallel": functools.partial(_plain_smoother, parallel),
    "native": _native_smoother,
    "square_root_scan": functools.partial(_root_smoother, square_root),
    "square_root_native": functools.partial(_root_smoother, square_root_native),
}


@functools.partial(jax.jit, static_argnames="method")
def _log_likelihood(series: Series, method: str) -> tuple[Any, Any]:
    return _likelihood(series, method)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _likelihood(series: Series, method: str) -> tuple[Any, Any]:
    if method == "native":
        return native.log_likelihood(series)
    if method == "square_root_native":
        return square_root_native.log_likelihood(series)
    f = _FILTERS[method](series)
    return f.log_likelihood, f.failed_stage


@_likelihood.defjvp
def _likelihood_tangent(method: str, primals: tuple, tangents: tuple) -> tuple:
    value, failed, gradient = _value_and_score(primals[0], method)
    if method.startswith("square_root"):
        rough = value
        value, failed = _likelihood(primals[0], method)
        # The gradient is the covariance form's, which a vague prior spoils before it spoils this value.
        trust = _nan_if_far(rough, value, 10)
        gradient = jax.tree.map(lambda g: g * trust.astype(g.dtype), gradient)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(tangents[0]), strict=True)
    slope = sum(jnp.sum(g * d) for g, d in pairs)
    return (value, failed), (slope, np.zeros(failed.shape, jax.dtypes.float0))


def _value_and_score(series: Series, method: str) -> tuple[Any, Any, Series]:
    """Log-likelihood, failed stage and the gradient in every field; of a square-root form by double covariances."""
    if method.startswith("square_root"):
        wide = jax.tree.map(lambda leaf: leaf.astype(jax.dtypes.canonicalize_dtype(np.float64)), series)
        value, failed, gradient = _value_and_score(wide, method.removeprefix("square_root_"))
        return value, failed, jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), gradient, series)

    def plain(module: Any, series: Series) -> tuple:
        f = module.forward(series)
        return f.log_likelihood, f.failed_stage, kalman.score(series, f, module.backward(series, f))

    def compiled(series: Series) -> tuple:
        f = native.forward(series)
        return f.log_likelihood, f.failed_stage, native.score(series, f)

    definition = functools.partial(plain, kalman)
    if method == "native":
        return _as_defined(compiled, definition, "native")(series)
    return plain(parallel, series) if method == "parallel" else definition(series)
