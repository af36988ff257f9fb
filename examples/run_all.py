"""Run every numbered example in a process of its own; exit with an error if any fails. Figures go to out/."""

import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    failed = 0
    for script in sorted(Path(__file__).parent.glob("[0-9]*.py")):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "MPLBACKEND": "Agg"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        verdict = "ok" if done.returncode == 0 else f"FAILED with exit status {done.returncode}"
        print(f"{script.name:<24} {time.perf_counter() - start:6.1f} s  {verdict}", flush=True)
        if done.returncode != 0:
            print(done.stdout, flush=True)
            failed += 1
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
