"""The forward and the backward pass by the compiled kernels; `optctl/estimation/kalman.py` is their definition."""

from typing import Any

import jax.numpy as jnp

from optctl import _native
from optctl._record import record
from optctl.estimation.kalman import Series


@record()
class Filtered:
    """What the compiled forward pass leaves behind: filtered moments, and S = U'DU, D^{-1}U'^{-1}C P and U'^{-1}v."""

    means: Any
    covs: Any
    S: Any
    Y: Any
    e: Any
    log_likelihood: Any
    failed_stage: Any


def log_likelihood(series: Series) -> tuple[Any, Any]:
    """Return the log-likelihood and the stage that failed, keeping nothing else."""
    return tuple(_call("kalman_likelihood", series, ((),), *_data(series)))


def forward(series: Series) -> Filtered:
    """Filter, keeping what the backward pass needs."""
    loglik, means, covs, S, Y, e, failed = _call("kalman_forward", series, _kept(series), *_data(series))
    return Filtered(means, covs, S, Y, e, loglik, failed)


def forward_and_predicted(series: Series) -> tuple[Filtered, Any, Any]:
    """Filter, keeping the predicted moments, too."""
    n, nx = series.z.shape[0], series.mean0.shape[0]
    shapes = (*_kept(series), (n, nx), (n, nx, nx))
    loglik, means, covs, S, Y, e, *predicted, failed = _call("kalman_filter", series, shapes, *_data(series))
    return Filtered(means, covs, S, Y, e, loglik, failed), predicted[0], predicted[1]


def smoothed(series: Series, filtered: Filtered) -> tuple[Any, ...]:
    """Return smoothed means, covariances, covariances of x_{t+1} with x_t, r, and the stage that lost its digits."""
    n, nx = series.z.shape[0], series.mean0.shape[0]
    shapes = (n, nx), (n, nx, nx), (n - 1, nx, nx), (n, nx)
    A, C, W, *_ = _data(series)
    f = filtered
    operands = A, C, W, series.z, f.means, f.covs, f.S, f.Y, f.e
    return tuple(_call("kalman_smoother", series, shapes, *operands))


def score(series: Series, filtered: Filtered) -> Series:
    """Return the gradient of the log-likelihood in every field of the series."""
    A, C, W, V, mean0, cov0, b, z = _data(series)
    f = filtered
    shapes = tuple(d.shape for d in (A, C, W, V, mean0, cov0, b, z))
    operands = A, C, W, V, b, z, f.means, f.covs, f.S, f.Y, f.e
    *results, _ = _call("kalman_score", series, shapes, *operands)
    fields = [
        g[: field.shape[0]] if g.ndim == field.ndim else g[0]
        for g, field in zip(results, vars(series).values(), strict=True)
    ]
    return Series(*fields)


def _call(name: str, series: Series, shapes: tuple, *operands: Any) -> Any:
    n, ny = series.z.shape
    return _native.call(name, shapes, *operands, N=n - 1, nx=series.mean0.shape[0], ny=ny)


def _data(series: Series) -> tuple:
    """Return the fields with a time axis, of length 1 where they do not change."""
    s = series
    matrices = (_with_time(m, 3) for m in (s.A, s.C, s.W, s.V))
    return (*matrices, s.mean0, s.cov0, _with_time(s.b, 2), s.z)


def _with_time(field: Any, ndim: int) -> Any:
    """Give a field at least one row; of a single measurement nothing per stage is read."""
    if field.ndim < ndim:
        return field[None]
    return field if field.shape[0] else jnp.zeros((1, *field.shape[1:]), field.dtype)


def _kept(series: Series) -> tuple[tuple[int, ...], ...]:
    n, ny = series.z.shape
    nx = series.mean0.shape[0]
    return (), (n, nx), (n, nx, nx), (n, ny, ny), (n, ny, nx), (n, ny)
