"""The plan, proved with the fake: for any state and any desired configuration, one plan, and then nothing to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.errors import MeshrayError
from meshray.linux.clock import UnixSeconds
from meshray.model.address import Endpoint
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey
from meshray.wireguard.config import (
    KERNEL_PROTOCOL,
    MESHRAY_PROTOCOL,
    DeviceConfig,
    DeviceState,
    PeerConfig,
    Route,
    RouteState,
)
from meshray.wireguard.plan import AddPeer, RemovePeer, RemoveRoute, SetMtu, SetRoute, UpdatePeer, plan
from tests.fake_device import FakeDevice

KEYS = [PublicKey(bytes([number]) * 32) for number in range(0x11, 0x16)]
NETWORKS = [
    IPv4Network(text) for text in ("10.99.0.0/16", *(f"10.99.{half}.{n}/32" for half in (0, 128) for n in (2, 3)))
]
ENDPOINTS = [Endpoint("203.0.113.7", 51888), Endpoint("2001:db8::7", 51888)]
ADDRESSES = [IPv4Interface(text) for text in ("10.99.0.1/16", "10.99.0.9/16", "10.99.128.1/32", "10.98.0.1/24")]
#: The first is an address's own network.
ROUTED = [IPv4Network("10.99.0.0/16"), IPv4Network("10.99.0.2/32"), IPv4Network("10.99.0.3/32")]
OWN = IPv4Address("10.99.0.1")
ONE, TWO, THREE = KEYS[:3]
HUB, DIRECT, PROBE = NETWORKS[0], NETWORKS[1], NETWORKS[3]


@st.composite
def configs(draw: st.DrawFn) -> DeviceConfig:
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True))
    owners = draw(st.lists(st.sampled_from([*KEYS, None]), min_size=len(NETWORKS), max_size=len(NETWORKS)))
    peers = {
        key: PeerConfig(
            key,
            frozenset(network for network, owner in zip(NETWORKS, owners, strict=True) if owner == key),
            preshared_key=draw(st.sampled_from([None, PresharedKey(b"\1" * 32), PresharedKey(b"\2" * 32)])),
            endpoint=draw(st.sampled_from([None, *ENDPOINTS])),
            keepalive_s=draw(st.sampled_from([0, 20])),
        )
        for key in keys
    }
    return DeviceConfig(
        draw(st.sampled_from([PrivateKey(b"\1" * 32), PrivateKey(b"\2" * 32)])),
        draw(st.sampled_from([0, 51888, 51999])),
        tuple(draw(st.lists(st.sampled_from(ADDRESSES), unique=True))),
        draw(st.sampled_from([1280, 1420])),
        peers,
        draw(routes_wanted()),
    )


@st.composite
def routes_wanted(draw: st.DrawFn) -> tuple[Route, ...]:
    overlay = draw(st.sampled_from([(), (Route(ROUTED[0], OWN),)]))
    narrow = draw(st.dictionaries(st.sampled_from(ROUTED[1:]), st.sampled_from([1200, 1280])))
    return (*overlay, *(Route(network, OWN, mtu, MESHRAY_PROTOCOL) for network, mtu in sorted(narrow.items())))


#: Any state of a route that others may have created.
FOUND = st.builds(
    RouteState,
    st.builds(
        Route,
        st.sampled_from([*ROUTED, IPv4Network("10.99.7.7/32")]),
        st.sampled_from([None, OWN, IPv4Address("203.0.113.7")]),
        st.sampled_from([0, 600, 1200, 1280]),
        st.sampled_from([KERNEL_PROTOCOL, 3, 4, 16, MESHRAY_PROTOCOL]),
    ),
    st.sampled_from(["", "dev eth0", "via 203.0.113.1 dev eth0", "blackhole"]),
)


def config(**peers: PeerConfig) -> DeviceConfig:
    by_key = {peer.public_key: peer for peer in peers.values()}
    return DeviceConfig(PrivateKey(b"\1" * 32), 51888, (ADDRESSES[0],), 1420, by_key)


def made(desired: DeviceConfig) -> FakeDevice:
    device = FakeDevice()
    device.apply(plan(None, desired))
    device.applied.clear()
    return device


def state(device: FakeDevice) -> DeviceState:
    found = device.read()
    assert found is not None
    return found


@given(st.lists(configs(), min_size=1, max_size=4))
def test_one_plan_reaches_any_config_and_the_second_is_empty(wanted: list[DeviceConfig]) -> None:
    device = FakeDevice()
    for desired in wanted:
        before = device.read()
        device.apply(plan(before, desired))
        after = state(device)
        assert plan(after, desired) == ()
        assert (after.private_key, after.mtu, after.up) == (desired.private_key, desired.mtu, True)
        assert set(after.addresses) == set(desired.addresses)
        assert desired.listen_port in (0, after.listen_port)
        assert after.peers.keys() == desired.peers.keys()
        for route in desired.routes:
            assert after.routes[route.destination] == RouteState(route)
        for key, peer in desired.peers.items():
            learnt = before.peers[key].config.endpoint if before and key in before.peers else None
            assert after.peers[key].config == replace(peer, endpoint=peer.endpoint or learnt)


@given(configs(), st.lists(FOUND))
def test_our_routes_are_restored_and_foreign_ones_not_touched(desired: DeviceConfig, found: list[RouteState]) -> None:
    device = made(desired)
    changed = {state.route.destination: state for state in found}
    device.state = replace(state(device), routes=changed)
    steps = plan(device.read(), desired)
    device.apply(steps)
    assert plan(device.read(), desired) == ()
    wanted = {route.destination: route for route in desired.routes}
    for step in steps:
        if isinstance(step, SetRoute):
            assert step.route == wanted[step.route.destination]
        else:
            assert isinstance(step, RemoveRoute)
            removed = changed[step.destination]
            assert (removed.route.protocol, removed.elsewhere) == (MESHRAY_PROTOCOL, "")
            assert step.destination not in wanted
    for route in desired.routes:
        kept = state(device).routes[route.destination]
        assert (kept.elsewhere, kept.route.source, kept.route.mtu) == ("", route.source, route.mtu)
        assert route.protocol in (kept.route.protocol, KERNEL_PROTOCOL)


def test_a_route_in_words() -> None:
    desired = replace(config(), routes=(Route(ROUTED[0], OWN), Route(ROUTED[1], OWN, 1200, MESHRAY_PROTOCOL)))
    device = made(desired)
    device.state = replace(state(device), routes={ROUTED[0]: RouteState(Route(ROUTED[0]), "dev eth0")})
    assert [str(step) for step in plan(device.read(), desired)] == [
        "route 10.99.0.0/16 to the device, in place of dev eth0",
        "route 10.99.0.2/32 to the device, packets of at most 1200 bytes",
    ]
    assert [str(step) for step in plan(state(made(desired)), config())] == ["remove the route 10.99.0.2/32"]


@given(configs(), configs())
def test_no_range_is_without_an_owner_while_it_moves(first: DeviceConfig, second: DeviceConfig) -> None:
    device = made(first)

    def owned(peers: Iterable[PeerConfig]) -> set[IPv4Network]:
        return {network for peer in peers for network in peer.allowed_ips}

    kept = owned(first.peers.values()) & owned(second.peers.values())
    for step in plan(device.read(), second):
        device.apply([step])
        assert kept <= owned(peer.config for peer in state(device).peers.values())


@given(configs())
def test_no_step_shows_a_secret(desired: DeviceConfig) -> None:
    secrets = [desired.private_key, *(peer.preshared_key for peer in desired.peers.values() if peer.preshared_key)]
    for step in plan(None, desired):
        assert str(step)
        for secret in secrets:
            assert secret.reveal() not in f"{step} {step!r}"
            assert secret.hex not in f"{step} {step!r}"


def test_a_new_device_is_made_in_this_order() -> None:
    peer = PeerConfig(ONE, frozenset([HUB]), PresharedKey(b"\1" * 32), ENDPOINTS[0], 20)
    assert [str(step) for step in plan(None, config(peer=peer))] == [
        "create the device",
        "set the private key",
        "set the MTU to 1420",
        "add address 10.99.0.1/16",
        "bring the device up",
        "listen on UDP port 51888",
        f"add peer {ONE}: allowed 10.99.0.0/16, endpoint 203.0.113.7:51888, keepalive 20 s, a preshared key",
    ]


def test_a_range_moves_to_another_peer_in_one_step() -> None:
    hub, direct = PeerConfig(ONE, frozenset([HUB, DIRECT])), PeerConfig(TWO, frozenset([PROBE]))
    device = made(config(hub=hub, direct=direct))
    moved = replace(direct, allowed_ips=frozenset([PROBE, DIRECT]))
    steps = plan(device.read(), config(hub=replace(hub, allowed_ips=frozenset([HUB])), direct=moved))
    assert steps == (UpdatePeer(moved, ("allowed_ips",), replace_allowed_ips=False),)


def test_an_unassigned_range_is_removed() -> None:
    peer = PeerConfig(ONE, frozenset([PROBE, DIRECT]))
    less = replace(peer, allowed_ips=frozenset([PROBE]))
    assert plan(state(made(config(peer=peer))), config(peer=less)) == (
        UpdatePeer(less, ("allowed_ips",), replace_allowed_ips=True),
    )


def test_a_new_key_of_a_node_takes_its_addresses_before_the_old_one_goes() -> None:
    device = made(config(old=PeerConfig(ONE, frozenset([DIRECT]))))
    new = PeerConfig(TWO, frozenset([DIRECT]))
    assert plan(device.read(), config(new=new)) == (AddPeer(new), RemovePeer(ONE))


def test_a_learnt_endpoint_stays_where_none_is_wanted() -> None:
    peer = PeerConfig(ONE, frozenset([HUB]))
    device = made(config(peer=peer))
    device.hear(ONE, now=UnixSeconds(1000.0), endpoint=ENDPOINTS[0], rx_bytes=148, tx_bytes=92)
    device.hear(ONE, now=UnixSeconds(1001.0), rx_bytes=10)
    received = state(device).peers[ONE]
    assert (received.last_handshake, received.rx_bytes, received.tx_bytes) == (1001.0, 158, 92)
    assert received.config.endpoint == ENDPOINTS[0]
    assert plan(device.read(), config(peer=peer)) == ()
    wanted = replace(peer, endpoint=ENDPOINTS[1])
    assert plan(device.read(), config(peer=wanted)) == (UpdatePeer(wanted, ("endpoint",)),)


def test_only_the_named_fields_are_described() -> None:
    peer = PeerConfig(ONE, frozenset([HUB]), keepalive_s=20)
    changed = replace(peer, keepalive_s=0)
    (step,) = plan(state(made(config(peer=peer))), config(peer=changed))
    assert str(step) == f"update peer {ONE}: no keepalive"


def test_one_range_for_two_peers_is_refused() -> None:
    with pytest.raises(MeshrayError, match=r"10\.99\.0\.0/16 is claimed by two peers"):
        config(one=PeerConfig(ONE, frozenset([HUB])), two=PeerConfig(TWO, frozenset([HUB])))


def test_an_endpoint_is_never_a_name() -> None:
    with pytest.raises(MeshrayError, match="not the name"):
        PeerConfig(ONE, frozenset(), endpoint=Endpoint("head.example", 51888))


def test_the_fake_fails_on_request_and_keeps_earlier_changes() -> None:
    device = made(config())
    device.failing = MeshrayError("device_failed", "meshray0: no buffer space")
    with pytest.raises(MeshrayError, match="no buffer space"):
        device.apply([SetMtu(1280)])
    with pytest.raises(MeshrayError):
        device.read()
    device.failing = None
    assert state(device).mtu == 1420
    device.remove()
    device.remove()
    assert device.read() is None


def test_the_fake_drops_secondaries_with_their_primary() -> None:
    device = made(replace(config(), addresses=(ADDRESSES[0], ADDRESSES[1])))
    wanted = replace(config(), addresses=(ADDRESSES[1],))
    device.apply(plan(device.read(), wanted))
    assert state(device).addresses == (ADDRESSES[1],)
    assert [str(step) for step in device.applied] == ["remove address 10.99.0.1/16", "add address 10.99.0.9/16"]
    assert IPv4Address("10.99.0.9") in {address.ip for address in state(device).addresses}
