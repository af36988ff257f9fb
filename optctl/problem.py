r"""What is wanted: the one problem statement that the whole package solves.

    minimize   l0(x_0, p) + sum_{t=0}^{N-1} l(x_t, u_t, t, p) + lN(x_N, p)
    subject to x_{t+1} = f(x_t, u_t, t, p),                         t = 0..N-1
               x_0 given, or free (then l0 and bounds on x_0 apply)
               u_min <= u_t <= u_max,   x_min <= x_t <= x_max,
               g(x_t, u_t, t, p) <= 0,  h(x_t, u_t, t, p) = 0,  gN(x_N, p) <= 0,  hN(x_N, p) = 0.

A Problem is a pytree: functions are structure, arrays (x0, params, bounds, the data in cost helpers) are leaves.
Solving again with other numbers does not recompile.
"""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import own
from optctl._record import record, remember
from optctl._validate import (
    as_float,
    as_whole,
    check_scalar,
    check_shape,
    check_tree,
    is_concrete,
    result_shape,
    returned,
)
from optctl.constraint import Constraint, Soft, constraint
from optctl.dynamics.base import AbstractDynamics, check_dynamics, check_registered
from optctl.dynamics.memory import Memory, check_memory
from optctl.dynamics.stage import STATE, StageFunction, stage_function
from optctl.dynamics.view import View, through, variable

PATH = ("path_inequality", "path_equality")
TERMINAL = ("terminal_inequality", "terminal_equality")
STAGE_FUNCTIONS = ("stage_cost", *PATH)
STATE_FUNCTIONS = ("terminal_cost", "initial_cost", *TERMINAL)
FUNCTION_CONSTRAINTS = ("path_inequality", "path_equality", "terminal_inequality", "terminal_equality")
BOUNDS = ("u_min", "u_max", "x_min", "x_max", "x0_min", "x0_max")
PARAMS_BOUNDS = ("params_min", "params_max")
CONSTRAINTS = (*BOUNDS, *PARAMS_BOUNDS, *FUNCTION_CONSTRAINTS)

NO_BOUND = 1e19
"""Size of a bound that stands for none, as other solvers have it, too."""
REMEMBERED = 1024
_CHECKED: dict[tuple, Any] = {}


@record(static=("horizon", "memory"))
class Problem:
    """Dynamics, costs, constraints and the initial condition.

    Args:
        dynamics: any kind of dynamics.
        stage_cost: `l(x, u)`, `l(x, u, t)` or `l(x, u, t, params)`, a scalar. None is zero.
        terminal_cost: `lN(x)` or `lN(x, params)`, a scalar.
        initial_cost: `l0(x)` or `l0(x, params)`, a scalar, such as the prior of an estimate.
        horizon: number of steps N; may be left out where the dynamics fix it.
        x0: (nx,) initial state; None leaves it free.
        params: any pytree of floating arrays, handed to all functions.
        u_min: lower bound of the inputs: a number, (nu,) or (N, nu); -inf where there is none. A bound
            of a size of 1e19 or more, here and below, is none.
        u_max: upper bound of the inputs.
        x_min: lower bound of the states x_1..x_N (x_0, too, where it is free): a number, (nx,) or (N+1, nx).
        x_max: upper bound of the states.
        x0_min: lower bound of a free x_0: a number or (nx,); equal bounds fix a component.
        x0_max: upper bound of a free x_0.
        params_min: lower bound of parameters that a solver is to find: a number, or a pytree like params.
        params_max: upper bound of those.
        path_inequality: `g(x, u[, t[, params]])`, a vector, g <= 0 at every stage 0..N-1. `Soft(g, l1)` may be missed
            at a price, as any of these four.
        path_equality: `h(x, u[, t[, params]])`, a vector, h = 0 at every stage.
        terminal_inequality: `gN(x[, params])`, a vector, gN <= 0.
        terminal_equality: `hN(x[, params])`, a vector, hN = 0.
        memory: how gradients go back through the horizon. "full" keeps all states; "sqrt" keeps about 2 sqrt(N) and
            computes the others twice; `Binomial(slots)` keeps `slots` and recomputes the fewest. The gradient is the
            same to rounding; with the latter two, results hold neither states nor costates.

    Raises:
        ValueError: for wrong shapes, NaN, booleans, costs that are not scalar, crossing bounds, horizon < 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.LinearDynamics(A=[[1.0]], B=[[1.0]]),
        ...     stage_cost=lambda x, u: x @ x + u @ u,
        ...     terminal_cost=lambda x: x @ x,
        ...     horizon=3,
        ...     x0=[1.0],
        ... )
        >>> oc.gradient(problem, jnp.zeros((3, 1))).costates[:, 0].tolist()
        [8.0, 6.0, 4.0, 2.0]
    """

    dynamics: AbstractDynamics
    stage_cost: Any = None
    terminal_cost: Any = None
    initial_cost: Any = None
    horizon: int | None = None
    x0: Any = None
    params: Any = None
    u_min: Any = None
    u_max: Any = None
    x_min: Any = None
    x_max: Any = None
    x0_min: Any = None
    x0_max: Any = None
    params_min: Any = None
    params_max: Any = None
    path_inequality: Any = None
    path_equality: Any = None
    terminal_inequality: Any = None
    terminal_equality: Any = None
    memory: Memory = "full"

    def __post_init__(self) -> None:
        check_dynamics(self.dynamics)
        check_registered(self.dynamics)
        if check_memory(self.memory) != "full" and not self.dynamics.bounds_memory:
            raise ValueError(
                f"`memory` is {self.memory!r}; {type(self.dynamics).__name__} keeps all states: expected 'full'."
            )
        self._set("horizon", _check_horizon(self.horizon, self.dynamics))
        for name in (*STAGE_FUNCTIONS, *STATE_FUNCTIONS):
            given = getattr(self, name)
            if given is not None:
                self._set(name, _function(given, name))
                self._check_rows(name)
        self._set("params", own(check_tree(self.params, "params")))
        if self.x0 is not None:
            self._set("x0", own(as_float(self.x0, "x0")))
        self._check_bounds()
        nu = self.dynamics.nu
        uses_params = [f for f in STAGE_FUNCTIONS + STATE_FUNCTIONS if _uses_params(getattr(self, f))]
        if self.x0 is not None and nu is not None and (self.params is not None or not uses_params):
            self._check_once(self.x0, nu)

    def replace(self, **changes: Any) -> "Problem":
        """Return the same problem with other fields, such as `problem.replace(x0=...)`."""
        unknown = set(changes) - {field.name for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        if unknown:
            raise ValueError(f"Problem has no field {sorted(unknown)}.")
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def map(self, view: View, dynamics: AbstractDynamics, **changes: Any) -> "Problem":
        """Return this problem in other variables: the one way to transform it.

        Functions are called with the old variables, as the view tells them from the new ones; so constraints keep their
        prices. Bounds are the view's matter, horizon and memory stay, x0 and params do where the view keeps them.

        Args:
            view: how the old variables follow from the new ones.
            dynamics: the new dynamics.
            **changes: fields that are to be others.

        Raises:
            ValueError: for a field that the view cannot carry, naming it.
            TypeError: for a field of Problem that this method does not know.
        """
        fields: dict[str, Any] = {"dynamics": dynamics, **changes}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            name, value = field.name, getattr(self, field.name)
            if name in fields:
                continue
            if name in FUNCTION_CONSTRAINTS:
                fields[name] = None if value is None else value.through(view)
            elif name in (*STAGE_FUNCTIONS, *STATE_FUNCTIONS):
                fields[name] = None if value is None else through(value, view)
            elif name in (*BOUNDS, *PARAMS_BOUNDS):
                fields[name] = view.bound(name, self)
            elif name in ("horizon", "memory"):
                fields[name] = value
            elif name in ("x0", "params"):
                if value is not None and variable(name) not in view.keeps:
                    raise ValueError(f"`{name}` cannot be carried into {view.what}; say what it is there.")
                fields[name] = value
            else:
                raise TypeError(f"Problem.map does not know how to carry the field `{name}`; teach it.")
        return type(self)(**fields)

    @property
    def steps(self) -> int:
        """The horizon N, known once the problem is made."""
        assert self.horizon is not None
        return self.horizon

    @property
    def constraint_names(self) -> list[str]:
        """The constraints that are present, by field name."""
        return [name for name in CONSTRAINTS if getattr(self, name) is not None]

    @property
    def function_constraints(self) -> list[str]:
        """The constraints that are functions, by field name."""
        return [name for name in FUNCTION_CONSTRAINTS if getattr(self, name) is not None]

    def trajectory_cost(self, xs: Any, us: Any, params: Any) -> Any:
        """Return sum_t l(x_t, u_t, t, p) + lN(x_N, p): every cost but the initial one."""
        cost = jnp.zeros((), jax.tree.leaves(xs)[0].dtype)
        if self.stage_cost is not None:
            stage_cost = self.stage_cost
            cost += jnp.sum(self.dynamics.map_stages(lambda x, u, t: stage_cost(x, u, t, params), xs, us))
        return cost + self.end_cost(xs[-1], params)

    def cost_at(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Return l(x_t, u_t, t, p), zero where there is no stage cost."""
        return jnp.zeros((), jnp.result_type(x)) if self.stage_cost is None else self.stage_cost(x, u, t, params)

    def end_cost(self, x: Any, params: Any) -> Any:
        """Return lN(x_N, p), zero where there is no terminal cost."""
        return jnp.zeros((), jnp.result_type(x)) if self.terminal_cost is None else self.terminal_cost(x, params)

    def start_cost(self, x0: Any, params: Any) -> Any:
        """Return l0(x_0, p), zero where there is no initial cost."""
        return jnp.zeros((), jnp.result_type(x0)) if self.initial_cost is None else self.initial_cost(x0, params)

    def check_shapes(self, x0: Any, us: Any, params: Any) -> None:
        """Raise ValueError unless x0, us and params fit and every function returns what it should.

        Only shapes are evaluated; inside compiled code this runs once, while it is traced.
        """
        self.dynamics.check_data(x0, us, params)
        if us is not None:
            check_shape(us, "us", (self.horizon, self.dynamics.nu))
            widths = {"u_min": us.shape[1], "u_max": us.shape[1], "x0_min": x0.shape[0], "x0_max": x0.shape[0]}
            for name, width in widths.items():
                bound = getattr(self, name)
                if bound is not None and np.ndim(bound) and np.shape(bound)[-1] != width:
                    raise ValueError(f"`{name}` has shape {np.shape(bound)}; expected ({width},), as the data have.")
        last = x0 if us is not None else jax.eval_shape(lambda: self.dynamics.roll(x0, None, params))[-1]
        u = None if us is None else jax.ShapeDtypeStruct(us.shape[1:], us.dtype)
        t = 0 if us is None else np.asarray(self.steps - 1)
        for name in STAGE_FUNCTIONS:
            self._check_function(name, x0, u, t, params)
        for name in STATE_FUNCTIONS:
            self._check_function(name, x0 if name == "initial_cost" else last, params)

    def _check_rows(self, name: str) -> None:
        """Let a helper that holds data per stage compare its rows with the horizon."""
        held = getattr(self, name)
        function = held.function if isinstance(held, Constraint) else held
        check = getattr(function.call, "check_stages", None)
        if check is not None:
            check(self.steps)

    def __repr__(self) -> str:
        given = [name for name in (*STAGE_FUNCTIONS[:1], *STATE_FUNCTIONS[:2]) if getattr(self, name) is not None]
        start = "x0 free" if self.x0 is None else "x0 given"
        return (
            f"Problem: {type(self.dynamics).__name__}, N = {self.horizon}, nx = {self.dynamics.nx},"
            f" nu = {self.dynamics.nu}, {start}; {', '.join(given) or 'no costs'};"
            f" constraints: {', '.join(self.constraint_names) or 'none'}"
        )

    def _check_function(self, name: str, x: Any, *rest: Any) -> None:
        f = getattr(self, name)
        if f is None:
            return
        if name.endswith("cost"):
            check_scalar(f, name, x, *rest, hint=" Sum it, or use x @ Q @ x.")
            return
        got = result_shape(f, name, x, *rest)
        shape = getattr(got, "shape", ())
        if len(shape) != 1:
            raise ValueError(f"`{name}` returns {returned(got)}; expected a vector. Wrap it: jnp.array([...]).")
        if shape == (0,):
            raise ValueError(f"`{name}` returns no rows; leave it out, or look for a slice beyond the states' end.")
        if not jnp.issubdtype(got.dtype, jnp.floating):
            raise ValueError(f"`{name}` returns {got.dtype}; expected floating point numbers.")
        for price in ("l1", "l2"):
            if np.ndim(getattr(f, price)) and np.shape(getattr(f, price)) != shape:
                raise ValueError(
                    f"`{price}` of `{name}` has shape {np.shape(getattr(f, price))}; expected a number, or {shape}, one"
                    " for each row."
                )

    def _check_once(self, x0: Any, nu: int) -> None:
        """Check shapes unless a problem of the same functions and shapes has passed before."""

        def check() -> None:
            us = None if self.dynamics.roll_without_inputs else np.zeros((self.steps, nu), jnp.result_type(x0))
            self.check_shapes(x0, us, self.params)

        once(self, check)

    def _check_bounds(self) -> None:
        nx, nu, N = self.dynamics.nx, self.dynamics.nu, self.steps
        for name in PARAMS_BOUNDS:
            if getattr(self, name) is not None:
                self._set(name, _check_params_bound(getattr(self, name), name, self.params))
        if self.x0 is not None and nx is None and np.ndim(self.x0) == 1:
            nx = np.shape(self.x0)[0]
        if self.x0 is not None and (self.x0_min is not None or self.x0_max is not None):
            raise ValueError("`x0` is given, so x0_min and x0_max would have no effect; leave x0 out to free it.")
        for name in BOUNDS:
            if getattr(self, name) is not None:
                rows, width = {"u": (N, nu), "x": (N + 1, nx)}[name[0]]
                bound = _check_bound(getattr(self, name), name, width, None if "x0" in name else rows)
                self._set(name, own(bound))
                if is_concrete(bound) and (np.asarray(bound) == (np.inf if name.endswith("min") else -np.inf)).any():
                    raise ValueError(f"`{name}` holds {'+' if name.endswith('min') else '-'}inf: no point is feasible.")
        names = zip(BOUNDS[::2], BOUNDS[1::2], strict=True)
        pairs = [(low, high, getattr(self, low), getattr(self, high)) for low, high in names]
        if self.params_min is not None and self.params_max is not None:
            lowers, uppers = jax.tree_util.tree_leaves_with_path(self.params_min), jax.tree.leaves(self.params_max)
            for (path, lower), upper in zip(lowers, uppers, strict=True):
                leaf = jax.tree_util.keystr(path)
                pairs.append((PARAMS_BOUNDS[0] + leaf, PARAMS_BOUNDS[1] + leaf, lower, upper))
        for low, high, lower, upper in pairs:
            if lower is not None and upper is not None and is_concrete((lower, upper)):
                gap = np.asarray(upper) - np.asarray(lower)
                if (gap < 0).any():
                    where = tuple(int(i) for i in np.argwhere(gap < 0)[0])
                    at = f" at index {where}" if where else ""
                    raise ValueError(f"`{low}` exceeds `{high}`{at}, by {-gap.min():.3g}; no point is feasible.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def signature(data: Any) -> tuple:
    """Return what functions and shapes alone decide about: structure, and shape and type of each array, as a key."""
    leaves, structure = jax.tree.flatten(data)
    return structure, kinds(leaves)


def kinds(leaves: Sequence[Any]) -> tuple:
    """Return shape and type of each leaf."""
    return tuple([(v.shape, v.dtype) if hasattr(v, "dtype") else (np.shape(v), type(v)) for v in leaves])


_USERS: weakref.WeakKeyDictionary[Any, tuple[StageFunction, ...]] = weakref.WeakKeyDictionary()


def warn_of_changes(record: Any) -> None:
    """Warn where numbers that functions in a record read from outside when they were traced are others by now."""
    functions = _USERS.get(record)
    if functions is None:
        functions = _USERS[record] = functions_of(record)
    for function in functions:
        function.warn_of_changes()


def functions_of(record: Any) -> tuple[StageFunction, ...]:
    """Return all functions of the user's in a problem, an ODE or the like."""
    found, waiting = [], [record]
    while waiting:
        held: Any = waiting.pop()
        if isinstance(held, StageFunction):
            found.append(held)
        elif isinstance(held, tuple | list):
            waiting += held
        if dataclasses.is_dataclass(held):
            waiting += vars(held).values()
    return tuple(found)


def parts_of(problem: Problem, params: Any) -> dict[str, Any]:
    """Return what a problem's functions need: all but bounds, prices and x_0."""
    held = {name: getattr(problem, name) for name in (*STAGE_FUNCTIONS, *STATE_FUNCTIONS)}
    functions = {name: f.function if isinstance(f, Constraint) else f for name, f in held.items()}
    return {"dynamics": problem.dynamics, "params": params} | functions


def once(data: Any, check: Callable[[], Any]) -> Any:
    """Return what `check()` returns, which depends on functions and shapes alone; it runs once for data like these."""
    return once_for(signature(data), check)


def once_for(key: Any, check: Callable[[], Any]) -> Any:
    """Return what `check()` returns; it runs once for a key, which has the `signature` of the data."""
    return _CHECKED[key] if key in _CHECKED else remember(_CHECKED, key, check(), REMEMBERED)


def _function(given: Any, name: str) -> Any:
    """Return a cost as a `StageFunction`, a constraint as a `Constraint`."""
    if name in FUNCTION_CONSTRAINTS:
        return constraint(given, name)
    if isinstance(given, Soft):
        raise ValueError(f"`{name}` is a Soft, which is for constraints; expected a function.")
    return stage_function(given, name) if name in STAGE_FUNCTIONS else stage_function(given, name, STATE, least=1)


def _uses_params(f: Any) -> bool:
    return f is not None and f.takes("params")


def _check_horizon(horizon: Any, dynamics: AbstractDynamics) -> int:
    if horizon is None:
        horizon = dynamics.horizon
    horizon = as_whole(horizon, "horizon", "steps N")
    if dynamics.horizon is not None and dynamics.horizon != horizon:
        raise ValueError(f"`horizon` is {horizon}, but the dynamics have {dynamics.horizon} stages.")
    return horizon


def _check_params_bound(value: Any, name: str, params: Any) -> Any:
    """Return a bound as a pytree like params; one number bounds them all."""
    if not jax.tree.leaves(params):
        raise ValueError(f"`{name}` bounds parameters, but the problem has none; pass params=..., their first guess.")
    if jax.tree.structure(value) != jax.tree.structure(params):  # type: ignore[operator]
        if np.ndim(value) or not isinstance(value, int | float | np.number | jax.Array | np.ndarray):
            got, want = jax.tree.structure(value), jax.tree.structure(params)
            raise ValueError(f"`{name}` and `params` differ in structure: {got} and {want}; expected the same.")
        value = jax.tree.map(lambda leaf: value, params)

    def leaf(bound: Any, like: Any) -> Any:
        bound = as_float(bound, name, finite=False)
        if np.ndim(bound):
            check_shape(bound, name, np.shape(like))
        if is_concrete(bound) and np.isnan(bound).any():
            raise ValueError(f"`{name}` holds NaN; expected numbers, or infinity where there is no bound.")
        return (np if is_concrete(bound) else jnp).broadcast_to(_unbounded(bound), np.shape(like))

    return jax.tree.map(leaf, value, params)


def _unbounded(bound: Any) -> Any:
    """Return a bound, infinite where its size says that there is none."""
    if is_concrete(bound) and not (np.abs(bound) >= NO_BOUND).any():
        return bound
    xp = np if is_concrete(bound) else jnp
    return xp.where(xp.abs(bound) >= NO_BOUND, xp.copysign(np.inf, bound), bound)


def _check_bound(value: Any, name: str, width: int | None, rows: int | None) -> Any:
    value = as_float(value, name, finite=False)
    if is_concrete(value) and np.isnan(value).any():
        raise ValueError(f"`{name}` holds NaN; expected numbers, or infinity where there is no bound.")
    allowed: list[tuple[int | None, ...]] = [(), (width,)] if rows is None else [(), (width,), (rows, width)]
    for shape in allowed:
        if len(shape) == np.ndim(value):
            check_shape(value, name, shape)
            return _unbounded(value)
    raise ValueError(f"`{name}` has shape {np.shape(value)}; expected one of {allowed}.")
