"""`jax.grad` of a plain call: the solve runs on the host, and its derivative is one linear map of NumPy's."""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl._record import changed
from optctl.engine.graphs import _GRAPHS, Graphs
from optctl.shooting.linked import Settled, _of_prices
from optctl.shooting.primal_dual import Unknowns, newton_rows
from optctl.shooting.rows import Rows
from optctl.tape import Unsupported

N, TINY = 12, 1e-5
PENDULUM = oc.discretize(oc.models.Pendulum(), dt=0.15)
WAY = np.linspace(0.5, 0.0, N)
PLAN = {"r": np.stack([WAY, 0 * WAY], axis=1), "q": np.array([1.0, 0.3]), "w": np.array(0.2)}
DRIVE = {"m": np.array(1.0), "g": np.array(9.8), "d": 0.1 * np.cos(np.arange(N))}
COST = lambda x, u: 0.05 * (x @ x + 0.1 * u @ u)


def follow(x, u, t, params):
    return 0.05 * ((x - params["r"][t]) @ (params["q"] * (x - params["r"][t])) + params["w"] * u @ u)


def drive(x, u, t, params):
    pull = params["m"] * u[0] - params["g"] * jnp.sin(x[0]) + params["d"][t]
    return jnp.stack([x[0] + 0.15 * x[1], x[1] + 0.15 * pull])


def pendulum(**fields):
    common = {"stage_cost": COST, "terminal_cost": lambda x: x @ x, "horizon": N, "x0": np.array([1.0, 0.0])}
    return oc.Problem(PENDULUM, **common | fields)


PRIOR = {
    "x0": None, "params": {"w": np.array(2.0), "m": np.array([1.0, 0.2])},
    "initial_cost": lambda x, params: params["w"] * (x - params["m"]) @ (x - params["m"]),
}  # fmt: skip
CASES = {
    "bounds of inputs": (pendulum(u_min=-0.7, u_max=np.full((N, 1), 0.8)), {}),
    "bounds of states": (pendulum(x_min=np.tile([-9.0, -0.5], (N + 1, 1)), x_max=np.array([2.0, 9.0])), {}),
    "references": (
        oc.Problem(
            PENDULUM, oc.costs.Tracking(np.eye(2), 0.1 * np.eye(1), x_ref=PLAN["r"], u_ref=np.zeros((N, 1))),
            oc.costs.TerminalQuadratic(np.eye(2), PLAN["r"][-1]), horizon=N, x0=np.array([1.0, 0.0]), u_min=-1.0,
        ), {},
    ),
    "parameters by stage": (pendulum(stage_cost=follow, params=PLAN, u_max=0.7), {}),
    "parameters of dynamics": (
        oc.Problem(
            oc.Dynamics(drive, nx=2, nu=1), lambda x, u, t, params: x @ x + params["m"] * 0.1 * u @ u,
            lambda x, params: params["g"] * x @ x / 9.8, horizon=N, x0=np.array([1.0, 0.0]), params=DRIVE, u_min=-2.0,
        ), {},
    ),
    "terminal rows": (
        pendulum(
            terminal_equality=lambda x, params: x[:1] - params["a"], u_min=-6.0, params={"a": np.array(0.05)},
            terminal_inequality=lambda x, params: x[1:] + 1 + params["a"],
        ), {},
    ),
    "path rows": (
        pendulum(
            path_inequality=lambda x, u, t, params: jnp.stack([u[0] * x[1] - 0.3, -x[1] - params["c"][t]]),
            path_equality=lambda x, u, t, params: jnp.stack([0.0 * u[0] + jnp.where(t == 3, u[0] - params["k"], 0.0)]),
            params={"k": np.array(0.4), "c": np.linspace(0.5, 0.9, N)},
        ), {},
    ),
    "soft rows": (
        pendulum(
            path_inequality=oc.Soft(
                lambda x, u: jnp.stack([-x[1] - 0.5, x[0] - 0.9]), l1=np.array([0.02, 1.0]), l2=np.array([0.3, 0.1])
            ),
            terminal_inequality=oc.Soft(lambda x: 0.2 - x, l1=0.01, l2=0.5),
        ), {},
    ),
    "soft equalities": (pendulum(terminal_equality=oc.Soft(lambda x: x - 0.2, l1=np.array([0.1, 2.0]), l2=0.5)), {}),
    "free x_0": (
        pendulum(**PRIOR, x0_min=np.array([-5.0, 0.3]), x0_max=5.0, x_min=np.array([-5.0, -1.7]), u_min=-1.0), {},
    ),
    "free parameters": (
        oc.Problem(
            oc.Dynamics(drive, nx=2, nu=1), oc.costs.Tracking(np.eye(2), 0.0, x_ref=PLAN["r"], u_ref=np.zeros((N, 1))),
            horizon=N, x0=np.array([1.0, 0.0]), params=DRIVE, params_max={"m": 5.0, "g": 5.0, "d": np.full(N, 0.1)},
            params_min=-5.0, terminal_cost=lambda x, params: sum(1e-2 * jnp.sum(v**2) for v in params.values()),
        ), {"us": 0.5 * np.ones((N, 1)), "free": "params"},
    ),
    "Gauss-Newton": (pendulum(u_min=-0.7), {"method": oc.InteriorPoint(hessian="gauss_newton")}),
    "one step": (pendulum(horizon=1, u_max=-0.1, u_min=-0.2), {}),
}  # fmt: skip


def as_function(name, tolerance=1e-8):
    """The parts of the solution as a function of the floating leaves of the problem; those leaves; their structure."""
    problem, options = CASES[name]
    leaves, structure = jax.tree.flatten(problem)
    places = [i for i, leaf in enumerate(leaves) if np.asarray(leaf).dtype == np.float64]

    def parts(values):
        every = list(leaves)
        for place, value in zip(places, values, strict=True):
            every[place] = value
        options_ = {"method": "interior_point", "tolerance": tolerance} | options
        s = oc.solve(jax.tree.unflatten(structure, every), **options_)
        return {
            "cost": s.cost, "xs": s.xs, "us": s.us, "x0": s.x0, "costates": s.costates, "params": s.params,
            "multipliers": s.multipliers,
        }  # fmt: skip

    return parts, [np.asarray(leaves[place], float) for place in places]


def random_like(rng, tree):
    return jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), tree)


def dot(a, b):
    return sum(np.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_differences_in_every_leaf(name):
    """Forward against differences of solves, reverse against forward by a dot product."""
    rng = np.random.default_rng(1)
    parts, values = as_function(name, tolerance=1e-12)
    moves = [rng.normal(size=value.shape) * (np.abs(value) < 1e10) for value in values]
    out, slope = jax.jvp(parts, (values,), (moves,))
    plain = parts(values)
    for key in out:
        for a, b in zip(jax.tree.leaves(out[key]), jax.tree.leaves(plain[key]), strict=True):
            np.testing.assert_array_equal(a, b)
    ahead, back = (parts([v + h * m for v, m in zip(values, moves, strict=True)]) for h in (TINY, -TINY))
    assert np.abs(slope["us"]).max() > 1e-6 or name == "free parameters"
    for key, moved in slope.items():
        size = max([np.abs(leaf).max() for leaf in jax.tree.leaves(moved)], default=0.0)
        for own, a, b in zip(*(jax.tree.leaves(of[key]) for of in (slope, ahead, back)), strict=True):
            np.testing.assert_allclose(own, (np.asarray(a) - np.asarray(b)) / (2 * TINY), atol=1e-6 * (1 + size))
    weights = random_like(rng, out)
    (gradient,) = jax.vjp(parts, values)[1](jax.tree.map(jnp.asarray, weights))
    assert abs(dot(weights, slope) - dot(gradient, moves)) < 1e-6 * (1 + abs(dot(weights, slope)))


@pytest.mark.parametrize("name", ["parameters by stage", "soft rows", "free x_0"])
def test_derivatives_are_those_of_the_definition(name):
    parts, values = as_function(name)
    weights = random_like(np.random.default_rng(2), parts(values))

    def pulled(values):
        return jax.vjp(parts, values)[1](jax.tree.map(jnp.asarray, weights))[0]

    for own, defined in zip(pulled(values), jax.jit(pulled)(values), strict=True):
        np.testing.assert_allclose(own, defined, atol=2e-7 * (1 + np.abs(defined).max(initial=0)))


def cost_of(x0, **fields):
    return oc.solve(pendulum(x0=x0, u_min=-0.7, **fields), method="interior_point").cost


def test_without_a_tape_of_how_functions_move_the_definition_does_it(monkeypatch):
    parts, values = as_function("parameters by stage")
    score = lambda values: parts(values)["us"].sum() + parts(values)["cost"]
    expected = jax.grad(score)(values)

    def refuse(*_):
        raise Unsupported("a function")

    monkeypatch.setattr(Graphs, "moved", refuse)
    for own, other in zip(jax.grad(score)(values), expected, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-9)


def test_a_tape_that_differences_refute_is_not_used(monkeypatch):
    problem = pendulum(stage_cost=lambda x, u, t, params: follow(x, u, t, params) + 0.7 * x[0] ** 2, params=PLAN)
    score = lambda params: oc.solve(problem.replace(params=params, u_max=0.7)).us.sum()
    original = Graphs.moved

    def bent(self, leaves):
        stage, *others = original(self, leaves)
        return (replace(stage, constants=1.01 * stage.constants), *others)

    monkeypatch.setattr(Graphs, "moved", bent)
    refuted = jax.grad(score)(PLAN)
    monkeypatch.undo()
    for graphs in list(_GRAPHS.values()):
        getattr(graphs, "judged", {}).clear()
    own = jax.grad(score)(PLAN)
    for a, b in zip(jax.tree.leaves(refuted), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8 * (1 + np.abs(b).max()))


def test_nothing_is_compiled_for_the_derivative(monkeypatch):
    import jax._src.compiler as compiler

    compiled = []
    original = compiler.compile_or_get_cached

    def spy(backend, computation, *rest, **named):
        compiled.append(str(computation.operation.attributes["sym_name"]))
        return original(backend, computation, *rest, **named)

    x0 = jnp.array([0.9, 0.1])
    monkeypatch.setattr(compiler, "compile_or_get_cached", spy)
    jax.grad(lambda x0: cost_of(x0, stage_cost=lambda x, u: 0.06 * (x @ x + 0.1 * u @ u)))(x0)
    assert not [name for name in compiled if "solve" in name or "program" in name]
    assert len(compiled) <= 3


def test_jacobians_batches_and_pullbacks_within_jit():
    x0 = jnp.array([1.0, 0.0])
    inputs = lambda x0: oc.solve(pendulum(x0=x0, u_min=-0.7), method="interior_point").us
    forward, reverse = jax.jacfwd(inputs)(x0), jax.jacrev(inputs)(x0)
    assert np.abs(forward).max() > 0.1
    np.testing.assert_allclose(forward, reverse, atol=1e-12)
    pull = jax.vjp(inputs, x0)[1]
    many = jnp.eye(N)[:, :, None]
    np.testing.assert_allclose(jax.jit(jax.vmap(pull))(many)[0], reverse[:, 0], atol=1e-12)
    batch = jnp.stack([x0, 0.9 * x0])
    single = jnp.stack([jax.grad(cost_of)(x) for x in batch])
    np.testing.assert_allclose(jax.vmap(jax.grad(cost_of))(batch), single, rtol=1e-9)


def test_twice_is_refused_and_never_zero():
    x0 = jnp.array([1.0, 0.0])
    with pytest.raises(ValueError, match="differentiated twice"):
        jax.hessian(cost_of)(x0)
    with pytest.raises(ValueError, match="differentiated twice"):
        jax.grad(lambda a: jax.grad(lambda b: cost_of(jnp.stack([a, b])))(0.1))(1.0)
    with pytest.raises(ValueError, match="closes over"):
        jax.grad(lambda q: cost_of(x0, stage_cost=lambda x, u: q * (x @ x + u @ u)))(1.0)


def test_what_has_no_derivative_is_nan():
    x0 = jnp.array([1.0, 0.0])
    solve = lambda x0, **options: oc.solve(pendulum(x0=x0, u_min=-0.7), method=oc.InteriorPoint(**options))
    assert np.isnan(jax.grad(lambda x0: solve(x0).K.sum())(x0)).all()
    assert np.isnan(jax.grad(lambda x0: solve(x0, max_iterations=2).cost)(x0)).all()
    zero = jax.grad(lambda x0: solve(x0, max_iterations=2, failed_derivative=0.0).us.sum())(x0)
    np.testing.assert_array_equal(zero, 0.0)
    seen = []
    slope = jax.grad(lambda x0: solve(x0, callback=lambda s: seen.append(float(s.cost))).cost)(x0)
    np.testing.assert_allclose(slope, jax.grad(cost_of)(x0), rtol=1e-9)
    assert len(seen) > 3


def test_prices_of_rows_that_are_not_polished():
    """Cost and r/d of soft rows move with their prices as JAX differentiates them, also where s y = mu > 0."""
    rng = np.random.default_rng(3)
    s, y, e, v, c, l1, l2 = rng.uniform(0.1, 2.0, size=(7, 5))
    on, mu = np.ones(5, bool), 0.1
    rows = Rows({}, (("terminal_inequality", (5,)),), on, ~on, on, np.arange(5) != 2, l1, l2)
    z = Unknowns(None, None, None, s, y, e, v)
    at = Settled(SimpleNamespace(rows=rows), z, SimpleNamespace(at=SimpleNamespace(c=c)), mu, 1.0, None)

    def defined(l1, l2):
        priced = replace(rows, l1=l1, l2=l2)
        cost = jnp.where(rows.soft, l1 * e + 0.5 * l2 * e**2, 0.0)
        return cost, newton_rows(priced, jnp.asarray(c), z, mu)[0]

    for place, found in enumerate(_of_prices(at)):
        moves = [np.ones(5) if place == k else np.zeros(5) for k in range(2)]
        for own, expected in zip(found, jax.jvp(defined, (l1, l2), tuple(moves))[1], strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-14)


def test_a_solution_that_is_refuted_has_no_derivative(monkeypatch):
    def refuted(problem, solution):
        failed = np.asarray(int(oc.Status.DISAGREEMENT))
        return changed(solution, status=failed, converged=np.asarray(False), note="no", checked="NumPy")

    module = importlib.import_module("optctl.solvers.solve")
    x0 = jnp.array([1.0, 0.0])
    assert np.isfinite(jax.grad(cost_of)(x0)).all()
    monkeypatch.setattr(module, "judged", refuted)
    assert np.isnan(jax.grad(cost_of)(x0)).all()
