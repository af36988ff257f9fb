"""The linear-quadratic regulator over a finite horizon, as engineers call it."""

from typing import Any

import numpy as np

from optctl import _door
from optctl._arrays import namespace
from optctl._validate import as_float, as_weight, as_whole, check_shape
from optctl.lq.model import LQ
from optctl.lq.solution import LQSolution, solve


def lqr(
    A: Any,
    B: Any,
    Q: Any,
    R: Any,
    *,
    Qf: Any = None,
    M: Any = None,
    q: Any = None,
    r: Any = None,
    qf: Any = None,
    c: Any = None,
    x0: Any = None,
    horizon: int | None = None,
    x_ref: Any = None,
    u_ref: Any = None,
    method: str = "auto",
) -> LQSolution:
    """Solve the finite-horizon linear-quadratic regulator.

    Minimizes the sum over t = 0..N-1 of 1/2 x'Qx + x'Mu + 1/2 u'Ru + q'x + r'u, plus 1/2 x_N'Qf x_N + qf'x_N, with
    x+ = A x + B u + c. With references, x and u in the quadratic terms stand for x - x_ref and u - u_ref.
    Any stage quantity may have a leading axis N.

    Args:
        A: (nx, nx).
        B: (nx, nu).
        Q: (nx, nx), symmetric, positive semidefinite; of each weight a number stands for that multiple of the
            identity, a vector for a diagonal.
        R: (nu, nu), symmetric, positive semidefinite; it may be singular, such as zero, where R + B'P B is not.
        Qf: (nx, nx) terminal weight; None takes Q (of the last stage).
        M: (nx, nu) cross weight.
        q: (nx,) linear state weight.
        r: (nu,) linear input weight.
        qf: (nx,) linear terminal weight.
        c: (nx,) offset of the dynamics.
        x0: (nx,) initial state; None computes gains and value function only.
        horizon: N; may be left out if something is given per stage.
        x_ref: (nx,) set point, or (N+1, nx) reference trajectory.
        u_ref: (nu,) or (N, nu) reference input.
        method: as for `lq.solve`; "cg" needs x0.

    Returns:
        An `LQSolution` with xs, us, costates, gains K and k (u = K x + k) and the value function P, p. Where
        R + B'P B is singular at some stage, `failed_stage` names it, and `raise_if_failed` raises.

    Raises:
        ValueError: for shapes that do not fit, weights that are not symmetric or have negative eigenvalues (the
            lowest is named), NaN, booleans, or a horizon that is missing.

    Example:
        >>> import optctl as oc
        >>> sol = oc.lqr([[1.0]], [[1.0]], [[1.0]], [[1.0]], x0=[1.0], horizon=3)
        >>> print(sol.us[:, 0].round(4), sol.cost.round(6))
        [-0.6154 -0.2308 -0.0769] 0.807692

    References:
        Anderson and Moore (1990), Optimal Control: Linear Quadratic Methods, section 2.4.
    """
    A = as_float(A, "A")
    if A.ndim not in (2, 3) or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"`A` has shape {A.shape}; expected (nx, nx) or (N, nx, nx).")
    nx = A.shape[-1]
    B = as_float(B, "B")
    if B.ndim not in (2, 3) or B.shape[-2] != nx:
        raise ValueError(f"`B` has shape {B.shape}; expected ({nx}, nu) or (N, {nx}, nu), as `A` is {A.shape}.")
    nu = B.shape[-1]
    Q = as_weight(Q, "Q", (nx, nx))
    R = as_weight(R, "R", (nu, nu))
    Qf = (Q[-1] if Q.ndim == 3 else Q) if Qf is None else as_weight(Qf, "Qf", (nx, nx))
    check_shape(Qf, "Qf", (nx, nx))
    given = {"A": (A, (nx, nx)), "B": (B, (nx, nu)), "Q": (Q, (nx, nx)), "R": (R, (nu, nu))}
    optional = {"M": (M, (nx, nu)), "q": (q, (nx,)), "r": (r, (nu,)), "c": (c, (nx,)), "u_ref": (u_ref, (nu,))}
    for name, (value, shape) in optional.items():
        given[name] = (np.zeros(shape, A.dtype) if value is None else as_float(value, name), shape)
    N = _horizon(horizon, given, x_ref)
    stages = {name: _per_stage(value, name, shape, N) for name, (value, shape) in given.items()}
    qf = np.zeros(nx, A.dtype) if qf is None else as_float(qf, "qf", (nx,))
    start = np.zeros(nx, A.dtype) if x0 is None else as_float(x0, "x0", (nx,))
    if x_ref is None and u_ref is None:  # what is the same at every stage is not copied
        data = {name: value for name, (value, _) in given.items() if name != "u_ref"}
        lq = LQ(**data, Qf=Qf, qf=qf, x0=start, horizon=N)
    else:
        x_ref = np.zeros(nx, A.dtype) if x_ref is None else as_float(x_ref, "x_ref")
        x_ref = _per_stage(x_ref, "x_ref", (nx,), N + 1)
        lq = _around_reference(*_door.enter((stages, Qf, qf, x_ref, start)))
    if x0 is not None:
        return solve(lq, method)
    if isinstance(method, str) and method == "cg":
        raise ValueError("`method` is 'cg', which finds no gains, and `x0` is None; pass x0, or another method.")
    sol = solve(lq, method)
    return LQSolution(None, None, None, sol.K, sol.k, sol.P, sol.p, None, sol.failed_stage)


def _horizon(horizon: Any, given: dict, x_ref: Any) -> int:
    lengths = {name: value.shape[0] for name, (value, shape) in given.items() if value.ndim > len(shape)}
    if x_ref is not None and np.ndim(x_ref) == 2:
        lengths["x_ref"] = np.shape(x_ref)[0] - 1
    if horizon is not None:
        lengths["horizon"] = as_whole(horizon, "horizon", "steps N")
    if not lengths:
        raise ValueError("`horizon` is missing; expected a number of steps N. For an infinite horizon use optctl.dlqr.")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"numbers of stages differ: {lengths}; expected one N (and N+1 rows in x_ref).")
    return next(iter(lengths.values()))


def _per_stage(value: Any, name: str, shape: tuple[int, ...], N: int) -> Any:
    if value.ndim not in (len(shape), len(shape) + 1) or value.shape[value.ndim - len(shape) :] != shape:
        raise ValueError(f"`{name}` has shape {value.shape}; expected {shape} or {(N, *shape)}.")
    return namespace(value).broadcast_to(value, (N, *shape))


def _around_reference(full: dict, Qf: Any, qf: Any, x_ref: Any, x0: Any) -> LQ:
    """Move the references into the linear terms and the constant."""
    xp = namespace(Qf)
    full = {**full, **{name: (full[name] + full[name].swapaxes(-1, -2)) / 2 for name in ("Q", "R")}}
    Qf = (Qf + Qf.T) / 2
    Q, R, M, xr, ur, last = full["Q"], full["R"], full["M"], x_ref[:-1], full["u_ref"], x_ref[-1]
    Qx = xp.einsum("tij,tj->ti", Q, xr) + xp.einsum("tij,tj->ti", M, ur)
    Ru = xp.einsum("tij,tj->ti", R, ur) + xp.einsum("tij,ti->tj", M, xr)
    constant = 0.5 * xp.sum(xr * Qx) + 0.5 * xp.sum(ur * Ru) + 0.5 * last @ Qf @ last
    zeros = xp.zeros_like(Qf)
    return LQ(
        A=full["A"], B=full["B"], c=full["c"], Q=Q, R=R, M=M, q=full["q"] - Qx, r=full["r"] - Ru,
        Qf=Qf, qf=qf - Qf @ last, x0=x0, Q0=zeros, q0=zeros[0], constant=constant,
    )  # fmt: skip
