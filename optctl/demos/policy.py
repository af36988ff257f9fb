"""Neural controllers trained through the closed loop by costates."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optctl import plot, problems
from optctl.demos.row import Row, save, timed
from optctl.dynamics import ClosedLoop
from optctl.policies import mlp, train_policy
from optctl.solvers import solve

GOAL = np.array([0.0, np.pi, 0.0, 0.0])
SPAN = np.array([0.5, 0.5, 0.5, 0.5])
"""Initial states are drawn uniformly within this distance of the goal."""


def run(out: Path) -> list[Row]:
    """Train one controller to push the pole up and one to balance it, against optimal open-loop inputs."""
    push = problems.cartpole_push()
    policy = mlp([4, 32, 32, 1])
    steps = 1500
    result, seconds = timed(
        train_policy, push, policy, policy.init(0), np.zeros((1, 4)), optimizer=_optimizer(1e-2, steps), steps=steps
    )
    exact = problems.OPTIMAL_COST["cartpole_push"]
    rows = [Row("cart-pole push", "neural policy", float(result.cost), exact, steps, seconds)]
    balance = problems.cartpole_balance()
    trained, seconds = timed(train_balance, balance)
    unseen = draw_states(np.random.default_rng(1), 200)
    optimal = [solve(balance.replace(x0=x0), method="newton_cg").raise_if_failed().cost for x0 in unseen]
    costs, paths = closed_loop_costs(balance, trained.params, unseen)
    share = np.mean(stabilized(balance, trained.params, unseen))
    rows.append(
        Row(f"balancing, {share:.1%} stable", "neural policy, 200 states", float(jnp.mean(costs)),
            float(np.mean(optimal)), len(trained.history), seconds)
    )  # fmt: skip
    ax = plot.phase_portrait(
        policy_around_goal, trained.params, balance.dynamics,
        states=(1, 3), around=GOAL, span=(0.8, 3.0), trajectories=paths[:20],
    )  # fmt: skip
    save(ax, out, "balance_phase_portrait")
    return rows


NETWORK = mlp([4, 32, 32, 1])


def policy_around_goal(x: Any, t: Any, params: Any) -> Any:
    """Return the force of a network that sees the distance from upright; 20 N at most."""
    return 20.0 * jnp.tanh(NETWORK.apply(params, x - GOAL))


def draw_states(rng: np.random.Generator, n: int) -> Any:
    """Return n initial states (n, 4), uniform around the goal."""
    return jnp.asarray(GOAL + SPAN * rng.uniform(-1, 1, size=(n, 4)))


def train_balance(problem: Any, steps: int = 1500) -> Any:
    """Train the balancing policy on 512 initial states."""
    return train_policy(
        problem, policy_around_goal, NETWORK.init(0), draw_states(np.random.default_rng(0), 512),
        optimizer=_optimizer(1e-2, steps), steps=steps, batch_size=64, check_every=100,
    )  # fmt: skip


def closed_loop_costs(problem: Any, params: Any, x0s: Any) -> tuple[Any, Any]:
    """Return costs (n,) and states (n, N+1, 4) of the closed loop."""
    loop = ClosedLoop(problem.dynamics, policy_around_goal)

    def one(x0: Any) -> tuple[Any, Any]:
        xs = loop.rollout(x0, jnp.zeros((problem.horizon, 0)), params)
        us = jax.vmap(lambda x: policy_around_goal(x, 0, params))(xs[:-1])
        return problem.trajectory_cost(xs, us, None), xs

    return jax.vmap(one)(x0s)


def stabilized(problem: Any, params: Any, x0s: Any, seconds: float = 10.0) -> Any:
    """Return for each initial state whether it ends within 0.05 of the goal in every state after 10 s."""
    longer = problem.replace(horizon=round(seconds / 0.02))
    _, paths = closed_loop_costs(longer, params, x0s)
    return np.asarray(jnp.all(jnp.abs(paths[:, -1] - GOAL[None]) < 0.05, axis=1))


def _optimizer(rate: float, steps: int) -> Any:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, steps)))
