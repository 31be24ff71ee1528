from __future__ import annotations

import pytest

from meshray.raynode.failure_cause import cause

TRACEBACK = """\x1b[37mLocal node IP\x1b[39m: \x1b[1m10.99.0.2\x1b[22m
Traceback (most recent call last):
  File "/opt/venv/bin/ray", line 8, in <module>
    sys.exit(main())
RuntimeError: Version mismatch: The cluster was started with:
    Ray: 2.60.0
"""
ENDED = """
Some Ray subprocesses exited unexpectedly:
  raylet [exit code=1]

Remaining processes will be killed.
"""


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (TRACEBACK, "RuntimeError: Version mismatch: The cluster was started with:"),
        (ENDED, "Ray's raylet ended with exit code 1; see ray.log and Ray's own session logs"),
        ("Usage: ray start [OPTIONS]\n\nError: No such option: --num-cpu\n", "No such option: --num-cpu"),
        ("ray._private.foo.AuthenticationError: no token\n", "ray._private.foo.AuthenticationError: no token"),
        ("starting\nhalf a line", "half a line"),
        ("", "`ray start` ended without a message"),
        ("2026-11-21 03:04:36,498\tINFO scripts.py:1274 -- all is well\n", "`ray start` ended without a message"),
    ],
)
def test_the_most_informative_line_is_chosen(log: str, told: str) -> None:
    assert cause(log) == told


def test_a_long_cause_is_cut() -> None:
    assert len(cause("ValueError: " + "x" * 10_000)) == 300


def test_a_killed_ray_is_reported_with_its_signal() -> None:
    assert cause(TRACEBACK, exit_code=-9) == "`ray start` was ended by signal 9 (Killed)"
    assert cause(ENDED, exit_code=1).startswith("Ray's raylet ended")
