"""Measurements and known inputs: checked, and put into the form that filters and smoothers take."""

from typing import Any

import jax
import numpy as np

from optctl._arrays import namespace
from optctl._validate import as_float, cast, is_concrete
from optctl.estimation.kalman import Series, outer, summed, symmetric, transpose
from optctl.estimation.linear_gaussian import LinearGaussian


def check_measurements(model: LinearGaussian, ys: Any, *, least: int = 1) -> Any:
    """Return ys as (N+1, ny)."""
    if not isinstance(model, LinearGaussian):
        raise ValueError(f"`model` is a {type(model).__name__}; expected optctl.LinearGaussian.")
    if isinstance(ys, np.ma.MaskedArray):
        ys = np.ma.filled(ys.astype(float), np.nan)
    ys = as_float(ys, "ys", finite=False)
    if ys.ndim == 1 and model.ny == 1:
        ys = ys[:, None]
    if ys.ndim != 2 or ys.shape[1] != model.ny:
        raise ValueError(f"`ys` has shape {ys.shape}; expected (N+1, {model.ny}), as `C` is {model.C.shape}.")
    if ys.shape[0] < least:
        raise ValueError(f"`ys` has {ys.shape[0]} rows; expected at least {('one', 'two')[least - 1]}.")
    if is_concrete(ys) and np.isinf(np.asarray(ys)).any():
        raise ValueError("`ys` holds inf; expected numbers, or NaN where a measurement is missing.")
    return ys


def check_inputs(model: LinearGaussian, us: Any, N: int) -> Any:
    """Return us as (N, nu) or (N+1, nu)."""
    if us is None:
        if model.nu:
            raise ValueError(f"`us` is missing; the model has inputs: expected ({N + 1}, {model.nu}).")
        return np.zeros((N + 1, 0), model.A.dtype)
    if not model.nu:
        raise ValueError("`us` is given, but the model has no inputs; pass B=... (or D=...) to LinearGaussian.")
    us = as_float(us, "us")
    if us.ndim != 2 or us.shape[0] not in (N, N + 1) or us.shape[1] != model.nu:
        raise ValueError(f"`us` has shape {us.shape}; expected ({N}, {model.nu}) or ({N + 1}, {model.nu}).")
    return us


def check_stages(model: LinearGaussian, N: int) -> None:
    """Raise unless what the model gives per stage has the right number of rows."""
    for name, count in (("A", N), ("W", N), ("B", N), ("c", N), ("C", N + 1), ("V", N + 1), ("D", N + 1)):
        matrix = getattr(model, name)
        if matrix.ndim == (2 if name == "c" else 3) and matrix.shape[0] != count:
            raise ValueError(f"`{name}` has {matrix.shape[0]} stages; expected {count} for {N + 1} measurements.")


def check_series(model: LinearGaussian, ys: Any, us: Any = None) -> tuple[Any, Any]:
    """Return ys as (N+1, ny) and us as (N, nu) or (N+1, nu).

    Raises:
        ValueError: for shapes that do not fit.
    """
    ys = check_measurements(model, ys)
    N = ys.shape[0] - 1
    check_stages(model, N)
    return ys, check_inputs(model, us, N)


def series_of(model: LinearGaussian, ys: Any, us: Any) -> Series:
    """Return the model and its data with known inputs absorbed; matrices that do not change are not copied."""
    N, b, z = ys.shape[0] - 1, model.c, ys
    if model.nu:
        b = _each(model.B, us[:N]) + (model.c if model.c.ndim == 2 else model.c[None])
        z = without_feedthrough(model, ys, us)
    dtype = np.result_type(model.A.dtype, z.dtype)
    W, V, cov0 = (symmetric(m) for m in (model.W, model.V, model.cov0))
    fields = (model.A, model.C, W, V, model.mean0, cov0, b, z)
    return Series(*(cast(field, dtype) for field in fields))


def slopes_of_data(model: LinearGaussian, ys: Any, us: Any, g: Series) -> tuple[LinearGaussian, Any, Any]:
    """Return the slopes in model, ys and us of a number whose slopes in the fields of `series_of(...)` are g."""
    xp, N, n = namespace(g.z), ys.shape[0] - 1, us.shape[0]
    B, D, gus = xp.zeros_like(model.B), xp.zeros_like(model.D), xp.zeros_like(us)
    if model.nu:
        gz = g.z[:n]
        B, D = summed(outer(g.b, us[:N]), model.B), -outer(gz, us)
        missing = xp.zeros((N + 1 - n, *D.shape[1:]), D.dtype)  # of u_N, where it is not given
        D = summed(xp.concatenate([D, missing]), model.D)
        through = -_each(transpose(model.D if model.D.ndim == 2 else model.D[:n]), gz)
        gus = through + xp.concatenate([_each(transpose(model.B), g.b), xp.zeros_like(through[N:])])
    W, V, cov0 = (symmetric(m) for m in (g.W, g.V, g.cov0))
    fields = {"A": g.A, "C": g.C, "W": W, "V": V, "mean0": g.mean0, "cov0": cov0, "B": B, "D": D}
    fields["c"] = summed(g.b, model.c)
    leaves = [cast(fields[name], value.dtype) for name, value in vars(model).items()]
    return jax.tree.unflatten(jax.tree.structure(model), leaves), cast(g.z, ys.dtype), cast(gus, us.dtype)


def without_feedthrough(model: LinearGaussian, ys: Any, us: Any) -> Any:
    """Return y - D u. An input u_N that was not given must not matter: where it does, y_N becomes infinite."""
    N = ys.shape[0] - 1
    if us.shape[0] == N + 1:
        return ys - _each(model.D, us)
    last = model.D if model.D.ndim == 2 else model.D[-1]
    xp = namespace(ys)
    matters = xp.any(xp.any(last != 0, axis=1) & ~xp.isnan(ys[-1]))
    if is_concrete(matters) and matters:
        raise ValueError(f"`us` has {N} rows; expected {N + 1}: the last measurement sees the input u_N through D.")
    z = ys[:N] - _each(model.D if model.D.ndim == 2 else model.D[:N], us)
    return xp.concatenate([z, xp.where(matters, xp.inf, ys[-1:]).astype(z.dtype)])


def _each(matrix: Any, vectors: Any) -> Any:
    return namespace(vectors).einsum("...ij,...j->...i", matrix, vectors)
