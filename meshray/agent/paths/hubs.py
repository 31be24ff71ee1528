"""Choose the hub that carries the packets of a pair, and the address at which a hub is dialled (pure).

A node has a tunnel with every hub. One of them, its best, has the whole mesh as allowed IPs. WireGuard accepts a packet
only from the peer to which it would send the answer, so both sides of a pair must use the same hub: each publishes the
hubs that it can use, best first, and the pair's hub follows from both lists.

    a: hubs h1, h2 ─┐
                    ├── pair a–b: h2 (place 1 + 0)
    b: hubs h2     ─┘
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from meshray.linux.clock import BootSeconds
from meshray.model.address import Endpoint
from meshray.model.node import Node
from meshray.wireguard.config import is_fresh

#: WireGuard attempts a handshake every 5 s (REKEY_TIMEOUT); the first goes out at once.
PATIENCE_S = 4.0
#: Another hub must be better by this share and these milliseconds to become the best.
BETTER_BY, BETTER_BY_MS = 0.2, 2.0


@dataclass(frozen=True)
class HubChoice:
    """The address of a hub that is dialled now, and since when (seconds of the boot clock).

    A hub may have many: those of its interfaces, a public one that it does not see itself, names. The node begins with
    the one at which the coordinator answered and goes on to the next until a handshake succeeds.
    """

    candidates: tuple[Endpoint, ...]
    index: int
    since: float

    @classmethod
    def start(cls, candidates: Iterable[Endpoint], preferred_host: str, now: float) -> HubChoice:
        """Begin with the candidate at the host where the coordinator answered, if there is one."""
        ordered = tuple(sorted(dict.fromkeys(candidates), key=lambda endpoint: endpoint.host != preferred_host))
        return cls(ordered, 0, now)

    @property
    def endpoint(self) -> Endpoint | None:
        """The address to dial; None if the hub has none."""
        return self.candidates[self.index] if self.candidates else None

    def with_candidates(self, candidates: Iterable[Endpoint], now: float) -> HubChoice:
        """Return the choice for a changed list; the address in use is kept while it is listed."""
        fresh = tuple(dict.fromkeys(candidates))
        if set(fresh) == set(self.candidates):
            return self
        index = fresh.index(self.endpoint) if self.endpoint in fresh else 0
        return HubChoice(fresh, index, now)

    def at(self, endpoint: Endpoint, now: float) -> HubChoice:
        """Return the choice with this address as the dialled one."""
        candidates = (*self.candidates, *([endpoint] if endpoint not in self.candidates else []))
        return HubChoice(candidates, candidates.index(endpoint), now)

    def step(self, last_handshake: BootSeconds | None, now: BootSeconds, *, dead: bool = False) -> HubChoice:
        """Return the choice after reading the device: the next address if this one is silent.

        Args:
            dead: according to probes no data passes, even if handshakes do.
        """
        if is_fresh(last_handshake, now) and not dead:
            return self
        if len(self.candidates) < 2 or now - self.since < PATIENCE_S:
            return self
        return replace(self, index=(self.index + 1) % len(self.candidates), since=now)


def ranked(round_trips: Mapping[str, float | None], before: tuple[str, ...]) -> tuple[str, ...]:
    """Return the hubs that answer, best first.

    Args:
        round_trips: by hub id, milliseconds; None for a hub that does not answer.
        before: the order until now; a hub keeps its place unless another is clearly better.
    """
    alive = {hub: rtt for hub, rtt in round_trips.items() if rtt is not None}
    order = sorted(alive, key=lambda hub: (alive[hub], hub))
    if order and before and before[0] in alive:
        held, best = alive[before[0]], alive[order[0]]
        if best > held * (1 - BETTER_BY) or best > held - BETTER_BY_MS:
            order = [before[0], *(hub for hub in order if hub != before[0])]
    return tuple(order)


def hub_for(me: Node, peer: Node, all_hubs: Iterable[Node], usable: tuple[str, ...]) -> Node | None:
    """Return the hub that carries this pair's packets; both sides compute the same one.

    Args:
        all_hubs: those of the map. The caller finds them once: it asks for every pair of a large mesh.
        usable: the hubs that this node can use now, best first (the map may not show it yet).
    """
    hubs = {hub.id: hub for hub in all_hubs if hub.id not in (me.id, peer.id)}
    own = [hub for hub in (usable or me.hubs) if hub in hubs]
    peer_hubs = [hub for hub in peer.hubs if hub in hubs]
    shared = [hub for hub in own if hub in peer_hubs]
    if shared:
        return hubs[min(shared, key=lambda hub: (own.index(hub) + peer_hubs.index(hub), hub))]
    return next((hubs[hub] for hub in own), next(iter(hubs.values()), None))
