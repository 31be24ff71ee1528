"""The device that follows from the map."""

from ipaddress import IPv4Interface, IPv4Network

import pytest

from meshray.agent.device.desired_device import PairKeys, desired_device, own_node
from meshray.agent.paths.decision import PairPath
from meshray.errors import MeshrayError
from meshray.model.address import Endpoint
from meshray.model.keys import PublicKey
from meshray.model.node import Node
from meshray.wireguard.config import DeviceConfig
from tests.unit.agent.sample import HEAD_NODE, HUB_ENDPOINT, KEYS, MAP, SECRET, WORKER_A, WORKER_B, enrolment, node


def device_of(me: Node) -> DeviceConfig:
    number = int(me.id[1:])
    keys = PairKeys({1: SECRET}, me.public_key)
    return desired_device(me, MAP, keys, private_key=KEYS[number], listen_port=51888, dial={HEAD_NODE.id: HUB_ENDPOINT})


def test_the_hub_has_every_node_as_a_peer_with_its_own_address_only() -> None:
    device = device_of(HEAD_NODE)
    assert {key: peer.allowed_ips for key, peer in device.peers.items()} == {
        WORKER_A.public_key: {IPv4Network("10.99.0.2/32")},
        WORKER_B.public_key: {IPv4Network("10.99.0.3/32")},
    }
    assert all(peer.endpoint is None and peer.keepalive_s == 0 for peer in device.peers.values())
    assert device.addresses == (IPv4Interface("10.99.0.1/16"), IPv4Interface("10.99.128.1/32"))


def test_a_worker_routes_the_mesh_through_the_hub_and_keeps_the_path_open() -> None:
    (peer,) = device_of(WORKER_A).peers.values()
    assert peer.public_key == HEAD_NODE.public_key
    assert peer.allowed_ips == {IPv4Network("10.99.0.0/16")}
    assert peer.endpoint == HUB_ENDPOINT
    assert peer.keepalive_s > 0


def test_both_sides_use_the_same_preshared_key_and_no_other_pair_does() -> None:
    hub, a, b = device_of(HEAD_NODE), device_of(WORKER_A), device_of(WORKER_B)
    of_a, of_b = hub.peers[WORKER_A.public_key].preshared_key, hub.peers[WORKER_B.public_key].preshared_key
    assert a.peers[HEAD_NODE.public_key].preshared_key == of_a
    assert b.peers[HEAD_NODE.public_key].preshared_key == of_b
    assert of_a != of_b


def test_a_node_missing_from_the_map_reports_that() -> None:
    with pytest.raises(MeshrayError) as caught:
        own_node(enrolment(node(0, "gone", id="n9")), MAP)
    assert caught.value.code == "not_in_map"


def test_a_reset_peer_is_dialled_although_it_answered() -> None:
    where = Endpoint("192.0.2.9", 4711)
    received = PairPath().punch((where,), 0.0).answered(True, 0.1)
    keys = PairKeys({1: SECRET}, WORKER_A.public_key)

    def endpoint(*known: PublicKey) -> Endpoint | None:
        device = desired_device(
            WORKER_A,
            MAP,
            keys,
            private_key=KEYS[2],
            listen_port=0,
            dial={},
            path=lambda node: received if node == WORKER_B else PairPath(),
            known=known,
        )
        return device.peers[WORKER_B.public_key].endpoint

    assert endpoint(WORKER_B.public_key) is None  # WireGuard knows better.
    assert endpoint() == where
