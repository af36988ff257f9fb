"""Methods as records: each owns its options, names what it has not, and is found through one table."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl.solvers import METHODS
from optctl.solvers.method import Method, method
from tests import zoo

BELONG_TO_SOLVE = ("problem", "us", "method", "xs", "x0", "params", "free", "tolerance", "verbose")


def test_the_table_is_whole():
    """Every record is public, in the table under its name, and nothing else is."""
    public = {getattr(oc, name) for name in oc.__all__ if inspect.isclass(getattr(oc, name))}
    assert set(METHODS.values()) == {kind for kind in public if issubclass(kind, Method)}
    assert all(METHODS[name].name == name and kind.summary for name, kind in METHODS.items())
    assert set(METHODS) == {"lq", "cg", "gradient_descent", "lbfgs", "newton_cg", "ilqr", "interior_point"}


def test_solve_keeps_what_belongs_to_every_method():
    signature = inspect.signature(oc.solve).parameters
    assert tuple(signature) == BELONG_TO_SOLVE
    for kind in METHODS.values():
        assert not set(kind.options()) & set(BELONG_TO_SOLVE), kind


@pytest.mark.parametrize("name", METHODS)
def test_a_name_is_short_for_a_record_with_default_options(name):
    problem = zoo.lq_problem()
    a, b = oc.solve(problem, method=name), oc.solve(problem, method=METHODS[name]())
    assert a.method == b.method == name
    np.testing.assert_array_equal(a.us, b.us)


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_an_option_that_a_method_has_not_is_refused_by_name(kind):
    with pytest.raises(ValueError, match=rf"`{kind.__name__}` has no option `speed`; (its options are|it has no)"):
        kind(speed=1)
    with pytest.raises(ValueError, match=r"has no option `tolerance`;.*`tolerance` is for `solve` itself"):
        kind(tolerance=1e-3)
    with pytest.raises(ValueError, match="takes its options by name"):
        kind(3)
    others = {option for other in METHODS.values() for option in other.options()} - set(kind.options())
    for option in others:
        holders = [other.__name__ for other in METHODS.values() if option in other.options()]
        with pytest.raises(ValueError, match=f"no option `{option}`.*{holders[0]}.* ha(s|ve) it"):
            kind(**{option: 1})
    if "max_iterations" in kind.options():
        for wrong in (-1, 2.5, True):
            with pytest.raises(ValueError, match="`max_iterations` is "):
                kind(max_iterations=wrong)


def test_options_reach_their_method():
    problem = zoo.pendulum_problem()
    for name in ("gradient_descent", "interior_point"):  # the others in the contract
        sol = oc.solve(problem, method=METHODS[name](max_iterations=1), tolerance=1e-13)
        assert int(sol.iterations) == 1, name
        assert sol.status == oc.Status.ITERATION_LIMIT, name
    assert int(oc.solve(zoo.lq_problem(), method=oc.CG(max_iterations=2), tolerance=1e-13).iterations) == 2
    steps = [oc.solve(problem, method=oc.GradientDescent(step=step)).iterations for step in ("bb", "armijo")]
    assert steps[0] != steps[1]
    with pytest.raises(ValueError, match="`step` is 'newton'; expected one of 'bb', 'armijo'"):
        oc.GradientDescent(step="newton")


@pytest.mark.parametrize("door", ["multistart", "refine", "known"])
def test_every_door_takes_the_same_record(door):
    """One iteration is asked for, one is made: the record arrives."""
    once = oc.InteriorPoint(max_iterations=1)
    known = oc.problems.least_energy()
    if door == "multistart":
        sol = oc.multistart(known.problem, np.zeros((known.problem.steps, 2)), guesses=2, method=once).best
    elif door == "refine":
        coarse = oc.problems.van_der_pol(horizon=6)
        sol = oc.refine(coarse.problem, coarse.solve(), tolerance=1e-9, max_rounds=1, method=once).solution
    else:
        sol = known.solve(once)
    assert int(sol.iterations) == 1


def test_a_method_of_ones_own_needs_no_registration():
    @method(static=("inputs",))
    class Constant(Method):
        """Returns constant inputs."""

        name = "constant"
        summary = "constant inputs"
        takes = "bounds"

        inputs: float = 0.0

        def run(self, objective, tolerance, us, xs):
            return dataclasses.replace(
                oc.LBFGS(max_iterations=0).run(objective, tolerance, us, xs),
                z=jnp.full(objective.size(), self.inputs),
            )

    sol = oc.solve(zoo.pendulum_problem(), method=Constant(inputs=0.5))
    assert sol.method == "constant"
    assert not sol  # it claims nothing that the certificate does not hold
    np.testing.assert_array_equal(sol.us, 0.5)


PICKS = {
    "lq": zoo.lq_problem(),
    "ilqr": zoo.pendulum_problem(),
    "newton_cg": zoo.pendulum_problem(x0=None),
    "interior_point": zoo.lq_problem().replace(u_min=-1.0),
}


@pytest.mark.parametrize("name", PICKS)
def test_plain_calls_jit_grad_and_vmap_pick_alike(name):
    """The choice looks at structure alone, not at numbers that `jit` has not got."""
    problem, seen = PICKS[name], []
    if problem.x0 is None:
        vary, at = (lambda s: problem.replace(params={k: s * v for k, v in problem.params.items()})), jnp.asarray(1.0)
    else:
        vary, at = (lambda x0: problem.replace(x0=x0)), problem.x0

    def cost(at):
        sol = oc.solve(vary(at))
        seen.append(sol.method)
        return sol.cost

    plain, traced = cost(at), jax.jit(cost)(at)
    np.testing.assert_allclose(plain, traced, rtol=1e-9)
    np.testing.assert_allclose(jax.vmap(cost)(jnp.stack([at, at])), [plain, plain], rtol=1e-9)
    assert seen == [name] * 3


def test_bounds_given_as_tracers_count():
    """A bound is structure: present or None; whether it binds is a number."""
    seen = []

    def cost(limit):
        sol = oc.solve(zoo.lq_problem().replace(u_max=limit))
        seen.append(sol.method)
        return sol.cost

    np.testing.assert_allclose(jax.jit(cost)(0.1), cost(0.1), rtol=1e-8)
    np.testing.assert_allclose(cost(1e6), oc.solve(zoo.lq_problem()).cost, rtol=1e-7)
    assert seen == ["interior_point"] * 3


def test_the_default_pick_of_a_linear_quadratic_problem_has_a_derivative():
    """A = B = Q = R = 1 on a long horizon: P is the golden section, and so is dJ/dx_0."""
    problem = oc.Problem(
        oc.LinearDynamics([[1.0]], [[1.0]]),
        oc.costs.Quadratic(Q=[[1.0]], R=[[1.0]]),
        oc.costs.TerminalQuadratic(Q=[[1.0]]),
        horizon=60,
        x0=[1.0],
    )
    slope = jax.grad(lambda x0: oc.solve(problem.replace(x0=x0)).cost)(jnp.array([1.0]))
    np.testing.assert_allclose(slope, (1 + 5**0.5) / 2, rtol=1e-8)
    gain = jax.jacobian(lambda x0: oc.solve(problem.replace(x0=x0)).us[0])(jnp.array([1.0]))
    np.testing.assert_allclose(gain, [[-2 / (1 + 5**0.5)]], rtol=1e-8)


def test_arguments_stand_in_one_order():
    """Problem first, then x0, us, params; of a problem, which holds x0 and params itself, us alone is positional."""
    for name in oc.__all__:
        function = getattr(oc, name)
        if not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert len(positional) <= 5, name
        if positional[:1] == ["problem"] and "us" in positional:
            assert positional[1] == "us", name
            assert positional[2:] in ([], ["method"]), name
        order = [{"z0": 0, "x0": 0, "us": 1, "params": 2}.get(p) for p in positional]
        order = [place for place in order if place is not None]
        assert order == sorted(order), name
        keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert {"x0", "us", "params"} <= keywords | set(positional) or name not in ("gradient", "check_gradient"), name


@pytest.mark.big
@pytest.mark.parametrize("name", ["ilqr", "newton_cg", "gradient_descent", "cg"])
def test_derivatives_that_a_method_has_not_are_refused_in_its_name(name):
    problem = zoo.lq_problem()

    def cost(x0):
        return oc.solve(problem.replace(x0=x0), method=name).cost

    x0 = jnp.asarray(problem.x0)
    for derivative in (jax.grad(cost), jax.jit(jax.grad(cost)), jax.jacfwd(cost)):
        with pytest.raises(ValueError, match=rf"method '{name}' is not differentiated through.*InteriorPoint\(\)"):
            derivative(x0)
    np.testing.assert_allclose(jax.jit(jax.vmap(cost))(x0[None]), [cost(x0)], rtol=1e-9)  # other transformations pass
