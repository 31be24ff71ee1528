"""How packets to one peer travel now."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

from meshray.errors import UsageError
from meshray.model.address import Endpoint


class PathKind(str, Enum):
    """Where packets to a node go first. The values are those of ``status --json``."""

    DIRECT = "direct"  #: to the peer's own endpoint
    HUB = "hub"  #: to a hub, which forwards
    SELF = "self"  #: nowhere: it is this node
    NONE = "none"  #: nowhere: no path to the peer is known, or nothing was ever heard on it

    def __str__(self) -> str:
        return self.value


class Transport(str, Enum):
    """What carries WireGuard's datagrams. The values are those of ``status --json``."""

    UDP = "udp"
    WSS = "wss"  #: to the hub, in a TLS WebSocket

    def __str__(self) -> str:
        return self.value


#: Which transports a node may use to its hub; auto: UDP, and WSS where UDP is blocked.
Mode = Literal["auto", "udp", "wss"]
MODES: tuple[Mode, ...] = get_args(Mode)


def parse_mode(text: str) -> Mode:
    """Return the mode that a text names. Raises UsageError where it names none."""
    for mode in MODES:
        if mode == text:
            return mode
    raise UsageError("bad_transport", f"{text[:40]!r} is no transport", hint="--transport auto, udp or wss")


@dataclass(frozen=True)
class Path:
    """One peer's path. A number that was not measured yet is None.

    Attributes:
        transport: None where there is no path.
        endpoint: where the datagrams go: the peer's, or the hub's.
        rtt_ms: median of the last probes' round trips over the overlay, milliseconds.
        loss: share of the last probes that were not answered, 0 to 1.
        mtu: of the overlay interface, bytes.
        handshake_age_s: since the last handshake with the peer or hub, seconds.
        throughput_mbit_s: what a short train of packets told when the path was new: an order of magnitude.
        reason: why the path is not direct; empty where it is, or is being tried.
        rx_bytes, tx_bytes: of the peer or hub, since the device was made.
    """

    kind: PathKind
    transport: Transport | None = None
    endpoint: Endpoint | None = None
    rtt_ms: float | None = None
    loss: float | None = None
    mtu: int | None = None
    handshake_age_s: float | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    throughput_mbit_s: float | None = None
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """The ``path`` object of ``status --json``."""
        return {
            "kind": self.kind.value,
            "transport": self.transport.value if self.transport else None,
            "endpoint": str(self.endpoint) if self.endpoint else None,
            "rtt_ms": self.rtt_ms,
            "loss": self.loss,
            "mtu": self.mtu,
            "handshake_age_s": self.handshake_age_s,
            "rx_bytes": self.rx_bytes,
            "tx_bytes": self.tx_bytes,
            "throughput_mbit_s": self.throughput_mbit_s,
            "reason": self.reason,
        }
