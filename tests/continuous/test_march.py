"""Solutions and gradients by compiled code, against the definition in JAX: meshes, states, events, derivatives."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from switching import AGAIN, HEATER, REVERSE

import optctl as oc
from optctl.continuous.functions import Function
from optctl.continuous.native import find_flow

PREY = oc.ODE(lambda z, t, p: [p[0] * z[0] - p[1] * z[0] * z[1], -p[2] * z[1] + p[3] * z[0] * z[1]])
FORCED = oc.ODE(lambda z, u, t, p: [z[1], -p["k"] * jnp.sin(z[0]) - p["c"] * z[1] * (1 + 0.1 * t) + u[0]])
SWITCHED = oc.ODE(lambda z, t, p: -jnp.where(t < p["T"], p["before"], p["after"]) * z * (1 + 0.1 * t))
BALL = oc.ODE(lambda z, t, p: [z[1], -p[0] - 0.1 * jnp.sin(3 * t) * z[1]])
MOVING = oc.Event(
    lambda z, t, p: z[0] - 0.1 * p[1] * jnp.sin(t), reset=lambda z, t, p: [z[0], -p[1] * z[1] + 0.05 * t], direction=-1
)
GROUND = oc.Event(lambda z, t, p: z[0] - 0.1 * p[1] * jnp.sin(t), direction=-1)
WALLS = [
    oc.Event(lambda z: z[0], reset=lambda z, t, p: [z[0], -p["left"] * z[1]], direction=-1),
    oc.Event(lambda z: z[0] - 1, reset=lambda z, t, p: [z[0], -p["right"] * z[1]], direction=1),
    oc.Event(lambda z, t: t - 2.9),
]
RATES = np.array([1.5, 1.0, 3.0, 1.0])
SWING = {"k": np.array(4.0), "c": np.array(0.3)}
SWITCH = {"T": np.array(0.7), "before": np.array(0.5), "after": np.array(2.0)}
KNOTS, HEIGHTS = np.array([-0.2, 0.3, 0.45, 1.1, 1.6]), np.sin(np.arange(5.0))[:, None]
COST = {"running_cost": lambda z, t, p: 0.1 * z @ z * (1 + t)}

CASES = {
    "prey": (PREY, [1.0, 1.0], [0.0, 3.0, 10.0], RATES, {}),
    "prey at the first tolerance": (PREY, [1.0, 1.0], [0.0, 5.0], RATES, {"rtol": 1e-4, "atol": 1e-4}),
    "backward": (PREY, [1.0, 1.0], [2.0, 1.2, -0.3], RATES, COST),
    "dopri5": (PREY, [1.0, 1.0], [0.0, 2.0], RATES, {"method": "dopri5"}),
    "dopri8": (PREY, [1.0, 1.0], [0.0, 2.0], RATES, {"method": "dopri8", "rtol": 1e-11, "atol": 1e-11} | COST),
    "longest step": (PREY, [1.0, 1.0], [0.0, 2.0], RATES, {"dt": 0.03}),
    "euler": (PREY, [1.0, 1.0], [0.0, 0.77, 2.0], RATES, {"method": "euler", "dt": 0.1}),
    "midpoint": (PREY, [1.0, 1.0], [0.0, 0.77, 2.0], RATES, {"method": "midpoint", "dt": 0.1} | COST),
    "rk4": (PREY, [1.0, 1.0], [2.0, 0.77, 0.0], RATES, {"method": "rk4", "dt": 0.1}),
    "states only": (PREY, [1.0, 1.0], [0.0, 2.0], RATES, {"control": "states"}),
    "jump": (SWITCHED, [1.5], [0.0, 0.3, 2.0], SWITCH, {"jump_ts": [0.7]} | COST),
    "jump backward": (SWITCHED, [1.5], [2.0, 0.3, 0.0], SWITCH, {"jump_ts": [0.7, 3.0]}),
    "event with reset": (BALL, [10.0, 0.5], [0.0, 1.0, 3.0, 4.0], [9.81, 0.8], {"event": MOVING} | COST),
    "terminal event": (BALL, [10.0, 0.5], [0.0, 1.0, 3.0], [9.81, 0.8], {"event": GROUND} | COST),
    "event between fixed steps": (
        BALL, [10.0, 0.5], [0.0, 1.0, 3.0], [9.81, 0.8], {"event": MOVING, "method": "rk4", "dt": 0.02},
    ),
    "parameters that move": (HEATER, [0.3], [0.0, 0.3, 2.0], {"rate": 1.1, "target": 2.2}, {"event": [REVERSE, AGAIN]}),
    "a list of events": (
        lambda z, t, p: [z[1], 0 * z[1]], [0.5, 1.0], [0.0, 2.0, 3.0], {"left": 0.5, "right": 0.8}, {"event": WALLS},
    ),
    "a matrix": (lambda z, t, W: jnp.tanh(z @ W), np.sin(np.arange(6.0)).reshape(3, 2), [0.0, 1.0],
                 np.array([[0.1, 0.4], [-0.7, 0.3]]), {}),
}  # fmt: skip
BATCH = np.random.default_rng(1).normal(size=(37, 2))
WEIGHTS = {
    "W": np.sin(np.arange(10.0)).reshape(2, 5),
    "b": 0.1 * np.arange(5.0),
    "V": np.cos(np.arange(10.0)).reshape(5, 2),
}
CASES["rows of a batch"] = (
    lambda z, t, p: jnp.tanh(z @ p["W"] + p["b"][None]) @ p["V"] * (1 + t), BATCH, [0.0, 0.4, 1.0], WEIGHTS, {},
)  # fmt: skip
CASES["rows with an input"] = (
    lambda z, u, t, p: jax.nn.softplus(z @ p["W"]) @ p["V"] * jnp.cos(u)[None], BATCH, [1.0, 0.4, 0.0], WEIGHTS,
    {"inputs": oc.Signal(KNOTS, HEIGHTS, "spline"), "method": "dopri5"},
)  # fmt: skip
CASES["rows that meet"] = (
    lambda z, t, p: jnp.tanh(z @ p["W"]) @ p["V"] - jnp.mean(z, axis=0)[None], BATCH[:5], [0.0, 1.0], WEIGHTS, {},
)  # fmt: skip
CASES["rows that differ"] = (
    lambda z, t, p: -jnp.arange(1.0, 6.0)[:, None] * jnp.sin(z * p), BATCH[:5], [0.0, 1.0], 0.7, {},
)  # fmt: skip
for kind in ("hold", "linear", "spline"):
    rows = HEIGHTS[: 4 if kind == "hold" else 5]
    CASES[kind] = (FORCED, [0.5, 0.0], [0.0, 0.7, 1.3], SWING, {"inputs": oc.Signal(KNOTS, rows, kind)})
    CASES[f"{kind} backward"] = (
        FORCED, [0.5, 0.0], [1.3, 0.7, -0.5], SWING, {"inputs": oc.Signal(KNOTS, rows, kind), "jump_ts": [0.5]},
    )  # fmt: skip


def loss(zs, times=None):
    after = (
        0.0 if times is None else sum(jnp.sum(jnp.where(jnp.isfinite(t), t, 0.0) ** 2) for t in jax.tree.leaves(times))
    )
    return jnp.sum(jnp.cos(zs[-1])) + jnp.sum(zs[1:] ** 2) + after


def close(got, want, size=1e-10):
    """Leaf by leaf, beside the largest number of each."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=size, atol=size * max(np.abs(b).max(initial=0.0), 1.0))


def padded(tree):
    """Times of events as they are under jit, without the padding."""
    return jax.tree.map(lambda times: np.asarray(times)[np.isfinite(times)], tree)


@pytest.mark.parametrize("name", CASES)
def test_solutions(name, compiled_by_xla):
    ode, z0, ts, p, options = CASES[name]
    options = {key: value for key, value in options.items() if key not in ("running_cost", "control")}
    del compiled_by_xla[:]
    got = oc.integrate(ode, z0, ts, p, **options)
    between = got(np.linspace(ts[0], float(got.t), 7))
    assert not compiled_by_xla
    assert isinstance(got.zs, np.ndarray)
    want = jax.jit(lambda: oc.integrate(ode, z0, ts, p, **options))()
    assert (got.steps, got.rejected, got.status) == (want.steps, want.rejected, want.status)
    n = int(got.steps)
    # An error that is rounding itself chooses the next length: the mesh is the same but for that.
    np.testing.assert_allclose(got.mesh.ts[: n + 1], want.mesh.ts[: n + 1], atol=2e-5)
    np.testing.assert_array_equal(got.mesh.end[:n], want.mesh.end[:n])
    np.testing.assert_array_equal(got.mesh.anchor[:n], want.mesh.anchor[:n])
    close((got.zs, got.t), (want.zs, want.t))
    close(padded(got.event_times), padded(want.event_times))
    close(between, want(jnp.linspace(ts[0], float(got.t), 7)))


@pytest.mark.parametrize("name", CASES)
def test_gradients(name, compiled_by_xla):
    ode, z0, ts, p, options = CASES[name]
    loss_of = loss if "event" in options else lambda zs: loss(zs)
    del compiled_by_xla[:]
    got = oc.ode_gradient(ode, loss_of, z0, ts, p, **options)
    assert not compiled_by_xla
    want = jax.jit(lambda: oc.ode_gradient(ode, loss_of, z0, ts, p, **options))()
    assert got.steps == want.steps
    for field in ("value", "zs", "z0", "params", "ts", "inputs", "knots", "jump_ts", "costates", "t", "z"):
        close(getattr(got, field), getattr(want, field))
    forward = oc.ode_gradient(ode, loss_of, z0, ts, p, mode="forward", **options)
    assert forward.costates is None
    close(forward.params, got.params)


@pytest.mark.parametrize("name", ["hold backward", "spline", "event with reset", "parameters that move", "jump"])
def test_gradients_against_differences(name):
    """A Taylor test: what is left of the loss beside its derivative falls with the square of the step."""
    ode, z0, ts, p, options = CASES[name]
    fixed = options | {"method": "rk4", "dt": 0.01}  # the mesh of a pair jumps
    rng = np.random.default_rng(3)
    z0, params = np.asarray(z0), jax.tree.map(np.asarray, p)
    draw = lambda tree: jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), tree)
    dz, dp = draw((z0, params))
    if name == "jump":
        dp["T"] = 0.0  # its derivative comes through jump_ts
    signal = options.get("inputs")
    dv = 0.0 if signal is None else rng.normal(size=signal.values.shape)
    loss_of = loss if "event" in options else lambda zs: loss(zs)

    def at(h):
        moved = (
            fixed if signal is None else fixed | {"inputs": oc.Signal(signal.ts, signal.values + h * dv, signal.kind)}
        )
        pushed = jax.tree.map(lambda leaf, d: leaf + h * d, params, dp)
        return oc.ode_gradient(ode, loss_of, z0 + h * dz, ts, pushed, **moved)

    g = at(0.0)
    slope = np.sum(g.z0 * dz) + sum(
        np.sum(a * b) for a, b in zip(jax.tree.leaves(g.params), jax.tree.leaves(dp), strict=True)
    )
    slope += 0.0 if signal is None else np.sum(g.inputs * dv)
    left = [abs(at(h).value - g.value - h * slope) for h in (1e-3, 5e-4)]
    assert np.log2(left[0] / left[1]) > 1.9


def test_a_tape_that_numpy_refutes_is_not_used(monkeypatch):
    """The right side's derivative made wrong: the definition answers."""
    ode = oc.ODE(lambda z, t, p: -p * jnp.sin(z))
    want = oc.ode_gradient(ode, lambda zs: zs[-1, 0], [1.0], [0.0, 1.0], 0.5)
    right = Function._back

    def wrong(self):
        tape = right(self)
        return type(tape)(**(vars(tape) | {"constants": 1.01 * tape.constants}))

    monkeypatch.setattr(Function, "_back", wrong)
    other = oc.ODE(lambda z, t, p: -p * (jnp.sin(z) + 2.0 * z - 2.0 * z))
    got = oc.ode_gradient(other, lambda zs: zs[-1, 0], [1.0], [0.0, 1.0], 0.5)
    np.testing.assert_allclose(got.params, want.params, rtol=1e-9)


@pytest.mark.parametrize(("name", "rows"), [("rows of a batch", 37), ("rows with an input", 37), ("a matrix", 3),
                                            ("rows that meet", 1), ("rows that differ", 1)])  # fmt: skip
def test_rows_are_alone_or_not(name, rows):
    ode, z0, ts, p, options = CASES[name]
    path = oc.integrate(ode, z0, ts, p, **options)
    assert find_flow(path.system, path.free).functions.rows == rows


def test_what_no_tape_holds_is_left_to_the_definition():
    """An implicit scheme, single precision, and eigenvalues."""
    decay = oc.ODE(lambda z, t, p: -p * z)
    stiff = oc.integrate(decay, [1.0], [0.0, 1.0], 0.5, method="kvaerno5")
    np.testing.assert_allclose(stiff.zs[-1], np.exp(-0.5), rtol=1e-6)
    assert oc.integrate(decay, np.float32([1.0]), [0.0, 1.0], np.float32(0.5)).zs.dtype == np.float32
    path = oc.integrate(oc.ODE(lambda z: -jnp.linalg.eigvalsh(z[:, None])), [1.0], [0.0, 1.0])
    np.testing.assert_allclose(path.zs[-1], np.exp(-1.0), rtol=1e-6)
    assert find_flow(path.system, path.free) is None


def test_room_grows_without_the_definition(monkeypatch):
    module = importlib.import_module("optctl.continuous.integrate")
    monkeypatch.setattr(module, "FIRST_STEPS", 8)
    path = oc.integrate(PREY, [1.0, 1.0], [0.0, 10.0], RATES)
    assert path.steps > 64
    few = oc.ode_gradient(PREY, lambda zs: zs[-1, 0], [1.0, 1.0], [0.0, 10.0], RATES)
    monkeypatch.undo()
    np.testing.assert_array_equal(
        few.z0, oc.ode_gradient(PREY, lambda zs: zs[-1, 0], [1.0, 1.0], [0.0, 10.0], RATES).z0
    )


def observed(path):
    """A number of everything that can be differentiated, states between the steps included."""
    times = sum(jnp.sum(jnp.where(jnp.isfinite(t), t, 0.0) ** 2) for t in jax.tree.leaves(path.event_times))
    return jnp.sum(jnp.sin(path.zs)) + path.t + times


GRADS = ["prey", "backward", "rk4", "jump", "event with reset", "parameters that move", "a list of events", "spline"]


@pytest.mark.big
@pytest.mark.parametrize("name", [*GRADS, "hold backward", "rows with an input"])
def test_jax_grad_of_a_plain_call(name, compiled_by_xla):
    """In state, times, parameters and signal, against jax.grad of the definition."""
    ode, z0, ts, p, options = CASES[name]
    signal, jumps = options.get("inputs"), options.get("jump_ts")
    options = {k: v for k, v in options.items() if k not in ("running_cost", "inputs", "jump_ts")}

    def value(z0, ts, p, signal, jumps):
        path = oc.integrate(ode, z0, ts, p, inputs=signal, jump_ts=jumps, **options)
        return observed(path) + jnp.sum(path(ts[0] + 0.3 * (ts[1] - ts[0])) ** 2)

    given = jax.tree.map(jnp.asarray, (np.asarray(z0), np.asarray(ts), p, signal, jumps))
    slope = jax.grad(value, (0, 1, 2, 3, 4))
    del compiled_by_xla[:]
    got = slope(*given)
    assert not any("_integrate" in program for program in compiled_by_xla)
    close(got, jax.jit(slope)(*given), 1e-9)


def test_forward_derivatives_of_a_plain_call_are_refused():
    run = lambda p: oc.integrate(PREY, [1.0, 1.0], [0.0, 1.0], p).zs[-1, 0]
    with pytest.raises(TypeError, match="forward"):
        jax.jvp(run, (RATES,), (RATES,))
    with pytest.raises(TypeError, match="no forward derivative"):
        jax.linearize(run, RATES)[1](RATES)


COUPLED = {
    "the next but one": lambda z, t, p: p * (jnp.roll(z, 2, axis=0) - z) * jnp.where(t > 0.5, 1.0, 0.0),
    "pairs": lambda z, t, p: -p * z + jnp.where(t > 0.5, 1.0, 0.0) * (jnp.arange(z.shape[0]) // 2)[:, None],
    "more than two": lambda z, t, p: -p * z * (1.0 + (z.shape[0] > 2) * jnp.where(t > 0.5, z[2:].sum(0)[None], 0.0)),
    "alone": lambda z, t, p: -p * z + jnp.sin(z[:, ::-1]),
}


@pytest.mark.parametrize("name", COUPLED)
def test_rows_of_a_batch_that_are_coupled_somewhere(name):
    """Two rows, or a moment when nothing is coupled, do not tell."""
    f, z0 = COUPLED[name], np.arange(1.0, 9.0).reshape(4, 2) / 8
    run = lambda z: oc.integrate(f, z, np.array([0.0, 1.0]), 0.7, method="rk4", dt=0.1).zs[-1]
    np.testing.assert_allclose(run(z0), jax.jit(run)(z0), rtol=1e-12)


def test_what_comes_later_does_not_see_arrays_that_the_caller_changed():
    p, ts = np.array([0.5]), np.array([0.0, 1.0])
    path = oc.integrate(lambda z, t, p: -p * z, [1.0], ts, p)
    p[0], ts[1] = 3.0, 0.7
    np.testing.assert_allclose(path(1.0), np.exp(-0.5), rtol=1e-7)
    p, ts = np.array([0.5]), np.array([0.0, 1.0])
    _, pull = jax.vjp(lambda z: oc.integrate(lambda z, t, p: -p * z, z, ts, p).zs[-1], jnp.array([1.0]))
    p[0] = 3.0
    np.testing.assert_allclose(pull(jnp.array([1.0]))[0], np.exp(-0.5), rtol=1e-7)


def test_a_state_that_is_a_number():
    g = oc.ode_gradient(lambda z, t, p: -p * z, lambda zs: zs[-1] ** 2, 1.0, [0.0, 1.0], 0.5)
    np.testing.assert_allclose(g.params, -2 * np.exp(-1.0), rtol=1e-7)


def test_room_for_a_billion_events_is_refused():
    with pytest.raises(ValueError, match="`most` is 1000000000; expected at most"):
        oc.Event(lambda z: z[0], reset=lambda z: z, most=10**9)
