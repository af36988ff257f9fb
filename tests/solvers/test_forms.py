"""Problems that are solved in another form: soft equalities, rows that t switches on, nothing free but parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.solvers.guess import first_state

NATIVE, DEFINITION = oc.InteriorPoint(backend="native"), oc.InteriorPoint(backend="jax")
UNIT = oc.LinearDynamics([[1.0]], [[1.0]])
DOUBLE = oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.005], [0.1]])


TWO_STEPS = oc.Problem(UNIT, lambda x, u: u @ u, horizon=2, x0=[3.0])


def from_one(x):
    return x - 1.0


def two_steps(l1, l2):
    """u0^2 + u1^2 and the price of h = x_2 - 1, from x_0 = 3: u = -lambda/2 each, h = 2 - lambda."""
    return TWO_STEPS.replace(terminal_equality=oc.Soft(from_one, l1=l1, l2=l2))


@pytest.mark.parametrize("method", [NATIVE, DEFINITION])
@pytest.mark.parametrize(
    ("l1", "l2", "multiplier"),
    [(1.0, 0.0, 1.0), (0.5, 0.25, 0.8), (0.0, 2.0, 4 / 3), (3.0, 2.0, 2.0), (np.inf, 0.0, 2.0)],
)
def test_a_soft_equality_has_the_price_of_its_absolute_value(method, l1, l2, multiplier):
    sol = oc.solve(two_steps(l1, l2), method=method)
    h = 2.0 - multiplier
    assert sol.converged
    np.testing.assert_allclose(sol.us, -multiplier / 2, atol=1e-7)
    price = l1 * abs(h) if h else 0.0
    np.testing.assert_allclose(sol.cost, multiplier**2 / 2 + price + 0.5 * l2 * h**2, atol=1e-7)
    assert set(sol.multipliers) == {"terminal_equality"}
    np.testing.assert_allclose(sol.multipliers["terminal_equality"], multiplier, atol=1e-6)


def test_a_soft_equality_pays_on_both_sides():
    below = oc.solve(two_steps(1.0, 0.0).replace(x0=[-1.0]))
    np.testing.assert_allclose(below.us, 0.5, atol=1e-7)
    np.testing.assert_allclose(below.multipliers["terminal_equality"], -1.0, atol=1e-6)


def pendulum(**changes):
    fields = {
        "dynamics": oc.discretize(lambda x, u: [x[1], u[0] - jnp.sin(x[0])], 0.1, nx=2, nu=1),
        "stage_cost": lambda x, u: 0.1 * (x @ x + 0.1 * u @ u),
        "terminal_cost": lambda x: x @ x,
        "horizon": 12,
        "x0": [1.0, 0.0],
    }
    return oc.Problem(**(fields | changes))


def track(x, u):
    """u1 = -2 sin x1 (missed at a price), and x2 + u1 = 0 (missed for the square alone)."""
    return jnp.stack([u[0] + 2.0 * jnp.sin(x[0]), x[1] + u[0]])


def test_soft_path_equalities_equal_extra_inputs_and_combine_with_rates_and_parameters():
    """Prices of both kinds beside a soft inequality, against misses that are inputs; the derivative in a price."""
    l1, l2 = jnp.array([0.02, 0.0]), jnp.array([0.0, 0.03])
    limit = oc.Soft(lambda x, u: -0.5 - x[1:], l1=0.05)

    def soft(l1):
        return pendulum(path_equality=oc.Soft(track, l1, l2), path_inequality=limit)

    sol = oc.solve(soft(l1))
    step = pendulum().dynamics.step
    explicit = oc.Problem(  # u, the two sides of the miss of the first row, the miss of the inequality
        oc.Dynamics(lambda x, u: step(x, u[:1], 0, None), 2, 4),
        lambda x, u: 0.1 * (x @ x + 0.1 * u[0] ** 2) + 0.02 * (u[1] + u[2]) + 0.05 * u[3] + 0.015 * track(x, u[:1])[1] ** 2,
        lambda x: x @ x, horizon=12, x0=[1.0, 0.0], u_min=[-np.inf, 0.0, 0.0, 0.0],
        path_equality=lambda x, u: track(x, u[:1])[:1] - u[1:2] + u[2:3], path_inequality=lambda x, u: -0.5 - x[1:] - u[3:],
    )  # fmt: skip
    other = oc.solve(explicit)
    assert sol.converged
    assert other.converged
    np.testing.assert_allclose(sol.cost, other.cost, rtol=1e-8)
    np.testing.assert_allclose(sol.us[:, 0], other.us[:, 0], atol=1e-6)
    y, z = sol.multipliers, other.multipliers
    assert y["path_equality"].shape == (12, 2)
    np.testing.assert_allclose(y["path_equality"][:, 0], z["path_equality"][:, 0], atol=1e-6)
    np.testing.assert_allclose(y["path_inequality"], z["path_inequality"], atol=1e-6)
    values = jax.vmap(track)(sol.xs[:-1], sol.us)
    np.testing.assert_allclose(y["path_equality"][:, 1], 0.03 * values[:, 1], atol=1e-8)
    slope = jax.grad(lambda price: oc.solve(soft(l1.at[0].set(price))).cost)(0.02)
    np.testing.assert_allclose(slope, jnp.sum(jnp.abs(values[:, 0])), rtol=1e-5)

    # The same with a mass that is known to the controller's form only: rates far from active change nothing.
    mpc = oc.MPC(soft(l1), du_max=50.0)
    np.testing.assert_allclose(mpc.init([1.0, 0.0]).us, sol.us, atol=1e-5)
    # A parameter that its cost pins to 1 is lifted among all of these.
    free = soft(l1).replace(
        dynamics=oc.discretize(lambda x, u, t, p: [x[1], u[0] - p * jnp.sin(x[0])], 0.1, nx=2, nu=1), params=0.8,
        terminal_cost=lambda x, p: x @ x + 1e4 * (p - 1.0) ** 2,
    )  # fmt: skip
    found = oc.solve(free, free=("us", "params"))
    np.testing.assert_allclose(found.params, 1.0, atol=1e-3)
    np.testing.assert_allclose(found.cost, sol.cost, rtol=1e-3)
    assert found.multipliers["path_equality"].shape == (12, 2)
    again = oc.solve(free, method=oc.InteriorPoint(warm_start=found), free=("us", "params"))
    np.testing.assert_allclose(again.cost, found.cost, rtol=1e-7)


def test_a_price_of_the_square_alone_is_a_penalty():
    cost = lambda x, u: (x[0] + 4) ** 2 + u @ u
    base = {"dynamics": UNIT, "horizon": 3, "x0": [0.0]}
    soft = oc.Problem(stage_cost=cost, path_inequality=oc.Soft(lambda x, u: -1 - x, l1=0.0, l2=10.0), **base)
    hand = oc.Problem(stage_cost=lambda x, u: cost(x, u) + 5.0 * jnp.maximum(-1 - x[0], 0) ** 2, **base)
    b = oc.solve(hand)
    for method in (NATIVE, DEFINITION):
        a = oc.solve(soft, method=method)
        assert a.converged
        np.testing.assert_allclose(a.cost, b.cost, rtol=1e-7)
        np.testing.assert_allclose(a.us, b.us, atol=1e-5)


def test_export_keeps_the_prices():
    """Both kinds of soft constraints, on the path and at the end, with rows that stay hard."""
    problem = oc.Problem(
        DOUBLE, lambda x, u: x @ x + u @ u, horizon=6, x0=[2.0, -1.0],
        path_inequality=oc.Soft(lambda x, u: jnp.stack([x[1] - 0.3, -u[0] - 4.0]), l1=[0.7, np.inf], l2=0.5),
        path_equality=oc.Soft(lambda x, u: x[1:] + 0.5, l1=0.4, l2=0.1),
        terminal_equality=oc.Soft(lambda x: x - jnp.array([1.0, 0.0]), l1=[np.inf, 3.0], l2=[0.0, 1.0]),
    )  # fmt: skip
    exported = oc.to_cvxpy(problem)
    exported.solve(solver="CLARABEL")
    sol = oc.solve(problem)
    assert sol.converged
    np.testing.assert_allclose(exported.value, sol.cost, rtol=1e-6)
    np.testing.assert_allclose(exported.var_dict["us"].value, sol.us, atol=1e-4)
    with pytest.raises(ValueError, match="`params_max` bounds params, which are numbers of the export"):
        oc.to_cvxpy(problem.replace(params=1.0, params_max=2.0))


WAY = oc.Problem(DOUBLE, lambda x, u: u @ u, horizon=40, x0=[0.0, 0.0], terminal_equality=lambda x: x)


@pytest.mark.big
@pytest.mark.parametrize("method", [NATIVE, DEFINITION])
def test_rows_that_t_switches_on(method):
    waypoint = WAY.replace(path_equality=lambda x, u, t: jnp.where(t == 20, x[:1] - 1, 0.0))
    sol = oc.solve(waypoint, method=method)
    np.testing.assert_allclose(sol.cost, 30.075188, rtol=1e-7)
    np.testing.assert_allclose(sol.xs[20, 0], 1.0, atol=1e-7)
    off = jnp.delete(sol.multipliers["path_equality"], 20, axis=0)
    np.testing.assert_array_equal(off, 0.0)
    late = WAY.replace(
        terminal_equality=lambda x: x - 1.0, path_inequality=lambda x, u, t, p: jnp.where(t >= 30, x[:1] - 1, p)
    )
    for nothing in (-1.0, 0.0):  # a row that is 0 whatever one does has no interior
        sol = oc.solve(late.replace(params=nothing), method=method)
        assert sol.converged
        assert jnp.max(sol.xs[30:, 0]) < 1 + 1e-7


def test_rows_that_nothing_free_can_change_must_hold():
    with pytest.raises(ValueError, match="row 0 that depends on nothing that is free at stage 0, where it is 1"):
        oc.solve(WAY.replace(path_inequality=lambda x, u, t: jnp.where(t >= 30, x[:1] - 1, 1.0)))
    dear = oc.solve(WAY.replace(path_inequality=oc.Soft(lambda x, u, t: jnp.where(t >= 30, x[:1] - 1, 1.0))))
    np.testing.assert_allclose(dear.cost, 30.0, rtol=1e-7)  # a price that nothing avoids

    @jax.jit
    def status(floor):
        problem = WAY.replace(path_inequality=lambda x, u, t, p: jnp.where(t >= 30, x[:1] - 1, p), params=floor)
        return oc.solve(problem, method="interior_point").status

    assert status(-1.0) == oc.Status.SOLVED
    assert status(0.0) == oc.Status.SOLVED
    assert status(0.5) == oc.Status.INFEASIBLE  # kept on where it does not hold


def test_a_row_that_compares_is_not_taken_for_a_constant():
    """NaN compares false, so that such a row looks constant where its arguments are NaN."""
    row = lambda x, u, t: jnp.where(u > 0.2, u - 0.5, -0.3)
    sol = oc.solve(
        WAY.replace(horizon=3, stage_cost=lambda x, u: (u[0] - 1.0) ** 2, terminal_equality=None, path_inequality=row),
        jnp.full((3, 1), 0.4),
    )
    assert sol.converged
    np.testing.assert_allclose(sol.us, 0.5, atol=1e-7)


def test_a_given_start_on_a_constraint_has_no_interior_and_needs_none():
    problem = WAY.replace(horizon=10, path_inequality=lambda x, u: x[:1], terminal_equality=lambda x: x + 0.1)
    sol = oc.solve(problem)
    assert sol.converged
    plain = oc.solve(problem.replace(path_inequality=None, x_max=[0.0, np.inf]))
    np.testing.assert_allclose(sol.cost, plain.cost, rtol=1e-6)
    h = 1e-4
    slope = jax.grad(lambda v: oc.solve(problem.replace(x0=jnp.stack([0.0, v]))).cost)(-0.2)
    up, down = (oc.solve(problem.replace(x0=[0.0, -0.2 + s * h])).cost for s in (1, -1))
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize("method", [NATIVE, DEFINITION])
def test_nothing_free_but_parameters(method):
    problem = oc.Problem(
        oc.Dynamics(lambda x, u, t, p: x + p[0] * 0.1, nx=1, nu=0), terminal_cost=lambda x, p: p[0] ** 2, horizon=10,
        x0=[0.0], params=[0.5], terminal_equality=lambda x: x - 2.0,
    )  # fmt: skip
    sol = oc.solve(problem, free=("params",), method=method)
    assert sol.converged
    np.testing.assert_allclose(sol.params, 2.0, atol=1e-8)
    np.testing.assert_allclose(sol.cost, 4.0, rtol=1e-8)
    np.testing.assert_allclose(sol.multipliers["terminal_equality"], -4.0, rtol=1e-6)  # dcost/dx_N = 2 p


def test_known_inputs_stay_and_parameters_are_found():
    """x+ = x + p u with given u: x_4 = 1 + p sum u <= 2 and cost (p - 3)^2 give p = 1 / sum u; the cost in u by hand."""
    problem = oc.Problem(
        oc.Dynamics(lambda x, u, t, p: x + p * u, nx=1, nu=1), terminal_cost=lambda x, p: (p - 3.0) ** 2, horizon=4,
        x0=[1.0], params=0.0, params_min=-5.0, terminal_inequality=lambda x: x - 2.0,
    )  # fmt: skip
    us = jnp.array([[0.1], [0.2], [0.0], [0.2]])
    sol = oc.solve(problem, us, free="params")
    assert sol.converged
    assert sol.method == "interior_point"
    np.testing.assert_array_equal(sol.us, us)
    np.testing.assert_allclose(sol.params, 2.0, atol=1e-7)
    assert oc.solve(problem, np.asarray(us), free="params").params == sol.params
    slope = jax.grad(lambda us: oc.solve(problem, us, free="params").cost)(us)
    np.testing.assert_allclose(slope, 2 * (2.0 - 3.0) * -1 / 0.5**2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"\['u_min'\]: they bound what is not free"):
        oc.solve(problem.replace(u_min=-1.0), us, free="params")
    held = oc.solve(problem.replace(x0=None), us, x0=[1.0], free="params")
    np.testing.assert_allclose(held.params, 2.0, atol=1e-7)
    np.testing.assert_array_equal(held.x0, [1.0])


@pytest.mark.parametrize("method", [NATIVE, DEFINITION])
def test_no_inputs_and_a_free_start(method):
    problem = oc.Problem(
        oc.Dynamics(lambda x, u: 0.9 * x, nx=1, nu=0), initial_cost=lambda x: (x[0] - 3) ** 2, horizon=10,
        terminal_inequality=lambda x: x - 0.5,
    )  # fmt: skip
    sol = oc.solve(problem, method=method)
    assert sol.converged
    np.testing.assert_allclose(sol.x0, 0.5 / 0.9**10, atol=1e-7)


def test_a_closed_loop_keeps_constraints():
    """x+ = x + K x from 1 with |u| <= 0.3 and sum x^2: the gain is -0.3, since the first input is the largest."""
    plant = oc.Problem(UNIT, lambda x, u: x @ x, horizon=6, x0=[1.0], u_min=-0.3, u_max=0.3)
    loop = oc.closed_loop(plant, lambda x, t, K: K @ x)
    sol = oc.solve(loop, params=jnp.array([[-0.1]]))
    assert sol.converged
    np.testing.assert_allclose(sol.params, -0.3, atol=1e-7)


def test_refinement_goes_on_from_the_parameters_found():
    d = oc.discretize(lambda x, u, t, p: [x[1], u[0] - p * x[0]], 0.25, nx=2, nu=1)
    cost = d.integral(lambda x, u, t, p: u @ u + (p - 3.0) ** 2)
    problem = oc.Problem(d, cost, horizon=8, x0=[1.0, 0.0], params=1.0, terminal_equality=lambda x: x, memory="sqrt")
    coarse = oc.solve(problem, method="interior_point", free=("us", "params"))
    refined = oc.refine(problem, coarse, tolerance=2e-5)
    assert refined.rounds >= 1
    assert refined.solution.cost < 3.1
    assert refined.solution.free == ("us", "params")
    assert refined.problem.memory == "sqrt"


def test_a_start_of_which_nothing_is_said_is_refused():
    problem = oc.Problem(UNIT, lambda x, u: x @ x + u @ u, horizon=3)
    with pytest.raises(ValueError, match=r"`x0` is missing: .* pass x0=... to Problem"):
        oc.solve(problem)
    assert oc.solve(problem, free=("us", "x0")).converged
    assert oc.solve(problem, x0=[1.0]).converged
    assert oc.solve(problem.replace(x0_min=1.0)).converged


def test_first_guess_of_a_free_start():
    problem = oc.Problem(
        oc.Dynamics(lambda x, u: x + u, 4, 4), initial_cost=lambda x: (x[0] - 7.0) ** 2 + 3.0 * (x[1] + 2.0) ** 2, horizon=2,
        x0_min=[-np.inf, -1.0, 2.0, 5.0], x0_max=[np.inf, np.inf, 4.0, np.inf], x_min=[-np.inf, -np.inf, -np.inf, 6.0],
    )  # fmt: skip
    np.testing.assert_allclose(first_state(problem, float), [7.0, -1.0, 3.0, 6.0], atol=1e-12)
    concave = problem.replace(initial_cost=lambda x: -x @ x)
    np.testing.assert_allclose(first_state(concave, float), [0.0, 0.0, 3.0, 6.0], atol=1e-12)


def test_whole_numbers_and_short_weights_are_taken():
    K = oc.lqr([[1, 1], [0, 1]], [[0], [1]], [1, 2], 3, x0=[5, 0], horizon=20.0).K
    want = oc.lqr([[1.0, 1.0], [0.0, 1.0]], [[0.0], [1.0]], np.diag([1.0, 2.0]), [[3.0]], x0=[5.0, 0.0], horizon=20).K
    np.testing.assert_array_equal(K, want)
    P = oc.dlqr(np.eye(2, dtype=int), np.eye(2, dtype=int), 2, [1, 4])[1]
    np.testing.assert_allclose(P, oc.dlqr(np.eye(2), np.eye(2), 2 * np.eye(2), np.diag([1.0, 4.0]))[1], rtol=1e-12)
    x, u = jnp.array([1.0, -2.0]), jnp.array([3.0])
    np.testing.assert_allclose(oc.costs.Quadratic(2, [4])(x, u, 0), 5.0 + 18.0)
    np.testing.assert_allclose(oc.costs.TerminalQuadratic(2, [1, 0])(x), 4.0)
    np.testing.assert_allclose(oc.costs.Tracking([1, 3], 2, [0, 0])(x, u, 0), 0.5 + 6.0 + 9.0)
    short = oc.Problem(
        DOUBLE, oc.costs.Quadratic(2, 1), oc.costs.TerminalQuadratic(2), horizon=5.0, x0=np.array([5, 0])
    )
    long = short.replace(stage_cost=oc.costs.Quadratic(2 * np.eye(2), np.eye(1)))
    assert short.steps == 5
    np.testing.assert_allclose(oc.solve(short).us, oc.solve(long).us, rtol=1e-12)
    with pytest.raises(ValueError, match=r"`Q` is -1.0; expected a number >= 0, or a matrix"):
        oc.costs.Quadratic(-1, 1)
    singular = oc.dlqr(np.eye(2), np.eye(2), 1, [1.0, 0.0])[1]
    np.testing.assert_allclose(singular, oc.dlqr(np.eye(2), np.eye(2), np.eye(2), np.diag([1.0, 0.0]))[1], rtol=1e-12)
    with pytest.raises(ValueError, match="`x0` has dtype bool"):
        short.replace(x0=np.array([True, False]))


def wall(linear=True):
    """A cart by Euler's scheme, whose force reaches the position two steps later, and a wall at 1."""
    A, B = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.0], [0.1]])
    cart = lambda x, u: jnp.stack([x[0] + 0.1 * x[1], x[1] + 0.1 * u[0] - 0.01 * jnp.sin(x[0])])
    far = np.array([1.5, 0.0])
    return oc.Problem(
        oc.LinearDynamics(A, B) if linear else oc.Dynamics(cart, 2, 1),
        lambda x, u: (x - far) @ (x - far) + 0.01 * u @ u,
        terminal_cost=lambda x: 10 * (x - far) @ (x - far),
        horizon=20,
        x0=np.zeros(2),
        u_min=-3.0,
        u_max=3.0,
        x_max=np.array([1.0, 0.8]),
    )


@pytest.mark.parametrize("linear", [True, False])
def test_states_on_a_bound_that_no_input_reaches_in_time(linear):
    """The cart comes to rest at the wall: then its next position is the bound, and nothing can be done about it."""
    problem, x = wall(linear), np.zeros(2)
    for _ in range(40):
        s = oc.solve(problem.replace(x0=x)).raise_if_failed()
        assert s.iterations < 30
        x = s.xs[1]
    np.testing.assert_allclose(x, [1.0, 0.0], atol=1e-7)


@pytest.mark.parametrize("x0", [[1.0, 0.0], [0.98, 0.2], [0.98, 0.2 + 1e-9]])
def test_a_position_that_is_the_bound_whatever_one_does(x0):
    problem = wall(False).replace(x0=x0)
    near, s = oc.solve(problem.replace(x_max=np.array([1.0 + 1e-6, 0.8]))), oc.solve(problem)
    assert s.converged
    np.testing.assert_allclose(s.cost, near.cost, rtol=1e-5)


def test_a_position_beyond_the_bound_whatever_one_does_is_told():
    s = oc.solve(wall().replace(x0=[0.95, 0.7]))
    assert not s.converged
    assert s.certificate.primal_feasibility > 0.01


def test_the_definition_leaves_out_what_no_input_reaches():
    s = oc.solve(wall(False).replace(x0=[1.0, 0.0], horizon=6), method=DEFINITION)
    np.testing.assert_allclose(
        s.us, oc.solve(wall(False).replace(x0=[1.0, 0.0], horizon=6), method=NATIVE).us, atol=1e-7
    )


def test_a_given_start_outside_of_the_bounds_is_told():
    with pytest.warns(UserWarning, match="`x0` leaves `x_max` at index 1, by 0.2"):
        oc.solve(wall().replace(x0=[0.0, 1.0]))
