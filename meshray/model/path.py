"""The kinds of paths of packets to a peer, and their transports."""

from __future__ import annotations

from enum import Enum
from typing import Literal, get_args

from meshray.errors import UsageError


class PathKind(str, Enum):
    """The first hop of packets to a node. The values are those of ``status --json``."""

    DIRECT = "direct"  #: to the peer's own endpoint
    HUB = "hub"  #: to a hub, which forwards
    SELF = "self"  #: nowhere: it is this node
    NONE = "none"  #: nowhere: no path to the peer is known, or nothing was ever heard on it

    def __str__(self) -> str:
        return self.value


class Transport(str, Enum):
    """The transport of WireGuard's datagrams. The values are those of ``status --json``."""

    UDP = "udp"
    WSS = "wss"  #: to the hub, in a TLS WebSocket

    def __str__(self) -> str:
        return self.value


#: The transports that a node may use to its hub; auto: UDP, and WSS where UDP is blocked.
Mode = Literal["auto", "udp", "wss"]
MODES: tuple[Mode, ...] = get_args(Mode)


def parse_mode(text: str) -> Mode:
    """Return the mode in a text. Raises UsageError if it is not a mode."""
    for mode in MODES:
        if mode == text:
            return mode
    raise UsageError("bad_transport", f"{text[:40]!r} is not a transport", hint="--transport auto, udp or wss")
