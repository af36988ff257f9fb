"""An ODE whose parameters are others after each of two events."""

import optctl as oc

HEATER = oc.ODE(lambda z, t, p: p["rate"] * (p["target"] - z))
REVERSE = oc.Event(
    lambda z: z[0] - 1.0,
    direction=1,
    reset_params=lambda z, t, p: {"rate": p["rate"] * 2, "target": -p["target"] + 0.1 * z[0] + t},
)
AGAIN = oc.Event(
    lambda z, t, p: z[0] - 0.2 * p["target"],
    direction=-1,
    reset=lambda z, t, p: z + 0.1 * p["rate"],
    reset_params=lambda z, t, p: {"rate": p["rate"], "target": 2.0 + 0.1 * p["target"] + 0 * z[0]},
)
