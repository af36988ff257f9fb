r"""Infinite horizon: the discrete algebraic Riccati equation by structured doubling, and its derivative.

    P = Q + A'P A - (M + A'P B)(R + B'P B)^{-1}(M' + B'P A),      K = -(R + B'P B)^{-1}(M' + B'P A)

One doubling step does the work of as many Riccati steps as all before it together, so about ten suffice:

    A <- A W A,   G <- G + A W G A',   H <- H + A' H W A,    W = (I + G H)^{-1},    G = B R^{-1} B',  H -> P

That needs an inverse of R, which P itself does not: it needs one of R + B'P B. So the steps are taken for X = P - s I,
which solves the same equation with the weights Q + s (A'A - I), M + s A'B and R + s B'B. X begins at zero, that is, P
at s I: a terminal cost that sees every mode, also those outside the unit circle that Q does not see, and that lies
above every P of indefinite weights, if s is large enough. Newton's method (P is the cost of its own gain) then restores
the digits that s has cost. A shift that leads to no stabilizing P is followed by one a thousand times as large.

Derivatives do not go through these steps. To first order P changes only by the data, seen along the stationary u = K x;
this is linear in dP, and doubling solves it too:

    dP - F'dP F = [I; K]'(dTheta + 2 sym(dZ'P Z))[I; K],     Z = [A, B], Theta = [[Q, M], [M', R]], F = A + B K.

P on the right is itself differentiable, and so is the linear equation: the rule gives derivatives of every order.

The steady-state Kalman filter is the dual: its covariance solves the equation of A', C', W, V.

References: Chu, Fan, Lin and Wang (2004), Structure-preserving algorithms for periodic discrete-time algebraic Riccati
equations, International Journal of Control 77, section 2; Hewer (1971), An iterative technique for the computation of
the steady state gains for the discrete optimal regulator, IEEE Transactions on Automatic Control 16 (Newton's method);
Smith (1968), Matrix equation XA + BX = C, SIAM Journal on Applied Mathematics 16; Kao and Hennequin (2020), Automatic
differentiation of Sylvester, Lyapunov, and algebraic Riccati equations, arXiv 2011.11430.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _door
from optctl._arrays import constant, eigenvalues, namespace, on_host, solve, while_loop
from optctl._validate import as_float, as_symmetric, as_weight, cast, check_shape, is_concrete

DOUBLINGS = 60
NEWTON_STEPS = 40
SHIFTS = (1e-3, 1.0, 1e3, 1e6)
"""Values of s that are tried in turn, in the unit of P that the weights suggest."""


def dare(A: Any, B: Any, Q: Any, R: Any, M: Any = None) -> Any:
    """Return the stabilizing solution P of the discrete algebraic Riccati equation, (nx, nx).

    Args:
        A: (nx, nx).
        B: (nx, nu).
        Q: (nx, nx), symmetric; a number stands for that multiple of the identity, a vector for a diagonal, as in R.
        R: (nu, nu), symmetric.
        M: (nx, nu) cross weight; None is zero.

    No weight need be definite. Where R + B'P B is not, P belongs to a game, not to a minimum, and `dlqr` refuses it.

    Raises:
        ValueError: for wrong shapes, weights that are not symmetric, or if there is no stabilizing solution, with the
            reason. Under `jit` or `vmap`, where numbers cannot be looked at, P is NaN instead.

    Example:
        >>> import optctl as oc
        >>> print(oc.dare([[1.0]], [[1.0]], [[1.0]], [[1.0]]).round(6))
        [[1.618034]]

    References:
        Chu, Fan, Lin and Wang (2004), International Journal of Control 77, section 2.
    """
    data = _regulator(A, B, Q, R, M)
    return _solve(*data, words=REGULATOR)


def dlqr(A: Any, B: Any, Q: Any, R: Any, M: Any = None) -> tuple[Any, Any]:
    """Return (K, P): the infinite-horizon gain, u = K x, shape (nu, nx), and the value function 1/2 x'P x.

    MATLAB's and python-control's gain is -K. Both are differentiable in all data, forward and reverse.

    Args:
        A: (nx, nx).
        B: (nx, nu).
        Q: (nx, nx), symmetric; a number stands for that multiple of the identity, a vector for a diagonal, as in R.
        R: (nu, nu), symmetric.
        M: (nx, nu) cross weight; None is zero.

    R may be singular, even zero, and no weight need be definite: what counts is that there is a gain under which x goes
    to zero and which minimizes, R + B'P B > 0.

    Raises:
        ValueError: for wrong shapes, weights that are not symmetric, or if there is no such gain, with the reason:
            (A, B) not stabilizable, a mode on the unit circle that the cost does not see, inputs that neither cost nor
            move anything, or weights so negative that no minimum exists. Where numbers cannot be looked at, under
            `jit` or `vmap`, K and P are NaN instead.

    Example:
        >>> import optctl as oc
        >>> K, P = oc.dlqr([[1.0]], [[1.0]], [[1.0]], [[1.0]])
        >>> print(K.round(6))
        [[-0.618034]]

    References:
        Anderson and Moore (1990), Optimal Control: Linear Quadratic Methods, chapter 3.
    """
    data = _regulator(A, B, Q, R, M)
    P = _solve(*data, words=REGULATOR, minimum=True)
    A, B, _, R, M = data
    return _gain(A, B, R, M, P), P


def dlqe(A: Any, C: Any, W: Any, V: Any) -> tuple[Any, Any]:
    """Return (L, P): gain and covariance of the steady-state Kalman filter of x+ = A x + w, y = C x + v.

    A measurement updates the predicted state x by L (y - C x); P is the covariance of the predicted state's error:

        L = P C'(C P C' + V)^{-1},      P = A (P - L C P) A' + W.

    MATLAB's `dlqe` has the same L and P; the gain of the one-step predictor, python-control's, is A L. Both are
    differentiable in all data, forward and reverse.

    Args:
        A: (nx, nx).
        C: (ny, nx).
        W: (nx, nx) covariance of w, symmetric, positive semidefinite; may be singular. A number stands for that
            multiple of the identity, a vector for a diagonal, as in V.
        V: (ny, ny) covariance of v, symmetric, positive semidefinite; may be singular, such as zero, where
            C P C' + V is not.

    Returns:
        L, shape (nx, ny), and P, shape (nx, nx).

    Raises:
        ValueError: for wrong shapes or covariances, or if no filter with a stable error is found: (A, C) not detectable
            or a mode on the unit circle that the noise does not drive; under `jit` or `vmap` L and P are NaN instead,
            as for `dlqr`.

    Example:
        >>> import optctl as oc
        >>> L, P = oc.dlqe([[1.0]], [[1.0]], [[1.0]], [[1.0]])
        >>> print(L.round(6), P.round(6))
        [[0.618034]] [[1.618034]]

    References:
        Anderson and Moore (1979), Optimal Filtering, chapter 4; Durbin and Koopman (2012), Time Series Analysis by
        State Space Methods, section 4.3.4.
    """
    A, nx = _square(A)
    C = as_float(C, "C", (None, nx))
    ny = C.shape[0]
    W = as_weight(W, "W", (nx, nx), stages=False)
    V = as_weight(V, "V", (ny, ny), stages=False)
    A, C, W, V = _same_type(A, C, W, V)
    W, V = _symmetric(W), _symmetric(V)
    P = _solve(A.T, C.T, W, V, np.zeros((nx, ny), C.dtype), words=FILTER, minimum=True)
    return _filter_gain(C, V, P), P


@dataclasses.dataclass(frozen=True)
class _Words:
    """How a user of the regulator, or of the filter, calls the parts of the equation."""

    reach: str
    unreached: str
    unseen: str
    S: str
    idle: str


REGULATOR = _Words(
    reach="(`A`, `B`) is not stabilizable",
    unreached="no input reaches",
    unseen="the cost does not see it, or the weights are too negative",
    S="R + B'P B",
    idle="some combination of the inputs neither costs nor moves anything; leave it out, or give it a weight in `R`",
)
FILTER = _Words(
    reach="(`A`, `C`) is not detectable",
    unreached="no measurement sees",
    unseen="`W` does not drive it",
    S="C P C' + V",
    idle="some combination of the measurements is always zero; leave it out, or give it noise in `V`",
)


def _regulator(A: Any, B: Any, Q: Any, R: Any, M: Any) -> list[Any]:
    """Return the data of the regulator, checked, of one type."""
    A, nx = _square(A)
    B = as_float(B, "B", (nx, None))
    nu = B.shape[1]
    Q, R = as_symmetric(Q, "Q", (nx, nx)), as_symmetric(R, "R", (nu, nu))
    M = np.zeros((nx, nu), A.dtype) if M is None else as_float(M, "M", (nx, nu))
    A, B, Q, R, M = _same_type(A, B, Q, R, M)
    return [A, B, _symmetric(Q), _symmetric(R), M]


def _square(A: Any) -> tuple[Any, int]:
    A = as_float(A, "A", (None, None))
    check_shape(A, "A", (A.shape[0], A.shape[0]))
    if not A.shape[0]:
        raise ValueError("`A` has shape (0, 0); expected at least one state.")
    return A, A.shape[0]


def _symmetric(weight: Any) -> Any:
    # A derivative may ask for what a skew part does: nothing, as in x'Q x.
    return (weight + weight.T) / 2


def _same_type(*arrays: Any) -> list[Any]:
    """Return arrays of one type and kind."""
    both = np.result_type(*(array.dtype for array in arrays))
    return _door.enter([cast(array, both) for array in arrays])


def _solve(A: Any, B: Any, Q: Any, R: Any, M: Any, *, words: _Words, minimum: bool = False) -> Any:
    """Return P with its derivative, or raise; NaN under `jit`. Asked for a minimum, R + B'P B must be positive."""
    data = A, B, Q, R, M
    # Inside `grad`, but outside `jit`, this leaves plain numbers: a failure raises there too.
    still = _door.enter(constant(data, A))
    P, radius, least = _stabilizing(*still)
    if not is_concrete(P):
        if minimum:
            P = jnp.where(least > 0, P, jnp.nan)
        return _value(*data, P)
    if not float(radius) < 1:
        P, radius, least = _ordered_schur(*still)
    if not float(radius) < 1:
        raise ValueError(f"no stabilizing solution: {_reason(words, *map(np.asarray, still))}.")
    if minimum and not float(least) > 0:
        raise ValueError(
            f"no minimum: {words.S} has the eigenvalue {float(least):.6g} at the stabilizing solution P; expected > 0."
            " Check the signs of the weights; `dare` returns this P, a saddle point's."
        )
    return P if on_host(A) else _value(*data, P)


def _ordered_schur(A: Any, B: Any, Q: Any, R: Any, M: Any) -> tuple[Any, Any, Any]:
    """Find the stabilizing solution where doubling found none: that of a game, which no Riccati step leads to."""
    import scipy.linalg

    try:
        with np.errstate(all="ignore"):
            P = scipy.linalg.solve_discrete_are(*(np.asarray(m, float) for m in (A, B, Q, R)), s=np.asarray(M, float))
    except (np.linalg.LinAlgError, ValueError):
        return None, np.inf, np.nan
    P, radius, least, done = _polished(A, B, Q, R, M, namespace(A).asarray(P, A.dtype))
    return P, radius if done else np.inf, least


def _reason(words: _Words, A: Any, B: Any, Q: Any, R: Any, M: Any) -> str:
    """Say why there is no stabilizing solution."""
    import scipy.linalg

    nx, nu = B.shape
    near = 1e-3 if A.dtype == np.float32 else 1e-7
    size = max(np.linalg.norm(A, 2), np.linalg.norm(B, 2) if nu else 0.0)
    for mode in sorted(np.linalg.eigvals(A), key=lambda z: -np.abs(z)):
        if np.abs(mode) < 1 - near:
            break
        if np.linalg.svd(np.hstack([A - mode * np.eye(nx), B]), compute_uv=False)[-1] <= near * size:
            return f"{words.reach}: {words.unreached} the mode {mode:.6g} of `A`, whose size is {np.abs(mode):.6g}"
    scale = max(np.abs(R).max(initial=0.0), 1e-300)
    if nu and np.linalg.matrix_rank(np.vstack([R / scale, B / max(np.abs(B).max(), 1e-300)])) < nu:
        return f"{words.S} is singular whatever P is: {words.idle}"
    # The eigenvalues of the optimality system z x = A x + B u, costate = Q x + M u + z A'costate, 0 = ...
    zero = np.zeros
    left = np.block([[A, zero((nx, nx)), B], [Q, -np.eye(nx), M], [M.T, zero((nu, nx)), R]])
    right = np.block([[np.eye(nx), zero((nx, nx + nu))], [zero((nx, nx)), -A.T, zero((nx, nu))],
                      [zero((nu, nx)), -B.T, zero((nu, nu))]])  # fmt: skip
    sizes = np.abs(scipy.linalg.eigvals(left, right))
    on_circle = sizes[np.isfinite(sizes) & (np.abs(sizes - 1) < 10 * np.sqrt(near / 1e5))]
    if on_circle.size:
        return f"a mode of the optimal loop would have size {on_circle[0]:.6g}, on the unit circle: {words.unseen}"
    return f"no symmetric P with an invertible {words.S} makes the loop stable; the weights may be too negative"


@_door.compiled()
def _stabilizing(A: Any, B: Any, Q: Any, R: Any, M: Any) -> tuple[Any, Any, Any]:
    """Return P, NaN if it does not stabilize, the spectral radius of A + B K, and the least eigenvalue of R + B'P B."""
    xp = namespace(A)
    largest = lambda m: xp.max(xp.abs(m), initial=0.0)  # noqa: E731
    b = largest(B)
    unit = largest(Q) + xp.where(b > 0, largest(R) / b**2 + largest(M) / b, 0.0)
    unit = xp.where((unit > 0) & xp.isfinite(unit), unit, 1.0)
    shifts = xp.asarray(SHIFTS, A.dtype)

    def attempt(carry: tuple) -> tuple:
        i, *_ = carry
        return i + 1, *_polished(A, B, Q, R, M, _shifted(A, B, Q, R, M, shifts[i] * unit))

    nothing = xp.full_like(A, xp.nan), xp.array(xp.inf, A.dtype), xp.array(xp.nan, A.dtype), xp.array(False)
    _, P, radius, least, done = while_loop(lambda c: ~c[4] & (c[0] < len(SHIFTS)), attempt, (0, *nothing))
    return xp.where(done, P, xp.nan), xp.where(done, radius, xp.inf), least


def _shifted(A: Any, B: Any, Q: Any, R: Any, M: Any, s: Any) -> Any:
    """Return P by doubling from P = s I."""
    xp = namespace(A)
    eye, nx = xp.eye(A.shape[0], dtype=A.dtype), A.shape[0]
    Q, R, M = Q + s * (A.T @ A - eye), R + s * (B.T @ B), M + s * (A.T @ B)
    RinvBM = solve(R, xp.concatenate([B.T, M.T], axis=1))
    RinvB, RinvM = RinvBM[:, :nx], RinvBM[:, nx:]
    return _double(A - B @ RinvM, _symmetric(B @ RinvB), _symmetric(Q - M @ RinvM)) + s * eye


@_door.compiled()
def _polished(A: Any, B: Any, Q: Any, R: Any, M: Any, P: Any) -> tuple[Any, Any, Any, Any]:
    """Return P after Newton's method, the spectral radius, the least eigenvalue of R + B'P B, and if it converged."""
    xp = namespace(A)
    eps = xp.finfo(A.dtype).eps
    good = eps**0.4  # next to the unit circle rounding leaves no more

    def step(carry: tuple) -> tuple:
        P, last, _, i = carry
        better = _refine(P, A, B, Q, R, M)
        d = xp.sqrt(xp.abs(xp.diagonal(better)))  # small entries of P beside large ones count, too
        change = xp.max(xp.abs(better - P) / (xp.outer(d, d) + eps * xp.max(d) ** 2 + xp.finfo(d.dtype).tiny))
        change = xp.where(xp.isfinite(change), change, xp.inf)
        going = (change > 8 * eps) & xp.isfinite(change) & ~((change < good) & (change >= last / 2))
        return xp.where(xp.isfinite(change), better, P), change, going, i + 1

    start = P, xp.array(xp.inf, A.dtype), xp.array(True), 0
    P, change, _, _ = while_loop(lambda c: c[2] & (c[3] < NEWTON_STEPS), step, start)
    radius = xp.max(xp.abs(eigenvalues(A + B @ _gain(A, B, R, M, P))))
    least = xp.min(eigenvalues(R + B.T @ P @ B, symmetric=True), initial=xp.inf)
    return P, radius, least, (change < good) & (radius < 1)


def _refine(P: Any, A: Any, B: Any, Q: Any, R: Any, M: Any) -> Any:
    """One step of Newton's method: the cost of the gain that P gives; not finite where that gain does not stabilize."""
    K = _gain(A, B, R, M, P)
    cross = M @ K
    return _symmetric(_smith(A + B @ K, Q + K.T @ R @ K + cross + cross.T))


def _double(A: Any, G: Any, H: Any) -> Any:
    xp = namespace(A)
    eye = xp.eye(A.shape[0], dtype=A.dtype)
    tolerance = 4 * xp.finfo(A.dtype).eps

    def step(carry: tuple) -> tuple:
        A, G, H, _, i = carry
        WA_WG = solve(eye + G @ H, xp.concatenate([A, G], axis=1))
        WA, WG = WA_WG[:, : A.shape[0]], WA_WG[:, A.shape[0] :]
        change = A.T @ H @ WA
        H_next = H + (change + change.T) / 2
        d = xp.sqrt(xp.abs(xp.diagonal(H_next)))  # small entries of P beside large ones count, too
        moving = xp.any(xp.abs(change) > tolerance * xp.outer(d, d) + xp.finfo(d.dtype).tiny)
        G_next = G + A @ WG @ A.T
        return A @ WA, (G_next + G_next.T) / 2, H_next, moving, i + 1

    start = (A, G, H, xp.array(True), 0)
    _, _, P, moving, _ = while_loop(lambda c: c[3] & (c[4] < DOUBLINGS), step, start)
    return xp.where(moving, xp.nan, P)


@_door.compiled()
def _gain(A: Any, B: Any, R: Any, M: Any, P: Any) -> Any:
    return -solve(R + B.T @ P @ B, M.T + B.T @ P @ A)


@_door.compiled()
def _filter_gain(C: Any, V: Any, P: Any) -> Any:
    return solve(C @ P @ C.T + V, C @ P).T


@jax.custom_jvp
def _riccati(A: Any, B: Any, Q: Any, R: Any, M: Any, P: Any) -> Any:
    """Return P, which was computed for these data, with its derivative in them."""
    return P


@_riccati.defjvp
def _tangent(primals: tuple, tangents: tuple) -> tuple:
    A, B, _, R, M, _ = primals
    dA, dB, dQ, dR, dM, _ = tangents
    P = _riccati(*primals)
    K = _gain(A, B, R, M, P)
    F, dF = A + B @ K, dA + dB @ K
    half = dM @ K + dF.T @ P @ F
    return P, _stein(F, dQ + K.T @ dR @ K + half + half.T)


_value = jax.jit(_riccati)  # so that outside `jit` too the rule is compiled once


def _stein(F: Any, forcing: Any) -> Any:
    """Return X with X - F'X F = forcing, for stable F, differentiable in both."""
    return jax.lax.custom_linear_solve(
        lambda X: X - F.T @ X @ F,
        forcing,
        solve=lambda _, b: _smith(F, b),
        transpose_solve=lambda _, b: _smith(F.T, b),
    )


def _smith(F: Any, forcing: Any) -> Any:
    """Sum F'^k forcing F^k: each step doubles the number of terms."""

    def step(carry: tuple) -> tuple:
        X, F, i = carry
        return X + F.T @ X @ F, F @ F, i + 1

    xp = namespace(F)

    def settled(F: Any) -> Any:
        # What is still to come is F'X F and smaller, F the power reached. False for NaN, where no P stabilizes: the
        # loop then carries it into X, for a derivative must not look finite.
        return xp.sum(F**2) <= xp.finfo(F.dtype).eps

    return while_loop(lambda c: ~settled(c[1]) & (c[2] < DOUBLINGS), step, (forcing, F, 0))[0]
