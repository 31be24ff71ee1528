"""The configuration of NetworkManager and systemd-networkd, in a test folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshray.wireguard import unmanaged
from meshray.wireguard.unmanaged import keep_unmanaged, release


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    commands: list[str] = []
    monkeypatch.setattr(unmanaged, "_reload", lambda manager: commands.append(" ".join(manager.reload)))
    return commands


def test_nothing_is_written_where_neither_runs(tmp_path: Path, reloads: list[str]) -> None:
    keep_unmanaged("meshray0", tmp_path)
    release("meshray0", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert reloads == []


def test_both_are_reported_once_and_everything_is_reverted(tmp_path: Path, reloads: list[str]) -> None:
    for folder in ("run/NetworkManager", "run/systemd/netif/state"):
        (tmp_path / folder).mkdir(parents=True)
    keep_unmanaged("meshray0", tmp_path)
    keep_unmanaged("meshray0", tmp_path)
    manager = tmp_path / "run/NetworkManager/conf.d/90-meshray0.conf"
    networkd = tmp_path / "run/systemd/network/00-meshray0.network"
    assert "match-device=interface-name:meshray0\nmanaged=0\n" in manager.read_text()
    assert "[Match]\nName=meshray0\n\n[Link]\nUnmanaged=yes\n" in networkd.read_text()
    assert reloads == ["nmcli general reload conf", "networkctl reload"]
    release("meshray0", tmp_path)
    assert not manager.exists()
    assert not networkd.exists()
    assert reloads == ["nmcli general reload conf", "networkctl reload"] * 2
