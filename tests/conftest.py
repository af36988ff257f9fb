"""Shared settings: 64-bit, no silent rank promotion, seeded randomness."""

import jax
import numpy as np
import pytest

import optctl  # noqa: F401  (turns 64-bit mode on)

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng():
    return np.random.default_rng(7)
