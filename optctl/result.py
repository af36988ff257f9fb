"""How a computation ended: one enumeration and one protocol for all results of the library.

Every result that may fail is a `Result`. It has

    status      a `Status`                         stage       where it failed, -1 if nowhere in particular
    converged   True if its numbers can be used    message     cause and remedy in a sentence

and `raise_if_failed()`; `bool(result)` is `converged`. Compiled code carries status and stage as numbers; the words are
made on the host, when asked for.
"""

import enum
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T", bound="Result")


class Status(enum.IntEnum):
    """How a computation ended; the value is what compiled code carries."""

    SOLVED = 0
    ITERATION_LIMIT = 1
    STALLED = 2
    NON_FINITE = 3
    NOT_CONVEX = 4
    UNBOUNDED = 5
    INFEASIBLE = 6
    TIME_LIMIT = 7
    DISAGREEMENT = 8
    EVENT = 9
    STEP_TOO_SHORT = 10
    MESH_FULL = 11
    TOO_MANY_EVENTS = 12
    BAD_TIMES = 13
    SINGULAR = 14
    LOST_DIGITS = 15
    OVERFLOW = 16

    @property
    def succeeded(self) -> bool:
        """True if what was asked for was done."""
        return self in (Status.SOLVED, Status.EVENT)

    @property
    def message(self) -> str:
        """Cause and remedy in one sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.SOLVED: "solved",
    Status.ITERATION_LIMIT: "iteration limit reached before the tolerance; raise max_iterations, try another method,"
    " or scale inputs and costs to similar sizes",
    Status.STALLED: "no further decrease found before the tolerance; rounding limits the cost, or its gradient is not"
    " smooth: check_gradient(problem, us) tells which; a looser tolerance may be all that is possible; where"
    " constraints are violated, at a saddle or a kink of the violation: start from another guess",
    Status.NON_FINITE: "met inf or NaN and kept the last finite iterate; the dynamics leave their domain or diverge:"
    " start from other inputs, add bounds, shorten the step dt, or keep the model defined outside its domain",
    Status.NOT_CONVEX: "the quadratic problem is not strictly convex in the inputs (R + B'PB is singular or has a"
    " negative eigenvalue): check the signs of Q, R and the terminal weight, and give every input a small R > 0",
    Status.INFEASIBLE: "locally infeasible: no small change lowers the violation of the constraints (tried: from the"
    " guess, then from a straight line of states with zero inputs, where the functions are finite there); loosen the"
    " bounds, lengthen the horizon, or start from another guess",
    Status.TIME_LIMIT: "time limit reached before the tolerance; allow more time, or start closer",
    Status.UNBOUNDED: "the cost falls without bound; check its signs, or bound the inputs",
    Status.DISAGREEMENT: "two computations of the same thing disagree; do not use the numbers",
    Status.EVENT: "ended at a terminal event",
    Status.STEP_TOO_SHORT: "the step length fell below rounding; the equation is stiff or singular there",
    Status.MESH_FULL: "max_steps steps ended before the last time; raise max_steps, or loosen the tolerances",
    Status.TOO_MANY_EVENTS: "too many events, which may accumulate in a point; raise `most`, or end before it",
    Status.BAD_TIMES: "the times do not go in one direction, or a step is not positive",
    Status.SINGULAR: "a covariance or weight that must be inverted is singular",
    Status.LOST_DIGITS: "the result lost its digits to rounding",
    Status.OVERFLOW: "numbers grow beyond the largest one that can be stored",
}


@jax.custom_batching.custom_vmap
def nan_in_batch(converged: Any) -> Any:
    """Return 0, but under `vmap` NaN where a member did not converge: nobody takes a cost so marked for the best."""
    return jnp.zeros(())


@nan_in_batch.def_vmap
def _nan_in_batch(size: int, in_batched: Any, converged: Any) -> tuple[Any, Any]:
    return jnp.where(converged, 0.0, jnp.nan), in_batched[0]


class Result:
    """What every result tells about how it ended; `if result:` asks whether it converged.

    A record adopts the protocol by inheriting it and by having status, stage and converged as fields or properties, and
    says more than its status does by overriding `explanation`.

    Attributes:
        status: a `Status`.
        stage: where it failed, -1 if nowhere in particular.
        converged: True if its numbers can be used.
    """

    status: Any
    stage: Any
    converged: Any

    @property
    def message(self) -> str:
        """How it ended, with cause and remedy; of a batch, how many ended how."""
        self._require_host("message")
        if not np.ndim(self.status):
            return self.explanation()
        values, counts = np.unique(np.asarray(self.status), return_counts=True)
        return "; ".join(f"{n} x {Status(int(v)).message}" for v, n in zip(values, counts, strict=True))

    def explanation(self) -> str:
        """Return the message of a single result."""
        stage = int(np.asarray(self.stage))
        return Status(int(self.status)).message + (f" (at stage {stage})" if stage >= 0 else "")

    def raise_if_failed(self: T) -> T:
        """Return the result itself if it converged; of a batch, if all did.

        Raises:
            RuntimeError: if it did not, with cause and remedy.
        """
        self._require_host("raise_if_failed()")
        if not np.all(np.asarray(self.converged)):
            raise RuntimeError(self.failure())
        return self

    def failure(self) -> str:
        """Return what `raise_if_failed` says."""
        return f"{type(self).__name__} did not converge: {self.message}"

    def __bool__(self) -> bool:
        self._require_host("bool()")
        if np.ndim(self.converged):
            raise ValueError(
                f"bool() of a batch of {np.size(self.converged)} results; use `result.converged`, one for each, or"
                " `result.converged.all()`."
            )
        return bool(self.converged)

    def _require_host(self, what: str) -> None:
        if isinstance(self.converged, jax.core.Tracer):
            raise ValueError(
                f"{what} of a {type(self).__name__} that JAX traces has no value yet; use `converged` and `status`,"
                " which are arrays, such as jnp.where(result.converged, ...)."
            )
