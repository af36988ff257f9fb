"""Time that runs backward, jumps, lists of events, parameters that events change, room for many steps."""

import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from switching import AGAIN, HEATER, REVERSE

import optctl as oc

module = importlib.import_module("optctl.continuous.integrate")
MODES = ["exact", "continuous", "forward"]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
DECAY = oc.ODE(lambda z, t, p: -p * z)
SWITCHED = oc.ODE(lambda z, t, p: -jnp.where(t < p["T"], p["before"], p["after"]) * z)
FOLLOWS = oc.ODE(lambda z, u: u - z)
RATES = {"T": 0.7, "before": 0.5, "after": 2.0}


def last(zs):
    return zs[-1, 0]


def differences(f, x, h=1e-5):
    return np.array([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))])


def test_the_state_may_be_called_u():
    """Without an input signal f(u, t, p), f(u, t, params) and f(u) are functions of the state."""
    fixed = {"method": "rk4", "dt": 0.05}
    for f in (lambda u, t, p: -0.5 * u, lambda u, t, params: -0.5 * u, lambda u, t: -0.5 * u, lambda u: -0.5 * u):
        np.testing.assert_allclose(oc.integrate(f, [1.0], [0.0, 1.0], 0.0, **fixed).zs[-1, 0], np.exp(-0.5), rtol=1e-6)
    ramp = oc.integrate(lambda u, t: u, [0.0], [0.0, 2.0], inputs=STEP)
    np.testing.assert_allclose(ramp.zs[-1, 0], 4.0, rtol=1e-12)
    with pytest.raises(ValueError, match="`inputs` is missing"):
        oc.integrate(lambda z, u: u, [1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="`inputs` is given, but f takes no input"):
        oc.integrate(lambda u, t, p: u, [1.0], [0.0, 1.0], 0.0, inputs=STEP)


STEP = oc.Signal([0.0, 1.0, 2.0], [[1.0], [3.0]])


@pytest.mark.big
@pytest.mark.parametrize("mode", MODES)
def test_backward_is_forward_of_the_reversed_equation(mode):
    """z' = -p z + t from t = 1.5 down to 0.2 is, in s = -t, z' = p z + s from -1.5 to -0.2; cost rates change sign."""
    loss = lambda zs: jnp.sum(zs[1:] ** 2)
    ts = np.array([1.5, 0.9, 0.2])
    options = {"mode": mode, **TIGHT}
    g = oc.ode_gradient(lambda z, t, p: -p * z + t, loss, [0.8], ts, 0.6, running_cost=lambda z, t: t * z[0], **options)
    want = oc.ode_gradient(
        lambda z, t, p: p * z + t, loss, [0.8], -ts, 0.6, running_cost=lambda z, t: t * z[0], **options
    )
    for name in ("value", "zs", "z0", "params"):
        np.testing.assert_allclose(getattr(g, name), getattr(want, name), rtol=1e-8)
    np.testing.assert_allclose(g.ts, -want.ts, rtol=1e-7)
    np.testing.assert_allclose(g.t, 0.2)


@pytest.mark.parametrize("method", ["tsit5", "kvaerno5", "rk4"])
def test_there_and_back(method):
    dt = 0.01 if method == "rk4" else None
    path = oc.integrate(DECAY, [1.0], np.linspace(0, 2, 5), 0.7, method=method, dt=dt)
    back = oc.integrate(DECAY, path.zs[-1], np.linspace(2, 0, 5), 0.7, method=method, dt=dt)
    np.testing.assert_allclose(back.zs[::-1], path.zs, rtol=1e-6)
    np.testing.assert_allclose(back(1.3), np.exp([-0.7 * 1.3]), rtol=1e-6)
    with pytest.raises(ValueError, match="`t` leaves the solution"):
        back(2.1)


@pytest.mark.big
@pytest.mark.parametrize("kind", ["hold", "linear", "spline"])
def test_an_input_backward(kind):
    """The same signal is met, knots and values are differentiated."""
    values = np.array([[1.0], [3.0], [-2.0], [0.5]])[: 3 if kind == "hold" else 4]

    def signal(x):
        values[1, 0] = x[1]
        return oc.Signal([0.0, x[0], 1.5, 2.0], values, kind)

    x = np.array([0.8, 3.0])
    end = lambda x, z=(0.3,), ts=(1.8, 0.1): oc.integrate(FOLLOWS, z, ts, inputs=signal(x), **TIGHT).zs[-1]
    np.testing.assert_allclose(end(x, end(x, ts=(0.1, 1.8))), [0.3], atol=1e-8)
    slope = differences(lambda x: end(x)[0], x)
    for mode in MODES if kind != "linear" else ["exact"]:  # which is between the others
        g = oc.ode_gradient(FOLLOWS, last, [0.3], [1.8, 0.1], inputs=signal(x), mode=mode, **TIGHT)
        np.testing.assert_allclose([g.knots[1], g.inputs[1, 0]], slope, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_an_event_backward(mode):
    """z = exp(-p t) backward from t = 1 meets 0.9 at t = -log(0.9)/p."""
    p = 0.7
    event = oc.Event(lambda z: z[0] - 0.9, direction=1)
    g = oc.ode_gradient(
        DECAY, lambda zs, times: times[0], [np.exp(-p)], [1.0, -1.0], p, event=event, mode=mode, **TIGHT
    )
    np.testing.assert_allclose(g.value, -np.log(0.9) / p, rtol=1e-9)
    np.testing.assert_allclose(g.t, g.value, rtol=1e-12)
    # z(1) is held: t = 1 + (log z1 - log 0.9)/p
    np.testing.assert_allclose(g.params, -(-p - np.log(0.9)) / p**2, rtol=1e-7)
    np.testing.assert_allclose(g.z0, [1 / (p * np.exp(-p))], rtol=1e-7)
    np.testing.assert_allclose(g.ts, [1.0, 0.0], atol=1e-7)


def test_falling_times_under_jit_and_times_that_turn():
    run = jax.jit(lambda ts: oc.integrate(DECAY, [1.0], ts, 0.5).zs[:, 0])
    np.testing.assert_allclose(run(jnp.array([1.0, 0.5, 0.0])), np.exp([0.0, 0.25, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(run(jnp.array([0.0, 0.5, 1.0])), np.exp([0.0, -0.25, -0.5]), rtol=1e-6)
    assert np.isnan(run(jnp.array([1.0, 0.0, 0.5]))[1:]).all()
    times = jnp.array([1.0, 0.5, 0.0])  # known while JAX traces
    np.testing.assert_allclose(
        jax.jit(lambda p: oc.integrate(DECAY, [1.0], times, p).zs[-1, 0])(0.5), np.exp(0.5), rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"`ts` does not fall throughout: ts\[1\] = -1, ts\[2\] = 0"):
        oc.integrate(DECAY, [1.0], [1.0, -1.0, 0.0], 0.5)


def test_as_many_steps_as_it_takes(monkeypatch):
    """An oscillator of 20 rad/s at 1e-12: z(10) = sin(10 w)/w, and its derivative in w; room has an end."""
    oscillator = oc.ODE(lambda z, t, w: jnp.stack([z[1], -(w**2) * z[0]]))
    w, T = 20.0, 10.0
    want = T * np.cos(w * T) / w - np.sin(w * T) / w**2
    tight = {"rtol": 1e-12, "atol": 1e-12}
    for mode in ("exact", "continuous"):
        g = oc.ode_gradient(oscillator, last, [0.0, 1.0], [0.0, T], w, mode=mode, **tight)
        assert g.steps > module.FIRST_STEPS
        np.testing.assert_allclose(g.params, want, atol=1e-7)
    slope = jax.grad(lambda w: last(oc.integrate(oscillator, [0.0, 1.0], [0.0, T], w, **tight).zs))(w)
    np.testing.assert_allclose(slope, want, atol=1e-7)
    monkeypatch.setattr(module, "MEMORY", 5000 * 32)
    with pytest.raises(RuntimeError, match=r"5000 steps ended at t = .*raise max_steps"):
        oc.integrate(oscillator, [0.0, 1.0], [0.0, T], w, **tight)


@pytest.mark.parametrize(
    ("mode", "method"), [*[(mode, "tsit5") for mode in MODES], ("exact", "kvaerno5"), ("continuous", "rk4")]
)
def test_a_jump_in_time(mode, method):
    """z(2) = z0 exp(-before T - after (2 - T)); the derivative in T comes through jump_ts."""
    tight = {"dt": 0.005} if method == "rk4" else {"rtol": 1e-8, "atol": 1e-10}
    options = {"mode": mode, "jump_ts": [0.7], "method": method, **tight}
    g = oc.ode_gradient(SWITCHED, last, [1.5], [0.0, 2.0], RATES, **options)
    z = 1.5 * np.exp(-0.5 * 0.7 - 2 * 1.3)
    got = g.value, g.params["before"], g.params["after"], g.jump_ts[0], g.z0[0], g.ts[1]
    np.testing.assert_allclose(got, [z, -0.7 * z, -1.3 * z, 1.5 * z, z / 1.5, -2 * z], rtol=1e-6)


def test_a_jump_whose_time_is_a_parameter():
    def end(p, ts):
        return last(oc.integrate(SWITCHED, [1.5], ts, p, jump_ts=jnp.stack([p["T"]]), **TIGHT).zs)

    for ts, z in ((np.array([0.0, 2.0]), 1.5 * np.exp(-0.35 - 2.6)), (np.array([2.0, 0.0]), 1.5 * np.exp(0.35 + 2.6))):
        slope = jax.grad(end)(RATES, ts)["T"]
        np.testing.assert_allclose(slope, 1.5 * z * np.sign(ts[1] - ts[0]), rtol=1e-8)
    twice = jax.jacfwd(lambda T: jax.grad(end)(RATES | {"T": T}, np.array([0.0, 2.0]))["T"])(0.7)
    np.testing.assert_allclose(twice, 1.5**2 * 1.5 * np.exp(-0.35 - 2.6), rtol=1e-7)


def test_second_derivatives_in_the_time_of_a_jump():
    hv = oc.ode_hessian_vector_product(SWITCHED, last, [1.5], [0.0, 2.0], RATES, jump_ts=[0.7], djump_ts=[1.0], **TIGHT)
    z = 1.5 * np.exp(-0.35 - 2.6)
    np.testing.assert_allclose(hv.jump_ts, [1.5**2 * z], rtol=1e-8)
    np.testing.assert_allclose(hv.params["before"], -z - 0.7 * 1.5 * z, rtol=1e-8)
    with pytest.raises(ValueError, match="`djump_ts` is given"):
        oc.ode_hessian_vector_product(DECAY, last, [1.5], [0.0, 2.0], 0.5, djump_ts=[1.0])


def test_a_jump_saves_steps_and_is_seen_without_jump_ts():
    told = oc.integrate(SWITCHED, [1.5], [0.0, 2.0], RATES, jump_ts=[0.7], rtol=1e-9)
    with pytest.warns(UserWarning, match=r"f seems to jump inside steps, at about t = 0\.7 s"):
        missed = oc.integrate(SWITCHED, [1.5], [0.0, 2.0], RATES, rtol=1e-9)
    assert missed.rejected > told.rejected + 5
    np.testing.assert_allclose(missed.jump_at, 0.7, atol=1e-4)
    with pytest.warns(UserWarning, match="jump inside steps"):
        oc.ode_gradient(SWITCHED, last, [1.5], [2.0, 0.0], RATES, rtol=1e-9)
    with pytest.warns(UserWarning, match="a jump in the state into an Event"):
        oc.integrate(lambda z: jnp.where(z < 1, 1.0, 5.0), [0.0], [0.0, 2.0], rtol=1e-9)


def test_what_is_steep_but_smooth_is_no_jump():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oc.integrate(lambda z, t: 1e4 * jnp.exp(-(((t - 1) * 1e4) ** 2)) + 0 * z, [0.0], [0.0, 1.0, 2.0])
        oc.integrate(lambda z, t: jnp.tanh(1e3 * (t - 0.7)) - z, [0.0], [0.0, 2.0], rtol=1e-9)
        oc.integrate(lambda z: [z[1], 100 * (1 - z[0] ** 2) * z[1] - z[0]], [2.0, 0.0], [0.0, 200.0], method="kvaerno5")
        oc.integrate(lambda z, t: -1e4 * (z - jnp.cos(t)), [0.0], [0.0, 1.0])


BOX = oc.ODE(lambda z, t, p: [z[1], 0 * z[1]])


WALLS = [
    oc.Event(lambda z: z[0], reset=lambda z, t, p: [z[0], -p["left"] * z[1]], direction=-1),
    oc.Event(lambda z: z[0] - 1, reset=lambda z, t, p: [z[0], -p["right"] * z[1]], direction=1),
]


@pytest.mark.parametrize("mode", MODES)
def test_each_event_has_its_own_reset(mode):
    """Between two walls: from 0.5 at speed 1 right at 0.5, then r to the left wall, then l r; position by hand."""
    p = {"left": 0.5, "right": 0.8}
    ts = np.array([0.0, 3.0])
    path = oc.integrate(BOX, [0.5, 1.0], ts, p, event=WALLS)
    at_left, at_right = path.event_times
    np.testing.assert_allclose(at_right, [0.5], rtol=1e-12)
    np.testing.assert_allclose(at_left, [0.5 + 1 / 0.8], rtol=1e-12)
    np.testing.assert_allclose(path.zs[-1], [0.4 * (3 - 1.75), 0.4], rtol=1e-12)
    loss = lambda zs, times: zs[-1, 0] + jnp.pi * times[0][0]
    g = oc.ode_gradient(BOX, loss, [0.5, 1.0], ts, p, event=WALLS, mode=mode)
    # x = l (r v (3 - (1 - x0)/v) - 1), and the left wall is met at (1 - x0)/v + 1/(r v)
    np.testing.assert_allclose(g.params["left"], 0.8 * 2.5 - 1, rtol=1e-9)
    np.testing.assert_allclose(g.params["right"], 0.5 * 2.5 - np.pi / 0.8**2, rtol=1e-9)
    np.testing.assert_allclose(g.z0, [0.5 * 0.8 - np.pi, 0.5 * 0.8 * 3 - np.pi * 1.75], rtol=1e-9)


def test_events_at_one_time_all_take_place():
    """Two balls that land together, and one that lands there while another only passes a mark."""
    fall = oc.ODE(lambda z, t, g: [z[1], -g, z[3], -g])
    first = oc.Event(lambda z: z[0], reset=lambda z: [z[0], -z[1], z[2], z[3]], direction=-1)
    second = oc.Event(lambda z: z[2], reset=lambda z: [z[0], z[1], z[2], -0.5 * z[3]], direction=-1)
    path = oc.integrate(fall, [1.0, 0.0, 1.0, 0.0], [0.0, 0.6], 10.0, event=[first, second])
    landed = np.sqrt(0.2)
    np.testing.assert_allclose([path.event_times[0][0], path.event_times[1][0]], landed, rtol=1e-9)
    speed = 10 * landed
    np.testing.assert_allclose(path.zs[-1, 1::2], [speed - 10 * (0.6 - landed), 0.5 * speed - 10 * (0.6 - landed)])


def test_one_of_several_events_ends():
    stop = oc.Event(lambda z, t: t - 1.1)
    path = oc.integrate(BOX, [0.5, 1.0], [0.0, 3.0], {"left": 0.5, "right": 0.8}, event=[*WALLS, stop])
    np.testing.assert_allclose(path.t, 1.1, rtol=1e-12)
    np.testing.assert_allclose(path.zs[-1], [1 - 0.8 * 0.6, -0.8], rtol=1e-12)
    assert [len(times) for times in path.event_times] == [0, 1, 1]


@pytest.mark.big
@pytest.mark.parametrize(("ts", "modes"), [([0.0, 0.3, 2.0], MODES), ([2.0, 1.4, 0.0], MODES[:2])])
def test_resets_that_change_parameters(ts, modes):
    """Against differences, by every mode; f, events, later resets and the running cost see the new ones."""
    ode = HEATER if ts[0] < ts[1] else oc.ODE(lambda z, t, p: -p["rate"] * (p["target"] - z))
    loss, rate = lambda zs, times: zs[-1, 0] + zs[1, 0] ** 2 + times[0][0], lambda z, t, p: p["rate"] * z[0] ** 2

    def value(x, mode="exact"):
        return oc.ode_gradient(
            ode, loss, x[:1], ts, {"rate": x[1], "target": x[2]}, event=[REVERSE, AGAIN], running_cost=rate, mode=mode,
            **TIGHT,
        )  # fmt: skip

    x = np.array([0.3, 1.1, 2.2])
    slope = differences(lambda x: value(x).value, x)
    for mode in modes:
        g = value(jnp.asarray(x), mode)
        assert [len(times) for times in g.event_times] == [1, 1] or len(g.event_times[0]) >= 1
        got = [g.z0[0], g.params["rate"], g.params["target"]]
        np.testing.assert_allclose(got, slope, rtol=1e-5)


def test_bad_lists_and_resets_are_refused():
    run = lambda **options: oc.integrate(DECAY, [1.0], [0.0, 1.0], 0.5, **options)
    with pytest.raises(ValueError, match=r"`event` is a list holding a str; expected optctl\.Event, or a list"):
        run(event=[REVERSE, "end"])
    with pytest.raises(ValueError, match=r"`reset_params` returns .*; expected what params are"):
        run(event=oc.Event(lambda z: z[0] - 0.8, reset_params=lambda z, t, p: {"p": p}))
    with pytest.raises(ValueError, match=r"`jump_ts` does not increase"):
        run(jump_ts=[0.5, 0.2])
    with pytest.raises(ValueError, match=r"`jump_ts` has shape \(\); expected a vector of times"):
        run(jump_ts=0.5)
