"""Smoothing as control: the Nile's known moments, exact rationals, a textbook smoother, missing data, singular W."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from tests.oracles import kalman_rts

MOMENTS = {  # t: smoothed mean, variance, with prior N(0, 1e7)
    1: (1111.220258, 4030.532767),
    2: (1110.529257, 3242.056999),
    20: (1073.091229, 2326.769584),
    50: (834.763259, 2326.756870),
    100: (798.370293, 4032.157942),
}


def smooth(problem):
    sol = oc.solve(problem)
    assert sol.method == "lq"
    with pytest.raises(ValueError, match="`model` and `solution` are Problem and Solution"):
        oc.lq.covariances(problem, sol)
    return sol, oc.lq.covariances(problem)


def test_nile_moments():
    sol, covs = smooth(oc.problems.nile())
    for t, (mean, variance) in MOMENTS.items():
        np.testing.assert_allclose(sol.xs[t - 1, 0], mean, rtol=0, atol=6e-7)
        np.testing.assert_allclose(covs[t - 1, 0, 0], variance, rtol=0, atol=6e-7)
    np.testing.assert_allclose(sol.cost, oc.problems.OPTIMAL_COST["nile"], rtol=1e-11)


@pytest.mark.parametrize("method", ["gradient_descent", "cg", "lbfgs", "newton_cg"])
def test_gradient_methods_agree_with_the_exact_means(method):
    problem = oc.problems.nile()
    exact = oc.solve(problem)
    assert exact.method == "lq"
    sol = oc.solve(problem, method=method)
    assert sol.converged, sol
    np.testing.assert_allclose(sol.xs, exact.xs, rtol=1e-6)
    if method == "cg":
        assert int(sol.iterations) <= 100  # 99 noises and one initial level


def test_nile_with_huber_loss():
    sol = oc.solve(oc.problems.nile(oc.costs.Huber(1.345)), method="lbfgs", tolerance=1e-7)
    assert sol.converged, sol
    np.testing.assert_allclose(sol.cost, 46.5721564532, rtol=1e-11)
    want = [1114.750779, 1003.111928, 955.384173, 820.840304, 793.851459]
    np.testing.assert_allclose(sol.xs[np.array([1, 28, 29, 43, 100]) - 1, 0], want, atol=2e-4)


@pytest.mark.parametrize(
    ("ys", "means", "variances"),
    [
        ([1.0, 2.0, 3.0], [12 / 13, 23 / 13, 31 / 13], [5 / 13, 6 / 13, 8 / 13]),
        ([1.0, np.nan, 3.0], [6 / 7, 11 / 7, 16 / 7], [3 / 7, 6 / 7, 5 / 7]),
    ],
)
def test_exact_rationals(ys, means, variances):
    sol, covs = smooth(oc.smoothing_problem(oc.problems.local_level(1.0, 1.0, 1.0), ys))
    np.testing.assert_allclose(sol.xs[:, 0], means, rtol=1e-14)
    np.testing.assert_allclose(covs[:, 0, 0], variances, rtol=1e-13)


def test_two_states_with_first_measurement_missing():
    model = oc.LinearGaussian(
        A=[[1.0, 1.0], [0.0, 1.0]],
        C=[[0.5, -0.3]],
        W=2 * np.eye(2),
        V=[[0.5]],
        mean0=[1.0, 1.0],
        cov0=[[1.0, 0.1], [0.1, 1.0]],
    )
    sol, covs = smooth(oc.smoothing_problem(model, [np.nan, 1.0, 2.0, 3.0]))
    want = [[2.9272501150, 1.6358250940], [4.8744742962, 1.6467868906], [6.7190624359, 1.5281061414]]
    np.testing.assert_allclose(sol.xs[1:], want, atol=5e-10)
    np.testing.assert_allclose(covs[-1], [[4.3902465860, 3.9019440665], [3.9019440665, 5.4095730447]], atol=5e-10)


def random_model(rng, *, singular=False):
    nx, ny = 3, 2
    F = rng.normal(size=(nx, 1 if singular else nx))
    V = rng.normal(size=(ny, ny))
    return {
        "A": 0.9 * np.eye(nx) + 0.1 * rng.normal(size=(nx, nx)),
        "C": rng.normal(size=(ny, nx)),
        "W": F @ F.T,
        "V": V @ V.T + 0.1 * np.eye(ny),
        "mean0": rng.normal(size=nx),
        "cov0": np.eye(nx),
    }


@pytest.mark.parametrize("singular", [False, True])
def test_textbook_smoother_with_correlated_noise_and_missing_components(singular, rng):
    data = random_model(rng, singular=singular)
    ys = rng.normal(size=(12, 2))
    ys[3] = np.nan
    ys[5, 0] = ys[7, 1] = np.nan
    problem = oc.smoothing_problem(oc.LinearGaussian(**data), ys)
    assert problem.dynamics.nu == (1 if singular else 3)
    sol, covs = smooth(problem)
    # The textbook smoother inverts the predicted covariance, which a singular W leaves regular here.
    means, want, _ = kalman_rts(*(data[k] for k in ("A", "C", "W", "V", "mean0", "cov0")), ys)
    np.testing.assert_allclose(sol.xs, means, atol=1e-9)
    np.testing.assert_allclose(covs, want, atol=1e-9)


def test_known_inputs_offset_and_feedthrough(rng):
    """Inputs, offset and feedthrough shift the data; the smoothed deviation is that of the plain model."""
    data = random_model(rng)
    B, D, c = rng.normal(size=(3, 1)), rng.normal(size=(2, 1)), rng.normal(size=3)
    us, ys = rng.normal(size=(8, 1)), rng.normal(size=(8, 2))
    driven = [np.zeros(3)]
    for t in range(7):
        driven.append(data["A"] @ driven[t] + B @ us[t] + c)
    driven = np.array(driven)
    full, _ = smooth(oc.smoothing_problem(oc.LinearGaussian(**data, B=B, D=D, c=c), ys, us))
    plain, _ = smooth(oc.smoothing_problem(oc.LinearGaussian(**data), ys - driven @ data["C"].T - us @ D.T))
    np.testing.assert_allclose(full.xs, plain.xs + driven, atol=1e-9)
    with pytest.raises(ValueError, match="`us` is missing; the model has inputs"):
        oc.smoothing_problem(oc.LinearGaussian(**data, B=B), ys)


def test_per_stage_model_equals_the_invariant_one(rng):
    data = random_model(rng)
    ys = rng.normal(size=(6, 2))
    staged = data | {
        "A": np.tile(data["A"], (5, 1, 1)), "W": np.tile(data["W"], (5, 1, 1)), "C": np.tile(data["C"], (6, 1, 1)),
        "V": np.tile(data["V"], (6, 1, 1)),
    }  # fmt: skip
    a, _ = smooth(oc.smoothing_problem(oc.LinearGaussian(**data), ys))
    b, _ = smooth(oc.smoothing_problem(oc.LinearGaussian(**staged), ys))
    np.testing.assert_allclose(a.xs, b.xs, atol=1e-12)
    with pytest.raises(ValueError, match="`A` has 5 stages; expected 4 for 5 measurements"):
        oc.smoothing_problem(oc.LinearGaussian(**staged), ys[:5])


def test_noises_of_very_different_units_all_count():
    ys = np.array([[0.0, 0.0], [0.0, 1e-4], [0.0, 3e-4]])
    both = oc.LinearGaussian(np.eye(2), np.eye(2), np.diag([1e6, 1e-8]), np.diag([1.0, 1e-10]), np.zeros(2), np.eye(2))
    alone = oc.LinearGaussian(np.eye(1), np.eye(1), [[1e-8]], [[1e-10]], np.zeros(1), np.eye(1))
    got, want = (
        oc.solve(oc.smoothing_problem(both, ys)).xs[:, 1],
        oc.solve(oc.smoothing_problem(alone, ys[:, 1])).xs[:, 0],
    )
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_singular_noise_under_jit():
    data = random_model(np.random.default_rng(0), singular=True)
    ys = np.random.default_rng(1).normal(size=(6, 2))
    want = oc.solve(oc.smoothing_problem(oc.LinearGaussian(**data), ys)).xs

    @jax.jit
    def smoothed(W):
        model = oc.LinearGaussian(**(data | {"W": W}))
        return oc.solve(oc.smoothing_problem(model, ys), method="newton_cg", tolerance=1e-10).xs

    np.testing.assert_allclose(smoothed(jnp.asarray(data["W"])), want, atol=1e-6)


def test_rows_of_offsets_and_the_last_input_are_checked():
    model = {"A": [[1.0]], "C": [[1.0]], "W": [[1.0]], "V": [[1.0]], "mean0": [0.0], "cov0": [[1.0]]}
    with pytest.raises(ValueError, match="`c` has 1 stages; expected 3"):
        oc.smoothing_problem(oc.LinearGaussian(**model, c=np.ones((1, 1))), np.ones(4))
    with pytest.raises(ValueError, match="the last measurement sees the input u_N through D"):
        oc.smoothing_problem(oc.LinearGaussian(**model, D=[[1.0]]), np.ones(4), np.ones((3, 1)))


def test_one_far_measurement_hardly_moves_the_robust_smoother():
    ys = np.zeros(20)
    ys[10] = 100.0
    model = oc.problems.local_level(1.0, 0.1, 1.0)
    for loss in (oc.costs.Huber(), oc.costs.StudentT()):
        robust = oc.solve(oc.smoothing_problem(model, ys, loss=loss), method="lbfgs")
        gaussian = oc.solve(oc.smoothing_problem(model, ys))
        assert robust.converged
        assert jnp.max(jnp.abs(robust.xs)) < 0.1 * jnp.max(jnp.abs(gaussian.xs))


LEVEL = {"A": [[1.0]], "C": [[1.0]], "W": [[1.0]], "V": [[1.0]], "mean0": [0.0], "cov0": [[1.0]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A": np.ones((2, 1))}, r"`A` has shape \(2, 1\); expected \(nx, nx\)"),
        ({"C": [[1.0, 0.0]]}, r"`C` has shape \(1, 2\); expected \(ny, 1\)"),
        ({"W": [[-1.0]]}, "`W` is not positive semidefinite: its lowest eigenvalue is -1"),
        ({"V": np.eye(2)}, r"`V` has shape \(2, 2\); expected \(1, 1\)"),
        ({"cov0": [[np.nan]]}, "`cov0` holds NaN"),
        ({"mean0": np.array([False])}, "`mean0` has dtype bool"),
        ({"B": np.ones((2, 1))}, r"`B` has shape \(2, 1\); expected \(1, 1\)"),
    ],
)
def test_model_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        oc.LinearGaussian(**(LEVEL | changes))


@pytest.mark.parametrize(
    ("model", "ys", "message"),
    [
        ({}, np.zeros((5, 2)), r"`ys` has shape \(5, 2\); expected \(N\+1, 1\)"),
        ({}, [1.0], "`ys` has 1 rows; expected at least two"),
        ({}, [1.0, np.inf], "`ys` holds inf"),
        ({}, [np.nan, np.nan], "`ys` holds nothing but NaN"),
        ({}, np.array([True, False]), "`ys` has dtype bool"),
        ({"V": [[0.0]]}, [1.0, 2.0], "`V` is singular"),
        ({"cov0": [[0.0]]}, [1.0, 2.0], "`cov0` is singular"),
    ],
)
def test_smoothing_bad_input(model, ys, message):
    with pytest.raises(ValueError, match=message):
        oc.smoothing_problem(oc.LinearGaussian(**(LEVEL | model)), ys)
