"""Sort tests into tiers (see `tests.tiers`), skip what this machine cannot run, and print a closing table.

The table includes how often the doctor was right, and the seed of the chaos.

A tier whose capability is missing is skipped; with CI=true or --require-all that makes the whole run fail.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections import Counter, defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field

import hypothesis
import pytest
from _pytest.terminal import TerminalReporter

from tests.chaos import plan as chaos
from tests.doctor_count import DoctorCount
from tests.lab.host import REPOSITORY
from tests.lab.world import World
from tests.scheduling import Cost, rank, record, scope_of
from tests.tiers import TIERS, Tier, tier_of


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-all", action="store_true", help="fail where a tier cannot run on this machine (also: CI=true)"
    )
    parser.addoption(
        "--record-costs",
        action="store_true",
        help="update tests/costs.json, by which the tests are sorted and distributed",
    )


#: The duration of an example depends on the machine, not on meshray.
hypothesis.settings.register_profile("untimed", deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("untimed")
    # A shell starts background processes with Ctrl-C ignored, and all tested processes would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # This precedes the processes of pytest-xdist, which all use the same seed.
    os.environ.setdefault(chaos.SEED, str(secrets.randbelow(100_000)))
    for tier in TIERS:
        config.addinivalue_line("markers", f"{tier.name}: a test of this tier, by its folder (see tests/tiers.py)")
    strict = config.getoption("--require-all") or os.environ.get("CI") == "true"
    config.pluginmanager.register(TierPlugin(strict=strict), "meshray-tiers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # Attributes of a report travel from the processes of pytest-xdist to the one that records them.
    report.__dict__["cpu_s"] = ProcessorTime.since_last()
    if report.failed:
        for world in World.standing:
            report.sections.append((f"hosts of {world.name}", world.logs()))
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from tests.scheduling import ByEnvironment

    return ByEnvironment(config, log)


class ProcessorTime:
    """The processor time of this process and of all its ended descendants, which includes the lab's hosts."""

    _last_s = 0.0

    @classmethod
    def since_last(cls) -> float:
        """Return the time since the last call, core-seconds."""
        now_s = sum(os.times()[:4])
        spent_s, cls._last_s = now_s - cls._last_s, now_s
        return spent_s


@dataclass
class TierResult:
    """The result of one tier. `missing` names the capability that the machine lacks for it."""

    missing: str
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"{self.seconds:6.1f} s  {counts}"


class TierPlugin:
    """Mark, order, skip and count the tests by tier."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._results: dict[str, TierResult] = {}
        self._doctor = DoctorCount()
        self._chaos: list[str] = []
        self._costs: defaultdict[str, Cost] = defaultdict(Cost)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: rank(item.nodeid))
        for item in items:
            tier = tier_of(item.path)
            if tier is None:
                continue
            item.add_marker(tier.name)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(tier.timeout_s))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        # Only tiers with tests left after -k, -m and the like are examined, which takes a moment.
        for item in session.items:
            tier = tier_of(item.path)
            if tier is not None and (missing := self._result(tier).missing):
                item.add_marker(pytest.mark.skip(reason=f"missing: {missing}"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # If several processes run the tests, this one only receives their results.
        tier = tier_of(REPOSITORY / report.nodeid.partition("::")[0])
        if tier is None:
            return
        result = self._result(tier)
        result.seconds += report.duration
        self._costs[scope_of(report.nodeid)] += Cost(report.duration, getattr(report, "cpu_s", 0.0))
        if report.when == "call":
            self._doctor.note(report.user_properties)
            self._chaos += [str(value) for name, value in report.user_properties if name == chaos.SUMMARY]
        if report.when == "call" or not report.passed:
            result.outcomes[report.outcome] += 1

    def _result(self, tier: Tier) -> TierResult:
        if tier.name not in self._results:
            self._results[tier.name] = TierResult(tier.missing())
        return self._results[tier.name]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.getoption("--record-costs") and not hasattr(session.config, "workerinput"):
            record(self._costs)
        if self._strict and any(result.missing for result in self._results.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        if not self._results:
            return
        terminalreporter.section("tiers")
        for name, result in sorted(
            self._results.items(), key=lambda entry: [tier.name for tier in TIERS].index(entry[0])
        ):
            if result.missing and self._strict:
                terminalreporter.line(f"{name:9} FAILED: this machine lacks {result.missing}", red=True)
            elif result.missing:
                terminalreporter.line(f"{name:9} skipped: this machine lacks {result.missing}", yellow=True)
            else:
                terminalreporter.line(f"{name:9} {result}", red=result.outcomes["failed"] > 0)
        if self._chaos:
            repeated = f"{chaos.SEED}={os.environ[chaos.SEED]} repeats it"
            terminalreporter.line(f"{'chaos':9} {'; '.join(self._chaos)}; {repeated}")
        if self._doctor:
            terminalreporter.line(f"{'doctor':9} {self._doctor}", red=bool(self._doctor.missed))
