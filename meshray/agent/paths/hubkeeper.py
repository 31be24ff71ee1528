"""Keeps the tunnels with the hubs: dials, measures, and says which of them can be used.

The deciding is in `meshray.agent.paths.hubs`; this looks at the device and probes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace

from meshray.agent.paths.hubs import HubChoice, is_fresh, ranked
from meshray.agent.paths.prober import Prober
from meshray.model.address import Endpoint
from meshray.model.meshmap import MeshMap
from meshray.model.node import Node
from meshray.runtime.clock import boot_s
from meshray.wireguard.device import DeviceState

log = logging.getLogger(__name__)

#: Several hubs are probed this often; so many lost probes in a row are the end of one.
PROBE_INTERVAL_S = 2.0
DEAD_AFTER = 3
_TIMEOUT_S = 1.5


class HubKeeper:
    """The hubs as this node sees them.

    Args:
        own_id: a hub is no hub for itself.
        preferred_host: where the coordinator answered at enrolment.
    """

    def __init__(self, mesh_map: MeshMap, own_id: str, preferred_host: str) -> None:
        self._own_id = own_id
        self._preferred_host = preferred_host
        self._hubs: dict[str, Node] = {}
        self._choices: dict[str, HubChoice] = {}
        self._fresh: set[str] = set()
        self._lost: dict[str, int] = {}
        self._usable: tuple[str, ...] = ()
        self._through: dict[str, Endpoint] = {}
        self.refresh(mesh_map)

    @property
    def usable(self) -> tuple[str, ...]:
        """The ids of the hubs that answer, best first."""
        return self._usable

    @property
    def tried(self) -> list[Endpoint]:
        """By which addresses the hubs are dialled."""
        return [endpoint for choice in self._choices.values() for endpoint in choice.candidates]

    @property
    def any_fresh(self) -> bool:
        """Whether at least one hub can be heard."""
        return bool(self._fresh)

    def dialled(self, hub_id: str) -> Endpoint | None:
        """The hub's own address that is dialled, or would be without a relay."""
        choice = self._choices.get(hub_id)
        return choice.endpoint if choice is not None else None

    def last_heard(self, observed: DeviceState | None, hub_id: str) -> float | None:
        """The last handshake with this hub, seconds of the boot clock."""
        hub = self._hubs.get(hub_id)
        peer = observed.peers.get(hub.public_key) if observed is not None and hub is not None else None
        return peer.last_handshake if peer is not None else None

    def refresh(self, mesh_map: MeshMap) -> None:
        """Takes over the hubs and addresses of a new map."""
        now = boot_s()
        self._hubs = {hub.id: hub for hub in mesh_map.hubs if hub.id != self._own_id}
        self._choices = {
            hub.id: self._choices[hub.id].with_candidates(hub.endpoints, now)
            if hub.id in self._choices
            else HubChoice.start(hub.endpoints, self._preferred_host, now)
            for hub in self._hubs.values()
        }
        self._usable = tuple(hub for hub in self._usable if hub in self._hubs)

    def begin_again(self) -> None:
        """A key was changed: the address that is dialled gets its time for a new handshake."""
        now = boot_s()
        self._choices = {hub_id: replace(choice, since=now) for hub_id, choice in self._choices.items()}

    def go_through(self, hub_id: str, relay: Endpoint | None) -> None:
        """The hub is dialled through this local end of a relay; None: by its own addresses again."""
        if relay is None:
            self._through.pop(hub_id, None)
        else:
            self._through[hub_id] = relay

    def look(self, observed: DeviceState | None) -> None:
        """Takes note of the handshakes; a hub that is silent is dialled at its next address."""
        now = boot_s()
        heard = {hub_id: self.last_heard(observed, hub_id) for hub_id in self._hubs}
        self._fresh = {hub_id for hub_id, last in heard.items() if is_fresh(last, now)}
        self._choices = {hub_id: choice.step(heard[hub_id], now) for hub_id, choice in self._choices.items()}
        if len(self._hubs) < 2:
            self._usable = tuple(self._fresh)

    async def dial(self, observed: DeviceState | None) -> Mapping[str, Endpoint]:
        """Where the hubs are dialled now, by id. A hub that can be heard is not named: WireGuard knows better."""
        found = {}
        for hub_id, choice in self._choices.items():
            endpoint = self._through.get(hub_id) or await resolved(choice.endpoint)
            if endpoint is not None and not self._may_keep(observed, hub_id):
                found[hub_id] = endpoint
        return found

    async def run(self, prober: Prober, changed: Callable[[], None]) -> None:
        """Ranks the hubs by round trip where there are several, until cancelled."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            if len(self._hubs) < 2:
                continue
            answers = await asyncio.gather(*(prober.probe(hub.ip, _TIMEOUT_S) for hub in self._hubs.values()))
            for hub_id, answer in zip(list(self._hubs), answers, strict=False):
                self._lost[hub_id] = 0 if answer is not None else self._lost.get(hub_id, DEAD_AFTER) + 1
            round_trips = {
                hub.id: (prober.measured(hub.ip).rtt_ms or 0.0) if self._lost.get(hub.id, 0) < DEAD_AFTER else None
                for hub in self._hubs.values()
            }
            usable = ranked(round_trips, self._usable)
            if usable != self._usable:
                log.info("hubs: %s", ", ".join(self._hubs[hub].name for hub in usable) or "none answers")
                self._usable = usable
                changed()

    def _may_keep(self, observed: DeviceState | None, hub_id: str) -> bool:
        """Whether the endpoint that WireGuard has is as good as ours: the hub was heard there, without a relay."""
        hub = self._hubs[hub_id]
        peer = observed.peers.get(hub.public_key) if observed is not None else None
        if peer is None or hub_id in self._through or hub_id not in self._fresh or peer.config.endpoint is None:
            return False
        ip = peer.config.endpoint.ip
        return ip is not None and not ip.is_loopback


async def resolved(endpoint: Endpoint | None) -> Endpoint | None:
    """The endpoint with an address in place of a name; None where the name does not resolve now."""
    if endpoint is None or endpoint.ip is not None:
        return endpoint
    try:
        found = await asyncio.get_running_loop().getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)
    except OSError:
        log.warning("the hub's name %s does not resolve", endpoint.host)
        return None
    return Endpoint(str(found[0][4][0]), endpoint.port)
