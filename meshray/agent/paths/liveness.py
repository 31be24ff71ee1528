"""Detect whether data passes to a hub, by probes that must be answered (pure).

A handshake proves nothing: some networks let WireGuard's handshakes pass and drop its data, in one or both directions,
from the start or after a while, or all packets that are larger than a handshake.

    >>> hub = Liveness().answered(now=10.0, large=True)
    >>> hub.unanswered().unanswered().is_dead, hub.unanswered().unanswered().unanswered().is_dead
    (False, True)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshray.linux.clock import BootSeconds

#: This many unanswered rounds of probes in a row mean that the path has failed.
DEAD_AFTER = 3
#: The timeout of one round, seconds. A later answer still counts as one.
TIMEOUT_S = 1.2
#: The pauses between rounds: normally, and with several hubs, of which the best is sought. Without a pause while a path
#: is in doubt, a dead one is detected within 3 + 3 x 1.2 s.
PAUSE_S, SEVERAL_PAUSE_S = 3.0, 2.0
#: The interval of large probes, which are expensive: they come first on each path, and whenever a probe was lost.
LARGE_EVERY_S = 10.0


@dataclass(frozen=True)
class Liveness:
    """The results of one hub's probes.

    Attributes:
        heard: when a probe was last answered over the path in use, seconds of the boot clock; None: never.
        lost: unanswered rounds in a row.
        large_due: when a large probe is due, seconds of the boot clock.
    """

    heard: float | None = None
    lost: int = 0
    large_due: float = float("-inf")

    @property
    def is_dead(self) -> bool:
        """Whether no data passes, even if handshakes succeed."""
        return self.lost >= DEAD_AFTER

    @property
    def is_uncertain(self) -> bool:
        """Whether the next round should follow without a pause."""
        return 0 < self.lost < DEAD_AFTER

    def wants_large(self, now: float) -> bool:
        """Return whether the next probe must be as large as the smallest packet size that a path may have."""
        return self.lost > 0 or now >= self.large_due

    def answered(self, now: float, *, large: bool) -> Liveness:
        """Record that a round was answered."""
        return Liveness(now, 0, now + LARGE_EVERY_S if large else self.large_due)

    def unanswered(self) -> Liveness:
        """Record that a round was not answered."""
        return replace(self, lost=self.lost + 1)


def only_handshakes(last_handshake: BootSeconds | None, liveness: Liveness) -> bool:
    """Return whether handshakes still passed when data did not; both times are of the boot clock."""
    if last_handshake is None or not liveness.is_dead:
        return False
    return liveness.heard is None or last_handshake > liveness.heard + 2 * PAUSE_S
