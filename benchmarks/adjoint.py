"""Time of one gradient, public call, against `jax.grad` of the scanned cost and against CasADi's machine.

Run with `make benchmark` (or `python benchmarks/adjoint.py`) [--quick] [--only gradient growth] [--json PATH]. All are
timed in turn, so the ratios hold where absolute times drift. `jax.grad` is compiled and called with arrays of its own.
CasADi's step is expanded to a scalar graph (SX); the faster one counts of its two ways: `mapaccum` of the step, `map`
of its Jacobian and the costate sweep in NumPy; or the gradient that CasADi itself makes of the cost by `mapaccum`.
"""

import os
from collections.abc import Callable
from typing import Any

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import jax
import jax.numpy as jnp
import numpy as np
from timing import MISSING, Row, check_agreement, finish, load_peer, read_options, ready, time_in_turn
from trajectory import cartpole_rate, quadrotor_rate, rk4

import optctl as oc
from optctl.adjoint.gradient import total_cost

ca = load_peer("casadi")
DT = 0.02
CASES = [
    ("cart-pole", oc.models.CartPole(), {100: 0.1, 1000: 0.05, 10_000: 0.04}),
    ("quadrotor", oc.models.Quadrotor(), {50: 0.15, 1000: 0.1}),
]


def rate_of(name: str, model: Any) -> Callable:
    """Return the right-hand side in CasADi."""
    return cartpole_rate(model.mc, model.mp, model.l, model.g) if name == "cart-pole" else quadrotor_rate


def problem_of(model: Any, N: int) -> tuple[oc.Problem, np.ndarray]:
    """Return a problem, and inputs about which the model does not fall."""
    nx, nu = model.nx, model.nu
    hover = model.m * model.g / 4 if nu == 4 else 0.0
    problem = oc.Problem(
        oc.discretize(model, DT),
        oc.costs.Quadratic(np.eye(nx), 0.1 * np.eye(nu)),
        oc.costs.TerminalQuadratic(10 * np.eye(nx)),
        horizon=N,
        x0=0.1 * np.ones(nx),
    )
    return problem, hover + 0.01 * np.random.default_rng(0).normal(size=(N, nu))


def in_casadi(name: str, model: Any, N: int, us: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Return functions that find dJ/du."""
    nx, nu, x0 = model.nx, model.nu, 0.1 * np.ones(model.nx)
    x, u = ca.SX.sym("x", nx), ca.SX.sym("u", nu)
    after = rk4(rate_of(name, model), x, u, DT)
    step = ca.Function("step", [x, u], [after])
    roll = step.mapaccum(N)
    jacobians = ca.Function("jacobians", [x, u], [ca.jacobian(after, x), ca.jacobian(after, u)]).map(N)
    U = ca.MX.sym("U", nu, N)
    X = roll(x0, U)
    J = 0.5 * (ca.sumsqr(X[:, :-1]) + x0 @ x0) + 0.05 * ca.sumsqr(U) + 5 * ca.sumsqr(X[:, -1])
    whole = ca.Function("whole", [U], [ca.gradient(J, U)])
    inputs = ca.DM(us.T)

    def by_sweep() -> np.ndarray:
        later = roll(x0, inputs)
        xs = np.vstack([x0, np.asarray(later).T])
        A, B = jacobians(ca.horzcat(x0, later[:, :-1]), inputs)
        A, B = np.asarray(A).T.reshape(N, nx, nx), np.asarray(B).T.reshape(N, nu, nx)  # transposes
        costate, made = 10 * xs[-1], 0.1 * us
        for t in range(N - 1, -1, -1):
            made[t] += B[t] @ costate
            costate = xs[t] + A[t] @ costate
        return made

    return {"map and sweep": by_sweep, "gradient of mapaccum": lambda: np.asarray(whole(inputs)).T}


def gradients(quick: bool) -> list[Row]:
    """Gradients of each case."""
    rows = []
    for name, model, sizes in CASES:
        for N, aim in sizes.items():
            problem, us = problem_of(model, N)
            x0 = jnp.asarray(problem.x0)
            scanned = jax.jit(jax.grad(lambda us, x0, problem=problem: total_cost(problem, us, x0, None)))
            functions = {
                "ours": lambda problem=problem, us=us: oc.gradient(problem, us),
                "jax.grad": ready(scanned, jnp.asarray(us), x0),
            }
            check_agreement(f"{name}: jax.grad", oc.gradient(problem, us).us, functions["jax.grad"](), 1e-9)
            peers = in_casadi(name, model, N, us) if ca else {}
            for way, peer in peers.items():
                check_agreement(f"{name}: CasADi, {way}", oc.gradient(problem, us).us, peer(), 1e-9)
            times = time_in_turn(functions | peers, quick)
            case, ours = f"gradient, {name}, N = {N}", times["ours"]
            rows.append(Row(case, ours, "jax.grad", times["jax.grad"], aim))
            best = min(peers, key=lambda way: times[way]) if peers else ""
            rows.append(Row(case, ours, f"CasADi: {best}" if best else MISSING, times.get(best), 0.3))
    return rows


def growth(quick: bool) -> list[Row]:
    """A gradient over one rollout, and over the shortest of its kind."""
    rows = []
    for name, model, sizes in CASES:
        short = 0.0
        for N in sizes:
            problem, us = problem_of(model, N)
            functions = {
                "gradient": lambda problem=problem, us=us: oc.gradient(problem, us),
                "rollout": lambda problem=problem, us=us: problem.dynamics.rollout(problem.x0, us),
            }
            times = time_in_turn(functions, quick)
            each = times["gradient"] / N
            short = short or each
            note = f"{each:.3g} us a stage, {each / short:.2f} times that of the shortest"
            rows.append(Row(f"gradient, {name}, N = {N}", times["gradient"], "a rollout", times["rollout"], note=note))
    return rows


PARTS = {"gradient": gradients, "growth": growth}


def main() -> None:
    options = read_options(__doc__, tuple(PARTS))
    rows = [row for part in options.only for row in PARTS[part](options.quick)]
    finish(rows, oc.__version__, options.json)


if __name__ == "__main__":
    main()
