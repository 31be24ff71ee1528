"""The facts about one node's paths to the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshray.model.path import PathKind

#: The share of lost probes of a burst from which TCP slows down.
SOME_LOSS = 0.05
#: The share of lost probes from which Ray's health checks suffer.
BAD_LOSS = 0.2
#: Below this rate a chunk of an object (5 MiB, object_manager_default_chunk_size of ray_config_def.h) takes longer than
#: the 120 s of an outage that jobs survive, kbit/s.
LEAST_KBIT_S = 350.0
#: Below this rate such a chunk takes 42 s, kbit/s.
SLOW_KBIT_S = 1000.0
#: The share of a long train of packets that a limit of UDP drops at least.
LIMITED_LOSS = 0.2
#: A handshake this much later than the last data shows that only handshakes pass: below that, both may have ended
#: together between two probes. Seconds; a hub is probed every 3 s.
_LATER_S = 6.0


@dataclass(frozen=True)
class PeerFacts:
    """The path from one node to another, from the first one's point of view.

    Attributes:
        kind: with ``transport``, ``endpoint`` and ``reason`` as in `meshray.model.path.Path`; None: not known.
        promised_mtu: the MTU of the peer's route, bytes of an inner packet.
        mtu_measured: whether ``promised_mtu`` was measured.
        sent: probes of a short burst, with the number of answers; 0: none were sent.
        rtt_ms: their median.
        took_s: seconds from the first probe to the last answer or its deadline.
        heard_ago_s: seconds since a probe of the peer arrived here; None: none did.
        unanswered_s: seconds since a probe was last answered before that burst, at most since the agent could send any.
        machine_answers: whether the peer's machine refused a connection over the overlay although no probe was
            answered.
        sent_on: whether WireGuard sent at least the probes' bytes to the peer meanwhile; None: no tunnel of its own.
        came_in: the same for bytes received from the peer.
        rate_kbit_s: the rate of the path to the peer, kbit/s; None: faster than can be measured, or not known.
        train_sent: packets of a longer train of full size, with the number of answers and their rate; 0: none was sent.
        policed: packets of that train were dropped without delay, so that something limits the rate of UDP.
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
    rate_kbit_s: float | None = None
    train_sent: int = 0
    train_received: int = 0
    train_kbit_s: float = 0.0
    policed: bool = False
    full_passes: bool | None = None
    small_passes: bool | None = None

    @property
    def loss(self) -> float:
        """The share of lost probes of the burst, 0 to 1."""
        return 1 - self.received / self.sent if self.sent else 0.0

    @property
    def answers(self) -> bool:
        """Whether any answer came."""
        return self.received > 0 or bool(self.machine_answers)

    @property
    def lost_locally(self) -> str:
        """Where on this machine probes and answers get lost: before or after WireGuard; empty: elsewhere or unknown."""
        if not self.sent or self.received:
            return ""
        if self.sent_on is False:
            return "before WireGuard has them"
        # The peer's own probes are counted as well, but those do arrive.
        return "behind WireGuard, which had the answers" if self.came_in and not self.received_probe else ""

    @property
    def only_handshakes(self) -> bool:
        """Whether handshakes pass and data does not."""
        if not self.sent or self.answers or self.handshake_age_s is None or self.unanswered_s is None:
            return False
        return self.handshake_age_s + _LATER_S < self.unanswered_s

    @property
    def received_probe(self) -> bool:
        """Whether a probe of the peer came during the burst."""
        return self.heard_ago_s is not None and self.heard_ago_s <= self.took_s


@dataclass(frozen=True)
class PathFacts:
    """The path facts of one node.

    Attributes:
        transport: the user's choice: auto, udp or wss.
        port: the mesh's UDP port on hubs.
        addresses: this machine's addresses in the map.
        seen: the endpoints of the others in this node's WireGuard, HOST:PORT by name.
        seen_by_hubs: the same as the hubs reported to the coordinator; "" for a node without UDP to any hub.
        dialled: the endpoints at which this node dials the hubs, by name.
        rebinds: on a hub: seconds since each change of a node's NAT mapping that the node did not cause, by name.
        keepalive_s: the longest interval between uses of a mapping, seconds.
        only_handshakes: this node switched to the relay because handshakes passed by UDP and data did not.
        udp_limit_kbit_s: this node switched to the relay because UDP is limited to this rate, kbit/s; None: it did not.
        udp_limit_age_s: seconds since that was measured.
        relay_kbit_s: the rate that the relay carried then, at least, kbit/s.
        peers: the peers' facts, by name.
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
    udp_limit_kbit_s: float | None = None
    udp_limit_age_s: float | None = None
    relay_kbit_s: float | None = None
    peers: Mapping[str, PeerFacts] = field(default_factory=dict)
