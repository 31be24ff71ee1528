"""The results of a run as tables for a terminal, as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.bench.figures import Figure, Outcome

_COLUMNS = ("median", "min", "max", "n", "target", "met")


@dataclass(frozen=True)
class Run:
    """The measurements of one run.

    Attributes:
        date: UTC, as in 2026-01-31 12:00.
        machine: see `machine.describe`.
    """

    date: str
    machine: Mapping[str, str]
    outcomes: Sequence[Outcome]

    @property
    def met(self) -> bool:
        """Whether everything was measured and every target was met."""
        return all(outcome.met for outcome in self.outcomes)


def show(console: Console, outcome: Outcome) -> None:
    """Print one benchmark."""
    if outcome.measured is None:
        console.print(f"[bold red]{outcome.name} failed[/]: {escape(outcome.failure)}")
        return
    table = Table(title=outcome.title, title_justify="left", title_style="bold")
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("target", "met") else "right")
    for figure in outcome.measured.figures:
        style = "bold red" if figure.met is False else ""
        table.add_row(figure.what, *_cells(figure), style=style)
    console.print(table)
    for note in outcome.measured.notes:
        console.print(f"  {note}", highlight=False, markup=False)
    console.print(f"  took {outcome.seconds:.0f} s; load average before: {outcome.load:.1f}\n", highlight=False)


def to_json(run: Run) -> dict[str, object]:
    """Return the JSON form, for scripts."""
    return {
        "schema": 1,
        "date": run.date,
        "machine": dict(run.machine),
        "met": run.met,
        "benchmarks": {outcome.name: _outcome_json(outcome) for outcome in run.outcomes},
    }


def to_markdown(run: Run) -> str:
    """Return the text of docs/benchmarks.md."""
    return "\n".join(_markdown(run)) + "\n"


def _markdown(run: Run) -> Iterator[str]:
    yield from _head(run)
    for outcome in run.outcomes:
        yield from _markdown_of(run, outcome)


def _head(run: Run) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield "`sudo .venv/bin/python -m tests.bench --markdown [NAME…]` writes this page. Each section is from one run,"
    yield "which its last line describes. `make bench` runs the benchmarks on your machine, and"
    yield '`make bench NAMES="relay stream"` only these. A comparison alternates between its kinds within one run,'
    yield "so that other load on the machine affects both. The machine of the latest run:"
    yield ""
    yield from ("| | |", "| --- | --- |")
    yield from (f"| {what} | {value} |" for what, value in run.machine.items())


def updated(document: str, run: Run) -> str:
    """Return the document with this run's benchmarks replacing older sections; new ones come at the end."""
    _, *sections = document.rstrip("\n").split("\n## ")
    texts = {section.partition("\n")[0]: section for section in sections}
    for outcome in run.outcomes:
        texts[outcome.title] = "\n".join(_markdown_of(run, outcome)).removeprefix("\n## ")
    return "\n\n## ".join(["\n".join(_head(run)), *(text.rstrip("\n") for text in texts.values())]) + "\n"


def _markdown_of(run: Run, outcome: Outcome) -> Iterator[str]:
    yield ""
    yield f"## {outcome.title}"
    yield ""
    yield outcome.how.strip()
    yield ""
    if outcome.measured is None:
        yield f"**Not measured**: {outcome.failure}"
        return
    yield f"| | {' | '.join(_COLUMNS)} |"
    yield "| --- | ---: | ---: | ---: | ---: | --- | --- |"
    for figure in outcome.measured.figures:
        yield f"| {figure.what} | {' | '.join(_cells(figure))} |"
    yield ""
    for note in outcome.measured.notes:
        yield f"- {note}"
    versions = ", ".join(run.machine[what] for what in ("meshray", "kernel", "WireGuard engine") if what in run.machine)
    yield f"- Measured {run.date} UTC (meshray {versions}); load average before it: {outcome.load:.1f}."


def _cells(figure: Figure) -> tuple[str, ...]:
    unit = figure.unit
    numbers = (figure.median, figure.min, figure.max)
    target = figure.target.text(unit) if figure.target else ""
    met = {True: "yes", False: "NO", None: ""}[figure.met]
    return (*(f"{_number(value)} {unit}".rstrip() for value in numbers), str(len(figure.samples)), target, met)


def _number(value: float) -> str:
    """Return a number with three significant digits, without an exponent."""
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{decimals}f}" if value != int(value) else str(int(value))


def _outcome_json(outcome: Outcome) -> dict[str, object]:
    figures = outcome.measured.figures if outcome.measured else ()
    return {
        "title": outcome.title,
        "met": outcome.met,
        "failure": outcome.failure,
        "load": outcome.load,
        "seconds": round(outcome.seconds, 1),
        "notes": list(outcome.measured.notes) if outcome.measured else [],
        "figures": [
            {
                "what": figure.what,
                "unit": figure.unit,
                "median": figure.median,
                "min": figure.min,
                "max": figure.max,
                "samples": list(figure.samples),
                "target": figure.target.text(figure.unit) if figure.target else None,
                "met": figure.met,
            }
            for figure in figures
        ],
    }
