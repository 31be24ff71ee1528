"""What one node finds out about its paths to the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshray.model.path import PathKind

#: Share of a burst's probes from which on TCP slows down.
SOME_LOSS = 0.05
#: Share of lost probes from which on Ray's health checks suffer.
BAD_LOSS = 0.2
#: A handshake that came so much later than the last data shows that handshakes alone pass: before that, both may have
#: ended together between two probes. Seconds; a hub is probed each 3 s.
_LATER_S = 6.0


@dataclass(frozen=True)
class PeerFacts:
    """The way from one node to another, as the first one sees it.

    Attributes:
        kind: with ``transport``, ``endpoint`` and ``reason`` as in `meshray.model.path.Path`; None: not known.
        promised_mtu: what the peer's route lets through, bytes of an inner packet.
        mtu_measured: whether ``promised_mtu`` was found out by trying.
        sent: probes of a short burst, and how many were answered; 0: none were sent.
        rtt_ms: their median.
        took_s: from the first probe to the last answer or its deadline.
        heard_ago_s: since a probe of the peer arrived here; None: none did.
        unanswered_s: since a probe was last answered before that burst, at most since the agent could send any.
        machine_answers: whether the peer's machine refused a connection over the overlay, where no probe was answered.
        sent_on: whether WireGuard sent as much to the peer meanwhile as the probes are; None: no tunnel of its own.
        came_in: the same for what came from the peer.
        full_passes: whether packets of ``promised_mtu`` were answered; ``small_passes``: those of the smallest size.
    """

    is_hub: bool = False
    online: bool = False
    kind: PathKind | None = None
    transport: str = ""
    endpoint: str = ""
    reason: str = ""
    handshake_age_s: float | None = None
    promised_mtu: int | None = None
    mtu_measured: bool = False
    sent: int = 0
    received: int = 0
    rtt_ms: float | None = None
    took_s: float = 0.0
    heard_ago_s: float | None = None
    unanswered_s: float | None = None
    machine_answers: bool | None = None
    sent_on: bool | None = None
    came_in: bool | None = None
    full_passes: bool | None = None
    small_passes: bool | None = None

    @property
    def loss(self) -> float:
        """Share of the burst, 0 to 1."""
        return 1 - self.received / self.sent if self.sent else 0.0

    @property
    def answers(self) -> bool:
        """Whether anything came back."""
        return self.received > 0 or bool(self.machine_answers)

    @property
    def lost_inside(self) -> str:
        """Where probes and answers get lost on this very machine: before or behind WireGuard; empty where they do not,
        or nobody can know."""
        if not self.sent or self.received:
            return ""
        if self.sent_on is False:
            return "before WireGuard has them"
        # The peer's own probes count as well, but those arrive.
        return "behind WireGuard, which had the answers" if self.came_in and not self.heard else ""

    @property
    def only_handshakes(self) -> bool:
        """Whether handshakes pass and data does not."""
        if not self.sent or self.answers or self.handshake_age_s is None or self.unanswered_s is None:
            return False
        return self.handshake_age_s + _LATER_S < self.unanswered_s

    @property
    def heard(self) -> bool:
        """Whether a probe of the peer came while it was asked."""
        return self.heard_ago_s is not None and self.heard_ago_s <= self.took_s


@dataclass(frozen=True)
class PathFacts:
    """Of one node.

    Attributes:
        transport: as asked for: auto, udp or wss.
        port: the mesh's UDP port on hubs.
        addresses: of this machine, as the map has them.
        seen: where this node's WireGuard sees the others, HOST:PORT by name.
        seen_by_hubs: the same as the hubs told the coordinator; "" for a node that is seen nowhere by UDP.
        dialled: where this node dials the hubs, by name.
        rebinds: at a hub: seconds since each change of a node's mapping that was not the node's own, by name.
        keepalive_s: how often a mapping is used at least.
        only_handshakes: this node went to the relay because handshakes passed by UDP and data did not.
        peers: by name.
    """

    transport: str = ""
    is_hub: bool = False
    port: int = 0
    addresses: tuple[str, ...] = ()
    seen: Mapping[str, str] = field(default_factory=dict)
    seen_by_hubs: Mapping[str, str] = field(default_factory=dict)
    dialled: Mapping[str, str] = field(default_factory=dict)
    rebinds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    keepalive_s: int = 0
    only_handshakes: bool = False
    peers: Mapping[str, PeerFacts] = field(default_factory=dict)
