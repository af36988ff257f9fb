"""Times of the linear-quadratic solver against Crocoddyl, HPIPM (through CasADi), `lax.scan` and the arithmetic limit.

Run with `python benchmarks/lq.py` [--quick] [--only riccati solve batch long first] [--json PATH]. Optctl and its
peer are called in turn, warm, and the median is taken; what both compute is compared first. A ratio is optctl's time
over the peer's. Every call is from Python, so dispatch is part of each time.

Least work per stage of the Riccati recursion, in floating-point operations: with P = L L' in hand, the product
L'[A B] takes nx^2 (nx+nu) as L is triangular, its half Gram matrix (nx+nu)^2 nx, the Cholesky factorization of the
symmetric sum, which gives the next L, (nx+nu)^3 / 3, and the gains' triangular solve nu^2 nx. All together

    7/3 nx^3 + 4 nx^2 nu + 3 nx nu^2 + nu^3 / 3

(Frison and Jorgensen (2013), Efficient implementation of the Riccati recursion for solving linear-quadratic control
problems, IEEE CCA). The limit is this count over the rate of a large matrix product (dgemm, one thread).

The peers run in one thread; optctl's batch takes the threads that XLA gives it. Crocoddyl's large products could use
OpenMP: with two threads on two idle cores its backward pass for nx = 50 takes a fifth less time, on busy ones far more.
HPIPM is as the CasADi wheel builds it: for any processor of the architecture, so without fused multiply-add.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from timing import MISSING, Row, check_agreement, finish, load_peer, read_options, ready, show, time_in_turn

import optctl as oc

SIZES = ((4, 1, 0.15), (12, 4, 0.4), (50, 20, 0.4))
PRODUCT = 512


def random_data(nx: int, nu: int, N: int | None, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw a strictly convex problem; with N None one stage stands for all."""
    rng = np.random.default_rng(seed)
    lead, n = () if N is None else (N,), nx + nu
    A = 0.95 * np.eye(nx) + 0.2 / np.sqrt(nx) * rng.normal(size=(*lead, nx, nx))
    G = rng.normal(size=(*lead, n, n)) / np.sqrt(n)
    H = np.eye(n) + G @ np.swapaxes(G, -1, -2)
    H = (H + np.swapaxes(H, -1, -2)) / 2
    last = H if N is None else H[-1]
    return {
        "A": A,
        "B": rng.normal(size=(*lead, nx, nu)),
        "c": 0.1 * rng.normal(size=(*lead, nx)),
        "Q": H[..., :nx, :nx],
        "R": H[..., nx:, nx:],
        "M": H[..., :nx, nx:],
        "q": rng.normal(size=(*lead, nx)),
        "r": rng.normal(size=(*lead, nu)),
        "Qf": 2 * last[:nx, :nx],
        "qf": rng.normal(size=nx),
        "x0": rng.normal(size=nx),
    }


def make_lq(data: dict[str, np.ndarray], **options: Any) -> oc.lq.LQ:
    return oc.lq.LQ(**{name: jnp.asarray(value) for name, value in data.items()}, **options)


def backward_pass(crocoddyl: Any, data: dict[str, np.ndarray]) -> Any:
    """Return Crocoddyl's solver, ready for a backward pass: derivatives in place, no gaps, no regularization."""
    stage = [data[name] for name in ("A", "B", "Q", "R", "M", "c", "q", "r")]
    models = [crocoddyl.ActionModelLQR(*(np.ascontiguousarray(m[t]) for m in stage)) for t in range(len(data["A"]))]
    end = [data["A"][-1], data["B"][-1], data["Qf"], data["R"][-1], 0 * data["M"][-1], data["c"][-1], data["qf"]]
    last = crocoddyl.ActionModelLQR(*(np.ascontiguousarray(m) for m in end), data["r"][-1])
    problem = crocoddyl.ShootingProblem(data["x0"], models, last)
    us = [np.zeros(data["B"].shape[-1])] * len(models)
    xs = problem.rollout(us)
    solver = crocoddyl.SolverDDP(problem)
    solver.setCandidate(xs, us, True)
    problem.calc(xs, us)
    problem.calcDiff(xs, us)
    return solver


def least_flops(nx: int, nu: int) -> float:
    return 7 / 3 * nx**3 + 4 * nx**2 * nu + 3 * nx * nu**2 + nu**3 / 3


def product(n: int) -> Callable:
    a = np.asfortranarray(np.random.default_rng(0).normal(size=(n, n)))
    out = np.zeros_like(a)
    return lambda: scipy.linalg.blas.dgemm(1.0, a, a, c=out, overwrite_c=True)


def time_riccati(quick: bool) -> list[Row]:
    rows, crocoddyl = [], load_peer("crocoddyl")
    scan = jax.jit(functools.partial(oc.lq.factor, method="scan"))
    for nx, nu, aim in SIZES:
        short: dict[str, float] = {}
        for N in (100, 1000):
            data = random_data(nx, nu, N)
            lq, host = make_lq(data), oc.lq.LQ(**data)
            ours, plain = oc.lq.factor(host), scan(lq)
            check_agreement("K of native and scan", ours.K, plain.K, 1e-9)
            check_agreement("P of native and scan", ours.P, plain.P, 1e-9)
            functions = {"native": lambda host=host: oc.lq.factor(host), "scan": ready(scan, lq)}
            if crocoddyl:
                solver = backward_pass(crocoddyl, data)
                solver.backwardPass()
                check_agreement("K of Crocoddyl", ours.K, [-K.reshape(nu, nx) for K in solver.K.tolist()], 1e-9)
                check_agreement("P of Crocoddyl", ours.P, solver.Vxx.tolist(), 1e-9)
                functions["crocoddyl"] = solver.backwardPass
            if nx == 50:
                functions["dgemm"], functions["dgemm 50"] = product(PRODUCT), product(50)
            times = time_in_turn(functions, quick)
            rows += riccati_rows(nx, nu, N, aim, times, short)
            short = times
    return rows


def riccati_rows(nx: int, nu: int, N: int, aim: float, times: dict[str, float], short: dict[str, float]) -> list[Row]:
    case, ours = f"factor, nx = {nx}, nu = {nu}, N = {N}", times["native"]
    note = "a plain call, from NumPy's arrays to NumPy's" if "crocoddyl" in times else MISSING
    if short and "crocoddyl" in times:
        slopes = {name: (times[name] - short[name]) / 900 for name in ("native", "crocoddyl")}
        note = f"from N = 100 to 1000 per stage: {slopes['native']:.3g} us, peer {slopes['crocoddyl']:.3g} us"
    rows = [Row(case, ours, "Crocoddyl backwardPass", times.get("crocoddyl"), aim, note=note)]
    rows.append(Row(case, ours, "lax.scan", times["scan"], 0.05 if nx == 4 else None))
    if "dgemm" in times:
        rate, small = 2 * PRODUCT**3 / times["dgemm"], 2 * 50**3 / times["dgemm 50"]
        limit = N * least_flops(nx, nu) / rate
        note = f"dgemm {1e-3 * rate:.1f} Gflop/s (n = 50: {1e-3 * small:.1f}), {least_flops(nx, nu):.0f} flops a stage"
        rows.append(Row(case, ours, "arithmetic limit", limit, 2.5, note=note))
    return rows


def conic(casadi: Any, data: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """Return CasADi's HPIPM function with its arguments, in NumPy and in DM; z = (u_0, x_1, u_1, ..., x_N).

    x_0 is put into the first stage's vectors, where HPIPM needs one factorization; fixed by bounds it needs three.
    Of HPIPM's modes only speed_abs ends here with success; all give the same numbers.
    """
    N, nx, nu = data["B"].shape
    n = N * (nx + nu)
    H, h = np.zeros((n, n)), np.zeros(n)
    G, b = np.zeros((N * nx, n)), -data["c"].ravel()
    H_used, G_used = H.astype(bool), G.astype(bool)
    b[:nx] -= data["A"][0] @ data["x0"]
    for t in range(N):
        rows, u = slice(t * nx, (t + 1) * nx), slice(t * (nx + nu), t * (nx + nu) + nu)
        x, z = slice(u.start - nx, u.start), slice(max(u.start - nx, 0), u.stop)
        H[u, u], h[u] = data["R"][t], data["r"][t]
        if t == 0:
            h[u] += data["M"][0].T @ data["x0"]
        else:
            H[x, x], H[x, u], H[u, x], h[x] = data["Q"][t], data["M"][t], data["M"][t].T, data["q"][t]
            G[rows, x], G_used[rows, x] = data["A"][t], True
        G[rows, u], G_used[rows, u] = data["B"][t], True
        G[rows, u.stop : u.stop + nx] = -np.eye(nx)
        H_used[z, z] = True
    H[-nx:, -nx:], h[-nx:], H_used[-nx:, -nx:] = data["Qf"], data["qf"], True
    G_used |= G != 0
    patterns = {"h": to_sparsity(casadi, H_used), "a": to_sparsity(casadi, G_used)}
    sizes = {"N": N, "nx": [0] + [nx] * N, "nu": [nu] * N + [0], "ng": [0] * (N + 1)}
    solver = casadi.conic("lq", "hpipm", patterns, {**sizes, "record_time": True, "hpipm": {"mode": "speed_abs"}})
    entries = {"h": H.T[H_used.T], "a": G.T[G_used.T]}
    vectors = {"g": h, "lba": b, "uba": b, "lbx": np.full(n, -np.inf), "ubx": np.full(n, np.inf)}
    matrices = {name: casadi.DM(patterns[name], entries[name]) for name in entries}
    in_dm = {**matrices, **{name: casadi.DM(value) for name, value in vectors.items()}}
    return solver, {**entries, **vectors}, in_dm


def to_sparsity(casadi: Any, used: np.ndarray) -> Any:
    i, j = (index.tolist() for index in np.nonzero(used))
    return casadi.Sparsity.triplet(*used.shape, i, j)


def through_buffers(solver: Any, arguments: dict[str, np.ndarray]) -> tuple[Callable, np.ndarray]:
    """Return a call of the CasADi function that converts nothing, and the array where it leaves the solution."""
    buffer, call = solver.buffer()
    inputs = [arguments.get(name, np.zeros(solver.nnz_in(i))) for i, name in enumerate(solver.name_in())]
    inputs = [np.ascontiguousarray(value, dtype=float) for value in inputs]
    outputs = [np.zeros(solver.nnz_out(i)) for i in range(solver.n_out())]
    for i, value in enumerate(inputs):
        buffer.set_arg(i, memoryview(value))
    for i, value in enumerate(outputs):
        buffer.set_res(i, memoryview(value))
    held = (buffer, inputs, outputs)  # CasADi keeps bare pointers to these

    def run(held: tuple = held) -> None:
        call()

    return run, outputs[0]


def time_solve(quick: bool) -> list[Row]:
    N, nx, nu = 50, 12, 4
    data, casadi = random_data(nx, nu, N), load_peer("casadi")
    lq = make_lq(data)
    in_numpy = jax.tree.map(np.asarray, lq)
    case = f"solve, N = {N}, nx = {nx}, nu = {nu}"
    functions = {"ours": ready(oc.lq.solve, lq), "ours, NumPy": ready(oc.lq.solve, in_numpy)}
    if casadi is None or not casadi.has_conic("hpipm"):
        note = MISSING if casadi is None else "not in this CasADi: HPIPM"
        return [Row(case, time_in_turn(functions, quick)["ours"], "HPIPM through CasADi", None, 1.0, note=note)]
    solver, arguments, in_dm = conic(casadi, data)
    call, found = through_buffers(solver, arguments)
    call()
    sol = oc.lq.solve(lq)
    ours = np.hstack([sol.us, sol.xs[1:]]).ravel()
    check_agreement("solution of HPIPM", ours, np.asarray(solver(**in_dm)["x"]).ravel(), 1e-8)
    check_agreement("solution of HPIPM through buffers", ours, found, 1e-8)
    mixed = {name: in_dm[name] if name in ("h", "a") else value for name, value in arguments.items()}
    functions |= {"DM": lambda: solver(**in_dm), "NumPy": lambda: solver(**mixed), "buffers": call}
    times = time_in_turn(functions, quick)
    stats = solver.stats()
    note = f"HPIPM's own clock: {show(1e6 * stats['t_wall_solver'])}, {stats['iter_count']} iteration"
    return [
        Row(f"{case}, prepared arrays", times["ours"], "HPIPM, DM arguments", times["DM"], 1.0, note=note),
        Row(f"{case}, NumPy arrays", times["ours, NumPy"], "HPIPM, NumPy vectors", times["NumPy"]),
        Row(f"{case}, prepared arrays", times["ours"], "HPIPM, no conversion", times["buffers"]),
    ]


def time_batch(quick: bool) -> list[Row]:
    many, N, nx, nu = 128, 20, 8, 4
    lqs = [make_lq(random_data(nx, nu, N, seed)) for seed in range(2 * many)]
    lq, other = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *half) for half in (lqs[:many], lqs[many:]))
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(many, N + 1, nx))), jnp.asarray(rng.normal(size=(many, N, nu)))

    def trajectory(lq: Any) -> tuple[Any, Any]:
        sol = oc.lq.solve(lq)
        return sol.xs, sol.us

    def pull_back(lq: Any, weights: Any) -> Any:
        return jax.vjp(trajectory, lq)[1](weights)[0]

    solve, adjoint = jax.jit(jax.vmap(oc.lq.solve)), jax.jit(jax.vmap(pull_back))
    check_agreement("xs in a batch", solve(lq).xs[3], oc.lq.solve(lqs[3]).xs, 1e-9)
    check_slope(solve, lq, other, weights, adjoint(lq, weights))
    times = time_in_turn({"solve": ready(solve, lq), "both": ready(adjoint, lq, weights)}, quick)
    each, both = times["solve"] / many, times["both"] / many
    case = f"batch of {many}, N = {N}, nx = {nx}, nu = {nu}, per problem"
    return [
        Row(f"{case}: solve", each, aim=40.0, aim_of="us"),
        Row(f"{case}: adjoint", both - each, aim=40.0, aim_of="us"),
        Row(f"{case}: sum", both),
    ]


def check_slope(solve: Callable, lq: Any, other: Any, weights: Any, gradient: Any) -> None:
    """Compare the adjoint with a central difference, all leaves moving towards those of other problems."""
    size = 1e-6
    change = jax.tree.map(jnp.subtract, other, lq)
    slope = sum(float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(change), strict=True))

    def value(step: float) -> float:
        sol = solve(jax.tree.map(lambda leaf, d: leaf + step * d, lq, change))
        return float(jnp.vdot(weights[0], sol.xs) + jnp.vdot(weights[1], sol.us))

    check_agreement("adjoint and differences", slope, (value(size) - value(-size)) / (2 * size), 1e-6)


def time_long(quick: bool) -> list[Row]:
    lengths = [10**e for e in range(2, 6 if quick else 7)]
    found = {N: run_child(f"long:{N}", quick) for N in lengths}
    base, rows = 10_000, []
    for N in lengths:
        each = {name: value / N for name, value in found[N].items()}
        row = Row(f"solve, invariant, nx = 4, nu = 1, N = {N}, per stage", each["us"])
        if base < N:
            row.peer, row.peer_us = f"optctl at N = {base}", found[base]["us"] / base
            memory = f"peak memory {each['grown']:.0f} bytes a stage, {each['paper']:.0f} on paper"
            row.note = f"{memory}, which only to write takes {show(each['writing'])}"
        rows.append(row)
    return rows


def run_child(task: str, quick: bool) -> dict[str, float]:
    """Run one task of this script in a fresh process, without a store of compiled code."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, __file__, "--child", task, *(["--quick"] if quick else [])]
    start = time.perf_counter()
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {**json.loads(out.splitlines()[-1]), "wall": time.perf_counter() - start}


def resident(field: str) -> float:
    """Return VmRSS, the resident memory, or VmHWM, its peak, in bytes; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(field)), float("nan"))


def forget_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def measure_long(N: int, quick: bool) -> dict[str, float]:
    """Return time and growth of the peak memory of one solve, and the bytes of all it keeps."""
    lq = make_lq(random_data(4, 1, None), horizon=N)
    solve = jax.jit(oc.lq.solve).lower(lq).compile()
    forget_peak()
    before = resident("VmRSS")
    jax.block_until_ready(solve(lq))
    grown = resident("VmHWM") - before
    factors, solution = jax.eval_shape(oc.lq.factor, lq), jax.eval_shape(oc.lq.solve, lq)
    kept = factors.S, factors.S0, solution  # K and P are in both
    paper = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    times = time_in_turn({"us": ready(solve, lq), "writing": lambda: np.ones(paper // 8)}, quick)
    return {**times, "grown": grown, "paper": paper}


def time_first(quick: bool) -> list[Row]:
    found = [run_child("first", quick) for _ in range(2 if quick else 5)]
    first, again, wall = (1e6 * float(np.median([f[name] for f in found])) for name in ("first", "again", "wall"))
    note = f"from arrays to the solution, import excluded; second call {show(again)}; whole process {show(wall)}"
    return [Row("first solve in a fresh process, N = 50, nx = 12, nu = 4", first, note=note)]


def measure_first() -> dict[str, float]:
    data = random_data(12, 4, 50)
    marks = [time.perf_counter()]
    for _ in range(2):
        jax.block_until_ready(oc.lq.solve(make_lq(data)))
        marks.append(time.perf_counter())
    return {"first": marks[1] - marks[0], "again": marks[2] - marks[1]}


PARTS = {"riccati": time_riccati, "solve": time_solve, "batch": time_batch, "long": time_long, "first": time_first}


def main() -> None:
    options = read_options(__doc__, tuple(PARTS))
    if options.child:
        task, _, N = options.child.partition(":")
        print(json.dumps(measure_long(int(N), options.quick) if task == "long" else measure_first()))
        return
    rows = [row for part in options.only for row in PARTS[part](options.quick)]
    finish(rows, oc.__version__, options.json)


if __name__ == "__main__":
    main()
