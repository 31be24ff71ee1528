"""Leftovers are removed if nothing of a node is left."""

from __future__ import annotations

from pathlib import Path

from meshray.home import Home
from meshray.node import cleanup


def test_an_ephemeral_node_that_has_left_needs_no_right_to_be_cleared(tmp_path: Path) -> None:
    """Without root a look at devices and firewall would be refused."""
    assert cleanup.clear(Home(tmp_path / "state", tmp_path / "state/run")) == []
    assert list(tmp_path.iterdir()) == []
