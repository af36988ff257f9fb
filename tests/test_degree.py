"""Degrees of functions: known polynomials, and random programs whose third differences must vanish."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optctl as oc
from optctl.tape import degree

X, W = jnp.arange(1.0, 4.0), jnp.ones((3, 3)) + jnp.eye(3)


@jax.custom_jvp
def own_rule(x):
    return 2 * x


own_rule.defjvp(lambda primals, tangents: (own_rule(*primals), 3 * tangents[0]))

KNOWN = {
    # nothing
    "constant": (0, lambda x: jnp.sin(W).sum() + x.shape[0]),
    "power zero": (0, lambda x: x**0 + (x**2.0) ** 0),
    "switched off": (0, lambda x: jnp.concatenate([x, jnp.ones(2)])[3:]),
    # affine
    "matrix": (1, lambda x: W @ x + jnp.sin(1.0)),
    "moved": (1, lambda x: jnp.roll(jnp.flip(x), 1)[jnp.array([0, -1])] + jnp.diff(x)),
    "element": (1, lambda x: jnp.stack([x[-1], x[0], 1.0])),
    "written": (1, lambda x: jnp.zeros(4).at[1:].set(x).at[0].add(x[2]) + jnp.pad(x, (1, 0))),
    "cross": (1, lambda x: jnp.cross(x, X) - jnp.cumsum(x) / 3.0),
    "solve": (1, lambda x: jnp.linalg.solve(W, x)),
    "cho_solve": (1, lambda x: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(W), True), x)),
    "loop": (1, lambda x: lax.fori_loop(0, 4, lambda i, c: W @ c + i * x, x)),
    "while": (1, lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + x), (0, x))[1]),
    "scan": (1, lambda x: lax.scan(lambda c, w: (c + w @ x, w), 0.0, W, reverse=True)),
    "where": (1, lambda x: jnp.where(jnp.arange(3) > 1, x, 0.0)),
    "cond": (1, lambda x: lax.cond(jnp.sum(W) > 3, lambda y: y, lambda y: 2 * y, x)),
    "convolve": (1, lambda x: jnp.convolve(x, X)),
    "fourier": (1, lambda x: jnp.real(jnp.fft.ifft(jnp.fft.fft(x) * X))),
    "float32": (1, lambda x: x.astype(jnp.float32)),
    "checkpoint": (1, lambda x: jax.checkpoint(lambda y: W @ y)(x)),
    # quadratic
    "form": (2, lambda x: x @ W @ x + X @ x),
    "einsum": (2, lambda x: jnp.einsum("i,ij,j", x, W, x)),
    "squares": (2, lambda x: (jnp.square(x - X).sum(), (x[0] - 5) ** 2, x**2.0, jnp.vdot(x, x) / 2, x * x[::-1])),
    "statistics": (2, lambda x: jnp.var(x) + jnp.mean(x) ** 2),
    "outer": (2, lambda x: jnp.trace(jnp.outer(x, W @ x)) + jnp.kron(x, x)),
    "block": (2, lambda x: jnp.append(x, x @ x)[:-1] @ x),  # the square is cut off again
    "derivative": (2, lambda x: x @ jax.grad(lambda y: 0.5 * y @ W @ y)(x)),
    # more
    "cube": (3, lambda x: x @ x * x[0]),
    "power three": (3, lambda x: x**3),
    "power minus one": (3, lambda x: x**-1),
    "power by array": (3, lambda x: x ** jnp.array([1.0, 2.0, 3.0])),
    "loop that grows": (3, lambda x: lax.fori_loop(0, 4, lambda i, c: c * x, x)),
    "scan that grows": (3, lambda x: lax.scan(lambda c, w: (c + w, c * x[0]), x @ x, x)[1]),
    "quotient": (3, lambda x: x / (1 + x[0])),
    "sine": (3, lambda x: jnp.sin(x)),
    "kinks": (3, lambda x: (jnp.abs(x), jnp.maximum(x, 0) ** 2)),
    "condition": (3, lambda x: jnp.where(x > 0, x, 2 * x)),
    "branch": (3, lambda x: lax.cond(x[0] > 0, lambda y: y, lambda y: 2 * y, x)),
    "index": (3, lambda x: X[x[0].astype(int)]),
    "rounded": (3, lambda x: x.astype(int) * 1.0),
    "largest": (3, lambda x: jnp.max(x)),
    "data-dependent loop": (3, lambda x: lax.while_loop(lambda c: c[0] < 9.0, lambda c: c + 1, x)),
    "stopped": (3, lambda x: lax.stop_gradient(x) @ x),
    "solve by x": (3, lambda x: jnp.linalg.solve(W + jnp.diag(x), X)),
    "own rule": (3, own_rule),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_degrees(name):
    want, function = KNOWN[name]
    got, primitive = degree(function, [X], [])
    assert got == want
    assert bool(primitive) == (want == 3)


def test_other_arguments_are_coefficients_and_the_culprit_is_named():
    f = lambda x, u, t, p: p["a"][t] * jnp.sin(p["a"][0]) * x @ u + jnp.exp(t * 0.1) * u[0]
    assert degree(f, [X, X], [3, {"a": X}]) == (2, "")
    assert degree(lambda x: jnp.sum(2 * jnp.exp(x) + x**4), [X], []) == (3, "exp")


OPERATIONS = [
    lambda a, b, w: a + b,
    lambda a, b, w: a - w * b,
    lambda a, b, w: a * b,
    lambda a, b, w: a / w,
    lambda a, b, w: jnp.concatenate([a[1:], b[:1]]),
    lambda a, b, w: jnp.where(jnp.arange(4) > 1, a, b),
    lambda a, b, w: jnp.outer(a, w).T @ b,
    lambda a, b, w: a.at[2].set(b[0]),
    lambda a, b, w: jnp.cumsum(a) @ w * b,
    lambda a, b, w: jnp.square(a)[::-1],
    lambda a, b, w: jnp.maximum(a, b),
    lambda a, b, w: jnp.sin(a),
    lambda a, b, w: jnp.append(a, b @ b)[:-1],
    lambda a, b, w: jax.lax.scan(lambda c, y: (c + y, c * w[0]), b[0], a)[1],
]


def test_a_degree_is_never_too_low(rng):
    """Random programs: where degree d is claimed, differences of order d + 1 vanish along every line."""
    counts = np.zeros(4, int)
    for _ in range(60):
        steps = [(int(rng.integers(len(OPERATIONS))), *rng.integers(0, 5, 2)) for _ in range(6)]
        w = jnp.asarray(rng.uniform(0.5, 2, 4))

        def program(x, steps=steps, w=w):
            values = [x, w, x[::-1], w[0] * x, w]
            for k, i, j in steps:
                values.append(OPERATIONS[k](values[-1 - i], values[-1 - j], w))
            return values[-1]

        claimed, _ = degree(program, [jnp.ones(4)], [])
        counts[claimed] += 1
        if claimed == 3:
            continue
        at, along = rng.normal(size=(2, 4))
        values = np.stack([program(jnp.asarray(at + k * along)) for k in range(claimed + 2)])
        change = np.diff(values, n=claimed + 1, axis=0)
        np.testing.assert_allclose(change, 0, atol=1e-10 * max(1, np.abs(values).max()))
    assert counts[1:].min() >= 5, counts  # programs of every kind were drawn


def linear_problem(**changes):
    A, B = np.array([[1, 0.1], [0, 1.0]]), np.array([[0.005], [0.1]])
    costs = dict(stage_cost=lambda x, u: (x[0] - 5) ** 2 + u @ u, terminal_cost=lambda x: jnp.square(x).sum())
    return oc.Problem(**{"dynamics": oc.LinearDynamics(A, B), **costs, "horizon": 6, "x0": [1.0, 0.0], **changes})


ODE = oc.discretize(lambda x, u, t: [x[1], u[0] - jnp.sin(t) * x[0]], 0.1, nx=2, nu=1)
IMPLICIT = oc.discretize(lambda x, u: [x[1], u[0] - x[0]], 0.1, "trapezoid", nx=2, nu=1)
PENDULUM = oc.discretize(oc.models.Pendulum(), 0.05, "implicit_midpoint")
EYE, ONE = np.eye(2), np.ones((1, 1))

PROBLEMS = {
    "helpers": (True, dict(stage_cost=oc.costs.Quadratic(EYE, ONE), terminal_cost=oc.costs.TerminalQuadratic(EYE))),
    "tracking": (True, dict(stage_cost=oc.costs.Tracking(EYE, ONE, np.ones((7, 2))))),
    "reference": (True, dict(stage_cost=lambda x, u, t, r: (x - r[t]) @ (x - r[t]) + u @ u, params=np.ones((6, 2)))),
    "weights": (True, dict(stage_cost=lambda x, u, t, p: p["w"] * x @ x + jnp.exp(p["w"]) * u @ u, params={"w": 2.0})),
    "running cost": (True, dict(dynamics=ODE, stage_cost=ODE.integral(lambda x, u: x @ x + u @ u))),
    "implicit": (True, dict(dynamics=IMPLICIT)),
    "function": (True, dict(dynamics=oc.Dynamics(lambda x, u: jnp.stack([x[1], u[0]]), nx=2, nu=1))),
    "huber": (False, dict(stage_cost=lambda x, u: jnp.sum(oc.costs.Huber(1e4)(x)) + u @ u)),
    "robust": (False, dict(terminal_cost=lambda x: jnp.log(1 + x @ x))),
    "prior": (False, dict(initial_cost=lambda x: jnp.abs(x[0]), x0=None)),
    "bilinear": (False, dict(dynamics=oc.Dynamics(lambda x, u: x * u[0], nx=2, nu=1))),
    "pendulum": (False, dict(dynamics=PENDULUM)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_structure_of_problems(name):
    want, changes = PROBLEMS[name]
    problem = linear_problem(**changes)
    assert oc.lq.is_linear_quadratic(problem) == want
    assert jax.jit(lambda problem: jnp.asarray(oc.lq.is_linear_quadratic(problem)))(problem) == want
    if want:
        sol = oc.solve(problem)
        assert sol.method == "lq"
        assert sol.converged
    else:
        with pytest.raises(
            ValueError,
            match=r"is not (linear|quadratic) \(it (takes|multiplies) .*; expected a linear-quadratic problem",
        ):
            oc.lq.LQ.from_problem(problem)
