"""Estimation as control: state-space models, filters, smoothers, likelihood, and smoothing problems."""

from optctl.estimation.filtering import Posterior, kalman_filter, kalman_smoother, log_likelihood
from optctl.estimation.linear_gaussian import LinearGaussian
from optctl.estimation.smoothing import smoothing_problem

__all__ = [
    "LinearGaussian",
    "Posterior",
    "kalman_filter",
    "kalman_smoother",
    "log_likelihood",
    "smoothing_problem",
]
