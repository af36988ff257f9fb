"""The infinite horizon: Riccati equation, its derivative, and the steady-state Kalman filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import optctl as oc
from optctl.lq.steady import dlqe
from tests.oracles import central_difference
from tests.riccati import EQUATIONS

GOLDEN = (1 + 5**0.5) / 2
ONE = np.ones((1, 1))


def random_data(rng, nx, nu, radius):
    """A of the given spectral radius, B, and weights with a cross term, jointly positive definite."""
    A, B = rng.normal(size=(nx, nx)), rng.normal(size=(nx, nu))
    H = rng.normal(size=(nx + nu, nx + nu))
    H = H @ H.T + 0.1 * np.eye(nx + nu)
    return A * radius / np.abs(np.linalg.eigvals(A)).max(), B, H[:nx, :nx], H[nx:, nx:], H[:nx, nx:]


@pytest.fixture(scope="module")
def data():
    return tuple(jnp.asarray(m) for m in random_data(np.random.default_rng(3), 3, 2, 1.3))


@jax.jit
def score(A, B, Q, R, M):
    """One number that depends on every entry of K and P."""
    K, P = oc.dlqr(A, B, Q, R, M)
    return jnp.sum(jnp.sin(P + jnp.arange(P.size).reshape(P.shape))) + jnp.sum(K * jnp.cos(K))


slopes = jax.jit(jax.grad(score, argnums=(0, 1, 2, 3, 4)))


@jax.jit
def pushed(data, direction):
    """First and second derivative of the score along a direction, forward over forward."""
    slope = lambda data: jax.jvp(score, data, direction)[1]
    return jax.jvp(slope, (data,), (direction,))


def random_direction(data, seed=0):
    rng = np.random.default_rng(seed)
    dA, dB, dQ, dR, dM = (jnp.asarray(rng.normal(size=m.shape)) for m in data)
    return dA, dB, dQ + dQ.T, dR + dR.T, dM


def test_golden_ratio():
    K, P = oc.dlqr(ONE, ONE, ONE, ONE)
    L, covariance = dlqe(ONE, ONE, ONE, ONE)
    np.testing.assert_allclose([P[0, 0], covariance[0, 0]], GOLDEN, rtol=1e-12)
    np.testing.assert_allclose([-K[0, 0], L[0, 0]], GOLDEN - 1, rtol=1e-12)


@pytest.mark.parametrize("radius", [0.7, 2.0])
@pytest.mark.parametrize("nx", [1, 2, 5, 8])
def test_equals_scipy(nx, radius, rng):
    A, B, Q, R, M = random_data(rng, nx, 1 + nx // 2, radius)
    want = scipy.linalg.solve_discrete_are(A, B, Q, R, s=M)
    K, P = oc.dlqr(A, B, Q, R, M)
    np.testing.assert_allclose(P, want, rtol=1e-8, atol=1e-9 * np.abs(want).max())
    np.testing.assert_allclose(K, -np.linalg.solve(R + B.T @ want @ B, M.T + B.T @ want @ A), rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(oc.dare(A, B, Q, R, M), P)
    want = scipy.linalg.solve_discrete_are(A, B, Q, R)
    np.testing.assert_allclose(oc.dare(A, B, Q, R), want, rtol=1e-8, atol=1e-9 * np.abs(want).max())


@pytest.mark.parametrize("leaf", range(5), ids="ABQRM")
def test_derivative_equals_central_differences_in_every_leaf(data, leaf):
    """Entry by entry; a skew part of Q or R counts for nothing, so their derivatives are symmetric."""
    got = slopes(*data)[leaf]
    want = central_difference(lambda m: score(*data[:leaf], jnp.asarray(m), *data[leaf + 1 :]), data[leaf], h=1e-5)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)
    assert np.abs(got).min() > 1e-6


def test_forward_equals_reverse_derivative_in_every_leaf(data):
    direction = random_direction(data)
    cotangent = jax.tree.map(jnp.cos, oc.dlqr(*data))
    value, pull = jax.vjp(oc.dlqr, *data)
    push = jax.jit(lambda dz: jax.jvp(oc.dlqr, data, dz))
    for i, dz in enumerate(direction):
        only = tuple(dz if j == i else jnp.zeros_like(z) for j, z in enumerate(data))
        forward, tangent = push(only)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), forward, value)
        left = sum(jnp.vdot(a, b) for a, b in zip(cotangent, tangent, strict=True))
        right = jnp.vdot(pull(cotangent)[i], dz)
        assert abs(left) > 1e-3
        np.testing.assert_allclose(left, right, rtol=1e-12)


def test_taylor_orders_with_first_and_second_derivative(data):
    direction = random_direction(data)
    first, second = pushed(data, direction)
    moved = lambda h: score(*(z + h * dz for z, dz in zip(data, direction, strict=True)))
    steps = 2e-3 / 2.0 ** np.arange(3)
    change = np.array([float(moved(h) - score(*data)) for h in steps])
    for rest, order in ((change - steps * first, 1.9), (change - steps * first - steps**2 / 2 * second, 2.9)):
        orders = np.log2(np.abs(rest[:-1] / rest[1:]))
        assert (orders > order).all(), orders
        assert (orders < order + 0.3).all(), orders  # not an accident of rounding


def test_second_derivatives_agree_in_every_combination_of_modes(data):
    A, B, Q, R, M = (m[:2, :2] for m in data)
    f = lambda A: jnp.sum(jnp.sin(oc.dare(A, B, Q, R, M)))
    want = jax.jit(jax.jacfwd(jax.jacfwd(f)))(A)
    assert np.abs(want).min() > 1e-6
    for outer, inner in ((jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacfwd), (jax.jacrev, jax.jacrev)):
        np.testing.assert_allclose(jax.jit(outer(inner(f)))(A), want, rtol=1e-9, atol=1e-10)


def test_third_derivative_of_the_scalar_equation():
    """For A = B = R = 1 the equation is P^2 = q (1 + P)."""
    closed, solved = lambda q: (q + jnp.sqrt(q * q + 4 * q)) / 2, lambda q: oc.dare(ONE, ONE, q * ONE, ONE)[0, 0]
    for _ in range(4):
        np.testing.assert_allclose(jax.jit(solved)(0.7), closed(0.7), rtol=1e-11)
        closed, solved = jax.grad(closed), jax.grad(solved)


def test_derivative_near_the_unit_circle():
    """P = (q + sqrt(q^2 + 4 q)) / 2 and the closed loop is at about 1 - sqrt(q)."""
    q = 1e-10
    got = jax.grad(lambda q: oc.dare(ONE, ONE, q * ONE, ONE)[0, 0])(q)
    np.testing.assert_allclose(got, 0.5 + (q + 2) / (2 * np.sqrt(q * q + 4 * q)), rtol=1e-6)


def test_vmap_equals_a_loop_also_of_derivatives(rng):
    batch = [jnp.stack(m) for m in zip(*(random_data(rng, 3, 2, r) for r in (0.5, 1.1, 3.0)), strict=True)]
    K, P = jax.vmap(oc.dlqr)(*batch)
    derivatives = jax.vmap(slopes)(*batch)
    for i in range(3):
        one = [m[i] for m in batch]
        for got, want in zip((K[i], P[i]), oc.dlqr(*one), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-11)
        for got, want in zip(derivatives, slopes(*one), strict=True):
            np.testing.assert_allclose(got[i], want, rtol=1e-8, atol=1e-10)


def test_jit_equals_plain(data):
    for got, want in zip(jax.jit(oc.dlqr)(*data), oc.dlqr(*data), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
    A, B = data[:2]
    filters = [f(A, B.T, jnp.eye(3), jnp.eye(2)) for f in (jax.jit(dlqe), dlqe)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), *filters)


def test_new_numbers_do_not_recompile(data):
    """Outside `jit`, of values and of derivatives."""
    A, B, Q, R, M = data
    calls = [
        lambda s: oc.dlqr(s * A, B, s * Q, s * R, s * M),
        lambda s: dlqe(s * A, B.T, s * Q, R),
        lambda s: jax.grad(lambda A: jnp.sum(oc.dlqr(A, B, Q, R, M)[0]))(s * A),
        lambda s: jax.jvp(lambda A: dlqe(A, B.T, Q, R)[0], (s * A,), (A,)),
    ]
    compiled = []

    def listener(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    for call in calls:
        call(1.0)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for call in calls:
            call(0.9)
        assert not compiled
        jax.jit(lambda x: x + 1)(1.0)
        assert compiled  # the listener does hear
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_float32(data):
    single = [m.astype(jnp.float32) for m in data]
    for got, want in zip(oc.dlqr(*single), oc.dlqr(*data), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    for got, want in zip(slopes(*single), slopes(*data), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    small = np.float32([[2.0]]), np.float32([[1.0]]), np.float32([[0.0]]), np.float32([[1.0]])
    for K_or_P in oc.dlqr(*small):  # not seen by the cost: the other route
        assert K_or_P.dtype == jnp.float32
    for L_or_P in dlqe(*small):
        assert L_or_P.dtype == jnp.float32
    wide = [m.astype(float) for m in small[1:]]
    assert oc.dare(small[0], *wide).dtype == oc.dare(single[0], *data[1:]).dtype == jnp.float64


# A unit-circle mode that the cost does not see, and an unstable one that the input does not reach.
HOPELESS = [(ONE, ONE, 0 * ONE, ONE), (2 * ONE, 0 * ONE, ONE, ONE)]


@pytest.mark.parametrize("data", HOPELESS)
def test_no_stabilizing_solution_raises_outside_jit_and_is_nan_inside(data):
    with pytest.raises(ValueError, match=r"no stabilizing solution: (a mode .* unit circle|\(`A`, `B`\) is not stab)"):
        oc.dlqr(*data)
    A, B, Q, R = map(jnp.asarray, data)
    P11 = lambda Q: oc.dare(A, B, Q, R)[0, 0]
    with pytest.raises(ValueError, match="no stabilizing solution"):
        jax.grad(P11)(Q)
    assert np.isnan(jax.tree.leaves(jax.jit(oc.dlqr)(A, B, Q, R))).all()
    assert np.isnan(jax.jit(jax.grad(P11))(Q)).all()
    assert np.isnan(jax.jit(jax.jacfwd(P11))(Q)).all()


def test_one_failure_in_a_batch_leaves_the_others_alone():
    Q = jnp.array([0.0, 1.0])[:, None, None]
    P = jax.vmap(lambda Q: oc.dare(ONE, ONE, Q, ONE))(Q)[:, 0, 0]
    slope = jax.vmap(jax.grad(lambda Q: oc.dare(ONE, ONE, Q, ONE)[0, 0]))(Q)[:, 0, 0]
    assert np.isnan([P[0], slope[0]]).all()
    np.testing.assert_allclose([P[1], slope[1]], [GOLDEN, 0.5 + 1.5 / 5**0.5], rtol=1e-12)


def test_unstable_mode_that_the_cost_does_not_see():
    """With A = 2, B = R = 1: P^2 - (3 + q) P - q = 0, so P = 3 and dP/dq = 4/3 at q = 0."""
    A, q = 2 * jnp.ones((1, 1)), jnp.zeros((1, 1))
    P, slope = jax.value_and_grad(lambda q: oc.dare(A, ONE, q, ONE)[0, 0])(q)
    np.testing.assert_allclose([P, slope[0, 0]], [3.0, 4 / 3], rtol=1e-12)
    P, slope = jax.jit(jax.value_and_grad(lambda q: oc.dare(A, ONE, q, ONE)[0, 0]))(q)
    np.testing.assert_allclose([P, slope[0, 0]], [3.0, 4 / 3], rtol=1e-12)


def kalman_demo():
    """The plant of MATLAB's `kalman` example: A, B, C."""
    A = np.array([[1.1269, -0.4940, 0.1129], [1, 0, 0], [0, 1, 0]])
    return A, np.array([[-0.3832], [0.5919], [0.5191]]), np.array([[1.0, 0, 0]])


def test_filter_gain_of_the_kalman_demo():
    A, B, C = kalman_demo()
    L, P = dlqe(A, C, 2.3 * B @ B.T, ONE)
    np.testing.assert_allclose(L[:, 0], [0.53453754, 0.01013319, -0.47756789], atol=5e-9)
    updated = (np.eye(3) - L @ C) @ P
    np.testing.assert_allclose(P, A @ updated @ A.T + 2.3 * B @ B.T, atol=1e-12)
    K, dual = oc.dlqr(A.T, C.T, 2.3 * B @ B.T, ONE)
    np.testing.assert_allclose(A @ L, -K.T, atol=1e-13)
    np.testing.assert_array_equal(P, dual)


def test_filter_is_where_the_kalman_recursion_ends(rng):
    """Unstable A, two measurements, singular W."""
    A, C, V = 1.3 * rng.normal(size=(4, 4)) / 2, rng.normal(size=(2, 4)), np.diag([0.5, 2.0])
    G = rng.normal(size=(4, 2))
    P = np.eye(4)
    for _ in range(500):
        L = P @ C.T @ np.linalg.inv(C @ P @ C.T + V)
        P = A @ (P - L @ C @ P) @ A.T + G @ G.T
    for got, want in zip(dlqe(A, C, G @ G.T, V), (L, P), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("leaf", range(4), ids="ACWV")
def test_derivative_of_the_filter(leaf):
    A, B, C = kalman_demo()
    model = tuple(jnp.asarray(m) for m in (A, C, 2.3 * B @ B.T, ONE))
    weights = jnp.arange(1.0, 4.0)[:, None], jnp.cos(jnp.arange(9.0)).reshape(3, 3)

    @jax.jit
    def score(m):
        return sum(jnp.vdot(w, z) for w, z in zip(weights, dlqe(*model[:leaf], m, *model[leaf + 1 :]), strict=True))

    got = jax.grad(score)(model[leaf])
    np.testing.assert_allclose(got, central_difference(score, model[leaf], h=1e-6), rtol=1e-6, atol=1e-7)
    assert np.abs(got).min() > 1e-6


def test_no_inputs_and_no_measurements():
    """What is left is Lyapunov's equation, P = A'P A + Q."""
    A, Q = np.array([[0.5, 0.2], [0.0, 0.8]]), np.diag([1.0, 2.0])
    K, P = oc.dlqr(A, np.zeros((2, 0)), Q, np.zeros((0, 0)))
    assert K.shape == (0, 2)
    np.testing.assert_allclose(P, scipy.linalg.solve_discrete_lyapunov(A.T, Q), rtol=1e-12)
    L, P = dlqe(A, np.zeros((0, 2)), Q, np.zeros((0, 0)))
    assert L.shape == (2, 0)
    np.testing.assert_allclose(P, scipy.linalg.solve_discrete_lyapunov(A, Q), rtol=1e-12)


EYE, ROW, COLUMN = np.eye(2), np.ones((1, 2)), np.ones((2, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oc.dlqr(ROW, COLUMN, EYE, ONE), r"`A` has shape \(1, 2\); expected \(1, 1\)"),
        (lambda: oc.dlqr(EYE, ROW, EYE, ONE), r"`B` has shape \(1, 2\); expected 2 rows and any number of columns"),
        (lambda: oc.dare(EYE, COLUMN, ONE, ONE), r"`Q` has shape \(1, 1\); expected \(2, 2\)"),
        (lambda: oc.dare(EYE, COLUMN, EYE, np.array([[1.0, 2.0]])), r"`R` has shape \(1, 2\); expected \(1, 1\)"),
        (lambda: oc.dare(EYE, COLUMN, EYE + np.tri(2), ONE), r"`Q` is not symmetric: \|Q - Q'\| reaches 1"),
        (lambda: oc.dare(EYE, COLUMN, EYE, ONE, ROW), r"`M` has shape \(1, 2\); expected \(2, 1\)"),
        (lambda: oc.dlqr(EYE, COLUMN, np.stack([EYE] * 3), ONE), r"`Q` has shape \(3, 2, 2\); expected \(2, 2\)"),
        (
            lambda: oc.dlqr(ONE, ONE, ONE, ONE, 2 * ONE),
            "no stabilizing solution: a mode .* on the unit circle: the cost",
        ),
        (lambda: oc.dlqr(ONE / 2, ONE, ONE, -9 * ONE), r"no minimum: R \+ B'P B has the eigenvalue -7.57.*`dare` ret"),
        (
            lambda: oc.dare(0.5 * EYE, 0 * EYE, EYE, np.diag([1.0, 0])),
            r"R \+ B'P B is singular whatever P is: some comb",
        ),
        (lambda: dlqe(0.5 * EYE, 0 * ROW, EYE, 0 * ONE), r"C P C' \+ V is singular whatever P is: .* noise in `V`"),
        (lambda: oc.dlqr(np.zeros((0, 0)), np.zeros((0, 1)), EYE, ONE), "expected at least one state"),
        (lambda: dlqe(ROW, ROW, EYE, ONE), r"`A` has shape \(1, 2\); expected \(1, 1\)"),
        (lambda: dlqe(EYE, COLUMN, EYE, ONE), r"`C` has shape \(2, 1\); expected any number of rows and 2 columns"),
        (lambda: dlqe(EYE, ROW, ONE, ONE), r"`W` has shape \(1, 1\); expected \(2, 2\)"),
        (lambda: dlqe(EYE, ROW, -EYE, ONE), "`W` is not positive semidefinite: its lowest eigenvalue is -1"),
        (lambda: dlqe(EYE, ROW, EYE, EYE), r"`V` has shape \(2, 2\); expected \(1, 1\)"),
        (lambda: dlqe(EYE, ROW, EYE, -ONE), "`V` is not positive semidefinite: its lowest eigenvalue is -1"),
        (lambda: dlqe(EYE, None, EYE, ONE), "`C` is missing"),
        (lambda: dlqe(2 * ONE, 0 * ONE, ONE, ONE), r"\(`A`, `C`\) is not detectable: no measurement sees the mode 2 "),
        (
            lambda: dlqe(ONE, ONE, 0 * ONE, ONE),
            "no stabilizing solution: a mode .* on the unit circle: `W` does not drive",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_badly_scaled_data_keep_their_digits():
    A, eye = np.diag([0.5, 0.999]), np.eye(2)
    for Q in (np.diag([1e12, 1e-4]), np.diag([1e-8, 1e8])):
        want = scipy.linalg.solve_discrete_are(A, eye, Q, eye)
        np.testing.assert_allclose(np.diag(oc.dare(A, eye, Q, eye)), np.diag(want), rtol=1e-9)
    A, B = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.005], [0.1]])
    for R in (1e-12, 1e-15):
        want = scipy.linalg.solve_discrete_are(A, B, eye, np.array([[R]]))
        np.testing.assert_allclose(oc.dare(A, B, eye, [[R]]), want, rtol=1e-9)


DOUBLE_INTEGRATOR = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.005], [0.1]])


def test_inputs_that_cost_nothing():
    """R = 0 with R + B'P B > 0, plain and under `jit`; the filter with exact measurements is its dual."""
    A, B = DOUBLE_INTEGRATOR
    want = np.array([[11, 0.5], [0.5, 1.025]])
    for dlqr in (oc.dlqr, jax.jit(oc.dlqr)):
        K, P = dlqr(A, B, EYE, 0 * ONE)
        np.testing.assert_allclose(P, want, rtol=1e-10)
        np.testing.assert_allclose(K, -np.linalg.solve(B.T @ want @ B, B.T @ want @ A), rtol=1e-9)
    L, cov = dlqe(A.T, B.T, EYE, 0 * ONE)
    np.testing.assert_allclose(cov, want, rtol=1e-10)
    np.testing.assert_allclose(A.T @ L, -K.T, rtol=1e-9)
    np.testing.assert_allclose(B.T @ L, ONE, rtol=1e-9)  # what is measured exactly is known exactly


@pytest.mark.parametrize("leaf", range(5), ids="ABQRM")
def test_derivative_where_the_input_costs_nothing(leaf):
    A, B = DOUBLE_INTEGRATOR
    data = tuple(map(jnp.asarray, (A, 10 * B, EYE, 0 * ONE, 0.1 * COLUMN)))
    got = slopes(*data)[leaf]
    want = central_difference(lambda m: score(*data[:leaf], jnp.asarray(m), *data[leaf + 1 :]), data[leaf], h=1e-5)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    assert np.abs(got).min() > 1e-6


@pytest.mark.parametrize("name", EQUATIONS)
def test_equations_from_the_literature(name):
    """Plain and under `jit`; next to the unit circle half of the digits are lost."""
    A, B, Q, R = (np.asarray(m, float) for m in EQUATIONS[name])
    want = scipy.linalg.solve_discrete_are(A, B, Q, R)
    near = 1e-6 if "unit circle" in name else 1e-10
    for dare in (oc.dare, jax.jit(oc.dare)):
        np.testing.assert_allclose(dare(A, B, Q, R), want, rtol=near, atol=near * np.abs(want).max())


@pytest.mark.parametrize("kind", ["singular A", "indefinite Q", "indefinite R", "cross term", "rank one"])
def test_weights_that_are_not_definite(kind, rng):
    """Wherever SciPy's ordered pencil has a minimum; the residual of the equation, the loop and the sign, too."""
    found = 0
    for _ in range(12):
        A, B, Q, R, M = random_data(rng, 4, 2, 1.2)
        M = 0 * M
        if kind == "singular A":
            A, R = A @ np.diag([1.0, 1, 0, 0]), 0 * R
        elif kind == "indefinite Q":
            Q = Q - 0.6 * np.linalg.eigvalsh(Q)[1] * np.eye(4)
        elif kind == "indefinite R":
            R = -0.1 * np.eye(2)
        elif kind == "cross term":
            M = rng.normal(size=(4, 2))
        else:
            Q, R = np.outer(A[0], A[0]), np.outer(R[0], R[0])
        try:
            want = scipy.linalg.solve_discrete_are(A, B, Q, R, s=M)
        except np.linalg.LinAlgError:
            continue
        S = R + B.T @ want @ B
        gain = -np.linalg.solve(S, M.T + B.T @ want @ A)
        gap = np.abs(Q + A.T @ want @ A + (M + A.T @ want @ B) @ gain - want).max()
        loop = np.abs(np.linalg.eigvals(A + B @ gain)).max()
        if np.linalg.eigvalsh(S)[0] < 1e-6 or loop > 1 - 1e-6 or gap > 1e-8 * np.abs(want).max():
            continue
        found += 1
        for dlqr in (oc.dlqr, jax.jit(oc.dlqr)):
            K, P = dlqr(A, B, Q, R, M)
            np.testing.assert_allclose(P, want, rtol=1e-7, atol=1e-8 * np.abs(want).max())
            np.testing.assert_allclose(K, gain, rtol=1e-6, atol=1e-7 * np.abs(gain).max())
    assert found >= 6


def test_a_game_has_a_solution_but_no_minimum():
    """A = 1/2, B = 1, Q = 1, R = -9: a root P of the equation whose loop is stable, with R + P < 0."""
    data = 0.5 * ONE, ONE, ONE, -9 * ONE
    P = float(oc.dare(*data)[0, 0])
    np.testing.assert_allclose(1 + P / 4 - (P / 2) ** 2 / (P - 9), P, rtol=1e-12)
    assert abs(0.5 - (P / 2) / (P - 9)) < 1
    with pytest.raises(ValueError, match="no minimum"):
        oc.dlqr(*data)
    assert np.isnan(jax.jit(oc.dlqr)(*data)[1]).all()
