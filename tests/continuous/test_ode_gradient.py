"""Gradients of ODE solutions in every mode: closed forms, known values, differences, events, traps, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc

MODES = ("exact", "continuous", "forward")
TIGHT = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-12}
FINE = {"rtol": 1e-11, "atol": 1e-11}  # compiles faster
GROWTH = oc.ODE(lambda z, t, rate: rate * z)
PREY = oc.ODE(lambda z, t, p: [p[0] * z[0] - p[1] * z[0] * z[1], -p[2] * z[1] + p[3] * z[0] * z[1]])
DRIVEN = oc.ODE(lambda z, u, t, p: -z + u)
BALL = oc.ODE(lambda z, t, p: [z[1], -p[0]])
BOUNCE = oc.Event(lambda z: z[0], reset=lambda z, t, p: [0.0 * z[0], -p[1] * z[1]], direction=-1)


def half_square(zs):
    return zs[-1, 0] ** 2 / 2


def half_norm(y):
    return y @ y / 2


def nothing(zs):
    return 0.0 * zs[-1, 0]


def distance_from_ones(zs):
    return 0.5 * jnp.sum((1 - zs[-1]) ** 2)


def growth_values(rate, z0=1.5, T=2.0):
    E = np.exp(2 * rate * T)
    return z0**2 * E / 2, z0 * E, T * z0**2 * E, rate * z0**2 * E, 2 * T**2 * z0**2 * E


@pytest.mark.parametrize("rate", [-0.7, 0.7])
@pytest.mark.parametrize("mode", MODES)
def test_scalar_linear_equation(mode, rate):
    """A loss at the end and a running cost, z(T)^2 / 2 + int z^2 / 2."""
    g = oc.ode_gradient(GROWTH, half_square, [1.5], [0.0, 2.0], rate, running_cost=half_norm, mode=mode, **TIGHT)
    value, dz0, drate, dT, drate2 = growth_values(rate)
    E = np.exp(4 * rate)
    along = 1.5**2 * (E - 1) / (4 * rate)
    dalong = 1.5**2 * (4 * rate * E - (E - 1)) / (4 * rate**2)
    start = dz0 + 1.5 * (E - 1) / (2 * rate)
    got = [g.value, g.z0[0], g.params, g.ts[1], -g.ts[0]]
    np.testing.assert_allclose(
        got, [value + along, start, drate + dalong, dT + 1.5**2 * E / 2, dT + 1.5**2 * E / 2], rtol=1e-11
    )
    if mode != "forward":
        end = 1.5 * np.exp(2 * rate)
        np.testing.assert_allclose(g.costates[:, 0], [start, end], rtol=1e-11)
    hv = oc.ode_hessian_vector_product(GROWTH, half_square, [1.5], [0.0, 2.0], rate, dparams=1.0, mode=mode, **TIGHT)
    np.testing.assert_allclose([hv.params, hv.value], [drate2, drate], rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_predator_and_prey(mode):
    p = np.array([1.5, 1.0, 3.0, 1.0])
    g = oc.ode_gradient(PREY, distance_from_ones, [1.0, 1.0], [0.0, 10.0], p, mode=mode, **TIGHT)
    np.testing.assert_allclose(g.zs[-1], [1.02634476757508, 0.90969107813607], rtol=1e-10)
    np.testing.assert_allclose(g.z0, [0.29959950830, -0.01415181634], atol=1.5e-11)
    np.testing.assert_allclose(g.params, [0.62196158555, 0.06800140415, 0.16917646400, 0.27256069395], atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_and_hessian_of_a_running_cost(mode):
    ode = oc.ODE(lambda y, t, p: [-p[0] * y[0] ** 2 - y[2], -y[1], -(p[1] ** 2) * y[1] * y[2]])
    call = functools.partial(
        oc.ode_hessian_vector_product, ode, nothing, [1.0, 1.0, 1.0], [0.0, 2.0], np.array([1.0, 2.0]),
        running_cost=half_norm, mode=mode, **FINE,
    )  # fmt: skip
    rows = [call(dparams=direction) for direction in np.eye(2)]
    np.testing.assert_allclose([row.value for row in rows], [-0.12837865466, 0.01803676085], atol=1e-9)
    hessian = np.array([row.params for row in rows])
    np.testing.assert_allclose(hessian, [[0.15628043, -0.07867781], [-0.07867781, 0.08981435]], atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_piecewise_constant_input(mode):
    signal = oc.Signal(np.linspace(0, 1, 5), np.array([[1.0], [-2.0], [3.0], [0.5]]))
    g = oc.ode_gradient(DRIVEN, half_square, [2.0], [0.0, 1.0], inputs=signal, mode=mode, **TIGHT)
    np.testing.assert_allclose(g.zs[-1, 0], 1.199327758509831, rtol=1e-14)
    want = [0.1253142933119019, 0.1609067376867447, 0.2066083409060875, 0.265290361023102]
    np.testing.assert_allclose(g.inputs[:, 0], want, rtol=1e-13)
    np.testing.assert_allclose(g.z0[0], 0.4412080255819953, rtol=1e-13)


@pytest.mark.big
@pytest.mark.parametrize("kind", ["hold", "linear", "spline"])
def test_input_signals_against_differences(kind):
    knots = np.array([-0.2, 0.3, 0.45, 1.1, 1.6])
    values = np.sin(np.arange(5.0 if kind != "hold" else 4.0))[:, None]

    def gradient(values, ts, mode="exact"):
        signal = oc.Signal(knots, values, kind)
        return oc.ode_gradient(DRIVEN, distance_from_ones, [2.0], ts, inputs=signal, mode=mode, **FINE)

    ts = np.array([0.0, 0.7, 1.3])
    g = gradient(values, ts)
    for mode in MODES[1:] if kind == "spline" else ():  # for "hold" in the test above; a line is a spline, too
        other = gradient(values, ts, mode)
        np.testing.assert_allclose(other.inputs, g.inputs, atol=1e-9)
        np.testing.assert_allclose(other.ts, g.ts, atol=1e-9)
    h = 1e-6
    for i in range(len(values)):
        step = h * np.eye(len(values))[i][:, None]
        slope = (gradient(values + step, ts).value - gradient(values - step, ts).value) / (2 * h)
        np.testing.assert_allclose(g.inputs[i, 0], slope, atol=1e-8)
    for i in range(3):
        step = h * np.eye(3)[i]
        slope = (gradient(values, ts + step).value - gradient(values, ts - step).value) / (2 * h)
        np.testing.assert_allclose(g.ts[i], slope, atol=1e-8)


def test_signals_pass_through_their_values():
    ts = np.array([0.0, 0.5, 2.0, 2.5])
    values = np.array([[1.0, 0.0], [-1.0, 2.0], [0.5, 1.0], [3.0, 3.0]])
    for kind in ("hold", "linear", "spline"):
        signal = oc.Signal(ts, values, kind)
        got = jax.vmap(signal)(jnp.asarray(ts[:-1]))
        np.testing.assert_allclose(got, values[:-1], atol=1e-12)
    cubic = oc.Signal(ts, values, "spline")
    slope = jax.vmap(jax.jacfwd(cubic))
    np.testing.assert_allclose(slope(jnp.array([0.5 - 1e-9])), slope(jnp.array([0.5 + 1e-9])), atol=1e-6)


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_fixed_steps_have_the_gradient_of_what_was_computed(method):
    """A scheme's own closed form: z_N = R^N z_0."""
    rate, N, h = -0.7, 20, 0.1
    R = 1 + h * rate if method == "euler" else sum((h * rate) ** k / np.prod(np.arange(1, k + 1)) for k in range(5))
    for mode, options in [
        ("exact", {}),
        ("forward", {}),
        ("exact", {"memory": "sqrt", "max_steps": 32}),
        ("exact", {"memory": oc.Binomial(3), "max_steps": 32}),
    ]:
        g = oc.ode_gradient(GROWTH, half_square, [1.5], [0.0, 2.0], rate, mode=mode, method=method, dt=h, **options)
        np.testing.assert_allclose(g.value, 1.5**2 * R ** (2 * N) / 2, rtol=1e-13)
        np.testing.assert_allclose(g.z0[0], 1.5 * R ** (2 * N), rtol=1e-13)
        dR = h if method == "euler" else h * sum((h * rate) ** k / np.prod(np.arange(1, k + 1)) for k in range(4))
        np.testing.assert_allclose(g.params, 1.5**2 * N * R ** (2 * N - 1) * dR, rtol=1e-13)
        np.testing.assert_allclose(g.ts[1], g.params * rate / 2.0, rtol=1e-12)  # h enters as rate does
        assert int(g.steps) == N


def test_observation_times_move_the_fixed_mesh():
    p = np.array([1.5, 1.0, 3.0, 1.0])

    @jax.jit
    def gradient(ts):
        return oc.ode_gradient(PREY, lambda zs: jnp.sum(zs**2), [1.0, 1.0], ts, p, method="rk4", dt=0.13)

    ts, h = np.array([0.0, 1.0, 2.05]), 1e-6
    slopes = [(gradient(ts + h * e).value - gradient(ts - h * e).value) / (2 * h) for e in np.eye(3)]
    np.testing.assert_allclose(gradient(ts).ts, slopes, atol=1e-6)


def test_falling_mass_is_exact():
    ode = oc.ODE(lambda z, t, p: [z[1], -p["g"] + 0.0 * p["m"]])
    params = {"g": 9.81, "m": 2.0}
    for options in ({"method": "midpoint", "dt": 0.05}, {}):
        g = oc.ode_gradient(ode, lambda zs: jnp.sum(zs[:, 0]), [1.0, 0.0], 0.05 * np.arange(41), params, **options)
        np.testing.assert_allclose(g.params["g"], -27.675, rtol=1e-12)
        assert g.params["m"] == 0


def test_bouncing_ball():
    """The height after a bounce and pi times its time, which no change of k moves."""
    p, fall = np.array([9.81, 0.8]), 1.427843122927064
    loss = lambda zs, times: zs[-1, 0] + jnp.pi * times[0]
    for mode in MODES:
        g = oc.ode_gradient(BALL, loss, [10.0, 0.0], [0.0, 2.0], p, event=BOUNCE, mode=mode)
        np.testing.assert_allclose(g.value, 4.805707729292209 + np.pi * fall, rtol=1e-12)
        np.testing.assert_allclose(
            [g.z0[0], *g.params],
            [
                -0.07871461353538956 + np.pi * 0.07139215614635322,
                0.570117621268716 - np.pi * fall / (2 * 9.81),
                8.014282071829005,
            ],
            rtol=1e-10,
        )
        np.testing.assert_allclose(g.event_times, [fall], rtol=1e-13)


@pytest.mark.big
@pytest.mark.parametrize("most", [1, 4])
def test_events_against_differences_also_of_second_order(most):
    """Several bounces, and a terminal event (the loss sees the state there)."""
    event = BOUNCE if most > 1 else oc.Event(lambda z: z[0], direction=-1)

    def loss(zs, times):
        return jnp.sum(zs[-1] ** 2) + (times[1] * times[0] if most > 1 else times[0] ** 2)

    call = functools.partial(oc.ode_gradient, BALL, loss, ts=[0.0, 2.5, 5.0], event=event, rtol=1e-10, atol=1e-10)
    z0, p = np.array([10.0, 0.5]), np.array([9.81, 0.8])
    g = call(z0=z0, params=p)
    assert len(g.event_times) == (2 if most > 1 else 1)
    h = 1e-5
    numeric = [(call(z0=z0, params=p + h * e).value - call(z0=z0, params=p - h * e).value) / (2 * h) for e in np.eye(2)]
    np.testing.assert_allclose(g.params, numeric, rtol=1e-6, atol=1e-8)
    hv = oc.ode_hessian_vector_product(
        BALL, loss, z0, [0.0, 2.5, 5.0], p, dz0=np.array([1.0, 0.0]), event=event, rtol=1e-10, atol=1e-10
    )
    e = np.array([h, 0.0])
    up, down = call(z0=z0 + e, params=p), call(z0=z0 - e, params=p)
    np.testing.assert_allclose(hv.params, (up.params - down.params) / (2 * h), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(hv.z0, (up.z0 - down.z0) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("resets", [True, False])
def test_adjoint_equation_jumps_at_events(resets):
    """A moving surface, a reset that knows time and parameters, a running cost."""
    ode = oc.ODE(lambda z, t, p: [z[1], -p[0] - 0.1 * jnp.sin(3 * t) * z[1]])
    event = oc.Event(
        lambda z, t, p: z[0] - 0.1 * p[1] * jnp.sin(t),
        reset=(lambda z, t, p: [z[0], -p[1] * z[1] + 0.05 * t]) if resets else None,
        direction=-1,
    )
    call = functools.partial(
        oc.ode_gradient, ode, lambda zs, times: jnp.sum(zs[-1] ** 2) + times[0] ** 2, np.array([10.0, 0.5]),
        [0.0, 1.0, 3.0], np.array([9.81, 0.8]), event=event, running_cost=lambda z, t, p: p[1] * z @ z,
        method="rk4", dt=0.02,
    )  # fmt: skip
    exact, continuous = call(), call(mode="continuous")
    for name in ("value", "z0", "params", "ts", "costates"):
        np.testing.assert_allclose(getattr(continuous, name), getattr(exact, name), rtol=1e-6, atol=1e-6)


def test_at_an_equilibrium_the_sensitivities_choose_the_steps():
    blind = oc.ode_gradient(GROWTH, lambda zs: zs[-1, 0], [0.0], [0.0, 20.0], -0.7, control="states")
    assert abs(blind.z0[0] / np.exp(-14) - 1) > 1
    for mode in MODES:
        g = oc.ode_gradient(GROWTH, lambda zs: zs[-1, 0], [0.0], [0.0, 20.0], -0.7, mode=mode)
        np.testing.assert_allclose(g.z0[0], np.exp(-14), rtol=1e-5)
    forced = oc.ODE(lambda z, t, p: -z + p * jnp.sin(50 * t))
    g = oc.ode_gradient(forced, lambda zs: zs[-1, 0], [0.0], [0.0, 3.0], 0.0)
    exact = (np.sin(150) - 50 * np.cos(150) + 50 * np.exp(-3)) / 2501
    np.testing.assert_allclose(g.params, exact, rtol=1e-5)


def test_stiff_equation_implicitly():
    ode = oc.ODE(lambda z, t, p: [-p * (z[0] - jnp.cos(t)), z[0] - z[1]])

    def gradient(mode="exact", p=1e4):
        return oc.ode_gradient(ode, distance_from_ones, [0.0, 0.0], [0.0, 1.0], p, method="kvaerno5", mode=mode)

    g, h = gradient(), 100.0
    assert int(g.steps) < 400
    np.testing.assert_allclose(g.params, (gradient(p=1e4 + h).value - gradient(p=1e4 - h).value) / (2 * h), rtol=1e-3)
    np.testing.assert_allclose(gradient("continuous").params, g.params, rtol=1e-3)


def test_reintegration_measures_its_mismatch():
    call = functools.partial(oc.ode_gradient, GROWTH, half_square, [1.5], [0.0, 2.0], mode="continuous")
    g = call(-0.7, reintegrate=True)
    np.testing.assert_allclose(g.params, growth_values(-0.7)[2], rtol=1e-6)
    assert 0 <= g.mismatch < 1e-6
    damped = oc.ODE(lambda z, t, p: [-30 * (z[0] - jnp.sin(t)), z[0] - p * z[1]])
    with pytest.raises(RuntimeError, match=r"misses z0 by .*forgets its past.*Leave out `reintegrate`"):
        oc.ode_gradient(damped, distance_from_ones, [1.0, 1.0], [0.0, 3.0], 0.5, mode="continuous", reintegrate=True)
    kept = oc.ode_gradient(damped, distance_from_ones, [1.0, 1.0], [0.0, 3.0], 0.5, mode="continuous")
    exact = oc.ode_gradient(damped, distance_from_ones, [1.0, 1.0], [0.0, 3.0], 0.5)
    np.testing.assert_allclose(kept.params, exact.params, rtol=1e-6)


def test_vmap_takes_own_steps_for_each_sample():
    z0s = jnp.array([[1.0, 1.0], [2.0, 5.0], [0.5, 0.1]])
    p = jnp.array([1.5, 1.0, 3.0, 1.0])
    one = lambda z0: oc.ode_gradient(PREY, distance_from_ones, z0, [0.0, 2.0], p)
    batch = jax.vmap(one)(z0s)
    assert len(set(batch.steps.tolist())) > 1
    for i in range(3):
        alone = one(z0s[i])
        np.testing.assert_allclose(batch.params[i], alone.params, rtol=1e-12)
        assert batch.steps[i] == alone.steps


def test_float32():
    g = oc.ode_gradient(GROWTH, half_square, np.float32([1.5]), np.float32([0.0, 2.0]), np.float32(-0.7))
    assert g.params.dtype == np.float32
    np.testing.assert_allclose(g.params, growth_values(-0.7)[2], rtol=2e-3)


def test_states_of_any_shape():
    ode = oc.ODE(lambda z, t, W: jnp.tanh(z @ W))
    z0, W = np.sin(np.arange(6.0)).reshape(3, 2), np.array([[0.1, 0.4], [-0.7, 0.3]])

    @jax.jit
    def gradient(W):
        return oc.ode_gradient(ode, lambda zs: jnp.sum(zs[-1] ** 2), z0, [0.0, 1.0], W)

    g, h = gradient(W), 1e-6
    assert g.zs.shape == (2, 3, 2)
    assert g.costates.shape == (2, 3, 2)
    for e in np.eye(4).reshape(4, 2, 2):
        slope = (gradient(W + h * e).value - gradient(W - h * e).value) / (2 * h)
        np.testing.assert_allclose(jnp.sum(g.params * e), slope, rtol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "discrete"}, "`mode` is 'discrete'; expected one of"),
        ({"control": "none"}, "`control` is 'none'"),
        ({"memory": 3}, "`memory` is 3; expected 'full', 'sqrt' or Binomial"),
        ({"memory": "sqrt", "mode": "forward"}, "it is for mode 'exact'"),
        ({"reintegrate": True}, "`reintegrate` is for mode 'continuous'"),
        ({"loss": 3.0}, "`loss` is a float"),
        ({"loss": lambda zs: zs[-1]}, r"`loss` returns shape \(1,\); expected a scalar"),
        ({"running_cost": lambda z: z}, r"`running_cost` returns shape \(1,\)"),
        ({"ts": [0.0, 1.0, 1.0]}, r"`ts` does not increase: ts\[1\] = 1, ts\[2\] = 1"),
        ({"ts": [0.0]}, "expected a vector of at least two times"),
        ({"z0": [np.nan]}, "`z0` holds NaN or inf"),
        ({"method": "euler"}, "`dt` is missing: 'euler' has fixed steps"),
        ({"dt": 0.0}, "`dt` is 0.0; expected a positive length"),
        ({"method": "rk45"}, "`method` is 'rk45'; expected one of"),
        ({"rtol": 0.0}, "`rtol` is 0.0; expected a positive number"),
        ({"inputs": oc.Signal([0.0, 1.0], [[1.0]])}, "`inputs` is given, but f takes no input"),
        ({"ode": lambda z, t, p: jnp.zeros(2)}, r"`f` returns shape \(2,\); expected \(1,\)"),
        ({"event": "ground"}, "`event` is a str"),
        ({"max_steps": 0}, "`max_steps` is 0"),
    ],
)
def test_bad_input(change, message):
    arguments = {"ode": GROWTH, "loss": half_square, "z0": [1.5], "ts": [0.0, 2.0], "params": -0.7, **change}
    with pytest.raises(ValueError, match=message):
        oc.ode_gradient(**arguments)


def test_more_bad_input():
    with pytest.raises(ValueError, match="`inputs` is missing"):
        oc.integrate(DRIVEN, [1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="`reintegrate` cannot undo events"):
        oc.ode_gradient(
            BALL, nothing, [1.0, 0.0], [0.0, 1.0], [9.8, 0.8], event=BOUNCE, mode="continuous", reintegrate=True
        )
    with pytest.raises(ValueError, match="expected f\\(z\\)"):
        oc.ODE(lambda: 0.0)
    with pytest.raises(ValueError, match="`direction` is 2"):
        oc.Event(lambda z: z[0], direction=2)
    with pytest.raises(ValueError, match=r"`values` has shape \(3, 1\); expected \(2, nu\)"):
        oc.Signal([0.0, 1.0], np.ones((3, 1)), "linear")
    with pytest.raises(ValueError, match="`kind` is 'cubic'"):
        oc.Signal([0.0, 1.0], np.ones((2, 1)), "cubic")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oc.integrate(lambda z: z**2, [1.0], [0.0, 2.0]), r"step length fell below rounding at t = 1\.0000"),
        (lambda: oc.integrate(lambda z: -jnp.sqrt(z) - 1.0, [1.0], [0.0, 2.0]), "f is not finite at t = 0.61"),
        (
            lambda: oc.integrate(lambda z, t: -1e5 * (z - jnp.cos(t)), [1.0], [0.0, 2.0], max_steps=4096),
            "4096 steps ended at t = .*kvaerno5",
        ),
        (
            lambda: oc.integrate(BALL, [1.0, 0.0], [0.0, 10.0], [9.81, 0.8], event=BOUNCE),
            "more than 64 events at t = 4.06",
        ),
        (
            lambda: oc.ode_gradient(
                BALL, lambda zs, times: times[0], [9.0, 0.0], [0.0, 0.5], [9.81, 0.8], event=BOUNCE
            ),
            "an event that never comes; there were 0 until t = 0.5",
        ),
        (
            lambda: oc.ode_gradient(lambda z: -jnp.sqrt(z) - 1.0, half_square, [1.0], [0.0, 2.0]),
            "f is not finite",
        ),
    ],
)
def test_what_cannot_go_on_says_why(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


def test_failures_under_jit_are_nan():
    g = jax.jit(lambda z: oc.ode_gradient(lambda z: z**2, half_square, z, [0.0, 2.0]))(jnp.array([1.0]))
    assert np.isnan(g.z0).all()
    assert np.isnan(g.value)
    traj = jax.jit(lambda z: oc.integrate(lambda z: z**2, z, [0.0, 0.5, 2.0]))(jnp.array([1.0]))
    np.testing.assert_allclose(traj.zs[1, 0], 2.0, rtol=1e-6)
    assert np.isnan(traj.zs[2, 0])
