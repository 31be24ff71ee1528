"""Ray gives up its own start after half a minute; `join` must not fail because of a cold disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from meshray.agent.startup import SLOW_START_S, _may_retry
from meshray.model.node import Versions
from meshray.raynode.supervisor import RayNow
from meshray.raynode.versions import RayInstallation
from tests.unit.raynode.test_command import ADA, WORKER

RAY = RayInstallation(Path("/x/ray"), Path("/x/python"), Versions("", "2.60.0", "3.11.7"))
FELL = RayNow(RAY, WORKER, ADA, "backoff", "it ended", deaths=1, pid=None, token=None, lived_s=SLOW_START_S + 12)


@pytest.mark.parametrize(
    ("now", "again"),
    [
        (FELL, True),
        (replace(FELL, lived_s=3.0), False),  # A wrong option, a port in use.
        (replace(FELL, deaths=2), False),
        (replace(FELL, deaths=0, lived_s=0.0), False),
    ],
)
def test_only_a_first_start_that_took_long_is_tried_once_more(now: RayNow, again: bool) -> None:
    assert _may_retry(now) is again
