"""When a node that stopped answering counts as silent, and when as gone (pure).

    answers ──nothing heard for 4 s, and its machine refuses no connection──► silent ──patience ends──► gone
       ▲                                                                        │  │                     ▲
       └──────────────────────────── heard again ───────────────────────────────┘  └──its processes ended┘
                                                                                      20 s ago

A gap of the network and a machine without power look alike from here: both are silent. The one difference that can be
seen is that a kernel whose processes were killed closes their connections, at the moment at which they fall silent.

    >>> contact = Contact(heard=0.0, known=True).unanswered().unanswered()
    >>> contact.step(now=4.0, patience_s=120).silent
    True
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Each node sends a sign of life to the coordinator's node this often, seconds.
BEAT_S = 1.5
#: After this much silence its machine is asked, once each `ASK_AGAIN_S`, with `ASK_TIMEOUT_S` to answer.
SUSPECT_S = 2.4
ASK_AGAIN_S = 0.75
ASK_TIMEOUT_S = 0.7
#: After so many questions without an answer they come less often.
_FEWER_AFTER = ((8, 5.0), (40, 30.0))
SILENT_S = 4.0
#: Questions in a row without an answer that it takes as well: this node itself may have been busy.
_UNANSWERED = 2
#: A node that has just appeared is still making its tunnel, perhaps by the relay.
_FIRST_SIGN_S = 15.0
#: A connection that a machine closes this soon after its last sign of life was closed because its processes ended. A
#: router that gives up a connection does it later.
_ENDED_WITHIN_S = 5.0
#: Signs of life are told by their age: two ages of one sign differ by what it takes to ask.
_SAME_SIGN_S = 0.2
#: An agent that died is started again within this, by systemd or by an engine of containers.
_COMES_BACK_S = 20.0


@dataclass(frozen=True)
class Contact:
    """What is known of one node's signs of life. Times are of a monotonic clock, seconds.

    Attributes:
        heard: the last sign of life; before the first one, when it was waited for.
        known: whether there was any sign of life at all.
        misses: questions to its machine in a row that got no answer.
        ended: when its processes ended, and it fell silent with that; None: they did not.
        silent: it does not answer over the overlay.
        gone: it will not come back as it was: Ray should run its tasks elsewhere.
    """

    heard: float
    known: bool = False
    misses: int = 0
    ended: float | None = None
    silent: bool = False
    gone: bool = False

    @classmethod
    def suspected(cls, now: float) -> Contact:
        """A node that others call silent: its machine is asked at once."""
        return cls(now - SUSPECT_S, known=True)

    def seen(self, at: float) -> Contact:
        """A sign of life came then; one that is not newer than the last changes nothing.

        The last sign of processes that ended may be told after their end: it does not undo that.
        """
        if at <= self.heard + _SAME_SIGN_S:
            return self
        return Contact(at, known=True, ended=self.ended if self.ended is not None and at <= self.ended else None)

    def unanswered(self) -> Contact:
        """Its machine was asked and did not answer."""
        return replace(self, misses=self.misses + 1)

    def closed(self, now: float) -> Contact:
        """Its machine closed the agent's connection without a goodbye."""
        return replace(self, ended=now if now - self.heard <= _ENDED_WITHIN_S else None)

    def is_suspect(self, now: float) -> bool:
        """Whether its machine should be asked."""
        return now - self.heard >= SUSPECT_S

    @property
    def ask_pause_s(self) -> float:
        """The seconds between two questions to its machine."""
        return max([ASK_AGAIN_S, *(pause_s for misses, pause_s in _FEWER_AFTER if self.misses >= misses)])

    def step(self, now: float, patience_s: float) -> Contact:
        """Time has passed."""
        quiet_s = now - self.heard
        has_ended = self.ended is not None
        wait_s = SILENT_S if self.known or has_ended else _FIRST_SIGN_S
        silent = quiet_s >= wait_s and self.misses >= _UNANSWERED
        gone = silent and (quiet_s >= patience_s or (has_ended and quiet_s >= _COMES_BACK_S))
        return self if (silent, gone) == (self.silent, self.gone) else replace(self, silent=silent, gone=gone)
