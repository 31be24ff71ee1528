"""The engine of a node whose overlay is in its own network namespace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.wireguard import engines
from meshray.wireguard.engines import find_engine_of_namespace, udp_port_inside


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Both engines exist; ours is used unless the other is requested."""
    for name in ("meshray-engine", "wireguard-go"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(engines, "BUNDLED", tmp_path / "meshray-engine")
    yield {"PATH": str(tmp_path)}
    overlay_netns.enter(None)


def test_only_the_stock_engine_must_be_inside(environ: dict[str, str]) -> None:
    assert udp_port_inside(51888, environ) is None
    assert udp_port_inside(51888, {**environ, "MESHRAY_ENGINE": "wireguard-go"}) == 51888
    assert udp_port_inside(0, {**environ, "MESHRAY_ENGINE": "wireguard-go"}) == 0


@pytest.mark.parametrize("engine_inside", [False, True])
def test_namespaces_of_another_engine_are_reported(
    tmp_path: Path, environ: dict[str, str], engine_inside: bool
) -> None:
    home = Home.from_environment({"MESHRAY_HOME": str(tmp_path)})
    overlay_netns.enter(SimpleNamespace(engine_inside=engine_inside))
    fitting, other = ("wireguard-go", "meshray-engine") if engine_inside else ("meshray-engine", "wireguard-go")
    find_engine_of_namespace(home, {**environ, "MESHRAY_ENGINE": fitting})
    with pytest.raises(MeshrayError) as raised:
        find_engine_of_namespace(home, {**environ, "MESHRAY_ENGINE": other})
    assert (raised.value.code, raised.value.hint) == ("engine_changed", "meshray down, then meshray up")
