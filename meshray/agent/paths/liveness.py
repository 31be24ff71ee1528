"""Whether data passes to a hub, told by probes that must come back (pure).

A handshake proves nothing: networks exist that let WireGuard's handshakes pass and drop its data, in both directions
or in one, from the start or after a while, or all packets that are larger than a handshake.

    >>> hub = Liveness().answered(now=10.0, large=True)
    >>> hub.unanswered().unanswered().is_dead, hub.unanswered().unanswered().unanswered().is_dead
    (False, True)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshray.linux.clock import BootSeconds

#: So many rounds of probes in a row that were not answered are the end of a path.
DEAD_AFTER = 3
#: How long one round waits, seconds. A later answer still counts as one.
TIMEOUT_S = 1.2
#: Pauses between rounds: while all is well, and with several hubs, of which the best is looked for. While a path is in
#: doubt there is none, so a dead one is noticed within 3 + 3 x 1.2 s.
PAUSE_S, SEVERAL_PAUSE_S = 3.0, 2.0
#: Large probes are dear: they come first on each path, then so seldom, and whenever a probe was lost.
LARGE_EVERY_S = 10.0


@dataclass(frozen=True)
class Liveness:
    """What the probes of one hub said.

    Attributes:
        heard: when a probe was last answered over the path in use, seconds of the boot clock; None: none was.
        lost: rounds in a row that were not answered.
        large_due: when a large probe is due, seconds of the boot clock.
    """

    heard: float | None = None
    lost: int = 0
    large_due: float = float("-inf")

    @property
    def is_dead(self) -> bool:
        """Whether no data passes, whatever the handshakes say."""
        return self.lost >= DEAD_AFTER

    @property
    def is_in_doubt(self) -> bool:
        """Whether the next round should not wait."""
        return 0 < self.lost < DEAD_AFTER

    def wants_large(self, now: float) -> bool:
        """Whether the next probe must be as large as the smallest packet size that a path may have."""
        return self.lost > 0 or now >= self.large_due

    def answered(self, now: float, *, large: bool) -> Liveness:
        """A round was answered."""
        return Liveness(now, 0, now + LARGE_EVERY_S if large else self.large_due)

    def unanswered(self) -> Liveness:
        """A round was not answered."""
        return replace(self, lost=self.lost + 1)


def only_handshakes(last_handshake: BootSeconds | None, liveness: Liveness) -> bool:
    """Whether handshakes passed when data did not any more; both times are of the boot clock."""
    if last_handshake is None or not liveness.is_dead:
        return False
    return liveness.heard is None or last_handshake > liveness.heard + 2 * PAUSE_S
