"""`python -m tests.bench [NAME…]`: measure, print, and report whether the targets were met.

Exit status: 0 all targets met, 1 one was missed or something could not be measured, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.bench import machine, report
from tests.bench.figures import Outcome
from tests.lab.host import REPOSITORY
from tests.tiers import lab_misses

#: In the order in which they run.
BENCHMARKS = (
    "startup",
    "doctor",
    "enrolments",
    "join",
    "stream",
    "engine",
    "rootless",
    "objects",
    "agent",
    "bigmesh",
    "hub",
    "relay",
    "paths",
    "web",
    "scale",
)
DOCUMENT = REPOSITORY / "docs/benchmarks.md"
_SHOWN = DOCUMENT.relative_to(REPOSITORY)
#: A failed benchmark shows the host's logs on standard error; the result has the beginning of the error.
_FAILURE_CHARACTERS = 500

console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; see the module's docstring."""
    options = _parser().parse_args(arguments)
    missing = lab_misses()
    if missing:
        print(f"bench: this machine lacks {missing}", file=sys.stderr)
        return 1
    facts = machine.describe()
    date = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    console.print(f"{date} UTC; " + "; ".join(f"{what} {value}" for what, value in facts.items()) + "\n")
    outcomes = []
    try:
        for name in options.name or BENCHMARKS:
            outcomes.append(run_one(name))
            report.show(console, outcomes[-1])
            if options.markdown and options.name:  # The results remain, even if the next benchmark is interrupted.
                one = report.Run(date, facts, outcomes[-1:])
                DOCUMENT.write_text(report.updated(DOCUMENT.read_text(), one))
    except KeyboardInterrupt:
        print("\ninterrupted; everything is torn down", file=sys.stderr)
        return 130
    run = report.Run(date, facts, outcomes)
    if options.json:
        options.json.write_text(json.dumps(report.to_json(run), indent=1) + "\n")
    if options.markdown and not options.name:
        DOCUMENT.write_text(report.to_markdown(run))
    console.print("All targets are met." if run.met else "[bold red]Not all targets are met.[/]")
    return 0 if run.met else 1


def run_one(name: str) -> Outcome:
    """Run one benchmark; any exception becomes its result."""
    benchmark = importlib.import_module(f"tests.bench.{name}")
    console.print(f"[bold]{name}[/]: {benchmark.TITLE}")
    load, start = os.getloadavg()[0], time.monotonic()
    measured, failure = None, ""
    try:
        measured = benchmark.measure(lambda line: console.print(f"  {line}", style="dim", markup=False))
    except Exception as error:  # The others are still useful.
        failure = f"{type(error).__name__}: {error}"[:_FAILURE_CHARACTERS]
    return Outcome(name, benchmark.TITLE, benchmark.HOW, measured, failure, load, time.monotonic() - start)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Run benchmarks of meshray.")
    parser.add_argument("name", nargs="*", choices=[[], *BENCHMARKS], help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, every sample included")
    parser.add_argument(
        "--markdown", action="store_true", help=f"write {DOCUMENT.relative_to(REPOSITORY)}, or the named sections of it"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
