"""How the tunnel to the hub travels: plain UDP, or through the relay (pure).

      ┌──(no handshake for 3 s, or silence for 25 s)──►┐
──► udp                                               wss
      └◄──────────(the hub answers by UDP)────────────┘

>>> transport = HubTransport.start("auto", now=0.0)
>>> transport = transport.step(last_handshake=None, udp_alive=False, now=3.0)
>>> transport.kind
'wss'
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from meshray.errors import UsageError

Mode = Literal["auto", "udp", "wss"]
Kind = Literal["udp", "wss"]
MODES: tuple[Mode, ...] = get_args(Mode)

#: From the first handshake that WireGuard sends to the decision that UDP does not pass.
HANDSHAKE_PATIENCE_S = 3.0
#: A hub that was heard by UDP is given up after so long without anything: probes come every 10 s.
SILENCE_S = 25.0
#: A session ends after 180 s (WireGuard's REJECT_AFTER_TIME).
STALE_HANDSHAKE_S = 180.0


def parse_mode(text: str) -> Mode:
    """Raises UsageError where it is no transport."""
    for mode in MODES:
        if mode == text:
            return mode
    raise UsageError("bad_transport", f"{text[:40]!r} is no transport", hint="--transport auto, udp or wss")


@dataclass(frozen=True)
class HubTransport:
    """What carries the tunnel now.

    Attributes:
        mode: what the person asked for; only ``auto`` ever changes.
        since: since when it has been like this, seconds of the boot clock.
    """

    mode: Mode
    kind: Kind
    since: float

    @classmethod
    def start(cls, mode: Mode, now: float) -> HubTransport:
        """As it begins, and begins again after a change of the network."""
        return cls(mode, "wss" if mode == "wss" else "udp", now)

    def step(
        self, last_handshake: float | None, udp_alive: bool, now: float, *, last_heard: float | None = None
    ) -> HubTransport:
        """The transport after a look at the hub's peer.

        Args:
            last_handshake: with the hub, seconds of the boot clock; None where there was none.
            udp_alive: the hub has answered by UDP while the relay is in use.
            last_heard: when anything came from the hub, seconds of the boot clock; without it only the handshakes tell.
        """
        if self.mode != "auto":
            return self
        if self.kind == "wss":
            return replace(self, kind="udp", since=now) if udp_alive else self
        if self._is_dead(last_handshake, last_heard, now):
            return replace(self, kind="wss", since=now)
        return self

    def _is_dead(self, last_handshake: float | None, last_heard: float | None, now: float) -> bool:
        if last_handshake is None or now - last_handshake >= STALE_HANDSHAKE_S:
            return now - self.since >= HANDSHAKE_PATIENCE_S
        if last_heard is None:
            return False
        return now - max(self.since, last_heard, last_handshake) >= SILENCE_S
