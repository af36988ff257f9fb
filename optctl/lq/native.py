"""The matrix and the vector sweep by the compiled kernels; `optctl/lq/riccati.py` is their definition."""

import functools
from typing import Any

from optctl import _native
from optctl._arrays import namespace
from optctl.lq.kkt import Point
from optctl.lq.model import LQ
from optctl.lq.riccati import Factors


def factor(lq: LQ) -> Factors:
    """Sweep backward over the matrices."""
    N, nx, nu = lq.horizon, lq.nx, lq.nu
    shapes = (N, nu, nx), (N + 1, nx, nx), (N, nu, nu), (nx, nx)
    data = [_stages(getattr(lq, name), 3) for name in ("A", "B", "Q", "R", "M")]
    K, P, S, S0, failed = _native.call("lq_factor", shapes, *data, lq.Qf, lq.Q0, _is_free(lq), N=N, nx=nx, nu=nu)
    return Factors(K, P, S, S0, failed, lq.x0_free)


def sweep(lq: LQ, factors: Factors, b: Point) -> tuple[Point, Any, Any]:
    """Solve the optimality system with right-hand side b; return its solution and k, p."""
    N, nx, nu = lq.horizon, lq.nx, lq.nu
    shapes = (nx,), (N + 1, nx), (N, nu), (N + 1, nx), (N, nu), (N + 1, nx)
    operands = (
        *(_stages(lq.A, 3), _stages(lq.B, 3), b.costates, b.xs, b.us, b.start, _is_free(lq)),
        *(factors.K, factors.P, factors.S, factors.S0),
    )
    y, xs, us, costates, k, p, _ = _native.call("lq_sweep", shapes, *operands, N=N, nx=nx, nu=nu)
    return Point(y, xs, us, costates), k, p


def spread(F: Any, scatter: Any, first: Any) -> Any:
    """Return the covariances of x+ = F x + w from the first one on: those of a filter that measures nothing."""
    (N, nx, _), xp = F.shape, namespace(F)
    zeros = functools.partial(xp.zeros, dtype=F.dtype)
    data = F, zeros((1, 0, nx)), scatter, zeros((1, 0, 0)), zeros(nx), first, zeros((1, nx)), zeros((N + 1, 0))
    shapes = (), (N + 1, nx), (N + 1, nx, nx), (N + 1, nx), (N + 1, nx, nx)
    return _native.call("estimate_filter", shapes, *data, N=N, nx=nx, roots=False)[2]


def _stages(value: Any, ndim: int) -> Any:
    """Give an invariant quantity a stage axis of length 1."""
    return value if value.ndim == ndim else value[None]


def _is_free(lq: LQ) -> Any:
    return namespace(lq.Qf).asarray(lq.x0_free, lq.Qf.dtype)
