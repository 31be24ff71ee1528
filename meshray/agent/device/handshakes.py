"""When handshakes happened, by the boot clock (pure).

WireGuard tells the wall clock's time of a peer's last handshake. Whoever sets that clock would make every
handshake look old or yet to come, so each is remembered by the boot clock from when it was first seen.

>>> timed = Handshakes().timed(device.read(), wall_s=1000.0, boot_s=70.0)     # a handshake at 998 by the wall clock
>>> timed.peers[key].heard
68.0
"""

from __future__ import annotations

from dataclasses import replace

from meshray.linux.clock import BootSeconds, UnixSeconds
from meshray.model.keys import PublicKey
from meshray.wireguard.config import DeviceState


class Handshakes:
    """Remembers what each peer's last handshake was by the wall clock, and when that was by the boot clock."""

    def __init__(self) -> None:
        self._seen: dict[PublicKey, tuple[UnixSeconds, BootSeconds]] = {}
        self._looked: BootSeconds | None = None

    def timed(self, state: DeviceState | None, wall_s: UnixSeconds, boot_s: BootSeconds) -> DeviceState | None:
        """The state with the time of each handshake by the boot clock.

        Args:
            state: as the device was just read.
        """
        if state is None:
            self._seen = {}
            return None
        # A handshake that is new since the last look is no older than that look, whatever the wall clock says.
        oldest_s = boot_s - self._looked if self._looked is not None else None
        seen: dict[PublicKey, tuple[UnixSeconds, BootSeconds]] = {}
        for key, peer in state.peers.items():
            if peer.last_handshake is None:
                continue
            known = self._seen.get(key)
            if known is None or known[0] != peer.last_handshake:
                age_s = max(0.0, wall_s - peer.last_handshake)
                age_s = age_s if oldest_s is None else min(age_s, oldest_s)
                known = (peer.last_handshake, BootSeconds(boot_s - age_s))
            seen[key] = known
        self._seen, self._looked = seen, boot_s
        peers = {key: replace(peer, heard=seen[key][1] if key in seen else None) for key, peer in state.peers.items()}
        return replace(state, peers=peers)
