"""Run the path decision (`meshray.agent.paths.decision`) for the other nodes: request, probe, measure time.

packets, pings ──► demand ──► contacted pairs ──► due times
map ──candidates──► PairPath ◄──answers, lost probes── prober (direct path)
                       │
                       ├──► "punch" to the coordinator, which lets both sides try at once
                       └──► desired device: a WireGuard peer for the probe address, later for the data

Only the pairs that `meshray.agent.paths.demand` wants are contacted. Nothing here looks at all nodes of a large mesh.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from meshray.agent.paths import decision
from meshray.agent.paths.decision import (
    IDLE_REASON,
    LAST_RETRY_S,
    PROBE_IDLE_S,
    PROBE_TIMEOUT_S,
    TRYING,
    PairPath,
    candidates,
    spread_of,
    why_not_direct,
)
from meshray.agent.paths.demand import Demand
from meshray.agent.paths.due_times import DueTimes
from meshray.agent.paths.mtu import SIZES
from meshray.agent.paths.name_resolution import Names
from meshray.agent.paths.prober import Prober
from meshray.agent.state import NodeState
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from meshray.model.keys import PublicKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, STATIC, Node
from meshray.protocol.connection import Left, Message, PunchWanted
from meshray.wireguard.config import DeviceState, PeerConfig

log = logging.getLogger(__name__)

#: The node with the larger id requests a punch this much later: usually the other one has done so by then.
_YIELD_S = 2.0
#: A hub reports within half a second where it observes a new node; a node that is not observed for longer has no UDP to
#: any hub.
_OBSERVED_S = 2.0
#: The number of pairs that are tried at once: each costs a WireGuard handshake. Others wait this long for their turn.
_AT_ONCE, _TURN_S = 8, 0.25
#: More bytes per second to a peer than a handshake (148 or 92) with keepalives (32) mean that data flows, and may still
#: flow a while later.
_ACTIVE_BYTES_S = 300.0
_ACTIVE_FOR_S = 6.0
#: The minimum time over which the bytes are counted.
_RATE_S = 0.95
#: A probe of the peer that confirms ours proves both directions as ours would: ours then waits this share of the idle
#: interval, less than all of it, so that the sides take turns and both measure the round trip.
_TURN = 0.9
#: The size of a probe as WireGuard counts it: 40 bytes padded to 48, plus its 32; and a large one.
_PROBE_BYTES, _LARGE_PROBE_BYTES = 80, SIZES[-1] + 32
#: The path of a node that was not contacted. It is looked up some hundred times per second.
_UNTRIED = PairPath()


class Pairs:
    """The paths from this node to the others.

    Args:
        send: sends to the coordinator, if it is connected.
        all_wanted: returns whether every pair is contacted, with or without demand.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        state: NodeState,
        prober: Prober,
        names: Names,
        send: Callable[[Message], None],
        *,
        all_wanted: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._send = send
        self._prober = prober
        self._names = names
        self._all_wanted = all_wanted
        self._was_warm = False
        self._clock = clock
        self._tasks = Tasks()
        self._demand = Demand()
        self._due = DueTimes()
        #: The contacted pairs.
        self._paths: dict[str, PairPath] = {}
        self._probed: dict[str, float] = {}
        self._online: dict[str, float] = {}
        self._resets: set[PublicKey] = set()
        self._silent_resets: set[PublicKey] = set()
        self._sent: dict[PublicKey, tuple[float, int]] = {}
        self._active: dict[PublicKey, float] = {}
        self._probe_bytes: dict[PublicKey, int] = {}
        self._by_address: tuple[MeshMap | None, dict[IPv4Address, Node]] = (None, {})
        self._wake = asyncio.Event()
        prober.direct.on_ping = self._on_ping

    # ---- queries

    def path(self, node: Node) -> PairPath:
        """Return the path to this node."""
        return self._paths.get(node.id, _UNTRIED)

    def is_wanted(self, node: Node) -> bool:
        """Return whether a direct path to this node would be useful now."""
        return self._all_wanted() or self._demand.wanted_until(node.id) > self._clock()

    def is_idle(self, node: Node) -> bool:
        """Return whether the pair could be direct and is not contacted, because nothing is sent."""
        return self.path(node).phase == decision.HUB and self._may_be_direct(node) and not self.is_wanted(node)

    def why_not_direct(self, node: Node) -> str:
        """Return why packets to this node go through the hub; empty if they do not."""
        if not self._may_be_direct(node):
            return ""
        return IDLE_REASON if self.is_idle(node) else why_not_direct(self._state.me, node, self.path(node))

    @property
    def any_direct(self) -> bool:
        """Whether a direct path carries data to any node."""
        return any(path.carries for path in self._paths.values())

    def contacted(self) -> list[Node]:
        """Return the nodes to which a direct path is wanted, tried or used."""
        nodes = self._state.map.nodes
        found = (nodes.get(node_id) for node_id in self._paths)
        return [node for node in found if node is not None and self._may_be_direct(node)]

    # ---- events

    def want(self, node: Node) -> None:
        """Contact this node, because packets flow to or from it, or will."""
        if self._may_be_direct(node):
            self._demand.note(node.id, self._clock())
            self._contact(node)

    def traffic(self, address: IPv4Address) -> None:
        """Handle a packet to or from this overlay address."""
        node = self._node_at(address)
        if node is not None:
            self.want(node)

    def name_resolved(self, node_id: str) -> None:
        """Handle a new address of one of the node's names; if that is being tried, its handshake is sent at once."""
        node = self._state.map.nodes.get(node_id)
        path = self.path(node) if node is not None else _UNTRIED
        if node is None or path.endpoint is None or path.hears or path.endpoint.ip is not None:
            return
        self._resets.add(node.public_key)

    def punch(self, node_id: str) -> None:
        """Handle the coordinator's request to try now; the other side gets it as well."""
        node = self._state.map.nodes.get(node_id)
        if node is not None and self._may_be_direct(node):
            self.want(node)
            self._probed.pop(node_id, None)
            rounds = candidates(self._state.me, node)
            self._names.prepare(node.id, rounds)
            self._set(node, self.path(node).punch(rounds, self._clock()))

    def left(self, node_id: str) -> None:
        """Handle the coordinator's message that the other side went back to the hub."""
        node, now = self._state.map.nodes.get(node_id), self._clock()
        if node is not None:
            if not self._all_wanted() and self._demand.may_follow(node.id, now):
                self._demand.forget(node.id)
                self._let_go(node, now)
            else:
                self._set(node, self.path(node).peer_left(now))

    def network_changed(self) -> None:
        """Handle other addresses or another router: retry what failed, check what worked."""
        for node in self.contacted():
            self._set(node, self.path(node).network_changed(self._clock()))
            self._probed.pop(node.id, None)
            self._schedule(node)

    def node_changed(self, old: Node | None, new: Node) -> None:
        """Handle a changed entry of a node in the map."""
        if old is not None and _reachability(old) == _reachability(new):
            return
        if new.id == self._state.enrolment.node_id:
            for node in self.contacted():
                self._schedule(node)
        elif self._may_be_direct(new) and (new.id in self._paths or self.is_wanted(new)):
            self._contact(new)
            self._set(new, self.path(new).network_changed(self._clock()))
            self._schedule(new)

    def map_changed(self) -> None:
        """Handle a new map, after `node_changed` for its nodes."""
        nodes = self._state.map.nodes
        for node_id in self._paths.keys() - nodes.keys():
            self._forget(node_id)
        self._demand.keep(nodes.keys())
        self.check_soon()

    def check_soon(self) -> None:
        """Handle another answer of ``all_wanted``."""
        self._wake.set()

    def observe(self, device: DeviceState) -> None:
        """Read the device's counters: to which peers does data flow?"""
        now = self._clock()
        for node in self.contacted():
            key, peer = node.public_key, device.peers.get(node.public_key)
            if peer is None:
                continue
            # The bytes of data: WireGuard's count less our own probes.
            sent = peer.tx_bytes - self._probe_bytes.get(key, 0)
            before, sent_before = self._sent.get(key, (now, sent))
            if now - before >= _RATE_S and (sent - sent_before) / (now - before) > _ACTIVE_BYTES_S:
                self._active[key] = now
                self._schedule(node)
            if now - before >= _RATE_S or key not in self._sent:
                self._sent[key] = (now, sent)

    # ---- what the device follows

    def take_resets(self) -> set[PublicKey]:
        """Return the peers to add again, so that WireGuard sends a handshake at once; each is returned once.

        A peer that answered meanwhile has completed its handshake and is left alone.
        """
        resets, self._resets = self._resets, set()
        return resets - {node.public_key for node in self.contacted() if self.path(node).hears}

    def take_silent_resets(self) -> set[PublicKey]:
        """Return the same for peers already added again in this attempt, but only if they have sent nothing since."""
        resets, self._silent_resets = self._silent_resets, set()
        return resets

    def peers_added(self, peers: Iterable[PeerConfig]) -> None:
        """Record that these peers were just added. A peer that dials the current candidate need not be added again.

        WireGuard drops a handshake within 20 ms of another, and the next comes after 5 s, so it should happen only
        once.
        """
        dialled = {peer.public_key: peer.endpoint for peer in peers}
        tried = {node.public_key: self._tried_at(node) for node in self.contacted()}
        self._resets -= {key for key, endpoint in dialled.items() if endpoint == tried.get(key)}

    # ---- the task

    async def run(self) -> None:
        """Advance the paths and send what is due, until cancelled."""
        try:
            while True:
                self._follow_size()
                self._advance()
                # Nothing else ran since, so the times have all that woke this task.
                self._wake.clear()
                first = self._due.first
                pause_s = max(0.0, first - self._clock()) if first < math.inf else None
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause_s)
        finally:
            await self._tasks.close()

    # ---- implementation

    def _follow_size(self) -> None:
        """Contact every node of a mesh that is small now; give the pairs of one that is not the time to be idle."""
        is_warm = self._all_wanted()
        if is_warm and not self._state.is_hub:
            for node in self._state.map.nodes.values():
                if node.id not in self._paths and self._may_be_direct(node):
                    self._contact(node)
        elif self._was_warm:
            for node in self.contacted():
                self.want(node)
        self._was_warm = is_warm

    def _tried_at(self, node: Node) -> Endpoint | None:
        endpoint = self.path(node).endpoint
        return self._names.address(node.id, endpoint) if endpoint is not None else None

    def _may_be_direct(self, node: Node) -> bool:
        # Every node has its own path to a hub, and a static peer has no agent.
        me = self._state.me
        return node.id != me.id and not {HUB, STATIC} & node.roles and HUB not in me.roles

    def _contact(self, node: Node) -> None:
        if node.id not in self._paths:
            self._paths[node.id] = PairPath(spread=spread_of(self._state.me.id, node.id))
        self._schedule(node)

    def _forget(self, node_id: str) -> None:
        self._due.set(node_id, math.inf)
        for kept in (self._paths, self._online, self._probed):
            kept.pop(node_id, None)

    def _schedule(self, node: Node) -> None:
        """Set when this pair is looked at next."""
        self._due.set(node.id, self._next_look(node))
        self._wake.set()

    def _next_look(self, node: Node) -> float:
        path = self.path(node)
        idle_at = math.inf if self._all_wanted() else self._demand.wanted_until(node.id)
        if path.phase != decision.HUB:
            return min(path.tick_due, self._probe_due(node), idle_at)
        if not node.online or not candidates(self._state.me, node):
            return idle_at
        return min(max(path.next_try + self._yield_s(node), self._observed_at(node)), idle_at)

    def _yield_s(self, node: Node) -> float:
        return 0.0 if self._state.me.id < node.id else _YIELD_S

    def _observed_at(self, node: Node) -> float:
        """Return when the hubs have reported all they can about both nodes; an earlier attempt would fail."""
        if node.seen is not None and self._state.me.seen is not None:
            return -math.inf
        return self._online.setdefault(node.id, self._clock()) + _OBSERVED_S

    def _advance(self) -> None:
        """Take the steps that are due now."""
        now, requested = self._clock(), []
        for node_id in self._due.pop(now):
            node = self._state.map.nodes.get(node_id)
            if node is None or not self._may_be_direct(node) or node_id not in self._paths:
                self._forget(node_id)
                continue
            if not self.is_wanted(node):
                self._let_go(node, now)
                continue
            self._set(node, self.path(node).tick(now))
            self._probe_if_due(node)
            if self._is_punch_due(node, now):
                requested.append(node)
            self._schedule(node)
        self._request_punches(requested, now)

    def _let_go(self, node: Node, now: float) -> None:
        self._set(node, self.path(node).let_go(now))
        self._prober.path_changed(node.ip)  # Nothing measures it from now on.
        path = self.path(node)
        if path.next_try <= now:
            self._forget(node.id)
        else:  # The pause after a failed attempt holds for the next packet as well.
            self._due.set(node.id, path.next_try)

    def _is_punch_due(self, node: Node, now: float) -> bool:
        is_due = self.path(node).wants_punch(now - self._yield_s(node)) and self._observed_at(node) <= now
        return node.online and is_due and bool(candidates(self._state.me, node))

    def _request_punches(self, nodes: list[Node], now: float) -> None:
        trying = sum(1 for path in self._paths.values() if path.endpoint and not path.carries)
        free = max(0, _AT_ONCE - trying)
        for node in nodes[:free]:
            self._names.prepare(node.id, node.endpoints)
            self._set(node, self.path(node).requested(now))
        for node in nodes[free:]:
            self._due.set(node.id, now + _TURN_S)
        if nodes[:free]:
            self._send(PunchWanted(tuple(node.id for node in nodes[:free])))

    def _probe_if_due(self, node: Node) -> None:
        path, now = self.path(node), self._clock()
        if path.endpoint is None or now < self._probe_due(node):
            return
        self._probed[node.id] = now
        self._tasks.start(self._probe(node, path.attempt), f"probe of {node.name}")

    async def _probe(self, node: Node, attempt: int) -> None:
        address = self._state.map.mesh.network.probe_address(node.ip)
        sent, tries = self._clock(), self.path(node).phase == TRYING
        self._count_probe(node.public_key, _LARGE_PROBE_BYTES if tries else _PROBE_BYTES)
        # A direct path that passes only small packets is unusable: it must carry the smallest size that is used.
        size = SIZES[-1] if tries else 0
        answer = await self._prober.direct.ping(address, PROBE_TIMEOUT_S, hears=self.path(node).hears, size=size)
        path = self.path(node)
        if path.attempt != attempt:
            return
        if answer is None:
            self._set(node, path.unanswered(self._clock(), sent))
        else:
            self._set(node, path.answered(answer.peer_hears, self._clock()))
        # Probes lost while the path was tried, often when the peer was added again, do not count.
        if path.carries and not (tries and answer is None):
            self._prober.remember(node.ip, answer.rtt_ms if answer else None)

    def _on_ping(self, address: IPv4Address, hears_us: bool) -> bool:
        node = self._node_at(self._state.map.mesh.network.node_of_probe(address))
        if node is None:
            return False
        self._count_probe(node.public_key)
        self._set(node, self.path(node).pinged(hears_us, self._clock()))
        if hears_us and self.path(node).carries:
            self._probed[node.id] = max(self._probed.get(node.id, 0.0), self._clock() - (1 - _TURN) * PROBE_IDLE_S)
        return self.path(node).hears

    def _node_at(self, address: IPv4Address) -> Node | None:
        mesh_map, by_address = self._by_address
        if mesh_map is not self._state.map:
            mesh_map = self._state.map
            by_address = {node.ip: node for node in mesh_map.nodes.values()}
            self._by_address = mesh_map, by_address
        return by_address.get(address)

    def _count_probe(self, key: PublicKey, size: int = _PROBE_BYTES) -> None:
        self._probe_bytes[key] = self._probe_bytes.get(key, 0) + size

    def _probe_due(self, node: Node) -> float:
        """Return when to probe the direct path next; a change since the last probe takes effect at once."""
        active = self._clock() - self._active.get(node.public_key, -_ACTIVE_FOR_S) < _ACTIVE_FOR_S
        return self._probed.get(node.id, -LAST_RETRY_S) + self.path(node).probe_interval_s(active)

    def _set(self, node: Node, new: PairPath) -> None:
        old = self.path(node)
        if new == old:
            return
        self._paths[node.id] = new
        if new.attempt != old.attempt and new.endpoint is not None:
            self._resets.add(node.public_key)
            for counters in (self._sent, self._active, self._probe_bytes):
                counters.pop(node.public_key, None)
        elif new.redialled and not old.redialled:
            self._silent_resets.add(node.public_key)
        if new.hears != old.hears or new.phase != old.phase:
            # The other side should learn of it at once, not with the next probe.
            self._probed.pop(node.id, None)
        if old.carries and not new.carries:
            self._send(Left(node.id))
        if new.carries != old.carries:
            log.info("%s: %s", node.name, f"direct, {new.endpoint}" if new.carries else "back through the hub")
            self._prober.path_changed(node.ip)
        if _device_part(new) != _device_part(old):
            self._state.wake()
        self._schedule(node)


def _device_part(path: PairPath) -> tuple[object, ...]:
    """Return the part of a path that the device must follow at once."""
    return path.endpoint, path.carries, path.attempt, path.redialled


def _reachability(node: Node) -> tuple[object, ...]:
    """Return what decides whether a direct path may work now that did not before."""
    return node.endpoints, node.seen, node.online, node.public_key
