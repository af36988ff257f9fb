"""The polynomials between the knots of a signal: their coefficients, by NumPy or by JAX, and the transpose on the host.

    hold      v_k
    linear    v_k, s_k                                            s_k = (v_{k+1} - v_k) / h_k,  h_k = t_{k+1} - t_k
    spline    v_k, s_k - h_k (2 b_k + b_{k+1}) / 6, b_k / 2, (b_{k+1} - b_k) / (6 h_k),

b the second derivatives at the knots, b_0 = b_{K-1} = 0 and at the others

    h_{k-1} b_{k-1} + 2 (h_{k-1} + h_k) b_k + h_k b_{k+1} = 6 (s_k - s_{k-1}).

Reference: de Boor (1978), A Practical Guide to Splines, chapter IV.
"""

from typing import Any

import numpy as np

from optctl._arrays import namespace, on_host
from optctl._record import record
from optctl.dynamics.pde import tridiagonal_solve


@record()
class Pieces:
    """A piecewise polynomial.

    Attributes:
        starts: (P,) where the pieces begin, in seconds.
        coefficients: (P, degree+1, nu): u(t) = sum_i coefficients[k, i] (t - starts[k])^i on piece k.
    """

    starts: Any
    coefficients: Any

    def __call__(self, k: Any, t: Any) -> Any:
        """Return the polynomial of piece k at t."""
        s = (t - self.starts[k]).astype(self.coefficients.dtype)
        value = self.coefficients[k, -1]
        for i in reversed(range(self.coefficients.shape[1] - 1)):
            value = value * s + self.coefficients[k, i]
        return value


def coefficients(kind: str, ts: Any, v: Any) -> Any:
    """Return the coefficients (P, degree+1, nu) of a signal through values v at times ts."""
    xp, ts = namespace(v), ts.astype(v.dtype)
    if kind == "hold":
        return v[:, None]
    h = xp.diff(ts)[:, None]
    slope = xp.diff(v, axis=0) / h
    if kind == "linear":
        return xp.stack([v[:-1], slope], axis=1)
    bend = _second_derivatives(h, slope)
    first = slope - h * (2 * bend[:-1] + bend[1:]) / 6
    return xp.stack([v[:-1], first, bend[:-1] / 2, xp.diff(bend, axis=0) / (6 * h)], axis=1)


def _second_derivatives(h: Any, slope: Any) -> Any:
    xp = namespace(slope)
    zeros = np.zeros((1, slope.shape[1]), slope.dtype)
    return xp.concatenate([zeros, _solve(h[:, 0], 6 * xp.diff(slope, axis=0)), zeros])


def _solve(h: Any, right: Any) -> Any:
    """Solve the symmetric tridiagonal system of the second derivatives at the inner knots."""
    below, diagonal, above = h[:-1], 2 * (h[:-1] + h[1:]), h[1:]
    if not on_host(right):
        return tridiagonal_solve(below, diagonal, above, right)
    x, pivots = right.copy(), diagonal.copy()  # it is diagonally dominant: no pivots are searched
    for i in range(1, len(x)):
        factor = below[i] / pivots[i - 1]
        pivots[i] -= factor * above[i - 1]
        x[i] -= factor * x[i - 1]
    for i in reversed(range(len(x))):
        x[i] = (x[i] - (above[i] * x[i + 1] if i + 1 < len(x) else 0.0)) / pivots[i]
    return x


def pull(kind: str, ts: np.ndarray, v: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the slopes in ts and v from those in the coefficients, (P, degree+1, nu)."""
    gts, gv = np.zeros_like(ts), np.zeros_like(v)
    gv[: len(g)] += g[:, 0]
    if kind == "hold":
        return gts, gv
    h = np.diff(ts)[:, None]
    slope, gslope, gh = np.diff(v, axis=0) / h, g[:, 1].copy(), np.zeros_like(g[:, 1])
    if kind == "spline":
        bend, gbend = _second_derivatives(h, slope), np.zeros_like(v)
        gbend[:-1] += g[:, 2] / 2 - h * g[:, 1] / 3 - g[:, 3] / (6 * h)
        gbend[1:] += g[:, 3] / (6 * h) - h * g[:, 1] / 6
        gh -= (2 * bend[:-1] + bend[1:]) / 6 * g[:, 1] + np.diff(bend, axis=0) / (6 * h**2) * g[:, 3]
        w = _solve(h[:, 0], gbend[1:-1])
        gslope[1:] += 6 * w
        gslope[:-1] -= 6 * w
        gh[:-1] -= w * (bend[:-2] + 2 * bend[1:-1])
        gh[1:] -= w * (2 * bend[1:-1] + bend[2:])
    gv[1:] += gslope / h
    gv[:-1] -= gslope / h
    gh = (gh - gslope * slope / h).sum(1)
    gts[1:] += gh
    gts[:-1] -= gh
    return gts, gv
