"""The paths from one node to all others, with the parts that manage them.

names ──► hubs, carrier ──► where the hubs are dialled ──┐
prober ──► pairs ──► where others are dialled directly ──┼──► reconciler
       ├─► mtus ──► routes ──────────────────────────────┘
       └─► silence ──► connections held and closed, a report to the coordinator
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.agent.dependencies import FirewallPart, TrafficPart
from meshray.agent.device.peer_resets import PeerResets
from meshray.agent.paths.decision import PairPath
from meshray.agent.paths.demand import WARM_NODES
from meshray.agent.paths.hub_dialback import HubDialback
from meshray.agent.paths.hub_monitor import HubMonitor
from meshray.agent.paths.hub_transport_switch import Carrier
from meshray.agent.paths.name_resolution import Address, Names
from meshray.agent.paths.observed_endpoints import ObservedEndpoints
from meshray.agent.paths.pair_paths import Pairs
from meshray.agent.paths.path_in_use import live_peer_towards
from meshray.agent.paths.path_mtu import PathMtu, PeerPath
from meshray.agent.paths.prober import Prober
from meshray.agent.paths.rebinds import Rebinds
from meshray.agent.paths.silence_detection import SilenceWatch
from meshray.agent.paths.silence_response import SilentNodes
from meshray.agent.state import NodeState
from meshray.defaults import DEFAULT_MTU
from meshray.errors import MeshrayError
from meshray.linux.clock import BootSeconds, boot_s
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from meshray.model.endpoints import reachable_ip
from meshray.model.keys import PublicKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, STATIC, Node
from meshray.protocol.connection import Message
from meshray.protocol.status import PathStatus
from meshray.wireguard.config import DeviceState, PeerConfig, is_fresh
from meshray.wireguard.plan import Step


class Paths:
    """The paths from this node to all others.

    Args:
        prober: None: nothing is probed, and only the hubs are used.
        firewall: holds connections to silent nodes; None: nothing does.
        traffic: reports with which nodes packets are exchanged; None: unknown, so every direct path is kept ready.
        tasks: tasks that end before Ray does.
        tunnel_tasks: tasks that the tunnel needs; they end after Ray, which signs off through it.
        silence_changed: called when a node becomes silent, is gone, or answers again.
    """

    def __init__(
        self,
        state: NodeState,
        prober: Prober | None,
        firewall: FirewallPart | None,
        connection: CoordinatorConnection,
        *,
        traffic: TrafficPart | None,
        tasks: Tasks,
        tunnel_tasks: Tasks,
        silence_changed: Callable[[], None],
    ) -> None:
        self._state = state
        self._prober = prober
        self._connection = connection
        self._traffic = traffic
        self._tasks = tasks
        self._on_silence = silence_changed
        #: Separate instances, so that the names of members do not delay those of hubs.
        self._names = Names(tunnel_tasks, self._reachable, self._name_resolved)
        self._hub_names = Names(
            tunnel_tasks, lambda ip: self._reachable(ip, loopback=True), lambda hub: state.wake(), at_once=4
        )
        self.hubs = HubMonitor(
            state.map, state.enrolment.node_id, lambda: state.enrolment.coordinators, self._hub_names
        )
        self.carrier = Carrier(
            state.enrolment.transport,
            lambda: replace(state.coordinator, endpoints=state.enrolment.coordinators),
            lambda: state.map.coordinator if state.map.coordinator and HUB in state.map.coordinator.roles else None,
            self.hubs,
            device=lambda: state.device,
            switched=self._redial_hub,
            wake=state.wake,
        )
        self.rebinds = Rebinds()
        self._dialback = HubDialback()
        self._observed_endpoints = ObservedEndpoints()
        self._resets = PeerResets()
        self.pairs: Pairs | None = None
        self._mtus: PathMtu | None = None
        #: The nodes and peers for which the paths to measure were determined.
        self._measured_for: tuple[tuple[str, ...], Mapping[PublicKey, object]] = (), {}
        self._silence: SilenceWatch | None = None
        self._silent_nodes: SilentNodes | None = None
        if prober is not None:
            self.pairs = Pairs(state, prober, self._names, self._send, all_wanted=self._all_pairs_wanted)
            self._mtus = PathMtu(prober, state.wake)
            self._silence = SilenceWatch(state, prober, lambda node: self.path(node).carries, self._silence_changed)
            self._silent_nodes = SilentNodes(self._silence, connection, firewall, state)

    # ---- what the device follows

    def dial(self, observed: DeviceState | None) -> Mapping[str, Endpoint]:
        """Return where hubs, and from a hub silent nodes, are dialled now, by node id."""
        dial = dict(self.hubs.dial(observed))
        if self._state.is_hub:
            dial.update(self._dialback.dial(self._state.map, self._state.me.id, observed, self.address))
        return dial

    def path(self, node: Node) -> PairPath:
        """Return the direct path to a node, if there is one."""
        return self.pairs.path(node) if self.pairs is not None else PairPath()

    def address(self, node_id: str, endpoint: Endpoint) -> Endpoint | None:
        """Return the endpoint of a node as an address; None if none is known or none may be dialled."""
        return self._names.address(node_id, endpoint)

    @property
    def narrow(self) -> Mapping[IPv4Address, int] | None:
        """Return the MTU of the paths that carry less than the device's, by overlay address."""
        return self._mtus.narrow if self._mtus is not None else None

    def resets(self, observed: DeviceState | None) -> list[Step]:
        """Return the steps after which WireGuard sends at once what it would send later; each is returned once."""
        if self.pairs is not None:
            self._resets.reset(self.pairs.take_resets())
            self._resets.reset_silent(self.pairs.take_silent_resets())
        return self._resets.take(observed, may_change_port=self._state.enrolment.listen_port == 0)

    def peers_added(self, peers: Iterable[PeerConfig]) -> None:
        """Record that these peers were just added."""
        if self.pairs is not None:
            self.pairs.peers_added(peers)

    # ---- events

    async def observe(self, observed: DeviceState) -> None:
        """Record the device's counters and endpoints; a hub reports where it observes the nodes."""
        if self._mtus is not None:
            used = tuple(node.id for node in self.in_use()), _used_peers(observed, boot_s())
            if used != self._measured_for:
                self._measured_for = used
                self._mtus.paths_changed()
        if self.pairs is not None:
            self.pairs.observe(observed)
        if self._state.is_hub:
            nodes = self._state.map.nodes.values()
            self.rebinds.observe(nodes, observed, time.monotonic())
            for message in self._observed_endpoints.changes(nodes, observed, self._connection.is_open):
                await self._connection.send(message)

    def map_changed(self, before: MeshMap) -> None:
        """Handle a new map; the argument is the previous one."""
        if self._mtus is not None:
            self._mtus.paths_changed()
        for node in self._state.map.nodes.values():
            old = before.nodes.get(node.id)
            if self._silence is not None:
                self._silence.node_changed(old, node)
            if self.pairs is not None:
                self.pairs.node_changed(old, node)
        if self.pairs is not None:
            self.pairs.map_changed()
        self._silence_changed()
        self._names.keep(self._state.map.nodes)
        self.hubs.refresh(self._state.map)

    def network_changed(self) -> None:
        """Handle other addresses or another router: check everything again."""
        self._names.network_changed()
        self._hub_names.network_changed()
        self._resets.send_from_another_address()
        self.carrier.network_changed()
        if self._mtus is not None:
            self._mtus.network_changed()
        if self.pairs is not None:
            self.pairs.network_changed()

    def want(self, node: Node) -> None:
        """Try a direct path to this node, because packets will flow."""
        if self.pairs is not None:
            self.pairs.want(node)

    def begin_handshakes(self) -> None:
        """Give the tunnels with the hubs time for new handshakes after a key change."""
        self.hubs.restart_timeout()
        self.carrier.restart_timeout()
        self._state.wake()

    def prefer(self, endpoint: Endpoint) -> None:
        """Use this endpoint of the coordinator: its hub is dialled there next."""
        self.hubs.prefer(endpoint, self._state.map)
        self.carrier.network_changed()
        self._state.wake()

    # ---- queries

    @property
    def is_cut_off(self) -> bool:
        """Whether this node needs a hub and none answers."""
        return not (self._state.is_hub or self.hubs.any_answering)

    @property
    def any_direct(self) -> bool:
        """Whether a direct path carries data to any node."""
        return self.pairs is not None and self.pairs.any_direct

    def in_use(self) -> list[Node]:
        """Return the nodes whose paths are measured: hubs, and nodes to which a direct path is kept or useful now."""
        state, pairs = self._state, self.pairs
        if pairs is None or state.is_hub or self._all_pairs_wanted():
            return state.others
        hubs = [hub for hub in state.map.hubs if hub.id != state.enrolment.node_id]
        return [*hubs, *(node for node in pairs.contacted() if pairs.is_wanted(node))]

    def known(self, node: Node) -> PathStatus:
        """Return the values of the path to this node that neither the device nor the prober has."""
        reason = self.pairs.why_not_direct(node) if self.pairs is not None else ""
        limit = self.carrier.limit if node == self._state.map.coordinator else None
        if limit is None or limit.relay_kbit_s is None:
            return PathStatus(mtu=self.mtu(node.ip), reason=reason)
        return PathStatus(
            mtu=self.mtu(node.ip),
            reason=reason,
            udp_limit_mbit_s=round(limit.kbit_s / 1000, 1),
            tcp_mbit_s=round(limit.relay_kbit_s / 1000, 1),
        )

    def notices(self) -> Iterator[str]:
        """Yield the limit of UDP because of which the tunnel to the hub uses TCP."""
        limit, hub = self.carrier.limit, self._state.map.coordinator
        if limit is not None and hub is not None:
            minutes = max(0.0, boot_s() - limit.since) / 60
            yield (
                f"a network on the path to {hub.name} limits UDP to about {limit.kbit_s / 1000:.0f} Mbit/s: the tunnel "
                f"has used TCP for {minutes:.0f} min"
            )

    def silent_s(self, node: Node) -> float | None:
        """Return for how long this node has not answered over the overlay, seconds; None if it answers."""
        return self._silence.silent_s(node) if self._silence is not None else None

    def mtu(self, peer: IPv4Address) -> int:
        """Return the MTU of the path to this peer, bytes of an inner packet."""
        return self._mtus.mtu(peer) if self._mtus is not None else DEFAULT_MTU

    def is_measured(self, peer: IPv4Address) -> bool:
        """Return whether `mtu` has been measured."""
        return self._mtus is not None and self._mtus.is_measured(peer)

    def peers_online(self) -> list[IPv4Address]:
        """Return the overlay addresses of the other nodes whose agents are connected."""
        return [node.ip for node in _online(self._state.others)]

    # ---- tasks

    async def open(self) -> None:
        """Open the prober's sockets. Raises MeshrayError if the overlay address cannot be used."""
        if self._prober is None:
            return
        ip = self._state.me.ip
        try:
            await self._prober.open(ip, self._state.map.mesh.network.probe_address(ip))
        except OSError as error:
            raise MeshrayError(
                "probe_port", f"the overlay address {ip} cannot be used: {error.strerror}", hint="meshray up"
            ) from None

    def start(self) -> None:
        """Start the parts that need the overlay, after `open`."""
        if self._prober is not None:
            self._tasks.start(self._prober.run(self._to_probe), "prober")
            self._tasks.start(self.hubs.run(self._prober, self._hubs_changed), "hubs")
        if self._silence is not None and self._silent_nodes is not None:
            self._tasks.start(self._silence.run(), "silence")
            self._tasks.start(self._silent_nodes.run(), "silent nodes")
        if self._mtus is not None:
            self._tasks.start(self._mtus.run(self._peer_paths), "mtu")
        if self.pairs is not None:
            self._tasks.start(self.pairs.run(), "pairs")
        if self.pairs is not None and self._traffic is not None:
            watch = self._traffic.run(
                self._state.me.ip, self._state.map.mesh.network, self.pairs.traffic, self.pairs.check_soon
            )
            self._tasks.start(watch, "traffic")

    # ---- implementation

    def _all_pairs_wanted(self) -> bool:
        return len(self._state.map.nodes) <= WARM_NODES or self._traffic is None or self._traffic.is_denied

    def _to_probe(self) -> list[IPv4Address]:
        """Return the nodes whose data path is probed separately; `pairs` probes direct paths."""
        return [node.ip for node in _online(self.in_use()) if not self.path(node).carries]

    def _peer_paths(self) -> list[PeerPath]:
        """Return every peer that answers, with the endpoint to which its packets are sent."""
        device, now = self._state.device, boot_s()
        peers = [(node.ip, live_peer_towards(device, node, now)[0]) for node in _online(self.in_use())]
        return [(ip, peer.config.endpoint) for ip, peer in peers if peer is not None]

    def _hubs_changed(self) -> None:
        """Handle another best hub, or a hub that stopped answering."""
        self._tasks.start(self._connection.send_hello(), "hello")
        self._state.wake()

    def _silence_changed(self) -> None:
        if self._silent_nodes is not None:
            self._silent_nodes.check_soon()
        self._on_silence()

    def _redial_hub(self, hub: Node) -> None:
        if not self.hubs.any_answering:
            self._resets.reset([hub.public_key])
        self._state.wake()

    def _send(self, message: Message) -> None:
        self._tasks.start(self._connection.send(message), "message")

    def _reachable(self, ip: Address, *, loopback: bool = False) -> Address | None:
        return reachable_ip(ip, self._state.map.mesh.network, loopback=loopback)

    def _name_resolved(self, node_id: str) -> None:
        if self.pairs is not None:
            self.pairs.name_resolved(node_id)
        self._state.wake()


def _online(nodes: Iterable[Node]) -> list[Node]:
    return [node for node in nodes if node.online and STATIC not in node.roles]


def _used_peers(device: DeviceState, now: BootSeconds) -> Mapping[PublicKey, object]:
    """Return what determines which peer carries packets to a node, and to which endpoint, by peer."""
    return {
        key: (peer.config.endpoint, peer.config.allowed_ips, is_fresh(peer.handshake_at, now))
        for key, peer in device.peers.items()
    }
