"""Priors, process noise and measurement noise of very different sizes: the answer keeps its digits, or says so.

The oracle is the textbook filter and smoother in decimal numbers of seventy digits, derivatives by differences.
"""

import decimal
import functools
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.estimation import kalman, measurements, parallel

METHODS = ["native", "scan", "parallel"]
TWO_PI = Decimal("6.28318530717958647692528676655900576839433879875021")
exact = np.vectorize(lambda x: Decimal(float(x)), otypes=[object])


@pytest.fixture(autouse=True)
def _seventy_digits():
    with decimal.localcontext() as context:
        context.prec = 70
        yield


def series_of(model, ys):
    return jax.tree.map(jnp.asarray, measurements.series_of(model, *measurements.check_series(model, ys)))


def inverse(M):
    """Gauss and Jordan."""
    n = len(M)
    rows = np.concatenate([M, exact(np.eye(n))], axis=1)
    for k in range(n):
        best = k + int(np.argmax([abs(x) for x in rows[k:, k]]))
        rows[[k, best]] = rows[[best, k]]
        rows[k] = rows[k] / rows[k, k]
        for i in range(n):
            if i != k:
                rows[i] = rows[i] - rows[i, k] * rows[k]
    return rows[:, n:]


def decimals(series):
    """Return the fields of a series, per stage, in decimals; z stays a list of floats, NaN where missing."""
    n = len(series.z)
    each = lambda field, count, ndim: np.broadcast_to(exact(field), (count, *np.shape(field)[-ndim:]))
    return {
        "A": each(series.A, n - 1, 2), "W": each(series.W, n - 1, 2), "b": each(series.b, n - 1, 1),
        "C": each(series.C, n, 2), "V": each(series.V, n, 2), "mean0": exact(series.mean0), "cov0": exact(series.cov0),
        "z": exact(series.z),
    }  # fmt: skip


def textbook(d, smooth=True):
    """Return filtered, predicted and smoothed moments, and the log-likelihood."""
    m, P, value = d["mean0"], d["cov0"], Decimal(0)
    filtered, predicted = [], []
    for t, z in enumerate(d["z"]):
        if t:
            A = d["A"][t - 1]
            m, P = A @ m + d["b"][t - 1], A @ P @ A.T + d["W"][t - 1]
        predicted.append((m, P))
        seen = [i for i, x in enumerate(z) if not x.is_nan()]
        if seen:
            C, V = d["C"][t][seen], d["V"][t][np.ix_(seen, seen)]
            S = C @ P @ C.T + V
            gain, v = P @ C.T @ inverse(S), z[seen] - C @ m
            for k in range(len(seen)):  # log det by the chain rule
                part = S[: k + 1, : k + 1]
                value -= (
                    TWO_PI * (part[k, k] - (part[k, :k] @ inverse(part[:k, :k]) @ part[:k, k] if k else 0))
                ).ln() / 2
            value -= v @ inverse(S) @ v / 2
            m, P = m + gain @ v, P - gain @ S @ gain.T
        filtered.append((m, P))
    smoothed = [filtered[-1]]
    for t in range(len(filtered) - 2 if smooth else -1, -1, -1):
        (m, P), (m_next, P_next), (ms, Ps) = filtered[t], predicted[t + 1], smoothed[0]
        G = P @ d["A"][t].T @ inverse(P_next)
        smoothed.insert(0, (m + G @ (ms - m_next), P + G @ (Ps - P_next) @ G.T))
    return filtered, predicted, smoothed, value


def tracker(R):
    """Acceleration noise of rank one, the position measured with variance R."""
    dt = 0.1
    g = np.array([dt * dt / 2, dt])
    ys = np.arange(9) * dt + 1e-3 * np.sin(3.0 * np.arange(9))  # as many as of `trend`: compiled once
    return oc.LinearGaussian(
        [[1, dt], [0, 1]], [[1.0, 0]], 0.02 * np.outer(g, g) + 1e-9 * np.eye(2), [[R]], [0.0, 0], np.eye(2)
    ), ys


def trend(prior):
    return oc.LinearGaussian(
        [[1, 1], [0, 1.0]], [[1.0, 0]], np.diag([1e-4, 4e-4]), [[0.0032]], np.zeros(2), prior * np.eye(2)
    ), np.sin(np.arange(9.0)) / 5


def regression(prior):
    """Constant coefficients, so that W = 0 and C varies."""
    t = np.arange(8.0)
    X = np.c_[np.ones(8), t, np.cos(3 * t)]
    return oc.LinearGaussian(np.eye(3), X[:, None], 1e-9 * np.eye(3), [[0.01]], np.zeros(3), prior * np.eye(3)), X @ [
        2.0,
        0.5,
        -1,
    ] + 0.1 * np.sin(17 * t)


def two_sensors(prior):
    """One precise, one not, of three states; with gaps, an offset and a model that changes."""
    rng = np.random.default_rng(5)
    N = 7
    A = np.eye(3) + 0.3 * rng.normal(size=(N, 3, 3))
    ys = rng.normal(size=(N + 1, 2))
    ys[2, 0] = ys[4, 1] = np.nan
    ys[6] = np.nan
    return oc.LinearGaussian(
        A, rng.normal(size=(2, 3)), 0.1 * np.eye(3), np.diag([1e-9, 1.0]), np.zeros(3), prior * np.eye(3), c=np.ones(3)
    ), ys


def gap(steps):
    """An unstable state that is not measured for some steps."""
    W = [0.501, 0.542, 1.858, 1.456, 0.518, 0.994, 0.698, 0.613, 2.741, 0.527, 0.819, 0.501]
    V = [0.699, 0.598, 0.657, 0.51, 0.808, 1.111, 0.5, 0.505, 0.764, 0.502, 1.368, 0.511, 0.671]
    ys = np.array([1.1, -0.4, -2.0, 0.3, 2.1, 0.8, -0.9, 0.2, -1.3, 1.726, 0.195, 1.343, -1.607])
    ys[9 - steps : 9] = np.nan
    return oc.LinearGaussian(
        [[2.2271405138423228]], [[-0.39]], np.reshape(W, (12, 1, 1)), np.reshape(V, (13, 1, 1)), [-1.634], [[0.689]]
    ), ys


CASES = {
    "tracker 1e-20": lambda: tracker(1e-20), "tracker 1e-12": lambda: tracker(1e-12), "trend 1e6": lambda: trend(1e6),
    "trend 1e10": lambda: trend(1e10), "regression 1e12": lambda: regression(1e12),
    "two sensors 1e10": lambda: two_sensors(1e10), "two sensors 1": lambda: two_sensors(1.0), "gap": lambda: gap(6),
}  # fmt: skip
PARAMETERS = [(name, "native") for name in CASES] + [
    ("tracker 1e-20", "scan"), ("trend 1e10", "scan"), ("two sensors 1e10", "scan"), ("trend 1e10", "parallel"),
]  # fmt: skip


def assert_moments(means, covs, want, tolerance=1e-6):
    spread = np.array([[float(P[i, i]) ** 0.5 for i in range(len(P))] for _, P in want])
    of_means = np.array([[float(x) for x in m] for m, _ in want])
    of_covs = np.array([[[float(x) for x in row] for row in P] for _, P in want])
    assert np.max(np.abs(covs - of_covs) / spread[:, :, None] / spread[:, None, :]) < tolerance
    assert np.max(np.abs(means - of_means) / (spread + 1e-8 * np.abs(of_means))) < 1e-5


@pytest.mark.big
@pytest.mark.parametrize(("name", "method"), PARAMETERS)
def test_moments_and_likelihood_keep_their_digits(name, method):
    model, ys = CASES[name]()
    filtered, predicted, smoothed, value = textbook(decimals(series_of(model, ys)))
    post = oc.kalman_filter(model, ys, method=method).raise_if_failed()
    assert_moments(post.means, post.covs, filtered)
    assert_moments(post.predicted_means, post.predicted_covs, predicted)
    np.testing.assert_allclose(post.log_likelihood, float(value), rtol=1e-8)
    np.testing.assert_allclose(oc.log_likelihood(model, ys, method=method), float(value), rtol=1e-7)
    post = oc.kalman_smoother(model, ys, method=method).raise_if_failed()
    assert_moments(post.means, post.covs, smoothed)
    assert np.all(np.isfinite(post.stds))


@functools.cache
def slopes(name):
    """Return a direction in each field, and the derivative of the textbook's likelihood along it."""
    model, ys = CASES[name]()
    series, rng = series_of(model, ys), np.random.default_rng(1)
    d, h, found = decimals(series), Decimal("1e-24"), {}
    for field in ("A", "C", "W", "V", "mean0", "cov0", "b", "z"):
        leaf = np.asarray(getattr(series, field))
        direction = rng.normal(size=leaf.shape) * (np.abs(leaf) if field in ("W", "V", "cov0") else 1.0)
        direction = np.where(np.isnan(leaf), 0.0, direction)
        if field in ("W", "V", "cov0"):
            direction = direction + np.swapaxes(direction, -1, -2)
        if field == "mean0":
            direction = direction * np.sqrt(np.diag(model.cov0))
        step = np.broadcast_to(exact(direction), d[field].shape) * h
        up, down = (textbook({**d, field: d[field] + sign * step}, smooth=False)[3] for sign in (1, -1))
        found[field] = direction, float((up - down) / (2 * h))
    return found


@pytest.mark.big
@pytest.mark.parametrize(("name", "method"), PARAMETERS)
def test_the_gradient_of_the_likelihood_keeps_its_digits(name, method):
    """In every field of the model, against differences of the textbook; moments move by standard deviations."""
    model, ys = CASES[name]()
    of_model, of_ys = jax.grad(lambda model, ys: oc.log_likelihood(model, ys, method=method), (0, 1))(
        model, jnp.asarray(ys)
    )
    got = {**vars(of_model), "b": of_model.c, "z": np.reshape(of_ys, (len(ys), -1))}
    for field, (direction, want) in slopes(name).items():
        terms = np.asarray(got[field]) * direction
        assert abs(np.nansum(terms) - want) <= 1e-5 * abs(want) + 1e-7 * (np.nansum(np.abs(terms)) + 1), field


def test_least_squares_with_a_prior_that_says_nothing():
    """A regression as a state-space model, prior 1e12: standard deviations are those of least squares."""
    t = np.arange(8.0)
    X = np.c_[np.ones(8), t, np.cos(3 * t)]
    y = X @ [2.0, 0.5, -1] + 0.1 * np.sin(17 * t)
    model = oc.LinearGaussian(np.eye(3), X[:, None], np.zeros((3, 3)), [[0.01]], np.zeros(3), 1e12 * np.eye(3))
    want = np.sqrt(np.diag(0.01 * np.linalg.inv(X.T @ X)))
    for method in METHODS:
        np.testing.assert_allclose(oc.kalman_filter(model, y, method=method).stds[-1], want, rtol=1e-6)


def test_position_known_to_1e_minus_10_over_many_steps():
    """R far below a singular W: smoothed variances are R, but for what 40 measurements tell of each other."""
    dt = 0.1
    g = np.array([dt * dt / 2, dt])
    ys = np.arange(40) * dt + 1e-3 * np.random.default_rng(0).normal(size=40)
    for R in (1e-20, 1e-12):
        model = oc.LinearGaussian([[1, dt], [0, 1]], [[1.0, 0]], 0.02 * np.outer(g, g), [[R]], [0.0, 0], np.eye(2))
        post = oc.kalman_smoother(model, ys).raise_if_failed()
        want = textbook(decimals(series_of(model, ys)))[2]
        np.testing.assert_allclose(post.covs[:, 0, 0], [float(P[0, 0]) for _, P in want], rtol=1e-12)
        assert np.all(np.isfinite(post.stds))


def test_each_member_of_a_batch_takes_its_own_form():
    """Under vmap and jit; a well conditioned member is what it is alone, to the last bit."""
    priors = jnp.array([1.0, 1e10, 1e3])
    _, ys = trend(1.0)

    def model(prior):
        base, _ = trend(1.0)
        return oc.LinearGaussian(base.A, base.C, base.W, base.V, base.mean0, prior * jnp.eye(2))

    functions = (
        lambda k: oc.kalman_filter(model(k), ys).covs,
        lambda k: oc.kalman_smoother(model(k), ys).covs,
        lambda k: oc.log_likelihood(model(k), ys),
        jax.grad(lambda k: oc.log_likelihood(model(k), ys)),
    )
    for f in functions:
        together = jax.jit(jax.vmap(f))(priors)
        for k, prior in enumerate(priors):
            np.testing.assert_allclose(together[k], f(prior), rtol=1e-12)


@pytest.mark.big
def test_single_precision_keeps_its_digits():
    model, ys = trend(1e4)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), model)
    for f in (oc.kalman_filter, oc.kalman_smoother):
        for method in ("native", "scan"):
            got, want = f(single, ys.astype(np.float32), method=method), f(model, ys)
            assert got.covs.dtype == np.float32
            np.testing.assert_allclose(got.stds, want.stds, rtol=1e-3)
    slope = jax.grad(lambda m: oc.log_likelihood(m, ys.astype(np.float32)))(single)
    want = jax.grad(lambda m: oc.log_likelihood(m, ys))(model)
    np.testing.assert_allclose(slope.V, want.V, rtol=2e-3)
    np.testing.assert_allclose(slope.W, want.W, rtol=2e-2, atol=2e-2 * np.abs(want.W).max())


@pytest.mark.big
@pytest.mark.parametrize("method", METHODS)
def test_what_is_known_exactly_has_no_variance(method):
    """Without measurement noise the measured variance is zero, never below."""
    model = oc.LinearGaussian(
        [[0.7, 1.0], [0.2, 0.0]], [[1.0, 0.0]], [[1.0, 0.3], [0.3, 0.1]], [[0.0]], np.zeros(2), np.eye(2)
    )
    for f in (oc.kalman_filter, oc.kalman_smoother):
        post = f(model, np.sin(np.arange(9.0)), method=method).raise_if_failed()
        assert np.all(np.isfinite(post.stds))
        np.testing.assert_allclose(post.covs[:, 0, 0], 0, atol=1e-15)


@pytest.mark.big
@pytest.mark.parametrize("method", METHODS)
def test_a_variance_that_overflows_is_not_called_singular(method):
    """Nothing is measured for 24 steps of an unstable model: (2^64)^16 is beyond the largest number."""
    model = oc.LinearGaussian([[2.0**32]], [[1.0]], [[1.0]], [[1.0]], [0.0], [[1.0]])
    post = oc.kalman_filter(model, np.r_[1.0, np.full(24, np.nan)], method=method)
    assert not post
    assert post.status == oc.Status.OVERFLOW
    assert 16 <= post.stage <= 17
    with pytest.raises(RuntimeError, match=r"not finite at stage 1[67]: it overflows"):
        post.raise_if_failed()


def test_well_conditioned_models_stay_with_covariances():
    """The error that is followed is that which occurs, within an order or two, and far from the limit here."""
    model, ys = two_sensors(1.0)
    model = model.replace(V=np.eye(2))

    @jax.jit
    def followed(series):
        f = kalman.forward(series)
        E = kalman.rounding(series, f)
        return f, E, kalman.loses_variances(f, E), kalman.loses_likelihood(series, f, E)

    *_, of_variances, of_likelihood = followed(series_of(model, ys))
    assert not of_variances
    assert not of_likelihood
    vague = series_of(*trend(1e8))
    f, E, *_ = followed(vague)
    E = np.asarray(E) * np.finfo(float).eps
    want = np.array([[[float(x) for x in row] for row in P] for _, P in textbook(decimals(vague))[0]])
    error = np.abs(np.diagonal(f.covs - want, axis1=1, axis2=2))
    bound = np.diagonal(E, axis1=1, axis2=2)
    assert np.all(error <= 10 * bound)
    assert np.max(error[1:] / bound[1:]) > 1e-3


def test_rounding_that_n_carries_from_later_stages_is_followed():
    """After a gap, n is small beside Lambda, whose rounding it keeps: kernel and definition see it alike."""

    @jax.jit
    def followed(series):
        f = kalman.forward(series)
        adjoint = kalman.backward(series, f)
        covs = kalman.smoothed(series, f, adjoint)[1]
        E = kalman.rounding_back(series, f, adjoint)
        bound = jnp.finfo(E.dtype).eps * (f.covs[:-1] + f.covs[:-1] @ E @ f.covs[:-1])[:, 0, 0]
        return bound, kalman.loses_smoothed(f, covs, E), parallel.rounding_back(series, f, adjoint) - E, E

    lost = []
    for steps in range(8):
        model, ys = gap(steps)
        bound, loses, difference, E = followed(series_of(model, ys))
        np.testing.assert_allclose(difference / E, 0, atol=1e-9)
        post = oc.kalman_smoother(model, ys, method="native")
        roots = oc.kalman_smoother(model, ys, method="native", square_root=True)
        assert np.all(post.covs == roots.covs) == loses, steps
        want = np.array([float(P[0, 0]) for _, P in textbook(decimals(series_of(model, ys)))[2]])
        error = np.abs(post.covs[:, 0, 0] - want)
        assert np.all(error[:-1] <= 10 * bound)
        assert loses or error.max() > 0.01 * bound.max()
        lost.append(bool(loses))
    assert lost == [False] * 5 + [True] * 3


def test_replacing_inputs_by_numpy_matrices():
    eye = np.eye(2)
    model = oc.LinearGaussian(eye, [[1.0, 0]], eye, [[1.0]], np.zeros(2), eye, B=np.ones((2, 3)))
    np.testing.assert_array_equal(model.replace(B=2 * np.ones((2, 3))).B, 2 * np.ones((2, 3)))
    wider = model.replace(B=np.ones((2, 4)), D=np.ones((1, 4)))
    assert wider.nu == 4
    assert model.replace(B=None).nu == 0
