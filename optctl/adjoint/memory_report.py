"""What each memory mode costs for a problem: predicted and as compiled."""

from typing import Any

import jax

from optctl._record import record
from optctl.adjoint.gradient import arguments, costate_gradient
from optctl.dynamics.memory import Binomial, Memory, check_memory, schedule
from optctl.problem import Problem, once


@record(static=("rows",))
class MemoryReport:
    """Memory and recomputation of several modes; print it.

    Attributes:
        rows: for each mode pairs of a name and a value: `memory`, `slots`, `predicted` (bytes of the states kept),
            `compiled` (bytes of temporary memory in XLA's own account; less where a linear model needs no states),
            `forward_steps`, `recomputation` (forward steps over the horizon).
    """

    rows: tuple

    def __repr__(self) -> str:
        head = f"{'memory':<22}{'slots':>8}{'states kept':>14}{'compiled peak':>15}{'steps forward':>15}{'times N':>9}"
        lines = [
            f"{row['memory']!s:<22}{row['slots']:>8}{_size(row['predicted']):>14}{_size(row['compiled']):>15}"
            f"{row['forward_steps']:>15}{row['recomputation']:>9.2f}"
            for row in map(dict, self.rows)
        ]
        return "\n".join([head, *lines])


def memory_report(
    problem: Problem, us: Any = None, *, x0: Any = None, params: Any = None, modes: tuple[Memory, ...] = ()
) -> MemoryReport:
    """Compile the gradient of a problem in several memory modes and tell what each takes.

    Args:
        problem: the problem; its own `memory` plays no part.
        us: (N, nu) inputs; None where the dynamics have none.
        x0: (nx,) initial state; None takes the problem's.
        params: parameters; None takes the problem's.
        modes: the modes; none named: "full", "sqrt" and `Binomial` with 5 and 20 slots.

    Returns:
        A `MemoryReport`, to be printed.

    Raises:
        ValueError: as `gradient`, and for an unknown mode.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> flow = oc.pde.Burgers(50, dt=1e-3, control="none")
        >>> problem = oc.Problem(flow, terminal_cost=lambda x: x @ x, horizon=1000, x0=jnp.ones(50))
        >>> report = oc.memory_report(problem, jnp.zeros((1000, 0)), modes=("full", oc.Binomial(20)))
        >>> [dict(row)["forward_steps"] for row in report.rows]
        [999, 2747]

    References:
        Griewank and Walther (2008), Evaluating Derivatives, chapter 12.
    """
    if isinstance(modes, str | Binomial) or not isinstance(modes, list | tuple):
        modes = (modes,)
    us, x0, params = arguments(problem, us, x0, params)
    once((problem, us, x0, params), lambda: jax.eval_shape(Problem.check_shapes, problem, x0, us, params))
    rows = []
    for memory in modes or ("full", "sqrt", Binomial(5), Binomial(20)):
        mode = problem.replace(memory=check_memory(memory))
        plan = schedule(memory, problem.steps)
        compiled = jax.jit(costate_gradient).lower(mode, us, x0, params).compile()
        row = {
            "memory": memory,
            "slots": plan.slots,
            "predicted": plan.slots * x0.size * x0.dtype.itemsize,
            "compiled": getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0),
            "forward_steps": plan.forward_steps,
            "recomputation": plan.forward_steps / problem.steps,
        }
        rows.append(tuple(row.items()))
    return MemoryReport(tuple(rows))


def _size(count: int) -> str:
    for unit, factor in (("B", 1), ("kB", 1e3), ("MB", 1e6)):
        if count < 1000 * factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e9:.3g} GB"
