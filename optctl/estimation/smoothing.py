r"""Smoothing as control: the maximum a posteriori trajectory is an optimal control problem with noise as input.

    minimize   1/2 (x_0 - mean0)' cov0^{-1} (x_0 - mean0) + sum_{t<N} 1/2 |w_t|^2
               + sum_{t<=N} rho(r_t),            r_t = V^{-1/2} (y_t - C x_t - D u_t),
    subject to x_{t+1} = A x_t + B u_t + c + G w_t,     G G' = W,  x_0 free.

The inputs w are whitened, w ~ N(0, I): W may be singular, and gradient methods see a well scaled problem. With
rho(r) = r^2/2 the optimum is the Kalman (Rauch-Tung-Striebel) smoother's mean; with Huber's or Student's loss
outliers lose their pull. Missing measurements (NaN), component by component, drop out of r.

Reference: Bryson and Frazier (1963), Smoothing for linear and nonlinear dynamic systems; Aravkin, Burke and
Pillonetto (2013), Sparse/robust estimation and Kalman smoothing, Journal of Machine Learning Research 14.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from optctl import _door
from optctl._arrays import namespace, to_device
from optctl._record import record
from optctl._validate import is_concrete
from optctl.costs import SquaredLoss, TerminalQuadratic
from optctl.dynamics.linear import LinearDynamics
from optctl.dynamics.stage import StageFunction, stage_function
from optctl.estimation.linear_gaussian import LinearGaussian
from optctl.estimation.measurements import check_inputs, check_measurements, check_stages, without_feedthrough
from optctl.problem import Problem


@record()
class StageMisfit:
    """Stage cost 1/2 |w|^2 + sum rho(y_t - H_t x), with y and H whitened, one row of data per stage."""

    H: Any
    y: Any
    loss: StageFunction

    def __call__(self, x: Any, w: Any, t: Any) -> Any:
        """Return the cost of stage t."""
        return 0.5 * w @ w + jnp.sum(self.loss(self.y[t] - self.H[t] @ x))


@record()
class LastMisfit:
    """Terminal cost sum rho(y_N - H_N x), whitened."""

    H: Any
    y: Any
    loss: StageFunction

    def __call__(self, x: Any) -> Any:
        """Return the cost of x_N."""
        return jnp.sum(self.loss(self.y - self.H @ x))


def smoothing_problem(model: LinearGaussian, ys: Any, us: Any = None, *, loss: Callable | None = None) -> Problem:
    """Return the smoothing of a time series as an ordinary Problem: whitened noise as input, x_0 free.

    Args:
        model: the state-space model; V and cov0 positive definite.
        ys: (N+1, ny) measurements, NaN where one is missing; (N+1,) is taken as ny = 1.
        us: (N, nu) or (N+1, nu) known inputs, where the model has any (the last row matters only for D).
        loss: rho(r), elementwise on whitened residuals, rho(0) = 0; None is r^2/2. See `optctl.costs`.

    Returns:
        A `Problem` with horizon N. `solve(problem)` gives means (xs) and costates, `lq.covariances(problem)` the
        covariances for the 2-sigma band.

    Raises:
        ValueError: for shapes that do not fit, fewer than two rows of ys, nothing measured, or a singular V or cov0.

    Example:
        >>> import optctl as oc
        >>> model = oc.LinearGaussian([[1.0]], [[1.0]], [[1.0]], [[1.0]], [0.0], [[1.0]])
        >>> sol = oc.solve(oc.smoothing_problem(model, [1.0, 2.0, 3.0]))
        >>> print(sol.method, (13 * sol.xs[:, 0]).round(9))
        lq [12. 23. 31.]

    References:
        Bryson and Frazier (1963), Smoothing for linear and nonlinear dynamic systems.
    """
    ys = check_measurements(model, ys, least=2)
    if is_concrete(ys) and np.isnan(np.asarray(ys)).all():
        raise ValueError("`ys` holds nothing but NaN; expected at least one measurement.")
    N = ys.shape[0] - 1
    us = check_inputs(model, us, N)
    check_stages(model, N)
    for name in ("V", "cov0"):
        _require_definite(getattr(model, name), name)
    model, ys, us = _door.enter((model, ys, us))
    xp = namespace(ys)
    B = _rows(model.B, N, 2)
    c = _rows(model.c, N, 1) + xp.einsum("tij,tj->ti", B, us[:N])
    G = noise_factor(model.W)
    A = model.A
    H, y = _whiten(model, without_feedthrough(model, ys, us))
    rho = stage_function(SquaredLoss() if loss is None else loss, "loss", ("r",), least=1)
    parts = A, G, c, H[:-1], y[:-1], H[-1], y[-1], _inverse(model.cov0), model.mean0
    A, G, c, H, y, H_last, y_last, weight, mean0 = to_device(parts)  # functions of a stage index them while traced
    return Problem(
        LinearDynamics(A, G, c),
        stage_cost=StageMisfit(H, y, rho),
        terminal_cost=LastMisfit(H_last, y_last, rho),
        initial_cost=TerminalQuadratic(weight, mean0),
        horizon=N,
    )


def noise_factor(W: Any) -> Any:
    """Return G with G G' = W: the Cholesky factor, or where W may be singular, scaled eigenvectors.

    Ranks are judged on the correlations, so that noises of different units count alike.
    """
    xp = namespace(W)
    scale = xp.sqrt(xp.diagonal(W, axis1=-2, axis2=-1))
    safe = xp.where(scale > 0, scale, 1.0)
    values, vectors = xp.linalg.eigh(W / (safe[..., :, None] * safe[..., None, :]))
    keep = values > 1e3 * xp.finfo(W.dtype).eps
    if is_concrete(W) and bool(keep.all()):
        return xp.linalg.cholesky(W)
    factor = safe[..., :, None] * vectors * xp.sqrt(xp.where(keep, values, 0.0))[..., None, :]
    if is_concrete(W) and W.ndim == 2:
        return factor[:, keep] if bool(keep.any()) else factor[:, :1]
    return factor


def _rows(matrix: Any, n: int, ndim: int) -> Any:
    return matrix if matrix.ndim > ndim else namespace(matrix).broadcast_to(matrix, (n, *matrix.shape))


def _whiten(model: LinearGaussian, ys: Any) -> tuple[Any, Any]:
    """Return H = V^{-1/2} C and V^{-1/2} y for every time, restricted to the measured components."""
    xp, n = namespace(ys), ys.shape[0]
    C, V, seen = _rows(model.C, n, 2), _rows(model.V, n, 2), xp.isfinite(ys)
    factor = xp.linalg.cholesky(xp.where(seen[:, :, None] & seen[:, None, :], V, xp.eye(model.ny, dtype=V.dtype)))
    data = xp.concatenate([xp.where(seen[:, :, None], C, 0.0), xp.where(seen, ys, 0.0)[:, :, None]], axis=2)
    white = xp.linalg.solve(factor, data)
    return white[:, :, :-1], white[:, :, -1]


def _inverse(cov: Any) -> Any:
    inverse = namespace(cov).linalg.inv(cov)
    return (inverse + inverse.T) / 2


def _require_definite(matrix: Any, name: str) -> None:
    if is_concrete(matrix):
        cov = np.asarray(matrix)
        scale = np.sqrt(np.diagonal(cov, axis1=-2, axis2=-1))
        safe = np.where(scale > 0, scale, 1.0)
        lowest = np.linalg.eigvalsh(cov / (safe[..., :, None] * safe[..., None, :])).min()
        if not lowest > 10 * np.finfo(cov.dtype).eps:
            raise ValueError(
                f"`{name}` is singular (its correlations have an eigenvalue of {lowest:.3g}); smoothing as control"
                " weighs by its inverse. Add a small positive variance."
            )
