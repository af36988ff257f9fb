"""Times of constrained trajectory optimization against CasADi's fatrop and IPOPT.

Run with `python benchmarks/trajectory.py` [--quick] [--only solve ilqr horizon batch first mpc] [--json PATH]. The same
definitions, guesses and tolerance (1e-8); solvers are called in turn, warm, and the median is taken. The costs found
are compared first. A ratio is optctl's time over the faster peer's. Every call is from Python, dispatch included.
CasADi's functions are expanded to scalar graphs (SX) and interpreted by its virtual machine, without code generation.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import jax
import jax.numpy as jnp
import numpy as np
from timing import MISSING, Row, check_agreement, finish, load_peer, read_options, ready, time_in_turn

import optctl as oc

ca = load_peer("casadi")
NAMES = {"acrobot": "D1", "cartpole_weak": "D2", "cartpole_push": "D3", "cartpole_constrained": "D4"}


def quadrotor(N: int = 50) -> oc.problems.KnownProblem:
    """Fly a quadrotor 2 m up and aside in 2 s, thrusts between 0 and 2.2 N."""
    dt = 2.0 / N
    model = oc.models.Quadrotor()
    goal = np.zeros(12)
    goal[:3] = [2.0, 1.0, 1.0]
    hover = np.full(4, model.m * model.g / 4)
    Q = np.diag([1.0] * 3 + [0.1] * 9)
    problem = oc.Problem(
        oc.discretize(model, dt),
        oc.costs.Tracking(2 * dt * Q, 0.2 * dt * np.eye(4), x_ref=goal, u_ref=hover),
        oc.costs.TerminalQuadratic(20 * Q, x_ref=goal),
        horizon=N,
        x0=np.zeros(12),
        u_min=0.0,
        u_max=2.2,
    )
    return oc.problems.KnownProblem(problem, np.nan, np.tile(hover, (N, 1)), np.linspace(np.zeros(12), goal, N + 1))


# The same problems in CasADi.


def cartpole_rate(mc: float, mp: float, l: float, g: float) -> Callable:  # noqa: E741
    def rate(x: Any, u: Any) -> Any:
        s, c, w = ca.sin(x[1]), ca.cos(x[1]), x[3]
        m = mc + mp * s**2
        a = (u[0] + mp * s * (l * w**2 + g * c)) / m
        swing = u[0] * c + mp * l * w**2 * s * c + (mc + mp) * g * s
        return ca.vertcat(x[2], w, a, -swing / (l * m))

    return rate


def acrobot_rate(x: Any, u: Any) -> Any:
    q1, q2, w1, w2 = x[0], x[1], x[2], x[3]
    c = 0.5
    d1, d2 = 0.25 + 1.25 + 2 * c * ca.cos(q2) + 2, 0.25 + c * ca.cos(q2) + 1
    phi2 = 0.5 * 9.8 * ca.sin(q1 + q2)
    phi1 = -c * w2**2 * ca.sin(q2) - 2 * c * w2 * w1 * ca.sin(q2) + 1.5 * 9.8 * ca.sin(q1) + phi2
    a2 = (u[0] + d2 / d1 * phi1 - c * w1**2 * ca.sin(q2) - phi2) / (1.25 - d2**2 / d1)
    return ca.vertcat(w1, w2, -(d2 * a2 + phi1) / d1, a2)


def quadrotor_rate(x: Any, u: Any) -> Any:
    m, l, Ix, Iy, Iz, drag, g = 0.5, 0.17, 0.0023, 0.0023, 0.004, 0.01, 9.81  # noqa: E741
    roll, pitch, yaw, p, q, r = (x[i] for i in range(6, 12))
    sr, cr, sp, cp, sy, cy = ca.sin(roll), ca.cos(roll), ca.sin(pitch), ca.cos(pitch), ca.sin(yaw), ca.cos(yaw)
    thrust = (u[0] + u[1] + u[2] + u[3]) / m
    turn = sr * q + cr * r
    tx, ty, tz = l * (u[1] - u[3]), l * (u[2] - u[0]), drag * (u[0] - u[1] + u[2] - u[3])
    return ca.vertcat(
        x[3], x[4], x[5], (cy * sp * cr + sy * sr) * thrust, (sy * sp * cr - cy * sr) * thrust, cp * cr * thrust - g,
        p + sp / cp * turn, cr * q - sr * r, turn / cp, (tx - (Iz - Iy) * q * r) / Ix, (ty - (Ix - Iz) * p * r) / Iy,
        (tz - (Iy - Ix) * p * q) / Iz,
    )  # fmt: skip


def euler(f: Callable, x: Any, u: Any, h: float) -> Any:
    return x + h * f(x, u)


def rk4(f: Callable, x: Any, u: Any, h: float) -> Any:
    k1 = f(x, u)
    k2 = f(x + h / 2 * k1, u)
    k3 = f(x + h / 2 * k2, u)
    k4 = f(x + h * k3, u)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def quadratic(Q: Any, x: Any) -> Any:
    return 0.5 * ca.bilin(ca.DM(np.asarray(Q)), x, x)


SCHEMES = {"euler": euler, "rk4": rk4}
RATES = {
    "acrobot": acrobot_rate if ca else None,
    "cartpole_weak": cartpole_rate(10.0, 1.0, 0.5, 9.81),
    "cartpole_push": cartpole_rate(0.1, 0.1, 1.0, 10.0),
    "cartpole_constrained": cartpole_rate(1.0, 0.3, 0.5, 9.81),
    "quadrotor": quadrotor_rate,
}


def in_casadi(name: str, known: oc.problems.KnownProblem, solver: str) -> Callable[[], float]:
    """Build the problem from the numbers that optctl's holds; return a function that solves it and gives the cost."""
    problem = known.problem
    dynamics, N = problem.dynamics, problem.horizon
    nx, nu = dynamics.nx, dynamics.nu
    x, u = ca.SX.sym("x", nx), ca.SX.sym("u", nu)
    step = ca.Function("step", [x, u], [SCHEMES[dynamics.method](RATES[name], x, u, float(dynamics.dt))])
    stage, end = problem.stage_cost.call, problem.terminal_cost
    opti = ca.Opti()
    X, U = [], []
    for _ in range(N):
        X.append(opti.variable(nx))
        U.append(opti.variable(nu))
    X.append(opti.variable(nx))
    J = 0
    for t in range(N):
        opti.subject_to(X[t + 1] == step(X[t], U[t]))
        if t == 0:
            opti.subject_to(X[0] == np.asarray(problem.x0))
        if problem.u_min is not None:
            low, high = (np.broadcast_to(np.asarray(b), nu) for b in (problem.u_min, problem.u_max))
            opti.subject_to(opti.bounded(low, U[t], high))
        if problem.x_min is not None and t > 0:
            opti.subject_to(opti.bounded(float(problem.x_min[0]), X[t][0], float(problem.x_max[0])))
        J += quadratic(stage.Q, X[t] - np.asarray(stage.x_ref)) + quadratic(stage.R, U[t] - np.asarray(stage.u_ref))
    if problem.terminal_equality is not None:
        opti.subject_to(X[N] == np.asarray(problem.terminal_equality.function.call.goal))
    if end is not None:
        J += quadratic(end.call.Q, X[N] - np.asarray(end.call.x_ref))
    opti.minimize(J)
    xs = problem.dynamics.rollout(problem.x0, np.zeros((N, nu))) if known.xs is None else known.xs
    us = np.zeros((N, nu)) if known.us is None else known.us
    for t in range(N + 1):
        opti.set_initial(X[t], np.asarray(xs[t]))
    for t in range(N):
        opti.set_initial(U[t], np.asarray(us[t]))
    quiet = {"print_time": False, "expand": True}
    if solver == "fatrop":
        opti.solver("fatrop", {**quiet, "structure_detection": "auto"}, {"tol": 1e-8, "print_level": 0})
    else:
        opti.solver("ipopt", quiet, {"tol": 1e-8, "print_level": 0, "sb": "yes"})
    guess = opti.debug.value(opti.x, opti.initial())

    def solve() -> float:
        opti.set_initial(opti.x, guess)
        return float(opti.solve().value(J))

    return solve


def peers(name: str, known: oc.problems.KnownProblem, ours: float) -> dict[str, Callable]:
    """Return the peers that reach the optimum."""
    made: dict[str, Callable] = {}
    for solver in ("fatrop", "ipopt"):
        try:
            solve = in_casadi(name, known, solver)
            check_agreement(f"{name}: cost by {solver}", [ours], [solve()], 1e-6)
            made[solver] = solve
        except (RuntimeError, AssertionError) as error:
            print(f"{name}: {solver} left out: {str(error).splitlines()[0][:100]}")
    return made


def solves(quick: bool) -> list[Row]:
    """Warm solves of D1-D4 and of the quadrotor."""
    rows, ratios = [], []
    cases = {name: oc.problems.ZOO[name]() for name in NAMES} | {"quadrotor": quadrotor()}
    for name, known in cases.items():
        sol = known.solve().raise_if_failed()
        functions = {"optctl": ready(known.solve), **(peers(name, known, float(sol.cost)) if ca else {})}
        times = time_in_turn(functions, quick)
        ours = times.pop("optctl")
        best = min(times, key=times.get) if times else ""
        note = f"{int(sol.iterations)} iterations, {ours / int(sol.iterations):.0f} us each; " + ", ".join(
            f"{solver} {us / 1e3:.2f} ms" for solver, us in times.items()
        )
        aim = 0.5 if name == "quadrotor" else None
        rows.append(Row(f"{NAMES.get(name, name)} {name}", ours, best or MISSING, times.get(best), aim, note=note))
        if name in NAMES and best:
            ratios.append(ours / times[best])
        if name == "cartpole_constrained":
            rows.append(Row("D4 within 8 ms", ours, aim=8000.0, aim_of="time"))
            rows.append(Row("D4, an iteration", ours / int(sol.iterations), aim=500.0, aim_of="time"))
    if ratios:
        mean = float(np.exp(np.mean(np.log(ratios))))
        rows.append(
            Row("geometric mean of the ratios of D1-D4 (as if the peer took 1 us)", mean, "faster peer", 1.0, 0.5)
        )
    return rows


def shooting_rows(quick: bool) -> list[Row]:
    """Iterative LQR against fatrop, and against Crocoddyl's differential dynamic programming."""
    rows, crocoddyl = [], load_peer("crocoddyl")
    cases = {name: oc.problems.ZOO[name]() for name in ("acrobot", "cartpole_push")} | {"quadrotor": quadrotor()}
    for name, known in cases.items():
        problem = known.problem
        us = np.zeros((problem.horizon, problem.dynamics.nu)) if known.us is None else np.asarray(known.us)
        sol = oc.solve(problem, us, "ilqr").raise_if_failed()
        functions: dict[str, Callable] = {"ours": lambda problem=problem, us=us: oc.solve(problem, us, "ilqr")}
        if ca:
            functions["fatrop"] = in_casadi(name, known, "fatrop")
            check_agreement(f"{name}: cost by fatrop", [sol.cost], [functions["fatrop"]()], 1e-6)
        if ca and crocoddyl:
            functions["crocoddyl"], iterations = in_crocoddyl(crocoddyl, name, known, us, float(sol.cost))
        times = time_in_turn(functions, quick)
        case = f"ilqr, {NAMES.get(name, name)} {name}, {int(sol.iterations)} iterations"
        rows.append(Row(case, times["ours"], "fatrop", times.get("fatrop"), 0.3))
        if "crocoddyl" in times:
            note = f"{iterations} iterations of {times['crocoddyl']:.0f} us, functions not counted"
            rows.append(Row(case, times["ours"], "Crocoddyl DDP", iterations * times["crocoddyl"], 1.0, note=note))
    return rows


def in_crocoddyl(
    crocoddyl: Any, name: str, known: oc.problems.KnownProblem, us: np.ndarray, cost: float
) -> tuple[Callable, int]:
    """Return an iteration of Crocoddyl's, and how many of them it needs.

    Its bindings have no models with these dynamics in C++. With models in Python they solve the problem, which tells
    how many iterations come within 1e-8 of the cost; what is timed are the passes of one, with models of the same sizes
    in C++ (`ActionModelLQR`), which have next to nothing to evaluate: less than Crocoddyl would take.
    """
    problem = known.problem
    dynamics, N = problem.dynamics, problem.horizon
    nx, nu = dynamics.nx, dynamics.nu
    x, u = ca.SX.sym("x", nx), ca.SX.sym("u", nu)
    after = SCHEMES[dynamics.method](RATES[name], x, u, float(dynamics.dt))
    stage, end = problem.stage_cost.call, problem.terminal_cost.call
    l = quadratic(stage.Q, x - np.asarray(stage.x_ref)) + quadratic(stage.R, u - np.asarray(stage.u_ref))  # noqa: E741
    z = ca.vertcat(x, u)
    H, g = ca.hessian(l, z)
    path = ca.Function("path", [x, u], [after, l, ca.jacobian(after, z), g, H])
    lf = quadratic(end.Q, x - np.asarray(end.x_ref))
    Hf, gf = ca.hessian(lf, x)
    final = ca.Function("final", [x], [lf, gf, Hf])

    class Stage(crocoddyl.ActionModelAbstract):
        def __init__(self, *, last: bool) -> None:
            super().__init__(crocoddyl.StateVector(nx), nu, 0)
            self.last = last
            if problem.u_min is not None:
                self.u_lb = np.broadcast_to(np.asarray(problem.u_min), nu) + 0.0
                self.u_ub = np.broadcast_to(np.asarray(problem.u_max), nu) + 0.0

        def calc(self, data: Any, x: Any, u: Any = None) -> None:
            if self.last or u is None:
                data.xnext, data.cost = x, float(final(x)[0])
                return
            found = path(x, u)
            data.xnext, data.cost = np.asarray(found[0]).ravel(), float(found[1])

        def calcDiff(self, data: Any, x: Any, u: Any = None) -> None:
            if self.last or u is None:
                _, slope, curvature = final(x)
                data.Lx, data.Lxx = np.asarray(slope).ravel(), np.asarray(curvature)
                return
            _, _, J, slope, curvature = (np.asarray(part) for part in path(x, u))
            data.Fx, data.Fu, data.Lx, data.Lu = J[:, :nx], J[:, nx:], slope[:nx, 0], slope[nx:, 0]
            data.Lxx, data.Lxu, data.Luu = curvature[:nx, :nx], curvature[:nx, nx:], curvature[nx:, nx:]

    models = [Stage(last=False) for _ in range(N)]
    shooting = crocoddyl.ShootingProblem(np.asarray(problem.x0), models, Stage(last=True))
    solver = (crocoddyl.SolverDDP if problem.u_min is None else crocoddyl.SolverBoxDDP)(shooting)
    solver.th_stop = 1e-14
    log = crocoddyl.CallbackLogger()
    solver.setCallbacks([log])
    solver.solve(shooting.rollout(list(us)), list(us), 1000, True)
    check_agreement(f"{name}: cost by Crocoddyl", [cost], [solver.cost], 1e-5)
    close = np.asarray(log.costs) <= cost + 1e-8 * abs(cost)
    iterations = int(np.argmax(close)) if close.any() else int(solver.iter)

    rng = np.random.default_rng(0)
    A, B = np.eye(nx) + 0.01 * rng.normal(size=(nx, nx)), rng.normal(size=(nx, nu))
    plain = crocoddyl.ActionModelLQR(
        A, B, np.eye(nx), np.eye(nu), np.zeros((nx, nu)), np.zeros(nx), np.zeros(nx), np.zeros(nu)
    )
    light = crocoddyl.ShootingProblem(np.ones(nx), [plain] * N, plain)
    passes = crocoddyl.SolverDDP(light)
    still = [np.zeros(nu)] * N
    xs = light.rollout(still)
    passes.setCandidate(xs, still, True)

    def iteration() -> None:
        light.calc(xs, still)
        light.calcDiff(xs, still)
        passes.backwardPass()
        passes.forwardPass(1.0)

    return iteration, iterations


def horizons(quick: bool) -> list[Row]:
    """Time of an iteration a stage, from 50 to 2000 stages."""
    rows = []
    for N in (50, 200, 2000):
        known = oc.problems.cartpole_constrained(N)
        sol = known.solve().raise_if_failed()
        us = time_in_turn({"optctl": ready(known.solve)}, quick)["optctl"]
        note = f"{us / 1e3:.2f} ms in all, {int(sol.iterations)} iterations"
        rows.append(Row(f"cart-pole N = {N}: an iteration, per stage", us / int(sol.iterations) / N, note=note))
    return rows


def batch(quick: bool) -> list[Row]:
    """128 bounded LQ problems: solve, and gradient of a function of all solutions."""
    rng = np.random.default_rng(0)
    N, nx, nu, size = 20, 8, 4, 128
    A, B = np.eye(nx) + 0.1 * rng.normal(size=(nx, nx)), 0.3 * rng.normal(size=(nx, nu))
    problem = oc.Problem(
        oc.LinearDynamics(A, B), oc.costs.Quadratic(np.eye(nx), 0.1 * np.eye(nu)),
        oc.costs.TerminalQuadratic(5 * np.eye(nx)), horizon=N, x0=np.zeros(nx), u_min=-0.3, u_max=0.3,
    )  # fmt: skip
    x0s = jnp.asarray(rng.normal(size=(size, nx)))
    solve = jax.jit(jax.vmap(lambda x0: oc.solve(problem.replace(x0=x0), method="interior_point")))
    sols = solve(x0s)
    assert bool(jnp.all(sols.converged))
    active = float(jnp.mean(jnp.abs(sols.us) > 0.2999))

    def total(x0s: Any) -> Any:
        return jnp.sum(jax.vmap(lambda x0: oc.solve(problem.replace(x0=x0), method="interior_point").us)(x0s) ** 2)

    gradient = jax.jit(jax.grad(total))
    times = time_in_turn({"solve": ready(solve, x0s), "gradient": ready(gradient, x0s)}, quick)
    note = f"{100 * active:.0f} % of the inputs at a bound"
    return [
        Row("128 bounded LQ problems: solve, each", times["solve"] / size, aim=95.0, aim_of="time", note=note),
        Row("solve and gradient, each", times["gradient"] / size, aim=320.0, aim_of="time"),
    ]


def first_solutions(quick: bool) -> list[Row]:
    """Time from the start of a process to the first solution, without and with a filled compilation cache."""
    code = "import jax, optctl as oc; sol = oc.problems.cartpole_constrained().solve(); assert bool(sol.converged)"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cached = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        runs = (("without a cache", {}, 5e6), ("", cached, None), ("with JAX's compilation cache", cached, 2.5e6))
        for name, extra, aim in runs:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], env={**os.environ, **extra}, check=True)
            us = 1e6 * (time.perf_counter() - start)
            if name:
                rows.append(Row(f"D4 in a fresh process, {name}", us, aim=aim, aim_of="time"))
    return rows


def control(quick: bool) -> list[Row]:
    """Latency of a cart-pole controller."""
    dt = 0.04
    goal = np.array([0.0, np.pi, 0.0, 0.0])
    dynamics = oc.discretize(oc.models.CartPole(), dt)
    Q, R = dt * np.diag([1.0, 5.0, 0.1, 0.1]), dt * np.array([[0.01]])
    A, B = dynamics.linearize(np.stack([goal, goal]), np.zeros((1, 1)))
    wide = np.array([2.0, np.inf, np.inf, np.inf])
    problem = oc.Problem(
        dynamics, oc.costs.Tracking(Q, R, x_ref=goal),
        oc.costs.TerminalQuadratic(oc.dare(A[0], B[0], Q, R), x_ref=goal), horizon=30, x0=goal, u_min=-20.0, u_max=20.0,
        x_min=-wide, x_max=wide,
    )  # fmt: skip
    rows = []
    real_time = {"real_time": True, "method": oc.InteriorPoint(barrier=1e-2)}
    for name, options in (("converged", {}), ("real-time iteration", real_time)):
        noise = 1e-3 * np.random.default_rng(0).normal(size=(100, 4))
        run = oc.MPC(problem, **options).simulate(goal + np.array([0.8, 0.4, 0.0, 1.0]), 100, noise=noise)
        note = ", ".join(f"{p:g} %: {ms:.2f} ms" for p, ms in run.percentiles().items())
        rows.append(Row(f"MPC step, N = 30, {name}: median", 1e3 * run.percentiles(50)[50], note=note))
    return rows


PARTS = {
    "solve": solves,
    "ilqr": shooting_rows,
    "horizon": horizons,
    "batch": batch,
    "first": first_solutions,
    "mpc": control,
}


def main() -> None:
    options = read_options(__doc__, tuple(PARTS))
    rows = [row for part in options.only for row in PARTS[part](options.quick)]
    finish(rows, oc.__version__, options.json)


if __name__ == "__main__":
    main()
