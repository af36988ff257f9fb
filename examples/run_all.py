"""Run every numbered example, two at a time, each in a process of its own; exit with an error if any fails.

Most of the time goes into compiling. XLA's newer way to emit fused loops takes twice as long for it as the older one,
and what it emits is no faster here; its optimization pays for itself only where a network is trained for long.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FLAGS = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"
PLAIN = "--xla_backend_optimization_level=0"
TRAINED_FOR_LONG = ("04_neural_policy.py", "09_neural_ode.py")


def run(script: Path) -> bool:
    flags = FLAGS if script.name in TRAINED_FOR_LONG else f"{PLAIN} {FLAGS}"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "MPLBACKEND": "Agg", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    good = done.returncode == 0
    verdict = "ok" if good else f"FAILED with exit status {done.returncode}\n{done.stdout}"
    print(f"{script.name:<24} {time.perf_counter() - start:6.1f} s  {verdict}", flush=True)
    return good


def main() -> int:
    scripts = sorted(Path(__file__).parent.glob("[0-9]*.py"))
    with ThreadPoolExecutor(2) as pool:
        return 0 if all(list(pool.map(run, scripts))) else 1


if __name__ == "__main__":
    sys.exit(main())
