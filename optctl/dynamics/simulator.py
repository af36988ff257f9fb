"""A simulator outside JAX: a NumPy step with the user's own derivatives.

Rollout, Jacobians and the backward recursion each run on the host in one call for the whole horizon; under `jit`
that call is a callback. There are no second derivatives, so Newton methods refuse this kind.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import ravel, scan, to_host
from optctl._record import record
from optctl._validate import check_shape, is_concrete, keep_whole
from optctl.dynamics.base import AbstractDynamics, Adjoint
from optctl.dynamics.stage import stage_function

VJP = ("w", "x", "u", "t", "params")


@record(static=("nx", "nu"))
class SimulatorDynamics(AbstractDynamics):
    """Dynamics from a NumPy step function and its vector-Jacobian product or its Jacobian.

    Args:
        f: `step(x, u[, t[, params]])`, NumPy in, the next state (nx,) out.
        nx: number of states.
        nu: number of inputs.
        vjp: `vjp(w, x, u[, t[, params]])` returning (A'w, B'w), or (A'w, B'w, f_p'w) where there are parameters.
        jacobian: `jacobian(x, u[, t[, params]])` returning (A, B), shapes (nx, nx), (nx, nu); or (A, B, f_p)
            with f_p (nx, np), where the parameters are one vector (np,). Give this or `vjp`.

    Raises:
        ValueError: if neither or both derivatives are given, or a returned shape is wrong. Check the derivative
            with `optctl.check_adjoint`.

    Example:
        >>> import numpy as np
        >>> import optctl as oc
        >>> step = lambda x, u: np.array([x[0] + 0.1 * np.sin(x[0]) + u[0]])
        >>> jacobian = lambda x, u: (np.array([[1 + 0.1 * np.cos(x[0])]]), np.array([[1.0]]))
        >>> plant = oc.SimulatorDynamics(step, nx=1, nu=1, jacobian=jacobian)
        >>> print(plant.rollout([0.0], [[1.0], [0.0]])[:, 0].round(4))
        [0.     1.     1.0841]
    """

    twice_differentiable: ClassVar[bool] = False
    has_jax_step: ClassVar[bool] = False
    bounds_memory: ClassVar[bool] = False

    f: Any
    nx: int
    nu: int
    vjp: Any = None
    jacobian: Any = None

    def __post_init__(self) -> None:
        keep_whole(self, "nx", "states", optional=True)
        keep_whole(self, "nu", "inputs", least=0, optional=True)
        if self.nx is None or self.nu is None:
            raise ValueError("`nx` and `nu` are needed for a simulator.")
        if (self.vjp is None) == (self.jacobian is None):
            raise ValueError("give exactly one of `vjp` and `jacobian`, the derivative of the simulator's step.")
        object.__setattr__(self, "f", stage_function(self.f, "step"))
        if self.vjp is not None:
            object.__setattr__(self, "vjp", stage_function(self.vjp, "vjp", VJP, least=3))
        else:
            object.__setattr__(self, "jacobian", stage_function(self.jacobian, "jacobian"))

    def check_data(self, x0: Any, us: Any, params: Any) -> None:
        """Raise ValueError unless x0 is (nx,) and us is (N, nu)."""
        check_shape(x0, "x0", (self.nx,))
        check_shape(us, "us", (None, self.nu))

    def rehearse(self, x0: Any, us: Any, params: Any) -> None:
        """Run one stage on the host, where errors of the user's code read well."""
        if is_concrete((x0, us, params)):
            us = us[:1]
            xs = self.roll(x0, us, params)
            self.adjoint(xs, us, np.ones(xs.shape, xs.dtype), params)

    def _run(self, verb: Any, *arguments: Any) -> Any:
        """Run a verb as plain Python: the host does the work, and its errors stay readable."""
        return verb.__wrapped__(self, *arguments)

    def roll(self, x0: Any, us: Any, params: Any) -> Any:
        """All steps in one host call."""

        def host(x0: Any, us: Any, params: Any) -> Any:
            xs = np.empty((len(us) + 1, self.nx), x0.dtype)
            xs[0] = x0
            for t, u in enumerate(us):
                x_next = np.asarray(self.f(xs[t].copy(), u.copy(), t, params))  # copies: it may work in place
                if np.iscomplexobj(x_next):
                    raise ValueError(f"`step` returns complex numbers at stage {t}; expected real ones.")
                check_shape(x_next, f"step's result at stage {t}", (self.nx,))
                xs[t + 1] = x_next
            return xs

        return _on_host(host, jax.ShapeDtypeStruct((us.shape[0] + 1, self.nx), x0.dtype), x0, us, params)

    def tangent(self, xs: Any, us: Any, dx0: Any, dus: Any, params: Any, dparams: Any) -> Any:
        """dx_{t+1} = A_t dx_t + B_t du_t + f_p dp with the user's Jacobians."""
        A, B, Fp = self._all_jacobians(xs, us, params)
        now = is_concrete((A, dx0, dus, dparams))
        (dx0, dus, dparams), xp = (to_host((dx0, dus, dparams)), np) if now else ((dx0, dus, dparams), jnp)
        forcing = xp.einsum("tij,tj->ti", B, dus)
        if jax.tree.leaves(params):
            forcing = forcing + xp.einsum("tij,j->ti", Fp, ravel(dparams))

        def forward(dx: Any, stage: Any) -> tuple[Any, Any]:
            A_t, forcing_t = stage
            dx_next = A_t @ dx + forcing_t
            return dx_next, dx_next

        _, dxs = (scan if now else jax.lax.scan)(forward, dx0, (A, forcing))
        return xp.concatenate([dx0[None], dxs])

    def adjoint(self, xs: Any, us: Any, gxs: Any, params: Any) -> Adjoint:
        """The backward recursion in one host call."""

        def host(xs: Any, us: Any, gxs: Any, params: Any) -> Any:
            costates, gus = np.empty_like(xs), np.empty_like(us)
            costates[-1] = gxs[-1]
            gparams = jax.tree.map(np.zeros_like, params)
            for t in reversed(range(len(us))):
                gx, gus[t], gp = self._host_vjp(costates[t + 1], xs[t], us[t], t, params)
                costates[t] = gxs[t] + gx
                gparams = jax.tree.map(np.add, gparams, gp)
            return costates, gus, gparams

        def shape(array: Any) -> Any:
            return jax.ShapeDtypeStruct(jnp.shape(array), jnp.result_type(array))

        shapes = shape(xs), shape(us), jax.tree.map(shape, params)
        return Adjoint(*_on_host(host, shapes, xs, us, gxs, params))

    def jacobians(self, xs: Any, us: Any, params: Any) -> tuple[Any, Any]:
        """The user's Jacobians of all stages, or nx products of the user's vjp a stage."""
        A, B, _ = self._all_jacobians(xs, us, params)
        return A, B

    def hessians(self, xs: Any, us: Any, costates: Any, params: Any) -> Any:
        """Not available."""
        raise ValueError("SimulatorDynamics has no second derivatives; use method='lbfgs' or 'gradient_descent'.")

    def _all_jacobians(self, xs: Any, us: Any, params: Any) -> tuple[Any, Any, Any]:
        n_params = sum(np.size(leaf) for leaf in jax.tree.leaves(params))

        def host(xs: Any, us: Any, params: Any) -> Any:
            N = len(us)
            A = np.empty((N, self.nx, self.nx), xs.dtype)
            B = np.empty((N, self.nx, self.nu), xs.dtype)
            Fp = np.empty((N, self.nx, n_params), xs.dtype)
            for t in range(N):
                if self.jacobian is not None:
                    parts = self._host_jacobian(xs[t], us[t], t, params)
                    A[t], B[t] = parts[:2]
                    Fp[t] = parts[2] if n_params else 0.0
                    continue
                for i, w in enumerate(np.eye(self.nx, dtype=xs.dtype)):
                    A[t, i], B[t, i], gp = self._host_vjp(w, xs[t], us[t], t, params)
                    Fp[t, i] = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gp)] or [np.zeros(0)])
            return A, B, Fp

        N = us.shape[0]
        shapes = [jax.ShapeDtypeStruct((N, self.nx, n), xs.dtype) for n in (self.nx, self.nu, n_params)]
        return _on_host(host, tuple(shapes), xs, us, params)

    def _host_vjp(self, w: Any, x: Any, u: Any, t: int, params: Any) -> tuple[Any, Any, Any]:
        """(A'w, B'w, f_p'w) of one stage, by the user's vjp or Jacobian, with their shapes checked."""
        with_params = bool(jax.tree.leaves(params))
        if self.vjp is None:
            parts = tuple(part.T @ w for part in self._host_jacobian(x, u, t, params))
        else:
            parts = self.vjp(w.copy(), x.copy(), u.copy(), t, params)
            _check_count(parts, "vjp", with_params)
        check_shape(parts[0], f"vjp's A'w at stage {t}", (self.nx,))
        check_shape(parts[1], f"vjp's B'w at stage {t}", (self.nu,))
        gp = parts[2] if with_params else params
        for got, want in zip(jax.tree.leaves(gp), jax.tree.leaves(params), strict=True):
            check_shape(got, f"vjp's f_p'w at stage {t}", np.shape(want))
        return parts[0], parts[1], gp

    def _host_jacobian(self, x: Any, u: Any, t: int, params: Any) -> tuple[Any, ...]:
        """(A, B[, f_p]) of one stage by the user's Jacobian, with their shapes checked."""
        assert self.jacobian is not None
        sizes = [self.nx, self.nu]
        if jax.tree.leaves(params):
            if not jax.tree_util.all_leaves([params]) or np.ndim(params) != 1:
                raise ValueError("`jacobian` needs parameters that are one vector (np,); give `vjp` for other pytrees.")
            sizes.append(np.size(params))
        parts = self.jacobian(x.copy(), u.copy(), t, params)
        _check_count(parts, "jacobian", len(sizes) == 3)
        for part, columns, what in zip(parts, sizes, ("A", "B", "f_p"), strict=False):
            check_shape(part, f"jacobian's {what} at stage {t}", (self.nx, columns))
        return tuple(np.asarray(part) for part in parts)


def _check_count(parts: Any, name: str, with_params: bool) -> None:
    expected = 2 + with_params
    if not isinstance(parts, list | tuple) or len(parts) != expected:
        got = len(parts) if isinstance(parts, list | tuple) else type(parts).__name__
        what = "with" if with_params else "without"
        raise ValueError(f"`{name}` returned {got}; expected {expected} arrays ({what} the derivative in params).")


def _on_host(function: Callable, shapes: Any, *args: Any) -> Any:
    """Call a NumPy function now if its arguments are concrete, else as a callback from compiled code."""

    def numpy_function(*args: Any) -> Any:
        return jax.tree.map(np.asarray, function(*jax.tree.map(np.asarray, args)))

    if is_concrete(args):
        return jax.tree.map(lambda made, of: made.astype(of.dtype), numpy_function(*args), shapes)
    return jax.pure_callback(numpy_function, shapes, *args, vmap_method="sequential")
