r"""Training by stochastic gradients, every gradient by costates.

    minimize over params   E_batch J(params; batch)

For a policy the batch is a set of initial states rolled out in closed loop; for a deep network (`Layers`) it is a
minibatch of inputs with their targets. Both run through the same loop: shuffled batches, any optax optimizer, the
parameters with the lowest validation cost kept.
"""

import contextlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._record import record
from optctl._validate import (
    as_float,
    as_seed,
    as_whole,
    check_flag,
    check_function,
    check_scalar,
    check_shape,
    check_tree,
    result_shape,
    returned,
)
from optctl.adjoint.gradient import costate_gradient, total_cost
from optctl.dynamics.layers import Layers
from optctl.judge.culprit import culprit
from optctl.policies.closed_loop import closed_loop
from optctl.problem import Problem
from optctl.result import Result, Status


@record(remarks=("note",))
class TrainingResult(Result):
    """What training found.

    Training has no certificate: `converged` says that all steps were made and every cost was finite.

    Attributes:
        params: the parameters with the lowest validation cost.
        cost: that cost.
        history: (steps,) cost of each batch before its step.
        validation: (checks, 2) step number and validation cost at each check.
        best_step: step at which `params` were found.
        status: SOLVED after all steps, NON_FINITE where a cost ended them.
        note: where a gradient that is not finite came from, if that is known.
    """

    params: Any
    cost: Any
    history: Any
    validation: Any
    best_step: Any
    status: Any
    note: str = ""

    @property
    def stage(self) -> Any:
        """-1: a step of training is no stage of the problem."""
        return -1

    @property
    def converged(self) -> Any:
        """True if all steps were made."""
        return jnp.asarray(self.status) == int(Status.SOLVED)

    def explanation(self) -> str:
        """Return how training ended."""
        if self:
            return f"ran all {len(self.history)} steps"
        kept = f"met inf or NaN by step {len(self.history)} and kept the best parameters"
        return f"{kept}: {self.note}" if self.note else f"{kept}; lower the step size"

    def __repr__(self) -> str:
        return (
            f"TrainingResult: {self.message}; best validation cost {float(self.cost):.8g} at step {int(self.best_step)}"
            f" of {len(self.history)}"
        )


@record()
class PolicyLoss:
    """Mean closed-loop cost over a batch of initial states (batch, nx)."""

    problem: Problem

    def cost(self, params: Any, batch: Any) -> Any:
        """Return the mean cost."""
        return jnp.mean(jax.vmap(lambda x0: total_cost(self.problem, self._no_inputs(x0), x0, params))(batch))

    def cost_and_slope(self, params: Any, batch: Any) -> tuple[Any, Any]:
        """Return the mean cost and its gradient in the policy's parameters."""
        g = jax.vmap(lambda x0: costate_gradient(self.problem, self._no_inputs(x0), x0, params))(batch)
        return jnp.mean(g.cost), jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), g.params)

    def culprit(self, params: Any, batch: Any) -> str:
        """Return what makes the gradient inf or NaN where the cost is finite, and the sample; empty if it is not so."""
        costs, slopes = _each(self, params, batch)
        slopes = np.concatenate([np.asarray(leaf).reshape(len(costs), -1) for leaf in jax.tree.leaves(slopes)], axis=1)
        bad = np.flatnonzero(np.isfinite(costs) & ~np.isfinite(slopes).all(axis=1))
        if not bad.size:
            return ""
        k = int(bad[0])
        x0 = np.asarray(batch)[k]
        xs = self.problem.dynamics.rollout(x0, np.zeros((self.problem.steps, 0)), params)
        found = culprit(self.problem, xs, np.zeros((self.problem.steps, 0)), params)
        return f"the gradient of the cost is inf or NaN though the cost is finite, at sample {k}" + (
            f": {found}" if found else ""
        )

    def _no_inputs(self, x0: Any) -> Any:
        return jnp.zeros((self.problem.steps, 0), x0.dtype)


@jax.jit
def _each(loss: PolicyLoss, params: Any, batch: Any) -> tuple[Any, Any]:
    """Return cost and gradient of each sample."""
    N = loss.problem.steps
    g = jax.vmap(lambda x0: costate_gradient(loss.problem, jnp.zeros((N, 0), x0.dtype), x0, params))(batch)
    return g.cost, g.params


@record(static=("loss",))
class LayersLoss:
    """Cost of a network on a minibatch (inputs, targets), with `loss(targets)` as terminal cost."""

    problem: Problem
    loss: Callable

    def cost(self, params: Any, batch: Any) -> Any:
        """Return the cost."""
        problem, inputs = self._on(batch)
        return total_cost(problem, None, inputs, params)

    def cost_and_slope(self, params: Any, batch: Any) -> tuple[Any, Any]:
        """Return the cost and its gradient in the weights."""
        problem, inputs = self._on(batch)
        g = costate_gradient(problem, None, inputs, params)
        return g.cost, g.params

    def _on(self, batch: Any) -> tuple[Problem, Any]:
        inputs, targets = batch
        return self.problem.replace(terminal_cost=self.loss(targets)), inputs


@record(static=("function",))
class FunctionLoss:
    """A loss given as a function of parameters and batch."""

    function: Callable

    def cost(self, params: Any, batch: Any) -> Any:
        """Return the loss."""
        return self.function(params, batch)

    def cost_and_slope(self, params: Any, batch: Any) -> tuple[Any, Any]:
        """Return the loss and its gradient in the parameters."""
        return jax.value_and_grad(self.function)(params, batch)


def train(
    loss: Callable,
    params: Any,
    data: Any,
    *,
    optimizer: Any = None,
    steps: int = 1000,
    batch_size: int | None = None,
    validation: Any = None,
    check_every: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> TrainingResult:
    """Minimize a loss over minibatches of data, such as that of a neural ODE; keep the best parameters.

    Args:
        loss: `loss(params, batch)`, a scalar that `jax.grad` can differentiate; batch holds rows of the data.
        params: first parameters, any pytree of floating arrays.
        data: a pytree of arrays with one row for each sample.
        optimizer: an optax optimizer; None is `optax.adam(1e-3)`.
        steps: number of optimizer steps.
        batch_size: rows per step; None takes all.
        validation: data on which the best parameters are chosen; None takes the training data.
        check_every: steps between validations.
        seed: of the shuffling; the same seed gives the same result.
        progress: show a progress bar.

    Returns:
        A `TrainingResult`.

    Raises:
        ValueError: for rows that differ in number, a loss that is not a scalar, or wrong options.
        ImportError: without optax, which the extra `optctl[learn]` installs.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import optctl as oc
        >>> x = jnp.linspace(-1.0, 1.0, 20)
        >>> line = lambda p, batch: jnp.mean((p[0] + p[1] * batch[0] - batch[1]) ** 2)
        >>> result = oc.train(line, jnp.zeros(2), (x, 1 + 2 * x), optimizer=optax.adam(0.1), steps=300)
        >>> print(result.params.round(3))
        [1. 2.]

    References:
        Kingma and Ba (2015), Adam: a method for stochastic optimization.
    """
    check_function(loss, "loss", "loss(params, batch)")
    params = jax.tree.map(jnp.asarray, check_tree(params, "params"))
    data = _as_data(data, "data")
    check = data if validation is None else _as_data(validation, "validation")
    rows = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
    if len(rows) != 1 or () in rows:
        raise ValueError(f"`data` has {sorted(rows)} rows; expected arrays with the same number of samples.")
    ((many,),) = rows
    if not many:
        raise ValueError("`data` has no rows; expected at least one sample.")
    if jax.tree.structure(check) != jax.tree.structure(data):  # type: ignore[operator]
        raise ValueError("`validation` differs in structure from `data`; expected the same arrays, of other samples.")
    for other, one in zip(jax.tree.leaves(check), jax.tree.leaves(data), strict=True):
        check_shape(other, "validation", (None, *one.shape[1:]))
    batch_size = many if batch_size is None else _batch_size(batch_size, many, "samples")
    check_scalar(loss, "loss", params, check)
    optimizer = _default_optimizer("policy") if optimizer is None else optimizer
    batches = partial(_shuffled_batches, data, batch_size, np.random.default_rng(as_seed(seed)))
    return _train(FunctionLoss(loss), params, batches, check, optimizer, steps, check_every, progress)


def train_policy(
    problem: Problem,
    policy: Callable,
    params: Any,
    x0s: Any,
    *,
    optimizer: Any = None,
    steps: int = 1000,
    batch_size: int | None = None,
    validation_x0s: Any = None,
    check_every: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> TrainingResult:
    """Train a feedback policy through the closed loop, over batches of initial states.

    Args:
        problem: the open-loop problem, without constraints (bound inputs inside the policy); its x0 is not used.
        policy: `policy(x, t, params)` returning u (nu,): an `mlp`, or any callable.
        params: first parameters, any pytree of floating arrays.
        x0s: (M, nx) initial states, drawn in shuffled batches; or a function `sample(key) -> (nx,)`.
        optimizer: an optax optimizer; None is `optax.adam(1e-3)`.
        steps: number of optimizer steps.
        batch_size: states per step; None takes all (64 with a sampling function).
        validation_x0s: (M', nx) states on which the best parameters are chosen; None takes x0s (256 fresh samples).
        check_every: steps between validations.
        seed: of the shuffling and sampling; the same seed gives the same result.
        progress: show a progress bar.

    Returns:
        A `TrainingResult` with the best parameters found; non-finite costs end training and lose nothing.

    Raises:
        ValueError: for a policy of the wrong width, wrong shapes, or constraints.
        ImportError: without optax, which the extra `optctl[learn]` installs.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.LinearDynamics([[1.0]], [[1.0]]), lambda x, u: x @ x + u @ u, horizon=40, x0=[1.0]
        ... )
        >>> optimizer = optax.adam(1e-2)
        >>> policy = lambda x, t, K: K @ x
        >>> first, x0s = jnp.array([[-0.5]]), jnp.ones((1, 1))
        >>> result = oc.train_policy(problem, policy, first, x0s, optimizer=optimizer, steps=300)
        >>> print(result.params.round(3))  # the infinite-horizon gain
        [[-0.618]]
    """
    loop = closed_loop(problem, policy)
    if problem.constraint_names:
        raise ValueError(
            f"training by gradients cannot keep the constraints {problem.constraint_names}; bound the inputs inside the"
            " policy, such as u_max * tanh(...), and put penalties on the rest into the cost."
        )
    params = jax.tree.map(jnp.asarray, check_tree(params, "params"))
    batch_size = None if batch_size is None else as_whole(batch_size, "batch_size", "states")
    nx = problem.dynamics.nx
    if callable(x0s):
        check_function(x0s, "x0s", "x0s(key)")
        sample = partial(_sample, jax.jit(jax.vmap(x0s)), np.random.default_rng(as_seed(seed)))
        got = result_shape(x0s, "x0s", jax.random.key(0))
        if getattr(got, "shape", ()) != (nx or getattr(got, "shape", (0,))[0],):
            raise ValueError(f"`x0s` returns {returned(got)}; expected ({nx or 'nx'},), a state drawn by the key.")
        first = as_float(sample(1, 256)[0], "x0s(key)", (None, nx))
        batches = partial(sample, batch_size=64 if batch_size is None else batch_size)
    else:
        first = jnp.asarray(as_float(x0s, "x0s", (None, nx)))
        batches = partial(_shuffled_batches, first, batch_size or first.shape[0], np.random.default_rng(as_seed(seed)))
    check = first if validation_x0s is None else jnp.asarray(as_float(validation_x0s, "validation_x0s", (None, nx)))
    loss = PolicyLoss(loop.replace(x0=None))
    jax.eval_shape(loop.check_shapes, first[0], jnp.zeros((loop.steps, 0), first.dtype), params)
    optimizer = _default_optimizer("policy") if optimizer is None else optimizer
    return _train(loss, params, batches, check, optimizer, steps, check_every, progress)


def train_layers(
    layers: Layers,
    loss: Callable,
    params: Any,
    inputs: Any,
    targets: Any,
    *,
    stage_cost: Callable | None = None,
    optimizer: Any = None,
    epochs: int = 20,
    batch_size: int = 32,
    validation: tuple[Any, Any] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> TrainingResult:
    """Train a deep network by minibatch stochastic gradients, each by the costate recursion over its layers.

    Args:
        layers: the network; its functions act on the last axis, so states are (batch, width).
        loss: `loss(targets)` makes the terminal cost of a minibatch, such as `optctl.costs.CrossEntropy`.
        params: first weights, a list with one entry per layer or shared group.
        inputs: (M, width_0).
        targets: (M, ...), handed to `loss`.
        stage_cost: penalty on hidden states, such as `optctl.costs.HiddenPenalty(1e-4)`.
        optimizer: an optax optimizer; None is `optax.sgd(0.1, momentum=0.9)`.
        epochs: passes through the data.
        batch_size: rows per step; the last, smaller batch of an epoch is dropped and reshuffled in.
        validation: (inputs, targets) on which the best weights are chosen; None takes the training data.
        seed: of the shuffling; the same seed gives the same result.
        progress: show a progress bar.

    Returns:
        A `TrainingResult`.

    Raises:
        ValueError: for wrong shapes or weights.
        ImportError: without optax, which the extra `optctl[learn]` installs.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> net = oc.Layers([lambda x, W: x @ W])
        >>> x, labels = jnp.array([[1.0], [-1.0]]), jnp.array([0, 1])
        >>> result = oc.train_layers(net, oc.costs.CrossEntropy, [jnp.zeros((1, 2))], x, labels, batch_size=2)
        >>> bool(result.cost < 0.1)
        True

    References:
        LeCun (1988), A theoretical framework for back-propagation.
    """
    inputs = jnp.asarray(as_float(inputs, "inputs"))
    targets = jnp.asarray(targets)
    if targets.shape[:1] != inputs.shape[:1]:
        raise ValueError(f"`targets` has {targets.shape[0]} rows; expected {inputs.shape[0]}, as `inputs` has.")
    batch_size = _batch_size(batch_size, inputs.shape[0], "rows")
    optimizer = _default_optimizer("layers") if optimizer is None else optimizer
    params = jax.tree.map(jnp.asarray, check_tree(params, "params"))
    problem = Problem(layers, stage_cost=stage_cost, terminal_cost=loss(targets), params=params)
    problem.check_shapes(inputs, None, params)
    data = (inputs, targets)
    per_epoch = inputs.shape[0] // batch_size
    batches = partial(_shuffled_batches, data, batch_size, np.random.default_rng(as_seed(seed)))
    if validation is None:
        check = data
    else:
        check = jnp.asarray(as_float(validation[0], "validation")), jnp.asarray(validation[1])
    return _train(LayersLoss(problem, loss), params, batches, check, optimizer, epochs * per_epoch, per_epoch, progress)


def _batch_size(value: Any, many: int, of: str) -> int:
    """Return a size of batches, at most as many as there are."""
    if as_whole(value, "batch_size", of) > many:
        raise ValueError(f"`batch_size` is {value}; expected 1 to {many}, the number of {of}.")
    return int(value)


def _as_data(data: Any, name: str) -> Any:
    """Return a pytree of arrays of numbers; labels stay whole, masks boolean."""

    def leaf(path: tuple, item: Any) -> Any:
        whole = isinstance(item, np.ndarray | jax.Array) and item.dtype.kind in "iub" and not np.ma.is_masked(item)
        return jnp.asarray(item if whole else as_float(item, name + jax.tree_util.keystr(path), finite=False))

    return jax.tree_util.tree_map_with_path(leaf, data)


def _train(
    loss: Any, params: Any, batches: Callable, check: Any, optimizer: Any, steps: int, check_every: int, progress: bool
) -> TrainingResult:
    """Run the loop in compiled chunks of `check_every` steps."""
    steps, check_every = as_whole(steps, "steps"), as_whole(check_every, "check_every")
    check_flag(progress, "progress")
    if not hasattr(optimizer, "init"):
        raise ValueError(
            f"`optimizer` is a {type(optimizer).__name__}; expected one of optax, such as optax.adam(1e-3)."
        )
    state = optimizer.init(params)
    best_cost, best_params, best_step = float(_validate(loss, params, check)), params, 0
    if not np.isfinite(best_cost):
        raise ValueError(f"the cost is {best_cost} at the first `params`; check data and loss, or use smaller weights.")
    history: list[Any] = []
    validation, status = [(0, best_cost)], Status.SOLVED
    with _bar(steps, progress) as bar:
        for start in range(0, steps, check_every):
            n = min(check_every, steps - start)
            params, state, costs = _chunk(optimizer, loss, params, state, batches(n))
            cost = float(_validate(loss, params, check))
            history.append(costs)
            validation.append((start + n, cost))
            if cost < best_cost:
                best_cost, best_params, best_step = cost, params, start + n
            bar.update(n)
            bar.set_postfix(cost=f"{cost:.4g}", best=f"{best_cost:.4g}")
            if not np.isfinite(cost):
                status = Status.NON_FINITE
                break
    note = loss.culprit(best_params, check) if status is Status.NON_FINITE and hasattr(loss, "culprit") else ""
    return TrainingResult(
        best_params, jnp.asarray(best_cost), jnp.concatenate(history), jnp.asarray(validation), best_step, int(status),
        note,
    )  # fmt: skip


@jax.jit
def _validate(loss: Any, params: Any, batch: Any) -> Any:
    return loss.cost(params, batch)


@partial(jax.jit, static_argnums=0)
def _chunk(optimizer: Any, loss: Any, params: Any, state: Any, batches: Any) -> tuple[Any, Any, Any]:
    """Run one optimizer step per batch; batches have a leading axis of steps."""

    def step(carry: tuple, batch: Any) -> tuple:
        params, state = carry
        cost, slope = loss.cost_and_slope(params, batch)
        updates, state = optimizer.update(slope, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), cost

    carry, costs = jax.lax.scan(step, (params, state), batches)
    return *carry, costs


def _shuffled_batches(data: Any, batch_size: int, rng: np.random.Generator, n: int) -> Any:
    """Return n batches, drawn without replacement within each pass through the data."""
    rows = jax.tree.leaves(data)[0].shape[0]
    size = min(batch_size, rows)
    per_pass = rows // size
    passes = [rng.permutation(rows)[: per_pass * size].reshape(per_pass, size) for _ in range(-(-n // per_pass))]
    indices = np.concatenate(passes)[:n]
    return jax.tree.map(lambda leaf: leaf[indices], data)


def _sample(draw: Callable, rng: np.random.Generator, n: int, batch_size: int) -> Any:
    """Return n batches of fresh initial states."""
    key = jax.random.key(int(rng.integers(2**31)))
    drawn = draw(jax.random.split(key, n * batch_size))
    return drawn.reshape(n, batch_size, *drawn.shape[1:])


@cache
def _default_optimizer(kind: str) -> Any:
    """One object per kind, so that a second training does not compile again."""
    return _optax().adam(1e-3) if kind == "policy" else _optax().sgd(0.1, momentum=0.9)


def _optax() -> Any:
    try:
        import optax
    except ImportError as error:
        raise ImportError("training needs optax; install it with: pip install 'optctl[learn]'") from error
    return optax


class _NoBar(contextlib.nullcontext):
    """Stands in for a progress bar that nobody asked for."""

    def __enter__(self) -> "_NoBar":
        return self

    def update(self, n: int) -> None:
        """Do nothing."""

    def set_postfix(self, **values: Any) -> None:
        """Do nothing."""


def _bar(steps: int, progress: bool) -> Any:
    if not progress:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm; install it with: pip install 'optctl[learn]'") from error
    return tqdm(total=steps, unit="step")
