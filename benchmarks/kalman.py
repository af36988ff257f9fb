"""Times of the Kalman filter and smoother against statsmodels, dynamax and simdkalman.

Run with `python benchmarks/kalman.py` [--quick] [--only likelihood smoother gradient batch float32] [--json PATH].
Optctl and its peers are called in turn, warm, and the median is taken; what they compute is compared first. A ratio
is optctl's time over the peer's. The series: motion in the plane with nearly constant velocity, nx = 4, ny = 2,
10 000 steps, float64; in all libraries the first measurement updates the prior of x_0.

statsmodels stops updating covariances once they have converged (tolerance 1e-19, its default); rows name both this
and tolerance 0. Its smoother is asked for states and their covariances only. dynamax is jitted, and where only the
likelihood is wanted it returns only that; it adds 1e-9 to the diagonals it factors, which bounds the agreement.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import MISSING, Row, check_agreement, finish, load_peer, read_options, ready, time_in_turn

import optctl as oc

STEPS = 10_000
SHORTCUT = {"statsmodels, as it comes": None, "statsmodels, tolerance 0": 0.0}


def constant_velocity(dt: float = 0.1) -> oc.LinearGaussian:
    """Position and velocity in the plane; the position is measured."""
    eye, zero = np.eye(2), np.zeros((2, 2))
    return oc.LinearGaussian(
        A=np.block([[eye, dt * eye], [zero, eye]]),
        C=np.hstack([eye, zero]),
        W=0.5 * np.block([[dt**3 / 3 * eye, dt**2 / 2 * eye], [dt**2 / 2 * eye, dt * eye]]),
        V=0.25 * eye,
        mean0=np.zeros(4),
        cov0=np.eye(4),
    )


def local_trend() -> oc.LinearGaussian:
    return oc.LinearGaussian(
        A=np.array([[1.0, 1.0], [0.0, 1.0]]),
        C=np.array([[1.0, 0.0]]),
        W=np.diag([0.1, 0.01]),
        V=np.eye(1),
        mean0=np.zeros(2),
        cov0=10 * np.eye(2),
    )


def simulate(model: oc.LinearGaussian, many: int, steps: int, seed: int = 0) -> np.ndarray:
    """Draw measurements, (many, steps, ny)."""
    rng = np.random.default_rng(seed)
    A, C = np.asarray(model.A), np.asarray(model.C)
    w = rng.multivariate_normal(np.zeros(model.nx), model.W, size=(steps, many))
    v = rng.multivariate_normal(np.zeros(model.ny), model.V, size=(steps, many))
    x = rng.multivariate_normal(model.mean0, model.cov0, size=many)
    ys = np.empty((steps, many, model.ny))
    for t in range(steps):
        ys[t] = x @ C.T + v[t]
        x = x @ A.T + w[t]
    return np.swapaxes(ys, 0, 1).copy()


def fill(kind: Callable, model: oc.LinearGaussian, ys: np.ndarray, tolerance: float | None) -> Any:
    """Return a filter or smoother of statsmodels with the model and the data in it."""
    made = kind(k_endog=model.ny, k_states=model.nx)
    made.bind(ys)
    made["design"], made["obs_cov"] = np.asarray(model.C), np.asarray(model.V)
    made["transition"], made["state_cov"] = np.asarray(model.A), np.asarray(model.W)
    made["selection"] = np.eye(model.nx)
    made.initialize_known(np.asarray(model.mean0), np.asarray(model.cov0))
    if tolerance is not None:
        made.tolerance = tolerance
    return made


def dynamax_model(dynamax: ModuleType, model: oc.LinearGaussian) -> Any:
    return dynamax.make_lgssm_params(model.mean0, model.cov0, model.A, model.W, model.C, model.V)


def load_dynamax() -> Any:
    return load_peer("dynamax.linear_gaussian_ssm.inference")


def time_likelihood(quick: bool) -> list[Row]:
    model = constant_velocity()
    series = simulate(model, 1, STEPS)[0]
    ys, case = jnp.asarray(series), f"log-likelihood, {STEPS} steps"
    ours = jax.jit(oc.log_likelihood)
    value = ours(model, ys)
    functions = {"ours": ready(ours, model, ys)}
    statsmodels = load_peer("statsmodels.tsa.statespace.kalman_filter")
    if statsmodels:
        for name, tolerance in SHORTCUT.items():
            kalman = fill(statsmodels.KalmanFilter, model, series, tolerance)
            check_agreement(f"log-likelihood of {name}", value, kalman.loglike(), 1e-8)
            functions[name] = kalman.loglike
    dynamax = load_dynamax()
    if dynamax:
        theirs = jax.jit(lambda parameters, ys: dynamax.lgssm_filter(parameters, ys).marginal_loglik)
        parameters = dynamax_model(dynamax, model)
        check_agreement("log-likelihood of dynamax", value, theirs(parameters, ys), 1e-7)
        functions["dynamax"] = ready(theirs, parameters, ys)
    aims = {"statsmodels, as it comes": 0.12, "statsmodels, tolerance 0": None, "dynamax": 0.03}
    return compare(case, time_in_turn(functions, quick), aims)


def compare(case: str, times: dict[str, float], aims: dict[str, float | None]) -> list[Row]:
    """One row for each peer, installed or not."""
    notes = {name: "" if name in times else MISSING for name in aims}
    return [Row(case, times["ours"], name, times.get(name), aim, note=notes[name]) for name, aim in aims.items()]


def time_smoother(quick: bool) -> list[Row]:
    model = constant_velocity()
    series = simulate(model, 1, STEPS)[0]
    ys, case = jnp.asarray(series), f"smoother with covariances, {STEPS} steps"
    ours = jax.jit(oc.kalman_smoother)
    posterior = ours(model, ys)
    functions = {"ours": ready(ours, model, ys)}
    statsmodels = load_peer("statsmodels.tsa.statespace.kalman_smoother")
    if statsmodels:
        wanted = statsmodels.SMOOTHER_STATE | statsmodels.SMOOTHER_STATE_COV
        for name, tolerance in SHORTCUT.items():
            kalman = fill(statsmodels.KalmanSmoother, model, series, tolerance)
            result = kalman.smooth(smoother_output=wanted)
            check_agreement(f"means of {name}", posterior.means, result.smoothed_state.T, 1e-8)
            covs = np.moveaxis(result.smoothed_state_cov, 2, 0)
            check_agreement(f"covariances of {name}", posterior.covs, covs, 1e-7)
            functions[name] = lambda kalman=kalman: kalman.smooth(smoother_output=wanted)
    dynamax = load_dynamax()
    if dynamax:
        theirs, parameters = jax.jit(dynamax.lgssm_smoother), dynamax_model(dynamax, model)
        result = theirs(parameters, ys)
        check_agreement("means of dynamax", posterior.means, result.smoothed_means, 1e-6)
        check_agreement("covariances of dynamax", posterior.covs, result.smoothed_covariances, 1e-6)
        functions["dynamax"] = ready(theirs, parameters, ys)
    aims = {"statsmodels, as it comes": 0.12, "statsmodels, tolerance 0": None, "dynamax": 0.05}
    return compare(case, time_in_turn(functions, quick), aims)


def time_gradient(quick: bool) -> list[Row]:
    model = constant_velocity()
    ys = jnp.asarray(simulate(model, 1, STEPS)[0])
    alone, ours = jax.jit(oc.log_likelihood), jax.jit(jax.value_and_grad(oc.log_likelihood))
    value, gradient = ours(model, ys)
    check_agreement("log-likelihood with its gradient", value, alone(model, ys), 1e-10)
    functions = {"ours": ready(ours, model, ys), "likelihood alone": ready(alone, model, ys)}
    dynamax = load_dynamax()
    if dynamax:
        theirs = jax.jit(jax.value_and_grad(lambda p, ys: dynamax.lgssm_filter(p, ys).marginal_loglik))
        parameters = dynamax_model(dynamax, model)
        check_gradient(gradient, theirs(parameters, ys)[1])
        functions["dynamax"] = ready(theirs, parameters, ys)
    aims = {"likelihood alone": 3.0, "dynamax": 0.03}
    return compare(f"log-likelihood and full gradient, {STEPS} steps", time_in_turn(functions, quick), aims)


def check_gradient(ours: Any, theirs: Any) -> None:
    """Compare the gradients; those with respect to covariances up to the antisymmetric part, which means nothing."""
    check_agreement("gradient in A", ours.A, theirs.dynamics.weights, 1e-5)
    check_agreement("gradient in C", ours.C, theirs.emissions.weights, 1e-5)
    check_agreement("gradient in c", ours.c, theirs.dynamics.bias, 1e-5)
    check_agreement("gradient in mean0", ours.mean0, theirs.initial.mean, 1e-5)
    pairs = {"W": theirs.dynamics.cov, "V": theirs.emissions.cov, "cov0": theirs.initial.cov}
    for name, other in pairs.items():
        mine = getattr(ours, name)
        check_agreement(f"gradient in {name}", mine + mine.T, other + other.T, 1e-5)


def time_batch(quick: bool) -> list[Row]:
    many, steps = 1000, 200
    model = local_trend()
    series = simulate(model, many, steps)
    ours = jax.jit(jax.vmap(oc.kalman_smoother, in_axes=(None, 0)))
    ys, case = jnp.asarray(series), f"{many} series of {steps} steps, nx = 2, smoothed with covariances"
    posterior = ours(model, ys)
    functions = {"ours": ready(ours, model, ys)}
    simdkalman = load_peer("simdkalman")
    if simdkalman:
        A, W, C, V, mean0, cov0 = (np.asarray(getattr(model, n)) for n in ("A", "W", "C", "V", "mean0", "cov0"))
        kalman = simdkalman.KalmanFilter(A, W, C, V)
        options = {"initial_value": mean0, "initial_covariance": cov0, "observations": False}
        result = kalman.smooth(series[:, :, 0], **options).states
        check_agreement("means of simdkalman", posterior.means, result.mean, 1e-8)
        check_agreement("covariances of simdkalman", posterior.covs, result.cov, 1e-8)
        functions["simdkalman"] = lambda: kalman.smooth(series[:, :, 0], **options)
    return compare(case, time_in_turn(functions, quick), {"simdkalman": 0.1})


def time_float32(quick: bool) -> list[Row]:
    """Square roots in single precision against plain double precision: speed, and what the figures lose."""
    model = constant_velocity()
    ys = jnp.asarray(simulate(model, 1, STEPS)[0])
    model32, ys32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (model, ys))
    plain = jax.jit(oc.kalman_smoother)
    root = jax.jit(lambda model, ys: oc.kalman_smoother(model, ys, square_root=True))
    exact, case = plain(model, ys), f"smoother in float32, {STEPS} steps"
    variants = {f"{case}, square root": (root, model32, ys32), f"{case}, covariances": (plain, model32, ys32)}
    functions = {"float64": ready(plain, model, ys), **{name: ready(*call) for name, call in variants.items()}}
    times = time_in_turn(functions, quick)
    results = {name: call() for name, call in functions.items()}
    return [
        Row(name, times[name], "optctl in float64", times["float64"], note=error_note(results[name], exact))
        for name in variants
    ]


def error_note(posterior: Any, exact: Any) -> str:
    spread = np.sqrt(np.diagonal(exact.covs, axis1=1, axis2=2))
    means = np.max(np.abs(np.asarray(posterior.means, dtype=float) - exact.means) / spread)
    covs = np.max(np.abs(np.asarray(posterior.covs, dtype=float) - exact.covs)) / np.max(exact.covs)
    return f"{posterior.means.dtype}: means off by {means:.1e} standard deviations, covariances by {covs:.1e}"


PARTS = {
    "likelihood": time_likelihood,
    "smoother": time_smoother,
    "gradient": time_gradient,
    "batch": time_batch,
    "float32": time_float32,
}


def main() -> None:
    options = read_options(__doc__, tuple(PARTS))
    rows = [row for part in options.only for row in PARTS[part](options.quick)]
    finish(rows, oc.__version__, options.json)


if __name__ == "__main__":
    main()
