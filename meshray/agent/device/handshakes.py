"""The times of handshakes by the boot clock (pure).

WireGuard reports a peer's last handshake by the wall clock. Setting that clock would make every handshake look old or
in the future, so each one is recorded by the boot clock when it is first read.

>>> timed = Handshakes().timed(device.read(), wall_s=1000.0, boot_s=70.0)     # a handshake at 998 by the wall clock
>>> timed.peers[key].handshake_at
68.0
"""

from __future__ import annotations

from dataclasses import replace

from meshray.linux.clock import BootSeconds, UnixSeconds
from meshray.model.keys import PublicKey
from meshray.wireguard.config import DeviceState


class Handshakes:
    """Record each peer's last handshake by the wall clock and by the boot clock."""

    def __init__(self) -> None:
        self._recorded: dict[PublicKey, tuple[UnixSeconds, BootSeconds]] = {}
        self._read_at: BootSeconds | None = None

    def timed(self, state: DeviceState | None, wall_s: UnixSeconds, boot_s: BootSeconds) -> DeviceState | None:
        """Return the state with the time of each handshake by the boot clock.

        Args:
            state: the device's state, just read.
        """
        if state is None:
            self._recorded = {}
            return None
        # A handshake that is new since the last read is not older than that read, whatever the wall clock shows.
        oldest_s = boot_s - self._read_at if self._read_at is not None else None
        recorded: dict[PublicKey, tuple[UnixSeconds, BootSeconds]] = {}
        for key, peer in state.peers.items():
            if peer.last_handshake is None:
                continue
            known = self._recorded.get(key)
            if known is None or known[0] != peer.last_handshake:
                age_s = max(0.0, wall_s - peer.last_handshake)
                age_s = age_s if oldest_s is None else min(age_s, oldest_s)
                known = (peer.last_handshake, BootSeconds(boot_s - age_s))
            recorded[key] = known
        self._recorded, self._read_at = recorded, boot_s
        peers = {
            key: replace(peer, handshake_at=recorded[key][1] if key in recorded else None)
            for key, peer in state.peers.items()
        }
        return replace(state, peers=peers)
