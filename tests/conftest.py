"""Shared settings: 64-bit, no silent rank promotion, seeded randomness."""

import gc
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

import optctl  # noqa: F401  (turns 64-bit mode on)

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a big test, the cases that the kernels compute are not big: XLA compiles nothing for them."""
    for item in items:
        natively = "native" in str(getattr(getattr(item, "callspec", None), "params", ""))
        item.own_markers = [mark for mark in item.own_markers if mark.name != "big" or not natively]


COUNT = itertools.count(1)

# Tracing makes millions of small objects, few of them garbage: look for it less often, and at each of them once.
gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def look_for_garbage_once():
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def few_memory_maps():
    """Drop compiled programs before a worker has more memory maps than Linux allows a process (65 530)."""
    yield
    maps = Path("/proc/self/maps")
    if next(COUNT) % 10 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 45_000:
        jax.clear_caches()
        gc.unfreeze()
        gc.collect()
