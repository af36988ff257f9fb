"""Heat, Burgers and wave equation: closed forms, conservation, adjoints, orders, control by three methods."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc

ALL = [
    oc.pde.Heat(9, dt=0.01),
    oc.pde.Heat(9, dt=0.01, control="boundary", scheme="implicit_euler", diffusivity=0.7, length=2.0),
    oc.pde.Burgers(9, dt=0.01),
    oc.pde.Burgers(9, dt=0.01, control="boundary"),
    oc.pde.Wave(6, dt=0.02),
    oc.pde.Wave(6, dt=0.02, control="boundary"),
    oc.pde.Heat(1, dt=0.1),
    oc.pde.Heat(2, dt=0.1, control="none"),
]


@pytest.mark.parametrize("dynamics", ALL, ids=lambda d: f"{type(d).__name__}-{d.control}-{d.n}")
def test_adjoint(dynamics, rng):
    assert oc.check_adjoint(dynamics, rng.normal(size=dynamics.nx), rng.normal(size=(6, dynamics.nu)))


@pytest.mark.parametrize(
    ("scheme", "factor"), [("implicit_euler", 0.145674018269179), ("crank_nicolson", 0.1389105556817873)]
)
def test_gradient_of_the_discrete_heat_equation(scheme, factor):
    rod = oc.pde.Heat(63, dt=0.005, scheme=scheme, control="none")
    h, u0 = 1 / 64, jnp.sin(jnp.pi * rod.grid)
    problem = oc.Problem(rod, terminal_cost=lambda x: h / 2 * x @ x, horizon=20, x0=u0)
    for memory in ("full", "sqrt", oc.Binomial(4)):
        g = oc.gradient(problem.replace(memory=memory), jnp.zeros((20, 0)))
        np.testing.assert_allclose(g.x0 / h, factor * u0, atol=1e-13)


@pytest.mark.parametrize(("scheme", "order"), [("implicit_euler", 1), ("crank_nicolson", 2)])
def test_order_of_the_gradient_in_time(scheme, order):
    """The exact gradient of the semi-discrete system is exp(2 T L) u0."""
    n, T, h = 15, 0.1, 1 / 16
    rod = oc.pde.Heat(n, dt=1.0, control="none")
    x0 = jnp.sin(jnp.pi * rod.grid) + 0.3 * jnp.sin(3 * jnp.pi * rod.grid)
    k = jnp.array([1.0, 3.0])
    mu = 4 / h**2 * jnp.sin(k * jnp.pi * h / 2) ** 2
    exact = jnp.exp(-2 * mu * T) * jnp.array([1.0, 0.3]) @ jnp.sin(jnp.pi * jnp.outer(k, rod.grid))
    errors = []
    for N in (40, 80, 160):
        dynamics = oc.pde.Heat(n, dt=T / N, scheme=scheme, control="none")
        problem = oc.Problem(dynamics, terminal_cost=lambda x: x @ x / 2, horizon=N, x0=x0)
        errors.append(np.abs(oc.gradient(problem, jnp.zeros((N, 0))).x0 - exact).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.1)


def heat_control(n, N, T=0.1, a=0.01):
    """Steer sin(pi s) to zero; inputs held over each step, the step exact in time for the semi-discrete system."""
    h, dt = 1 / (n + 1), T / N
    L = (np.diag(np.ones(n - 1), -1) - 2 * np.eye(n) + np.diag(np.ones(n - 1), 1)) / h**2
    rod = oc.discretize(lambda y, u: L @ y + u, dt, "zoh", nx=n, nu=n)
    return oc.Problem(
        rod,
        oc.costs.Quadratic(Q=np.zeros((n, n)), R=a * h * dt * np.eye(n)),
        oc.costs.TerminalQuadratic(Q=h * np.eye(n)),
        horizon=N,
        x0=np.sin(np.pi * h * np.arange(1, n + 1)),
    )


def optimal_cost(mu, T=0.1, a=0.01):
    P = np.exp(-mu * T) / (1 + (1 - np.exp(-2 * mu * T)) / (2 * a * mu))
    return P * np.exp(-mu * T) / 4


def test_optimal_heating():
    """The closed form for inputs free in time, with the discrete mu; inputs held over dt cost (mu dt)^2 more."""
    assert optimal_cost(np.pi**2) == pytest.approx(0.006476252240094548, rel=1e-12)
    n = 3
    want = optimal_cost(4 * (n + 1) ** 2 * np.sin(np.pi / (2 * (n + 1))) ** 2)
    lq = oc.solve(heat_control(n, 4000), method="lq").raise_if_failed()
    np.testing.assert_allclose(lq.cost, want, rtol=1e-8)
    short = heat_control(n, 60)
    want = oc.solve(short, method="lq").cost
    for method in ("lbfgs", "newton_cg"):
        sol = oc.solve(short, method=method, tolerance=1e-8).raise_if_failed()
        np.testing.assert_allclose(sol.cost, want, rtol=1e-8)


def test_boundary_and_initial_value_control(rng):
    """Two more things to free: the ends, by the quadratic core; and the start, recovered from the end."""
    rod = oc.pde.Heat(15, dt=0.01, control="boundary")
    h = 1 / 16
    problem = oc.Problem(
        rod,
        lambda x, u: 1e-4 * u @ u,
        lambda x: h / 2 * (x - 1) @ (x - 1),
        horizon=40,
        x0=np.zeros(15),
    )
    sols = [oc.solve(problem, method=m).raise_if_failed() for m in ("lq", "newton_cg")]
    np.testing.assert_allclose(sols[1].us, sols[0].us, atol=1e-5)
    assert np.abs(sols[0].xs[-1] - 1).max() < 0.1
    free = oc.pde.Heat(7, dt=0.002, control="none")
    truth = jnp.sin(jnp.pi * free.grid)
    seen = free.rollout(truth, jnp.zeros((10, 0)))[-1]
    start = oc.Problem(
        free, terminal_cost=lambda x: (x - seen) @ (x - seen), initial_cost=lambda x: 1e-12 * x @ x, horizon=10
    )
    found = oc.solve(start, method="newton_cg", tolerance=1e-9)
    np.testing.assert_allclose(found.x0, truth, atol=1e-5)


def test_burgers_conserves_and_steepens():
    flow = oc.pde.Burgers(127, dt=0.002, viscosity=0.01, control="none")
    y0 = jnp.sin(2 * jnp.pi * flow.grid)
    xs = flow.rollout(y0, jnp.zeros((150, 0)))
    np.testing.assert_allclose(jnp.sum(xs, axis=1), jnp.sum(y0), atol=1e-10)  # odd about the middle
    assert jnp.max(jnp.abs(jnp.diff(xs[-1]))) > 3 * jnp.max(jnp.abs(jnp.diff(y0)))
    assert (jnp.diff(jnp.sum(xs**2, axis=1)) < 0).all()


def test_burgers_against_its_closed_form():
    """Cole and Hopf: y = -2 nu phi_x / phi, phi = 2 + exp(-nu pi^2 t) cos(pi s)."""
    nu, T = 0.1, 0.5
    errors = []
    for n, N in ((31, 100), (63, 200)):
        flow = oc.pde.Burgers(n, dt=T / N, viscosity=nu, control="none")

        def exact(t, s=flow.grid):
            decay = jnp.exp(-nu * jnp.pi**2 * t)
            return 2 * nu * jnp.pi * decay * jnp.sin(jnp.pi * s) / (2 + decay * jnp.cos(jnp.pi * s))

        errors.append(float(jnp.abs(flow.rollout(exact(0.0), jnp.zeros((N, 0)))[-1] - exact(T)).max()))
    assert errors[0] < 2e-3
    assert errors[1] < 0.6 * errors[0]


def test_wave_keeps_its_energy_and_its_period():
    string = oc.pde.Wave(63, dt=0.005, control="none")
    start = jnp.concatenate([jnp.sin(jnp.pi * string.grid), jnp.zeros(63)])
    xs = string.rollout(start, jnp.zeros((400, 0)))  # one period, 2 seconds
    energy = string.energy(xs)
    np.testing.assert_allclose(energy, energy[0], rtol=1e-11)
    np.testing.assert_allclose(xs[-1, :63], start[:63], atol=2e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oc.pde.Heat(0, dt=0.1), "`n` is 0"),
        (lambda: oc.pde.Heat(5, dt=-0.1), "`dt` is -0.1; expected a positive number"),
        (lambda: oc.pde.Heat(5, dt=0.1, scheme="euler"), "`scheme` is 'euler'"),
        (lambda: oc.pde.Wave(5, dt=0.1, control="edge"), "`control` is 'edge'"),
        (lambda: oc.pde.Burgers(5, dt=0.1, viscosity=0.0), "`viscosity` is 0"),
        (lambda: oc.pde.tridiagonal_solve(*[jnp.ones(3)] * 3, jnp.ones(4)), "do not fit; expected three diagonals"),
        (lambda: oc.pde.Heat(5, dt=0.1).rollout(np.ones(4), np.ones((3, 5))), "`x0` has shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_tridiagonal_solve_and_its_derivative(rng):
    for n in (1, 2, 3, 8):
        below, above, b = rng.normal(size=(3, n))
        diagonal = 4 + rng.random(n)
        dense = np.diag(diagonal) + np.diag(below[1:], -1) + np.diag(above[:-1], 1)
        data = tuple(map(jnp.asarray, (below, diagonal, above, b)))
        np.testing.assert_allclose(oc.pde.tridiagonal_solve(*data), np.linalg.solve(dense, b), rtol=1e-12)
        directions = tuple(jnp.asarray(v) for v in rng.normal(size=(4, n)))
        _, slope = jax.jvp(oc.pde.tridiagonal_solve, data, directions)
        ends = [
            oc.pde.tridiagonal_solve(*(d + s * 1e-6 * v for d, v in zip(data, directions, strict=True)))
            for s in (1, -1)
        ]
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, atol=1e-7)
