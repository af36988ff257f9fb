"""Models in plain NumPy: values, derivatives, every door, and what is refused; the oracle is the function itself."""

import dataclasses
import functools
import math
import types
from math import sin

import jax
import jax.numpy as jnp
import numpy as np
import numpy.linalg as la
import pytest
from numpy import zeros

import optctl as oc
from optctl.dynamics.stage import stage_function
from optctl.tape import jacobian, trace
from optctl.tape.evaluate import BY_JAX, by_numpy
from optctl.tape.expressions import EVALUATE, OPERATIONS
from optctl.tape.plain.arrays import UFUNCS
from optctl.tape.program import READS, Graph

OPERANDS = {name: len(reads) for name, reads in zip(OPERATIONS, READS, strict=True)}

A = np.array([[1.0, 2.0, 0.3], [0.2, 3.0, 1.0], [0.5, 0.1, 2.0]])
TABLE = np.linspace(0.0, 3.0, 15).reshape(5, 3)
HELD_BY_JAX = jnp.array([0.3, -0.2, 0.1])
HELD = types.SimpleNamespace(table=TABLE, gain=2.0, both=[TABLE, {"t": TABLE}])


class Plant:
    mass = 2.0

    def __init__(self, matrix):
        self.matrix, self.table = matrix, TABLE

    @property
    def inertia(self):
        return self.mass * 2

    @staticmethod
    def wrapped(angle):
        return math.sin(angle)

    def M(self, q):
        M = np.zeros((2, 2))
        M[0, 0], M[1, 1] = self.inertia + math.cos(q[1]), 1.0
        M[0, 1] = M[1, 0] = 0.3
        return M

    def rate(self, x, u, t):
        return np.append(la.solve(self.M(x), x[1:] - self.table[t, :2]), self.wrapped(u[0]))

    def __call__(self, x, u):
        out = np.empty(3)
        out[:2], out[2] = self.matrix[:2] @ x, u[0]
        return out


class Heavier(Plant):
    def M(self, q):
        return super().M(q) * 2.0


@oc.record()
class Spring:
    stiffness: object

    def __call__(self, x, u):
        out = np.zeros(3)
        out[0], out[1] = self.stiffness * math.sin(x[0]), u[0]
        return out


PLANT, HEAVIER = Plant(A), Heavier(A)


def helper(z):
    out = zeros(2)
    out[0], out[1] = z[0], sin(z[1])
    return out


def power_by_recursion(x, n):
    return x[0] if n == 0 else x[n % 3] * power_by_recursion(x, n - 1)


def in_place(x, u):
    x += 1
    x[0] *= 2
    x[1:] -= u[0]
    return x * np.sin(x)


def views(x, u):
    M = np.zeros((3, 3))
    row = M[1]
    row[:] = x
    M.T[0] = u[0]
    M[range(3), range(3)] += 1
    np.fill_diagonal(M[:2, :2], x[:2])
    return np.sin(M @ x)


def filled(x, u):
    y = np.empty_like(x)
    y[0], y[1:] = np.sin(x[1]), x[:2]
    z = np.empty((2, 3))
    z[0], z[1] = y, 1
    return z.sum(axis=0)


def accumulated(x, u):
    y = np.zeros(3)
    y += np.sin(x)
    y *= x
    y -= 1
    y /= 2
    y[1] += x[0]
    y **= 2
    return y


def masked(x, u):
    y = x.copy()
    y[y > 0.3] = 0.1
    return y + np.sin(x)


def loops(x, u):
    total = 0.0
    for i, xi in enumerate(x):
        total += (i + 1) * xi**2
    for a, b in zip(x, x[::-1], strict=True):
        total += np.exp(a * b)
    while i < 5:
        i += 1
        total *= 1.1
    return np.array([total])


def by_math(x, u):
    a, b, c = x
    return np.array(
        [
            a * b, math.atan2(b, c), math.hypot(a, b, c), math.exp(a), math.sqrt(b * b + 1), math.log(a * a + 1, 3),
            math.pow(b, 2), abs(c), math.radians(a), math.copysign(1.5, c), math.erf(b), math.dist([a], [b]) * math.pi,
            math.floor(2.5), math.fabs(c), math.tanh(a), math.fmod(b, 0.7),
        ]
    )  # fmt: skip


def written(x, u, t):
    y = np.zeros(3)
    y[t] = np.sin(x[0])
    y[0] += x[1]
    return y


def laplacian(x, u):
    d = np.zeros_like(x)
    d[1:-1] = x[2:] - 2 * x[1:-1] + x[:-2]
    d[0], d[-1] = np.sin(x[1]) - x[0], d[-1] + x[-2]
    return d


def lists(x, u):
    out = [np.sin(x[i]) for i in range(2)]
    out.append(x[2])
    out[1] += 1
    named = {"a": out[0], "b": x[1]}
    named["c"] = named["a"] * named["b"]
    return np.array([*out, *named.values()])


def rotation(x, u):
    c, s = np.cos(x[0]), np.sin(x[0])
    R = np.array([[c, -s], [s, c]])
    return R.T @ x[:2] + R @ u[0] @ np.eye(2) if u.ndim > 1 else R.T @ x[:2]


FUNCTIONS = {
    "elements": lambda x, u: np.sin(x) + np.arctan2(x, 1.3) + np.hypot(x, 1.0) + np.logaddexp(x, 0) + np.log1p(x**2),
    "more elements": lambda x, u: np.deg2rad(x) + np.log10(x**2 + 1) + np.square(x) + np.sinc(x) + np.cbrt(x + 3),
    "constants": lambda x, u: np.array([np.sin(x[0]), u[0], 1]),
    "powers": lambda x, u: np.sin(x) ** 2 + np.abs(x) ** 1.5 + x**3 + 2.0**x + np.power(x**2 + 1, x) + x**0,
    "remainders": lambda x, u: np.mod(np.sin(x) * 5, 1.3) + (x * 3) // 1 + np.fmod(x * 5, 1.2) + (x * 7) % -2,
    "a wrapped angle": lambda x, u: (np.sin(x) + np.pi) % (2 * np.pi) - np.pi,
    "math": by_math,
    "in place": in_place,
    "views": views,
    "filled": filled,
    "accumulated": accumulated,
    "masked": masked,
    "loops": loops,
    "lists": lists,
    "laplacian": laplacian,
    "rotation": rotation,
    "an object": PLANT,
    "a method": PLANT.rate,
    "an inherited method": HEAVIER.rate,
    "an object made inside": lambda x, u, t: Heavier(A).rate(x, u, t),
    "a pytree": Spring(np.array(2.0)),
    "a helper": lambda x, u: helper(x),
    "a partial function": functools.partial(lambda gain, x, u: gain * np.cos(x), 3.0),
    "recursion": lambda x, u: np.array([power_by_recursion(x, 3)]),
    "solve": lambda x, u: la.solve(A + np.diag(x), x),
    "solve a matrix": lambda x, u: np.linalg.solve(A + np.outer(x, x), A) @ x,
    "solve, constant": lambda x, u: np.linalg.solve(A.T, np.sin(x)) + la.inv(A) @ np.sin(x) + la.pinv(A) @ x,
    "inverse": lambda x, u: la.inv(A + np.diag(np.sin(x))) @ x,
    "determinants": lambda x, u: np.array([la.det(A * np.sin(x[0])), la.det(np.eye(4) + x[1]), *la.slogdet(A + x[0])]),
    "cholesky": lambda x, u: la.cholesky(np.eye(3) * 3 + np.outer(x, x) * np.sin(0.3)) @ x,
    "norms": lambda x, u: np.array([la.norm(x), la.norm(np.sin(x), 1), la.norm(A * x), *la.norm(A * x, axis=1)]),
    "products": lambda x, u: np.array([x @ A @ x, np.dot(np.sin(x), A @ x), np.inner(x, x), x.dot(x), np.vdot(x, x)]),
    "more products": lambda x, u: la.matrix_power(A * np.sin(x), 3) @ x + la.multi_dot([A, A * x, x]),
    "tensors": lambda x, u: np.tensordot(A, np.sin(x), 1) + np.einsum("i,ij,j", x, A, np.sin(x)) + np.kron(x, x)[:3],
    "cross": lambda x, u: np.cross(np.sin(x), [1, 2, 3.0]) + np.einsum("ij,j->i", A, np.sin(x)),
    "lists times arrays": lambda x, u: [[1, 0.0], [0, 2.0]] @ np.sin(x[:2]),
    "choices": lambda x, u: np.where(x > 0.5, np.sin(x), x**2) + np.clip(x, -0.5, 0.5) + np.maximum(np.sin(x), 0.2),
    "more choices": lambda x, u: np.select([x < 0, x < 0.5], [np.sin(x), x**2], default=3.0),
    "pieces": lambda x, u: np.piecewise(np.sin(x), [x < 0, x >= 0], [lambda z: z, lambda z: 2 * z]),
    "booleans": lambda x, u: np.sin(x) * ((x > 0.2) & (x < 0.9) | ~(x > 0)) + (x > 0).sum() + (x > 0) * 1.0,
    "any and all": lambda x, u: np.where(np.any(x > 1) ^ np.all(x > 0), np.sin(x), x),
    "greatest": lambda x, u: np.array([max(x[0], 0.1), min(x[1], x[2], 0.2), max(np.sin(x)), float(x[0]), float("2")]),
    "sums": lambda x, u: np.array([np.sum(np.sin(x)), x.sum(), np.prod(x), x.mean(), np.var(x), x.std(), np.ptp(x)]),
    "more sums": lambda x, u: np.array([np.median(np.sin(x)), np.average(x, weights=[1, 2, 3.0]), sum(x), x.max()]),
    "sums along": lambda x, u: np.outer(np.sin(x), x).max(axis=0) + np.outer(x, x).mean(axis=1, keepdims=True)[:, 0],
    "running sums": lambda x, u: np.cumsum(np.sin(x)) + np.cumprod(x) + np.add.accumulate(x) + np.maximum.reduce(x),
    "calculus": lambda x, u: np.append(np.gradient(np.sin(x)), [np.trapezoid(x, dx=0.1), *np.diff(x)]),
    "polynomials": lambda x, u: np.polyval([1.0, 2, 3], np.sin(x)) + np.vander(np.sin(x), 3) @ x,
    "interpolation": lambda x, u: np.interp(np.sin(x), [0, 0.3, 0.5, 1], [0, 1, 4, 9.0]),
    "order": lambda x, u: np.sort(np.sin(x)) + x * np.argmax(np.sin(x)) + np.sin(x)[np.argsort([3, 1, 2])],
    "order of others": lambda x, u: x[np.argsort(np.sin(x))] + np.sin(x).argsort()[::-1] + np.median(np.sin(x)),
    "joined": lambda x, u: np.concatenate(
        [np.hstack([np.sin(x), u[0], 2]), np.vstack([x, x]).sum(0), np.r_[x, u], x[3:]]
    ),
    "blocks": lambda x, u: np.block([[np.diag(np.sin(x)), x[:, None]], [x[None], np.ones((1, 1))]]) @ np.ones(4),
    "moved": lambda x, u: np.roll(np.sin(x), 1) + np.flip(x) + np.tile(x, 2)[:3] + np.repeat(x, 2)[::2] + x.T.ravel(),
    "shaped": lambda x, u: np.sin(x).reshape(3, 1)[:, 0] + x.reshape((1, 3)).T.ravel() + np.expand_dims(x, 0)[0],
    "picked": lambda x, u: np.outer(np.sin(x), x)[[0, 1, 2], [1, 2, 0]] + np.outer(x, x)[np.triu_indices(3)][:3],
    "padded": lambda x, u: np.pad(np.sin(x), 1) + np.convolve(np.sin(x), [1, 2.0, 1]),
    "made": lambda x, u: np.full(3, np.sin(x[0])) + np.linspace(0, x[0], 3) + np.eye(3) @ x + np.arange(3) + np.ones(3),
    "types": lambda x, u: (
        np.zeros(3, dtype=float) + np.asarray(x, float) + x.astype(float) + np.array([np.sin(x[0]), 1, 2])
    ),
    "vectorized": lambda x, u: np.vectorize(lambda z: np.sin(z) * 2)(x) + np.meshgrid(x, x)[0].sum(0),
    "rounded": lambda x, u: np.round(np.sin(x) * 3, 1) + np.floor(x * 3) + np.sign(x) + np.heaviside(np.sin(x), 0.5),
    "written into": lambda x, u: np.add(np.sin(x), 1, out=np.zeros(3)),
    "a list": lambda x, u: [np.sin(x[0]), 0.0],
    "a table": lambda x, u, t: (
        TABLE[t] * np.sin(x) + TABLE[t, 1] + TABLE[t][:2].sum() + TABLE[-t - 1] + TABLE[int(t), 0]
    ),
    "tables elsewhere": lambda x, u, t: HELD.table[t] * np.sin(x) * HELD.gain + HELD.both[0][t] + HELD.both[1]["t"][t],
    "constants of JAX": lambda x, u, t: np.sin(x) - HELD_BY_JAX + (HELD_BY_JAX - x) * HELD_BY_JAX[t],
    "taken": lambda x, u, t: np.take(TABLE, t, axis=0) * np.sin(x) + np.sin(x)[::-1][t] + x[t],
    "written by t": written,
    "time": lambda x, u, t: np.sin(x) * t + t**2 + t / 2 + t // 2 + t % 2 + np.interp(0.3 * t, [0, 1.0], [0, 2.0]),
}


def arguments(f, x, u, t):
    return (x.copy(), u, t) if stage_function(f, "f").takes("t") else (x.copy(), u)


def own(f, x, u, t):
    return np.asarray(f(*arguments(f, x, u, t)), float)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_slopes_of_the_graph(name):
    f, rng = FUNCTIONS[name], np.random.default_rng(3)
    of = stage_function(f, "f")
    graph = trace(lambda x, u, t, p: of(x, u, t, None), (np.zeros(3), np.zeros(1), 0), None)
    J = np.array(jacobian(graph.g, graph.results[0].ravel().tolist(), graph.inputs[0].tolist()), np.intp)
    slopes = Graph(graph.g, graph.inputs, [J], [], [], graph.limit)
    for t in range(3):
        x, u = rng.uniform(-1.0, 1.2, 3), rng.uniform(-1.0, 1.0, 1)
        np.testing.assert_allclose(by_numpy(graph, x, u, t)[0], own(f, x, u, t), rtol=1e-11, atol=1e-12)
        steps = np.eye(3) * 1e-6
        differences = [(own(f, x + h, u, t) - own(f, x - h, u, t)).ravel() / 2e-6 for h in steps]
        np.testing.assert_allclose(by_numpy(slopes, x, u, t)[0], np.stack(differences, -1), rtol=1e-5, atol=1e-7)


def test_all_of_them_under_jit_vmap_and_grad():
    functions = [stage_function(f, "f") for f in FUNCTIONS.values()]
    rng = np.random.default_rng(4)
    xs, us, ts = rng.uniform(-1.0, 1.2, (4, 3)), rng.uniform(-1.0, 1.0, (4, 1)), np.array([0, 2, 1, 2])

    def values(x, u, t):
        return [jnp.ravel(f(x, u, t, None)) for f in functions]

    def slopes(x, u, t):
        return jax.jacfwd(values)(x, u, t)

    found, J = jax.jit(jax.vmap(lambda *a: (values(*a), slopes(*a))))(xs, us, ts)
    for k, f in enumerate(FUNCTIONS.values()):
        for row, (x, u, t) in enumerate(zip(xs, us, ts, strict=True)):
            np.testing.assert_allclose(found[k][row], own(f, x, u, t).ravel(), rtol=1e-11, atol=1e-12)
            differences = [(own(f, x + h, u, t) - own(f, x - h, u, t)).ravel() / 2e-6 for h in np.eye(3) * 1e-6]
            np.testing.assert_allclose(J[k][row], np.stack(differences, -1), rtol=1e-5, atol=1e-7)


# Whole problems, against the same ones written with JAX.


def rate_of(n):
    def mass(q):
        return n.array([[2.0 + n.cos(q[1]), 0.5], [0.5, 1.0 + 0.1 * q[0] ** 2]])

    def rate(x, u, t, params):
        forces = u - params["damping"] * x[2:] - n.array([n.sin(x[0]), 0.3 * n.sin(x[1])])
        return n.concatenate([x[2:], n.linalg.solve(mass(x[:2]), forces)])

    return rate


REFERENCE = np.column_stack([np.sin(np.linspace(0, 1, 20)), np.cos(np.linspace(0, 1, 20))])


def arm(n, **changes):
    """The two-link arm, all of its functions by one library."""
    reference = n.asarray(REFERENCE)

    def cost(x, u, t):
        e = x[:2] - reference[t]
        return e @ e + 0.01 * u @ u + n.where(x[0] > 0.5, (x[0] - 0.5) ** 2, 0.0)

    dynamics = oc.discretize(rate_of(n), 0.1, nx=4, nu=2)
    parts = dict(horizon=20, x0=[0.1, 0.1, 0.0, 0.0], params={"damping": np.array(0.3)}) | changes
    return oc.Problem(dynamics, cost, lambda x: n.sum(n.square(x)) * 2.0, **parts)


def constraints(n):
    return {
        "path_inequality": lambda x, u: n.array([n.abs(x[2]) - 1.0, n.hypot(x[0], x[1]) - 2.0]),
        "terminal_inequality": oc.Soft(lambda x: n.stack([x[3] - 0.1, -n.sin(x[2])]), l1=5.0),
        "u_min": -3.0,
        "u_max": 3.0,
    }


def pairs(**changes):
    return arm(np, **changes), arm(jnp, **changes)


US = 0.1 * np.sin(np.arange(40.0)).reshape(20, 2)


def close(a, b, tolerance=1e-10):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_the_model_in_jax():
    mine, theirs = (oc.gradient(p, US) for p in pairs())
    for name in ("cost", "xs", "costates", "us", "x0"):
        close(getattr(mine, name), getattr(theirs, name))
    close(mine.params["damping"], theirs.params["damping"])
    assert abs(float(mine.params["damping"])) > 1e-3
    p, q = pairs()
    of = jax.jit(jax.grad(lambda us, p: oc.gradient(p, us).cost))
    close(of(jnp.asarray(US), p), theirs.us)
    many = np.stack([US, -US])
    close(
        jax.vmap(lambda us: oc.gradient(p, us).costates)(many), jax.vmap(lambda us: oc.gradient(q, us).costates)(many)
    )
    close(
        oc.hessian_vector_product(p, US, dus=US).us,
        jax.jit(lambda us: oc.hessian_vector_product(q, us, dus=us).us)(US),
    )


@pytest.mark.parametrize("method", ["ilqr", "newton_cg", "interior_point"])
def test_solutions_are_those_of_the_model_in_jax(method):
    mine, theirs = (oc.solve(p, US, method=method) for p in pairs())
    assert mine.converged
    assert theirs.converged
    close(mine.us, theirs.us, 1e-6)


def test_constraints_soft_rows_and_a_certificate_by_the_function_itself():
    mine, theirs = (oc.solve(arm(n, **constraints(n)), US) for n in (np, jnp))
    assert mine.converged
    assert theirs.converged
    assert mine.certificate is not None
    close(mine.us, theirs.us, 1e-7)


def test_derivatives_of_solutions():
    p, q = (arm(n, **constraints(n)) for n in (np, jnp))

    def cost(d, p):
        return oc.solve(p, US, params={"damping": d}, method=oc.InteriorPoint()).cost

    close(jax.grad(cost)(0.3, p), jax.grad(cost)(0.3, q), 1e-6)


def test_model_predictive_control():
    controllers = [oc.MPC(arm(n, **constraints(n))) for n in (np, jnp)]
    x, found = np.array([0.3, 0.1, 0.0, 0.0]), []
    for mpc in controllers:
        u, _ = mpc.step(mpc.init(x), x)[:2]
        found.append(u)
    close(found[0], found[1], 1e-6)


def test_policies():
    def trained(n):
        def policy(x, t, params):
            return n.tanh(params @ x)

        return oc.train_policy(arm(n), policy, 0.1 * np.ones((2, 4)), np.eye(4)[:2], steps=3).params

    close(trained(np), trained(jnp), 1e-8)


def test_a_linear_quadratic_problem_is_seen_to_be_one():
    dynamics = oc.discretize(lambda x, u: np.array([x[1], u[0]]), 0.1, nx=2, nu=1)
    problem = oc.Problem(dynamics, lambda x, u: np.sum(x**2) + 0.1 * np.dot(u, u), lambda x: 10 * np.dot(x, x),
                         x0=[1.0, 0.0], horizon=10)  # fmt: skip
    found = oc.solve(problem)
    assert "lq" in repr(found)
    assert found.converged
    bent = oc.discretize(lambda x, u: np.array([np.sin(x[1]), u[0]]), 0.1, nx=2, nu=1)
    with pytest.raises(ValueError, match="sin"):
        oc.solve(problem.replace(dynamics=bent), np.zeros((10, 1)), method="lq")


def test_odes_with_events():
    def bounced(n):
        ode = oc.ODE(lambda z, t, params: n.array([z[1], -params * n.cos(0.1 * z[0])]))
        event = oc.Event(lambda z: n.minimum(z[0], 9.0), reset=lambda z: n.array([0.0, -0.8 * z[1]]))
        loss = lambda zs: n.sum(zs[-1] ** 2)
        return oc.ode_gradient(ode, loss, [1.0, 0.0], [0.0, 1.0], params=9.81, event=event)

    mine, theirs = bounced(np), bounced(jnp)
    close(mine.params, theirs.params, 1e-7)
    close(mine.z0, theirs.z0, 1e-7)


def test_single_precision_and_batches_of_batches():
    of = stage_function(lambda x, u: np.array([np.sin(x[0]), u[0] * x[1]]), "f")
    x, u = jnp.ones((2, 3, 2), jnp.float32), jnp.ones((3, 1), jnp.float32)
    found = jax.jit(jax.vmap(jax.vmap(lambda x, u: of(x, u, 0, None)), (0, None)))(x, u)
    assert found.dtype == jnp.float32
    assert found.shape == (2, 3, 2)
    close(found, np.broadcast_to([np.sin(1.0), 1.0], (2, 3, 2)), 1e-6)


def test_numbers_run_the_function_itself():
    seen = []

    def f(x, u):
        seen.append(type(x))
        x[0] = np.sin(x[0])
        return x + u

    dynamics = oc.Dynamics(f, 2, 1)
    x = np.array([1.0, 2.0])
    found = dynamics.step(x, np.zeros(1), 0, None)
    assert seen[-1] is np.ndarray
    assert type(found) is np.ndarray
    assert x[0] == 1.0  # it writes into a copy
    close(dynamics.rollout([1.0, 2.0], np.zeros((2, 1)))[2], [np.sin(np.sin(1.0)), 2.0])


# What is refused.


def global_state(x, u):
    global_state.calls += 1
    return np.sin(x) * global_state.calls


global_state.calls = 0

REFUSED = {
    "if": (lambda x, u: np.sin(x) if x[0] > 0 else x, r"`f` decides by the value .*np.where\(condition.*line \d+ of test_"),
    "and": (lambda x, u: np.where(x[0] > 0 and x[1] > 0, np.sin(x), x), "`f` decides by the value.*np.logical_and"),
    "a mask": (lambda x, u: np.sin(x[x > 0]), r"`f` picks entries by a mask.*np.where\(mask"),
    "nonzero": (lambda x, u: np.sin(x[np.where(x > 0)]), "`f` picks entries by a mask"),
    "range": (lambda x, u, t: np.sin(x) * sum(1.0 for _ in range(t)), "`f` counts or indexes.*range"),
    "a list": (lambda x, u, t: np.sin(x) * [1.0, 2.0, 3.0][t], "`f` counts or indexes.*np.asarray"),
    "eigenvalues": (lambda x, u: np.linalg.eigvals(np.diag(x)), "`f` uses np.linalg.eigvals, which cannot be traced"),
    "what NumPy decides": (lambda x, u: np.sin(x) * np.allclose(x, 1.0), "`f` uses np.allclose, which cannot be traced"),
    "complex": (lambda x, u: np.sin(x) * complex(x[0], 1.0), "`f` asks an array for its number"),
    "an index": (lambda x, u: np.sin(x[2]) * x, "`f` fails on arguments.*index 2 is out of bounds for axis 0 with size 2"),
    "a shape": (lambda x, u: np.ones(5) @ np.sin(x), r"`f` fails on arguments.*shapes"),
    "nothing": (lambda x, u: print(end="", file=None) if np.sin(x).sum else x, "`f`.*returns None"),
    "a state": (global_state, "`f` called with numbers and traced .* gives other values"),
    "another type": (
        lambda x, u: np.sin(x) * (2.0 if isinstance(x, np.ndarray) else 1.0),
        "`f` called with numbers and traced .* gives other values.*type",
    ),
    "a random number": (lambda x, u: np.sin(x) + np.random.default_rng().normal(), "gives other values"),
    "JAX beside NumPy": (lambda x, u: jnp.sin(np.array([x[0], u[0]])), "`f` hands an array to NumPy, beside functions of JAX"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    f, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        oc.Dynamics(f, 2, 1).rollout(np.ones(2), np.zeros((3, 1)))


def test_a_table_that_is_too_short():
    short = np.ones(3)
    with pytest.raises(
        ValueError, match=r"`stage_cost` takes entry 3 at stage 3 of an axis of 3; expected.*short\[t\]"
    ):
        oc.Problem(
            oc.LinearDynamics(np.eye(2), [[0.0], [1.0]]),
            lambda x, u, t: np.sum(np.sin(u)) * short[t],
            horizon=4,
            x0=[1.0, 0.0],
        )


def test_the_users_names_are_left_alone():
    before = dict(globals()), np.zeros, math.sin
    stage_function(lambda x, u: helper(np.sin(x)) * HELD.gain, "f")
    oc.Dynamics(lambda x, u: helper(np.sin(x)), 2, 1)
    assert before[1:] == (np.zeros, math.sin)
    assert all(globals()[name] is value for name, value in before[0].items())
    assert type(HELD.table) is np.ndarray
    assert dataclasses.is_dataclass(Spring)


@pytest.mark.parametrize("name", ["sin", "multiply", "arctan2", "less", "matmul"])
def test_a_wrong_rule_is_found_when_the_model_is_made(name, monkeypatch):
    ufunc, other = getattr(np, name), {"less": np.greater, "matmul": np.matmul}.get(name, np.add)
    right = UFUNCS[other]

    def wrong(un, *args):
        return right(un, *args[::-1]) if name == "matmul" else right(un, args[0], args[-1])

    monkeypatch.setitem(UFUNCS, ufunc, wrong)
    with pytest.raises(ValueError, match="gives other values"):
        oc.Dynamics(lambda x, u: A[:2, :2] @ np.sin(x * u[0]) + np.where(np.arctan2(x, 2.0) < 0.3, x, 1.0), 2, 1)


def test_every_operation_of_a_graph_has_its_function_in_jax():
    assert set(BY_JAX) == set(EVALUATE)
    x, y = np.array([-1.7, -0.4, 0.0, 0.3, 0.5, 0.9, 2.5]), np.array([0.6, -0.4, 0.2, 0.3, -1.5, 2.0, 0.7])
    for name, function in BY_JAX.items():
        count = 3 if name == "select" else OPERANDS.get(name, 1)
        args = [np.float64(x > 0), x, y] if count == 3 else [x, y][:count]
        with np.errstate(all="ignore"):
            wanted = np.asarray(EVALUATE[name](*args), float)
        np.testing.assert_allclose(function(*map(jnp.asarray, args)), wanted, rtol=1e-13, atol=1e-15, err_msg=name)


def test_a_model_is_judged_by_the_function_itself():
    """A graph that is wrong, here because the function reads what has changed since, is found out."""
    gain = [1.0]
    dynamics = oc.Dynamics(lambda x, u: np.array([gain[0] * np.sin(x[0]) + u[0]]), 1, 1)
    problem = oc.Problem(dynamics, lambda x, u: x @ x + u @ u, horizon=10, x0=[1.0], u_max=5.0)
    assert oc.solve(problem, np.zeros((10, 1))).converged
    gain[0] = 1.5
    with pytest.warns(UserWarning, match="`f` read `gain`"):
        assert not oc.solve(problem.replace(x0=[1.1]), np.zeros((10, 1))).converged


def doubled(v):
    v *= 2.0


def by_helper(x, u):
    y = 0.9 * x
    doubled(y)
    return y + u


def by_alias(x, u):
    a = x * 1.0
    b = a
    b += u[0]
    return 0.5 * (a + b)


def by_view(x, u):
    y = x.copy()
    r = y[:2]
    r += u[0]
    return 0.9 * y


def by_method(x, u):
    y = x.copy()
    y.sort()
    return 0.9 * y + u


@pytest.mark.parametrize("step", [by_helper, by_alias, by_view, by_method])
def test_what_changes_arrays_in_place_means_what_numpy_says(step, rng):
    """JAX traces these, too, and gives `y += u` another meaning."""
    dynamics = oc.Dynamics(step, 3, 1)
    x, us = np.array([0.3, -0.2, 0.5]), rng.normal(size=(4, 1))
    xs = [x]
    for u in us:
        xs.append(step(xs[-1].copy(), u))
    np.testing.assert_allclose(dynamics.rollout(x, us), xs, atol=1e-14)
    problem = oc.Problem(dynamics, lambda x, u: x @ x + u @ u, horizon=4, x0=x)
    np.testing.assert_allclose(oc.gradient(problem, us).xs, xs, atol=1e-14)
    A, B = dynamics.linearize(np.array(xs), us)
    h = 1e-6
    np.testing.assert_allclose(
        A[0] @ x, (step(xs[0] * (1 + h), us[0]) - step(xs[0] * (1 - h), us[0])) / 2 / h, atol=1e-8
    )
    np.testing.assert_allclose(B[0][:, 0], (step(x.copy(), us[0] + h) - step(x.copy(), us[0] - h)) / 2 / h, atol=1e-8)


def test_free_parameters_of_a_numpy_model():
    cost = lambda x, u, t, p: np.sum((x - p) ** 2)
    problem = oc.Problem(
        oc.Dynamics(lambda x, u, t, p: x + 0.1 * np.sin(x) * p, 1, 0), cost, horizon=3, x0=[0.4], params=np.array([0.2]),
        params_min=np.array([-5.0]),
    )  # fmt: skip
    found = [oc.solve(problem, free="params", method=method) for method in ("interior_point", "lbfgs")]
    assert all(found)
    np.testing.assert_allclose(found[0].params, found[1].params, atol=1e-5)


def copies(x, u):
    y = np.array(x, dtype=float)
    z, w = x.astype(float), x.flatten()
    y[0] = np.clip(y[0], -5, 5)
    z[1] = w[1] = 0.0
    return 0.5 * y + 0.1 * x + z + w + u


def numbers(x, u):
    v0 = v = x[1]
    v += 5.0 * (x[0] > 3)
    return np.array([v0 + u[0], v])


def truths(x, u):
    big = x > 3
    A = np.outer(x, x)
    A[big] = 0.0
    return ((big[0] + big[1]) * 1.0 + A.sum(axis=1)) * 0.1 + u


@pytest.mark.parametrize("step", [copies, numbers, truths])
def test_copies_are_copies_numbers_are_no_arrays_and_truths_add_as_numpys(step):
    dynamics, u = oc.Dynamics(step, 2, 1), np.array([[0.3]])
    for x in ([8.0, 1.0], [0.5, 9.0], [1.0, -2.0], [8.0, 9.0]):
        np.testing.assert_allclose(dynamics.rollout(x, u)[1], step(np.array(x), u[0]), atol=1e-14)


def test_options_of_sums_are_refused_not_dropped():
    cost = lambda x, u: np.sum(np.maximum(x, 3.0), dtype=int) + u @ u
    with pytest.raises(ValueError, match=r"another type"):
        oc.Problem(oc.Dynamics(lambda x, u: x + u, 1, 1), cost, horizon=2, x0=[1.0])


def test_modules_that_a_function_imports_and_modules_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "models_of_mine.py").write_text("import math\n\n\ndef lift(v):\n    return 2.0 * math.sin(v)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def f(x, u):
        import math
        from math import cos

        import models_of_mine

        return np.array([math.sin(x[0]), cos(x[1]), models_of_mine.lift(u[0])])

    dynamics = oc.Dynamics(f, 3, 1)
    x, u = np.array([0.3, 0.2, 0.1]), np.array([0.7])
    A, B = dynamics.linearize(np.tile(x, (2, 1)), u[None])
    np.testing.assert_allclose(dynamics.rollout(x, u[None])[1], [math.sin(0.3), math.cos(0.2), 2 * math.sin(0.7)])
    np.testing.assert_allclose(A[0], np.diag([math.cos(0.3), -math.sin(0.2), 0.0]), atol=1e-15)
    np.testing.assert_allclose(B[0, :, 0], [0.0, 0.0, 2 * math.cos(0.7)], atol=1e-15)


@pytest.mark.parametrize("name", ["sort", "argsort", "argmax", "argmin", "median", "interp"])
def test_what_is_no_number_goes_where_numpy_puts_it(name):
    call = {"interp": lambda v: np.interp(v, [0, 1], [2, 5])}.get(name, getattr(np, name))

    def f(x, u):
        return np.zeros(4) + call(np.log(x))

    of = stage_function(f, "f")
    graph = trace(lambda x, u, p: of(x, u, 0, None), (np.zeros(4), np.zeros(1)), None)
    for x in ([1.3, -1.0, 0.2, 1.3], [-1.0, 2.0, -2.0, 1.5], [2.0, 1.0, 0.5, 0.25]):
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(by_numpy(graph, np.array(x), np.zeros(1))[0], f(np.array(x), 0), rtol=1e-15)
