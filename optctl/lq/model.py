r"""The quadratic model: linear dynamics with stage-wise quadratic cost.

    minimize   1/2 x_0'Q0 x_0 + q0'x_0
               + sum_t ( 1/2 x_t'Q_t x_t + x_t'M_t u_t + 1/2 u_t'R_t u_t + q_t'x_t + r_t'u_t )
               + 1/2 x_N'Qf x_N + qf'x_N + constant
    subject to x_{t+1} = A_t x_t + B_t u_t + c_t,    x_0 given, or free (then Q0, q0 weigh it), or partly free.

One record for an LQR problem, a Kalman smoother (process noise as input, x_0 free), the step of a Newton method and the
system of an implicit derivative.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl import _door
from optctl._arrays import namespace, to_device, to_host
from optctl._door import opens
from optctl._record import record
from optctl._validate import as_float, default_float, is_concrete, is_whole
from optctl.dynamics.stage import StageFunction
from optctl.engine.native import Engine, find_engine
from optctl.problem import Problem, once
from optctl.tape import degree


@record(static=("horizon", "x0_free"))
class LQ:
    """A linear-quadratic problem.

    A stage quantity has a leading axis N, or none where it is the same at every stage (it is never copied then).

    Args:
        A: (nx, nx) or (N, nx, nx).
        B: (nx, nu) or (N, nx, nu).
        Q: (nx, nx) or (N, nx, nx), symmetric.
        R: (nu, nu) or (N, nu, nu), symmetric.
        Qf: (nx, nx), symmetric.
        c: (nx,) or (N, nx) offset of the dynamics; None is zero, as for all that follow.
        M: (nx, nu) or (N, nx, nu) cross weight.
        q: (nx,) or (N, nx).
        r: (nu,) or (N, nu).
        qf: (nx,).
        x0: (nx,) given initial state; None if all of it is free.
        Q0: (nx, nx) weight of a free x_0, symmetric.
        q0: (nx,) linear weight of a free x_0.
        constant: the part of the cost that nothing changes.
        horizon: N; needed only where no stage quantity has a leading axis.
        x0_free: which components of x_0 are free, nx booleans; the others are those of `x0`. None: all, if x0 is None,
            else none.

    Raises:
        ValueError: for shapes that do not fit, weights that are not symmetric, NaN, booleans, missing horizon.
            Indefinite weights are allowed: whether the problem is convex, the solution tells.

    Example:
        >>> import optctl as oc
        >>> lq = oc.lq.LQ([[1.0]], [[1.0]], Q=[[1.0]], R=[[1.0]], Qf=[[0.0]], x0=[1.0], horizon=30)
        >>> print(oc.lq.solve(lq).K[0].round(6))
        [[-0.618034]]
    """

    A: Any
    B: Any
    Q: Any
    R: Any
    Qf: Any
    c: Any = None
    M: Any = None
    q: Any = None
    r: Any = None
    qf: Any = None
    x0: Any = None
    Q0: Any = None
    q0: Any = None
    constant: Any = 0.0
    horizon: Any = None
    x0_free: Any = None

    def __post_init__(self) -> None:
        A, B = as_float(self.A, "A"), as_float(self.B, "B")
        if A.ndim not in (2, 3) or A.shape[-1] != A.shape[-2]:
            raise ValueError(f"`A` has shape {A.shape}; expected (nx, nx) or (N, nx, nx).")
        nx = A.shape[-1]
        if B.ndim not in (2, 3) or B.shape[-2] != nx:
            raise ValueError(f"`B` has shape {B.shape}; expected ({nx}, nu) or (N, {nx}, nu), as `A` is {A.shape}.")
        nu = B.shape[-1]
        fields = {"A": A, "B": B}
        for name, shape in _stage_shapes(nx, nu).items():
            fields[name] = _checked(getattr(self, name), name, shape, A.dtype, stages=True)
        for name, shape in (("Qf", (nx, nx)), ("qf", (nx,)), ("Q0", (nx, nx)), ("q0", (nx,)), ("constant", ())):
            fields[name] = _checked(getattr(self, name), name, shape, A.dtype)
        fields["x0"] = None if self.x0 is None else as_float(self.x0, "x0", (nx,))
        lengths = {name: value.shape[0] for name, value in fields.items() if _has_stages(name, value)}
        if self.horizon is not None:
            if not is_whole(self.horizon, least=0):  # 0 is refused below, beside the lengths of the data
                raise ValueError(f"`horizon` is {self.horizon!r}; expected a positive whole number of steps N.")
            lengths["horizon"] = int(self.horizon)
        if not lengths:
            raise ValueError("`horizon` is missing; nothing is given per stage, so pass horizon=N.")
        if len(set(lengths.values())) > 1 or min(lengths.values()) < 1:
            raise ValueError(f"numbers of stages differ or are not positive: {lengths}; expected one N >= 1.")
        given = (self.x0 is None,) * nx if self.x0_free is None else self.x0_free
        is_free = tuple(bool(b) for b in given) if np.ndim(given) == 1 else ()
        if len(is_free) != nx or (self.x0 is None and not all(is_free)):
            raise ValueError(f"`x0_free` is {self.x0_free}; expected {nx} booleans, and x0 where one of them is False.")
        dtype = np.result_type(*(value.dtype for value in fields.values() if value is not None))
        for name, value in _door.hold(fields, dtype).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "horizon", next(iter(lengths.values())))
        object.__setattr__(self, "x0_free", is_free)

    @property
    def nx(self) -> int:
        """Number of states."""
        return self.B.shape[-2]

    @property
    def nu(self) -> int:
        """Number of inputs."""
        return self.B.shape[-1]

    def per_stage(self) -> "LQ":
        """Return the same model with a leading axis N on every stage quantity."""
        shapes = {"A": (self.nx, self.nx), "B": (self.nx, self.nu), **_stage_shapes(self.nx, self.nu)}
        N = self.horizon
        return self.with_numbers(
            **{name: namespace(v).broadcast_to(v, (N, *shapes[name])) for name, v in self._of(shapes)}
        )

    def replace(self, **changes: Any) -> "LQ":
        """Return the same model with other values in the named fields, such as `lq.replace(x0=...)`."""
        fields = {**vars(self), **changes}
        if (fields["x0"] is None) != (self.x0 is None) and "x0_free" not in changes:
            if self.x0 is not None and any(self.x0_free):
                raise ValueError(
                    f"`x0` is None, but some components were given (x0_free {self.x0_free}); pass x0_free."
                )
            fields["x0_free"] = None
        return LQ(**fields)

    def symmetrized(self) -> "LQ":
        """Return the model with Q, R, Qf, Q0 replaced by their symmetric parts, which are all that its cost sees."""
        return self.with_numbers(**{name: (w + w.swapaxes(-1, -2)) / 2 for name, w in self._of(("Q", "R", "Qf", "Q0"))})

    def _of(self, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
        return ((name, getattr(self, name)) for name in names)

    def with_numbers(self, **changes: Any) -> "LQ":
        """Return the same model with other numbers, which need no check."""
        made = object.__new__(LQ)
        vars(made).update(vars(self) | changes)
        return made

    @classmethod
    def along(cls, problem: Problem, xs: Any, us: Any, params: Any = None, *, costates: Any = None) -> "LQ":
        """Return the quadratic model of a problem around a trajectory, in the steps dx = x - xs_t, du = u - us_t.

        A and B are the Jacobians, c the gaps f(x_t, u_t) - x_{t+1}, Q, R, M the Hessian of the cost: Gauss-Newton in
        the dynamics. With costates the curvature of costates' f is added: Newton's model. The first step is x0 - xs_0
        where the problem gives x0, else free.

        Args:
            problem: the problem; its constraints play no part.
            xs: (N+1, nx) states, which need not satisfy the dynamics.
            us: (N, nu) inputs.
            params: as the problem's; None takes those.
            costates: (N+1, nx) multipliers, None leaves the curvature out.

        Raises:
            ValueError: for shapes that do not fit.

        Example:
            >>> import optctl as oc
            >>> problem = oc.problems.cartpole_push()
            >>> us = np.zeros((problem.horizon, 1))
            >>> xs = problem.dynamics.rollout(problem.x0, us)
            >>> step = oc.lq.solve(oc.lq.LQ.along(problem, xs, us)).us
            >>> step.shape
            (25, 1)

        References:
            Li and Todorov (2004), Iterative linear quadratic regulator design, section 3.
        """
        if not isinstance(problem, Problem):
            raise ValueError(f"`problem` is a {type(problem).__name__}; expected optctl.Problem.")
        N, nx, nu = problem.steps, problem.dynamics.nx, problem.dynamics.nu
        xs, us = as_float(xs, "xs", (N + 1, nx)), as_float(us, "us", (N, nu))
        if costates is not None:
            costates = as_float(costates, "costates", (N + 1, nx))
        return _model_along(problem, xs, us, problem.params if params is None else params, costates)

    @classmethod
    def from_problem(cls, problem: Problem) -> "LQ":
        """Return the model of a linear-quadratic problem, exactly; its inequality constraints play no part.

        Bounds on x_0 are among those: to fix components of it, `replace(x0=..., x0_free=...)` in the model.

        Raises:
            ValueError: if the dynamics are not linear or a cost is not quadratic by its structure, naming which.
        """
        check_linear_quadratic(problem)
        return _model_along(problem, *zero_trajectory(problem), problem.params, None)


def check_linear_quadratic(problem: Problem) -> None:
    """Raise ValueError unless a problem is linear-quadratic by its structure, naming what is not."""
    problem = to_device(problem)  # what indexes by stage needs JAX's arrays
    dynamics = problem.dynamics
    if dynamics.nx is None or dynamics.nu is None or not dynamics.has_jax_step:
        raise ValueError(f"`dynamics` is {type(dynamics).__name__}; expected LinearDynamics, or a step of known size.")
    reason = _departure(problem)
    if reason:
        raise ValueError(f"{reason}; expected a linear-quadratic problem. (`solve` has other methods for others.)")


def _stage_shapes(nx: int, nu: int) -> dict[str, tuple[int, ...]]:
    return {"c": (nx,), "Q": (nx, nx), "R": (nu, nu), "M": (nx, nu), "q": (nx,), "r": (nu,)}


def _has_stages(name: str, value: Any) -> bool:
    return value is not None and value.ndim == {"c": 2, "q": 2, "r": 2, "A": 3, "B": 3, "Q": 3, "R": 3, "M": 3}.get(
        name
    )


def _checked(value: Any, name: str, shape: tuple[int, ...], dtype: Any, *, stages: bool = False) -> Any:
    """Return a field as an array of the given shape, perhaps with stages; weights must be symmetric."""
    if value is None:
        return np.zeros(shape, dtype)
    if not shape and not hasattr(value, "dtype"):
        value = np.asarray(value, dtype)
    value = as_float(value, name)
    if not (stages and value.ndim == len(shape) + 1 and value.shape[1:] == shape):
        expected = f"{shape} or (N, {str(shape)[1:]}" if stages else f"{shape}"
        if value.shape != shape:
            raise ValueError(f"`{name}` has shape {value.shape}; expected {expected}.")
    if name in ("Q", "R", "Qf", "Q0") and is_concrete(value):
        matrix = np.asarray(value)
        skew = np.abs(matrix - np.swapaxes(matrix, -1, -2))
        if (skew > (1e-5 if matrix.dtype == np.float32 else 1e-9) * np.abs(matrix).max(initial=1e-300)).any():
            where = f" at stage {int(np.argmax(skew.max(axis=(1, 2))))}" if matrix.ndim == 3 else ""
            raise ValueError(
                f"`{name}` is not symmetric{where}: |{name} - {name}'| reaches {skew.max():.3g}."
                f" Use ({name} + {name}.T) / 2."
            )
    return value


def is_linear_quadratic(problem: Problem) -> bool:
    """True if the dynamics are affine in states and inputs, and the costs polynomials of degree two at most.

    The functions' structure decides, not their numbers, so the answer is the same under `jit`, `grad` and `vmap`. It
    is never wrongly True; it may be wrongly False, where a function is quadratic in a roundabout way, such as a norm
    squared.
    """
    dynamics = problem.dynamics
    known = dynamics.nx is not None and dynamics.nu is not None and dynamics.has_jax_step
    return known and not _departure(problem)


def _departure(problem: Problem) -> str:
    """Say which function is not linear (dynamics) or quadratic (costs), and why; nothing if all are."""
    parts = (problem.dynamics, problem.stage_cost, problem.terminal_cost, problem.initial_cost)
    return once(("degrees", parts, problem.params, problem.x0), lambda: _find_departure(problem))


def _find_departure(problem: Problem) -> str:
    try:
        return _by_degrees(problem)
    except Exception:  # most likely a function that does not run, which the check explains
        xs, us = zero_trajectory(problem)
        problem.check_shapes(xs[0], us, problem.params)
        raise


def _by_degrees(problem: Problem) -> str:
    xs, us = jax.eval_shape(lambda: zero_trajectory(problem))
    x, u = (jax.ShapeDtypeStruct(z.shape[1:], z.dtype) for z in (xs, us))
    t = jax.ShapeDtypeStruct((), jnp.result_type(int))
    dynamics = problem.dynamics
    functions = {
        "dynamics": (None if dynamics.is_linear else dynamics.like_step, (x, u), (t, problem.params)),
        "stage_cost": (problem.stage_cost, (x, u), (t, problem.params)),
        "terminal_cost": (problem.terminal_cost, (x,), (problem.params,)),
        "initial_cost": (problem.initial_cost, (x,), (problem.params,)),
    }
    for name, (function, variables, others) in functions.items():
        if function is None:
            continue
        found, primitive = degree(function, variables, others)
        if found > (1 if name == "dynamics" else 2):
            what = "linear" if name == "dynamics" else "quadratic"
            why = f"it takes `{primitive}` of states or inputs" if primitive else "it multiplies states or inputs"
            return f"`{name}` is not {what} ({why})"
    return ""


def zero_trajectory(problem: Problem) -> tuple[Any, Any]:
    """Return zero states (N+1, nx) and inputs (N, nu) of the problem's size."""
    N, nx, nu = problem.steps, problem.dynamics.nx, problem.dynamics.nu
    dtype = default_float() if problem.x0 is None else problem.x0.dtype
    return np.zeros((N + 1, nx), dtype), np.zeros((N, nu), dtype)


def _model_along(problem: Problem, xs: Any, us: Any, params: Any, costates: Any) -> LQ:
    """Return the model by the engine where it can, else by its definition."""
    engine = find_engine(problem, us, xs[0], params, curved=True)
    if engine is None or not opens((xs, costates)) or xs.dtype != np.float64:
        return _model_by_jax(problem, xs, us, params, costates)
    once(("along", problem, xs, us, params), lambda: to_device(problem).check_shapes(xs[0], us, params))
    return _model_now(engine, *to_host((problem, xs, us, params, costates)))


def _model_now(engine: Engine, problem: Problem, xs: Any, us: Any, params: Any, costates: Any) -> LQ:
    nx = xs.shape[1]
    at = engine.along(xs, us, params, costates, curved=True)
    bend, slope = at["V" if costates is not None else "W"], at["slope"]
    value_f, qf, Qf = engine.at_end(1, xs[-1], params)
    value_0, q0, Q0 = engine.at_end(2, xs[0] if problem.x0 is None else problem.x0, params)
    given = problem.x0 is not None
    return LQ(
        A=at["A"], B=at["B"], c=at["reached"] - xs[1:],
        Q=bend[:, :nx, :nx], R=bend[:, nx:, nx:], M=bend[:, :nx, nx:], q=slope[:, :nx], r=slope[:, nx:],
        Qf=Qf, qf=qf, x0=problem.x0 - xs[0] if given else None, Q0=None if given else Q0, q0=None if given else q0,
        constant=at["l"].sum() + value_f + value_0,
    )  # fmt: skip


@jax.jit
def _model_by_jax(problem: Problem, xs: Any, us: Any, params: Any, costates: Any) -> LQ:
    problem.check_shapes(xs[0], us, params)
    nx = xs.shape[1]
    A, B = problem.dynamics.jacobians(xs, us, params)
    reached = problem.dynamics.map_stages(lambda x, u, t: problem.dynamics.step(x, u, t, params), xs, us)
    value, slope, bend = _expand_stages(problem, xs, us, params)
    if costates is not None:
        bend = bend + problem.dynamics.hessians(xs, us, costates, params)
    value_f, qf, Qf = _expand(problem.terminal_cost, xs[-1], params)
    value_0, q0, Q0 = _expand(problem.initial_cost, xs[0], params)
    if problem.x0 is not None:
        value_0, q0, Q0 = problem.start_cost(problem.x0, params), jnp.zeros_like(q0), jnp.zeros_like(Q0)
    return LQ(
        A=A, B=B, c=reached - xs[1:],
        Q=bend[:, :nx, :nx], R=bend[:, nx:, nx:], M=bend[:, :nx, nx:], q=slope[:, :nx], r=slope[:, nx:],
        Qf=Qf, qf=qf, x0=None if problem.x0 is None else problem.x0 - xs[0], Q0=Q0, q0=q0,
        constant=jnp.sum(value) + value_f + value_0,
    )  # fmt: skip


def _expand(cost: StageFunction | None, x: Any, params: Any) -> tuple[Any, Any, Any]:
    """Value, gradient and Hessian of a function of the state."""
    if cost is None:
        return jnp.zeros((), x.dtype), jnp.zeros_like(x), jnp.zeros(x.shape * 2, x.dtype)
    value, slope = jax.value_and_grad(cost)(x, params)
    return value, slope, jax.hessian(cost)(x, params)


def _expand_stages(problem: Problem, xs: Any, us: Any, params: Any) -> tuple[Any, Any, Any]:
    """Value, gradient and Hessian of the stage cost in z = (x, u), for all stages at once."""
    nx = xs.shape[1]
    stage_cost = problem.stage_cost

    def expand(x: Any, u: Any, t: Any) -> Any:
        z = jnp.concatenate([x, u])
        if stage_cost is None:
            return jnp.zeros((), z.dtype), jnp.zeros_like(z), jnp.zeros(z.shape * 2, z.dtype)

        def cost(z: Any) -> Any:
            return stage_cost(z[:nx], z[nx:], t, params)

        return *jax.value_and_grad(cost)(z), jax.hessian(cost)(z)

    return problem.dynamics.map_stages(expand, xs, us)
