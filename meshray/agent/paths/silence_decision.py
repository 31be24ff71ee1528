"""Decide when a node that stopped answering counts as silent, and when as gone (pure).

    answers ──nothing heard for 4 s, and its machine refuses no connection──► silent ──patience ends──► gone
       ▲                                                                        │  │                     ▲
       └──────────────────────────── heard again ───────────────────────────────┘  └──its processes ended┘
                                                                                      20 s ago

A network outage and a machine without power look alike from here: both are silent. Only killed processes can be
distinguished: their kernel closes their connections when they fall silent.

    >>> contact = Contact(heard=0.0, known=True).unanswered().unanswered()
    >>> contact.step(now=4.0, patience_s=120).silent
    True
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: The interval of each node's signs of life to the coordinator's node, seconds, in a mesh of up to 150 nodes.
BEAT_S = 1.5
#: The most signs of life that the coordinator's node receives in a second: each takes it about 0.15 ms, and its engine
#: half of that.
BEATS_PER_S = 100
#: After this much silence its machine is probed, every `MACHINE_PROBE_S`, with `MACHINE_TIMEOUT_S` to answer.
SUSPECT_S = 2.4
MACHINE_PROBE_S = 0.75
MACHINE_TIMEOUT_S = 0.7
#: After this many unanswered probes, the pause between them, seconds.
_FEWER_AFTER = ((8, 5.0), (40, 30.0))
SILENT_S = 4.0
#: A node is silent only after this many unanswered probes in a row as well: this node itself may have been busy.
_UNANSWERED = 2
#: A node that has just appeared is still establishing its tunnel, perhaps through the relay.
_FIRST_CONTACT_S = 15.0
#: A connection that a machine closes this soon after its last sign of life was closed because its processes ended,
#: seconds. A router that drops a connection does so later.
_ENDED_WITHIN_S = 5.0
#: Signs of life are reported by their age: two ages of one sign differ by the time that a probe takes.
_SAME_SIGN_S = 0.2
#: A path that is back is used this much later, seconds: the engine sends a handshake every 5 s (REKEY_TIMEOUT of
#: WireGuard), the next sign of life takes `BEAT_S`, and a busy machine adds to both. An outage as long as the patience
#: must end as a gap.
_RECOVERY_S = 8.0
#: An agent that died is started again within this time, by systemd or by a container engine.
_RESTART_S = 20.0


@dataclass(frozen=True)
class Rhythm:
    """How often the nodes of a mesh send signs of life. All times below are longer by what a beat is longer.

    >>> Rhythm.of(100).beat_s, Rhythm.of(1000).beat_s
    (1.5, 10.0)

    Attributes:
        beat_s: the interval, seconds.
    """

    beat_s: float = BEAT_S

    @classmethod
    def of(cls, nodes: int) -> Rhythm:
        """Return the rhythm of a mesh of so many nodes."""
        return cls(max(BEAT_S, nodes / BEATS_PER_S))

    def after_s(self, seconds: float) -> float:
        """Return a time of a mesh of few nodes in this rhythm, seconds."""
        return seconds + self.beat_s - BEAT_S


FEW = Rhythm()


@dataclass(frozen=True)
class Contact:
    """One node's signs of life. Times are of a monotonic clock, seconds.

    Attributes:
        heard: the last sign of life; before the first one, the beginning of the wait.
        known: whether there was any sign of life at all.
        misses: unanswered probes of its machine in a row.
        ended: when its processes ended and it fell silent; None: they did not end.
        silent: it does not answer over the overlay.
        gone: it will not return as it was: Ray should run its tasks elsewhere.
    """

    heard: float
    known: bool = False
    misses: int = 0
    ended: float | None = None
    silent: bool = False
    gone: bool = False

    @classmethod
    def suspected(cls, now: float, rhythm: Rhythm = FEW) -> Contact:
        """Suspect a node that others report as silent: its machine is probed at once."""
        return cls(now - rhythm.after_s(SUSPECT_S), known=True)

    def answered(self, at: float) -> Contact:
        """Record a sign of life at that time; one that is not newer than the last changes nothing.

        The last sign of ended processes may be reported after their end; it does not undo that.
        """
        if at <= self.heard + _SAME_SIGN_S:
            return self
        return Contact(at, known=True, ended=self.ended if self.ended is not None and at <= self.ended else None)

    def unanswered(self) -> Contact:
        """Record that its machine did not answer a probe."""
        return replace(self, misses=self.misses + 1)

    def closed(self, now: float, rhythm: Rhythm = FEW) -> Contact:
        """Record that its machine closed the agent's connection without a goodbye."""
        return replace(self, ended=now if now - self.heard <= rhythm.after_s(_ENDED_WITHIN_S) else None)

    def is_suspect(self, now: float, rhythm: Rhythm = FEW) -> bool:
        """Return whether to probe its machine."""
        return now - self.heard >= rhythm.after_s(SUSPECT_S)

    @property
    def probe_pause_s(self) -> float:
        """The seconds between two probes of its machine."""
        return max([MACHINE_PROBE_S, *(pause_s for misses, pause_s in _FEWER_AFTER if self.misses >= misses)])

    def step(self, now: float, patience_s: float, rhythm: Rhythm = FEW) -> Contact:
        """Advance the time."""
        quiet_s = now - self.heard
        has_ended = self.ended is not None
        wait_s = rhythm.after_s(SILENT_S if self.known or has_ended else _FIRST_CONTACT_S)
        silent = quiet_s >= wait_s and self.misses >= _UNANSWERED
        gone = silent and (
            quiet_s >= rhythm.after_s(patience_s + _RECOVERY_S) or (has_ended and quiet_s >= rhythm.after_s(_RESTART_S))
        )
        return self if (silent, gone) == (self.silent, self.gone) else replace(self, silent=silent, gone=gone)
