"""Wrong on purpose: each rule of the tape compiler, each of its simplifications, each operation of the tapes' processor,
and each rule of the NumPy interpreter in turn. No solve may claim convergence.

Each mutant is tried on the smallest of many tiny problems that uses it.
"""

import ast
import functools
import inspect
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from primitives import BINARY, CONTROL, MOVES, REFERENCES, UNARY

import optctl as oc
from optctl import _native
from optctl.engine import graphs
from optctl.judge import evaluation, interpreter, primitives
from optctl.shooting import native
from optctl.tape import Tape, derivatives, expressions, program, unroll
from optctl.tape.expressions import CODE, OPERATIONS, ZERO, Expressions
from optctl.tape.program import READS

pytestmark = pytest.mark.skipif(not _native.available(), reason="tapes are run by the compiled kernels")
N = 3


def total(tree):
    leaves = [jnp.where(leaf, 1.0, 0.0) if leaf.dtype == bool else 1.0 * leaf for leaf in jax.tree.leaves(tree)]
    weights = [0.3 + 0.7 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) for leaf in leaves]
    return sum(jnp.sum(leaf * weight) for leaf, weight in zip(leaves, weights, strict=True))


def problem(cost, nx=2, params=None):
    """The function in the cost of a stage, with parameters and the stage's index at hand."""
    return oc.Problem(
        oc.Dynamics(lambda x, u: x + 0.1 * u, nx=nx, nu=nx),
        lambda x, u, t, p: u @ u + x @ x + 0.1 * cost(x, t, p),
        horizon=N,
        x0=np.linspace(0.3, 0.6, nx),
        u_max=5.0,
        params=params,
    )


def problems():
    """Name -> a function that makes a tiny problem."""
    made = {}
    for name, f in UNARY.items():
        made[f"1 {name}"] = functools.partial(
            problem,
            lambda x, t, p, f=f, a=(1.7 if name == "acosh" else 0.0): (
                1.7 * total(f(0.8 * x[0] + a)) + total(f(0.3 * x[1] + a))
            ),
        )
    for name, f in BINARY.items():
        if name == "clamp":  # at its edge for every argument: its derivative is not that of its values
            continue
        made[f"2 {name}"] = functools.partial(
            problem, lambda x, t, p, f=f: total(f(x[0], x[1])) + total(f(x[0] - 0.5, 0.3))
        )
    for name, f in MOVES.items():
        made[f"move {name}"] = functools.partial(
            problem, lambda x, t, p, f=f: total(f(jnp.outer(1 + x, jnp.array([0.9, -0.3, 0.5, 0.1, 0.7, -0.2]))))
        )
    for name, f in CONTROL.items():
        if name == "while":  # which reverse mode does not take; `EXTRA` has one of the stage's index
            continue
        made[f"control {name}"] = functools.partial(problem, lambda x, t, p, f=f: total(f(x)), nx=3)
    rng = np.random.default_rng(0)
    p = {"A": jnp.asarray(rng.normal(size=(6, 3, 3))), "ref": jnp.asarray(rng.normal(size=(6, 3)))}
    for name, f in REFERENCES.items():
        made[f"reference {name}"] = functools.partial(
            problem, lambda x, t, p, f=f: total(f(t, p)) * (1 + x[0]), params=p
        )
    for name, f in EXTRA.items():
        made[f"extra {name}"] = functools.partial(
            problem, f, params={"a": jnp.asarray(0.7), "b": jnp.asarray([0.4, 1.3])}
        )
    return made


@jax.custom_vjp
def smooth(x):
    return jnp.sin(x)


smooth.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))
EXTRA = {
    "coefficients": lambda x, t, p: (p["a"] - x[0] * p["a"]) / (p["a"] + x[1] ** 2) - p["a"] * p["b"][0] / p["b"][1] * x[0],
    "memory": lambda x, t, p: (p["a"] + x[0] * x[1]) - (x[0] * x[1] - p["a"]) * (p["b"][0] * x[0] - x[1]) + (2.0 - x[0] * x[0]),
    "quotients": lambda x, t, p: p["a"] / jnp.cosh(x[0]) + x[1] / (p["a"] * jnp.cosh(x[1])) + 1 / (-jnp.cosh(x[0])) + 1 / (1 / jnp.cosh(x[1])),
    "signs": lambda x, t, p: (-x[0]) + (-x[1]) * x[0] - (-jnp.sin(x[0])) + (x[1] - jnp.cos(x[0])) * (-1.0) + (-x[0]) * x[1],
    "same": lambda x, t, p: (x[0] / 1.0 + x[0]) + (x[1] - x[1]) + jnp.maximum(x[0], x[0]) + jnp.where(x[0] > 0, x[1], x[1]),
    "whole": lambda x, t, p: (6.0 * x[0] - 2.0).astype(int) * x[1] + (x[1] > 0.3) * x[0] + jnp.where(x[0] != 0.5, x[1], 2.0),
    "counted": lambda x, t, p: jnp.arange(2.0) @ x + jnp.sum(jnp.where(jnp.arange(2) < t, x, 2.0 * x)),
    "folded": lambda x, t, p: -(jnp.arange(2.0) + 1.0) @ x + jnp.sum(jnp.where(jnp.arange(2) < 1, x, 2.0 * x)),
    "equal": lambda x, t, p: jnp.maximum(x[0], x[0]) + jnp.minimum(x[1], x[1]) + lax.clamp(x[1], x[0], x[1]),
    "least": lambda x, t, p: lax.cummin(x)[1] + lax.reduce_precision(x[0], 11, 52) + smooth(x[1]) ** 2,
    "select": lambda x, t, p: jnp.where(~(x[0] > 0.5), jnp.sin(x[0]), x[1]) + jnp.where(True, x[0], x[1]),
    "logic": lambda x, t, p: total(((x[0] > 0.4) & (x[1] > 0.1), (x[0] > 0.4) | (x[1] > 0.9), ~(x[0] > 5.0), (x > 0.2) & (x > 0.2))),
    "sorted": lambda x, t, p: total((lax.lt_to_p.bind(x[0], x[1]), lax.le_to_p.bind(x[1], x[0]))) if hasattr(lax, "lt_to_p") else x[0],
    "pow": lambda x, t, p: x[0] ** -0.5 + (1 + x[1]) ** -1.5 + x[0] ** 2.5 + (1 + x[0]) ** x[1] + p["a"] ** 2.0 + p["a"] ** -3.0,
    "clamped": lambda x, t, p: lax.clamp(p["a"], x[0], p["b"][1]) + lax.clamp(0.5, x[1], 0.5) + lax.clamp(0.0, x[1], p["b"][1]) ** 2,
    "while": lambda x, t, p: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 0.9), (0, 1.0 + t))[1] * x[0],
    "turns": lambda x, t, p: lax.while_loop(lambda y: y[1] < 2.0, lambda y: jnp.stack([0.9 * y[0] + 0.1 * y[1], 1.3 * y[1]]), jnp.stack([x[0], 1.0 + x[1] ** 2]))[0],
    "stage": lambda x, t, p: jnp.cos(1.0 * t) * x[0] + (1.0 * t - 2.0) * x[1] + (t % 2) * x[0] * p["a"] - 2.0 * (3.0 * p["a"]) * t,
}  # fmt: skip


class Traced:
    """`jax.make_jaxpr` with a memory: a mutant meets the functions of a problem again, and tracing is what takes long."""

    def __init__(self):
        self.known, self.problem, self.at = {}, None, 0

    def begin(self, name):
        self.problem, self.at = name, 0

    def __call__(self, function):
        def trace(*arguments):
            key = self.problem, self.at
            self.at += 1
            if key not in self.known:
                self.known[key] = jax.make_jaxpr(function)(*arguments)
            return self.known[key]

        return trace


TRACED = Traced()


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    shim = types.SimpleNamespace(**{**vars(jax), "make_jaxpr": TRACED})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "jax", shim)
        patch.setattr(interpreter, "jax", shim)
        yield
    forget()


@functools.cache
def made(name):
    return PROBLEMS[name]()


def forget():
    native._TAPES.clear()
    graphs._GRAPHS.clear()
    evaluation._FUNCTIONS.clear()


def guess(given):
    return np.tile(given.x0, (N + 1, 1)), np.zeros((N, len(given.x0)))


def attempt(name):
    """Solve by the kernel; return the solution, or None where it is refused, and what was said."""
    forget()
    TRACED.begin(name)
    given = made(name)
    xs, us = guess(given)
    try:
        solution = oc.solve(given, us, xs=xs, method=oc.InteriorPoint(backend="native"))
    except (ValueError, RuntimeWarning) as refused:
        return None, str(refused)
    return solution, solution.message


def tapes_of(name):
    forget()
    TRACED.begin(name)
    given = made(name)
    try:
        return native.tapes(given, *guess(given), given.params, True).every
    except (unroll.Unsupported, RuntimeWarning):
        return None


@pytest.fixture(scope="module")
def uses():
    """What each problem uses: rules of both kinds, branches of the simplifications, operations of its tapes."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        seen = set()

        def spy(kind, name, rule):
            def watched(*arguments):
                seen.add((kind, name))
                return rule(*arguments)

            return watched

        through_methods(patch)
        for name, rule in list(unroll.RULES.items()):
            patch.setitem(unroll.RULES, name, spy("tape", name, rule))
        for name, rule in list(primitives.RULES.items()):
            patch.setitem(primitives.RULES, name, spy("numpy", name, rule))
        for name, method in branches(lambda name, k: seen.add(("branch", f"{name} {k}"))).items():
            patch.setattr(Expressions, name, method)
        watch = lambda name, k, i: seen.add(("partial", f"{name} {k}")) or i
        for name, rule in list(derivatives.PARTIALS.items()):
            patch.setitem(derivatives.PARTIALS, name, each_partial(name, rule, watch))
        for name, rule in list(unroll.RULES.items()):
            patch.setitem(
                unroll.RULES, name, with_own_partials(rule, lambda g, i, name=name: seen.add(("own", name)) or i)
            )
        for name in PROBLEMS:
            seen.clear()
            tapes = tapes_of(name)
            if tapes is not None:
                codes = np.unique(np.concatenate([tape.code[:, 0] for tape in tapes]))
                found[name] = set(seen) | {("operation", OPERATIONS[code]) for code in codes}
    forget()
    return found


def each_partial(name, rule, change):
    """The table's rule, its partials that are not zero changed: change(name, number, partial)."""

    def partials(g, r, *operands):
        values = rule(g, r, *operands)
        return [i if i == ZERO else change(name, k, i) for k, i in enumerate(values)]

    return partials


def with_own_partials(rule, change):
    """A primitive's rule, the partials that it brings itself changed: change(g, partial)."""

    def changed(un, eqn, *args):
        plain = {name: getattr(Expressions, name) for name in ("improve", "given")}
        with pytest.MonkeyPatch.context() as patch:
            for name, method in plain.items():

                def wrapped(g, node, operands, own, method=method):
                    new = lambda: [i if i == ZERO else change(g, i) for i in own()]
                    return method(g, node, operands, new)

                patch.setattr(Expressions, name, wrapped)
            return rule(un, eqn, *args)

    return changed


DIRECT = {
    "add": "add",
    "add_any": "add",
    "sub": "sub",
    "mul": "mul",
    "neg": "neg",
    "max": "maximum",
    "min": "minimum",
}


def through_methods(patch):
    """Let the rules that are methods of `Expressions` find the patched ones."""
    for name, method in DIRECT.items():
        rule = lambda un, eqn, *args, method=method: un.map(
            functools.partial(getattr(Expressions, method), un.g), *args
        )
        patch.setitem(unroll.RULES, name, rule)


SIMPLIFIED = (
    *("add", "sub", "neg", "mul", "div", "reciprocal", "power", "pow", "select", "unary", "binary", "symmetric"),
    *("minimum", "maximum", "negation", "both", "either", "clamp", "lookup"),
)


def branches(hook):
    """Return the simplifying methods with a call hook(method, number) before each `return`."""
    methods = {}
    for name in SIMPLIFIED:
        method = getattr(Expressions, name)
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        count = 0

        class Marked(ast.NodeTransformer):
            def visit_Return(self, node):
                nonlocal count
                count += 1
                call = ast.parse(f"_hook({name!r}, {count - 1}, self, None)").body[0].value  # noqa: B023
                call.args[3] = node.value
                # evaluated before the hook, which may change it
                return ast.copy_location(ast.Return(call), node)

        tree = ast.fix_missing_locations(Marked().visit(tree))

        def marked(method, number, g, result):
            changed = hook(method, number)
            return result if changed is None else changed(g, result)

        scope = dict(vars(expressions))
        scope["_hook"] = marked
        exec(compile(tree, "branches", "exec"), scope)
        methods[name] = scope[name]
    return methods


def survives(uses, what, mutate):
    """Return None if no problem uses what is mutated, else whether the mutant's tapes are taken for right everywhere."""
    having = sorted([name for name, used in uses.items() if what in used], key=lambda name: len(uses[name]))
    if not having:
        return None
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        for name in having:
            if tapes_of(name) is None:  # where it made a difference
                solution, said = attempt(name)
                assert solution is None, said
                return False
    return True


def check_all(uses, mutants, unused=frozenset()):
    """Each mutant, by what it makes wrong, must be refused; `unused` are not used by any problem."""
    outcome = {what: survives(uses, what, mutate) for what, mutate in mutants.items()}
    assert {what[1] for what, survived in outcome.items() if survived is None} <= unused
    assert not [what for what, survived in outcome.items() if survived]


def wrong_expression(g, i, truth):
    if truth:
        return g.node(CODE["eq"], ZERO, i)
    return g.node(CODE["mul"], g.constant(1.03), g.node(CODE["add"], g.constant(0.01), i))


def test_the_problems_are_solved_without_mutants():
    for name in ("1 sin", "2 atan2", "control cond", "extra signs"):
        solution, said = attempt(name)
        assert solution is not None, said
        assert solution.converged
        assert solution.checked == "NumPy"


def wrong_rule(rule):
    def wrong(un, eqn, *args):
        results = rule(un, eqn, *args)
        several, changed = isinstance(results, list), []
        for v, result in zip(eqn.outvars, results if several else [results], strict=True):
            kind = v.aval.dtype.kind
            if kind in "fb":
                change = functools.partial(wrong_expression, un.g, truth=kind == "b")
            else:
                change = lambda i: un.g.add(un.g.constant(1.0), i)
            changed.append(np.array([change(int(i)) for i in result.ravel()], np.intp).reshape(result.shape))
        return changed if several else changed[0]

    return wrong


def test_every_rule_of_the_tape_compiler(uses):
    mutants = {
        ("tape", name): lambda patch, name=name, rule=rule: patch.setitem(unroll.RULES, name, wrong_rule(rule))
        for name, rule in list(unroll.RULES.items())
        if name != "platform_index"  # whichever branch is taken, it computes the same
    }
    check_all(uses, mutants, OTHER_NAMES | {"lu_pivots_to_permutation"})


def test_every_simplification(uses):
    mutants = {}
    for method in SIMPLIFIED:
        for k in range(inspect.getsource(getattr(Expressions, method)).count("return ")):

            def mutate(patch, method=method, k=k):
                truth = method in ("negation", "both", "either", "symmetric", "binary")

                def hook(name, number):
                    wrong = lambda g, i: wrong_expression(g, i, truth)
                    return wrong if (name, number) == (method, k) else None

                patch.setattr(Expressions, method, branches(hook)[method])
                through_methods(patch)

            mutants["branch", f"{method} {k}"] = mutate
    check_all(uses, mutants)


def test_every_partial(uses):
    mutants = {}
    for name, rule in derivatives.PARTIALS.items():
        for k in range(len(inspect.signature(rule).parameters) - 2):

            def mutate(patch, name=name, rule=rule, k=k):
                def partials(g, r, *operands):
                    wrong = lambda _, place, i: g.mul(g.constant(1.03), i) if place == k else i
                    return each_partial(name, rule, wrong)(g, r, *operands)

                patch.setitem(derivatives.PARTIALS, name, partials)

            if (name, k) not in (("select", 0), ("div", 0)):  # zero, and nothing that varies is divided but 1
                mutants["partial", f"{name} {k}"] = mutate
    check_all(uses, mutants)


def test_every_derivative_that_a_rule_brings(uses):
    names = {what[1] for used in uses.values() for what in used if what[0] == "own"}
    assert names >= {"logistic", "clamp", "pow", "integer_pow", "reduce_max", "custom_jvp_call", "custom_vjp_call"}
    assert "custom_linear_solve" in names
    wrong = lambda g, i: g.mul(g.constant(1.03), i)
    mutants = {
        ("own", name): lambda patch, name=name: patch.setitem(
            unroll.RULES, name, with_own_partials(unroll.RULES[name], wrong)
        )
        for name in names
    }
    check_all(uses, mutants)


PARTNER = {"eq": "ne", "ne": "eq", "lt": "eq", "le": "eq", "isfinite": "floor", "trunc": "neg"}
USUAL = ("cosh", "sinh", "add", "mul", "muladd", "add_m", "sub_m", "muladd_m", "negmuladd_m", "muladd_c", "negmuladd_c")


def test_every_operation(uses):
    packed, mutants = Tape.packed, {}
    for name in OPERATIONS:
        like = [o for o in USUAL if READS[CODE[o]] == READS[CODE[name]] and o != name]
        other = PARTNER.get(name, (like or [name])[0])

        def wrong(self, offset=0, code=CODE[name], other=CODE[other]):
            table = self.code.copy()
            hit = table[:, 0] == code
            if code == other:  # what reads from memory has no like: it reads from another place
                column = 2 if code == CODE["load"] else 3
                table[hit, column] = np.where(table[hit, column] == 0, 1, 0)
            table[hit, 0] = other
            return packed(Tape(**{**vars(self), "code": table}), offset)

        mutants["operation", name] = lambda patch, wrong=wrong: patch.setattr(Tape, "packed", wrong)
    check_all(uses, mutants)


def wrong_value(value):
    value = np.asarray(value)
    if value.dtype == bool:
        return ~value
    return value + 1 if value.dtype.kind in "iu" else 1.03 * (value + 0.01)


def wrong_answer(rule):
    def wrong(eqn):
        made = rule(eqn)

        def changed(*arguments):
            results = made(*arguments)
            return [wrong_value(r) for r in results] if isinstance(results, list) else wrong_value(results)

        return None if made is None else changed

    return wrong


def test_every_rule_of_the_interpreter(uses):
    def mutate(patch, name, rule):
        patch.setattr(interpreter, "MOST_TURNS", 100)
        patch.setitem(primitives.RULES, name, wrong_answer(rule))

    rules = [(name, rule) for name, rule in primitives.RULES.items() if name != "platform_index"]
    mutants = {("numpy", name): functools.partial(mutate, name=name, rule=rule) for name, rule in rules}
    check_all(uses, mutants, OTHER_NAMES | BEYOND_TAPES)


OTHER_NAMES = {
    "numpy_model",  # whose rules are put out of order in test_numpy_models.py
    # of rules that are used by another name, or belong to primitives that this version of JAX does not make here
    *(
        "call",
        "checkpoint",
        "closed_call",
        "composite",
        "core_call",
        "pjit",
        "remat",
        "remat2",
        "custom_vjp_call_jaxpr",
    ),
    *("copy", "copy_p", "device_put", "name", "optimization_barrier", "pvary", "sharding_constraint", "add_any"),
    *(
        "expand_dims",
        "unstack",
        "empty",
        "empty2",
        "scatter_add",
        "scatter_sub",
        "scatter_mul",
        "scatter_min",
        "scatter_max",
    ),
    *("scatter-sub", "dynamic_slice", "dynamic_update_slice", "cond", "nextafter", "shift_left", "reduce_xor"),
}
BEYOND_TAPES = {"erf_inv", "lgamma", "digamma", "cumlogsumexp", "lu_pivots_to_permutation"}
PROBLEMS = problems()
