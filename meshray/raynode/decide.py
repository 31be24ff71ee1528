"""When Ray is started, started again, waited for, and stopped. Pure: values in, a decision out.

    >>> decide(Situation(head=False, running=False, joined="", instance="", head_answers=False), Backoff(), now=0)
    Wait(reason="the head's Ray is down", delay_s=1.0)

A head starts whenever it does not run. A worker follows its head: it starts when the head's Ray is
there, and starts again when the head's Ray is another one than it joined. While the head is away a
running worker is left alone; Ray itself waits for it for some minutes. A drained worker is left alone as
well until its Ray has ended, and then rests.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
#: A Ray that lived this long was sound; its death counts as the first one.
SOUND_LIFE_S = 60.0
#: How often a worker looks whether the head's Ray answers.
HEAD_POLL_S = 0.1
#: How often a steady state is looked at.
STEADY_S = 1.0


@dataclass(frozen=True)
class Situation:
    """What is the case now.

    Attributes:
        joined: the instance of the head's Ray against which the running one was started; of a head, its own.
        instance: the instance that the head reports now, empty while its Ray is down. Not looked at for a head.
        head_answers: whether the head's Ray takes connections over the overlay. Not looked at for a head.
        drained: a user wants Ray's work away from this node.
        has_token: this node holds the token of the head's Ray. Not looked at for a head.
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
    """How long to wait after Ray died, in the clock of whoever gives ``now``.

    Attributes:
        deaths: in a row, each soon after its start.
        not_before: when the next start may be.
    """

    deaths: int = 0
    not_before: float = 0.0

    def after_death(self, *, started: float | None, now: float) -> Backoff:
        """The backoff after a death. ``started`` is None where an adopted Ray's start is not known."""
        sound = started is None or now - started >= SOUND_LIFE_S
        deaths = 1 if sound else self.deaths + 1
        # The exponent is bounded: a week of failures must not overflow.
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(deaths - 1, 10))
        return Backoff(deaths, now + delay)


@dataclass(frozen=True)
class Keep:
    """Ray runs and shall."""


@dataclass(frozen=True)
class Start:
    """Start Ray now."""


@dataclass(frozen=True)
class Stop:
    """End the running Ray; look again at once."""

    reason: str


@dataclass(frozen=True)
class Wait:
    """Nothing to do yet; look again after ``delay_s`` seconds or when something changed."""

    reason: str
    delay_s: float
    backoff: bool = False


@dataclass(frozen=True)
class Rest:
    """Ray shall not run here; look again when something changed."""


Decision = Keep | Start | Stop | Wait | Rest


def decide(situation: Situation, backoff: Backoff, now: float) -> Decision:
    """What to do now."""
    if situation.running:
        other = not situation.head and situation.instance and situation.instance != situation.joined
        return Stop("the head's Ray was started anew") if other else Keep()
    if situation.drained:
        return Rest()
    if now < backoff.not_before:
        return Wait("Ray ended", min(STEADY_S, backoff.not_before - now), backoff=True)
    return Start() if situation.head else _follow(situation)


def _follow(situation: Situation) -> Decision:
    """What a worker without Ray does."""
    if not situation.instance:
        return Wait("the head's Ray is down", STEADY_S)
    if not situation.has_token:
        return Wait("the coordinator has not sent the token of the head's Ray yet", STEADY_S)
    if not situation.head_answers:
        return Wait("the head's Ray does not answer over the overlay", HEAD_POLL_S)
    return Start()
