"""The command line: `optctl list` and `optctl demo [NAME ...]`."""

import argparse
import sys
import time
from pathlib import Path

import optctl


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="optctl", description="Optimal control with one costate engine.")
    parser.add_argument("--version", action="version", version=f"optctl {optctl.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list demos, solvers and ready models")
    demo = commands.add_parser("demo", help="run demos; all of them without a name")
    demo.add_argument("name", nargs="*", help="names as `optctl list` shows them")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for figures (default: out)")
    options = parser.parse_args(arguments)
    return _list() if options.command == "list" else _demo(options.name, options.out)


def _list() -> int:
    from optctl.solvers import METHODS

    print("demos (optctl demo NAME):")
    for name, summary in _summaries().items():
        print(f"  {name:<18} {summary}")
    print("solvers (optctl.solve(problem, us, method=NAME)):")
    for name, kind in METHODS.items():
        print(f"  {name:<18} {kind.summary}; options: {kind.__name__}({', '.join(kind.options())})")
    print("models (optctl.models.NAME()):")
    for name in optctl.models.__all__:
        model = getattr(optctl.models, name)
        print(f"  {name:<18} {model.nx} states, {model.nu} inputs: {', '.join(model.labels.states)}")
    return 0


def _summaries() -> dict[str, str]:
    try:
        from optctl.demos import DEMOS
    except ImportError as error:
        return {"(unavailable)": f"{error.name} is missing; install with: pip install 'optctl[demo]'"}
    return {name: demo.summary for name, demo in DEMOS.items()}


def _demo(names: list[str], out: Path) -> int:
    try:
        from optctl import demos
        from optctl.demos.row import table
    except ImportError as error:
        print(f"demos need {error.name}; install with: pip install 'optctl[demo]'", file=sys.stderr)
        return 2
    unknown = [name for name in names if name not in demos.DEMOS]
    if unknown:
        print(f"no demo named {', '.join(unknown)}; expected: {', '.join(demos.DEMOS)}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    rows = demos.run(names or list(demos.DEMOS), out)
    print(table(rows))
    figures = ", ".join(sorted(path.name for path in out.glob("*.png")))
    print(f"\n{time.perf_counter() - start:.0f} s in all; figures in {out}/: {figures}")
    return 0
