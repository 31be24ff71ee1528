"""By which address this node dials its hub (pure).

A hub may have many addresses: of its interfaces, a public one that it does not see itself, names. The
node begins with the one at which the coordinator answered and, as long as no handshake comes, goes
on to the next:

    dial A ──(no handshake for 4 s)──► dial B ──(no handshake for 4 s)──► dial A …
      └──(handshake)──► keep, until the handshakes are older than WireGuard lets them become

    >>> choice = HubChoice.start((a, b), preferred_host="192.0.2.1", now=0.0)
    >>> choice = choice.step(last_handshake=None, now=4.0)     # → the next one
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from meshray.model.address import Endpoint

#: WireGuard tries a handshake every 5 s (REKEY_TIMEOUT); the first goes out at once.
PATIENCE_S = 4.0
#: A session ends after 180 s (REJECT_AFTER_TIME); with keepalives a living one is renewed each 120 s.
STALE_HANDSHAKE_S = 180.0


@dataclass(frozen=True)
class HubChoice:
    """Which of the hub's addresses is dialled now, and since when (unix seconds)."""

    candidates: tuple[Endpoint, ...]
    index: int
    since: float

    @classmethod
    def start(cls, candidates: Iterable[Endpoint], preferred_host: str, now: float) -> HubChoice:
        """Begins with the candidate at the host where the coordinator answered, if there is one."""
        ordered = tuple(sorted(dict.fromkeys(candidates), key=lambda endpoint: endpoint.host != preferred_host))
        return cls(ordered, 0, now)

    @property
    def endpoint(self) -> Endpoint | None:
        """The address to dial; None where the hub has none."""
        return self.candidates[self.index] if self.candidates else None

    def with_candidates(self, candidates: Iterable[Endpoint], now: float) -> HubChoice:
        """Takes over a changed list; goes on with the address in use where it is still listed."""
        fresh = tuple(dict.fromkeys(candidates))
        if set(fresh) == set(self.candidates):
            return self
        index = fresh.index(self.endpoint) if self.endpoint in fresh else 0
        return HubChoice(fresh, index, now)

    def step(self, last_handshake: float | None, now: float) -> HubChoice:
        """The choice after a look at the device: on to the next address where this one is silent."""
        if last_handshake is not None and now - last_handshake < STALE_HANDSHAKE_S:
            return self
        if len(self.candidates) < 2 or now - self.since < PATIENCE_S:
            return self
        return replace(self, index=(self.index + 1) % len(self.candidates), since=now)


def is_fresh(last_handshake: float | None, now: float) -> bool:
    """Whether a peer with this last handshake (unix seconds) can still be heard."""
    return last_handshake is not None and now - last_handshake < STALE_HANDSHAKE_S
