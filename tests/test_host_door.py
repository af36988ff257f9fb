"""Calls with numbers go from NumPy's arrays to the kernels and back: nothing is compiled, and nothing else changes."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl import _native
from optctl._linear import inner
from optctl.estimation.measurements import check_series, series_of, slopes_of_data
from optctl.lq import native, riccati

pytestmark = pytest.mark.skipif(not _native.available(), reason="needs the compiled kernels")

CALLS = {
    "lqr": "oc.lqr(A, B, Q, R, x0=x0, horizon=20).xs[-1].round(3)",
    "lqr to a reference": "oc.lqr(A, B, Q, R, x0=x0, horizon=20, x_ref=x0).cost",
    "gains alone": "oc.lqr(A, B, Q, R, horizon=20).K[0]",
    "solve": "repr(oc.lq.solve(oc.lq.LQ(A, B, Q, R, Q, x0=x0, horizon=20)))",
    "factor": "oc.lq.factor(oc.lq.LQ(A, B, Q, R, Q, x0=x0, horizon=20)).P",
    "covariances": "oc.lq.covariances(oc.lq.LQ(A, B, Q, R, Q, Q0=Q, horizon=20))",
    "dlqr": "oc.dlqr(A, B, Q, R)[0]",
    "dare": "oc.dare(A, B, Q, R)",
    "dlqe": "oc.lq.dlqe(A, C, Q, R)[0]",
    "filter": "oc.kalman_filter(model, ys).stds",
    "smoother": "repr(oc.kalman_smoother(model, ys))",
    "square roots": "oc.kalman_smoother(model, ys, square_root=True).status",
    "likelihood": "oc.log_likelihood(model, ys)",
    "smoothing": "oc.smoothing_problem(model, ys)",
}
FRESH = """
import json, sys
import jax, numpy as np
import optctl as oc
counted = [0]
def count(name, *_, **__):
    counted[0] += "backend_compile" in name
jax.monitoring.register_event_duration_secs_listener(count)
A, B, C, Q, R, x0 = [[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]], [[1.0, 0.0]], np.eye(2), np.eye(1), [1.0, 0.0]
model = oc.LinearGaussian(A, C, 0.01 * Q, R, [0.0, 0.0], Q)
ys = np.sin(np.arange(30.0))
made = {}
for name, call in json.loads(sys.argv[1]).items():
    counted[0] = 0
    eval(call)
    made[name] = counted[0]
print(json.dumps(made))
"""


def test_a_first_call_compiles_nothing():
    more = {"the score": "jax.grad(oc.log_likelihood)(model, ys).W", "two by JAX": "jax.numpy.ones(3) + 1"}
    run = subprocess.run(
        [sys.executable, "-c", FRESH, json.dumps(CALLS | more)], check=True, stdout=subprocess.PIPE, text=True
    )
    compiled = json.loads(run.stdout)
    assert compiled.pop("two by JAX") == 2  # what is compiled is counted
    assert compiled.pop("the score") == 1  # the one that `jax.grad` begins with
    assert compiled == dict.fromkeys(CALLS, 0)


def random_lq(rng, N=7, nx=3, nu=2, **changes):
    G = rng.normal(size=(N, nx + nu, nx + nu))
    H = G @ np.swapaxes(G, 1, 2) + np.eye(nx + nu)
    given = {
        "A": rng.normal(size=(N, nx, nx)), "B": rng.normal(size=(N, nx, nu)), "Q": H[:, :nx, :nx],
        "R": H[:, nx:, nx:], "M": H[:, :nx, nx:], "Qf": H[0, :nx, :nx], "c": rng.normal(size=nx),
        "q": rng.normal(size=(N, nx)), "r": rng.normal(size=nu), "qf": rng.normal(size=nx), "x0": rng.normal(size=nx),
    }  # fmt: skip
    return given | changes


def kinds(tree):
    return {isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)}


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.max(np.abs(b), initial=0.0))


@pytest.mark.parametrize("start", ["given", "free", "partly"])
def test_the_quadratic_core_equals_its_definition(rng, start):
    data = random_lq(rng)
    if start != "given":
        data |= {"x0": None, "Q0": np.diag([1.0, 2.0, 3.0]), "q0": rng.normal(size=3)}
    if start == "partly":
        data |= {"x0": rng.normal(size=3), "x0_free": (True, False, True)}
    lq = oc.lq.LQ(**data)
    plain, traced, defined = oc.lq.solve(lq), jax.jit(oc.lq.solve)(lq), oc.lq.solve(lq, "scan")
    assert kinds(lq) == kinds(plain) == {False}
    assert kinds(traced) == {True}
    for other in (traced, defined):
        assert_equal(plain, other)
    factors = oc.lq.factor(lq)
    assert kinds(factors) == {False}
    assert_equal(oc.lq.solve(lq, factors=factors), defined)
    assert_equal(oc.lq.covariances(lq, plain), jax.jit(oc.lq.covariances)(lq, traced))


def test_arrays_of_jax_are_numbers_too(rng):
    data = random_lq(rng)
    lq = oc.lq.LQ(**jax.tree.map(jnp.asarray, data))
    assert kinds(lq) == {True}  # a record keeps the kind that it is given
    assert kinds(oc.lq.solve(lq)) == {False}
    assert_equal(oc.lq.solve(lq), oc.lq.solve(oc.lq.LQ(**data)))
    slope = jax.grad(lambda x0: oc.lq.solve(lq.replace(x0=x0)).cost)(lq.x0)
    assert isinstance(slope, jax.Array)
    np.testing.assert_allclose(slope, oc.lq.solve(lq).costates[0], rtol=1e-10)
    many = jax.vmap(lambda x0: oc.lq.solve(oc.lq.LQ(**data).replace(x0=x0)).cost)(jnp.stack([lq.x0, 2 * lq.x0]))
    np.testing.assert_allclose(many[1], oc.lq.solve(lq.replace(x0=2 * lq.x0)).cost, rtol=1e-10)


def test_a_record_cannot_be_changed_behind_its_back(rng):
    data = random_lq(rng)
    lq = oc.lq.LQ(**data)
    before = lq.A.copy()
    data["A"][0] = 0.0
    np.testing.assert_array_equal(lq.A, before)
    with pytest.raises(ValueError, match="read-only"):
        lq.A[0, 0, 0] = 1.0
    assert lq.replace(x0=[0.0, 0.0, 0.0]).A is not data["A"]


def test_what_is_not_convex_is_told_on_the_host(rng):
    lq = oc.lq.LQ(**random_lq(rng, R=-50 * np.eye(2)))
    plain, defined = oc.lq.solve(lq), jax.jit(oc.lq.solve)(lq)
    assert plain.status == defined.status == oc.Status.NOT_CONVEX
    assert plain.stage == defined.stage
    assert plain.message == defined.message
    assert np.isnan(oc.lq.covariances(lq, plain)).all()


def test_covariances_by_the_filter_that_measures_nothing(rng):
    F, G = rng.normal(size=(2, 9, 3, 3))
    scatter, first = G @ np.swapaxes(G, 1, 2), np.eye(3)
    np.testing.assert_allclose(native.spread(F, scatter, first), riccati.spread(F, scatter, first), rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (6, 0)])
def test_the_infinite_horizon_equals_its_definition(rng, shape):
    nx, nu = shape
    A, B = 0.9 * rng.normal(size=(nx, nx)) / np.sqrt(nx), rng.normal(size=shape)
    plain, traced = (f(A, B, np.eye(nx), np.eye(nu)) for f in (oc.dlqr, jax.jit(oc.dlqr)))
    assert kinds(plain) == {False}
    assert kinds(traced) == {True}
    assert_equal(plain, traced)
    slope = jax.grad(lambda A: oc.dlqr(A, B, np.eye(nx), np.eye(nu))[1].sum())(A)
    assert_equal(slope, jax.jit(jax.grad(lambda A: oc.dlqr(A, B, np.eye(nx), np.eye(nu))[1].sum()))(A))


def random_series(rng, N=6, nx=3, ny=2, nu=2, varying=False):
    stages, times = ((N,), (N + 1,)) if varying else ((), ())

    def covariance(n, lead):
        G = rng.normal(size=(*lead, n, n))
        return G @ np.swapaxes(G, -1, -2) + np.eye(n)

    model = oc.LinearGaussian(
        0.5 * rng.normal(size=(*stages, nx, nx)), rng.normal(size=(*times, ny, nx)), covariance(nx, stages),
        covariance(ny, times), rng.normal(size=nx), covariance(nx, ()), B=rng.normal(size=(*stages, nx, nu)),
        D=rng.normal(size=(*times, ny, nu)), c=rng.normal(size=(*stages, nx)),
    )  # fmt: skip
    ys = rng.normal(size=(N + 1, ny))
    ys[2, 0] = ys[4] = np.nan
    return model, ys, rng.normal(size=(N + 1, nu))


@pytest.mark.big
@pytest.mark.parametrize("roots", [False, True])
@pytest.mark.parametrize("f", [oc.kalman_filter, oc.kalman_smoother, oc.log_likelihood])
def test_series_equal_their_definition(rng, f, roots):
    given = random_series(rng)
    plain, traced = (g(*given, square_root=roots) for g in (f, jax.jit(f, static_argnames="square_root")))
    assert kinds(given[0]) == kinds(plain) == {False}
    assert kinds(traced) == {True}
    assert_equal(plain, traced)
    assert_equal(plain, f(*given, square_root=roots, method="scan"))


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("last_input", [False, True])
def test_slopes_of_the_data_are_those_of_the_series(rng, varying, last_input):
    model, ys, us = random_series(rng, varying=varying)
    if not last_input:
        us, ys[-1] = us[:-1], np.nan
    given = jax.tree.map(jnp.asarray, (model, *check_series(model, ys, us)))
    series, pull_back = jax.vjp(series_of, *given)
    g = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), series)
    expected = jax.tree.map(lambda leaf: np.nan_to_num(np.asarray(leaf)), pull_back(jax.tree.map(jnp.asarray, g)))
    assert_equal(jax.tree.map(np.asarray, slopes_of_data(model, ys, us, g)), expected)


@pytest.mark.big
def test_the_score_without_jit_is_that_under_jit(rng):
    model, ys, us = random_series(rng)
    score = jax.grad(oc.log_likelihood, (0, 1, 2))
    plain = score(model, ys, us)
    assert kinds(plain) == {True}
    assert_equal(plain, jax.jit(score)(model, ys, us))
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), model)
    value, slope = jax.jvp(lambda model: oc.log_likelihood(model, ys, us), (model,), (direction,))
    dot = sum(np.sum(a * b) for a, b in zip(jax.tree.leaves(plain[0]), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose([value, slope], [oc.log_likelihood(model, ys, us), dot], rtol=1e-10)
    in_W = lambda W: oc.log_likelihood(model.replace(W=W), ys, us)
    second = jax.jit(jax.hessian(in_W))(model.W)
    for two in (jax.jacfwd(jax.grad(in_W)), jax.jacrev(jax.grad(in_W)), jax.jacfwd(jax.jacfwd(in_W))):
        assert_equal(two(model.W), second)
    series = jnp.stack([ys, ys + 1])
    many = jax.vmap(jax.grad(oc.log_likelihood, 1), in_axes=(None, 0, None))(model, series, us)
    assert_equal(many[1], jax.grad(oc.log_likelihood, 1)(model, ys + 1, us))


def test_known_slopes_are_linear_in_both_and_transpose(rng):
    a, b = ([rng.normal(size=shape) for shape in ((3,), (2, 2))] for _ in range(2))
    plain = lambda a, b: sum(jnp.sum(x * y) for x, y in zip(a, b, strict=True))
    known = lambda a, b: inner(a, b, np.float64)
    for f in (
        jax.grad(known),
        jax.grad(known, 1),
        jax.jit(jax.grad(known)),
        jax.hessian(lambda a, b: known(a, b) ** 2),
    ):
        assert jax.tree.leaves(f(a, b))
    for transform in (
        lambda f: f, jax.jit, lambda f: jax.grad(f, (0, 1)), lambda f: jax.hessian(lambda a, b: f(a, b) ** 2, (0, 1)),
        lambda f: jax.jacrev(jax.grad(lambda a, b: f(a, b) ** 2)),
    ):  # fmt: skip
        assert_equal(transform(known)(a, b), transform(plain)(a, b))
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), a)
    assert_equal(jax.vmap(jax.grad(known, 1), (0, None))(batch, b), batch)
