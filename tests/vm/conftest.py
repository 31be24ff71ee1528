"""Every test in this folder runs under a kernel that has WireGuard, as root, and is written like any other test.

If the running kernel has it, pytest simply continues. Otherwise the first test boots a guest (see machine.py) in which
a second pytest runs the same tests; it sends its reports line by line, and they are reported as if the test had run
here. One boot serves all tests.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from . import machine

#: The file descriptor in the guest on which reports are written.
REPORTS_FD = "MESHRAY_VM_REPORTS_FD"
#: The guest's folder of temporary files.
TEMPORARY = "/tmp/meshray-guest"
#: The time from the start of QEMU to the last report, without KVM and beside other tests.
DEADLINE_S = 1500.0
HERE = Path(__file__).parent
_GUEST = pytest.StashKey["Guest | None"]()


class GuestLostError(Exception):
    """The guest ended or stopped responding before it reported all tests."""


class Guest:
    """One boot: a pytest inside that runs the given tests, whose reports are read here one by one."""

    def __init__(self, kernel: machine.Kernel, node_ids: list[str]) -> None:
        self._deadline = time.monotonic() + DEADLINE_S
        self._console = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._buffer = b""
        self._last = node_ids[-1]
        self._finished = False
        # The command is part of the kernel's command line, of which Linux reads 2,047 characters.
        self._ids = tempfile.NamedTemporaryFile("w", prefix="meshray-vm-")  # noqa: SIM115 - closed by close()
        self._ids.write("\n".join(node_ids))
        self._ids.flush()
        pytest_line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"@{self._ids.name}"]
        # Reports have their own descriptor; pytest's output goes to the console.
        # The guest sees the folders in /tmp of runs of this machine, whose processes it does not see: it would take
        # the runs for dead and remove their folders, file by file through QEMU.
        script = f'export TMPDIR={TEMPORARY} && mkdir $TMPDIR && exec env {REPORTS_FD}=3 "$@" 3>&1 1>&2'
        self._process = kernel.start(["sh", "-c", script, "pytest", *pytest_line], stderr=self._console)
        self._lines = self._read_lines()

    def reports(self, node_id: str) -> Iterator[dict[str, object]]:
        """Yield the reports of one test; the last one is of its teardown.

        Raises:
            GuestLostError: with the end of the guest's console output.
        """
        for line in self._lines:
            data = json.loads(line)
            if data["nodeid"] == node_id:
                yield data
                if data["when"] == "teardown":
                    self._finished = node_id == self._last
                    return
        raise GuestLostError(f"the guest ended without a report of {node_id}:\n{self._console_end()}")

    def close(self) -> None:
        """Let a guest that has reported all tests power down; end any other at once: it has no state to lose."""
        try:
            self._process.wait(60 if self._finished else 0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._console.close()
        self._ids.close()

    def _read_lines(self) -> Iterator[bytes]:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise GuestLostError(f"the guest did not finish within {DEADLINE_S:.0f} s:\n{self._console_end()}")
            chunk = os.read(pipe, 65536)
            if not chunk:
                return
            *lines, self._buffer = (self._buffer + chunk).split(b"\n")
            yield from (line for line in lines if line.startswith(b"{"))

    def _console_end(self) -> str:
        self._console.seek(0)
        return self._console.read()[-4000:].decode(errors="replace")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Let the guest run this test, unless this machine can, or is the guest."""
    if HERE not in item.path.parents or REPORTS_FD in os.environ or item.get_closest_marker("skip"):
        return None
    guest = _guest(item.session)
    if guest is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _outcomes(guest, item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _outcomes(guest: Guest, item: pytest.Item) -> Iterator[pytest.TestReport]:
    try:
        for data in guest.reports(item.nodeid):
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            assert isinstance(report, pytest.TestReport)
            yield report
    except GuestLostError as lost:
        yield pytest.TestReport(item.nodeid, item.location, {}, "failed", str(lost), "setup")


def _guest(session: pytest.Session) -> Guest | None:
    """Return the guest of this session, booted for its first test; None: run here."""
    if _GUEST not in session.stash:
        kernel = machine.find()
        ours = [item.nodeid for item in session.items if HERE in item.path.parents]
        session.stash[_GUEST] = None if kernel.image is None else Guest(kernel, ours)
    return session.stash[_GUEST]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In the guest, send the report to the machine outside."""
    report = yield
    if REPORTS_FD in os.environ:
        data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
        os.write(int(os.environ[REPORTS_FD]), json.dumps(data).encode() + b"\n")
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the guest that this session booted."""
    guest = session.stash.get(_GUEST, None)
    if guest:
        guest.close()
