"""What WireGuard's peers need when a key changes, here or at the other end (pure).

    another node has a new key   its peer takes over the old one's endpoint
    this node has a new key      every peer that it dials is made anew: only then a handshake is sent at once
    no answer yet                made anew again: the other end may hear of the new key a moment later

WireGuard itself repeats a handshake each 5 s only (REKEY_TIMEOUT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshray.model.keys import PublicKey
from meshray.model.meshmap import MeshMap
from meshray.wireguard.config import DeviceState, PeerConfig, PeerState
from meshray.wireguard.plan import AddPeer, RemovePeer, Step

#: The first repetition of a handshake comes after this, each further one after twice the time, seconds: the first
#: meets an end that was a moment late, the later ones a long way.
FIRST_S = 0.5
#: After so many WireGuard repeats by itself.
TRIES = 5


class Rekeying:
    """Collects the changes until the device is looked at, and waits for the handshakes."""

    def __init__(self) -> None:
        self._replaced: dict[PublicKey, PublicKey] = {}
        self._own = False
        self._waiting: dict[PublicKey, tuple[int, float]] = {}

    @property
    def is_busy(self) -> bool:
        """Whether the device should be looked at often now."""
        return bool(self._replaced or self._own or self._waiting)

    def replaced(self, keys: Mapping[PublicKey, PublicKey]) -> None:
        """Other nodes have new keys; by the old ones."""
        self._replaced.update(keys)

    def own_changed(self) -> None:
        """This node has a new key."""
        self._own = True

    def take(self, observed: DeviceState | None, now: float) -> list[Step]:
        """The steps to take before the plan, which gives the peers their addresses, keys and keepalives.

        Args:
            now: of a clock that is not set, seconds.
        """
        if observed is None:
            return []
        return [*self._take_replaced(observed, now), *self._take_own(observed, now), *self._again(observed, now)]

    def _take_replaced(self, observed: DeviceState, now: float) -> Iterator[Step]:
        replaced, self._replaced = self._replaced, {}
        for old, new in replaced.items():
            peer = observed.peers.get(old)
            if peer is not None and new not in observed.peers:
                self._waiting[new] = (0, now + FIRST_S)
                yield AddPeer(_bare(new, peer))

    def _take_own(self, observed: DeviceState, now: float) -> Iterator[Step]:
        own, self._own = self._own, False
        for key, peer in observed.peers.items():
            if own and peer.config.keepalive_s:
                self._waiting[key] = (0, now + FIRST_S)
                yield RemovePeer(key)
                yield AddPeer(_bare(key, peer))

    def _again(self, observed: DeviceState, now: float) -> Iterator[Step]:
        for key, (tries, due) in list(self._waiting.items()):
            if now < due:
                continue
            peer = observed.peers.get(key)
            # Who is not dialled dials: nothing to repeat.
            if tries == TRIES or peer is None or peer.heard is not None or not peer.config.keepalive_s:
                del self._waiting[key]
                continue
            self._waiting[key] = (tries + 1, now + FIRST_S * 2 ** (tries + 1))
            yield RemovePeer(key)
            yield AddPeer(_bare(key, peer))


def _bare(key: PublicKey, like: PeerState) -> PeerConfig:
    # Without a keepalive it sends nothing yet: the plan sets the preshared key first, then the keepalive.
    return PeerConfig(key, frozenset(), endpoint=like.config.endpoint)


def new_keys(before: MeshMap, after: MeshMap) -> dict[PublicKey, PublicKey]:
    """The keys that nodes have now, by those that they had."""
    pairs = [(before.nodes[key], node) for key, node in after.nodes.items() if key in before.nodes]
    return {old.public_key: new.public_key for old, new in pairs if old.public_key != new.public_key}
