"""Square-root filter and smoother by the compiled kernels; `optctl/estimation/square_root.py` is their definition."""

from typing import Any

from optctl._record import record
from optctl.estimation.kalman import Series
from optctl.estimation.native import _call, _data


@record()
class Filtered:
    """What the compiled forward pass leaves behind for the backward one: the letters of the definition."""

    means: Any
    S: Any
    K: Any
    e: Any
    gains: Any
    rests: Any
    log_likelihood: Any
    failed_stage: Any


def log_likelihood(series: Series) -> tuple[Any, Any]:
    """Return the log-likelihood and the stage that failed, keeping nothing else."""
    return tuple(_call("square_root_likelihood", series, ((),), *_data(series)))


def filtered(series: Series) -> tuple[Any, ...]:
    """Return filtered means and covariances, log-likelihood, failed stage, predicted means and covariances."""
    n, nx = series.z.shape[0], series.mean0.shape[0]
    shapes = (), (n, nx), (n, nx, nx), (n, nx), (n, nx, nx)
    loglik, means, covs, *predicted, failed = _call("square_root_filter", series, shapes, *_data(series))
    return means, covs, loglik, failed, *predicted


def forward(series: Series) -> Filtered:
    """Filter, keeping what the backward pass needs."""
    n, ny = series.z.shape
    nx = series.mean0.shape[0]
    shapes = (), (n, nx), (n, ny, ny), (n, ny, nx), (n, ny), (n - 1, nx, nx), (n, nx, nx)
    results = _call("square_root_forward", series, shapes, *_data(series))
    loglik, means, S, K, e, gains, rests, failed = results
    return Filtered(means, S, K, e, gains, rests, loglik, failed)


def smoothed(series: Series, filtered: Filtered) -> tuple[Any, Any, Any, Any]:
    """Return smoothed means, covariances, covariances of x_{t+1} with x_t, and r."""
    n, nx = series.z.shape[0], series.mean0.shape[0]
    shapes = (n, nx), (n, nx, nx), (n - 1, nx, nx), (n, nx)
    A, C, *_ = _data(series)
    f = filtered
    operands = A, C, f.means, f.S, f.K, f.e, f.gains, f.rests
    *results, _ = _call("square_root_smoother", series, shapes, *operands)
    return tuple(results)  # type: ignore[return-value]


def filtered_covariances(series: Series, kept: Filtered) -> Any:
    """Return (N+1, nx, nx)."""
    return filtered(series)[1]
