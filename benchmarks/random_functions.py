"""Random stage functions over all primitives: values, Jacobian and Hessian of their tapes against JAX's derivatives.

    python benchmarks/random_functions.py [--count 2000] [--first 0] [--length 6]

Prints the functions that differ and those without a tape. What JAX derives, NumPy evaluates,
so that nothing is compiled; a function takes 0.3 s.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from timing import describe_machine

import optctl as oc
from optctl.tape import Unsupported

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from stage_functions import gap

ENOUGH = 1e-9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--length", type=int, default=6)
    args = parser.parse_args()
    print(describe_machine(oc.__version__))
    started, gaps, without = time.perf_counter(), [], 0
    for seed in range(args.first, args.first + args.count):
        try:
            found, names = gap(seed, args.length)
        except Unsupported as why:
            without += 1
            print(f"{seed}: no tape: {why}")
            continue
        gaps.append(found)
        if not found < ENOUGH:
            print(f"{seed}: differs by {found:.1e}: {', '.join(names)}")
    wrong = sum(not found < ENOUGH for found in gaps)
    print(f"{len(gaps)} functions: {wrong} differ, {without} without a tape; greatest difference {np.max(gaps):.1e}")
    print(f"{(time.perf_counter() - started) / args.count:.2f} s each")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
