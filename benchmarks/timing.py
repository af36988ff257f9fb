"""What the benchmarks share: timing in turn, agreement of results, rows with aims, the table and the JSON file."""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

MISSING = "not installed: pip install 'optctl[bench]'"
PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "casadi",
    "crocoddyl",
    "statsmodels",
    "dynamax",
    "simdkalman",
    "diffrax",
    "torch",
    "torchdiffeq",
)


@dataclass
class Row:
    """One comparison; times in microseconds per call, or per what the case names."""

    case: str
    optctl_us: float
    peer: str = ""
    peer_us: float | None = None
    aim: float | None = None
    aim_of: str = "ratio"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Optctl's time over the peer's."""
        return None if self.peer_us is None else self.optctl_us / self.peer_us

    @property
    def verdict(self) -> str:
        """Whether the aim is met, and else by how much it is missed."""
        value = self.ratio if self.aim_of == "ratio" else self.optctl_us
        if self.aim is None or value is None:
            return ""
        return "met" if value <= self.aim else f"missed: {value / self.aim:.2f} times the aim"

    def cells(self) -> list[str]:
        """Return the row as text."""
        theirs = "-" if self.peer_us is None else show(self.peer_us)
        ratio = "-" if self.ratio is None else f"{self.ratio:.3f}"
        aim = "-" if self.aim is None else f"{self.aim:g}" if self.aim_of == "ratio" else show(self.aim)
        return [self.case, show(self.optctl_us), self.peer, theirs, ratio, aim, self.verdict]


def show(us: float) -> str:
    """Write a time with its unit."""
    for limit, factor, unit in ((1e3, 1.0, "us"), (1e6, 1e-3, "ms")):
        if us < limit:
            return f"{us * factor:.3g} {unit}"
    return f"{us * 1e-6:.3g} s"


def read_options(doc: str | None, parts: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `parts` are the groups of rows that --only may name."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write machine, versions and rows to this file")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that all works")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="groups of rows to run")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def load_peer(name: str) -> Any:
    """Import a peer; None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def ready(function: Callable, *arguments: Any) -> Callable:
    """Bind the arguments of a JAX function, and wait for its results."""
    return lambda: jax.block_until_ready(function(*arguments))


def time_in_turn(functions: dict[str, Callable], quick: bool = False) -> dict[str, float]:
    """Return median microseconds of each function, called in turn, so that drifts of the machine meet all alike."""
    budget, least = (0.3, 3) if quick else (3.0, 9)
    for function in functions.values():
        function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    end, rounds = time.perf_counter() + budget, 0
    while time.perf_counter() < end or rounds < least:
        rounds += 1
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            samples[name].append(time.perf_counter() - start)
    return {name: 1e6 * float(np.median(times)) for name, times in samples.items()}


def check_agreement(what: str, ours: Any, theirs: Any, tolerance: float) -> None:
    """Raise unless two results differ by less than `tolerance` times the larger's greatest entry."""
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if ours.shape != theirs.shape:
        raise AssertionError(f"{what}: shapes {ours.shape} and {theirs.shape} differ")
    gap = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
    if not gap <= tolerance:
        raise AssertionError(f"{what}: relative difference {gap:.2e}, more than {tolerance:.0e}")


def print_table(rows: Sequence[Row]) -> None:
    head = ["case", "optctl", "peer", "peer's time", "ratio", "aim", ""]
    lines = [head, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = (0, 2, 6)
    for line, note in zip(lines, ["", *(row.note for row in rows)], strict=True):
        cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        print("  ".join([*cells, note]).rstrip())


def count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(optctl_version: str) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    versions = {"optctl": optctl_version}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cores": count_cores(),
        "cpu": model or platform.processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def finish(rows: Sequence[Row], optctl_version: str, path: Path | None) -> None:
    """Print the table and how many aims are met, and write the JSON file if asked for."""
    machine = describe_machine(optctl_version)
    print_table(rows)
    judged = [row.verdict for row in rows if row.verdict]
    print(f"{sum(v == 'met' for v in judged)} of {len(judged)} aims met, on {machine['cores']} cores, {machine['cpu']}")
    if path is not None:
        data = [{**asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine, "rows": data}, indent=1))
