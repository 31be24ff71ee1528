"""The steps for WireGuard peers when a key changes, here or at the other end (pure).

    another node has a new key   its peer takes over the old one's endpoint
    this node has a new key      every peer that it dials is added again: only then is a handshake sent at once
    no answer yet                added again: the other end may learn the new key a moment later

WireGuard itself repeats a handshake each 5 s only (REKEY_TIMEOUT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshray.model.keys import PublicKey
from meshray.model.meshmap import MeshMap
from meshray.wireguard.config import DeviceState, PeerConfig, PeerState
from meshray.wireguard.plan import AddPeer, RemovePeer, Step

#: The delay of the first repetition of a handshake, seconds; it doubles with each further one. The first meets an end
#: that was a moment late, the later ones a slow path.
FIRST_S = 0.5
#: After this many repetitions WireGuard continues alone.
TRIES = 5


class Rekeying:
    """The changes until the device is reconciled, and the handshakes that are awaited."""

    def __init__(self) -> None:
        self._replaced: dict[PublicKey, PublicKey] = {}
        self._own = False
        self._waiting: dict[PublicKey, tuple[int, float]] = {}

    @property
    def is_busy(self) -> bool:
        """Whether the device should be checked often now."""
        return bool(self._replaced or self._own or self._waiting)

    def replaced(self, keys: Mapping[PublicKey, PublicKey]) -> None:
        """Handle new keys of other nodes; by their old keys."""
        self._replaced.update(keys)

    def own_changed(self) -> None:
        """Handle a new key of this node."""
        self._own = True

    def take(self, observed: DeviceState | None, now: float) -> list[Step]:
        """Return the steps to take before the plan, which sets the peers' addresses, keys and keepalives.

        Args:
            now: seconds of a clock that is never set.
        """
        if observed is None:
            return []
        return [*self._replace_peers(observed, now), *self._readd_peers(observed, now), *self._repeat(observed, now)]

    def _replace_peers(self, observed: DeviceState, now: float) -> Iterator[Step]:
        replaced, self._replaced = self._replaced, {}
        for old, new in replaced.items():
            peer = observed.peers.get(old)
            if peer is not None and new not in observed.peers:
                self._waiting[new] = (0, now + FIRST_S)
                yield AddPeer(_bare(new, peer))

    def _readd_peers(self, observed: DeviceState, now: float) -> Iterator[Step]:
        own, self._own = self._own, False
        for key, peer in observed.peers.items():
            if own and peer.config.keepalive_s:
                self._waiting[key] = (0, now + FIRST_S)
                yield RemovePeer(key)
                yield AddPeer(_bare(key, peer))

    def _repeat(self, observed: DeviceState, now: float) -> Iterator[Step]:
        for key, (tries, due) in list(self._waiting.items()):
            if now < due:
                continue
            peer = observed.peers.get(key)
            # A node that is not dialled dials itself: there is nothing to repeat.
            if tries == TRIES or peer is None or peer.handshake_at is not None or not peer.config.keepalive_s:
                del self._waiting[key]
                continue
            self._waiting[key] = (tries + 1, now + FIRST_S * 2 ** (tries + 1))
            yield RemovePeer(key)
            yield AddPeer(_bare(key, peer))


def _bare(key: PublicKey, like: PeerState) -> PeerConfig:
    # Without a keepalive it sends nothing yet: the plan sets the preshared key first, then the keepalive.
    return PeerConfig(key, frozenset(), endpoint=like.config.endpoint)


def new_keys(before: MeshMap, after: MeshMap) -> dict[PublicKey, PublicKey]:
    """Return the nodes' current keys, by their previous ones."""
    pairs = [(before.nodes[key], node) for key, node in after.nodes.items() if key in before.nodes]
    return {old.public_key: new.public_key for old, new in pairs if old.public_key != new.public_key}
