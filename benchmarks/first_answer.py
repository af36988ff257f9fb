"""First answers: time of `import optctl` and a first call in a fresh process, over that of `import jax`.

    python benchmarks/first_answer.py --json out/first_answer.json --rows solve gradient

Each row is a process of its own, which imports JAX, and then what the row needs, makes the problem, computes, and looks
at the result as a user would. The rows take turns; medians of five are shown; a note names what XLA compiled.
The last row has CasADi and IPOPT beside it for the same problem, the imports of both counted.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

# Imported here is only what costs nothing: the rows time their own imports.

ROWS: dict[str, tuple[str, Callable[[], Any]]] = {}
"""Each row: its name for people and its function."""
AIM = 0.6
LONG = 15.0
"""A row that takes longer [s] is run once."""


def row(name: str) -> Callable:
    def register(function: Callable) -> Callable:
        ROWS[function.__name__] = name, function
        return function

    return register


def pendulum(constrained: bool = True, method: str = "rk4") -> Any:
    """Swing a pendulum up in 3 s with least effort, N = 60, torque at most 5 N m, end state given or priced."""
    import jax.numpy as jnp
    import numpy as np

    import optctl as oc

    goal = np.array([np.pi, 0.0])
    ends: dict[str, Any] = {"terminal_equality": lambda x: x - goal, "u_min": -5.0, "u_max": 5.0}
    if not constrained:
        ends = {"terminal_cost": lambda x: 100.0 * (x - goal) @ (x - goal)}
    return oc.Problem(
        oc.discretize(lambda x, u: jnp.stack([x[1], u[0] - 9.81 * jnp.sin(x[0])]), 0.05, method, nx=2, nu=1),
        stage_cost=lambda x, u: 0.05 * (u @ u),
        horizon=60,
        x0=np.zeros(2),
        **ends,
    )


def quadrotor() -> Any:
    """Fly a quadrotor 1 m aside and up in 1.5 s, N = 30, thrusts bounded."""
    import numpy as np

    import optctl as oc

    goal = np.zeros(12)
    goal[:3] = 1.0, 0.0, 1.0
    model = oc.models.Quadrotor()
    hover = np.full(4, model.m * model.g / 4)
    return oc.Problem(
        oc.discretize(model, 0.05),
        oc.costs.Tracking(0.1 * np.eye(12), 0.1 * np.eye(4), x_ref=goal, u_ref=hover),
        oc.costs.TerminalQuadratic(100 * np.eye(12), goal),
        horizon=30,
        x0=np.zeros(12),
        u_min=0.0,
        u_max=3 * hover,
    ), np.tile(hover, (30, 1))


def looked_at(solution: Any) -> Any:
    """What a user does with a solution: see that it is one, and print the end."""
    solution.raise_if_failed()
    return solution.xs[-1].round(3)


@row("constrained solve, pendulum N = 60")
def solve() -> Any:
    import optctl as oc

    return looked_at(oc.solve(pendulum()))


@row("gradient")
def gradient() -> Any:
    import numpy as np

    import optctl as oc

    return oc.gradient(pendulum(False), np.ones((60, 1))).us[0].round(3)


def _unconstrained(method: str) -> Any:
    import numpy as np

    import optctl as oc

    return looked_at(oc.solve(pendulum(False), np.ones((60, 1)), method=method, tolerance=1e-4))


@row("ilqr")
def ilqr() -> Any:
    return _unconstrained("ilqr")


@row("newton_cg")
def newton_cg() -> Any:
    return _unconstrained("newton_cg")


@row("lbfgs")
def lbfgs() -> Any:
    return _unconstrained("lbfgs")


@row("derivative of a solve")
def derivative() -> Any:
    import jax
    import numpy as np

    import optctl as oc

    problem = pendulum()
    return jax.grad(lambda x0: oc.solve(problem.replace(x0=x0)).cost)(np.array([0.1, 0.0])).round(3)


@row("check_gradient")
def check_gradient() -> Any:
    import numpy as np

    import optctl as oc

    report = oc.check_gradient(pendulum(False), np.ones((60, 1)))
    assert report
    return str(report)


@row("mpc init and step")
def mpc() -> Any:
    import numpy as np

    import optctl as oc

    controller = oc.MPC(pendulum())
    plan = controller.init(np.zeros(2))
    u, _ = controller.step(plan, np.zeros(2))
    return u.round(3)


@row("lqr")
def lqr() -> Any:
    import numpy as np

    import optctl as oc

    A, B = [[1.0, 0.1], [0.0, 1.0]], [[0.0], [0.1]]
    return oc.lqr(A, B, np.eye(2), np.eye(1), x0=[1.0, 0.0], horizon=50).xs[-1].round(3)


@row("smoother")
def smoother() -> Any:
    import optctl as oc

    return oc.kalman_smoother(oc.problems.local_level(), oc.data.nile()[1]).means[-1].round(3)


@row("likelihood and score")
def likelihood() -> Any:
    import jax

    import optctl as oc

    value, score = jax.value_and_grad(oc.log_likelihood)(oc.problems.local_level(), oc.data.nile()[1])
    return value.round(3), score.W.round(6)


def _predator_and_prey() -> Any:
    import jax.numpy as jnp

    import optctl as oc

    return oc.ODE(lambda z, t, p: jnp.stack([p[0] * z[0] - p[1] * z[0] * z[1], p[2] * z[0] * z[1] - p[3] * z[1]]))


@row("integrate")
def integrate() -> Any:
    import numpy as np

    import optctl as oc

    p = np.array([1.0, 0.5, 0.25, 0.8])
    return oc.integrate(_predator_and_prey(), [2.0, 1.0], np.linspace(0.0, 10.0, 11), p, rtol=1e-8).zs[-1].round(3)


@row("ode_gradient")
def ode_gradient() -> Any:
    import numpy as np

    import optctl as oc

    p = np.array([1.0, 0.5, 0.25, 0.8])
    ts = np.linspace(0.0, 10.0, 11)
    return oc.ode_gradient(_predator_and_prey(), lambda zs: (zs**2).sum(), [2.0, 1.0], ts, p, rtol=1e-8).params.round(3)


@row("solve, quadrotor N = 30")
def solve_quadrotor() -> Any:
    import optctl as oc

    problem, us = quadrotor()
    return looked_at(oc.solve(problem, us, method="interior_point"))


@row("two-link arm by jnp.linalg.solve")
def arm() -> Any:
    import jax.numpy as jnp
    import numpy as np

    import optctl as oc

    def ode(x: Any, u: Any) -> Any:
        q, v = x[:2], x[2:]
        c, s = jnp.cos(q[1]), jnp.sin(q[1])
        M = jnp.array([[3.0 + 2.0 * c, 1.0 + c], [1.0 + c, 1.0]])
        bias = jnp.array([-s * (2.0 * v[0] * v[1] + v[1] ** 2), s * v[0] ** 2])
        return jnp.concatenate([v, jnp.linalg.solve(M, u - bias)])

    goal = np.array([1.0, 0.5, 0.0, 0.0])
    problem = oc.Problem(
        oc.discretize(ode, 0.05, nx=4, nu=2),
        lambda x, u: 0.1 * (u @ u),
        terminal_equality=lambda x: x - goal,
        horizon=40,
        x0=np.zeros(4),
        u_min=-5.0,
        u_max=5.0,
    )
    return looked_at(oc.solve(problem))


@row("implicit midpoint")
def implicit_midpoint() -> Any:
    import optctl as oc

    return looked_at(oc.solve(pendulum(method="implicit_midpoint")))


@row("trapezoid")
def trapezoid() -> Any:
    import optctl as oc

    return looked_at(oc.solve(pendulum(method="trapezoid")))


@row("gradient of a network policy in a closed loop")
def network() -> Any:
    import jax

    import optctl as oc

    policy = oc.mlp([2, 32, 32, 1])
    params = policy.init(jax.random.key(0))
    loop = oc.closed_loop(pendulum(False), policy)
    return oc.gradient(loop, None, params=params).cost.round(3)


@row("Kelly's cart-pole, N = 100")
def kelly() -> Any:
    import optctl as oc

    return looked_at(oc.problems.cartpole_constrained().solve())


def casadi_pendulum() -> Any:
    """The pendulum of `solve` in CasADi: multiple shooting, RK4, IPOPT."""
    import casadi as ca
    import numpy as np

    x, u = ca.MX.sym("x", 2), ca.MX.sym("u")
    f = ca.Function("f", [x, u], [ca.vertcat(x[1], u - 9.81 * ca.sin(x[0]))])
    h = 0.05
    a = f(x, u)
    b = f(x + h / 2 * a, u)
    c = f(x + h / 2 * b, u)
    step = ca.Function("step", [x, u], [x + h / 6 * (a + 2 * b + 2 * c + f(x + h * c, u))])
    opti = ca.Opti()
    X, U = opti.variable(2, 61), opti.variable(1, 60)
    opti.minimize(0.05 * ca.sumsqr(U))
    opti.subject_to(X[:, 1:] == step.map(60)(X[:, :-1], U))
    opti.subject_to(X[:, 0] == 0)
    opti.subject_to(X[:, -1] == np.array([np.pi, 0.0]))
    opti.subject_to(opti.bounded(-5, U, 5))
    opti.solver("ipopt", {"ipopt.print_level": 0, "print_time": False, "ipopt.sb": "yes"})
    return np.round(opti.solve().value(X)[:, -1], 3)


def run_here(name: str) -> dict[str, Any]:
    """Run a row in this process, which has imported neither JAX nor NumPy, and return what was measured."""
    compiled: list[str] = []
    begin = time.perf_counter()
    if name == "casadi":
        said = casadi_pendulum()
        return {"total": time.perf_counter() - begin, "said": str(said)}
    import jax

    imported = time.perf_counter()

    def listen(event: str, duration: float, **about: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(about.get("fun_name", "?").removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    said = str(ROWS[name][1]())
    end = time.perf_counter()
    total = end - begin - (start - imported)
    return {"jax": imported - begin, "call": end - start, "total": total, "compiled": compiled, "said": said}


def run_fresh(name: str) -> dict[str, Any]:
    """Run a row in a process of its own; bytecode is kept, as it is where packages are installed."""
    import json
    import os
    import subprocess

    left_out = ("PYTHONDONTWRITEBYTECODE", "JAX_COMPILATION_CACHE_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    command = [sys.executable, __file__, "--child", name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def note(compiled: list[str]) -> str:
    """Name what was compiled, most frequent first."""
    counts = Counter(compiled).most_common()
    names = ", ".join(f"{name} x {many}" if many > 1 else name for name, many in counts[:4])
    return f"compiles {len(compiled)}" + (f": {names}{', ...' if len(counts) > 4 else ''}" if counts else "")


def main() -> None:
    import argparse
    from pathlib import Path

    import numpy as np
    from timing import Row, check_agreement, finish, load_peer

    import optctl as oc

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write machine, versions and rows to this file")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "casadi"], default=[*ROWS, "casadi"])
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes of each row")
    options = parser.parse_args()
    wanted = [name for name in options.rows if name != "casadi"]
    peer = "casadi" in options.rows and load_peer("casadi") is not None
    processes = list(dict.fromkeys([*wanted, *(("solve", "casadi") if peer else ())]))
    samples: dict[str, list[dict]] = {name: [] for name in processes}
    for _ in range(options.repeats + 1):
        for name in processes:
            if not samples[name] or samples[name][0]["total"] < LONG:
                samples[name].append(run_fresh(name))
    for taken in samples.values():
        del taken[: len(taken) - options.repeats]  # the first only filled the caches of the file system and of Python

    def median(name: str, key: str) -> float:
        return 1e6 * float(np.median([sample[key] for sample in samples[name]]))

    rows = [
        Row(ROWS[name][0], median(name, "call"), "import jax", median(name, "jax"), AIM,
            note=note(samples[name][-1]["compiled"]))
        for name in wanted
    ]  # fmt: skip
    if peer:
        ends = [[float(word) for word in samples[name][-1]["said"].strip("[]").split()] for name in ("solve", "casadi")]
        check_agreement("last state", *ends, tolerance=1e-3)
        peer_us = median("casadi", "total")
        rows.append(Row("the first row with all imports", median("solve", "total"), "CasADi, IPOPT", peer_us, 1.0))
    finish(rows, oc.__version__, options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        import json

        print(json.dumps(run_here(sys.argv[2])))
    else:
        main()
