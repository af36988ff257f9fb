"""Random numbers of `jax.random`, made by NumPy where the key is a number: XLA takes a third of a second a shape.

Threefry-2x32 with 20 rounds, as JAX has it: a key and a counter, two words each, are mixed into two words. The normal
numbers are those of JAX to rounding.

Reference: Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.
"""

from statistics import NormalDist
from typing import Any

import jax
import numpy as np

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = np.uint32(0x1BD11BDA)


def words_of(key: Any) -> np.ndarray | None:
    """Return the two words of a key: a seed, or a key of JAX's with its default generator; None for any other.

    Keys that are being traced are among the others, and generators whose numbers differ from those made here.
    """
    if isinstance(key, jax.core.Tracer) or not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
        return None
    if isinstance(key, int):
        return np.array([key >> 32 & 0xFFFFFFFF, key & 0xFFFFFFFF], np.uint32)
    if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(key)) != "threefry2x32" or key.shape:
            return None
        key = jax.random.key_data(key)
    return np.asarray(key) if key.shape == (2,) and key.dtype == np.uint32 else None


def threefry(key: np.ndarray, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two words for each counter (high, low)."""
    keys = key[0], key[1], key[0] ^ key[1] ^ PARITY
    with np.errstate(over="ignore"):
        a, b = high + keys[0], low + keys[1]
        for block in range(5):
            for by in ROTATIONS[block % 2]:
                a = a + b
                b = (b << np.uint32(by) | b >> np.uint32(32 - by)) ^ a
            a, b = a + keys[(block + 1) % 3], b + keys[(block + 2) % 3] + np.uint32(block + 1)
    return a, b


def split(key: np.ndarray, count: int) -> np.ndarray:
    """Return `jax.random.split(key, count)` as words, (count, 2)."""
    return np.stack(threefry(key, *_counters(count)), axis=1)


def normal(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return `jax.random.normal(key, shape)` in double precision."""
    high, low = threefry(key, *_counters(int(np.prod(shape))))
    bits = high.astype(np.uint64) << np.uint64(32) | low
    one_to_two = (bits >> np.uint64(12) | np.float64(1.0).view(np.uint64)).view(np.float64)
    least = np.nextafter(-1.0, 0.0)
    uniform = np.maximum(least, (one_to_two - 1.0) * (1.0 - least) + least)
    quantile = NormalDist().inv_cdf
    return np.array([quantile((1.0 + u) / 2.0) for u in uniform.tolist()]).reshape(shape)


def _counters(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(count, np.uint32), np.arange(count, dtype=np.uint32)
