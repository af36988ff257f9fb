"""The public surface: what is listed is there, documented and exercised; float32; silence on import."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optctl as oc

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def test_public_names_are_listed_sorted_and_documented():
    assert len(set(oc.__all__)) == len(oc.__all__)
    for name in oc.__all__:
        item = getattr(oc, name)
        assert inspect.getdoc(item), name
    typed = [node for node in ast.walk(ast.parse(Path(oc.__file__).read_text())) if isinstance(node, ast.ImportFrom)]
    rooms = {node.module: {alias.name for alias in node.names} for node in typed if node.module.startswith("optctl")}
    found = {name: getattr(oc, name) for name in oc.__all__}
    assert set.union(*rooms.values()) == set(found), "what type checkers see is not what can be used"
    for room, names in rooms.items():
        for name in names - {"costs", "data", "lq", "plot", "problems"}:
            assert found[name] is getattr(importlib.import_module(room), name), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        oc.nothing  # noqa: B018


@pytest.mark.parametrize("name", [n for n in oc.__all__ if inspect.isfunction(getattr(oc, n))])
def test_public_functions_say_what_they_take_and_show_an_example(name):
    text = inspect.getdoc(getattr(oc, name))
    assert ">>>" in text
    assert "Args:" in text
    for argument in inspect.signature(getattr(oc, name)).parameters:
        assert re.search(rf"\b{argument}\b", text), argument


def test_every_module_explains_itself():
    for path in (ROOT / "optctl").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert importlib.import_module(name).__doc__, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_on_the_pages_runs(page, tmp_path, monkeypatch, capsys):
    """Every python block of a page, top to bottom in one namespace; the README's first prints what stands below it."""
    text = page.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": page.stem}
    for k, block in enumerate(blocks):
        exec(compile(block, str(page), "exec"), namespace)
        printed = capsys.readouterr().out
        if page.name == "README.md" and k == 0:
            assert printed.strip() == re.search(r"```text\n(.*?)```", text, flags=re.DOTALL)[1].strip()


def test_pages_link_to_files_that_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


FLOAT32 = """
import numpy as np, jax.numpy as jnp, optctl as oc
from tests import zoo
assert jnp.zeros(1).dtype == jnp.float32
pendulum = oc.discretize(oc.models.Pendulum(), 0.1)
problem = oc.Problem(pendulum, lambda x, u: 0.1 * (x @ x + u @ u), lambda x: x @ x, horizon=10, x0=[1.0, 0.0])
for method in ("newton_cg", "lbfgs", "gradient_descent", "ilqr"):
    sol = oc.solve(problem, method=method)
    assert sol.xs.dtype == jnp.float32 and bool(sol.converged), (method, sol)
    print(float(sol.cost))
for name in ("lq_problem",):
    a = oc.solve(zoo.lq_problem())
    b = oc.solve(zoo.lq_problem(), method="cg")
    assert a.method == "lq" and bool(a.converged) and bool(b.converged)
    print(float(a.cost))
for name, (dynamics, x0, us, params) in zoo.kinds().items():
    if name.startswith(("simulator", "layers", "large_params", "zoh_params", "euler", "midpoint", "implicit", "mesh")):
        continue
    down = lambda a: np.asarray(a, np.float32)
    us = None if us is None else down(us)
    assert oc.check_adjoint(dynamics, down(x0), us, params), name
oc.smoothing_problem(oc.problems.local_level(), oc.data.nile()[1].astype(np.float32))
"""


@pytest.mark.big
def test_float32_throughout(monkeypatch):
    """With 64-bit mode kept off everything runs, and agrees with float64 to single precision."""
    environment = os.environ | {"JAX_ENABLE_X64": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FLOAT32], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    got = [float(line) for line in done.stdout.split()]
    pendulum = oc.discretize(oc.models.Pendulum(), 0.1)
    problem = oc.Problem(pendulum, lambda x, u: 0.1 * (x @ x + u @ u), lambda x: x @ x, horizon=10, x0=[1.0, 0.0])
    want = float(oc.solve(problem).cost)
    assert got[:4] == pytest.approx([want] * 4, rel=1e-4)


SLOW = ("scipy", "matplotlib", "cvxpy", "optax", "tqdm", "jax.experimental", "jax.extend", "jax.scipy.linalg")
LOADED = """
import sys, jax
before = set(sys.modules)
import optctl
assert {m for m in set(sys.modules) - before if m.startswith("optctl.")} == set()
for name in optctl.__all__:
    getattr(optctl, name)
assert "optctl.solvers.solve" in sys.modules
print(*sorted(set(sys.modules) - before))
"""


def test_import_loads_nothing_slow_and_starts_no_backend():
    """Without a backend called "none" any computation at import would raise."""
    environment = os.environ | {"JAX_PLATFORMS": "none", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert [name for name in done.stdout.split() if name.startswith(SLOW)] == []


def test_import_is_silent_and_turns_64_bit_on():
    code = "import optctl, jax.numpy as jnp; assert jnp.zeros(1).dtype == jnp.float64"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
