r"""What moves: a discrete-time system that rolls a whole horizon forward and rolls costates backward.

    x_{t+1} = f(x_t, u_t, t, params),   t = 0..N-1.

Forward, along a trajectory (tangents), and backward, through the transposed Jacobians (costates):

    rollout            x_0 -> x_1 -> ... -> x_N
    tangent rollout    dx_{t+1} = A_t dx_t + B_t du_t + f_p dp          A_t = df/dx, B_t = df/du at stage t
    adjoint rollout    lambda_N = gx_N,   lambda_t = gx_t + A_t' lambda_{t+1}
                       gives   B_t' lambda_{t+1}   and   sum_t f_p' lambda_{t+1}

where gx_t is the derivative of some cost in x_t, held apart from the dynamics: lambda_t = dJ/dx_t. The adjoint
rollout is the transpose of the tangent rollout, and the whole engine of the package stands on this pair.

Only the recursion over t is sequential. Everything else, the Jacobians of all stages included, is evaluated for
the whole horizon at once. While nx + nu is small the Jacobians are formed, since the loop then holds nothing but
a small matrix times a vector; beyond `DENSE_LIMIT` each stage applies one vector-Jacobian product instead.
Cost: one rollout, N Jacobians and N (nx x nx) matrix-vector products, O(N) memory.

References: Bryson and Ho, Applied Optimal Control (1975), section 2.2; Recht, Mates of Costate (2016).
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _door
from optctl._arrays import own
from optctl._record import record
from optctl._validate import (
    as_float,
    cast,
    check_kind,
    check_like,
    check_shape,
    check_tree,
    default_float,
    keep_whole,
    result_shape,
    returned,
)
from optctl.dynamics.stage import stage_function

DENSE_LIMIT = 24
"""Largest nx + nu for which the Jacobians of all stages are formed in `adjoint_rollout`."""


class Labels(NamedTuple):
    """Names with units for figures: `Labels(states=("angle [rad]", "rate [rad/s]"), inputs=("torque [N m]",))`."""

    states: tuple[str, ...]
    inputs: tuple[str, ...]


@record()
class Adjoint:
    """What one backward sweep gives.

    Attributes:
        costates: (N+1, nx), lambda_t = dJ/dx_t.
        us: (N, nu), B_t' lambda_{t+1}.
        params: like the parameters, sum over t of f_p' lambda_{t+1}.
    """

    costates: Any
    us: Any
    params: Any


class AbstractDynamics:
    """The interface of every kind of dynamics: five verbs over a whole horizon.

    A kind gives `step`; the verbs follow from it. A kind that knows better overrides a verb.
    Each verb is compiled once per kind, function and shape, and works under `jit`, `vmap` and `grad`.

    Attributes:
        nx: number of states, or None if the kind takes it from the data.
        nu: number of inputs, or None.
        horizon: number of stages if the kind fixes it, else None.
        labels: names and units of states and inputs, for figures, or None.
    """

    nx: Any = None
    nu: Any = None
    labels: Any = None
    horizon: ClassVar[Any] = None
    is_linear: ClassVar[bool] = False
    twice_differentiable: ClassVar[bool] = True
    has_jax_step: ClassVar[bool] = True
    roll_without_inputs: ClassVar[bool] = False
    bounds_memory: ClassVar[bool] = True

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Return x_{t+1}, shape (nx,), from x (nx,), u (nu,), the stage index and the parameters."""
        raise NotImplementedError

    def like_step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Return what has the shape and the degree in (x, u) of the step: itself, unless a loop hides its structure."""
        return self.step(x, u, t, params)

    def rollout(self, x0: Any, us: Any, params: Any = None) -> Any:
        """Return the states xs, shape (N+1, nx), from x0 (nx,) and inputs us (N, nu).

        Example:
            >>> import optctl as oc
            >>> decay = oc.Dynamics(lambda x, u: 0.5 * x + u, nx=1, nu=1)
            >>> print(decay.rollout([1.0], [[0.0], [1.0]])[:, 0])
            [1.   0.5  1.25]
        """
        x0, us = self._floats(x0=x0, us=us)
        params = check_tree(params, "params")
        self.rehearse(x0, us, params)
        return self._run(_rollout, x0, us, params)

    def tangent_rollout(self, xs: Any, us: Any, dx0: Any, dus: Any, params: Any = None, dparams: Any = None) -> Any:
        """Return dxs (N+1, nx), the derivative of the rollout along (dx0, dus, dparams): J v.

        Args:
            xs: (N+1, nx) states, as `rollout` gives them.
            us: (N, nu) inputs.
            dx0: (nx,) direction in the initial state.
            dus: (N, nu) direction in the inputs.
            params: parameters of f, any pytree.
            dparams: direction in the parameters, like `params`; None means zero.
        """
        xs, us, dx0, dus = self._floats(xs=xs, us=us, dx0=dx0, dus=dus)
        params = check_tree(params, "params")
        still = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
        dparams = still if dparams is None else check_tree(dparams, "dparams")
        return self._run(_tangent_rollout, xs, us, dx0, dus, params, dparams)

    def adjoint_rollout(self, xs: Any, us: Any, gxs: Any, params: Any = None) -> Adjoint:
        """Return costates and J' w, for w = gxs, by the backward recursion.

        Args:
            xs: (N+1, nx) states, as `rollout` gives them.
            us: (N, nu) inputs.
            gxs: (N+1, nx) derivative of the cost in each state, taken apart from the dynamics.
            params: parameters of f, any pytree.
        """
        xs, us, gxs = self._floats(xs=xs, us=us, gxs=gxs)
        return self._run(_adjoint_rollout, xs, us, gxs, check_tree(params, "params"))

    def linearize(self, xs: Any, us: Any, params: Any = None) -> tuple[Any, Any]:
        """Return A (N, nx, nx) and B (N, nx, nu), the Jacobians of all stages at once."""
        xs, us = self._floats(xs=xs, us=us)
        return self._run(_linearize, xs, us, check_tree(params, "params"))

    def curvature(self, xs: Any, us: Any, costates: Any, params: Any = None) -> Any:
        """Return (N, nx+nu, nx+nu): second derivatives of lambda_{t+1}' f in (x_t, u_t), all stages at once."""
        xs, us, costates = self._floats(xs=xs, us=us, costates=costates)
        return self._run(_curvature, xs, us, costates, check_tree(params, "params"))

    # The verbs without checks, as the traced code inside the package composes them.

    def roll(self, x0: Any, us: Any, params: Any) -> Any:
        """Rollout by one scan."""

        def forward(x: Any, stage: Any) -> tuple[Any, Any]:
            u, t = stage
            x_next = self.step(x, u, t, params)
            return x_next, x_next

        _, xs = jax.lax.scan(forward, x0, (us, _stages(us)))
        return jnp.concatenate([x0[None], xs])

    def tangent(self, xs: Any, us: Any, dx0: Any, dus: Any, params: Any, dparams: Any) -> Any:
        """dx_{t+1} = A_t dx_t + (B_t du_t + f_p dp), the bracket for all stages at once."""
        _, forcing = jax.jvp(lambda us, params: self._step_all(xs[:-1], us, params), (us, params), (dus, dparams))
        apply_A, data = self._state_jacobians(xs, us, params)

        def forward(dx: Any, stage: Any) -> tuple[Any, Any]:
            data_t, forcing_t = stage
            dx_next = apply_A(data_t)[0](dx) + forcing_t
            return dx_next, dx_next

        _, dxs = jax.lax.scan(forward, dx0, (data, forcing))
        return jnp.concatenate([dx0[None], dxs])

    def adjoint(self, xs: Any, us: Any, gxs: Any, params: Any) -> Adjoint:
        """lambda_t = gx_t + A_t' lambda_{t+1}; then B' lambda and f_p' lambda for all stages at once."""
        apply_A, data = self._state_jacobians(xs, us, params)

        def backward(costate: Any, stage: Any) -> tuple[Any, Any]:
            data_t, gx = stage
            return gx + apply_A(data_t)[1](costate), costate

        costate0, later = jax.lax.scan(backward, gxs[-1], (data, gxs[:-1]), reverse=True)
        gus, gparams = self._input_adjoint(xs, us, later, params, data)
        return Adjoint(jnp.concatenate([costate0[None], later]), gus, gparams)

    def jacobians(self, xs: Any, us: Any, params: Any) -> tuple[Any, Any]:
        """A and B of all stages by forward mode."""
        derivative = jax.jacfwd(self.step, argnums=(0, 1))
        return jax.vmap(derivative, (0, 0, 0, None))(xs[:-1], us, _stages(us), params)

    def hessians(self, xs: Any, us: Any, costates: Any, params: Any) -> Any:
        """Second derivatives of lambda_{t+1}' f by forward over reverse mode."""
        nx = xs.shape[1]

        def contracted(z: Any, t: Any, costate: Any) -> Any:
            return costate @ self.step(z[:nx], z[nx:], t, params)

        zs = jnp.concatenate([xs[:-1], us], axis=1)
        return jax.vmap(jax.hessian(contracted))(zs, _stages(us), costates[1:])

    def map_stages(self, function: Any, xs: Any, us: Any) -> Any:
        """Return `function(x_t, u_t, t)` for t = 0..N-1, stacked along axis 0."""
        return jax.vmap(function)(xs[:-1], us, _stages(us))

    def check_data(self, x0: Any, us: Any, params: Any) -> None:
        """Raise ValueError unless shapes fit and `step` returns a state; runs on shapes only."""
        check_shape(x0, "x0", (self.nx,))
        check_shape(us, "us", (self.horizon, self.nu))
        u = jax.ShapeDtypeStruct(us.shape[1:], us.dtype)
        got = result_shape(self.like_step, "f", x0, u, _last_stage(us), params)
        if not hasattr(got, "shape") or got.shape != x0.shape:
            raise ValueError(f"`f` returns {returned(got)}; expected {x0.shape}, the shape of the state x.")
        if got.dtype != x0.dtype:
            raise ValueError(
                f"`f` returns {got.dtype} for a {x0.dtype} state; constants inside f and the parameters must share"
                " the precision of x0 and us."
            )

    def check_trajectory(self, xs: Any, us: Any, params: Any) -> None:
        """Raise ValueError unless xs has one row more than us and both fit the dynamics."""
        check_shape(us, "us", (self.horizon, self.nu))
        check_shape(xs, "xs", (us.shape[0] + 1, self.nx))
        self.check_data(xs[0], us, params)

    def rehearse(self, x0: Any, us: Any, params: Any) -> None:
        """Try user code that cannot be checked by shapes alone; nothing to do for code that JAX traces."""

    # Shared pieces.

    def _run(self, verb: Any, *arguments: Any) -> Any:
        """Run a verb: by compiled code where it can, else by the definition, which XLA compiles."""
        check_registered(self)
        found = _door.evaluated("dynamics", verb.__name__[1:], self, *arguments)
        return verb(self, *own(arguments)) if found is None else found  # which JAX may keep for derivatives

    def _step_all(self, xs: Any, us: Any, params: Any) -> Any:
        return jax.vmap(self.step, (0, 0, 0, None))(xs, us, _stages(us), params)

    def _forms_jacobians(self, xs: Any, us: Any) -> bool:
        return xs.shape[-1] + us.shape[-1] <= DENSE_LIMIT

    def _state_jacobians(self, xs: Any, us: Any, params: Any) -> tuple[Any, Any]:
        """Return per-stage data and a function of it that gives v -> A v and v -> A' v."""
        if self._forms_jacobians(xs, us):
            data = self.jacobians(xs, us, params)
            return _products_with_matrix, data

        def products(stage: Any) -> tuple[Any, Any]:
            x, u, t = stage

            def f(x: Any) -> Any:
                return self.step(x, u, t, params)

            return (lambda v: jax.jvp(f, (x,), (v,))[1]), (lambda v: jax.vjp(f, x)[1](v)[0])

        return products, (xs[:-1], us, _stages(us))

    def _input_adjoint(self, xs: Any, us: Any, later: Any, params: Any, data: Any) -> tuple[Any, Any]:
        """B_t' lambda_{t+1} and sum_t f_p' lambda_{t+1}."""
        if self._forms_jacobians(xs, us):
            gus = jnp.einsum("tij,ti->tj", data[1], later)
            _, transpose = jax.vjp(lambda params: self._step_all(xs[:-1], us, params), params)
            return gus, transpose(later)[0]
        _, transpose = jax.vjp(lambda us, params: self._step_all(xs[:-1], us, params), us, params)
        return transpose(later)

    def _floats(self, **arrays: Any) -> list[Any]:
        """Check arrays and bring them to one floating type."""
        checked = [as_float(array, name, finite=False) for name, array in arrays.items()]
        dtype = np.result_type(*(array.dtype for array in checked))
        return [cast(array, dtype) for array in checked]


def _products_with_matrix(stage: Any) -> tuple[Any, Any]:
    A, _ = stage
    return (lambda v: A @ v), (lambda v: A.T @ v)


def _stages(us: Any) -> Any:
    return jnp.arange(us.shape[0])


def _last_stage(us: Any) -> Any:
    return np.asarray(max(us.shape[0] - 1, 0))


@jax.jit
def _rollout(dynamics: AbstractDynamics, x0: Any, us: Any, params: Any) -> Any:
    dynamics.check_data(x0, us, params)
    return dynamics.roll(x0, us, params)


@jax.jit
def _tangent_rollout(
    dynamics: AbstractDynamics, xs: Any, us: Any, dx0: Any, dus: Any, params: Any, dparams: Any
) -> Any:
    dynamics.check_trajectory(xs, us, params)
    check_like(dx0, "dx0", xs[0])
    check_like(dus, "dus", us)
    return dynamics.tangent(xs, us, dx0, dus, params, dparams)


@jax.jit
def _adjoint_rollout(dynamics: AbstractDynamics, xs: Any, us: Any, gxs: Any, params: Any) -> Adjoint:
    dynamics.check_trajectory(xs, us, params)
    check_like(gxs, "gxs", xs)
    return dynamics.adjoint(xs, us, gxs, params)


@jax.jit
def _linearize(dynamics: AbstractDynamics, xs: Any, us: Any, params: Any) -> tuple[Any, Any]:
    dynamics.check_trajectory(xs, us, params)
    return dynamics.jacobians(xs, us, params)


@jax.jit
def _curvature(dynamics: AbstractDynamics, xs: Any, us: Any, costates: Any, params: Any) -> Any:
    dynamics.check_trajectory(xs, us, params)
    check_like(costates, "costates", xs)
    return dynamics.hessians(xs, us, costates, params)


@record(static=("nx", "nu", "labels"))
class Dynamics(AbstractDynamics):
    """Dynamics from any function that JAX can trace.

    Args:
        f: `f(x, u)`, `f(x, u, t)` or `f(x, u, t, params)`, returns the next state, shape (nx,);
            t is the stage index. A function is compiled once per function object: define it once.
        nx: number of states; None takes it from x0.
        nu: number of inputs; None takes it from us.
        labels: `Labels` with names and units for figures.

    Raises:
        ValueError: if `f` takes another number of arguments or, given nx and nu, returns another shape.

    Example:
        >>> import optctl as oc
        >>> dynamics = oc.Dynamics(lambda x, u: x + 0.1 * u, nx=2, nu=2)
        >>> dynamics.rollout([0.0, 0.0], [[1.0, 2.0]]).shape
        (2, 2)
    """

    f: Any
    nx: int | None = None
    nu: int | None = None
    labels: Labels | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "f", stage_function(self.f, "f", vector=True))
        keep_whole(self, "nx", "states", optional=True)
        keep_whole(self, "nu", "inputs", least=0, optional=True)
        check_labels(self.labels, self.nx, self.nu)
        if self.nx is not None and self.nu is not None and not self.f.takes("params"):
            dtype = default_float()
            self.check_data(np.zeros(self.nx, dtype), np.zeros((1, self.nu), dtype), None)

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Return f(x, u, t, params) as one array."""
        return self.f(x, u, t, params)


def check_dynamics(dynamics: Any) -> None:
    """Raise unless it is a kind of dynamics."""
    check_kind(dynamics, AbstractDynamics, "dynamics", "Dynamics(f), LinearDynamics, discretize(...) or another kind")


def check_registered(dynamics: Any) -> None:
    """Raise unless the kind is a pytree, which compiled code needs."""
    if jax.tree_util.all_leaves([dynamics]):
        name = type(dynamics).__name__
        raise ValueError(f"`{name}` is not registered with JAX; decorate the class with @optctl.record().")


def check_labels(labels: Any, nx: Any, nu: Any) -> None:
    """Raise unless there are as many labels as states and inputs."""
    if labels is None:
        return
    if not isinstance(labels, Labels) or not all(isinstance(part, tuple) for part in labels):
        raise ValueError(
            "`labels` must be Labels(states=(...), inputs=(...)), with tuples of names such as 'angle [rad]'."
        )
    for part, size, what in ((labels.states, nx, "states"), (labels.inputs, nu, "inputs")):
        if size is not None and len(part) != size:
            raise ValueError(f"`labels` names {len(part)} {what}; expected {size}.")
