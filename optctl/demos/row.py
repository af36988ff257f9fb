"""One line of the demo's table, and the clock."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Row(NamedTuple):
    """A solve and its independent exact cost."""

    problem: str
    method: str
    cost: float
    exact: float
    iterations: int
    seconds: float

    @property
    def gap(self) -> float:
        """Relative gap to the exact cost."""
        return self.cost / self.exact - 1


def timed(function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Return the result and the wall-clock seconds, compilation included."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args, **kwargs))
    return result, time.perf_counter() - start


def table(rows: list[Row]) -> str:
    """Return the rows as an aligned table."""
    lines = [f"{'problem':<26} {'method':<30} {'cost':>15} {'exact cost':>15} {'gap':>9} {'iter':>6} {'seconds':>8}"]
    lines += [
        f"{row.problem:<26} {row.method:<30} {row.cost:15.8f} {row.exact:15.8f} {row.gap:9.1e}"
        f" {row.iterations:6d} {row.seconds:8.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def save(axes: Any, out: Path, name: str) -> None:
    """Write the figure of the axes to `out/name.png`."""
    first = axes[0] if isinstance(axes, list) else axes
    first.figure.savefig(out / f"{name}.png", dpi=120)
