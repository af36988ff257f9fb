"""Gradients of ODE solutions against diffrax and torchdiffeq: times and errors at equal tolerance; bounded memory.

Run with `python benchmarks/ode.py` [--quick] [--only prey neural memory] [--json PATH]. All are called in turn, warm,
and the median is taken; a ratio is optctl's time over the peer's. Optctl is called plainly, from NumPy's arrays, and
once more under jit. All use Tsit5, diffrax (jitted) with its RecursiveCheckpointAdjoint and BacksolveAdjoint, but
torchdiffeq's odeint_adjoint dopri5, as it comes. The error of a gradient is its largest difference, over the gradient's
largest entry, from optctl's at tolerance 1e-12, which central differences confirm first. Optctl's default chooses steps
for the sensitivities, too; "states" does as the peers.

Memory: 100 000 steps of Burgers' equation with 1000 points in a fresh process, its peak above what imports need.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import MISSING, Row, finish, load_peer, read_options, ready, time_in_turn

import optctl as oc

PREY_PARAMS = np.array([1.5, 1.0, 3.0, 1.0])


def prey(z: Any, t: Any, p: Any) -> Any:
    x, y = z[..., 0], z[..., 1]
    return jnp.stack([p[0] * x - p[1] * x * y, -p[2] * y + p[3] * x * y], axis=-1)


def distance_from_ones(z: Any) -> Any:
    return 0.5 * jnp.sum((1 - z) ** 2)


def network(z: Any, t: Any, p: Any) -> Any:
    return jnp.tanh(z @ p["W1"] + p["b1"][None]) @ p["W2"] + p["b2"][None]


def square(z: Any) -> Any:
    return jnp.sum(z**2)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "W1": 0.5 * rng.normal(size=(2, 50)), "b1": 0.1 * rng.normal(size=50),
        "W2": 0.3 * rng.normal(size=(50, 2)), "b2": 0.1 * rng.normal(size=2),
    }  # fmt: skip


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def reference(f: Callable, loss: Callable, z0: Any, t1: float, params: Any) -> np.ndarray:
    """Return the gradient in z0 and params at tolerance 1e-12, checked by differences along one direction."""
    ode, ts = oc.ODE(f), [0.0, t1]
    options = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-12}
    g = oc.ode_gradient(ode, lambda zs: loss(zs[-1]), z0, ts, params, **options)
    direction = jax.tree.map(lambda leaf: np.cos(np.arange(leaf.size)).reshape(leaf.shape), params)

    def value(s: float) -> float:
        moved = jax.tree.map(lambda leaf, d: leaf + s * d, params, direction)
        return float(loss(oc.integrate(ode, z0, ts, moved, **options).zs[-1]))

    h = 1e-3
    slope = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    got = float(flat(g.params) @ flat(direction))
    if not abs(got - slope) <= 1e-7 * max(1.0, abs(slope)):
        raise AssertionError(f"reference gradient {got} and differences {slope} disagree")
    return np.concatenate([flat(g.z0), flat(g.params)])


def ours(f: Callable, loss: Callable, t1: float, tolerance: float, **options: Any) -> Callable:
    ode, ts, last = oc.ODE(f), np.array([0.0, t1]), lambda zs: loss(zs[-1])

    def gradient(z0: Any, params: Any) -> Any:
        g = oc.ode_gradient(ode, last, z0, ts, params, rtol=tolerance, atol=tolerance, **options)
        return g.z0, g.params

    return gradient


def of_diffrax(diffrax: Any, name: str, f: Callable, loss: Callable, t1: float, tolerance: float) -> Callable:
    control = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    adjoint = (
        diffrax.RecursiveCheckpointAdjoint()
        if name == "recursive"
        else diffrax.BacksolveAdjoint(solver=diffrax.Tsit5(), stepsize_controller=control)
    )

    def value(z0: Any, params: Any) -> Any:
        term = diffrax.ODETerm(lambda t, z, p: f(z, t, p))
        solution = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, t1, None, z0, params, stepsize_controller=control, adjoint=adjoint,
            max_steps=4096,
        )  # fmt: skip
        return loss(solution.ys[-1])

    return jax.jit(jax.grad(value, argnums=(0, 1)))


def of_torchdiffeq(f: Callable, loss: Callable, t1: float, tolerance: float, z0: Any, params: Any) -> Callable | None:
    torch, torchdiffeq = load_peer("torch"), load_peer("torchdiffeq")
    if torch is None or torchdiffeq is None:
        return None

    def tensor(value: Any) -> Any:
        return torch.tensor(np.asarray(value), dtype=torch.float64, requires_grad=True)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if isinstance(params, dict):
                for name in sorted(params):
                    setattr(self, name, torch.nn.Parameter(tensor(params[name])))
            else:
                self.p = torch.nn.Parameter(tensor(params))

        def forward(self, t: Any, z: Any) -> Any:
            if isinstance(params, dict):
                return torch.tanh(z @ self.W1 + self.b1) @ self.W2 + self.b2
            x, y, p = z[..., 0], z[..., 1], self.p
            return torch.stack([p[0] * x - p[1] * x * y, -p[2] * y + p[3] * x * y], -1)

    model, start = Model(), tensor(z0)
    times = torch.tensor([0.0, t1], dtype=torch.float64)

    def gradient() -> Any:
        model.zero_grad()
        start.grad = None
        end = torchdiffeq.odeint_adjoint(model, start, times, rtol=tolerance, atol=tolerance, method="dopri5")[-1]
        value = (end**2).sum() if isinstance(params, dict) else 0.5 * ((1 - end) ** 2).sum()
        value.backward()
        named = dict(model.named_parameters())
        return start.grad.numpy(), [named[name].grad.numpy() for name in sorted(named)]

    return gradient


def compare(
    case: str, f: Callable, loss: Callable, z0: Any, t1: float, params: Any, tolerance: float, quick: bool, aims: dict
) -> list[Row]:
    exact = reference(f, loss, z0, t1, params)
    z, p = jnp.asarray(z0), jax.tree.map(jnp.asarray, params)
    mine = {
        "exact": {}, "exact, steps for states": {"control": "states"}, "continuous": {"mode": "continuous"},
    }  # fmt: skip
    functions: dict[str, Callable] = {
        name: ready(ours(f, loss, t1, tolerance, **options), z0, params) for name, options in mine.items()
    }
    functions["exact, under jit"] = ready(jax.jit(ours(f, loss, t1, tolerance)), z, p)
    diffrax = load_peer("diffrax")
    if diffrax:
        for name in ("recursive", "backsolve"):
            functions[f"diffrax {name}"] = ready(of_diffrax(diffrax, name, f, loss, t1, tolerance), z, p)
    torch = of_torchdiffeq(f, loss, t1, tolerance, z0, params)
    if torch:
        functions["torchdiffeq"] = torch
    errors = {}
    for name, function in functions.items():
        first = time.perf_counter()
        g = function()
        compiled = time.perf_counter() - first
        gap = np.concatenate([flat(g[0]), flat(g[1])]) - exact
        errors[name] = f"error {np.max(np.abs(gap)) / np.max(np.abs(exact)):.1e}", compiled
    times = time_in_turn(functions, quick)
    rows = []
    for name in (*mine, "exact, under jit"):
        for peer in ("diffrax recursive", "diffrax backsolve", "torchdiffeq"):
            note = f"{errors[name][0]}, first call {errors[name][1]:.1f} s"
            if peer not in times:
                rows.append(Row(f"{case}: {name}", times[name], peer, note=MISSING))
                continue
            aim = aims.get(peer) if name.startswith("exact") else None
            note += f"; peer {errors[peer][0]}, {errors[peer][1]:.1f} s"
            rows.append(Row(f"{case}: {name}", times[name], peer, times[peer], aim, note=note))
    return rows


def time_prey(quick: bool) -> list[Row]:
    aims = {"diffrax recursive": 0.1}
    return compare("predator-prey, 1e-8", prey, distance_from_ones, np.ones(2), 10.0, PREY_PARAMS, 1e-8, quick, aims)


def time_neural(quick: bool) -> list[Row]:
    z0 = np.random.default_rng(1).normal(size=(64, 2))
    aims = {"diffrax recursive": 0.5, "torchdiffeq": 0.2}
    return [
        row
        for tolerance in (1e-4, 1e-6)
        for row in compare(
            f"network 2-50-2, batch 64, {tolerance:g}", network, square, z0, 1.0, weights(), tolerance, quick, aims
        )
    ]


def time_memory(quick: bool) -> list[Row]:
    N = 2_000 if quick else 100_000
    rows = []
    for mode in ("Binomial(20)", "sqrt", "full"):
        if mode == "full" and not quick:
            continue  # 800 MB for the states alone; its gradient is compared on the short horizon
        command = [sys.executable, __file__, "--child", f"{mode} {N}"]
        child = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": ""})
        report = json.loads(child.stdout.strip().splitlines()[-1])
        note = f"peak {report['peak_mb']:.0f} MB above imports (all states: {report['all_mb']:.0f} MB)"
        note += f", {report['steps']} steps forward"
        rows.append(Row(f"Burgers, 1000 points, {N} steps: {mode}", report["us"], note=note))
        rows[-1].note += f"; gradient {report['sum']:.12e}"
    return rows


def peak_kb() -> int:
    """Return the peak of this process; getrusage would report that of the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def run_child(argument: str) -> None:

    mode, N = argument.rsplit(" ", 1)[0], int(argument.rsplit(" ", 1)[1])
    memory = oc.Binomial(20) if mode.startswith("Binomial") else mode
    flow = oc.pde.Burgers(1000, dt=1e-5, control="none")
    x0 = jnp.sin(jnp.pi * flow.grid)
    problem = oc.Problem(flow, terminal_cost=lambda x: x @ x / 2, horizon=N, x0=x0, memory=memory)
    us = jnp.zeros((N, 0))
    before = peak_kb()
    start = time.perf_counter()
    g = jax.block_until_ready(oc.gradient(problem, us))
    seconds = time.perf_counter() - start
    peak = peak_kb() - before
    steps = memory.forward_steps(N) if isinstance(memory, oc.Binomial) else 2 * N if memory == "sqrt" else N
    report = {"us": 1e6 * seconds, "peak_mb": peak / 1024, "steps": steps, "all_mb": 8e-3 * N, "sum": float(g.x0.sum())}
    print(json.dumps(report))


PARTS = {"prey": time_prey, "neural": time_neural, "memory": time_memory}


def main() -> None:
    options = read_options(__doc__, tuple(PARTS))
    if options.child:
        run_child(options.child)
        return
    rows = [row for part in options.only for row in PARTS[part](options.quick)]
    finish(rows, oc.__version__, options.json)


if __name__ == "__main__":
    main()
