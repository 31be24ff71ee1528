"""Keep the tunnels with the hubs: dial and measure them, and report which ones can be used.

`meshray.agent.paths.hubs` decides; this module reads the device and probes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from meshray.agent.paths.hubs import HubChoice, ranked
from meshray.agent.paths.liveness import PAUSE_S, SEVERAL_PAUSE_S, TIMEOUT_S, Liveness
from meshray.agent.paths.mtu import SIZES
from meshray.agent.paths.name_resolution import Names
from meshray.agent.paths.prober import Prober
from meshray.linux import overlay_netns
from meshray.linux.clock import BootSeconds, boot_s
from meshray.model.address import Endpoint
from meshray.model.meshmap import MeshMap
from meshray.model.node import COORDINATOR, Node
from meshray.wireguard.config import DeviceState, is_fresh

log = logging.getLogger(__name__)


class HubMonitor:
    """The hubs from this node's point of view.

    Args:
        own_id: this node, which may be a hub but never its own.
        coordinators: the possible endpoints of the coordinator, beginning with the one that answered last. Its hub is
            there too, whatever the map contains.
        names: resolves the DNS names in the hubs' endpoints.
    """

    def __init__(
        self, mesh_map: MeshMap, own_id: str, coordinators: Callable[[], Sequence[Endpoint]], names: Names
    ) -> None:
        self._own_id = own_id
        self._coordinators = coordinators
        self._names = names
        self._hubs: dict[str, Node] = {}
        self._choices: dict[str, HubChoice] = {}
        self._answering: set[str] = set()
        self._liveness: dict[str, Liveness] = {}
        self._usable: tuple[str, ...] = ()
        self._relays: dict[str, Endpoint] = {}
        self.refresh(mesh_map)

    @property
    def usable(self) -> tuple[str, ...]:
        """The ids of the hubs that answer, best first."""
        return self._usable

    @property
    def tried(self) -> list[Endpoint]:
        """The addresses at which the hubs are dialled."""
        return [endpoint for choice in self._choices.values() for endpoint in choice.candidates]

    @property
    def any_answering(self) -> bool:
        """Whether at least one hub answers."""
        return bool(self._answering)

    def dialled(self, hub_id: str) -> Endpoint | None:
        """Return the hub's own address that is dialled, or would be without a relay."""
        choice = self._choices.get(hub_id)
        return choice.endpoint if choice is not None else None

    def last_handshake(self, observed: DeviceState | None, hub_id: str) -> BootSeconds | None:
        """Return the time of the last handshake with this hub, seconds of the boot clock."""
        hub = self._hubs.get(hub_id)
        peer = observed.peers.get(hub.public_key) if observed is not None and hub is not None else None
        return peer.handshake_at if peer is not None else None

    def liveness(self, hub_id: str) -> Liveness:
        """Return the probes' result for the path to this hub."""
        return self._liveness.get(hub_id, Liveness())

    def refresh(self, mesh_map: MeshMap) -> None:
        """Use the hubs and addresses of a new map."""
        now = boot_s()
        self._hubs = {hub.id: hub for hub in mesh_map.hubs if hub.id != self._own_id}
        self._names.keep(self._hubs)
        self._choices = {
            hub.id: self._choices[hub.id].with_candidates(self._candidates(hub), now)
            if hub.id in self._choices
            else HubChoice.start(self._candidates(hub), self._first_host, now)
            for hub in self._hubs.values()
        }
        self._usable = tuple(hub for hub in self._usable if hub in self._hubs)
        self._liveness = {hub: alive for hub, alive in self._liveness.items() if hub in self._hubs}

    def prefer(self, endpoint: Endpoint, mesh_map: MeshMap) -> None:
        """Use this endpoint of the coordinator: its hub is dialled there next."""
        self.refresh(mesh_map)
        hub = mesh_map.coordinator
        if hub is not None and hub.id in self._choices:
            self._choices = {**self._choices, hub.id: self._choices[hub.id].at(endpoint, boot_s())}

    @property
    def _first_host(self) -> str:
        return next((endpoint.host for endpoint in self._coordinators()), "")

    def _candidates(self, hub: Node) -> list[Endpoint]:
        first = next(iter(self._coordinators()), None)
        if COORDINATOR not in hub.roles or first is None or (first.ip is not None and first.ip.is_loopback):
            return list(hub.endpoints)
        return list(dict.fromkeys((*hub.endpoints, first)))

    def restart_timeout(self) -> None:
        """Give the dialled address time for a new handshake after a key change."""
        now = boot_s()
        self._choices = {hub_id: replace(choice, since=now) for hub_id, choice in self._choices.items()}

    def set_relay(self, hub_id: str, relay: Endpoint | None) -> None:
        """Dial the hub through this local end of a relay; None: at its own addresses again."""
        self._liveness[hub_id] = Liveness()
        if relay is None:
            self._relays.pop(hub_id, None)
        else:
            self._relays[hub_id] = relay

    def observe(self, observed: DeviceState | None) -> None:
        """Record the handshakes; a silent hub is dialled at its next address."""
        now = boot_s()
        handshakes = {hub_id: self.last_handshake(observed, hub_id) for hub_id in self._hubs}
        self._answering = {hub_id for hub_id, last in handshakes.items() if is_fresh(last, now)}
        self._choices = {
            hub_id: choice.step(handshakes[hub_id], now, dead=self.liveness(hub_id).is_dead)
            for hub_id, choice in self._choices.items()
        }
        if len(self._hubs) < 2:
            self._usable = tuple(hub_id for hub_id in self._answering if not self.liveness(hub_id).is_dead)

    def dial(self, observed: DeviceState | None) -> Mapping[str, Endpoint]:
        """Return where the hubs are dialled now, by id. A hub that answers is omitted: WireGuard's is newer."""
        found = {}
        for hub_id, choice in self._choices.items():
            if self._may_keep_endpoint(observed, hub_id):
                continue
            self._names.prepare(hub_id, choice.candidates)
            endpoint = self._relays.get(hub_id) or self.address(hub_id)
            if endpoint is not None:
                found[hub_id] = endpoint
        return found

    def address(self, hub_id: str) -> Endpoint | None:
        """Return the hub's own endpoint that is dialled, with an address in place of a name; None if none is known."""
        endpoint = self.dialled(hub_id)
        found = self._names.address(hub_id, endpoint) if endpoint is not None else None
        if found is not None or endpoint is None or endpoint not in self._coordinators()[:1]:
            return found
        # No name server has answered yet. The endpoint after a name is the address that it had last.
        return next((self._names.address(hub_id, last) for last in self._coordinators()[1:2]), None)

    async def run(self, prober: Prober, changed: Callable[[], None]) -> None:
        """Probe the hubs, and rank them by round trip if there are several, until cancelled."""
        while True:
            hubs = list(self._hubs.values())
            before = self._usable, self._dead
            await asyncio.gather(*(self._probe(prober, hub) for hub in hubs))
            if len(hubs) > 1:
                round_trips = {
                    hub.id: (prober.measured(hub.ip).rtt_ms or 0.0) if self._is_answering(hub.id) else None
                    for hub in hubs
                }
                self._usable = ranked(round_trips, self._usable)
                if self._usable != before[0]:
                    names = [self._hubs[hub].name for hub in self._usable if hub in self._hubs]
                    log.info("hubs: %s", ", ".join(names) or "none answers")
            if (self._usable, self._dead) != before:
                changed()
            any_uncertain = any(self.liveness(hub.id).is_uncertain for hub in hubs)
            await asyncio.sleep(0.0 if any_uncertain else SEVERAL_PAUSE_S if len(hubs) > 1 else PAUSE_S)

    async def _probe(self, prober: Prober, hub: Node) -> None:
        """Run one round: a small or a large probe; after lost packets both, and a request to the machine itself."""
        before, relay = self.liveness(hub.id), self._relays.get(hub.id)
        now = boot_s()
        if before.lost:
            large, small, machine = await asyncio.gather(
                prober.round_trip(hub.ip, TIMEOUT_S, size=SIZES[-1]),
                prober.probe(hub.ip, TIMEOUT_S),
                overlay_netns.machine_answers(hub.ip, TIMEOUT_S),
            )
            # A machine whose agent is gone still forwards. One whose agent answers small probes only is unreachable for
            # everything else.
            answered = large is not None or (small is None and machine)
            late = small is None and self._answered_late(prober, hub, now)
        elif before.wants_large(now):
            large = await prober.round_trip(hub.ip, TIMEOUT_S, size=SIZES[-1])
            # An answer to a small probe that arrives meanwhile proves nothing here; the next round sends both.
            answered, late = large is not None, False
        else:
            large = None
            answered = await prober.probe(hub.ip, TIMEOUT_S) is not None
            late = self._answered_late(prober, hub, now)
        if not prober.is_open or self._relays.get(hub.id) != relay:
            return  # Probes over another transport prove nothing about this one.
        after = before.answered(boot_s(), large=large is not None) if answered or late else before.unanswered()
        self._liveness[hub.id] = after
        if after.is_dead and not before.is_dead:
            log.warning("no data passes to the hub %s", hub.name)
        elif before.is_dead and not after.is_dead:
            log.info("data passes to the hub %s again", hub.name)
            prober.probe_silent_peers()

    def _answered_late(self, prober: Prober, hub: Node, since: float) -> bool:
        """Return whether an answer to an earlier probe came during this round: a slow hub is not dead."""
        ago_s = prober.answered_ago_s(hub.ip)
        return ago_s is not None and boot_s() - ago_s >= since

    @property
    def _dead(self) -> frozenset[str]:
        return frozenset(hub_id for hub_id, alive in self._liveness.items() if alive.is_dead)

    def _is_answering(self, hub_id: str) -> bool:
        """Return whether the last probe, or one of the last few, was answered."""
        alive = self.liveness(hub_id)
        return not alive.is_dead and alive.heard is not None

    def _may_keep_endpoint(self, observed: DeviceState | None, hub_id: str) -> bool:
        """Return whether WireGuard's endpoint is as good as ours: the hub was heard there, without a relay."""
        hub = self._hubs[hub_id]
        peer = observed.peers.get(hub.public_key) if observed is not None else None
        if peer is None or hub_id in self._relays or hub_id not in self._answering or peer.config.endpoint is None:
            return False
        if self.liveness(hub_id).is_dead:
            return False
        ip = peer.config.endpoint.ip
        return ip is not None and not ip.is_loopback
