"""The desired state of this node's WireGuard device, derived from the map (pure).

hub                                    any other node
├── peer a   allowed 10.99.0.2/32      ├── peer hub   allowed 10.99.0.0/16, endpoint, keepalive
└── peer b   allowed 10.99.0.3/32      ├── peer b     allowed 10.99.128.3/32 (probes): being tried
                                       └── peer c     allowed 10.99.128.4/32 and 10.99.0.4/32: direct

The longest prefix wins, so a direct peer takes over its data from the hub, and returns it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TypeAlias

from meshray.agent.paths.decision import PairPath
from meshray.agent.paths.hubs import hub_for
from meshray.defaults import DEFAULT_MTU, KEEPALIVE_S
from meshray.errors import MeshrayError
from meshray.model.address import Endpoint
from meshray.model.epochs import pair_epoch
from meshray.model.keys import MeshSecret, PresharedKey, PrivateKey, PublicKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, Node
from meshray.node.enrolment import Enrolment
from meshray.wireguard.config import MESHRAY_PROTOCOL, DeviceConfig, PeerConfig, Route

#: Return the preshared key with another node.
KeyWith: TypeAlias = Callable[[Node], PresharedKey]


def desired_device(
    me: Node,
    mesh_map: MeshMap,
    keys: PairKeys,
    *,
    private_key: PrivateKey,
    listen_port: int,
    dial: Mapping[str, Endpoint],
    usable: tuple[str, ...] = (),
    path: Callable[[Node], PairPath] = lambda node: PairPath(),
    address: Callable[[str, Endpoint], Endpoint | None] = lambda node_id, endpoint: endpoint,
    known: Collection[PublicKey] = (),
    mtus: Mapping[IPv4Address, int] | None = None,
) -> DeviceConfig:
    """Return the desired device of the node ``me``.

    Args:
        keys: derives and caches the preshared keys of ``me``.
        listen_port: UDP; 0 lets the kernel choose.
        dial: the endpoints at which hubs (and, from a hub, silent nodes) are dialled now, by node id; addresses, not
            names.
        usable: the hubs that answer this node, best first.
        path: returns the direct path to a node, if there is one.
        address: returns the endpoint of the node with this id as an address; None if none is known or none may be
            dialled.
        known: the device's current peers.
        mtus: the MTUs of paths that carry less than the device's, bytes of an inner packet.
    """
    others = [node for node in mesh_map.nodes.values() if node.id != me.id]
    key_with = partial(keys.between, me)
    if HUB in me.roles:
        peers = [_member(node, key_with, dial.get(node.id)) for node in others]
    else:
        peers = [*_hubs(me, others, mesh_map, key_with, dial=dial, usable=usable, path=path)]
        peers += [
            _direct(node, mesh_map, path(node), address(node.id, endpoint), key_with=key_with, known=known)
            for node in others
            if (endpoint := path(node).endpoint) is not None
        ]
    network = mesh_map.mesh.network
    return DeviceConfig(
        private_key=private_key,
        listen_port=listen_port,
        addresses=(
            IPv4Interface((me.ip, network.cidr.prefixlen)),
            IPv4Interface((network.probe_address(me.ip), 32)),
        ),
        mtu=DEFAULT_MTU,
        peers={peer.public_key: peer for peer in peers},
        routes=(
            Route(network.cidr, me.ip),
            *(Route(_only(ip), me.ip, mtu, MESHRAY_PROTOCOL) for ip, mtu in sorted((mtus or {}).items())),
        ),
    )


def own_node(enrolment: Enrolment, mesh_map: MeshMap) -> Node:
    """Return this node's own entry. Raises MeshrayError if the map does not contain it."""
    node = mesh_map.nodes.get(enrolment.node_id)
    if node is None:
        raise MeshrayError("not_in_map", f"this node ({enrolment.name}) is not in the mesh map", hint="meshray leave")
    return node


class PairKeys:
    """This node's preshared keys with the others.

    Deriving one takes 0.1 ms, so they are cached: the desired device is computed again with every change of the map.

    Args:
        mesh_secrets: the secrets that this node holds, by epoch.
        tried: by node id, the epoch that is tried instead of the map's; see `meshray.agent.device.epoch_trials`.
    """

    def __init__(
        self, mesh_secrets: Mapping[int, MeshSecret], own: PublicKey, tried: Mapping[str, int] | None = None
    ) -> None:
        self._secrets = dict(mesh_secrets)
        self._own = own
        self._tried = tried if tried is not None else {}
        self._known: dict[tuple[PublicKey, int], PresharedKey] = {}

    def between(self, me: Node, other: Node) -> PresharedKey:
        """Return the key of the pair of this node, ``me``, and another one."""
        epoch = self._tried.get(other.id, 0)
        if epoch not in self._secrets:
            epoch = pair_epoch(me.secret_epoch, other.secret_epoch, self._secrets)
        pair = other.public_key, epoch
        if pair not in self._known:
            self._known[pair] = self._secrets[epoch].preshared_key(self._own, other.public_key)
        return self._known[pair]


def _member(node: Node, key_with: KeyWith, endpoint: Endpoint | None) -> PeerConfig:
    # Usually there is no endpoint and no keepalive: the node dials its hub and keeps the path open.
    return PeerConfig(
        public_key=node.public_key,
        allowed_ips=frozenset({_only(node.ip)}),
        preshared_key=key_with(node),
        endpoint=endpoint,
        keepalive_s=KEEPALIVE_S if HUB in node.roles or endpoint is not None else 0,
    )


def _hubs(
    me: Node,
    others: list[Node],
    mesh_map: MeshMap,
    key_with: KeyWith,
    *,
    dial: Mapping[str, Endpoint],
    usable: tuple[str, ...],
    path: Callable[[Node], PairPath],
) -> Iterator[PeerConfig]:
    """Yield a peer for every hub: the best one for the whole mesh, the others for the pairs that they carry."""
    hubs = {node.id: node for node in others if HUB in node.roles}
    best = next((hub for hub in usable if hub in hubs), next(iter(hubs), None))
    carried: dict[str, set[IPv4Network]] = {hub.id: {_only(hub.ip)} for hub in hubs.values()}
    if best is not None:
        carried[best] = {mesh_map.mesh.network.cidr}
    all_hubs = mesh_map.hubs
    for node in others if len(hubs) > 1 else ():  # The only hub carries everything.
        hub = hub_for(me, node, all_hubs, usable)
        if hub is not None and hub.id != best and node.id not in hubs and not path(node).carries:
            carried[hub.id].add(_only(node.ip))
    for hub in hubs.values():
        yield PeerConfig(
            public_key=hub.public_key,
            allowed_ips=frozenset(carried[hub.id]),
            preshared_key=key_with(hub),
            endpoint=dial.get(hub.id),
            keepalive_s=KEEPALIVE_S,
        )


def _direct(
    node: Node,
    mesh_map: MeshMap,
    path: PairPath,
    address: Endpoint | None,
    *,
    key_with: KeyWith,
    known: Collection[PublicKey],
) -> PeerConfig:
    probe = _only(mesh_map.mesh.network.probe_address(node.ip))
    return PeerConfig(
        public_key=node.public_key,
        allowed_ips=frozenset({probe, _only(node.ip)} if path.carries else {probe}),
        preshared_key=key_with(node),
        # After the first handshake WireGuard knows the endpoint better than the map.
        endpoint=None if path.hears and node.public_key in known else address,
        keepalive_s=KEEPALIVE_S,
    )


def _only(ip: IPv4Address) -> IPv4Network:
    return IPv4Network((ip, 32))
