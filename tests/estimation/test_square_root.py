"""Square-root filter and smoother: equal to the covariance form, exact where that one fails, sound in float32."""

import dataclasses
import functools
from fractions import Fraction
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.estimation.filtering import _filter, _smoother
from optctl.estimation.square_root import root, triangular

METHODS = ("native", "scan")
root_filter, root_smoother, root_likelihood = (
    functools.partial(f, square_root=True) for f in (oc.kalman_filter, oc.kalman_smoother, oc.log_likelihood)
)


def covariance(rng, n, rank, stages=()):
    G = rng.normal(size=(*stages, n, rank))
    return G @ np.swapaxes(G, -1, -2) / rank


def random_model(rng, N, nx, ny, *, varying=False, rank=None, start_rank=None):
    stages, times = ((N,), (N + 1,)) if varying else ((), ())
    return oc.LinearGaussian(
        A=0.9 * rng.normal(size=(*stages, nx, nx)) / np.sqrt(nx),
        C=rng.normal(size=(*times, ny, nx)),
        W=covariance(rng, nx, rank or nx, stages),
        V=covariance(rng, ny, ny, times) + 0.1 * np.eye(ny),
        mean0=rng.normal(size=nx),
        cov0=covariance(rng, nx, start_rank or nx),
        c=rng.normal(size=(*stages, nx)),
    )


def random_measurements(rng, N, ny):
    ys = rng.normal(size=(N + 1, ny))
    ys[rng.random(ys.shape) < 0.2] = np.nan
    ys[N // 2] = np.nan
    return ys


def assert_posteriors_close(got, want, tolerance=1e-10):
    assert got.given == want.given
    for field in dataclasses.fields(want):
        a, b = getattr(got, field.name), getattr(want, field.name)
        if field.name != "given" and b is not None and b.size:
            scale = 1 + np.max(np.abs(b))
            np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance, err_msg=field.name)


def assert_sound(posterior):
    covs = np.asarray(posterior.covs)
    assert np.all(np.isfinite(covs))
    assert np.array_equal(covs, np.swapaxes(covs, 1, 2))
    assert np.all(np.diagonal(covs, axis1=1, axis2=2) >= 0)


# Exact values.


@pytest.mark.parametrize("method", METHODS)
def test_exact_rationals(method):
    model = oc.problems.local_level(1.0, 1.0, 1.0)
    post = root_smoother(model, [1.0, 2.0, 3.0], method=method)
    np.testing.assert_allclose(13 * post.means[:, 0], [12, 23, 31], rtol=1e-14)
    np.testing.assert_allclose(13 * post.covs[:, 0, 0], [5, 6, 8], rtol=1e-14)
    np.testing.assert_allclose(13 * post.lag_one_covs[:, 0, 0], [2, 3], rtol=1e-14)
    np.testing.assert_allclose(post.log_likelihood, -5.231597970652479, rtol=1e-14)
    np.testing.assert_allclose(root_likelihood(model, [1.0, 2.0, 3.0], method=method), -5.231597970652479, rtol=1e-14)
    post = root_filter(model, [1.0, np.nan, 3.0], method=method)
    np.testing.assert_allclose(post.means[:, 0], [1 / 2, 1 / 2, 16 / 7], rtol=1e-14)
    np.testing.assert_allclose(post.covs[:, 0, 0], [1 / 2, 3 / 2, 5 / 7], rtol=1e-14)
    np.testing.assert_allclose(post.log_likelihood, -3.953689283794145, rtol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_one_measurement_and_none(method):
    model = oc.problems.local_level(1.0, 1.0, 1.0)
    post = root_smoother(model, [1.0], method=method)
    np.testing.assert_allclose([post.means[0, 0], post.covs[0, 0, 0]], [0.5, 0.5])
    assert post.lag_one_covs.shape == (0, 1, 1)
    post = root_smoother(model, np.full(3, np.nan), method=method)
    np.testing.assert_allclose(post.covs[:, 0, 0], [1, 2, 3], rtol=1e-14)
    assert post.log_likelihood == 0


# Equal to the covariance form.

SIZES = [(1, 1), (4, 2), (2, 4)]
KINDS = {
    "regular": {},
    "singular W": {"rank": 1},
    "singular start": {"start_rank": 1},
    "both singular": {"rank": 1, "start_rank": 1},
    "varying": {"varying": True, "rank": 1, "start_rank": 2},
}


@pytest.mark.big
@pytest.mark.parametrize(("nx", "ny"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_covariance_form(nx, ny, kind, rng):
    N = 12
    model = random_model(rng, N, nx, ny, **KINDS[kind])
    ys = random_measurements(rng, N, ny)
    filtered, smoothed = oc.kalman_filter(model, ys), oc.kalman_smoother(model, ys)
    np.testing.assert_allclose(root_likelihood(model, ys), smoothed.log_likelihood, rtol=1e-11)
    for method in METHODS if nx == 4 else ("native",):
        assert_posteriors_close(root_filter(model, ys, method=method).raise_if_failed(), filtered)
        post = root_smoother(model, ys, method=method).raise_if_failed()
        assert_posteriors_close(post, smoothed)
        assert_sound(post)


@pytest.mark.parametrize(("nx", "ny"), [(6, 9), (9, 2), (30, 3)])
def test_native_of_all_sizes(nx, ny, rng):
    """Sizes that are compiled, and those that are not."""
    model = random_model(rng, 6, nx, ny, varying=nx == 5, rank=nx - 2)
    ys = random_measurements(rng, 6, ny)
    assert_posteriors_close(root_filter(model, ys), oc.kalman_filter(model, ys))
    assert_posteriors_close(root_smoother(model, ys), oc.kalman_smoother(model, ys))


@pytest.mark.parametrize("method", METHODS)
def test_states_that_repeat_each_other(method):
    """Two copies of one random walk, and a constant known exactly: predicted covariances of rank one."""
    one = oc.problems.local_level(0.01, 1.0, 1e6)
    T = np.array([[1.0, 3.0, 0.0]])
    copies = oc.LinearGaussian(np.eye(3), [[1.0, 0.0, 0.0]], T.T @ T, one.V, np.zeros(3), 1e6 * T.T @ T)
    ys = np.array([3.0, 1.0, np.nan, 4.0, 1.0, 5.0])
    want, got = root_smoother(one, ys), root_smoother(copies, ys, method=method)
    np.testing.assert_allclose(got.means, want.means * T, rtol=1e-12)
    np.testing.assert_allclose(got.covs, want.covs * (T.T @ T)[None], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got.lag_one_covs, want.lag_one_covs * (T.T @ T)[None], rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(got.log_likelihood, want.log_likelihood, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_uncertain_but_the_start(method):
    """W = 0 and an exact measurement: what was seen once is known at all times."""
    A = np.array([[1.0, 1.0], [0.0, 1.0]])
    model = oc.LinearGaussian(A, [[1.0, 0.0]], np.zeros((2, 2)), [[0.0]], np.zeros(2), np.eye(2))
    ys = np.array([1.0, 3.0, np.nan, np.nan])
    post = root_smoother(model, ys, method=method).raise_if_failed()
    np.testing.assert_allclose(post.means, [[1, 2], [3, 2], [5, 2], [7, 2]], rtol=1e-13)
    np.testing.assert_allclose(post.covs, 0, atol=1e-28)


# What the covariance form loses.


def integrator(order, dt, V, cov0):
    """White noise integrated `order` times, the last one measured: constant velocity, constant acceleration."""
    steps = range(order)
    A = [[dt ** (j - i) / factorial(j - i) if j >= i else 0.0 for j in steps] for i in steps]
    power = lambda i, j: 2 * order - 1 - i - j
    scale = lambda i: factorial(order - 1 - i)
    W = [[dt ** (power(i, j) - 1) / (power(i, j) * scale(i) * scale(j)) for j in steps] for i in steps]
    return oc.LinearGaussian(A, np.eye(1, order), W, [[V]], np.zeros(order), cov0 * np.eye(order))


def exact_smoothed_variances(model, n):
    """Rauch, Tung and Striebel in rational numbers, where the state is two-dimensional."""
    as_fractions = lambda m: np.vectorize(lambda v: Fraction(float(v)), otypes=[object])(np.asarray(m))
    A, C, W, V, P = map(as_fractions, (model.A, model.C, model.W, model.V, model.cov0))
    inverse = lambda M: np.array([[M[1, 1], -M[0, 1]], [-M[1, 0], M[0, 0]]]) / (M[0, 0] * M[1, 1] - M[0, 1] * M[1, 0])
    filtered, predicted = [], []
    for _ in range(n):
        predicted.append(P)
        P = P - P @ C.T @ C @ P / (C @ P @ C.T + V)[0, 0]
        filtered.append(P)
        P = A @ P @ A.T + W
    smoothed = [filtered[-1]]
    for t in range(n - 2, -1, -1):
        G = filtered[t] @ A.T @ inverse(predicted[t + 1])
        smoothed.insert(0, filtered[t] + G @ (smoothed[0] - predicted[t + 1]) @ G.T)
    return np.array(smoothed).astype(float)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "method"),
    [(np.float64, 1e-13, "native"), (np.float32, 1e-5, "native"), (np.float32, 1e-5, "scan")],
)
def test_a_vague_start_costs_no_digits(dtype, tolerance, method):
    """A start known to 1e4, measurements good to 1e-3: covariances to the last digits even in float32."""
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), integrator(2, 1.0, 1e-6, 1e8))
    exact = exact_smoothed_variances(model, 8)
    ys = np.arange(8.0, dtype=dtype)
    post = root_smoother(model, ys, method=method)
    assert post.covs.dtype == dtype
    spread = np.sqrt(np.diagonal(exact, axis1=1, axis2=2))
    relative = lambda covs: np.max(np.abs(covs - exact) / (spread[:, :, None] * spread[:, None, :]))
    assert relative(post.covs) < tolerance
    assert relative(oc.kalman_smoother(model, ys).covs) < tolerance


def simulate(model, N, rng):
    A, C, W, V, x = map(np.asarray, (model.A, model.C, model.W, model.V, model.mean0))
    noises, ys = rng.normal(size=(N, len(x))) @ np.linalg.cholesky(W).T, []
    for noise in noises:
        ys.append(C @ x)
        x = A @ x + noise
    return np.array([*ys, C @ x]) + np.sqrt(V[0]) * rng.normal(size=(N + 1, 1))


def errors(posterior, exact):
    """Of means and of covariances, relative to standard deviations."""
    spread = np.asarray(exact.stds)
    means = np.abs(np.asarray(posterior.means, float) - exact.means)
    covs = np.abs(np.asarray(posterior.covs, float) - exact.covs)
    return np.max(means / spread), np.max(covs / (spread[:, :, None] * spread[:, None, :]))


def test_float32_over_8000_steps(rng):
    """Constant velocity and acceleration, W with condition numbers up to 1e8, a vague start. `pytest -s` prints it.

    Covariances lose next to nothing. Means cannot be better than the measurements in float32, which are rounded to
    eps |y| beside a noise of 1; small gains add up many such errors.
    """
    print("\nerrors in standard deviations, smoothed variances against the exact ones")
    print(
        "order     dt  cond W  form         filtered: mean     cov   smoothed: mean     cov  lowest variance  eps |y|"
    )
    for order, dt in ((2, 1.0), (2, 0.1), (2, 3.5e-4), (3, 0.3), (3, 0.05)):
        model = integrator(order, dt, 1.0, 1e4)
        ys = simulate(model, 8000, rng).astype(np.float32)
        rounding = np.finfo(np.float32).eps * np.max(np.abs(ys))
        single = jax.tree.map(lambda leaf: leaf.astype(np.float32), model)
        double = jax.tree.map(lambda leaf: leaf.astype(np.float64), single)
        exact = [f(double, ys.astype(float)) for f in (root_filter, root_smoother)]
        for form, roots in (("covariances", False), ("square root", True)):
            posts = [f(single, ys, square_root=roots) for f in (oc.kalman_filter, oc.kalman_smoother)]
            (fm, fc), (sm, sc) = (errors(*pair) for pair in zip(posts, exact, strict=True))
            lowest = np.min(np.diagonal(posts[1].covs, axis1=1, axis2=2) / exact[1].stds ** 2)
            print(
                f"{order:5} {dt:6.2g} {np.linalg.cond(model.W):7.0e}  {form} {fm:15.1e} {fc:7.1e} {sm:16.1e} {sc:7.1e}"
                f" {lowest:16.6f} {rounding:8.1e}"
            )
        for post in posts:
            assert_sound(post)
        assert max(fc, sc) < 3e-5
        assert max(fm, sm) < 1e-3 + 100 * rounding


@pytest.mark.parametrize("method", METHODS)
def test_two_precise_measurements_of_one_thing(method):
    """Kaminski's example: in float32 the covariance form loses the second measurement, and roots take over."""
    model = oc.LinearGaussian([[1.0]], [[1.0], [1.0]], [[1.0]], 1e-3 * np.eye(2), [0.0], [[1e6]])
    ys = np.full((4, 2), 2.0)
    exact = oc.kalman_filter(model, ys)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), model)
    np.testing.assert_allclose(oc.kalman_filter(single, ys.astype(np.float32)).covs, exact.covs, rtol=1e-5)
    post = root_filter(single, ys.astype(np.float32), method=method).raise_if_failed()
    np.testing.assert_allclose(post.covs, exact.covs, rtol=1e-5)
    np.testing.assert_allclose(post.means, exact.means, rtol=1e-5)


# Failure, derivatives, batches, compilation.


@pytest.mark.parametrize("method", METHODS)
def test_a_singular_innovation_covariance_names_its_stage(method):
    C = np.stack([np.array([[1.0], [2.0 if t != 3 else 1.0]]) for t in range(6)])
    V = np.stack([np.eye(2) if t != 3 else np.zeros((2, 2)) for t in range(6)])
    model = oc.LinearGaussian([[1.0]], C, [[1.0]], V, [0.0], [[1.0]])
    post = root_filter(model, np.ones((6, 2)), method=method)
    assert post.stage == 3
    for moments in (post.means, post.covs):
        assert np.isfinite(moments[:3]).all()
        assert np.isnan(moments[3:]).all()
    for moments in (post.predicted_means, post.predicted_covs):
        assert np.isfinite(moments[:4]).all()
        assert np.isnan(moments[4:]).all()
    post = root_smoother(model, np.ones((6, 2)), method=method)
    assert post.stage == 3
    assert np.isnan(post.log_likelihood)
    for moments in (post.means, post.covs, post.lag_one_covs, post.costates):
        assert np.isnan(moments).all()
    if method == "native":
        with pytest.raises(RuntimeError, match="singular at stage 3"):
            root_likelihood(model, np.ones((6, 2)), method=method)


def test_nothing_uncertain_at_all_is_singular():
    zero = np.zeros((2, 2))
    model = oc.LinearGaussian(np.eye(2), np.eye(2), zero, zero, np.zeros(2), zero)
    assert root_filter(model, np.zeros((3, 2))).stage == 0


def test_derivatives_are_those_of_the_covariance_form(rng):
    model, direction = (random_model(rng, 5, 3, 2, rank=1) for _ in range(2))
    ys = random_measurements(rng, 5, 2)
    scores = [jax.grad(f)(model, ys) for f in (root_likelihood, oc.log_likelihood)]
    for a, b in zip(*map(jax.tree.leaves, scores), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)

    def slopes(run):
        moments = lambda model: (run(model, ys).means, run(model, ys).predicted_covs)
        return jax.jit(lambda m, d: jax.jvp(moments, (m,), (d,))[1])(model, direction)

    for a, b in zip(slopes(root_filter), slopes(oc.kalman_filter), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_a_batch_equals_its_members(rng):
    model = random_model(rng, 8, 4, 2)
    ys = np.stack([random_measurements(rng, 8, 2) for _ in range(5)])
    batch = jax.vmap(root_smoother, (None, 0))(model, ys)
    for i in range(5):
        one = root_smoother(model, ys[i])
        np.testing.assert_array_equal(batch.means[i], one.means)
        np.testing.assert_array_equal(batch.lag_one_covs[i], one.lag_one_covs)


def test_new_numbers_do_not_recompile(rng):
    model, other = (random_model(rng, 6, 2, 1) for _ in range(2))
    for f, cache in ((root_filter, _filter), (root_smoother, _smoother)):
        f(model, np.zeros((7, 1)), method="scan")
        count = cache.by_xla._cache_size()
        f(other, np.ones((7, 1)), method="scan")
        assert cache.by_xla._cache_size() == count > 0


def test_no_parallel_form():
    with pytest.raises(ValueError, match="`square_root` has no parallel form"):
        root_filter(oc.problems.local_level(1.0, 1.0, 1.0), [1.0], method="parallel")


# The two factorizations.


def test_roots_of_semidefinite_matrices(rng):
    for rank in (1, 3, 5):
        M = covariance(rng, 5, rank)
        R = np.asarray(root(jnp.asarray(M)))
        np.testing.assert_allclose(R.T @ R, M, atol=1e-14)
        assert np.array_equal(R, np.triu(R))
    assert np.sum(np.any(root(jnp.asarray(covariance(rng, 5, 1))) != 0, axis=1)) == 1
    np.testing.assert_array_equal(root(jnp.zeros((2, 2))), 0)


def test_reflections_keep_the_product_and_small_rows(rng):
    scales = 10.0 ** np.array([0, 3, -9, 6, -12])
    M = rng.normal(size=(5, 3)) * scales[:, None]
    top, rest = triangular(jnp.asarray(M), 1)
    both = np.concatenate([top, rest])
    np.testing.assert_allclose(both.T @ both, M.T @ M, rtol=1e-12)
    assert np.all(rest[:, 0] == 0)
    assert np.max(np.abs(rest[4])) < 1e-11


@pytest.mark.parametrize("method", ["native", "scan"])
def test_a_model_that_forgets_without_noise_is_reported(method):
    """Going back through A^{-1} spoils the covariances; the means come from the costates then."""
    model = oc.LinearGaussian(
        [[0.1, 0.8], [0.05, 0.9]], [[1.0, 0.0]], np.zeros((2, 2)), [[1.0]], np.zeros(2), np.eye(2)
    )
    ys = np.sin(np.arange(21.0))
    post = oc.kalman_smoother(model, ys, square_root=True, method=method)
    exact = oc.kalman_smoother(model, ys).raise_if_failed()
    np.testing.assert_allclose(post.means, exact.means, atol=1e-4)
    assert post.stage == 0
    good = np.isfinite(post.covs).all(axis=(1, 2))
    assert not good[0]
    np.testing.assert_allclose(post.covs[good], exact.covs[good], atol=1e-3)
    with pytest.raises(RuntimeError, match="lost its digits"):
        post.raise_if_failed()


@pytest.mark.parametrize("method", ["native", "scan"])
def test_what_is_no_covariance_is_not_taken_for_certainty(method):
    one = np.eye(1)

    @jax.jit
    def value(V, cov0):
        model = oc.LinearGaussian(one, one, one, V, [0.0], cov0)
        return oc.log_likelihood(model, [1.0, 2.0], square_root=True, method=method)

    assert np.isfinite(value(one, 0 * one))
    assert np.isnan(value(-0.5 * one, one))
    assert np.isnan(value(one, np.inf * one))


def test_derivatives_in_float32_are_those_of_double_precision():
    def mean(theta, scale, dtype):
        eye = jnp.eye(2, dtype=dtype)
        model = oc.LinearGaussian(
            np.array([[1, 0.1], [0, 1]], dtype), np.array([[1, 0]], dtype), 0.1 * theta * eye, np.eye(1, dtype=dtype),
            np.zeros(2, dtype), scale * eye,
        )  # fmt: skip
        ys = jnp.asarray(np.sin(np.arange(20)), dtype)
        return oc.kalman_smoother(model, ys, square_root=True).means[0, 1]

    want = jax.grad(mean)(1.0, 1e4, jnp.float64)
    for scale in (1e4, 1e8):
        np.testing.assert_allclose(jax.grad(mean)(jnp.float32(1.0), scale, jnp.float32), want, rtol=2e-3)


def test_without_measurements():
    eye = np.eye(2)
    model = oc.LinearGaussian(eye, np.zeros((0, 2)), eye, np.zeros((0, 0)), np.zeros(2), eye)
    for method in ("native", "scan"):
        post = oc.kalman_filter(model, np.zeros((3, 0)), square_root=True, method=method)
        np.testing.assert_allclose(post.covs[:, 0, 0], [1, 2, 3])
        assert post.log_likelihood == 0
