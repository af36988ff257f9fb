"""Problems with known optimum, for tests, benchmarks, demos and first steps."""

from optctl.problems.continuous import (
    brachistochrone,
    braking,
    bryson_denham,
    hypersensitive,
    least_energy,
    least_energy_bounded,
    least_time,
    oscillator,
    scalar_regulator,
    transversality,
    van_der_pol,
)
from optctl.problems.discrete import cartpole_constrained, cartpole_weak
from optctl.problems.known import KnownProblem
from optctl.problems.small import (
    OPTIMAL_COST,
    acrobot_swing_up,
    cartpole_balance,
    cartpole_push,
    cartpole_swing_up,
    local_level,
    nile,
)

ZOO = {
    "acrobot": lambda: KnownProblem(acrobot_swing_up(), OPTIMAL_COST["acrobot_swing_up"]),
    "cartpole_weak": cartpole_weak,
    "cartpole_push": lambda: KnownProblem(cartpole_push(), OPTIMAL_COST["cartpole_push"]),
    "cartpole_constrained": cartpole_constrained,
    "brachistochrone": brachistochrone,
    "brachistochrone_params": lambda: brachistochrone(tf="params"),
    "least_energy": least_energy,
    "braking": braking,
    "least_energy_bounded": least_energy_bounded,
    "least_time": least_time,
    "least_time_params": lambda: least_time(tf="params"),
    "bryson_denham": bryson_denham,
    "transversality": transversality,
    "hypersensitive": hypersensitive,
    "oscillator": oscillator,
    "scalar_regulator": scalar_regulator,
    "van_der_pol": van_der_pol,
}
"""Trajectory problems by name, each a function that makes a `KnownProblem`."""

__all__ = [
    "OPTIMAL_COST",
    "ZOO",
    "KnownProblem",
    "acrobot_swing_up",
    "brachistochrone",
    "braking",
    "bryson_denham",
    "cartpole_balance",
    "cartpole_constrained",
    "cartpole_push",
    "cartpole_swing_up",
    "cartpole_weak",
    "hypersensitive",
    "least_energy",
    "least_energy_bounded",
    "least_time",
    "local_level",
    "nile",
    "oscillator",
    "scalar_regulator",
    "transversality",
    "van_der_pol",
]
