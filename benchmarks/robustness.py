"""How sturdy the interior point method is: some 600 problems, side by side with IPOPT on the same nonlinear program.

Run with `python benchmarks/robustness.py` [--quick] [--only KIND ...] [--keep PATH] [--json PATH]. Both start from the
same guess, with a tolerance of 1e-8. IPOPT gets the problem through `in_casadi.py`, with derivatives of CasADi's own.
What optctl claims is judged by those: SOLVED must satisfy the first-order conditions, "infeasible" must not be said
where IPOPT finds a feasible point. --keep reads what IPOPT found from a file, or writes it there.
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import jax
import numpy as np
from random_problems import Case, cases
from timing import MISSING, describe_machine, load_peer

import optctl as oc

ca = load_peer("casadi")
QUIET = {"print_time": False, "ipopt.print_level": 0, "ipopt.sb": "yes", "ipopt.tol": 1e-8, "ipopt.max_iter": 1000}
FINE = ("Solve_Succeeded", "Solved_To_Acceptable_Level")
WRONG = 1e-5
"""Beyond this a condition is refuted: violations, and slopes and products over the size of the slopes."""
AIMS = {"certified": 0.99, "iterations": 1.1}


def structure_of(case: Case) -> Any:
    leaves, structure = jax.tree.flatten(case.problem)
    return structure, tuple(np.shape(leaf) for leaf in leaves), case.free


def ours(case: Case) -> tuple[Any, dict[str, Any]]:
    """Solve by optctl; an error counts as not solved."""
    began = time.perf_counter()
    try:
        s = oc.solve(case.problem, case.us, method="interior_point", xs=case.xs, free=case.free)
    except Exception as error:
        return None, {
            "status": f"{type(error).__name__}: {str(error)[:80]}",
            "iterations": 0,
            "cost": np.nan,
            "seconds": 0,
        }
    return s, {
        "status": oc.Status(int(s.status)).name, "iterations": int(s.iterations), "cost": float(s.cost),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def judge(case: Case, mine: dict[str, Any], peer: dict[str, Any], check: Any) -> str:
    """Return what is wrong with optctl's claim, or nothing."""
    feasible = peer["violation"] <= 1e-6
    if mine["status"] == "SOLVED":
        if not case.feasible:
            return "solved what has no feasible point"
        relative = abs(check.cost - mine["cost"]) / (1e-12 + abs(check.cost))
        worst = {"violation": check.violation, "slope": check.slope, "products": check.products, "cost": relative}
        return ", ".join(f"{name} {value:.1e}" for name, value in worst.items() if not value <= WRONG)
    if mine["status"] == "INFEASIBLE" and feasible:
        return "infeasible, where IPOPT ends feasible"
    if mine["status"] == "UNBOUNDED" and peer["status"] in FINE:
        return "unbounded, where IPOPT finds an optimum"
    return ""


def run(each: int, guesses: int, only: list[str] | None, kept: dict[str, Any]) -> list[dict[str, Any]]:
    import in_casadi

    programs: dict[Any, Any] = {}
    rows = []
    for case in cases(each, guesses):
        if only and case.kind not in only:
            continue
        key = f"{case.kind}/{case.index}"
        kind = structure_of(case)
        if kind not in programs:
            programs[kind] = in_casadi.build(case.problem, case.us, case.xs, case.free, QUIET)
        program, n = programs[kind], in_casadi.numbers(case.problem, case.us, case.xs, case.free)
        if key not in kept:
            kept[key] = in_casadi.solve(program, n)
        solution, mine = ours(case)
        solved = mine["status"] == "SOLVED"
        check = in_casadi.optimality(program, n, case.problem, solution, case.free) if solved else None
        said = judge(case, mine, kept[key], check)
        rows.append({"case": key, "kind": case.kind, "optctl": mine, "ipopt": kept[key], "false": said})
    return rows


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print a line for each kind, then what differs, then the sums."""
    heads = f"{'kind':24} {'n':>3} {'both':>4} {'we':>3} {'they':>4} {'none':>4} {'iterations':>15} {'ratio':>6}"
    print(f"{heads}  not solved")
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for kind in kinds:
        mine = [row for row in rows if row["kind"] == kind]
        print(line(kind, mine))
    print(line("all", rows))
    listed(rows)
    both = [row for row in rows if solved(row)[0] and solved(row)[1]]
    theirs = [row for row in rows if solved(row)[1]]
    sums = {
        "problems": len(rows),
        "certified of IPOPT's": len(both) / max(1, len(theirs)),
        "iterations": ratio(both),
        "false claims": sum(bool(row["false"]) for row in rows),
    }
    print({name: round(value, 4) for name, value in sums.items()})
    return sums


def solved(row: dict[str, Any]) -> tuple[bool, bool]:
    return row["optctl"]["status"] == "SOLVED", row["ipopt"]["status"] in FINE


def ratio(rows: list[dict[str, Any]]) -> float:
    logs = [np.log((1 + r["optctl"]["iterations"]) / (1 + r["ipopt"]["iterations"])) for r in rows]
    return float(np.exp(np.mean(logs))) if logs else np.nan


def line(name: str, rows: list[dict[str, Any]]) -> str:
    pairs = [solved(row) for row in rows]
    both = [row for row, pair in zip(rows, pairs, strict=True) if all(pair)]
    counts = [len(both), sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)]
    mean = [np.mean([r[who]["iterations"] for r in both]) if both else 0 for who in ("optctl", "ipopt")]
    failures = [r["optctl"]["status"] for r in rows if r["optctl"]["status"] != "SOLVED"]
    said = ", ".join(f"{failures.count(f)} {f}" for f in dict.fromkeys(failures))
    none = len(rows) - sum(counts)
    return (
        f"{name:24} {len(rows):3} {counts[0]:4} {counts[1]:3} {counts[2]:4} {none:4} {mean[0]:7.1f} {mean[1]:7.1f}"
        f" {ratio(both):6.2f}  {said if name != 'all' else ''}"
    )


def listed(rows: list[dict[str, Any]]) -> None:
    """Print false claims, and costs that differ: other local optima."""
    for row in rows:
        if row["false"]:
            print(f"FALSE CLAIM  {row['case']}: {row['false']}")
    lower = higher = 0
    for row in rows:
        if all(solved(row)):
            a, b = row["optctl"]["cost"], row["ipopt"]["cost"]
            gap = (a - b) / (1e-9 + max(abs(a), abs(b)))
            lower, higher = lower + (gap < -1e-5), higher + (gap > 1e-5)
    print(f"other local optima: {lower} lower than IPOPT's, {higher} higher")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write machine, versions and rows to this file")
    parser.add_argument("--keep", type=Path, help="what IPOPT found: read from this file, or written to it")
    parser.add_argument("--quick", action="store_true", help="two problems of each kind")
    parser.add_argument("--only", nargs="+", help="kinds to run")
    options = parser.parse_args()
    if ca is None:
        sys.exit(f"casadi is {MISSING}")
    warnings.filterwarnings("ignore")
    kept = json.loads(options.keep.read_text()) if options.keep and options.keep.exists() else {}
    began = time.perf_counter()
    rows = run(2 if options.quick else 8, 2 if options.quick else 20, options.only, kept)
    sums = report(rows)
    print(f"{time.perf_counter() - began:.0f} s")
    if options.keep:
        options.keep.write_text(json.dumps(kept, indent=1))
    if options.json:
        machine = describe_machine(oc.__version__)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine, "sums": sums, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
