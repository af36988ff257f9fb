"""Filter, smoother, likelihood and its gradient by the compiled kernels, square roots where covariances lose digits.

The definitions are `kalman.py` and `square_root.py`, the policy is that of `filtering.py`. The last result of each is
4 stage + reason, -1 where nothing failed.
"""

from typing import Any

import numpy as np

from optctl import _native
from optctl.estimation.kalman import Series


def log_likelihood(series: Series, roots: bool) -> tuple[Any, Any]:
    """Return the log-likelihood."""
    return tuple(_call("estimate_likelihood", series, ((),), roots))


def filtered(series: Series, roots: bool) -> tuple[Any, ...]:
    """Return the log-likelihood, filtered means and covariances, predicted means and covariances."""
    n, nx = series.z.shape[0], series.mean0.shape[0]
    return tuple(_call("estimate_filter", series, ((), (n, nx), (n, nx, nx), (n, nx), (n, nx, nx)), roots))


def smoothed(series: Series, roots: bool) -> tuple[Any, ...]:
    """Return the log-likelihood, smoothed means, covariances, covariances of x_{t+1} with x_t, and r."""
    n, nx = series.z.shape[0], series.mean0.shape[0]
    shapes = (), (n, nx), (n, nx, nx), (n - 1, nx, nx), (n, nx)
    return tuple(_call("estimate_smoother", series, shapes, roots))


def score(series: Series, roots: bool) -> tuple[Any, Series, Any]:
    """Return the log-likelihood and its gradient in every field of the series."""
    shapes = (), *(d.shape for d in _data(series))
    value, *results, failure = _call("estimate_score", series, shapes, roots)
    fields = [
        g[: field.shape[0]] if g.ndim == field.ndim else g[0]
        for g, field in zip(results, vars(series).values(), strict=True)
    ]
    return value, Series(*fields), failure


def _call(name: str, series: Series, shapes: tuple, roots: bool) -> Any:
    n, ny = series.z.shape
    return _native.call(name, shapes, *_data(series), N=n - 1, nx=series.mean0.shape[0], ny=ny, roots=roots)


def _data(series: Series) -> tuple:
    """Return the fields with a time axis, of length 1 where they do not change."""
    s = series
    matrices = (_with_time(m, 3) for m in (s.A, s.C, s.W, s.V))
    return (*matrices, s.mean0, s.cov0, _with_time(s.b, 2), s.z)


def _with_time(field: Any, ndim: int) -> Any:
    """Give a field at least one row; of a single measurement nothing per stage is read."""
    if field.ndim < ndim:
        return field[None]
    return field if field.shape[0] else np.zeros((1, *field.shape[1:]), field.dtype)
