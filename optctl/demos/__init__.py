"""Demonstrations: each solves a problem, checks it against an independent exact solution, and draws it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from optctl.demos import lqr, nile, policy, swing_up
from optctl.demos.row import Row

__all__ = ["DEMOS", "Demo", "Row", "run"]


class Demo(NamedTuple):
    """A demonstration: what it shows, and the function that runs it."""

    summary: str
    run: Callable[[Path], list[Row]]


DEMOS = {
    "nile": Demo("smooth the annual flow of the Nile: gradient descent by costates against the exact solve", nile.run),
    "swing_up": Demo("swing up a cart-pole: L-BFGS and Newton-CG against the known optimum", swing_up.run),
    "lqr": Demo("an LQR with costates: Riccati against cvxpy and gradient methods", lqr.run),
    "policy": Demo(
        "train neural controllers: a push towards upright, and balancing from 200 unseen states", policy.run
    ),
}


def run(names: list[str], out: Path) -> list[Row]:
    """Run the named demos, write their figures to `out`, and return the rows of the table."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        rows += DEMOS[name].run(out)
    return rows
