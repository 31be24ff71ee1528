"""Leftovers are removed if nothing of a node is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshray.home import Home
from meshray.node import cleanup


def test_an_ephemeral_node_that_has_left_needs_no_right_to_be_cleared(tmp_path: Path) -> None:
    """Without root a look at devices and firewall would be refused."""
    assert cleanup.clear(Home(tmp_path / "state", tmp_path / "state/run")) == []
    assert list(tmp_path.iterdir()) == []


def test_after_a_killed_agent_no_other_program_may_start_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of --ray external exists while Ray may be started; a killed agent leaves it behind."""
    home = Home(tmp_path / "state", tmp_path / "run")
    home.run.mkdir()
    home.ray_environment.write_text("export MESHRAY_RAY_START=--head\n")
    found_at_the_rules: list[bool] = []

    def firewall(of: Home) -> bool:
        found_at_the_rules.append(of.ray_environment.exists())
        return True

    monkeypatch.setattr(cleanup, "_firewall", firewall)
    monkeypatch.setattr(cleanup, "_tunnel", lambda of: False)
    assert cleanup.clear(home) == ["firewall rules"]
    assert found_at_the_rules == [False]
