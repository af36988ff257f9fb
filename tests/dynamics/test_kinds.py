"""What is special about each kind: linear, layers, closed loop, simulator, ready models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from tests import zoo


def test_linear_matrices_are_not_copied_and_jacobians_are_given():
    dynamics = oc.LinearDynamics(np.eye(2), np.ones((2, 1)))
    A, B = dynamics.linearize(np.zeros((4, 2)), np.zeros((3, 1)))
    assert A.shape == (3, 2, 2)
    assert B.shape == (3, 2, 1)
    assert (dynamics.nx, dynamics.nu, dynamics.horizon) == (2, 1, None)
    assert not dynamics.curvature(np.ones((4, 2)), np.ones((3, 1)), np.ones((4, 2))).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(2)[:1], np.ones((2, 1))), r"`A` has shape \(1, 2\); expected \(nx, nx\)"),
        ((np.eye(2), np.ones((3, 1))), r"`B` has shape \(3, 1\); expected \(2, nu\)"),
        ((np.eye(2), np.ones((2, 1)), np.ones(3)), r"`c` has shape \(3,\); expected \(2,\)"),
        ((np.ones((4, 2, 2)), np.ones((5, 2, 1))), r"stages differ: \{'A': 4, 'B': 5\}"),
        ((np.eye(2, dtype=int), np.ones((2, 1))), r"`A` has dtype int64; expected floating point"),
        ((np.full((2, 2), np.nan), np.ones((2, 1))), r"`A` holds NaN or inf, first at index \(0, 0\)"),
    ],
)
def test_linear_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        oc.LinearDynamics(*arguments)


def test_layers_gradient_equals_jax_grad():
    """Costates through layers of different widths, shared weights adding up, against jax.grad of plain code."""
    layers, x, _, weights = zoo.kinds()["layers_shared"]
    labels = np.array([0, 2, 1, 1])
    problem = oc.Problem(
        layers, stage_cost=oc.costs.HiddenPenalty(0.1), terminal_cost=oc.costs.CrossEntropy(labels), params=weights
    )
    g = oc.gradient(problem, None, x0=x)

    def plain(weights, x):
        cost = 0.0
        for W in (weights[0], weights[1], weights[1], weights[2]):
            cost += 0.05 * jnp.mean(jnp.sum(x**2, axis=-1))
            x = jnp.tanh(x @ W.T)
        return cost - jnp.mean(jax.nn.log_softmax(x)[jnp.arange(4), labels])

    want, want_x = jax.grad(plain, (0, 1))(weights, jnp.asarray(x))
    for got, exact in zip(g.params, want, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(g.x0, want_x, rtol=1e-12, atol=1e-14)
    assert [c.shape for c in g.costates] == [(4, 5), (4, 6), (4, 6), (4, 6), (4, 3)]


def test_layers_linearize_and_curvature():
    layers, x, _, weights = zoo.kinds()["layers"]
    xs = layers.rollout(x, None, weights)
    A, B = layers.linearize(xs, None, weights)
    assert [a.shape for a in A] == [(6, 5), (6, 6), (3, 6)]
    assert all(b.shape[1] == 0 for b in B)
    np.testing.assert_allclose(A[0], (1 - np.asarray(xs[1]) ** 2)[:, None] * weights[0], atol=1e-14)
    costates = [np.ones_like(x) for x in xs]
    H = layers.curvature(xs, None, costates, weights)
    want = jax.hessian(lambda x: jnp.sum(jnp.tanh(weights[2] @ x)))(xs[2])
    np.testing.assert_allclose(H[2], want, atol=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oc.Layers([]), "`layers` is empty"),
        (lambda: oc.Layers([lambda x: x], share=(0, 1)), r"`share` is \(0, 1\); expected 1 numbers"),
        (
            lambda: oc.Layers([lambda x, W: W @ x]).rollout(np.ones(2), None, []),
            "`params` is list of length 0; expected a",
        ),
        (
            lambda: oc.Layers([lambda x: x]).rollout(np.ones(2), np.ones((1, 1))),
            "`us` is given, but layers have no inputs",
        ),
    ],
)
def test_layers_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_closed_loop_matches_open_loop_with_the_same_inputs():
    plant = oc.discretize(oc.models.CartPole(), 0.05)
    K = jnp.array([[0.3, -2.0, 0.5, -0.4]])
    loop = oc.ClosedLoop(plant, lambda x, t, K: K @ x)
    x0 = np.array([0.1, 0.2, 0.0, 0.0])
    xs = loop.rollout(x0, np.zeros((6, 0)), K)
    np.testing.assert_allclose(plant.rollout(x0, xs[:-1] @ K.T), xs, atol=1e-13)


def test_closed_loop_accepts_an_equinox_module(rng):
    eqx = pytest.importorskip("equinox")
    network = eqx.nn.MLP(4, 1, 8, 1, key=jax.random.key(0))
    arrays, static = eqx.partition(network, eqx.is_array)
    policy = lambda x, t, p: eqx.combine(p, static)(x)
    loop = oc.ClosedLoop(oc.discretize(oc.models.CartPole(), 0.05), policy)
    arrays = jax.tree.map(lambda a: a.astype(jnp.float64), arrays)
    assert oc.check_adjoint(loop, rng.normal(size=4), np.zeros((5, 0)), arrays)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda x: x[0], r"`policy` returns shape \(\); expected \(1,\)"),
        (lambda x: x, r"`policy` returns shape \(4,\); expected \(1,\)"),
        (lambda: 0.0, r"`policy` takes 0 arguments; expected policy\(x\)"),
    ],
)
def test_closed_loop_refuses_a_policy_of_the_wrong_width(policy, message):
    with pytest.raises(ValueError, match=message):
        oc.ClosedLoop(oc.discretize(oc.models.CartPole(), 0.05), policy).rollout(np.zeros(4), np.zeros((3, 0)))


def test_closed_loop_refuses_a_simulator():
    plant = oc.SimulatorDynamics(zoo.sim_step, 2, 1, vjp=zoo.sim_vjp)
    with pytest.raises(ValueError, match="needs a kind with a JAX step"):
        oc.ClosedLoop(plant, lambda x: x)


def test_simulator_equals_the_same_function_in_jax():
    """Host loops and callbacks under jit and vmap give what JAX gives."""
    table = zoo.kinds()
    jax_kind, x0, us, _ = table["function"]
    w = np.random.default_rng(0).normal(size=(8, 2))
    xs = jax_kind.rollout(x0, us, zoo.PARAMS)
    want = jax_kind.adjoint_rollout(xs, us, w, zoo.PARAMS)
    params = np.array([1.3, 0.2])
    for name in ("simulator_jacobian", "simulator_vjp"):
        plant = table[name][0]
        np.testing.assert_allclose(plant.rollout(x0, us, params), xs, atol=1e-14)
        np.testing.assert_allclose(jax.jit(plant.rollout)(x0, us, params), xs, atol=1e-14)
        got = plant.adjoint_rollout(xs, us, w, params)
        np.testing.assert_allclose(got.us, want.us, atol=1e-13)
        np.testing.assert_allclose(got.costates, want.costates, atol=1e-13)
        np.testing.assert_allclose(got.params, [want.params["k"], want.params["b"]], atol=1e-13)
        A, B = plant.linearize(xs, us, params)
        np.testing.assert_allclose(A, jax_kind.linearize(xs, us, zoo.PARAMS)[0], atol=1e-13)
        np.testing.assert_allclose(B, jax_kind.linearize(xs, us, zoo.PARAMS)[1], atol=1e-13)
        batch = jax.vmap(lambda x, plant=plant: plant.rollout(x, us, params))(jnp.stack([x0, 2 * x0]))
        np.testing.assert_allclose(batch[0], xs, atol=1e-14)


def test_simulator_bad_input():
    with pytest.raises(ValueError, match="exactly one of `vjp` and `jacobian`"):
        oc.SimulatorDynamics(zoo.sim_step, 2, 1)
    plant = oc.SimulatorDynamics(lambda x, u: np.zeros(3), 2, 1, jacobian=lambda x, u: (np.eye(2), np.ones((2, 1))))
    with pytest.raises(ValueError, match=r"step's result at stage 0` has shape \(3,\); expected \(2,\)"):
        plant.rollout(np.zeros(2), np.zeros((3, 1)))
    plant = oc.SimulatorDynamics(lambda x, u: x, 2, 1, jacobian=lambda x, u: (np.eye(2), np.ones((2, 2))))
    with pytest.raises(ValueError, match=r"jacobian's B at stage 0` has shape \(2, 2\); expected \(2, 1\)"):
        plant.linearize(np.zeros((4, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="no second derivatives"):
        plant.curvature(np.zeros((4, 2)), np.zeros((3, 1)), np.zeros((4, 2)))
    incomplete = oc.SimulatorDynamics(lambda x, u, t, p: x, 2, 1, vjp=lambda w, x, u, t, p: (w, np.zeros(1)))
    with pytest.raises(ValueError, match=r"`vjp` returned 2; expected 3 arrays \(with the derivative in params\)"):
        incomplete.adjoint_rollout(np.zeros((4, 2)), np.zeros((3, 1)), np.zeros((4, 2)), np.ones(2))


def test_simulators_may_work_in_place():
    def step(x, u):
        x += u
        return x

    def vjp(w, x, u):
        w *= 1.0
        x *= 0.0
        return w, w

    plant = oc.SimulatorDynamics(step, 1, 1, vjp=vjp)
    xs = plant.rollout([1.0], [[1.0], [2.0]])
    np.testing.assert_array_equal(xs[:, 0], [1, 2, 4])
    np.testing.assert_array_equal(plant.adjoint_rollout(xs, np.ones((2, 1)), np.ones((3, 1))).costates[:, 0], [3, 2, 1])
    with pytest.raises(ValueError, match="`step` returns complex numbers"):
        oc.SimulatorDynamics(lambda x, u: x + 1j, 1, 1, vjp=vjp).rollout([1.0], [[1.0]])


def test_simulator_without_parameters():
    plant = oc.SimulatorDynamics(lambda x, u: x + 0.1 * u, 2, 2, jacobian=lambda x, u: (np.eye(2), 0.1 * np.eye(2)))
    assert oc.check_adjoint(plant)


def test_a_wrong_user_derivative_is_found():
    wrong = lambda x, u, t, p: (zoo.sim_jacobian(x, u, t, p)[0].T, *zoo.sim_jacobian(x, u, t, p)[1:])
    plant = oc.SimulatorDynamics(zoo.sim_step, 2, 1, jacobian=wrong)
    assert not oc.check_adjoint(plant, np.ones(2), np.ones((5, 1)), np.array([1.3, 0.2]))


MODELS = [getattr(oc.models, name)() for name in oc.models.__all__]


@pytest.mark.parametrize("model", MODELS, ids=oc.models.__all__)
def test_models_have_sizes_labels_and_finite_derivatives(model, rng):
    assert len(model.labels.states) == model.nx
    assert len(model.labels.inputs) == model.nu
    assert all("[" in name for name in (*model.labels.states, *model.labels.inputs))
    x, u = jnp.asarray(rng.normal(size=model.nx)), jnp.asarray(rng.normal(size=model.nu))
    assert model(x, u).shape == (model.nx,)
    assert np.isfinite(jax.jacfwd(model)(x, u)).all()


def cart_pole_energy(m, x):
    _, q, v, w = x
    kinetic = 0.5 * (m.mc + m.mp) * v**2 + m.mp * v * m.l * w * jnp.cos(q) + 0.5 * m.mp * m.l**2 * w**2
    return kinetic - m.mp * m.g * m.l * jnp.cos(q)


def pendulum_energy(m, x):
    return 0.5 * m.m * m.l**2 * x[1] ** 2 - m.m * m.g * m.l * jnp.cos(x[0])


def acrobot_energy(m, x):
    q1, q2, w1, w2 = x
    c = m.m2 * m.l1 * m.lc2 * jnp.cos(q2)
    d1 = m.m1 * m.lc1**2 + m.m2 * (m.l1**2 + m.lc2**2) + 2 * c + m.I1 + m.I2
    d2 = m.m2 * m.lc2**2 + c + m.I2
    d3 = m.m2 * m.lc2**2 + m.I2
    kinetic = 0.5 * d1 * w1**2 + d2 * w1 * w2 + 0.5 * d3 * w2**2
    height = (m.m1 * m.lc1 + m.m2 * m.l1) * jnp.cos(q1) + m.m2 * m.lc2 * jnp.cos(q1 + q2)
    return kinetic - m.g * height


@pytest.mark.parametrize(
    ("model", "energy"),
    [
        (oc.models.CartPole(), cart_pole_energy),
        (oc.models.Pendulum(), pendulum_energy),
        (oc.models.Acrobot(), acrobot_energy),
    ],
)
def test_mechanical_models_keep_their_energy(model, energy, rng):
    """Without input and friction dE/dt = 0 at any state: the equations of motion are those of the Lagrangian."""
    for _ in range(5):
        x = jnp.asarray(rng.normal(size=model.nx))
        rate = jax.grad(lambda x: energy(model, x))(x) @ model(x, jnp.zeros(model.nu))
        assert abs(rate) < 1e-12


def test_input_power_of_cart_pole_and_acrobot(rng):
    """dE/dt is force times velocity of the joint that it drives."""
    x, u = jnp.asarray(rng.normal(size=4)), jnp.array([0.7])
    cart, acrobot = oc.models.CartPole(), oc.models.Acrobot()
    np.testing.assert_allclose(jax.grad(lambda x: cart_pole_energy(cart, x))(x) @ cart(x, u), 0.7 * x[2], atol=1e-12)
    np.testing.assert_allclose(
        jax.grad(lambda x: acrobot_energy(acrobot, x))(x) @ acrobot(x, u), 0.7 * x[3], atol=1e-12
    )


def test_quadrotors_hover():
    planar, spatial = oc.models.PlanarQuadrotor(), oc.models.Quadrotor()
    np.testing.assert_allclose(planar(jnp.zeros(6), jnp.full(2, planar.m * planar.g / 2)), 0, atol=1e-14)
    np.testing.assert_allclose(spatial(jnp.zeros(12), jnp.full(4, spatial.m * spatial.g / 4)), 0, atol=1e-14)


def test_quadrotor_free_spin_keeps_energy_and_momentum(rng):
    m = oc.models.Quadrotor(Ix=0.002, Iy=0.003, Iz=0.004)
    inertia = np.diag([m.Ix, m.Iy, m.Iz])
    x = jnp.asarray(rng.normal(size=12))
    rate = np.asarray(m(x, jnp.zeros(4)))[9:]
    w = np.asarray(x[9:])
    np.testing.assert_allclose(inertia @ rate + np.cross(w, inertia @ w), 0, atol=1e-14)


def test_car_drives_a_circle():
    """Constant steering: radius = wheelbase / tan(steering)."""
    car = oc.models.KinematicCar()
    steering, speed = 0.3, 5.0
    radius = car.wheelbase / np.tan(steering)
    lap = 2 * np.pi * radius / speed
    xs = oc.discretize(car, lap / 400).rollout([0.0, 0.0, 0.0, speed], np.tile([0.0, steering], (400, 1)))
    np.testing.assert_allclose(xs[-1, :2], 0, atol=1e-6)
    np.testing.assert_allclose(xs[200, 1], 2 * radius, rtol=1e-6)
