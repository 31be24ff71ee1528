"""Decide when to start, restart, await and stop Ray (pure).

    >>> decide(Situation(head=False, running=False, joined="", instance="", head_answers=False), Backoff(), now=0)
    Wait(reason="the head's Ray is down", delay_s=1.0)

A head starts Ray whenever it does not run. A worker follows its head: it starts when the head's Ray answers, and
restarts when the head has another Ray than the one that it joined. While the head is unreachable a running worker
continues, because Ray itself waits for some minutes. A drained worker continues until its Ray has ended, and then
rests.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
#: After a life of this length, the next death counts as the first one.
SOUND_LIFE_S = 60.0
#: The interval at which a worker checks whether the head's Ray answers.
HEAD_POLL_S = 0.1
#: The interval at which a steady state is checked.
STEADY_S = 1.0


@dataclass(frozen=True)
class Situation:
    """The current state.

    Attributes:
        joined: the instance of the head's Ray that the running Ray joined; on a head, its own instance.
        instance: the instance that the head reports now, empty while its Ray is down. Ignored on a head.
        head_answers: whether the head's Ray accepts connections over the overlay. Ignored on a head.
        drained: whether a user drained this node.
        has_token: whether this node has the token of the head's Ray. Ignored on a head.
    """

    head: bool
    running: bool
    joined: str
    instance: str
    head_answers: bool
    drained: bool = False
    has_token: bool = True


@dataclass(frozen=True)
class Backoff:
    """How long to wait after Ray died, in the clock of ``now``.

    Attributes:
        deaths: the number of successive deaths soon after a start.
        not_before: the earliest time of the next start.
    """

    deaths: int = 0
    not_before: float = 0.0

    def after_death(self, *, started: float | None, now: float) -> Backoff:
        """Return the backoff after a death. ``started`` is None if the start of an adopted Ray is unknown."""
        sound = started is None or now - started >= SOUND_LIFE_S
        deaths = 1 if sound else self.deaths + 1
        # The exponent is bounded, so that a week of failures does not overflow.
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(deaths - 1, 10))
        return Backoff(deaths, now + delay)


@dataclass(frozen=True)
class Keep:
    """Ray must keep running."""


@dataclass(frozen=True)
class Start:
    """Start Ray now."""


@dataclass(frozen=True)
class Stop:
    """Stop the running Ray, then decide again at once."""

    reason: str


@dataclass(frozen=True)
class Wait:
    """Do nothing; decide again after ``delay_s`` seconds or after a change."""

    reason: str
    delay_s: float
    backoff: bool = False


@dataclass(frozen=True)
class StayStopped:
    """Ray must not run here; decide again after a change."""


Decision = Keep | Start | Stop | Wait | StayStopped


def decide(situation: Situation, backoff: Backoff, now: float) -> Decision:
    """Return what to do now."""
    if situation.running:
        other = not situation.head and situation.instance and situation.instance != situation.joined
        return Stop("the head's Ray was restarted") if other else Keep()
    if situation.drained:
        return StayStopped()
    if now < backoff.not_before:
        return Wait("Ray ended", min(STEADY_S, backoff.not_before - now), backoff=True)
    return Start() if situation.head else _follow(situation)


def _follow(situation: Situation) -> Decision:
    """Decide for a worker without a running Ray."""
    if not situation.instance:
        return Wait("the head's Ray is down", STEADY_S)
    if not situation.has_token:
        return Wait("the coordinator has not sent the token of the head's Ray yet", STEADY_S)
    if not situation.head_answers:
        return Wait("the head's Ray does not answer over the overlay", HEAD_POLL_S)
    return Start()
