"""Trajectory problems at random, by kinds: each kind is one structure with other numbers, so that it compiles once.

A maker takes a random generator and returns a `Case`. What a kind is for is in its name; sizes are small.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

import optctl as oc

inf = np.inf
KINDS: dict[str, Callable] = {}


@dataclass
class Case:
    """A problem with a guess; `feasible` is False where no point can be."""

    kind: str
    problem: oc.Problem
    us: Any
    xs: Any
    free: tuple[str, ...] = ("us",)
    feasible: bool = True
    index: int = 0


def kind(make: Callable) -> Callable:
    KINDS[make.__name__] = make
    return make


def cases(each: int, guesses: int) -> Iterator[Case]:
    """Yield `each` problems of every kind, and every problem of the zoo from so many guesses."""
    for number, (name, make) in enumerate(KINDS.items()):
        for i in range(each):
            made = make(np.random.default_rng([number, i]), name)
            yield replace(made, index=i)
    for number, (name, known) in enumerate(oc.problems.ZOO.items()):
        for i in range(guesses):
            yield replace(
                perturbed(name, known(), np.random.default_rng([7, number, i]), 0.0 if i == 0 else 1.0), index=i
            )


def perturbed(name: str, known: Any, rng: Any, size: float) -> Case:
    """Return a known problem with its guess disturbed by a tenth to the whole of its own size."""
    problem, N = known.problem, known.problem.steps
    nu, nx = problem.dynamics.nu, problem.dynamics.nx
    us = np.zeros((N, nu)) if known.us is None else np.array(known.us, float)
    if known.xs is not None:
        xs = np.array(known.xs, float)
    else:
        xs = np.array(problem.dynamics.rollout(np.zeros(nx) if problem.x0 is None else problem.x0, us, problem.params))
    spread = size * 10 ** rng.uniform(-1, 0)
    us = us + spread * rng.normal(size=us.shape) * (0.1 + np.abs(us).max())
    wave = rng.normal(size=(2, nx)) * (0.1 + np.abs(xs).max(0))
    s = np.linspace(0, 1, N + 1)[:, None]
    xs = xs + spread * (wave[0] * np.sin(np.pi * s) + 0.3 * wave[1] * np.sin(3 * np.pi * s))
    free = known.free or (("us", "x0") if problem.x0 is None else ("us",))
    return Case(name, problem, us, xs, free)


# Linear-quadratic problems.


def plant(rng: Any, nx: int, nu: int, radius: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    A = np.eye(nx) + 0.2 * rng.normal(size=(nx, nx))
    return radius * A / np.abs(np.linalg.eigvals(A)).max(), rng.normal(size=(nx, nu))


def weights(rng: Any, n: int, least: float = 0.1) -> np.ndarray:
    R = rng.normal(size=(n, n))
    return R @ R.T / n + least * np.eye(n)


def regulator(rng: Any, N: int, nx: int, nu: int, radius: float = 1.0, size: float = 2.0, **more: Any) -> oc.Problem:
    A, B = plant(rng, nx, nu, radius)
    more = {"x0": size * rng.normal(size=nx), **more}
    return oc.Problem(
        oc.LinearDynamics(A, B),
        oc.costs.Quadratic(weights(rng, nx), weights(rng, nu)),
        oc.costs.TerminalQuadratic(weights(rng, nx)),
        horizon=N,
        **{name: value for name, value in more.items() if value is not None},
    )


def plain(name: str, problem: oc.Problem, xs: Any = None, us: Any = None, **more: Any) -> Case:
    """Return a case that starts from zero inputs and their rollout."""
    nu, nx = problem.dynamics.nu, problem.dynamics.nx
    us = np.zeros((problem.steps, nu)) if us is None else us
    if xs is None:
        start = np.zeros(nx) if problem.x0 is None else problem.x0
        xs = np.asarray(problem.dynamics.rollout(start, us, problem.params))
        xs = np.where(np.isfinite(xs) & (np.abs(xs) < 1e4 * (1 + np.abs(start).max())), xs, start)
    free = more.pop("free", ("us", "x0") if problem.x0 is None else ("us",))
    return Case(name, problem, us, xs, free, **more)


def reached(problem: oc.Problem, rng: Any, size: float = 0.3) -> np.ndarray:
    """Return states that small random inputs reach, so that what asks for them is feasible."""
    us = size * rng.normal(size=(problem.steps, problem.dynamics.nu))
    return np.asarray(problem.dynamics.rollout(problem.x0, us, problem.params))


@kind
def bounded_inputs(rng: Any, name: str) -> Case:
    return plain(name, regulator(rng, 20, 4, 2, u_min=-0.3, u_max=0.3))


@kind
def bounded_states(rng: Any, name: str) -> Case:
    limit = np.array([inf, 0.5, inf, 0.5])
    return plain(name, regulator(rng, 15, 4, 3, size=0.5, x_min=-limit, x_max=limit, u_min=-8.0, u_max=8.0))


@kind
def one_sided_bounds(rng: Any, name: str) -> Case:
    return plain(name, regulator(rng, 15, 3, 2, u_min=np.array([-0.2, -inf]), x_max=np.array([inf, 3.0, inf])))


def ends_at(x: Any, p: Any) -> Any:
    return x - p["goal"]


@kind
def terminal_equality(rng: Any, name: str) -> Case:
    problem = regulator(rng, 20, 4, 2, u_min=-1.5, u_max=1.5)
    return plain(name, problem.replace(params={"goal": reached(problem, rng)[-1]}, terminal_equality=ends_at))


def twice(x: Any, p: Any) -> Any:
    return jnp.concatenate([x - p["goal"], 2 * (x - p["goal"])[:2], (x - p["goal"])[:1]])


@kind
def redundant_equalities(rng: Any, name: str) -> Case:
    problem = regulator(rng, 20, 3, 2, u_min=-1.5, u_max=1.5)
    return plain(name, problem.replace(params={"goal": reached(problem, rng)[-1]}, terminal_equality=twice))


def linear_rows(x: Any, u: Any, t: Any, p: Any) -> Any:
    return p["G"] @ x + p["H"] @ u - p["b"]


@kind
def path_equality(rng: Any, name: str) -> Case:
    problem = regulator(rng, 15, 3, 3, u_min=-5.0, u_max=5.0, size=1.0)
    data = {"G": rng.normal(size=(1, 3)), "H": rng.normal(size=(1, 3)), "b": rng.normal(size=1)}
    return plain(name, problem.replace(params=data, path_equality=linear_rows))


@kind
def path_rows(rng: Any, name: str) -> Case:
    problem = regulator(rng, 15, 3, 2)
    G, H = rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
    xs, us = reached(problem, rng), 0
    del us
    b = np.abs(xs[:-1] @ G.T).max(0) + 0.2
    return plain(name, problem.replace(params={"G": G, "H": H, "b": b}, path_inequality=linear_rows))


@kind
def duplicate_rows(rng: Any, name: str) -> Case:
    """The same rows twice, and once more scaled, beside bounds that say the same."""
    problem = regulator(rng, 15, 3, 2, u_min=-0.4, u_max=0.4)
    H = np.array([[1.0, 0.0], [1.0, 0.0], [-3.0, 0.0], [0.0, 1.0]])
    data = {"G": np.zeros((4, 3)), "H": H, "b": np.array([0.4, 0.4, 1.2, 0.4])}
    return plain(name, problem.replace(params=data, path_inequality=linear_rows))


SOFT = oc.Soft(linear_rows, l1=2.0, l2=1.0)


@kind
def soft_rows(rng: Any, name: str) -> Case:
    problem = regulator(rng, 15, 3, 2, u_min=-0.5, u_max=0.5)
    data = {"G": rng.normal(size=(2, 3)), "H": 0.1 * rng.normal(size=(2, 2)), "b": np.array([0.1, -0.1])}
    return plain(name, problem.replace(params=data, path_inequality=SOFT))


def near_prior(x: Any, p: Any) -> Any:
    return 2.0 * (x - p["goal"]) @ (x - p["goal"])


@kind
def free_start(rng: Any, name: str) -> Case:
    problem = regulator(rng, 15, 3, 2, x0=None, u_min=-0.3, u_max=0.3, x0_min=-1.0, x0_max=1.0)
    return plain(name, problem.replace(params={"goal": 2 * rng.normal(size=3)}, initial_cost=near_prior))


@kind
def partly_free_start(rng: Any, name: str) -> Case:
    low = np.array([rng.normal(), -1.0, -inf])
    problem = regulator(rng, 15, 3, 2, x0=None, u_min=-0.3, u_max=0.3, x0_min=low, x0_max=np.array([low[0], 1.0, inf]))
    return plain(name, problem.replace(params={"goal": 2 * rng.normal(size=3)}, initial_cost=near_prior))


@kind
def fixed_bounds(rng: Any, name: str) -> Case:
    """Bounds that are equal at some stages fix an input there, and a state at another."""
    N = 16
    low, high = np.full((N, 2), -0.5), np.full((N, 2), 0.5)
    low[4:7, 0] = high[4:7, 0] = 0.1
    xl, xh = np.full((N + 1, 3), -inf), np.full((N + 1, 3), inf)
    xl[10, 1] = xh[10, 1] = 0.0
    return plain(name, regulator(rng, N, 3, 2, size=0.3, u_min=low, u_max=high, x_min=xl, x_max=xh))


def linear_price(x: Any, u: Any, t: Any, p: Any) -> Any:
    return p["q"] @ x + p["r"] @ u


@kind
def linear_cost(rng: Any, name: str) -> Case:
    A, B = plant(rng, 3, 2)
    problem = oc.Problem(
        oc.LinearDynamics(A, B), linear_price, horizon=12, x0=rng.normal(size=3), u_min=-1.0, u_max=1.0,
        x_min=-20.0, x_max=20.0, params={"q": rng.normal(size=3), "r": rng.normal(size=2)},
    )  # fmt: skip
    return plain(name, problem)


@kind
def one_stage(rng: Any, name: str) -> Case:
    problem = regulator(rng, 1, 3, 2, u_min=-0.5, u_max=0.5)
    return plain(name, problem.replace(params={"goal": reached(problem, rng)[-1]}, terminal_inequality=in_a_ball))


def in_a_ball(x: Any, p: Any) -> Any:
    return jnp.stack([(x - p["goal"]) @ (x - p["goal"]) - 0.25])


def decays(x: Any, u: Any, t: Any, p: Any) -> Any:
    return p["A"] @ x


@kind
def no_inputs(rng: Any, name: str) -> Case:
    A = plant(rng, 3, 1, 0.95)[0]
    problem = oc.Problem(
        oc.Dynamics(decays, nx=3, nu=0), initial_cost=near_prior, horizon=8, terminal_inequality=in_a_ball,
        x0_min=-3.0, x0_max=3.0, params={"A": A, "goal": 0.3 * rng.normal(size=3)},
    )  # fmt: skip
    return plain(name, problem, free=("x0",))


@kind
def unreachable(rng: Any, name: str) -> Case:
    """A goal that bounded inputs cannot reach."""
    problem = regulator(rng, 6, 3, 1, radius=0.9, u_min=-0.1, u_max=0.1, size=0.1)
    goal = {"goal": 20 * rng.choice([-1, 1], size=3) + rng.normal(size=3)}
    return plain(name, problem.replace(params=goal, terminal_equality=ends_at), feasible=False)


@kind
def contradictory_rows(rng: Any, name: str) -> Case:
    problem = regulator(rng, 10, 3, 2)
    H = rng.normal(size=(1, 2))
    data = {"G": np.zeros((2, 3)), "H": np.concatenate([H, -H]), "b": np.array([-1.0, 0.5])}
    return plain(name, problem.replace(params=data, path_inequality=linear_rows), feasible=False)


@kind
def scaled_states(rng: Any, name: str) -> Case:
    """States in units from 1e-6 to 1e6."""
    problem = regulator(rng, 15, 4, 2, u_min=-0.3, u_max=0.3)
    s = 10 ** rng.uniform(-6, 6, size=4)
    d = problem.dynamics
    stage, end = problem.stage_cost.call, problem.terminal_cost.call
    over = 1 / np.outer(s, s)
    limit = s * np.maximum(1.0, 0.9 * np.abs(np.asarray(problem.x0)))
    return plain(
        name,
        problem.replace(
            dynamics=oc.LinearDynamics(np.asarray(d.A) * s[:, None] / s[None], np.asarray(d.B) * s[:, None]),
            stage_cost=oc.costs.Quadratic(np.asarray(stage.Q) * over, stage.R),
            terminal_cost=oc.costs.TerminalQuadratic(np.asarray(end.Q) * over),
            x0=s * np.asarray(problem.x0),
            x_max=np.array([inf, inf, 5 * limit[2], 5 * limit[3]]),
        ),
    )


@kind
def scaled_inputs(rng: Any, name: str) -> Case:
    problem = regulator(rng, 15, 3, 2)
    s = 10 ** rng.uniform(-6, 6, size=2)
    stage = problem.stage_cost.call
    return plain(
        name,
        problem.replace(
            dynamics=oc.LinearDynamics(problem.dynamics.A, np.asarray(problem.dynamics.B) / s),
            stage_cost=oc.costs.Quadratic(stage.Q, np.asarray(stage.R) / np.outer(s, s)),
            u_min=-0.3 * s,
            u_max=0.3 * s,
        ),
    )


@kind
def scaled_cost(rng: Any, name: str) -> Case:
    problem = regulator(rng, 15, 3, 2, u_min=-0.3, u_max=0.3)
    s = 10 ** rng.uniform(-8, 8)
    stage, end = problem.stage_cost.call, problem.terminal_cost.call
    cost = oc.costs.Quadratic(s * np.asarray(stage.Q), s * np.asarray(stage.R))
    return plain(
        name, problem.replace(stage_cost=cost, terminal_cost=oc.costs.TerminalQuadratic(s * np.asarray(end.Q)))
    )


@kind
def scaled_rows(rng: Any, name: str) -> Case:
    problem = regulator(rng, 15, 3, 2)
    G, H = rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
    b = np.abs(reached(problem, rng)[:-1] @ G.T).max(0) + 0.2
    s = 10 ** rng.uniform(-6, 6, size=3)
    data = {"G": s[:, None] * G, "H": s[:, None] * H, "b": s * b}
    return plain(name, problem.replace(params=data, path_inequality=linear_rows))


@kind
def unstable_plant(rng: Any, name: str) -> Case:
    return plain(name, regulator(rng, 30, 3, 2, radius=1.6, size=0.02, u_min=-0.5, u_max=0.5))


@kind
def near_the_optimum(rng: Any, name: str) -> Case:
    """Start where the inputs are zero and the state almost is."""
    return plain(name, regulator(rng, 20, 3, 2, size=10 ** rng.uniform(-10, -3), u_min=-0.3, u_max=0.3))


@kind
def vanishing_multipliers(rng: Any, name: str) -> Case:
    """A bound that the unconstrained optimum just touches."""
    problem = regulator(rng, 15, 3, 2)
    us = oc.solve(problem).us
    limit = np.abs(np.asarray(us)).max(0)
    return plain(name, problem.replace(u_min=-limit, u_max=limit))


# Nonlinear problems.


def drifts(x: Any, u: Any, t: Any, p: Any) -> Any:
    return jnp.stack([x[0] + 0.1 * x[1] + p[0], x[1] + 0.1 * (u[0] - p[1] * x[0])])


def tracks(x: Any, u: Any, t: Any, p: Any) -> Any:
    return (x[0] - 1) ** 2 + 0.1 * u @ u + 0.5 * (p[0] - 0.1) ** 2 + 0.01 * (p[1] - 1) ** 2


@kind
def free_parameters(rng: Any, name: str) -> Case:
    problem = oc.Problem(
        oc.Dynamics(drifts, nx=2, nu=1), tracks, horizon=15, x0=rng.normal(size=2), params=0.2 * rng.normal(size=2),
        params_min=np.array([-0.05, 0.0]), params_max=np.array([0.05, 4.0]), u_min=-1.0, u_max=1.0,
    )  # fmt: skip
    return plain(name, problem, free=("us", "params"))


def rail(x: Any, u: Any, t: Any, p: Any) -> Any:
    return [p["tf"] * x[1], p["tf"] * (u[0] - 0.1 * x[1] * jnp.abs(x[1]))]


def last(x: Any, p: Any) -> Any:
    return p["tf"]


def at_rest(x: Any) -> Any:
    return x


RAIL = oc.discretize(rail, 1 / 20, nx=2, nu=1)


@kind
def free_final_time(rng: Any, name: str) -> Case:
    x0 = np.array([rng.uniform(1, 10), rng.normal()])
    problem = oc.Problem(
        RAIL, terminal_cost=last, horizon=20, x0=x0, params={"tf": jnp.asarray(rng.uniform(1, 8))}, params_min=0.1,
        params_max=60.0, u_min=-1.0, u_max=1.0, terminal_equality=at_rest,
    )  # fmt: skip
    return plain(name, problem, xs=np.linspace(x0, np.zeros(2), 21), free=("us", "params"))


CLOCKED = oc.discretize(lambda x, u: [x[2] * x[1], x[2] * (u[0] - 0.1 * x[1] ** 3), 0 * x[2]], 1 / 20, nx=3, nu=1)


def duration(x: Any) -> Any:
    return x[2]


def stops(x: Any) -> Any:
    return x[:2]


@kind
def final_time_as_state(rng: Any, name: str) -> Case:
    start = np.array([rng.uniform(1, 10), rng.normal()])
    problem = oc.Problem(
        CLOCKED, terminal_cost=duration, horizon=20, x0_min=np.array([*start, 0.1]), x0_max=np.array([*start, 60.0]),
        u_min=-1.0, u_max=1.0, terminal_equality=stops,
    )  # fmt: skip
    T = rng.uniform(1, 8)
    return plain(name, problem, xs=np.linspace([*start, T], [0, 0, T], 21))


def clocked(x: Any, u: Any, t: Any, p: Any) -> Any:
    return jnp.stack([x[0] + 0.1 * x[1], x[1] + 0.1 * (u[0] - jnp.sin(x[0])), x[2] + 0.1])


def follows(x: Any, u: Any, t: Any, p: Any) -> Any:
    return (x[0] - p["a"] * jnp.sin(p["w"] * x[2])) ** 2 + 0.01 * u @ u


@kind
def clock_as_state(rng: Any, name: str) -> Case:
    problem = oc.Problem(
        oc.Dynamics(clocked, nx=3, nu=1), follows, horizon=30, x0=np.array([*rng.normal(size=2), rng.uniform(0, 50)]),
        params={"a": rng.uniform(0.5, 2), "w": rng.uniform(1, 3)}, u_min=-4.0, u_max=4.0,
    )  # fmt: skip
    return plain(name, problem, xs=np.zeros((31, 3)))


PENDULUM = oc.discretize(oc.models.Pendulum(), 0.1)


def upright(x: Any, u: Any, t: Any, p: Any) -> Any:
    return (1 + jnp.cos(x[0])) + 0.01 * x[1] ** 2 + 0.01 * u @ u


@kind
def pendulum(rng: Any, name: str) -> Case:
    problem = oc.Problem(PENDULUM, upright, horizon=40, x0=rng.normal(size=2), u_min=-4.0, u_max=4.0)
    return plain(name, problem, us=rng.normal(size=(40, 1)))


def rolls(x: Any, u: Any) -> Any:
    return [u[0] * jnp.cos(x[2]), u[0] * jnp.sin(x[2]), u[1]]


CAR = oc.discretize(rolls, 0.1, nx=3, nu=2)


def effort(x: Any, u: Any) -> Any:
    return 0.05 * u @ u


def outside(x: Any, u: Any, t: Any, p: Any) -> Any:
    gaps = x[None, :2] - p["centers"]
    return p["radius"] ** 2 - jnp.sum(gaps**2, axis=1)


@kind
def obstacles(rng: Any, name: str) -> Case:
    goal = np.array([3.0, rng.normal(), 0.0])
    centers = np.array([[1.0, 0.3 * rng.normal()], [2.0, 0.5 * rng.normal()]])
    problem = oc.Problem(
        CAR, effort, horizon=30, x0=np.zeros(3), u_min=np.array([-3.0, -3.0]), u_max=3.0, path_inequality=outside,
        terminal_equality=ends_at, params={"goal": goal, "centers": centers, "radius": 0.4},
    )  # fmt: skip
    return plain(name, problem, us=0.1 * rng.normal(size=(30, 2)), xs=np.linspace(np.zeros(3), goal, 31))


@kind
def parking(rng: Any, name: str) -> Case:
    """A sideways move, from a guess that stands still."""
    goal = np.array([0.0, rng.uniform(0.3, 1.5), rng.uniform(-1, 1)])
    problem = oc.Problem(
        CAR, effort, horizon=30, x0=np.zeros(3), u_min=-2.0, u_max=2.0, terminal_equality=ends_at, params={"goal": goal}
    )
    return plain(name, problem, us=0.01 * rng.normal(size=(30, 2)))


OSCILLATOR = oc.discretize(lambda x, u: [(1 - x[1] ** 2) * x[0] - x[1] + u[0], x[0]], 0.2, nx=2, nu=1)


def energy(x: Any, u: Any) -> Any:
    return x @ x + u @ u


@kind
def van_der_pol_wall(rng: Any, name: str) -> Case:
    x0 = np.array([0.0, rng.uniform(0.5, 1.5)])
    low = np.array([rng.uniform(-0.6, -0.2), -inf])
    return plain(name, oc.Problem(OSCILLATOR, energy, horizon=40, x0=x0, x_min=low, u_min=-1.0, u_max=1.0))


def cubic(x: Any, u: Any, t: Any, p: Any) -> Any:
    return x + 0.2 * (p["a"] @ x + jnp.sin(p["b"] @ x) + u**3 / 3 + u)


def wells(x: Any, u: Any, t: Any, p: Any) -> Any:
    return jnp.sum((x**2 - 1) ** 2) + 0.1 * u @ u - 0.3 * u[0] * x[1]


@kind
def not_convex(rng: Any, name: str) -> Case:
    data = {"a": 0.5 * rng.normal(size=(2, 2)), "b": rng.normal(size=(2, 2))}
    problem = oc.Problem(
        oc.Dynamics(cubic, nx=2, nu=2),
        wells,
        horizon=15,
        x0=0.5 * rng.normal(size=2),
        params=data,
        u_min=-2.0,
        u_max=2.0,
    )
    return plain(name, problem, us=0.3 * rng.normal(size=(15, 2)))


def circle(x: Any, u: Any, t: Any, p: Any) -> Any:
    return jnp.stack([u @ u - p["r"] ** 2])


@kind
def inputs_on_a_circle(rng: Any, name: str) -> Case:
    A, B = plant(rng, 2, 2)
    problem = oc.Problem(
        oc.LinearDynamics(A, 0.3 * B), energy, horizon=12, x0=2 * rng.normal(size=2), path_equality=circle,
        params={"r": rng.uniform(0.3, 1.0)},
    )  # fmt: skip
    return plain(name, problem, us=0.5 * rng.normal(size=(12, 2)))


def never(x: Any, u: Any) -> Any:
    return jnp.stack([x[0] ** 2 + u[0] ** 2 + 0.3])


@kind
def nowhere_feasible(rng: Any, name: str) -> Case:
    problem = oc.Problem(
        PENDULUM, upright, horizon=10, x0=rng.normal(size=2), u_min=-4.0, u_max=4.0, path_inequality=never
    )
    return plain(name, problem, feasible=False)


ROCKET = oc.discretize(
    lambda x, u, t, p: [
        p[0] * x[1],
        p[0] * ((u[0] - 310 * x[1] ** 2 * jnp.exp(-500 * (x[0] - 1))) / x[2] - 1 / x[0] ** 2),
        -p[0] * 2 * u[0],
    ],
    1 / 40, nx=3, nu=1,
)  # fmt: skip


def altitude(x: Any) -> Any:
    return -x[0]


def burnt(x: Any) -> Any:
    return x[2:] - 0.6


@kind
def goddard(rng: Any, name: str) -> Case:
    """Goddard's rocket: greatest height with 0.4 of its mass as fuel, drag and a free final time."""
    problem = oc.Problem(
        ROCKET, terminal_cost=altitude, horizon=40, x0=np.array([1.0, 0.0, 1.0]),
        params=np.array([0.1 + 0.1 * rng.random()]), params_min=np.array([0.01]), params_max=np.array([1.0]),
        u_min=0.0, u_max=3.5, x_min=np.array([1.0, 0.0, 0.6]), x_max=np.array([1.1, 0.3, 1.0]),
        terminal_equality=burnt,
    )  # fmt: skip
    xs = np.linspace([1, 0.05, 1], [1.01, 0.05, 0.6], 41)
    return plain(name, problem, xs=xs, us=np.full((40, 1), 0.3 + 1.5 * rng.random()), free=("us", "params"))


ORBIT = oc.discretize(
    lambda x, u, t, p: [
        p[0] * x[1], p[0] * (x[2] ** 2 / x[0] - 1 / x[0] ** 2 + 0.1405 * jnp.sin(u[0]) / (1 - 0.07485 * p[0] * x[3])),
        p[0] * (-x[1] * x[2] / x[0] + 0.1405 * jnp.cos(u[0]) / (1 - 0.07485 * p[0] * x[3])), 1.0 + 0 * x[0],
    ],
    1 / 30, nx=4, nu=1,
)  # fmt: skip


def flight(x: Any, p: Any) -> Any:
    return p[0]


def on_orbit(x: Any) -> Any:
    return jnp.stack([x[0] - 1.2, x[1], x[2] - 1.2**-0.5])


@kind
def low_thrust(rng: Any, name: str) -> Case:
    """Between circular orbits with a constant thrust, in the least time."""
    problem = oc.Problem(
        ORBIT, terminal_cost=flight, horizon=30, x0=np.array([1.0, 0.0, 1.0, 0.0]),
        params=np.array([rng.uniform(1, 4)]),
        params_min=np.array([0.1]), params_max=np.array([10.0]), terminal_equality=on_orbit, u_min=-np.pi,
        u_max=2 * np.pi,
    )  # fmt: skip
    xs = np.linspace([1, 0.05, 1, 0], [1.2, 0.0, 1.2**-0.5, 1], 31)
    return plain(name, problem, xs=xs, us=0.3 + 0.5 * rng.normal(size=(30, 1)), free=("us", "params"))


def arm(x: Any, u: Any, t: Any, p: Any) -> Any:
    L = 5.0
    turn = ((L - x[0]) ** 3 + x[0] ** 3) / 3 * jnp.sin(x[4]) ** 2
    lift = ((L - x[0]) ** 3 + x[0] ** 3) / 3
    return [p[0] * x[1], p[0] * u[0] / L, p[0] * x[3], p[0] * u[1] / turn, p[0] * x[5], p[0] * u[2] / lift]


ARM = oc.discretize(arm, 1 / 30, nx=6, nu=3)
ARM_START, ARM_END = np.array([4.5, 0, 0, 0, np.pi / 4, 0]), np.array([4.5, 0, 2 * np.pi / 3, 0, np.pi / 4, 0])


def arm_home(x: Any) -> Any:
    return x - ARM_END


@kind
def robot_arm(rng: Any, name: str) -> Case:
    """The robot arm of the COPS collection, in the least time; 9.1409 for many stages."""
    problem = oc.Problem(
        ARM, terminal_cost=flight, horizon=30, x0=ARM_START, params=np.array([rng.uniform(0.5, 12)]),
        params_min=np.array([0.1]), params_max=np.array([100.0]), u_min=-1.0, u_max=1.0, terminal_equality=arm_home,
        x_min=np.array([0.0, -inf, -np.pi, -inf, 0.0, -inf]), x_max=np.array([5.0, inf, np.pi, inf, np.pi, inf]),
    )  # fmt: skip
    us = 0.1 * rng.normal(size=(30, 3))
    return plain(name, problem, xs=np.linspace(ARM_START, ARM_END, 31), us=us, free=("us", "params"))


ZERMELO = oc.discretize(
    lambda x, u, t, T: T * jnp.stack([jnp.cos(u[0]) - x[1], jnp.sin(u[0])]), 1 / 10, nx=2, nu=1, hold="linear"
)


def crossing(x: Any, T: Any) -> Any:
    return T


@kind
def zermelo(rng: Any, name: str) -> Case:
    problem = oc.Problem(
        ZERMELO, terminal_cost=crossing, horizon=10, x0=np.array([3.66, -1.86]), params=jnp.asarray(rng.uniform(2, 8)),
        params_min=0.1, params_max=50.0, terminal_equality=at_rest,
    )  # fmt: skip
    us = np.full((10, 2), rng.uniform(1.8, 3.2))
    return plain(name, problem, us=us, xs=np.linspace([3.66, -1.86], [0, 0], 11), free=("us", "params"))


HILL = oc.discretize(
    lambda x, u: x[2] * jnp.stack([x[1], 0.001 * u[0] - 0.0025 * jnp.cos(3 * x[0]), 0 * x[0]]), 1 / 60, nx=3, nu=1
)


def on_top(x: Any) -> Any:
    return x[:1] - 0.5


def forward(x: Any) -> Any:
    return -x[1:2]


@kind
def mountain_car(rng: Any, name: str) -> Case:
    problem = oc.Problem(
        HILL, terminal_cost=duration, horizon=60, u_min=-1.0, u_max=1.0, x0_min=np.array([-0.5, 0, 10]),
        x0_max=np.array([-0.5, 0, 400]), x_min=np.array([-1.2, -0.07, -inf]), x_max=np.array([0.5, 0.07, inf]),
        terminal_equality=on_top, terminal_inequality=forward,
    )  # fmt: skip
    T = rng.uniform(60, 160)
    us = 0.1 * rng.normal(size=(60, 1))
    return plain(name, problem, us=us, xs=np.linspace([-0.5, 0, T], [0.5, 0.07 * rng.random(), T], 61))


FALL = oc.discretize(
    lambda z, u, t, p: [
        p["T"] * z[2] * jnp.cos(u[0]), p["T"] * z[2] * jnp.sin(u[0]), p["T"] * p["unit"] * 9.80665 * jnp.sin(u[0])
    ],
    1 / 30, nx=3, nu=1,
)  # fmt: skip


def fallen(x: Any, p: Any) -> Any:
    return x[:2] - p["unit"] * jnp.array([10.0, 5.0])


def time_of_fall(x: Any, p: Any) -> Any:
    return p["T"]


@kind
def small_units(rng: Any, name: str) -> Case:
    """The brachistochrone with lengths in km ... um."""
    unit = 10 ** rng.uniform(-3, 6)
    bound = {"T": 0.05, "unit": unit}, {"T": 10.0, "unit": unit}
    problem = oc.Problem(
        FALL, terminal_cost=time_of_fall, horizon=30, x0=np.zeros(3), params={"T": 1.0, "unit": unit},
        params_min=bound[0], params_max=bound[1], u_min=0.0, u_max=np.pi, terminal_equality=fallen,
    )  # fmt: skip
    xs = np.linspace(np.zeros(3), unit * np.array([10.0, 5.0, 9.9]), 31)
    return plain(name, problem, us=np.linspace(1.5, 0.3, 30)[:, None], xs=xs, free=("us", "params"))
