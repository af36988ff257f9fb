"""Run every numbered example, two at a time, each in a process of its own; exit with an error if any fails."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def run(script: Path) -> bool:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "MPLBACKEND": "Agg"},
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
