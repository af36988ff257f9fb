"""All methods of the quadratic core: against the KKT system, each other, finite differences, and bad input."""

import dataclasses

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.lq import LQ
from tests.oracles import dense_kkt, random_lq

METHODS = ("native", "scan", "parallel", "cg")
SIZES = [
    (1, 1, 1),
    (2, 1, 0),
    (1, 3, 0),
    (7, 2, 3),
    (5, 5, 2),
    (40, 4, 1),
    (9, 13, 5),
    (6, 12, 4),
    (4, 7, 9),
    (3, 33, 17),
]


def assert_solves(sol, lq, rtol=1e-9):
    xs, us, multipliers = dense_kkt(lq)
    for got, want in ((sol.xs, xs), (sol.us, us), (sol.costates[1:], multipliers)):
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * (1 + np.abs(want).max(initial=0)))


@pytest.mark.parametrize("free_x0", [False, True, "partly"])
@pytest.mark.parametrize(("N", "nx", "nu"), SIZES)
def test_native_solves_the_kkt_system(N, nx, nu, free_x0, rng):
    free = tuple(bool(i % 2) for i in range(nx)) if free_x0 == "partly" else free_x0
    for unstable in (0.8, 2.0):
        lq = random_lq(rng, N, nx, nu, free_x0=free, unstable=unstable, invariant=unstable > 1 and N == 7)
        sol = oc.lq.solve(lq, "native").raise_if_failed()
        assert_solves(sol, lq)


@pytest.mark.parametrize(("N", "nx", "nu"), [(2000, 3, 1), (300, 8, 3), (2, 60, 40), (30, 45, 20)])
def test_native_solves_large_problems(N, nx, nu, rng):
    assert_solves(
        oc.lq.solve(random_lq(rng, N, nx, nu, unstable=1.2), "native").raise_if_failed(), random_lq_again(N, nx, nu)
    )


def random_lq_again(N, nx, nu):
    return random_lq(np.random.default_rng(7), N, nx, nu, unstable=1.2)


@pytest.mark.parametrize("method", METHODS[1:])
def test_methods_agree_on_every_result(method, rng):
    for invariant, free_x0 in ((False, (True, False, True)), (True, False)):
        lq = random_lq(rng, 6, 3, 2, free_x0=free_x0, unstable=1.1, invariant=invariant)
        native, other = oc.lq.solve(lq, "native"), oc.lq.solve(lq, method)
        for field in dataclasses.fields(native):
            a, b = getattr(native, field.name), getattr(other, field.name)
            if not (method == "cg" and b is None):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=field.name)
        if method != "cg":
            mine, theirs = oc.lq.factor(lq, "native"), oc.lq.factor(lq, method)
            for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
        assert_solves(other, lq, 1e-8)


def test_random_problem_against_cvxpy(rng):
    N, nx, nu = 5, 3, 2
    lq = random_lq(rng, N, nx, nu, free_x0=True)
    xs, us = cvxpy.Variable((N + 1, nx)), cvxpy.Variable((N, nu))
    a = jax.tree.map(np.asarray, lq)
    cost = a.constant + 0.5 * cvxpy.quad_form(xs[0], a.Q0) + a.q0 @ xs[0]
    cost += 0.5 * cvxpy.quad_form(xs[N], a.Qf) + a.qf @ xs[N]
    for t in range(N):
        H = np.block([[a.Q[t], a.M[t]], [a.M[t].T, a.R[t]]])
        cost += 0.5 * cvxpy.quad_form(cvxpy.hstack([xs[t], us[t]]), H) + a.q[t] @ xs[t] + a.r[t] @ us[t]
    dynamics = [xs[t + 1] == a.A[t] @ xs[t] + a.B[t] @ us[t] + a.c[t] for t in range(N)]
    problem = cvxpy.Problem(cvxpy.Minimize(cost), dynamics)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    sol = oc.lq.solve(lq)
    np.testing.assert_allclose(sol.cost, problem.value, rtol=1e-8)
    np.testing.assert_allclose(sol.us, us.value, atol=1e-6)


# Derivatives.


def weighted_results(lq, method, weights):
    """One number in which every result of the solution has a say."""
    sol = oc.lq.solve(lq, method)
    return sum(jnp.sum(w * getattr(sol, name)) for name, w in weights.items() if getattr(sol, name) is not None)


RESULTS = ("xs", "us", "costates", "K", "k", "P", "p", "cost")


def weights_for(lq, method, rng, names=RESULTS):
    sol = oc.lq.solve(lq, method)
    results = {name: getattr(sol, name) for name in names}
    return {name: rng.normal(size=v.shape) for name, v in results.items() if v is not None}


def symmetric_direction(lq, rng):
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), lq)
    both = {n: (getattr(direction, n) + np.swapaxes(getattr(direction, n), -1, -2)) / 2 for n in ("Q", "R", "Qf", "Q0")}
    return direction.replace(**both)


@pytest.mark.parametrize(
    ("method", "invariant"),
    [("native", False), ("native", True), ("scan", False), ("parallel", True), ("cg", False)],
)
def test_derivative_in_every_leaf(method, invariant, rng):
    lq = random_lq(rng, 3, 2, 2, free_x0=(True, False), invariant=invariant)
    weights = weights_for(lq, method, rng)
    value = jax.jit(lambda lq: weighted_results(lq, method, weights))
    gradient = jax.jit(jax.grad(value))(lq)
    h = 1e-5
    for name in ("A", "B", "c", "Q", "R", "M", "q", "r", "Qf", "qf", "x0", "Q0", "q0", "constant"):
        direction = jax.tree.map(np.zeros_like, lq).replace(**{name: getattr(symmetric_direction(lq, rng), name)})
        ahead, behind = (value(jax.tree.map(lambda z, d, s=s: z + s * d, lq, direction)) for s in (h, -h))
        slope = jnp.sum(getattr(gradient, name) * getattr(direction, name))
        assert abs(slope) > 1e-4, name
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=2e-6, atol=1e-7, err_msg=name)


def test_forward_equals_reverse_and_second_derivatives_hold(rng):
    method = "native"  # the rules are the same for all
    lq = random_lq(rng, 4, 2, 1, free_x0=(True, False))
    weights = weights_for(lq, method, rng)
    value = jax.jit(lambda lq: weighted_results(lq, method, weights))
    gradient = jax.jit(jax.grad(value))
    d, e = symmetric_direction(lq, rng), symmetric_direction(lq, rng)
    slope = jax.jit(lambda lq, d: jax.jvp(value, (lq,), (d,))[1])
    dot = lambda a, b: sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    forward, reverse = slope(lq, d), dot(gradient(lq), d)
    np.testing.assert_allclose(forward, reverse, rtol=1e-11)
    bend = jax.jit(lambda lq: jax.jvp(lambda z: dot(jax.grad(value)(z), d), (lq,), (e,))[1])(lq)
    h = 1e-5
    ahead, behind = (dot(gradient(jax.tree.map(lambda z, v, s=s: z + s * h * v, lq, e)), d) for s in (1, -1))
    np.testing.assert_allclose(bend, (ahead - behind) / (2 * h), rtol=1e-5)


def test_gradient_of_the_cost_is_the_envelope(rng):
    lq = random_lq(rng, 6, 3, 2)
    sol, g = oc.lq.solve(lq), jax.grad(lambda lq: oc.lq.solve(lq).cost)(lq)
    np.testing.assert_allclose(g.x0, sol.costates[0], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(g.c, sol.costates[1:], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(g.r, sol.us, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(g.Qf, 0.5 * np.outer(sol.xs[-1], sol.xs[-1]), rtol=1e-10, atol=1e-11)


# Batches, factors, compilation, types.


@pytest.mark.parametrize("method", ["native", "parallel", "cg"])
def test_vmap_equals_a_loop_also_over_some_leaves_and_nested(method, rng):
    lq = random_lq(rng, 5, 3, 2, invariant=True)
    x0s, As = rng.normal(size=(3, 4, 3)), rng.normal(size=(3, 3, 3))
    over_x0 = jax.vmap(lambda A, x0: oc.lq.solve(lq.replace(A=A, x0=x0), method), (None, 0))
    batch = jax.vmap(over_x0)(As, x0s)
    for i in range(3):
        for j in range(4):
            one = oc.lq.solve(lq.replace(A=jnp.asarray(As[i]), x0=jnp.asarray(x0s[i, j])), "native")
            np.testing.assert_allclose(batch.xs[i, j], one.xs, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(batch.us[i, j], one.us, rtol=1e-9, atol=1e-9)
    assert "batch" in repr(batch)


def test_a_large_batch_runs_on_all_threads_and_differentiates(rng):
    lqs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[random_lq(rng, 6, 3, 2) for _ in range(64)])
    batch = jax.jit(jax.vmap(oc.lq.solve))(lqs)
    gradient = jax.jit(jax.vmap(jax.grad(lambda lq: jnp.sum(oc.lq.solve(lq).us))))(lqs)
    for i in (0, 17, 63):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], lqs)
        np.testing.assert_allclose(batch.us[i], oc.lq.solve(one, "scan").us, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            gradient.A[i], jax.grad(lambda lq: jnp.sum(oc.lq.solve(lq, "scan").us))(one).A, atol=1e-9
        )


@pytest.mark.parametrize("method", ["native", "scan", "parallel"])
def test_factors_serve_further_right_hand_sides(method, rng):
    lq = random_lq(rng, 8, 3, 2, free_x0=(False, True, True))
    factors = oc.lq.factor(lq, method)
    other = lq.replace(
        **{name: jnp.asarray(rng.normal(size=getattr(lq, name).shape)) for name in ("c", "q", "r", "qf", "x0", "q0")}
    )
    assert_solves(oc.lq.solve(other, method, factors=factors), other)
    if method == "parallel":
        return
    g = jax.grad(lambda lq: jnp.sum(oc.lq.solve(lq, method, factors=factors).us))(lq)
    h = jax.grad(lambda lq: jnp.sum(oc.lq.solve(lq, method).us))(lq)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), g, h)


@pytest.mark.parametrize("method", ["native", "scan", "parallel"])
def test_factors_have_derivatives(method, rng):
    lq = random_lq(rng, 4, 3, 2)

    def entries(scale):
        factors = oc.lq.factor(lq.replace(A=scale * lq.A, R=lq.R / scale), method)
        return jnp.stack([jnp.sum(jnp.cos(leaf)) for leaf in (factors.K, factors.P, factors.S, factors.S0)])

    got = jax.jacfwd(entries)(1.0)
    h = 1e-6
    want = (entries(1 + h) - entries(1 - h)) / (2 * h)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    assert (np.abs(got[:3]) > 1e-6).all()


@pytest.mark.parametrize("method", METHODS)
def test_asymmetric_weights_count_by_their_symmetric_part(method, rng):
    lq = random_lq(rng, 6, 3, 2, free_x0=True)
    skew = {name: rng.normal(size=getattr(lq, name).shape) for name in ("Q", "R", "Qf", "Q0")}
    skew = {name: s - np.swapaxes(s, -1, -2) for name, s in skew.items()}

    @jax.jit
    def solve(lq, skew):
        return oc.lq.solve(lq.replace(**{name: getattr(lq, name) + s for name, s in skew.items()}), method)

    got, want = solve(lq, skew), oc.lq.solve(lq, "scan")
    for name in ("xs", "us", "costates", "cost"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-8, atol=1e-8)
    slope = jax.grad(lambda s: jnp.sum(solve(lq, s).xs ** 2))(skew)
    for name, g in slope.items():
        np.testing.assert_allclose(g, np.swapaxes(g, -1, -2), atol=1e-9, err_msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_new_numbers_do_not_recompile(method, rng):
    from optctl.lq.solution import _solve

    oc.lq.solve(random_lq(rng, 6, 3, 2), method)
    count = _solve._cache_size()
    oc.lq.solve(random_lq(rng, 6, 3, 2), method)
    assert _solve._cache_size() == count


@pytest.mark.parametrize("method", METHODS)
def test_float32(method, rng):
    lq = random_lq(rng, 6, 3, 2)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), lq)
    sol = oc.lq.solve(single, method)
    assert sol.xs.dtype == np.float32
    np.testing.assert_allclose(sol.us, oc.lq.solve(lq).us, rtol=1e-3, atol=1e-3)


def test_mixed_types_become_the_wider_one():
    single = {name: value.astype(np.float32) for name, value in GOOD.items() if name in ("A", "Q")}
    sol = oc.lq.solve(LQ(**{**GOOD, **single, "x0": np.ones(2).astype(">f8")}))
    assert sol.xs.dtype == np.float64
    assert_solves(sol, LQ(**{**GOOD, "x0": np.ones(2)}))


@pytest.mark.parametrize(("nx", "nu"), [(2, 1), (5, 3), (14, 3)])
def test_float32_kernels_of_all_widths(nx, nu, rng):
    lq = random_lq(rng, 5, nx, nu, unstable=0.7)
    single = oc.lq.solve(jax.tree.map(lambda leaf: leaf.astype(np.float32), lq), "native")
    np.testing.assert_allclose(single.us, oc.lq.solve(lq).us, atol=5e-3)


def test_a_hundred_thousand_steps(rng):
    N = 100_000
    A = np.eye(4) + 0.1 * np.diag(np.ones(3), 1)
    lq = LQ(A, np.eye(4)[:, 3:], Q=np.eye(4), R=np.eye(1), Qf=np.eye(4), x0=np.ones(4), horizon=N)
    sol = oc.lq.solve(lq).raise_if_failed()
    K, P = oc.dlqr(A, np.eye(4)[:, 3:], np.eye(4), np.eye(1))
    np.testing.assert_allclose(sol.K[0], K, rtol=1e-10)
    np.testing.assert_allclose(sol.cost, 0.5 * np.ones(4) @ P @ np.ones(4), rtol=1e-10)


# Failure and bad input.


@pytest.mark.parametrize("method", ["native", "scan", "parallel"])
def test_an_indefinite_model_names_its_stage(method, rng):
    lq = random_lq(rng, 6, 3, 2)
    R = np.array(lq.R)
    R[2] -= 100 * np.eye(2)
    sol = oc.lq.solve(lq.replace(R=jnp.asarray(R)), method)
    assert sol.failed_stage == 2 or method == "parallel"
    assert np.isfinite(sol.K[3:]).all() or method == "parallel"
    assert np.isnan(sol.K[:3]).all()
    assert np.isnan(sol.cost)
    with pytest.raises(RuntimeError, match="not positive definite at stage"):
        sol.raise_if_failed()


@pytest.mark.parametrize("method", ["native", "scan", "parallel"])
def test_an_unweighted_free_start_is_reported(method):
    lq = LQ(np.eye(2), np.eye(2)[:, :1], Q=np.zeros((2, 2)), R=np.eye(1), Qf=np.zeros((2, 2)), horizon=3)
    assert oc.lq.solve(lq, method).failed_stage == 0


@pytest.mark.parametrize("method", ["scan", "parallel"])
def test_tiny_weights_keep_their_digits(method):
    A, B, eye = [[1.0, 0.1], [0.0, 1.0]], [[0.3, 0.1], [0.4, -0.2]], np.eye(2)

    def model(s):
        linear = {"q": s * np.ones(2), "qf": s * np.ones(2), "r": s * np.array([1.0, -1.0])}
        return LQ(A, B, Q=s * eye, R=s * eye, Qf=s * eye, **linear, x0=np.ones(2), horizon=10)

    want = oc.lq.solve(model(1.0), "scan").us
    np.testing.assert_allclose(oc.lq.solve(model(1e-14), method).us, want, rtol=1e-9)


def test_conjugate_gradients_do_not_mistake_overflow_or_small_weights_for_convergence():
    A, B, eye = [[1.5, 0.1], [0.0, 1.3]], [[0.3], [0.4]], np.eye(2)
    assert oc.lq.solve(LQ(A, B, eye, [[1.0]], eye, x0=np.ones(2), horizon=500), "cg").failed_stage == -2
    tiny = LQ([[1.0]], [[1.0]], [[1e-20]], [[1e-20]], [[1e-20]], x0=[1.0], horizon=5)
    sol = oc.lq.solve(tiny, "cg")
    assert sol.failed_stage == -2 or np.allclose(sol.us, oc.lq.solve(tiny, "scan").us, rtol=1e-6)


def test_covariances_count_weights_by_their_symmetric_part():
    one = np.eye(2)
    skew = np.array([[0.0, 0.7], [-0.7, 0.0]])
    run = jax.jit(lambda R, Q0: oc.lq.covariances(LQ(one, one, one, R, one, Q0=Q0, horizon=2)))
    np.testing.assert_allclose(run(one + skew, 2 * one - skew), run(one, 2 * one), rtol=1e-12)


def test_a_singular_hessian_fails_on_every_method():
    lq = LQ([[1.0]], [[0.1, 0.3]], [[1.0]], np.zeros((2, 2)), [[1.0]], x0=[1.0], horizon=4)
    for method in ("native", "scan"):
        assert oc.lq.solve(lq, method).failed_stage == 3


def test_a_start_of_negative_weight_is_named():
    one = np.eye(1)
    sol = oc.lq.solve(LQ(one, one, one, one, one, Q0=-100 * one, q0=[1.0], horizon=5))
    with pytest.raises(RuntimeError, match=r"Q0 \+ P_0, the weight of the free components of x_0, is not positive"):
        sol.raise_if_failed()


def test_components_of_the_start_are_not_freed_in_passing():
    lq = LQ(np.eye(2), np.ones((2, 1)), np.eye(2), [[1.0]], np.eye(2), x0=[1.0, 0.0], x0_free=(False, True), horizon=3)
    np.testing.assert_allclose(oc.lq.solve(lq).xs[0, 0], 1.0)
    with pytest.raises(ValueError, match="some components were given"):
        lq.replace(x0=None)


def test_conjugate_gradients_say_when_they_do_not_converge(rng):
    lq = random_lq(rng, 40, 3, 1, unstable=6.0)
    sol = oc.lq.solve(lq, "cg")
    assert sol.failed_stage == -2
    with pytest.raises(RuntimeError, match="did not converge"):
        sol.raise_if_failed()


GOOD = dict(A=np.eye(2), B=np.ones((2, 1)), Q=np.eye(2), R=np.eye(1), Qf=np.eye(2), x0=np.zeros(2), horizon=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": np.ones((2, 3))}, r"`A` has shape \(2, 3\); expected \(nx, nx\)"),
        ({"B": np.ones((3, 1))}, r"`B` has shape \(3, 1\); expected \(2, nu\)"),
        ({"M": np.ones((2, 2))}, r"`M` has shape \(2, 2\); expected \(2, 1\) or \(N, 2, 1\)"),
        ({"Q": np.array([[1.0, 1.0], [0.0, 1.0]])}, "`Q` is not symmetric"),
        ({"R": np.stack([np.eye(1)] * 4)}, "numbers of stages differ"),
        ({"horizon": None}, "`horizon` is missing"),
        ({"horizon": 0}, "not positive"),
        ({"horizon": 2.5}, "`horizon` is 2.5; expected a positive whole number"),
        ({"x0_free": True}, "expected 2 booleans"),
        ({"A": np.eye(2, dtype=np.float16)}, "`A` has dtype float16; expected float32 or float64"),
        ({"x0": None, "x0_free": (True, False)}, "`x0_free` is"),
        ({"x0_free": (True,)}, "expected 2 booleans"),
        ({"q": np.array([np.nan, 0.0])}, "`q` holds NaN"),
        ({"A": np.eye(2, dtype=bool)}, "`A` has dtype bool"),
        ({"Qf": np.eye(3)}, r"`Qf` has shape \(3, 3\)"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LQ(**{**GOOD, **change})


def test_wrong_calls_are_refused(rng):
    one = random_lq(rng, 3, 2, 1)
    with pytest.raises(ValueError, match="`factors` are given, but method 'cg' uses none"):
        oc.lq.solve(one, "cg", factors=oc.lq.factor(one))
    lq = LQ(**GOOD)
    with pytest.raises(ValueError, match="expected one of"):
        oc.lq.solve(lq, "dense")
    with pytest.raises(ValueError, match=r"expected optctl.lq.LQ"):
        oc.lq.solve("lq")
    with pytest.raises(ValueError, match="has no gains"):
        oc.lq.covariances(lq, oc.lq.solve(lq, "cg"))
    with pytest.raises(ValueError, match=r"has gains K \(3, 1, 2\); expected \(4, 1, 2\)"):
        oc.lq.covariances(random_lq(rng, 4, 2, 1), oc.lq.solve(lq))
    with pytest.raises(ValueError, match="has no factors"):
        oc.lq.factor(lq, "cg")
    with pytest.raises(ValueError, match=r"`factors` are of a model with K \(3, 1, 2\)"):
        oc.lq.solve(random_lq(rng, 4, 2, 1), factors=oc.lq.factor(lq))
    Q = np.stack([np.eye(2), np.array([[1.0, 0.5], [0.0, 1.0]]), np.eye(2)])
    with pytest.raises(ValueError, match="`Q` is not symmetric at stage 1"):
        LQ(**{**GOOD, "Q": Q})


def test_the_kernels_are_really_there_and_their_absence_is_said(monkeypatch, rng):
    from optctl import _native

    assert _native.available()
    monkeypatch.setattr(_native, "available", lambda: False)
    with pytest.raises(ValueError, match=r"'native', but .* use 'auto', 'scan' or 'parallel'"):
        oc.lq.solve(LQ(**GOOD), "native")
    assert_solves(oc.lq.solve(LQ(**GOOD)), LQ(**GOOD))


# The model along a trajectory.


def test_newton_steps_from_the_model_along_a_trajectory_converge_quadratically():
    problem = oc.problems.cartpole_push()
    us = 0.1 * np.ones((problem.horizon, 1))
    xs = problem.dynamics.rollout(problem.x0, us)
    costates = oc.gradient(problem, us).costates
    sizes = []
    for _ in range(12):
        step = oc.lq.solve(LQ.along(problem, xs, us, costates=costates))
        xs, us = xs + step.xs, us + step.us
        costates = costates + (step.costates - costates)
        sizes.append(float(jnp.max(jnp.abs(step.us))))
    np.testing.assert_allclose(oc.gradient(problem, us).us, 0, atol=1e-9)
    np.testing.assert_allclose(problem.dynamics.rollout(problem.x0, us), xs, atol=1e-10)
    np.testing.assert_allclose(costates, oc.gradient(problem, us).costates, atol=1e-8)
    assert min(sizes) < 1e-11
    with pytest.raises(ValueError, match="`xs` has shape"):
        LQ.along(problem, xs[1:], us)


def test_the_model_along_a_trajectory_of_a_quadratic_problem_ends_in_one_step(rng):
    lq = random_lq(rng, 5, 3, 2)
    problem = oc.Problem(
        oc.LinearDynamics(lq.A, lq.B, lq.c), oc.costs.Quadratic(lq.Q, lq.R, lq.M, lq.q, lq.r),
        lambda x: 0.5 * x @ lq.Qf @ x + lq.qf @ x, x0=lq.x0,
    )  # fmt: skip
    xs, us = rng.normal(size=(6, 3)), rng.normal(size=(5, 2))
    step = oc.lq.solve(LQ.along(problem, xs, us))
    np.testing.assert_allclose(xs + step.xs, oc.lq.solve(lq).xs, atol=1e-10)
    np.testing.assert_allclose(step.cost + 0.3, oc.lq.solve(lq).cost, rtol=1e-10)
