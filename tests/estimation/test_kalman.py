"""Filter, smoother and likelihood on every method: known values, the dense joint Gaussian, derivatives, bad input."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import optctl as oc
from tests.oracles import central_difference, joint_gaussian, kalman_rts

METHODS = ("native", "scan", "parallel")
NILE = np.asarray(oc.data.nile()[1])


def nile_model(V=15099.0, W=1469.1, cov0=1e7):
    return oc.problems.local_level(V, W, cov0)


@functools.partial(jax.jit, static_argnums=2)
def value_and_score(model, ys, method):
    return jax.value_and_grad(functools.partial(oc.log_likelihood, method=method))(model, ys)


# Known values.


@pytest.mark.big
@pytest.mark.parametrize("method", METHODS)
def test_nile_likelihood_moments_and_score(method):
    value, _ = value_and_score(nile_model(), NILE, method)
    np.testing.assert_allclose(value, -641.5855784595, atol=1e-9)
    filtered, smoothed = (f(nile_model(), NILE, method=method) for f in (oc.kalman_filter, oc.kalman_smoother))
    np.testing.assert_allclose(filtered.log_likelihood, value, rtol=1e-14)
    for t, fm, fv, sm, sv in [
        (1, 1118.311462, 15076.236391, 1111.220258, 4030.532767),
        (2, 1140.108439, 7894.557531, 1110.529257, 3242.056999),
        (20, 1026.139434, 4032.196124, 1073.091229, 2326.769584),
        (50, 849.070566, 4032.157942, 834.763259, 2326.756870),
        (100, 798.370293, 4032.157942, 798.370293, 4032.157942),
    ]:
        got = [a[t - 1].ravel()[0] for a in (filtered.means, filtered.covs, smoothed.means, smoothed.covs)]
        np.testing.assert_allclose(got, [fm, fv, sm, sv], atol=6e-7)
    for V, W, value, dV, dW in [
        (10000.0, 10000.0, -645.8057502836, -1.2386628610832e-4, -6.1022708331677e-4),
        (20000.0, 500.0, -642.7763204419, -3.1091769347579e-4, 1.57351023648370e-3),
    ]:
        got, g = value_and_score(nile_model(V, W), NILE, method)
        np.testing.assert_allclose(got, value, atol=1e-9)
        np.testing.assert_allclose([g.V[0, 0], g.W[0, 0]], [dV, dW], rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_nile_with_gaps(method):
    ys = np.array(NILE)
    ys[20:40] = ys[60:80] = np.nan
    value, _ = value_and_score(nile_model(), ys, method)
    np.testing.assert_allclose(value, -389.6269775256, atol=1e-9)
    filtered, smoothed = (f(nile_model(), ys, method=method) for f in (oc.kalman_filter, oc.kalman_smoother))
    got = [a[29].ravel()[0] for a in (filtered.means, filtered.covs, smoothed.means, smoothed.covs)]
    np.testing.assert_allclose(got, [1026.139434, 18723.196124, 903.420003, 9715.005893], atol=6e-7)


@pytest.mark.parametrize(
    ("diffuse", "V", "W", "best"),
    [(False, 15099.6864, 1468.5001, -641.5855783461), (True, 15098.5183, 1469.1769, -632.5456251030)],
)
def test_nile_maximum_likelihood(diffuse, V, W, best):
    """Exact diffuse: the first observation gives no term, it is the prior of the second state."""

    @jax.jit
    @jax.value_and_grad
    def loss(log_variances):
        v, w = jnp.exp(log_variances)
        model = nile_model(v, w)
        if diffuse:
            moments = {"mean0": jnp.asarray(NILE[:1]), "cov0": (v + w)[None, None]}
            model = oc.LinearGaussian(model.A, model.C, model.W, model.V, **moments)
        return -oc.log_likelihood(model, NILE[1:] if diffuse else NILE)

    start = np.log([10000.0, 10000.0])
    found = scipy.optimize.minimize(lambda z: tuple(map(np.asarray, loss(z))), start, jac=True, options={"gtol": 1e-9})
    np.testing.assert_allclose(-found.fun, best, atol=1e-8)
    np.testing.assert_allclose(np.exp(found.x), [V, W], rtol=1e-3)
    if diffuse:
        np.testing.assert_allclose(-loss(np.log([15099.0, 1469.1]))[0], -632.5456251157, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_exact_rationals(method):
    model = nile_model(1.0, 1.0, 1.0)
    after = [np.nan] * (len(NILE) - 3)  # what is not measured afterwards changes nothing, and nothing is compiled anew
    filtered, smoothed = (
        f(model, [1.0, 2.0, 3.0, *after], method=method) for f in (oc.kalman_filter, oc.kalman_smoother)
    )
    np.testing.assert_allclose(filtered.means[:3, 0], [1 / 2, 7 / 5, 31 / 13], rtol=1e-14)
    np.testing.assert_allclose(filtered.covs[:3, 0, 0], [1 / 2, 3 / 5, 8 / 13], rtol=1e-14)
    np.testing.assert_allclose(13 * smoothed.means[:3, 0], [12, 23, 31], rtol=1e-14)
    np.testing.assert_allclose(13 * smoothed.covs[:3, 0, 0], [5, 6, 8], rtol=1e-14)
    np.testing.assert_allclose(13 * smoothed.lag_one_covs[:2, 0, 0], [2, 3], rtol=1e-14)
    np.testing.assert_allclose(filtered.log_likelihood, -5.231597970652479, rtol=1e-14)
    gap = [1.0, np.nan, 3.0, *after]
    filtered, smoothed = (f(model, gap, method=method) for f in (oc.kalman_filter, oc.kalman_smoother))
    np.testing.assert_allclose(filtered.means[:3, 0], [1 / 2, 1 / 2, 16 / 7], rtol=1e-14)
    np.testing.assert_allclose(filtered.covs[:3, 0, 0], [1 / 2, 3 / 2, 5 / 7], rtol=1e-14)
    np.testing.assert_allclose(7 * smoothed.means[:3, 0], [6, 11, 16], rtol=1e-14)
    np.testing.assert_allclose(7 * smoothed.covs[:3, 0, 0], [3, 6, 5], rtol=1e-14)
    np.testing.assert_allclose(7 * smoothed.lag_one_covs[:2, 0, 0], [2, 3], rtol=1e-14)
    np.testing.assert_allclose(filtered.log_likelihood, -3.953689283794145, rtol=1e-14)


@pytest.mark.big
@pytest.mark.parametrize("method", METHODS)
def test_two_states(method):
    model = oc.LinearGaussian(
        A=[[1.0, 1.0], [0.0, 1.0]], C=[[0.5, -0.3]], W=2 * np.eye(2), V=[[0.5]],
        mean0=[1.0, 1.0], cov0=[[1.0, 0.1], [0.1, 1.0]],
    )  # fmt: skip
    ys = [np.nan, 1.0, 2.0, 3.0, *[np.nan] * 26]  # as many as in the test of vague priors
    filtered, smoothed = (f(model, ys, method=method) for f in (oc.kalman_filter, oc.kalman_smoother))
    expected = [(2.3563758389, 0.9295302013), (4.3915325861, 1.1514893011), (6.7190624359, 1.5281061414)]
    np.testing.assert_allclose(filtered.means[1:4], expected, atol=6e-11)
    np.testing.assert_allclose(
        filtered.covs[3], [[4.3902465860, 3.9019440665], [3.9019440665, 5.4095730447]], atol=6e-11
    )
    expected = [(2.9272501150, 1.6358250940), (4.8744742962, 1.6467868906), filtered.means[3]]
    np.testing.assert_allclose(smoothed.means[1:4], expected, atol=6e-11)


# The dense joint Gaussian: singular W, unit roots, inputs, offsets, matrices that vary, missing components.


def random_model(rng, n, nx, ny, nu=0, varying=False):
    stages, times = ((n - 1,), (n,)) if varying else ((), ())
    G = rng.normal(size=(*stages, nx, max(nx - 1, 1)))
    v = rng.normal(size=(*times, ny, ny))
    A = 0.7 * rng.normal(size=(*stages, nx, nx)) / np.sqrt(nx)
    A[..., 0, :] = np.eye(nx)[0]  # a unit root
    F = rng.normal(size=(nx, nx))
    return oc.LinearGaussian(
        A, C=rng.normal(size=(*times, ny, nx)), W=G @ np.swapaxes(G, -1, -2),
        V=v @ np.swapaxes(v, -1, -2) / ny + 0.1 * np.eye(ny), mean0=rng.normal(size=nx), cov0=F @ F.T,
        B=rng.normal(size=(nx, nu)) if nu else None, D=rng.normal(size=(ny, nu)) if nu else None,
        c=rng.normal(size=(*stages, nx)),
    )  # fmt: skip


def dense(model, ys, us, seen):
    """`model` is a dictionary of arrays; covariances count by their symmetric part."""
    n, nx = len(ys), len(model["mean0"])
    every = lambda name, k: np.broadcast_to(model[name], (k, *model[name].shape[-2:]))
    symmetric = lambda m: (m + np.swapaxes(m, -1, -2)) / 2
    b = np.broadcast_to(model["c"], (n - 1, nx))
    if us is not None:
        b, ys = b + us[:-1] @ model["B"].T, ys - us @ model["D"].T
    W, V, cov0 = symmetric(every("W", n - 1)), symmetric(every("V", n)), symmetric(model["cov0"])
    return joint_gaussian(every("A", n - 1), every("C", n), W, V, model["mean0"], cov0, ys, b, seen)


def dense_slopes(model, ys, us, seen):
    """Return the derivatives of the likelihood in all entries of the model, of ys and of us, by complex steps."""
    fields = {name: np.asarray(leaf) for name, leaf in vars(model).items() if hasattr(leaf, "dtype")}
    numbers = fields | {"ys": np.where(seen, ys, 0.0)} | ({} if us is None else {"us": us})
    slopes = {}
    for name, leaf in numbers.items():
        slopes[name] = np.empty(leaf.shape)
        for i in np.ndindex(leaf.shape):
            z = leaf.astype(complex)
            z[i] += 1e-30j
            changed = numbers | {name: z}
            slopes[name][i] = dense(changed, changed["ys"], changed.get("us"), seen)[2].imag / 1e-30
    return slopes


def assert_trees_close(got, want, tolerance):
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True)
    for (path, a), b in pairs:
        if a.size:
            scale = 1 + np.abs(b).max()
            np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


CASES = [(8, 3, 2, 1, False), (6, 2, 3, 0, True)]


@pytest.mark.big
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_everything_equals_the_dense_joint_gaussian(method, case, rng):
    n, nx, ny, nu, varying = case
    model = random_model(rng, n, nx, ny, nu, varying)
    ys = rng.normal(size=(n, ny))
    ys[2], ys[4, 0], ys[n - 1, 1] = np.nan, np.nan, np.nan
    us = rng.normal(size=(n, nu)) if nu else None
    seen = np.isfinite(ys)
    means, cov, loglik = dense({name: np.asarray(leaf) for name, leaf in vars(model).items()}, ys, us, seen)
    post = oc.kalman_smoother(model, ys, us, method=method).raise_if_failed()
    np.testing.assert_allclose(post.log_likelihood, loglik, rtol=1e-11)
    np.testing.assert_allclose(post.means, means, atol=1e-10)
    blocks = np.asarray(cov).reshape(n, nx, n, nx)
    np.testing.assert_allclose(post.covs, [blocks[t, :, t] for t in range(n)], atol=1e-10)
    np.testing.assert_allclose(post.lag_one_covs, [blocks[t + 1, :, t] for t in range(n - 1)], atol=1e-10)
    with_ys = jax.jit(jax.grad(lambda m, y, u: oc.log_likelihood(m, y, u, method=method), (0, 1, 2) if nu else (0, 1)))
    want = dense_slopes(model, ys, us, seen)
    assert np.all((want["ys"] != 0) == seen)
    of_model, *of_data = with_ys(model, ys, us)
    got = vars(of_model) | dict(zip(("ys", "us"), of_data, strict=False))
    assert_trees_close({name: got[name] for name in want}, want, 1e-9)


@pytest.mark.big
@pytest.mark.parametrize(("nx", "ny"), [(3, 1), (2, 6), (13, 5)])
def test_native_of_all_sizes_equals_the_definition(nx, ny, rng):
    n = 7
    model = random_model(rng, n, nx, ny, varying=nx == 3)
    ys = rng.normal(size=(n, ny))
    ys[3], ys[5, 0] = np.nan, np.nan
    native = oc.kalman_smoother(model, ys, method="native").raise_if_failed()
    assert_trees_close(native, oc.kalman_smoother(model, ys, method="scan"), 1e-9)
    if nx == 13:  # the filter is the smoother's first half
        assert_trees_close(
            oc.kalman_filter(model, ys, method="native"), oc.kalman_filter(model, ys, method="scan"), 1e-10
        )
    assert_trees_close(value_and_score(model, ys, "native"), value_and_score(model, ys, "scan"), 1e-9)
    if nx != 3:
        np.testing.assert_allclose(native.log_likelihood, textbook_likelihood(model, ys), rtol=1e-10)


def textbook_likelihood(model, ys):
    """The textbook loop has no offset: carry it in an extra state that stays one."""
    nx = model.nx
    A = np.block([[np.asarray(model.A), np.asarray(model.c)[:, None]], [np.zeros((1, nx)), np.ones((1, 1))]])
    C = np.column_stack([model.C, np.zeros(model.ny)])
    pad = lambda m: np.block([[np.asarray(m), np.zeros((nx, 1))], [np.zeros((1, nx + 1))]])
    mean0 = np.append(model.mean0, 1.0)
    return kalman_rts(A, C, pad(model.W), np.asarray(model.V), mean0, pad(model.cov0), ys, smooth=False)[2]


@pytest.mark.big
def test_a_unit_root_with_singular_noise_over_many_steps(rng):
    """Integrated random walk: W has rank one; serial and parallel agree over 500 steps, the score with the textbook."""
    A, G = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.005], [0.1]])
    model = oc.LinearGaussian(A, [[1.0, 0.0]], G @ G.T, [[1.0]], [0.0, 0.0], np.eye(2))
    ys = np.cumsum(np.cumsum(0.01 * rng.normal(size=500))) + rng.normal(size=500)
    native, parallel = (oc.kalman_smoother(model, ys, method=method) for method in ("native", "parallel"))
    assert_trees_close(native, parallel, 1e-10)
    score, h = value_and_score(model, ys, "native")[1], 1e-4
    for name, direction in (
        ("W", G @ G.T),
        ("V", np.eye(1)),
        ("cov0", np.eye(2)),
        ("A", np.array([[0, 0], [0, 1e-3]])),
    ):
        up, down = (textbook_likelihood(shifted(model, name, s * h * direction), ys[:, None]) for s in (1, -1))
        np.testing.assert_allclose(np.sum(getattr(score, name) * direction), (up - down) / (2 * h), rtol=1e-5)


def shifted(model, name, by):
    return types.SimpleNamespace(**{**vars(model), "nx": model.nx, "ny": model.ny, name: getattr(model, name) + by})


# Duality.


def test_the_smoother_is_the_quadratic_core_with_noise_as_input(rng):
    model = random_model(rng, 12, 3, 2)
    ys = rng.normal(size=(12, 2))
    ys[4, 0] = np.nan
    post = oc.kalman_smoother(model, ys)
    problem = oc.smoothing_problem(model, ys)
    sol = oc.lq.solve(oc.lq.LQ.from_problem(problem)).raise_if_failed()
    np.testing.assert_allclose(sol.xs, post.means, atol=1e-9)
    np.testing.assert_allclose(sol.costates, post.costates, atol=1e-9)
    np.testing.assert_allclose(oc.lq.covariances(problem), post.covs, atol=1e-9)


# Derivatives of filter and smoother.


def test_derivatives_of_the_moments(rng):
    method = "native"
    model = random_model(rng, 5, 2, 1)
    model = oc.LinearGaussian(**{**vars(model), "W": model.W + 0.1 * jnp.eye(2)})
    ys = rng.normal(size=(5, 1))
    ys[2] = np.nan
    post = oc.kalman_smoother(model, ys)
    weights = [rng.normal(size=v.shape) for v in (post.means, post.covs, post.lag_one_covs, post.costates)]

    @jax.jit
    def value(A, W, V, ys):
        m = oc.LinearGaussian(**{**vars(model), "A": A, "W": (W + W.T) / 2, "V": V})
        s, f = oc.kalman_smoother(m, ys, method=method), oc.kalman_filter(m, ys, method=method)
        parts = (s.means, s.covs, s.lag_one_covs, s.costates)
        total = sum(jnp.sum(w * part) for w, part in zip(weights, parts, strict=True))
        return total + jnp.sum(f.means * weights[0]) + jnp.sum(f.predicted_covs * weights[1])

    point = (model.A, model.W, model.V, jnp.asarray(ys))
    gradient = jax.jit(jax.grad(value, (0, 1, 2, 3)))(*point)
    for i in range(3):
        slopes = central_difference(lambda z, i=i: value(*point[:i], jnp.asarray(z), *point[i + 1 :]), point[i])
        np.testing.assert_allclose(gradient[i], slopes, rtol=1e-6, atol=1e-7)
    assert gradient[3][2] == 0
    assert np.all(np.asarray(gradient[3])[[0, 1, 3, 4]] != 0)


def test_second_derivative_of_the_likelihood():
    ys = jnp.asarray(NILE[:12])
    loglik = lambda v: oc.log_likelihood(nile_model(v[0], v[1]), ys)
    at = jnp.array([15099.0, 1469.1])
    H = jax.jit(jax.hessian(loglik))(at)
    gradient = jax.jit(jax.grad(loglik))
    for i, e in enumerate(np.eye(2)):
        np.testing.assert_allclose(H[i], (gradient(at + e) - gradient(at - e)) / 2, rtol=1e-5)
    forward = jax.jvp(loglik, (at,), (jnp.array([1.0, 2.0]),))[1]
    np.testing.assert_allclose(forward, gradient(at) @ jnp.array([1.0, 2.0]), rtol=1e-12)


# Batches, compilation, types.


def test_vmap_over_series_and_over_models(rng):
    model = nile_model(1.0, 0.5, 4.0)
    ys = rng.normal(size=(5, 30))
    ys[1, 7] = np.nan
    batch = jax.vmap(oc.kalman_smoother, (None, 0))(model, ys)
    gradient = jax.vmap(jax.grad(oc.log_likelihood), (None, 0))(model, ys)
    Vs = jnp.array([0.5, 2.0])
    over_models = jax.vmap(lambda V: jax.vmap(lambda y: oc.log_likelihood(nile_model(V, 0.5, 4.0), y))(ys))(Vs)
    assert "batch" in repr(batch)
    for i in (0, 1, 4):
        one = oc.kalman_smoother(model, ys[i], method="scan")
        np.testing.assert_allclose(batch.means[i], one.means, atol=1e-12)
        np.testing.assert_allclose(batch.covs[i], one.covs, atol=1e-12)
        np.testing.assert_allclose(gradient.W[i], jax.grad(oc.log_likelihood)(model, ys[i]).W, rtol=1e-12)
        np.testing.assert_allclose(over_models[1, i], oc.log_likelihood(nile_model(2.0, 0.5, 4.0), ys[i]), rtol=1e-12)


def test_new_numbers_do_not_recompile():
    from optctl.estimation.filtering import _smoother

    oc.kalman_smoother(nile_model(), NILE, method="scan")
    count = _smoother.by_xla._cache_size()
    oc.kalman_smoother(nile_model(1.0, 2.0), NILE + 1, method="scan")
    assert _smoother.by_xla._cache_size() == count > 0


def test_float32():
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), nile_model(1.0, 0.5, 4.0))
    ys = (NILE[:10] - 900).astype(np.float32) / 100
    for method in METHODS:
        post = oc.kalman_smoother(single, ys, method=method)
        assert post.means.dtype == post.covs.dtype == np.float32
        exact = oc.kalman_smoother(nile_model(1.0, 0.5, 4.0), ys.astype(float))
        np.testing.assert_allclose(post.means, exact.means, atol=1e-5)


def test_one_measurement_only():
    post = oc.kalman_smoother(nile_model(1.0, 1.0, 1.0), [1.0])
    np.testing.assert_allclose([post.means[0, 0], post.covs[0, 0, 0]], [0.5, 0.5])
    assert post.lag_one_covs.shape == (0, 1, 1)


def test_nothing_measured_is_the_prior():
    post = oc.kalman_smoother(nile_model(1.0, 1.0, 1.0), np.full(3, np.nan))
    np.testing.assert_allclose(post.covs[:, 0, 0], [1, 2, 3])
    assert post.log_likelihood == 0


# Failure and bad input.


@pytest.mark.big
@pytest.mark.parametrize("method", METHODS)
def test_a_singular_innovation_covariance_names_its_stage(method):
    C = np.stack([np.array([[1.0], [2.0 if t != 3 else 1.0]]) for t in range(6)])
    V = np.stack([np.eye(2) if t != 3 else np.zeros((2, 2)) for t in range(6)])
    model = oc.LinearGaussian([[1.0]], C, [[1.0]], V, [0.0], [[1.0]])
    post = oc.kalman_filter(model, np.ones((6, 2)), method=method)
    assert post.stage == 3
    assert np.isnan(post.covs[3:]).all()
    with pytest.raises(RuntimeError, match="singular at stage 3"):
        post.raise_if_failed()
    with pytest.raises(RuntimeError, match="singular at stage 3"):
        oc.log_likelihood(model, np.ones((6, 2)), method=method)
    assert "singular at stage 3" in repr(oc.kalman_smoother(model, np.ones((6, 2)), method=method))
    assert np.isnan(jax.jit(lambda: oc.log_likelihood(model, np.ones((6, 2)), method=method))())


@pytest.mark.parametrize("method", METHODS)
def test_a_prior_too_vague_for_the_covariance_form(method):
    model = lambda s: oc.LinearGaussian(
        [[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0]], np.eye(2), [[1.0]], [0.0, 0.0], s * np.eye(2)
    )
    ys = np.arange(30.0) + np.sin(np.arange(30.0))
    for s in (1e5, 1e8, 1e10, 1e12):
        post = oc.kalman_smoother(model(s), ys, method=method)
        want = oc.kalman_smoother(model(s), ys, square_root=True).raise_if_failed()
        np.testing.assert_allclose(post.raise_if_failed().covs, want.covs, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "nile"}, "`model` is a str; expected optctl.LinearGaussian"),
        ({"ys": np.ones((4, 2))}, r"`ys` has shape \(4, 2\); expected \(N\+1, 1\)"),
        ({"ys": np.array([1.0, np.inf])}, "`ys` holds inf"),
        ({"ys": np.zeros((0, 1))}, "expected at least one"),
        ({"us": np.ones((3, 1))}, "`us` is given, but the model has no inputs"),
        ({"method": "dense"}, "`method` is 'dense'; expected one of"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"model": nile_model(), "ys": NILE, **change}
    for function in (oc.kalman_filter, oc.kalman_smoother, oc.log_likelihood):
        with pytest.raises(ValueError, match=message):
            function(**arguments)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_a_single_measurement(method):
    one = np.eye(1)
    model = oc.LinearGaussian(one, one, one, one, [0.0], one, B=one)
    for us in (np.zeros((0, 1)), np.ones((1, 1))):  # u_0 is never seen
        for _ in range(20):
            value = oc.log_likelihood(model, [1.0], us, method=method)
        np.testing.assert_allclose(value, -0.25 - 0.5 * np.log(4 * np.pi), rtol=1e-14)
        np.testing.assert_allclose(oc.kalman_smoother(model, [1.0], us, method=method).means, [[0.5]], rtol=1e-14)


def test_a_missing_last_input_is_never_taken_for_zero():
    one = np.eye(1)
    model = oc.LinearGaussian(one, one, one, one, [0.0], one, B=one, D=one)
    ys, us = np.array([1.0, 2.0]), np.ones((1, 1))
    with pytest.raises(ValueError, match="the last measurement sees the input u_N through D"):
        oc.log_likelihood(model, ys, us)
    assert not np.isfinite(jax.jit(oc.log_likelihood)(model, ys, us))
    gap = np.array([1.0, np.nan])
    want = oc.log_likelihood(model, gap, np.ones((2, 1)))
    np.testing.assert_allclose(oc.log_likelihood(model, gap, us), want, rtol=1e-14)
    np.testing.assert_allclose(jax.jit(oc.log_likelihood)(model, gap, us), want, rtol=1e-14)


def test_replace_gives_and_takes_inputs():
    eye = np.eye(2)
    model = oc.LinearGaussian(eye, eye, eye, eye, np.zeros(2), eye)
    driven = model.replace(B=np.ones((2, 3)))
    assert driven.nu == 3
    assert driven.replace(B=None).nu == 0
    assert driven.replace(B=None, D=eye).nu == 2


def test_wrong_models_are_refused():
    good = dict(A=np.eye(2), C=np.eye(2), W=np.eye(2), V=np.eye(2), mean0=np.zeros(2), cov0=np.eye(2))
    for change, message in [
        ({"W": np.diag([1.0, -0.5])}, "`W` is not positive semidefinite: its lowest eigenvalue is -0.5"),
        ({"V": np.array([[1.0, 0.3], [0.0, 1.0]])}, "`V` is not symmetric"),
        ({"W": np.stack([np.eye(2), -np.eye(2)])}, "lowest eigenvalue at stage 1 is -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            oc.LinearGaussian(**{**good, **change})
        with pytest.raises(ValueError, match=message):
            oc.LinearGaussian(**good).replace(**change)
    model = oc.LinearGaussian(**{**good, "A": np.stack([np.eye(2)] * 5)})
    with pytest.raises(ValueError, match="`A` has 5 stages; expected 2 for 3 measurements"):
        oc.kalman_filter(model, np.ones((3, 2)))


@pytest.mark.big
@pytest.mark.parametrize("method", METHODS)
def test_covariances_count_by_their_symmetric_part(method):
    eye, ys = np.eye(2), np.array([[1.0, 2.0], [3.0, -1.0]])

    @jax.jit
    def run(S):
        model = oc.LinearGaussian(0.9 * eye, eye, S, S, 0.0 * ys[0], S)
        post = oc.kalman_smoother(model, ys, method=method)
        return oc.log_likelihood(model, ys, method=method), post.means, post.covs, post.lag_one_covs

    want = run(np.array([[2.0, 0.5], [0.5, 2.0]]))
    for skewed in ([[2.0, 1.0], [0.0, 2.0]], [[2.0, 0.0], [1.0, 2.0]]):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), run(np.array(skewed)), want)
