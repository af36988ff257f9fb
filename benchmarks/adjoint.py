"""Time of one gradient: the costate engine against `jax.grad` of the scanned cost, and against one rollout.

Run with `make benchmark` (or `python benchmarks/adjoint.py`); writes out/benchmark_adjoint.json. All are timed in
turn, so the ratios hold where absolute times drift; aims: at least 3 times faster than `jax.grad`, time linear in N.
"""

import json
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import optctl as oc
from optctl.adjoint.gradient import total_cost

CASES = [("cart-pole", oc.models.CartPole(), (100, 1000, 10_000)), ("quadrotor", oc.models.Quadrotor(), (50, 1000))]


def median_times(functions: dict, arguments: tuple, budget: float = 2.0) -> dict:
    """Median seconds of each function, called in turn until the budget is spent."""
    for function in functions.values():
        jax.block_until_ready(function(*arguments))
    samples: dict = {name: [] for name in functions}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(samples[next(iter(samples))]) < 5:
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            samples[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in samples.items()}


def first_call(function, arguments: tuple) -> float:
    """Seconds of the first call, compilation included."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def measure(name: str, model, N: int) -> dict:
    nx, nu = model.nx, model.nu
    hover = model.m * model.g / 4 if nu == 4 else 0.0
    problem = oc.Problem(
        oc.discretize(model, 0.02),
        oc.costs.Quadratic(np.eye(nx), 0.1 * np.eye(nu)),
        oc.costs.TerminalQuadratic(10 * np.eye(nx)),
        horizon=N,
        x0=0.1 * np.ones(nx),
    )
    us = jnp.asarray(hover + 0.01 * np.random.default_rng(0).normal(size=(N, nu)))
    x0 = jnp.asarray(problem.x0)
    scanned = jax.jit(jax.grad(lambda us, x0: total_cost(problem, us, x0, None)))
    as_data = jax.jit(jax.grad(lambda us, x0, problem: total_cost(problem, us, x0, None)))
    functions = {
        "rollout": lambda us, x0: problem.dynamics.rollout(x0, us),
        "gradient": lambda us, x0: oc.gradient(problem, us, x0=x0).us,
        "jax.grad": scanned,
        "jax.grad, numbers as data": lambda us, x0: as_data(us, x0, problem),
    }
    compile_seconds = {key: first_call(function, (us, x0)) for key, function in functions.items()}
    gap = jnp.max(jnp.abs(functions["gradient"](us, x0) - scanned(us, x0))) / jnp.max(jnp.abs(scanned(us, x0)))
    times = median_times(functions, (us, x0))
    return {
        "case": name,
        "N": N,
        "microseconds": {key: round(1e6 * value, 1) for key, value in times.items()},
        "first_call_seconds": {key: round(value, 2) for key, value in compile_seconds.items()},
        "jax.grad / gradient": round(times["jax.grad"] / times["gradient"], 2),
        "gradient / rollout": round(times["gradient"] / times["rollout"], 2),
        "relative_difference": float(gap),
    }


def main() -> None:
    rows = [measure(name, model, N) for name, model, sizes in CASES for N in sizes]
    head = f"{'case':<10} {'N':>6} {'rollout':>11} {'gradient':>11} {'jax.grad':>11} {'as data':>11}"
    print(f"{head} {'jax.grad/ours':>14} {'as data/ours':>13} {'ours/rollout':>13}")
    for row in rows:
        us = row["microseconds"]
        columns = ("rollout", "gradient", "jax.grad", "jax.grad, numbers as data")
        times = " ".join(f"{us[column]:>8.0f} us" for column in columns)
        data = us["jax.grad, numbers as data"] / us["gradient"]
        ratios = f"{row['jax.grad / gradient']:>14.2f} {data:>13.2f} {row['gradient / rollout']:>13.2f}"
        print(f"{row['case']:<10} {row['N']:>6} {times} {ratios}")
    for name, _, sizes in CASES:
        first, last = (next(r for r in rows if r["case"] == name and r["N"] == N) for N in (sizes[0], sizes[-1]))
        growth = last["microseconds"]["gradient"] / first["microseconds"]["gradient"]
        print(f"{name}: {sizes[-1] // sizes[0]} times the stages take {growth:.1f} times the time")
    worst = min(row["jax.grad / gradient"] for row in rows)
    print(f"aim: 3 times faster than jax.grad; worst ratio {worst:.2f}: {'reached' if worst >= 3 else 'MISSED'}")
    out = Path("out")
    out.mkdir(exist_ok=True)
    machine = {"machine": platform.machine(), "jax": jax.__version__, "python": platform.python_version()}
    (out / "benchmark_adjoint.json").write_text(json.dumps({"environment": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
