"""The choice of the device, as far as it is decided without a test run."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshray.errors import MeshrayError, UsageError
from meshray.wireguard import engines
from meshray.wireguard.open import check_available


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(UsageError, match="MESHRAY_WIREGUARD is 'boringtun'"):
        check_available({"MESHRAY_WIREGUARD": "boringtun"})


def test_a_missing_engine_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engines, "BUNDLED", tmp_path / "not-built")
    with pytest.raises(MeshrayError) as raised:
        check_available({"MESHRAY_WIREGUARD": "userspace", "PATH": "/nowhere"})
    assert raised.value.code == "no_wireguard"
    assert "installed without meshray-engine" in raised.value.message
    command = engines.install_command()
    assert raised.value.hint == f"modprobe wireguard, or: {command}, or: apt-get install wireguard-go"


def test_the_engine_that_came_with_meshray_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("meshray-engine", "wireguard-go"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(engines, "BUNDLED", tmp_path / "meshray-engine")
    environ = {"PATH": str(tmp_path)}
    assert engines.find_engine(environ).is_own
    assert not engines.find_engine({**environ, "MESHRAY_ENGINE": "wireguard-go"}).is_own
    engines.BUNDLED.unlink()
    assert engines.find_engine(environ) == engines.Engine(tmp_path / "wireguard-go")


def test_a_chosen_engine_that_is_not_a_program_is_an_error() -> None:
    with pytest.raises(MeshrayError, match="MESHRAY_ENGINE=nothing is not a program"):
        engines.find_engine({"MESHRAY_ENGINE": "nothing", "PATH": "/nowhere"})


@pytest.mark.parametrize(
    ("euid", "fault", "code", "said", "hint"),
    [
        (0, "", "not_root", "root lacks the capability NET_ADMIN", "capabilities.add: [NET_ADMIN]"),
        (1000, "", "not_root", "only root may", "run meshray with sudo"),
        (
            0,
            "cannot be opened: Operation not permitted",
            "no_tun",
            "Operation not permitted",
            "in a pod: render it with",
        ),
    ],
)
def test_a_refusal_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, euid: int, fault: str, code: str, said: str, hint: str
) -> None:
    def refuse(name: str, *, offload: bool) -> int:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "meshray-engine").touch(mode=0o755)
    monkeypatch.setattr(engines, "BUNDLED", tmp_path / "meshray-engine")
    monkeypatch.setattr("meshray.wireguard.open.open_tun", refuse)
    monkeypatch.setattr("meshray.wireguard.open.tun_fault", lambda: fault)
    monkeypatch.setattr("os.geteuid", lambda: euid)
    with pytest.raises(MeshrayError) as raised:
        check_available({"MESHRAY_WIREGUARD": "userspace"})
    assert raised.value.code == code
    assert said in raised.value.message
    assert hint in raised.value.hint
