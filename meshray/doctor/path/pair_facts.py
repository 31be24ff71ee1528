"""Which node reaches which, from the facts of all nodes together (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from meshray.doctor.facts import Facts
from meshray.doctor.path.facts import PathFacts, PeerFacts
from meshray.model.node import STATIC
from meshray.model.path import PathKind, Transport

#: The result of one node's UDP to one hub: answered; not answered, but the relay carries it; not answered; not
#: answered, but the loss is on one of the two machines; handshakes pass and data does not.
WORKS, RELAYED, SILENT, LOST_LOCALLY, ONLY_HANDSHAKES = "works", "relayed", "silent", "lost locally", "only handshakes"


@dataclass(frozen=True)
class UdpPath:
    """One node's UDP to one hub.

    Attributes:
        own: observed by the node itself, not by the hub or from the map.
        age_s: seconds since ``state`` was observed, 0 if this run measured it; None: not known. In particular the map
            does not say when the hub saw the node last.
        observed: the observer's facts about the other.
    """

    node: str
    hub: str
    state: str
    endpoint: str
    port: int
    own: bool = False
    age_s: float | None = 0.0
    observed: PeerFacts = field(default_factory=PeerFacts)

    @property
    def passes(self) -> bool:
        """Whether the node's packets arrived at the hub when this was observed."""
        return self.state in (WORKS, ONLY_HANDSHAKES)

    @property
    def is_lost(self) -> bool:
        """Whether the node's packets do not arrive at the hub, or its answers do not come back."""
        return self.state in (SILENT, RELAYED)


def find_witnesses(udp_paths: Sequence[UdpPath]) -> list[UdpPath]:
    """Return the paths to one hub which show that UDP arrives there although that of other nodes is lost.

    An older observation is from the time when all was well: the hub may have failed since. It counts only if it is
    later than the last answer to every node whose UDP is lost.

    >>> silent = UdpPath("w1", "head", SILENT, "", 51888, observed=PeerFacts(unanswered_s=30.0))
    >>> before, after = (UdpPath("w2", "head", WORKS, "", 51888, age_s=age_s) for age_s in (40.0, 20.0))
    >>> find_witnesses([silent, before]), find_witnesses([silent, after]) == [after]
    ([], True)
    """
    silences = [udp.observed.unanswered_s for udp in udp_paths if udp.is_lost and udp.age_s == 0]
    known = [silent_s for silent_s in silences if silent_s is not None]
    # A node whose last answer is not known may have lost it just now.
    shortest_s = min(known) if len(known) == len(silences) and known else 0.0
    return [
        udp for udp in udp_paths if udp.passes and udp.age_s is not None and (not udp.age_s or udp.age_s < shortest_s)
    ]


def nodes_with_paths(facts: Facts) -> Iterator[tuple[str, PathFacts]]:
    """Yield the nodes that reported facts."""
    return ((name, node.path) for name, node in facts.nodes.items() if node.path is not None)


def pairs(facts: Facts) -> Iterator[tuple[str, str, PeerFacts]]:
    """Yield every ordered pair whose first node reported facts, and which has a path."""
    for name, path in nodes_with_paths(facts):
        for peer, observed in path.peers.items():
            if observed.kind not in (None, PathKind.NONE):
                yield name, peer, observed


def find_udp_paths(facts: Facts) -> list[UdpPath]:
    """Yield every node's UDP to every hub, from the node itself, else from the hub, else from the map."""
    if facts.status is None:
        return []
    online = {node.name for node in facts.status.nodes if node.online and node.role != STATIC}
    hubs = {name for name, path in nodes_with_paths(facts) if path.is_hub}
    hubs |= {peer for _, path in nodes_with_paths(facts) for peer, observed in path.peers.items() if observed.is_hub}
    found = []
    for hub in sorted(hubs & online):
        for name in sorted(online - hubs):
            udp_path = _udp(facts, name, hub)
            if udp_path is not None:
                found.append(udp_path)
    return found


def _udp(facts: Facts, name: str, hub: str) -> UdpPath | None:
    own = _path(facts, name)
    if own is not None and own.transport == Transport.WSS:  # It does not matter.
        return None
    for observer, other in ((name, hub), (hub, name)):
        path = _path(facts, observer)
        if path is None or other not in path.peers or (observer == hub and not path.is_hub):
            continue
        peer = path.peers[other]
        if peer.kind == PathKind.HUB:  # It is not a hub for this node.
            return None
        state = _state(
            peer, [observed for one, to in ((name, hub), (hub, name)) if (observed := _observed(facts, one, to))]
        )
        age_s: float | None = 0.0
        if observer == name:
            state, age_s = _own_state(state, peer, path)
        at = path.dialled.get(hub, peer.endpoint)
        return UdpPath(name, hub, state, at, path.port, own=observer == name, age_s=age_s, observed=peer)
    for _, path in nodes_with_paths(facts):
        if own is None and name in path.seen_by_hubs:
            state = WORKS if path.seen_by_hubs[name] else RELAYED
            return UdpPath(name, hub, state, path.dialled.get(hub, ""), path.port, age_s=None)
    return None


def _own_state(state: str, peer: PeerFacts, path: PathFacts) -> tuple[str, float | None]:
    """Return the state of a node's own UDP to a hub, and its age, seconds: the relay hides the present state."""
    if state == SILENT and peer.only_handshakes:
        return ONLY_HANDSHAKES, peer.handshake_age_s
    if state == RELAYED and path.only_handshakes:
        return ONLY_HANDSHAKES, None
    if state == RELAYED and path.udp_limit_kbit_s is not None:
        return WORKS, path.udp_limit_age_s
    return state, 0.0


def _state(peer: PeerFacts, both_sides: list[PeerFacts]) -> str:
    if peer.transport == Transport.WSS:
        return RELAYED
    if peer.transport == Transport.UDP and peer.answers:
        return WORKS
    return LOST_LOCALLY if any(observed.lost_locally for observed in both_sides) else SILENT


def _observed(facts: Facts, name: str, peer: str) -> PeerFacts | None:
    path = _path(facts, name)
    return path.peers.get(peer) if path is not None else None


def _path(facts: Facts, name: str) -> PathFacts | None:
    return facts.nodes[name].path if name in facts.nodes else None


def lossy_leg(facts: Facts, name: str, peer: str, from_loss: float) -> str:
    """Return the lossy leg: one end's own path to a hub that loses as much as the pair's path through a hub."""
    path = facts.nodes[name].path
    if path is None or path.peers[peer].kind != PathKind.HUB:
        return ""
    for end in (name, peer):
        for hub, observed in legs(facts, end):
            if observed.sent and observed.loss >= from_loss:
                return f"{end}–{hub}, which loses {observed.loss:.0%}"
    return ""


def legs(facts: Facts, end: str) -> Iterator[tuple[str, PeerFacts]]:
    """Yield the path of a node to the hubs, from both sides."""
    for name, path in nodes_with_paths(facts):
        if name == end:
            yield from ((hub, observed) for hub, observed in path.peers.items() if observed.is_hub)
        elif path.is_hub and end in path.peers:
            yield name, path.peers[end]
