"""Random stage functions: values, Jacobian and Hessian of their tapes against JAX's derivatives, evaluated by NumPy."""

import pytest
from stage_functions import gap

from optctl import _native

pytestmark = pytest.mark.skipif(not _native.available(), reason="tapes are run by the compiled kernels")


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_functions(first):
    for seed in range(first, first + 20):
        found, names = gap(seed, length=3, depth=1 + seed % 5 // 4)  # every fifth has loops within loops
        assert found < 1e-10, (seed, names)
