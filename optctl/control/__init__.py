"""On line: model predictive control, and its simulation."""

from optctl.control.mpc import MPC, MPCPlan, MPCRun

__all__ = ["MPC", "MPCPlan", "MPCRun"]
