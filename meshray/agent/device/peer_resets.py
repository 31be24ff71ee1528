"""Resets of peers, which the desired state cannot express: they make WireGuard act now (pure).

A handshake is repeated every 5 s at most (REKEY_TIMEOUT), but a peer that is removed and added again begins at once.
And wireguard-go continues to send from an address that this machine has lost, until the peer's endpoint is set again. A
NAT that knows this machine's port by its old address maps the port differently for each destination, so a port that is
not fixed by the user is changed as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshray.model.keys import PublicKey
from meshray.wireguard.config import DeviceState
from meshray.wireguard.plan import RemovePeer, SetListenPort, Step, UpdatePeer


class PeerResets:
    """The resets until the device is next reconciled."""

    def __init__(self) -> None:
        self._pending: set[PublicKey] = set()
        self._silent: set[PublicKey] = set()
        self._set_endpoints = False

    def reset(self, keys: Iterable[PublicKey]) -> None:
        """Make these peers send a handshake at once; the plan adds them again."""
        self._pending.update(keys)

    def reset_silent(self, keys: Iterable[PublicKey]) -> None:
        """Do the same for those that have sent no packet yet: the others may be in the middle of a handshake."""
        self._silent.update(keys)

    def send_from_another_address(self) -> None:
        """Reset all peers, because this machine has other addresses."""
        self._set_endpoints = True

    def take(self, observed: DeviceState | None, *, may_change_port: bool) -> list[Step]:
        """Return the steps to take before the plan; each reset is returned once.

        Args:
            may_change_port: neither a user nor a port forwarding relies on this node's port.
        """
        pending, silent, set_endpoints = self._pending, self._silent, self._set_endpoints
        self._pending, self._silent, self._set_endpoints = set(), set(), False
        if observed is None:
            return []
        peers = observed.peers.items()
        pending |= {key for key, peer in peers if key in silent and not peer.rx_bytes}
        steps: list[Step] = [RemovePeer(key) for key, _ in peers if key in pending]
        if set_endpoints:
            steps += [SetListenPort(0)] if may_change_port else []
            steps += [
                UpdatePeer(peer.config, ("endpoint",))
                for key, peer in peers
                if peer.config.endpoint and key not in pending
            ]
        return steps
