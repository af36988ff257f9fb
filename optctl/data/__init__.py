"""Data sets that ship with the package."""

from importlib.resources import files
from typing import Any

import numpy as np


def nile() -> tuple[Any, Any]:
    """Return (years, volumes): annual flow of the Nile at Aswan, 1871 to 1970, in 10^8 m^3 (public domain)."""
    with (files("optctl.data") / "nile.csv").open() as file:
        table = np.loadtxt(file, delimiter=",", skiprows=1)
    return table[:, 0].astype(int), table[:, 1]
