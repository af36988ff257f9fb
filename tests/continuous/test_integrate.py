"""Solutions: events that hide inside a step, signals' knots, derivatives of what `integrate` returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.continuous.gradient import _gradient

DECAY = oc.ODE(lambda z, t, p: -p * z)
DRIVEN = oc.ODE(lambda z, u: u - z)
FALL = oc.ODE(lambda z, t, g: [z[1], -g])
LANDING = oc.Event(lambda z: z[0], direction=-1)


def last(zs):
    return zs[-1, 0]


def difference(f, x, h=1e-6):
    return (f(x + h) - f(x - h)) / (2 * h)


def test_an_event_is_found_where_both_ends_of_the_step_lie_on_one_side():
    top = 5.01
    up = oc.Event(lambda z: z[0] - 5, direction=1)
    flight = oc.integrate(FALL, [0.0, np.sqrt(2 * 9.81 * top)], [0.0, 2.0], 9.81, event=up)
    np.testing.assert_allclose(flight.t, (np.sqrt(2 * 9.81 * top) - np.sqrt(2 * 9.81 * (top - 5))) / 9.81, rtol=1e-12)
    below = oc.integrate(FALL, [0.0, np.sqrt(2 * 9.81 * 4.99)], [0.0, 2.0], 9.81, event=up)
    assert below.event_times.size == 0


def test_events_at_the_times_of_observations():
    """The observation sees the state after the event, on whichever side of its time rounding puts it."""
    tick = oc.Event(lambda z, t, p: t - p, reset=lambda z: 0 * z)
    wall = oc.Event(lambda z, t, p: z[0] - p, reset=lambda z: [z[0], -z[1]], direction=1)
    end = oc.Event(lambda z, t, p: t - p)
    ticking = jax.jit(lambda T: oc.integrate(lambda z: 0 * z + 1, [0.0], jnp.stack([0.0, T, 2.0]), T, event=tick).zs)
    flying = jax.jit(
        lambda T: (
            oc.integrate(lambda z: [z[1], 0 * z[1]], [0.0, 1.37], jnp.stack([0.0, T, 2.0]), 1.37 * T, event=wall).zs
        )
    )
    ending = jax.jit(lambda T: oc.integrate(lambda z: 0 * z + 1, [0.0], jnp.stack([0.0, T, 2.0]), T, event=end).zs)
    for T in np.random.default_rng(0).uniform(0.2, 1.8, 30):
        np.testing.assert_allclose(ticking(T)[:, 0], [0.0, 0.0, 2 - T], atol=1e-12)
        np.testing.assert_allclose(flying(T)[1:], 1.37 * np.array([[T, -1], [2 * T - 2, -1]]), atol=1e-12)
        np.testing.assert_allclose(ending(T)[:, 0], [0.0, T, T], atol=1e-12)


@pytest.mark.parametrize(("height", "span"), [(1e-5, 1000.0), (1e-8, 1.0)])
def test_an_event_soon_after_the_start(height, span):
    fall = oc.integrate(FALL, [height, -1.0], [0.0, span], 9.81, event=LANDING)
    np.testing.assert_allclose(fall.t, (np.sqrt(1 + 2 * 9.81 * height) - 1) / 9.81, rtol=1e-8)


def test_events_where_their_slope_is_infinite():
    """log z starts at -inf and passes zero at 1; 1e-3 + sqrt(1 - t) ends above zero."""
    rise = oc.integrate(lambda z: 0 * z + 1, [0.0], [-2.0, 1.0], event=oc.Event(lambda z: jnp.log(z[0])))
    np.testing.assert_allclose(rise.event_times, [-1.0], rtol=1e-12)
    later = oc.integrate(lambda z: 0 * z + 1, [1.0], [0.0, 3.0], event=oc.Event(lambda z: jnp.log(z[0] - 1)))
    np.testing.assert_allclose(later.event_times, [1.0], rtol=1e-12)
    above = oc.integrate(lambda z: 0 * z, [0.0], [0.0, 1.0], event=oc.Event(lambda z, t: 1e-3 + jnp.sqrt(1 - t)))
    assert above.event_times.size == 0


def test_second_derivatives_in_start_time_and_state():
    """z(2) = z0 exp(-p (sin 2 - sin t0)), with a look in between."""
    ode = oc.ODE(lambda z, t, p: -p * z * jnp.cos(t))

    def end(x):
        return last(oc.integrate(ode, x[1:2], jnp.stack([x[0], 1.0, 2.0]), x[2], rtol=1e-9, atol=1e-9).zs)

    def exact(x):
        return x[1] * jnp.exp(-x[2] * (jnp.sin(2.0) - jnp.sin(x[0])))

    x = jnp.array([0.2, 1.0, 0.5])
    np.testing.assert_allclose(jax.hessian(end)(x), jax.hessian(exact)(x), atol=1e-6)


def test_times_that_do_not_increase_under_jit():
    bad = jax.jit(lambda ts: oc.integrate(DECAY, [1.0], ts, 0.5).zs)(jnp.array([0.0, 2.0, 1.0]))
    assert np.isnan(bad[1:]).all()


def test_dense_output_ends_with_the_solution():
    fall = jax.jit(lambda t: oc.integrate(FALL, [1.0, 0.0], [0.0, 2.0], 9.81, event=LANDING)(t))
    heights = fall(jnp.array([0.1, 1.5]))[:, 0]
    np.testing.assert_allclose(heights[0], 1 - 9.81 / 200, rtol=1e-12)
    assert np.isnan(heights[1])


def test_implicit_steps_of_small_states_in_single_precision():
    """Trapezoidal rule for z' = -p z^2, its quadratic solved by hand."""
    p, h, z = 3e5, 0.5, 1e-5
    for _ in range(2):
        z = (np.sqrt(1 + 2 * h * p * (z - h * p * z**2 / 2)) - 1) / (h * p)
    ode = oc.ODE(lambda z, t, p: -p * z**2)
    got = oc.integrate(ode, np.float32([1e-5]), [0.0, 1.0], np.float32(p), method="trapezoid", dt=h).zs[-1, 0]
    np.testing.assert_allclose(got, z, rtol=1e-5)


def test_single_precision_with_a_signal_of_doubles():
    signal = oc.Signal([0.0, 1.0, 2.0], [[1.0], [2.0], [0.0]], "linear")
    path = oc.integrate(DRIVEN, np.float32([1.0]), [0.1, 0.7], inputs=signal)
    assert path.zs.dtype == np.float32
    np.testing.assert_allclose(path(0.7), path.zs[-1], rtol=1e-5)


@pytest.mark.parametrize("mode", ["exact", "continuous"])
def test_a_loss_in_the_first_state_with_a_knot_before_it(mode):
    signal = oc.Signal([0.0, 1.0, 2.0], [[1.0], [2.0], [0.0]], "linear")
    g = oc.ode_gradient(DRIVEN, lambda zs: jnp.sum(zs**2), [0.7], [0.0, 1.5], inputs=signal, mode=mode)
    np.testing.assert_allclose(g.z0, 1.4 + 2 * g.zs[-1] * np.exp(-1.5), rtol=1e-6)


def test_the_longest_step_lets_fast_events_be_seen():
    wave = oc.Event(lambda z, t: jnp.sin(5 * t), reset=lambda z: z)
    seen = oc.integrate(lambda z: jnp.ones_like(z), [0.0], [0.0, 10.0], event=wave, dt=0.5)
    np.testing.assert_allclose(seen.event_times, np.pi / 5 * np.arange(1, 16), rtol=1e-12)


@pytest.mark.parametrize("mode", ["exact", "continuous", "forward"])
def test_an_observation_on_a_knot(mode):
    """It moves, the knot does not; and a later knot delays the larger input."""
    signal = oc.Signal([0.0, 1.0, 2.0], [[1.0], [2.0]])
    g = oc.ode_gradient(DRIVEN, last, [0.0], [0.0, 1.0, 2.0], inputs=signal, mode=mode, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(g.ts[:2], [-np.exp(-2), 0.0], atol=1e-9)
    np.testing.assert_allclose(g.knots, [0.0, -np.exp(-1), 0.0], atol=1e-9)


@pytest.mark.parametrize(("kind", "rows"), [("hold", 3), ("linear", 4), ("spline", 4)])
def test_knots_of_a_signal_are_differentiated(kind, rows):
    values = np.array([[1.0], [3.0], [2.0], [0.5]])[:rows]

    @jax.jit
    def end(knot):
        signal = oc.Signal(jnp.array([0.0, 1.0, 1.5, 2.5]).at[1].set(knot), values, kind)
        return last(oc.integrate(DRIVEN, [0.0], [0.0, 2.0], inputs=signal, rtol=1e-10, atol=1e-10).zs)

    np.testing.assert_allclose(jax.grad(end)(0.8), difference(end, 0.8), rtol=1e-7)


@pytest.mark.parametrize("kind", ["hold", "spline"])
def test_a_fixed_mesh_moves_with_the_start_between_two_knots(kind):
    signal = oc.Signal([0.0, 1.0, 2.0], [[1.0], [2.0], [0.0]], kind)
    call = jax.jit(lambda t0: oc.ode_gradient(DRIVEN, last, [0.0], jnp.array([t0, 1.9]), inputs=signal, **steps))
    steps = {"method": "euler", "dt": 0.25}
    np.testing.assert_allclose(call(0.3).ts[0], difference(lambda t0: call(t0).value, 0.3), rtol=1e-8)


def test_the_last_value_of_a_hold_goes_on():
    signal = oc.Signal([0.0, 1.0], [[1.0], [3.0]])
    np.testing.assert_allclose(oc.integrate(lambda z, u: u, [0.0], [0.0, 3.0], inputs=signal).zs[-1], [7.0])
    short = oc.Signal([0.0, 1.0], [[1.0]])
    np.testing.assert_allclose(oc.integrate(lambda z, u: u, [0.0], [0.0, 3.0], inputs=short).zs[-1], [3.0])


def test_the_time_reached_is_differentiated():
    landing = lambda g: oc.integrate(FALL, [10.0, 0.0], [0.0, 5.0], g, event=LANDING).t
    np.testing.assert_allclose(jax.grad(landing)(9.81), -np.sqrt(20 / 9.81) / (2 * 9.81), rtol=1e-10)


@pytest.mark.big
@pytest.mark.parametrize("options", [{}, {"mode": "continuous"}, {"memory": "sqrt", "max_steps": 32}])
def test_the_value_of_a_gradient_is_differentiated_by_that_gradient(options):
    def value(p):
        return oc.ode_gradient(DECAY, last, [1.0], [0.0, 1.0], p, **options).value

    want = oc.ode_gradient(DECAY, last, [1.0], [0.0, 1.0], 0.5, **options).params
    np.testing.assert_allclose(jax.grad(value)(0.5), want, rtol=1e-9)


def test_derivatives_that_are_not_known_are_nan():
    assert np.isnan(jax.grad(lambda p: oc.ode_gradient(DECAY, last, [1.0], [0.0, 1.0], p).z0[0])(0.5))


def test_an_event_that_never_comes_under_jit():
    waiting = jax.jit(
        lambda: oc.ode_gradient(FALL, lambda zs, times: times[0], [9.0, 0.0], [0.0, 0.5], 9.81, event=LANDING)
    )
    assert np.isnan(waiting().params)


def test_memory_is_planned_for_the_steps_taken():
    full = oc.ode_gradient(DECAY, last, [1.0], [0.0, 1.0], 0.5)
    few = oc.ode_gradient(DECAY, last, [1.0], [0.0, 1.0], 0.5, memory=oc.Binomial(2))
    np.testing.assert_allclose(few.params, full.params, rtol=1e-14)


def test_a_second_call_does_not_compile_again():
    cost, f = lambda z: z[0] ** 2, lambda z: -z
    first = oc.ode_gradient(oc.ODE(f), last, [1.0], [0.0, 1.0], running_cost=cost)
    before = _gradient._cache_size()
    again = oc.ode_gradient(oc.ODE(f), last, [1.0], [0.0, 1.0], running_cost=cost)
    assert _gradient._cache_size() == before
    np.testing.assert_array_equal(first.z0, again.z0)


def test_arguments_by_name():
    by_name = oc.integrate(lambda t, z: -t * z, [1.0], [0.0, 1.0], rtol=1e-10)
    np.testing.assert_allclose(by_name.zs[-1], np.exp(-0.5), rtol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oc.ODE(lambda t, y: y), "`f` has the argument `t` in the place of z"),
        (lambda: oc.ODE(lambda z, rate: z), "`f` ends with the argument `rate`, in the place of t"),
        (lambda: oc.integrate(lambda z, u: u, [1.0], [0.0, 1.0]), "`inputs` is missing"),
        (
            lambda: oc.integrate(DECAY, [1.0], [0.0, 1.0], 0.5, event=oc.Event(lambda z: z[0] < 0.5)),
            "`when` returns bool; expected a float64 number",
        ),
        (
            lambda: jax.grad(lambda p: last(oc.integrate(lambda z: -p * z, [1.0], [0.0, 1.0]).zs))(0.5),
            "closes over a value that is being differentiated; hand it over as params",
        ),
        (
            lambda: oc.ode_gradient(DECAY, lambda zs, p: zs[0, 0], [1.0], [0.0, 1.0], 0.5),
            r"`loss` takes 2 arguments; expected loss\(zs\)",
        ),
        (lambda: oc.Event(lambda z: z[0], most=-1), "`most` is -1"),
        (lambda: oc.integrate(DECAY, np.zeros(0), [0.0, 1.0], 0.5), r"`z0` has shape \(0,\)"),
        (
            lambda: oc.integrate(
                DECAY, [1.0], [0.0, 1.0], 0.5, event=oc.Event(lambda z: z[0] - 0.7, reset=lambda z: jnp.ones(1, int))
            ),
            "`reset` returns int64",
        ),
        (lambda: oc.ode_gradient(DECAY, lambda zs: 1, [1.0], [0.0, 1.0], 0.5), "`loss` returns int"),
        (lambda: oc.ode_gradient(DECAY, lambda zs: None, [1.0], [0.0, 1.0], 0.5), "`loss` returns None"),
        (
            lambda: oc.ode_hessian_vector_product(DECAY, last, [1.0], [0.0, 1.0], 0.5, dinputs=[1.0]),
            "`dinputs` is given, but there are no `inputs`",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: oc.ode_gradient(DECAY, last, [1.0], [0.0, 1.0], 0.5, max_steps=2),
            r"2 steps ended at t = 0\.\d+ s, z = \[0\.\d+\], before ts\[-1\] = 1 s; raise max_steps, loosen",
        ),
        (
            lambda: oc.integrate(DECAY, [1.0], [0.0, 1.0], 0.5, method="rk4", dt=1e-5, max_steps=4096),
            "before .* = 1 s; raise max_steps or dt",
        ),
        (
            lambda: oc.integrate(
                FALL,
                [1.0, 0.0],
                [0.0, 1.0],
                9.81,
                event=oc.Event(lambda z: z[0], reset=lambda z: 0 * z, direction=-1),
            ),
            "rests on the surface",
        ),
        (
            lambda: oc.integrate(lambda z: 0 * z - 1, [1.0], [0.0, 2.0], event=oc.Event(lambda z: jnp.sqrt(z[0]) + 1)),
            "`when` is not finite at t = 1",
        ),
    ],
)
def test_what_cannot_go_on(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
