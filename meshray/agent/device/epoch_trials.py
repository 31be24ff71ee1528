"""Find the epoch of a pair when one end could not learn which epoch the other holds (pure).

Both ends compute the epoch from the map. A node without a connection to the coordinator has an older map, so its end
may use another epoch than this one, and the handshakes fail. After one slot without an answer, this end tries each
epoch that it holds in turn, for some minutes. One end changes with each slot; the other changes so seldom that the
first has tried all of its own in between. So they meet, whichever epochs each of them holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from meshray.linux.clock import BootSeconds
from meshray.model.node import STATIC, Node
from meshray.wireguard.config import DeviceState

#: A session without a newer handshake than this is no longer renewed, seconds. WireGuard renews it after 120 s and
#: gives it up after 180 s.
STALE_S = 140.0
#: Each epoch is tried for this long, seconds: WireGuard repeats a handshake every 5 s.
SLOT_S = 10.0
#: One end keeps an epoch for this many slots, in which the other tries all of its own. Nodes hold fewer.
HELD_SLOTS = 4
#: A node that has not answered for this long is down, seconds.
GIVE_UP_S = 300.0


class EpochTrials:
    """The current trials.

    Attributes:
        tried: the epoch to use instead of the map's, by node id.
    """

    def __init__(self, tried: dict[str, int]) -> None:
        self.tried = tried
        self._since: dict[str, float] = {}

    def choose(
        self,
        me: Node,
        others: Iterable[Node],
        device: DeviceState,
        now: BootSeconds,
        *,
        held: Collection[int],
    ) -> bool:
        """Choose the epoch to try with each of the other nodes; return whether a choice changed.

        Args:
            others: the nodes that may have an older map, or all if this node's own is older.
            now: seconds of the boot clock.
            held: the epochs that this node holds.
        """
        before = dict(self.tried)
        uncertain = {node.id: node for node in others if STATIC not in node.roles and len(held) > 1}
        for key in [key for key in (*self.tried, *self._since) if key not in uncertain]:
            self.tried.pop(key, None)
            self._since.pop(key, None)
        for key, node in uncertain.items():
            peer = device.peers.get(node.public_key)
            if peer is None:
                continue
            if peer.handshake_at is not None and now - peer.handshake_at < STALE_S:
                self._since.pop(key, None)
                continue
            waited_s = now - self._since.setdefault(key, now)
            if SLOT_S <= waited_s < GIVE_UP_S:
                self.tried[key] = _epoch_of_slot(me, node, now, sorted(held, reverse=True))
            elif waited_s >= GIVE_UP_S:
                self.tried.pop(key, None)
        return self.tried != before


def _epoch_of_slot(me: Node, other: Node, now: float, epochs: list[int]) -> int:
    slots = int(now / SLOT_S)
    return epochs[(slots if me.ip < other.ip else slots // HELD_SLOTS) % len(epochs)]
