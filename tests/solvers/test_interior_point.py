"""The interior point method: known optima, first-order conditions, robustness, derivatives, what it says when it fails."""

import numpy as np
import pytest

from optctl.problems import ZOO
from tests.oracles import check_optimality

DISCRETE = ("acrobot", "cartpole_weak", "cartpole_push", "cartpole_constrained")


@pytest.mark.parametrize("name", ZOO)
def test_known_optimum(name):
    """Discrete problems to 1e-8 of what independent solvers agree on, continuous ones to 1e-6 of the closed form."""
    known = ZOO[name]()
    sol = known.solve()
    assert sol.converged, sol
    np.testing.assert_allclose(sol.cost, known.optimum, rtol=1e-8 if name in DISCRETE else 1e-6)
    if known.free is None:
        check_optimality(known.problem, sol, tolerance=1e-7)
    if name == "least_energy":
        t = np.arange(21) / 20
        np.testing.assert_allclose(sol.costates, np.stack([np.full(21, -12.0), 12 * t - 6], 1), atol=1e-9)
        np.testing.assert_allclose(sol.us[:, 0], 6 - 12 * t[:-1], atol=1e-9)
    if name == "van_der_pol":
        np.testing.assert_allclose(sol.costates[0], [1.71717694, 0.01126109], atol=1e-6)
    if name == "least_energy_bounded":
        active = np.flatnonzero(np.abs(sol.us[:, 0]) > 5 - 1e-6) / 200
        inside = active[(active > 0.1127016654) & (active < 0.8872983346 - 1 / 200)]
        assert inside.size == 0
    if name == "oscillator":
        P = np.linalg.solve(np.eye(2), np.asarray([[1.90672452, 0.41112815], [0.41112815, 1.3479980918]]))
        np.testing.assert_allclose(sol.costates[0], P @ [0.0, 1.0], atol=1e-5)
