"""Small problems of every kind, shared by the tests so that each compiles once."""

import functools

import jax.numpy as jnp
import numpy as np

import optctl as oc


def nonlinear_step(x, u, t, p):
    return x + 0.1 * jnp.array([x[1] + 0.05 * t, -p["k"] * jnp.sin(x[0]) - p["b"] * x[1] ** 3 + u[0] * (1 + x[0] ** 2)])


def with_matrix(x, u, t, p):
    return jnp.tanh(p @ x) + u[0]


PARAMS = {"k": jnp.array(1.3), "b": jnp.array(0.2)}


def sim_step(x, u, t, p):
    return x + 0.1 * np.array([x[1] + 0.05 * t, -p[0] * np.sin(x[0]) - p[1] * x[1] ** 3 + u[0] * (1 + x[0] ** 2)])


def sim_jacobian(x, u, t, p):
    A = np.eye(2) + 0.1 * np.array([[0, 1], [-p[0] * np.cos(x[0]) + 2 * u[0] * x[0], -3 * p[1] * x[1] ** 2]])
    B = 0.1 * np.array([[0.0], [1 + x[0] ** 2]])
    Fp = 0.1 * np.array([[0.0, 0.0], [-np.sin(x[0]), -(x[1] ** 3)]])
    return A, B, Fp


def sim_vjp(w, x, u, t, p):
    A, B, Fp = sim_jacobian(x, u, t, p)
    return A.T @ w, B.T @ w, Fp.T @ w


@functools.cache
def kinds():
    """Name -> (dynamics, x0, us, params): every kind of dynamics with data that fit it; made once, compiled once."""
    rng = np.random.default_rng(3)
    N = 7

    def us(nu):
        return 0.3 * rng.normal(size=(N, nu))

    sim_params = np.array([1.3, 0.2])
    cart = oc.models.CartPole()
    network = oc.mlp([4, 8, 1])
    weights = [jnp.asarray(rng.normal(size=s)) / 2 for s in ((6, 5), (6, 6), (3, 6))]
    dense = lambda x, W: jnp.tanh(x @ W.T)
    big = jnp.asarray(rng.normal(size=(40, 40))) / 8
    table = {
        "function": (oc.Dynamics(nonlinear_step, 2, 1), rng.normal(size=2), us(1), PARAMS),
        "large": (oc.Dynamics(lambda x, u: jnp.tanh(big @ x) + u[0], 40, 1), rng.normal(size=40), us(1), None),
        "large_params": (oc.Dynamics(with_matrix, 40, 1), rng.normal(size=40), us(1), big),
        "linear": (
            oc.LinearDynamics(rng.normal(size=(3, 3)), rng.normal(size=(3, 2)), rng.normal(size=3)), rng.normal(size=3),
            us(2), None,
        ),
        "linear_staged": (
            oc.LinearDynamics(rng.normal(size=(N, 3, 3)), rng.normal(size=(N, 3, 2)), rng.normal(size=(N, 3))),
            rng.normal(size=3), us(2), None,
        ),
        "layers": (oc.Layers([dense] * 3), rng.normal(size=5), None, weights),
        "layers_shared": (oc.Layers([dense] * 4, share=(0, 1, 1, 2)), rng.normal(size=(4, 5)), None, weights),
        "closed_loop": (
            oc.ClosedLoop(oc.discretize(cart, 0.05), network), rng.normal(size=4), np.zeros((N, 0)), network.init(0),
        ),
        "simulator_jacobian": (
            oc.SimulatorDynamics(sim_step, 2, 1, jacobian=sim_jacobian), rng.normal(size=2), us(1), sim_params,
        ),
        "simulator_vjp": (oc.SimulatorDynamics(sim_step, 2, 1, vjp=sim_vjp), rng.normal(size=2), us(1), sim_params),
        "mesh": (oc.discretize(cart, np.linspace(0.02, 0.08, N)), rng.normal(size=4), us(1), None),
        "zoh_params": (
            oc.discretize(lambda x, u, t, p: p[0] * x[::-1] + p[1] * u, 0.2, "zoh", nx=2, nu=2),
            rng.normal(size=2), us(2),
            np.array([0.7, -1.1]),
        ),
    }  # fmt: skip
    for method in ("euler", "midpoint", "rk4", "implicit_midpoint", "trapezoid"):
        table[method] = (oc.discretize(cart, 0.05, method), rng.normal(size=4), us(1), None)
    return table


PENDULUM = oc.Problem(
    oc.Dynamics(nonlinear_step, 2, 1),
    stage_cost=lambda x, u, t, p: jnp.cos(x[0]) * p["k"] + u @ u + 0.1 * t * x[1] ** 2,
    terminal_cost=lambda x, p: (1 + p["b"]) * x @ x,
    initial_cost=lambda x, p: p["k"] * jnp.sum((x - 0.5) ** 4),
    horizon=7,
    x0=np.array([0.4, -0.3]),
    params=PARAMS,
)


def pendulum_problem(**changes):
    """A smooth nonlinear problem with parameters in dynamics, stage, terminal and initial cost."""
    return PENDULUM.replace(**changes) if changes else PENDULUM


def lq_problem(free_x0=False, N=8):
    rng = np.random.default_rng(5)
    Q, R = np.diag([1.0, 0.5, 0.2]), np.diag([0.3, 0.6])
    return oc.Problem(
        oc.LinearDynamics(rng.normal(size=(3, 3)) / 2, rng.normal(size=(3, 2)), 0.1 * rng.normal(size=3)),
        oc.costs.Quadratic(Q, R, M=0.1 * rng.normal(size=(3, 2)), q=rng.normal(size=3), r=rng.normal(size=2)),
        oc.costs.TerminalQuadratic(2 * np.eye(3), x_ref=np.ones(3)),
        initial_cost=oc.costs.TerminalQuadratic(np.eye(3), x_ref=-np.ones(3)),
        horizon=N,
        x0=None if free_x0 else np.array([1.0, -1.0, 0.5]),
    )


def bounded_problem():
    """The LQ problem with active input bounds and a free x_0 of which one component is fixed by equal bounds."""
    return lq_problem(free_x0=True).replace(
        u_min=-0.4,
        u_max=np.array([0.3, np.inf]),
        x0_min=np.array([-np.inf, 0.2, -0.5]),
        x0_max=np.array([np.inf, 0.2, 0.1]),
    )
