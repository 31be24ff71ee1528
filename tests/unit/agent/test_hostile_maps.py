"""Whatever one node reports about itself, other nodes' devices differ only in that node's peer.

What is written for WireGuard contains nothing but that peer's settings.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshray.agent.device.desired_device import PairKeys, desired_device
from meshray.agent.paths.decision import TRIAL_S, PairPath, candidates
from meshray.agent.paths.hub_dialback import DIAL_AFTER_S, HubDialback
from meshray.agent.paths.name_resolution import Names
from meshray.linux.clock import BootSeconds
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from meshray.model.endpoints import reachable_ip
from meshray.model.keys import PublicKey
from meshray.model.node import Node
from meshray.protocol.codec import to_json
from meshray.wireguard import uapi
from meshray.wireguard.conf import render
from meshray.wireguard.config import DeviceConfig, DeviceState, PeerConfig
from meshray.wireguard.kernel import set_arguments
from meshray.wireguard.plan import AddPeer, RemovePeer, SetPrivateKey, UpdatePeer, plan
from tests.unit.agent.sample import HEAD_NODE, HUB_ENDPOINT, KEYS, MAP, SECRET, WORKER_A, WORKER_B

Address = IPv4Address | IPv6Address

HOSTS = [
    "vm.example.org",
    "VM.example.org.",
    "a" * 63 + ".example",
    "K.example",  # The Kelvin sign, which becomes a k in lower case.
    "192.0.2.7",
    "10.0.0.7",
    "127.0.0.1",
    "0.0.0.0",
    "169.254.169.254",
    "224.0.0.1",
    "255.255.255.255",
    str(HEAD_NODE.ip),
    "[2001:DB8::7]",
    "[::ffff:192.0.2.7]",
    "[::ffff:127.0.0.1]",
    "[64:ff9b::169.254.169.254]",
    "[ff02::1]",
    "[fe80::1]",
    "[fe80::1%eth0]",
    "[fe80::1%eth0\nprivate_key=00]",
    "[2001:db8::7%\n\npublic_key=00\nremove=true]",
    "[2001:db8::7%x\nAllowedIPs = 0.0.0.0/0\nPostUp = id]",
    "[2001:db8::7%\r\u2028\x85]",
]
ENDPOINTS = st.lists(
    st.builds(
        lambda host, port: f"{host}:{port}", st.sampled_from(HOSTS), st.sampled_from(["1", "51888", "0", "65536"])
    )
    | st.text(max_size=30),
    max_size=20,
)
RESOLVED = st.lists(
    st.sampled_from([ip_address(h.strip("[]")) for h in HOSTS if re.fullmatch(r"[\[\]0-9a-fA-F:.]+", h)])
)
#: The allowed uapi lines and wg-quick lines of a peer.
UAPI_LINE = re.compile(
    r"set=1|remove=true|update_only=true|replace_allowed_ips=true|(private|public|preshared)_key=[0-9a-f]{64}"
    r"|listen_port=\d+|persistent_keepalive_interval=\d+|allowed_ip=[0-9./]+"
    r"|endpoint=([0-9.]+|\[[0-9a-f:]+\]):\d+|",
    re.ASCII,
)
CONF_LINE = re.compile(
    r"# [a-zA-Z0-9. -]+|\[Interface\]|\[Peer\]|(PrivateKey|PublicKey|PresharedKey) = [A-Za-z0-9+/=]{44}"
    r"|(Address|AllowedIPs) = [0-9./, ]+|(ListenPort|MTU|PersistentKeepalive) = \d+"
    r"|Endpoint = ([0-9.]+|\[[0-9a-f:]+\]):\d+|",
    re.ASCII,
)


@st.composite
def liars(draw: st.DrawFn) -> Node:
    """Worker b, with false reports about itself."""
    output = {
        **to_json(WORKER_B.form()),
        "endpoints": draw(ENDPOINTS),
        "seen": draw(st.sampled_from(["", "192.0.2.7:4711", "[fe80::1%x\ny]:1", "vm.example.org:1"])),
        "hubs": draw(st.lists(st.sampled_from([HEAD_NODE.id, WORKER_A.id, WORKER_B.id, "x"]))),
        "labels": draw(st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3)),
        "ray_instance": draw(st.text(max_size=9)),
        "online": draw(st.booleans()),
    }
    return Node.from_json(output)


def names_that_resolve_to(addresses: Sequence[Address], tasks: Tasks) -> Names:
    async def look_up(host: str) -> Sequence[Address]:
        if not addresses:
            raise OSError("no such name")
        return addresses

    return Names(tasks, lambda ip: reachable_ip(ip, MAP.mesh.network), lambda node_id: None, at_once=4, look_up=look_up)


def device_of(me: Node, liar: Node, path: PairPath, dial: dict[str, Endpoint], names: Names) -> DeviceConfig:
    mesh_map = replace(MAP, nodes={**MAP.nodes, liar.id: liar})
    return desired_device(
        me,
        mesh_map,
        PairKeys({1: SECRET}, me.public_key),
        private_key=KEYS[int(me.id[1:])],
        listen_port=51888,
        dial=dial,
        path=lambda node: path if node.id == liar.id else PairPath(),
        address=names.address,
    )


async def devices_over_time(me: Node, liar: Node, names: Names) -> list[DeviceConfig]:
    """Yield this node's device in every round of an attempt at the liar."""
    if me == HEAD_NODE:
        return [await dialled(me, liar, names, round_) for round_ in range(0, 20)]
    devices, path = [], PairPath().punch(candidates(me, liar), 0.0)
    for round_ in range(1, 24):
        device_of(me, liar, path, {HEAD_NODE.id: HUB_ENDPOINT}, names)  # A name is looked up; the next look knows it.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        devices.append(device_of(me, liar, path, {HEAD_NODE.id: HUB_ENDPOINT}, names))
        path = path.tick(round_ * (TRIAL_S + 0.01))
    return devices


async def dialled(me: Node, liar: Node, names: Names, round_: int) -> DeviceConfig:
    mesh_map, dialback = replace(MAP, nodes={**MAP.nodes, liar.id: liar}), HubDialback()
    dialback.step(mesh_map, me.id, {}, BootSeconds(0.0))
    where = dialback.step(mesh_map, me.id, {}, BootSeconds(DIAL_AFTER_S + 4.0 * round_))
    found = {node_id: names.address(node_id, endpoint) for node_id, endpoint in where.items()}
    await asyncio.sleep(0)
    found = {node_id: names.address(node_id, endpoint) for node_id, endpoint in where.items()}
    dial = {node_id: endpoint for node_id, endpoint in found.items() if endpoint is not None}
    return device_of(me, liar, PairPath(), dial, names)


def others(device: DeviceConfig) -> tuple[object, ...]:
    """Return all of a device but the liar's peer."""
    peers = {key: peer for key, peer in device.peers.items() if key != WORKER_B.public_key}
    return device.private_key, device.listen_port, device.addresses, device.mtu, device.routes, peers


def assert_encoded(device: DeviceConfig) -> None:
    for step in plan(None, device):
        if isinstance(step, (SetPrivateKey, AddPeer, UpdatePeer, RemovePeer)):
            text = uapi.request(step)
            text.encode("ascii")
            # All characters that a reader may treat as the end of a line.
            for line in text.splitlines():
                assert UAPI_LINE.fullmatch(line), line
            assert set_arguments(step)
    names = {key: "gpu" for key in device.peers}
    for line in render(device, names, secrets=True).splitlines():
        assert CONF_LINE.fullmatch(line), line


@pytest.mark.parametrize("me", [HEAD_NODE, WORKER_A], ids=["hub", "worker"])
@settings(deadline=None, max_examples=50)
@given(liars(), RESOLVED)
def test_a_nodes_report_changes_only_its_own_peer(me: Node, liar: Node, resolved: list[Address]) -> None:
    async def check() -> None:
        tasks = Tasks()
        names = names_that_resolve_to(resolved, tasks)
        dial = {HEAD_NODE.id: HUB_ENDPOINT} if me != HEAD_NODE else {}
        silent = device_of(me, WORKER_B, PairPath(), dial, names)
        devices = await devices_over_time(me, liar, names)
        for device in {str(device.peers): device for device in devices}.values():
            assert others(device) == others(silent)
            own = device.peers.get(WORKER_B.public_key)
            if own is not None:
                network = MAP.mesh.network
                assert own.allowed_ips <= {IPv4Network(f"{ip}/32") for ip in (liar.ip, network.probe_address(liar.ip))}
                assert own.endpoint is None or own.endpoint.ip == reachable_ip(own.endpoint.ip, network)  # type: ignore[arg-type]
            assert_encoded(device)
        await tasks.close()

    asyncio.run(check())


def test_a_removed_peer_goes_before_anything_that_may_fail() -> None:
    gone, new, kept = (PublicKey(bytes([number]) * 32) for number in (1, 2, 3))
    device = desired_device(
        WORKER_A, MAP, PairKeys({1: SECRET}, WORKER_A.public_key), private_key=KEYS[1], listen_port=1, dial={}
    )
    peers = {key: PeerConfig(key, frozenset(), endpoint=Endpoint("192.0.2.1", 1)) for key in (new, kept)}
    old = {key: PeerConfig(key, frozenset({IPv4Network(f"10.99.0.{n}/32")})) for n, key in enumerate((gone, kept), 7)}
    seen = desired_state(replace(device, peers=old))
    steps = plan(seen, replace(device, listen_port=2, mtu=1300, peers=peers))
    assert steps[0] == RemovePeer(gone)


def desired_state(device: DeviceConfig) -> DeviceState:
    from tests.fake_device import FakeDevice

    fake = FakeDevice()
    fake.apply(plan(None, device))
    assert fake.state is not None
    return fake.state
