"""The endpoints at which a hub observes the nodes, as reports to the coordinator (pure).

A hub's WireGuard knows the mapped address and port of the sockets that the nodes use, which another node must dial to
pass the same NAT.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshray.model.node import STATIC, Node
from meshray.protocol.connection import Seen
from meshray.protocol.fields import MAX_ITEMS
from meshray.wireguard.config import DeviceState, PeerState


class ObservedEndpoints:
    """The last reports, so that only changes are reported."""

    def __init__(self) -> None:
        self._reported: dict[str, str] = {}

    def changes(self, nodes: Iterable[Node], observed: DeviceState, is_connected: bool) -> Iterator[Seen]:
        """Yield the messages to send now; without a coordinator everything is sent again later."""
        if not is_connected:
            self._reported = {}
            return
        endpoints = {
            node.id: _endpoint_text(observed.peers.get(node.public_key)) for node in nodes if STATIC not in node.roles
        }
        changed = [(key, text) for key, text in endpoints.items() if self._reported.get(key, "") != text]
        self._reported = endpoints
        for start in range(0, len(changed), MAX_ITEMS):
            yield Seen(dict(changed[start : start + MAX_ITEMS]))


def _endpoint_text(peer: PeerState | None) -> str:
    endpoint = peer.config.endpoint if peer is not None else None
    # Packets of the relay come from this machine's own address: no other node can use it.
    if endpoint is None or endpoint.ip is None or endpoint.ip.is_loopback:
        return ""
    return str(endpoint)
