"""Estimation as control: state-space models and smoothing problems."""

from optctl.estimation.linear_gaussian import LinearGaussian
from optctl.estimation.smoothing import smoothing_problem

__all__ = ["LinearGaussian", "smoothing_problem"]
