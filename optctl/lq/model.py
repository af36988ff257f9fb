r"""The quadratic model: linear dynamics with stage-wise quadratic cost.

    minimize   1/2 x_0'Q0 x_0 + q0'x_0
               + sum_t ( 1/2 x_t'Q_t x_t + x_t'M_t u_t + 1/2 u_t'R_t u_t + q_t'x_t + r_t'u_t )
               + 1/2 x_N'Qf x_N + qf'x_N + constant
    subject to x_{t+1} = A_t x_t + B_t u_t + c_t,    x_0 given, or free (then Q0, q0 weigh it).

One record for an LQR problem, a Kalman smoother (process noise as input, x_0 free) and the step of a Newton method.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl._validate import is_concrete
from optctl.dynamics.stage import StageFunction
from optctl.problem import Problem


@record()
class LQ:
    """A linear-quadratic problem; every stage quantity has a leading axis N.

    Attributes:
        A: (N, nx, nx).
        B: (N, nx, nu).
        c: (N, nx).
        Q: (N, nx, nx).
        R: (N, nu, nu).
        M: (N, nx, nu).
        q: (N, nx).
        r: (N, nu).
        Qf: (nx, nx).
        qf: (nx,).
        x0: (nx,) given initial state, or None if free.
        Q0: (nx, nx) weight of a free x_0.
        q0: (nx,) linear weight of a free x_0.
        constant: the part of the cost that nothing changes.
    """

    A: Any
    B: Any
    c: Any
    Q: Any
    R: Any
    M: Any
    q: Any
    r: Any
    Qf: Any
    qf: Any
    x0: Any
    Q0: Any
    q0: Any
    constant: Any

    @classmethod
    def from_problem(cls, problem: Problem) -> "LQ":
        """Return the model of a linear-quadratic problem, exactly; its inequality constraints play no part.

        Raises:
            ValueError: if the dynamics are not linear (as probed) or a cost is not quadratic, naming which.
        """
        dynamics = problem.dynamics
        if dynamics.nx is None or dynamics.nu is None or not dynamics.has_jax_step:
            raise ValueError(
                f"`dynamics` is {type(dynamics).__name__}; expected LinearDynamics, or a step of known size."
            )
        if is_concrete(problem):
            name = _not_quadratic(problem)
            if name is not None:
                what = "linear" if name == "dynamics" else "quadratic"
                raise ValueError(f"`{name}` is not {what}; use method='newton_cg' or 'lbfgs'.")
        return _quadratic_model(problem)


def is_linear_quadratic(problem: Problem) -> bool:
    """True if the dynamics are `LinearDynamics` and all costs are quadratic, as probed at several sizes."""
    return problem.dynamics.is_linear and _not_quadratic(problem) is None


def zero_trajectory(problem: Problem) -> tuple[Any, Any]:
    """Return zero states (N+1, nx) and inputs (N, nu) of the problem's size."""
    N, nx, nu = problem.steps, problem.dynamics.nx, problem.dynamics.nu
    dtype = jnp.zeros(()).dtype if problem.x0 is None else problem.x0.dtype
    return jnp.zeros((N + 1, nx), dtype), jnp.zeros((N, nu), dtype)


@jax.jit
def _quadratic_model(problem: Problem) -> LQ:
    xs, us = zero_trajectory(problem)
    problem.check_shapes(xs[0], us, problem.params)
    nx = xs.shape[1]
    A, B = problem.dynamics.jacobians(xs, us, problem.params)
    zeros = jnp.zeros((nx,), xs.dtype)
    c = problem.dynamics.map_stages(lambda x, u, t: problem.dynamics.step(x, u, t, problem.params), xs, us)
    value, slope, bend = _expand_stages(problem, xs, us)
    value_f, qf, Qf = _expand(problem.terminal_cost, zeros, problem.params)
    value_0, q0, Q0 = _expand(problem.initial_cost, zeros, problem.params)
    constant = (
        jnp.sum(value) + value_f + (value_0 if problem.x0 is None else problem.start_cost(problem.x0, problem.params))
    )
    return LQ(
        A=A, B=B, c=c,
        Q=bend[:, :nx, :nx], R=bend[:, nx:, nx:], M=bend[:, :nx, nx:], q=slope[:, :nx], r=slope[:, nx:],
        Qf=Qf, qf=qf, x0=problem.x0, Q0=Q0, q0=q0, constant=constant,
    )  # fmt: skip


def _expand(cost: StageFunction | None, x: Any, params: Any) -> tuple[Any, Any, Any]:
    """Value, gradient and Hessian of a function of the state."""
    if cost is None:
        return jnp.zeros((), x.dtype), jnp.zeros_like(x), jnp.zeros(x.shape * 2, x.dtype)
    value, slope = jax.value_and_grad(cost)(x, params)
    return value, slope, jax.hessian(cost)(x, params)


def _expand_stages(problem: Problem, xs: Any, us: Any) -> tuple[Any, Any, Any]:
    """Value, gradient and Hessian of the stage cost in z = (x, u), for all stages at once."""
    nx = xs.shape[1]
    stage_cost = problem.stage_cost

    def expand(x: Any, u: Any, t: Any) -> Any:
        z = jnp.concatenate([x, u])
        if stage_cost is None:
            return jnp.zeros((), z.dtype), jnp.zeros_like(z), jnp.zeros(z.shape * 2, z.dtype)

        def cost(z: Any) -> Any:
            return stage_cost(z[:nx], z[nx:], t, problem.params)

        return *jax.value_and_grad(cost)(z), jax.hessian(cost)(z)

    return problem.dynamics.map_stages(expand, xs, us)


PROBE_SCALES = (1e-2, 1.0, 1e3, 1e6)
"""Probing at several sizes finds costs that are quadratic only near the origin, or only away from it."""


def _not_quadratic(problem: Problem) -> str | None:
    """Name the part that departs from its model (linear dynamics, quadratic costs) somewhere, or None."""
    gaps = jax.device_get(_quadratic_gaps(problem))
    for name, gap in gaps.items():
        tolerance = 1e-3 if gap.dtype == np.float32 else 1e-8
        if getattr(problem, name) is not None and not np.all(gap <= tolerance):
            return name
    return None


@jax.jit
def _quadratic_gaps(problem: Problem) -> dict[str, Any]:
    """Largest relative distance of each cost's slope from its model's, at points of several sizes."""
    xs, us = zero_trajectory(problem)
    rng = np.random.default_rng(0)
    noise_x, noise_u = (jnp.asarray(rng.normal(size=z.shape), z.dtype) for z in (xs, us))

    def slopes(xs: Any, us: Any) -> dict[str, Any]:
        step = lambda x, u, t: problem.dynamics.step(x, u, t, problem.params)  # noqa: E731
        nothing = jnp.zeros((1,), xs.dtype)
        return {
            "dynamics": nothing if problem.dynamics.is_linear else problem.dynamics.map_stages(step, xs, us),
            "stage_cost": _expand_stages(problem, xs, us)[1],
            "terminal_cost": _expand(problem.terminal_cost, xs[-1], problem.params)[1],
            "initial_cost": _expand(problem.initial_cost, xs[0], problem.params)[1],
        }

    first = slopes(xs, us)

    def gaps(scale: Any) -> dict[str, Any]:
        direction = (scale * noise_x, scale * noise_u)
        there = slopes(*direction)
        change = jax.jvp(slopes, (xs, us), direction)[1]

        def gap(there: Any, first: Any, change: Any) -> Any:
            size = jnp.max(jnp.abs(there)) + jnp.max(jnp.abs(first)) + jnp.max(jnp.abs(change))
            return jnp.max(jnp.abs(there - first - change)) / (size + jnp.finfo(size.dtype).tiny)

        return jax.tree.map(gap, there, first, change)

    probed = jax.vmap(gaps)(jnp.asarray(PROBE_SCALES, xs.dtype))
    return jax.tree.map(jnp.max, probed)
