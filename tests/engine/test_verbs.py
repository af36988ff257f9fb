"""Verbs, Hessians with parameters and derivatives of gradients by compiled code: the definitions' numbers, no compile."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl import _native
from optctl.adjoint.gradient import Gradient, _gradient, _product, arguments
from optctl.dynamics import base
from optctl.engine.graphs import Place
from optctl.engine.native import find_engine
from optctl.lq.model import _model_by_jax
from optctl.policies import draws
from optctl.tape import Tape
from tests import zoo

pytestmark = pytest.mark.skipif(not _native.available(), reason="the engine is run by the compiled kernels")
KINDS = [name for name in zoo.kinds() if not name.startswith(("layers", "simulator"))]
ON_TAPES = ("function", "linear", "linear_staged", "closed_loop", "mesh", "euler", "midpoint", "rk4")
"""Kinds that tapes hold; of the others some may be, too."""


def close(a, b, rtol=1e-10):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        scale = np.abs(y).max(initial=1.0)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale, err_msg=jax.tree_util.keystr(path))


def like(tree, rng):
    return jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), tree)


@pytest.mark.parametrize("name", KINDS)
def test_verbs_are_the_definitions(name, rng):
    dynamics, x0, us, params = zoo.kinds()[name]
    xs = dynamics.rollout(x0, us, params)
    dx0, dus, dparams, gxs = like(x0, rng), like(us, rng), like(params, rng), like(xs, rng)
    # away from the rollout: verbs are those along any trajectory
    at = xs + 0.01 * like(xs, rng)
    calls = {
        "rollout": (x0, us, params),
        "tangent_rollout": (at, us, dx0, dus, params, dparams),
        "adjoint_rollout": (at, us, gxs, params),
        "linearize": (at, us, params),
        "curvature": (at, us, gxs, params),
    }
    for verb, given in calls.items():
        found = getattr(dynamics, verb)(*given)
        if name in ON_TAPES:
            assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found)), verb
        close(found, getattr(base, f"_{verb}")(dynamics, *given))


def test_a_kind_that_has_a_verb_of_its_own_is_asked():
    class Own(oc.AbstractDynamics):
        nx, nu = 1, 1

        def step(self, x, u, t, params):
            return x + u

        def jacobians(self, xs, us, params):
            return jnp.full((len(us), 1, 1), 2.0), jnp.ones((len(us), 1, 1))

    jax.tree_util.register_static(Own)
    assert Own().linearize(np.ones((3, 1)), np.ones((2, 1)))[0][0, 0, 0] == 2.0


def cases():
    pendulum = zoo.pendulum_problem()
    policy = oc.mlp([2, 5, 1])
    loop = oc.closed_loop(pendulum, policy).replace(params=policy.init(3))
    return {"pendulum": (pendulum, 0.3 * np.ones((7, 1))), "network": (loop, None)}


@pytest.mark.parametrize("name", cases())
def test_hessian_products_with_parameters_are_the_definitions(name, rng):
    problem, us = cases()[name]
    at = arguments(problem, us, None, None)
    along = like(at, rng)
    assert find_engine(problem, *at, curved=True, mixed=True) is not None
    found = oc.hessian_vector_product(problem, us, dus=along[0], dx0=along[1], dparams=along[2])
    assert type(found.xs) is np.ndarray
    close(found, _product(problem, at, along))
    # and alone in inputs or x0, which move the derivatives in the parameters, too
    some = oc.hessian_vector_product(problem, us, dx0=along[1])
    close(some, _product(problem, at, (np.zeros_like(at[0]), along[1], jax.tree.map(np.zeros_like, at[2]))))


@pytest.mark.parametrize("kind", ["turned", "pushed"])
@pytest.mark.parametrize("column", [0, -1])
def test_wrong_tapes_are_found_before_their_first_use(kind, column, monkeypatch):
    problem, us = cases()["pendulum"]
    k = 1.0 + 1e-3 * column  # a problem of its own: tapes are remembered
    problem = problem.replace(
        terminal_cost=lambda x, p: (k + p["b"]) * x @ x, stage_cost=lambda x, u, t, p: u @ u * p["k"]
    )
    make = getattr(Place, kind)

    def broken(self, leaves):
        made = make(self, leaves)
        if not self.staged:
            return made
        outputs = made.outputs.copy()
        outputs[column] = outputs[column - 1]
        return Tape(**{**{f: getattr(made, f) for f in made.__dataclass_fields__}, "outputs": outputs})

    monkeypatch.setattr(Place, kind, broken)
    native_graphs = sys.modules["optctl.engine.graphs"]
    monkeypatch.setattr(native_graphs, "_GRAPHS", {})
    assert find_engine(problem, us, problem.x0, problem.params, curved=True) is not None
    assert find_engine(problem, us, problem.x0, problem.params, curved=True, mixed=True) is None


def test_free_parameters_are_found_by_second_derivatives_on_both_kinds_of_arrays(monkeypatch):
    problem, us = cases()["pendulum"]
    target = np.linspace(0.1, 0.4, 8)[:, None] * np.ones(2)
    fit = problem.replace(
        stage_cost=lambda x, u, t, p: jnp.sum((x - jnp.asarray(target)[t]) ** 2) + 0.1 * (p["k"] - 1) ** 2,
        terminal_cost=lambda x, p: jnp.sum((x - target[-1]) ** 2) + 0.1 * p["b"] ** 2,
        initial_cost=None,
    )
    for method in (oc.NewtonCG(max_iterations=4), oc.GradientDescent(max_iterations=4)):
        here = oc.solve(fit, us, method, free=("us", "params"))
        assert isinstance(here.us, np.ndarray)
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["optctl.solvers.solve"], "find_engine", lambda *_, **__: None)
            there = oc.solve(fit, us, method, free=("us", "params"))
        assert isinstance(there.us, jax.Array)
        close((here.us, here.params), (there.us, there.params), rtol=1e-7)
    assert bool(oc.solve(fit, us, "newton_cg", free="params"))


@pytest.mark.parametrize("name", cases())
def test_gradients_are_differentiated_as_the_definition(name, rng):
    problem, us = cases()[name]
    at = arguments(problem, us, None, None)
    weights = like(_gradient(problem, *at), rng)

    def total(call, names):
        def weighed(point):
            g = call(point)
            pairs = [(getattr(g, n), getattr(weights, n)) for n in names]
            return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, zip(*pairs, strict=True)), strict=True))

        return weighed

    plain = lambda point: oc.gradient(problem, point[0], x0=point[1], params=point[2])
    defined = lambda point: _gradient(problem, *point)
    direction = like(at, rng)
    for names in (("cost",), ("us", "x0", "params"), tuple(Gradient.__dataclass_fields__)):
        close(jax.grad(total(plain, names))(at), jax.grad(total(defined, names))(at))
        close(jax.jvp(total(plain, names), (at,), (direction,)), jax.jvp(total(defined, names), (at,), (direction,)))
    if us is not None:
        in_us = lambda call: jax.jacrev(jax.grad(lambda us: call((us, *at[1:])).cost))(at[0])
        close(in_us(plain), in_us(defined))
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), at)
    close(jax.vmap(jax.grad(total(plain, ("cost",))))(batch), jax.vmap(jax.grad(total(defined, ("cost",))))(batch))


@pytest.mark.parametrize("given", [True, False])
def test_quadratic_models_are_the_definitions(given, rng):
    problem, us = cases()["pendulum"]
    problem = problem if given else problem.replace(x0=None)
    xs, costates = rng.normal(size=(8, 2)), rng.normal(size=(8, 2))
    for y in (None, costates):
        found = oc.lq.LQ.along(problem, xs, us, costates=y)
        assert isinstance(found.A, np.ndarray)
        close(found, _model_by_jax(problem, xs, us, problem.params, y))
    straight = zoo.lq_problem(free_x0=not given)
    zeros = np.zeros((9, 3)), np.zeros((8, 2))
    close(oc.lq.LQ.from_problem(straight), _model_by_jax(straight, *zeros, None, None))


def test_fresh_weights_are_those_of_jax_random():
    for seed in (0, 3, 2**40 + 7):
        key = jax.random.key(seed)
        words = draws.words_of(key)
        np.testing.assert_array_equal(words, draws.words_of(seed))
        np.testing.assert_array_equal(words, draws.words_of(jax.random.PRNGKey(seed)))
        np.testing.assert_array_equal(draws.split(words, 5), jax.random.key_data(jax.random.split(key, 5)))
        found, wanted = draws.normal(words, (41, 7)), jax.random.normal(key, (41, 7))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    policy = oc.mlp([3, 4, 2])
    close(policy.init(5), jax.jit(policy.init)(jax.random.key(5)), rtol=1e-12)
    assert draws.words_of(jax.random.key(0, impl="rbg")) is None
    close(policy.init(jax.random.key(0, impl="rbg")), jax.jit(policy.init)(jax.random.key(0, impl="rbg")))


CALLS = {
    "rollout": "oc.Dynamics(step, 2, 1).rollout([0.4, -0.3], us, P).round(3)",
    "tangent": "dynamics.tangent_rollout(xs, us, np.ones(2), us, P, P)",
    "adjoint": "dynamics.adjoint_rollout(xs, us, xs, P).params",
    "linearize": "dynamics.linearize(xs, us, P)[0]",
    "curvature": "dynamics.curvature(xs, us, xs, P)",
    "check_adjoint": "str(oc.check_adjoint(dynamics, None, us, P))",
    "check_gradient": "str(oc.check_gradient(problem, us))",
    "costate_growth": "str(oc.costate_growth(dynamics, xs, us, P))",
    "Hessian": "oc.hessian_vector_product(problem, us, dus=us, dparams=P).params",
    "model": "oc.lq.LQ.along(problem, xs, us, costates=xs)",
    "free parameters": "repr(oc.solve(problem, us, 'newton_cg', free=('us', 'params'), tolerance=1e-2))",
    "free x0": "repr(oc.solve(problem.replace(x0=None, x0_min=-1.0, x0_max=[0.5, np.inf]), us))",
    "network": "oc.gradient(loop, None, params=policy.init(0)).cost.round(3)",
    "training": "repr(oc.solve(loop, None, oc.LBFGS(max_iterations=3), params=policy.init(1), free='params'))",
    "multistart": "repr(oc.multistart(problem, np.stack([us, 2 * us])))",
    "bounded parameters": "repr(oc.solve(problem.replace(params_min=0.0, u_max=1.0), us, free=('us', 'params')))",
    "soft rows": "repr(oc.solve(problem.replace(terminal_equality=oc.Soft(lambda x, p: x, l1=1.0, l2=0.1)), us))",
    "controller": "oc.MPC(problem.replace(u_max=1.0), du_max=0.5).init(np.zeros(2)).us",
    "simulator": "str(oc.check_adjoint(simulator, [0.1, 0.2], us))",
    "linear": "oc.lq.LQ.from_problem(straight).A",
}
FRESH = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
import optctl as oc
counted = []
def count(name, *_, **about):
    if "backend_compile" in name:
        counted.append(about.get("fun_name"))
jax.monitoring.register_event_duration_secs_listener(count)
def step(x, u, t, p):
    return x + 0.1 * jnp.array([x[1] + 0.05 * t, -p["k"] * jnp.sin(x[0]) - p["b"] * x[1] ** 3 + u[0]])
P = {"k": 1.3, "b": 0.2}
us, xs = 0.3 * np.ones((7, 1)), np.ones((8, 2))
dynamics = oc.Dynamics(step, 2, 1)
problem = oc.Problem(
    dynamics, stage_cost=lambda x, u, t, p: p["k"] * x[0] ** 2 + u @ u + 0.1 * t * x[1] ** 2,
    terminal_cost=lambda x, p: (1 + p["b"]) * x @ x, initial_cost=lambda x, p: p["k"] * (x @ x), horizon=7,
    x0=[0.4, -0.3], params=P,
)
simulator = oc.SimulatorDynamics(
    lambda x, u: x + 0.1 * u, 2, 1, jacobian=lambda x, u: (np.eye(2), np.full((2, 1), 0.1))
)
policy = oc.mlp([2, 5, 1])
loop = oc.closed_loop(problem.replace(initial_cost=None), policy)
straight = oc.Problem(
    oc.LinearDynamics([[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]]), oc.costs.Quadratic(np.eye(2), np.eye(1)),
    horizon=5, x0=[1.0, 0.0],
)
counted.clear()
made = {}
for name, call in json.loads(sys.argv[1]).items():
    eval(call)
    made[name] = counted[:]
    counted.clear()
print(json.dumps(made))
"""


def test_a_first_call_compiles_nothing():
    more = {"two by JAX": "jnp.ones(3) + 1", "slope": "jax.grad(lambda us: oc.gradient(problem, us).cost)(us)"}
    command = [sys.executable, "-c", FRESH, json.dumps(CALLS | more)]
    compiled = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert len(compiled.pop("two by JAX")) == 3  # what is compiled is counted
    assert len(compiled.pop("slope")) <= 1  # the one that `jax.grad` begins with
    assert compiled == {name: [] for name in CALLS}


def test_derivatives_do_not_see_arrays_that_the_caller_changed():
    dynamics, p = oc.Dynamics(lambda x, u, t, p: p * x + u, nx=1, nu=1), np.array(0.5)
    y, pull = jax.vjp(lambda us: dynamics.rollout(np.ones(1), us, p), jnp.zeros((3, 1)))
    problem = oc.Problem(dynamics, lambda x, u: x @ x + u @ u, horizon=3, x0=[1.0], params=0.5)
    _, pull_gradient = jax.vjp(lambda us: oc.gradient(problem, us, params=p).us, jnp.zeros((3, 1)))
    p[...] = 3.0
    np.testing.assert_allclose(pull(jnp.ones_like(y))[0][:, 0], [1.75, 1.5, 1.0])
    np.testing.assert_allclose(pull_gradient(jnp.ones((3, 1)))[0][:, 0], [5.5, 5.0, 2.0])
