"""What no desired state tells: peers whose WireGuard must be nudged into doing something now (pure).

A handshake is repeated every 5 s at most (REKEY_TIMEOUT), but a peer that is made anew begins at once. And wireguard-go
goes on to send from an address that this machine has lost, until it is told the peer's endpoint again. A NAT that
knows this machine's port by its old address maps the same port differently for each destination, so a port
that nobody was told to keep is changed as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshray.model.keys import PublicKey
from meshray.wireguard.config import DeviceState
from meshray.wireguard.plan import RemovePeer, SetListenPort, Step, UpdatePeer


class PeerResets:
    """Collects them until the device is looked at next."""

    def __init__(self) -> None:
        self._anew: set[PublicKey] = set()
        self._silent: set[PublicKey] = set()
        self._again = False

    def make_anew(self, keys: Iterable[PublicKey]) -> None:
        """These peers must send a handshake at once; the plan adds them again."""
        self._anew.update(keys)

    def make_silent_anew(self, keys: Iterable[PublicKey]) -> None:
        """The same for those of them from which not one packet has come: others may be in the middle of a handshake."""
        self._silent.update(keys)

    def send_from_another_address(self) -> None:
        """This machine has other addresses."""
        self._again = True

    def take(self, observed: DeviceState | None, *, may_change_port: bool) -> list[Step]:
        """The steps to take before the plan; each nudge is given once.

        Args:
            may_change_port: no user and no port forwarding relies on this node's port.
        """
        anew, silent, again = self._anew, self._silent, self._again
        self._anew, self._silent, self._again = set(), set(), False
        if observed is None:
            return []
        peers = observed.peers.items()
        anew |= {key for key, peer in peers if key in silent and not peer.rx_bytes}
        steps: list[Step] = [RemovePeer(key) for key, _ in peers if key in anew]
        if again:
            steps += [SetListenPort(0)] if may_change_port else []
            steps += [
                UpdatePeer(peer.config, ("endpoint",))
                for key, peer in peers
                if peer.config.endpoint and key not in anew
            ]
        return steps
