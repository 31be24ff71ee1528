from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from meshray.agent.ray import renewal
from meshray.agent.ray.renewal import Renewal, needs_another
from meshray.environment import matched
from meshray.environment.matched import Matched
from meshray.errors import MeshrayError
from meshray.model.environment import Environment
from meshray.model.keys import PrivateKey
from meshray.model.node import HEAD, Node, Versions
from meshray.raynode.versions import RayInstallation
from tests.unit.agent.sample import WORKER_A, enrolment


@pytest.fixture
def installed(tmp_path: Path) -> RayInstallation:
    (tmp_path / "ray").touch()
    return RayInstallation(tmp_path / "ray", tmp_path / "python", Versions("0.1", "2.59.0", "3.11.7"))


def head(ray: str, python: str = "3.11.7") -> Node:
    key = PrivateKey.generate().public()
    versions = Versions("0.1", ray, python)
    return Node("h", WORKER_A.name, IPv4Address("10.99.0.1"), key, frozenset({HEAD}), versions=versions)


class Place:
    """The agent's surroundings: its requests, and what it stored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: RayInstallation) -> None:
        self.built: list[Environment] = []
        self.kept: list[RayInstallation] = []
        self.after = after
        monkeypatch.setattr(renewal, "inspect", lambda program, user: self.after)
        monkeypatch.setattr(matched.Build, "__init__", lambda build, environment, *_: self.built.append(environment))
        monkeypatch.setattr(matched.Build, "run", lambda build, send: Matched(self.after.ray.parent.parent, True))

    async def ask(self) -> Environment:
        return Environment("old", "old", "numpy==2.1.0\n")

    def renewal(self, node: Node | None, env: str) -> Renewal:
        mine: Any = replace(enrolment(WORKER_A), env=env)
        return Renewal(lambda: node, lambda: mine, self.ask, {}, self.kept.append)


async def test_nothing_happens_while_the_head_is_the_same(
    monkeypatch: pytest.MonkeyPatch, installed: RayInstallation
) -> None:
    place = Place(monkeypatch, installed)
    for node in (None, head("2.59.0"), head("2.59.0", "3.11.9")):
        assert await place.renewal(node, "match")(installed) is installed
    assert (place.built, place.kept) == ([], [])


async def test_a_matching_node_builds_what_the_head_has_now(
    monkeypatch: pytest.MonkeyPatch, installed: RayInstallation
) -> None:
    after = replace(installed, versions=Versions("0.1", "2.60.0", "3.12.1"))
    place = Place(monkeypatch, after)
    assert await place.renewal(head("2.60.0", "3.12.1"), "match")(installed) == after
    assert place.built == [Environment("2.60.0", "3.12.1", "numpy==2.1.0\n")]
    assert place.kept == [after]


async def test_any_other_node_reports_the_fix(monkeypatch: pytest.MonkeyPatch, installed: RayInstallation) -> None:
    place = Place(monkeypatch, installed)
    with pytest.raises(MeshrayError) as caught:
        await place.renewal(head("2.60.0"), "")(installed)
    assert caught.value.code == "version_mismatch"
    assert "meshray join --env match" in caught.value.hint
    assert place.built == []


async def test_an_upgraded_installation_is_detected(
    monkeypatch: pytest.MonkeyPatch, installed: RayInstallation
) -> None:
    after = replace(installed, versions=Versions("0.1", "2.60.0", "3.11.7"))
    place = Place(monkeypatch, after)
    assert await place.renewal(head("2.60.0"), "")(installed) == after
    assert place.kept == [after]


def test_an_environment_that_was_removed_is_needed_again(installed: RayInstallation) -> None:
    assert not needs_another(installed, Versions(ray="2.59.0", python="3.11.7"))
    installed.ray.unlink()
    assert needs_another(installed, Versions(ray="2.59.0", python="3.11.7"))
