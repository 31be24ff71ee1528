"""The results of the doctor's path probe for answers that arrive, are lost, or are too large."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

import pytest

from meshray.doctor.context import Context, Counters
from meshray.doctor.path.facts import PeerFacts
from meshray.doctor.path.probe import measure
from meshray.home import Home
from meshray.model.path import PathKind, Transport
from meshray.protocol.status import CoordinatorStatus, NodeStatus, PathStatus, RayStatus, Status
from tests.unit.agent.sample import HUB_ENDPOINT, MAP

UP = PathStatus(PathKind.DIRECT, Transport.UDP, str(HUB_ENDPOINT), rtt_ms=1.0, loss=0.0, mtu=1420, handshake_age_s=5.0)


async def seen(tmp_path: Path, way: PathStatus, answers: list[float | None], *, largest: int = 1420) -> PeerFacts:
    """Return gpu-a's facts about the hub if probes are answered in this rhythm."""
    turns, sent = count(), 0

    async def echo(ip: IPv4Address, timeout_s: float, size: int) -> float | None:
        nonlocal sent
        sent += 80
        return answers[next(turns) % len(answers)] if size <= largest else None

    async def counters() -> Mapping[str, Counters]:
        return {"head": Counters(0, sent)}

    nodes = [
        NodeStatus("head", "127.0.0.1", "head", True, way, RayStatus()),
        NodeStatus("gpu-a", "10.99.0.2", "worker", True, PathStatus(PathKind.SELF), RayStatus()),
    ]
    facts = await measure(
        Context(
            Home(tmp_path / "state", tmp_path / "run"),
            name="gpu-a",
            mesh_map=MAP,
            status=Status("lab", 5, "gpu-a", CoordinatorStatus(True), tuple(nodes)),
            echo=echo,
            counters=counters,
            mtu_measured=lambda ip: True,
        )
    )
    assert list(facts.peers) == ["head"]
    assert facts.peers["head"].is_hub
    return facts.peers["head"]


async def test_a_good_path_is_probed_ten_times_and_at_full_size(tmp_path: Path) -> None:
    hub = await seen(tmp_path, UP, [2.0, 4.0])
    assert (hub.sent, hub.received, hub.rtt_ms) == (10, 10, 3.0)
    assert (hub.full_passes, hub.small_passes, hub.machine_answers) == (True, True, None)


async def test_one_lost_probe_is_looked_at_again(tmp_path: Path) -> None:
    hub = await seen(tmp_path, UP, [2.0, 2.0, None, 2.0, 2.0])
    assert (hub.sent, hub.received) == (30, 24)
    assert hub.full_passes is None


@pytest.mark.parametrize(("largest", "small"), [(1300, True), (1100, False)])
async def test_full_packets_that_do_not_pass(tmp_path: Path, largest: int, small: bool) -> None:
    hub = await seen(tmp_path, UP, [2.0], largest=largest)
    assert (hub.full_passes, hub.small_passes, hub.mtu_measured) == (False, small, True)


async def test_silence_is_distinguished_from_a_machine_without_an_agent(tmp_path: Path) -> None:
    # Loopback refuses the connection at once, as the machine of a frozen agent does.
    hub = await seen(tmp_path, UP, [None])
    assert (hub.sent, hub.received, hub.machine_answers, hub.sent_on) == (10, 0, True, True)
    # Bytes from a hub may have been sent by others.
    assert hub.came_in is None


async def test_without_a_path_nothing_is_sent(tmp_path: Path) -> None:
    assert (await seen(tmp_path, PathStatus(PathKind.NONE), [2.0])).sent == 0
