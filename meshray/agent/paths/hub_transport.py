"""The transport of the tunnel to the hub: plain UDP, or the relay (pure).

      ┌──(no handshake for 3 s, or no data passes)──►┐
──► udp                                             wss
      └◄──────(data passes by UDP in both directions)┘

      ┌──(UDP is limited to a rate)──► wss, to compare ──(10 times faster)──► wss, for an hour
──► udp                                   │                                    │
      └◄──(not much faster, or it fails)──┘◄──────────(it fails)───────────────┘

>>> transport = HubTransport.start("auto", now=0.0)
>>> transport = transport.step(last_handshake=None, udp_alive=False, now=3.0)
>>> transport.kind.value
'wss'

`meshray.agent.paths.liveness` finds out whether data passes: a handshake alone does not prove it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshray.linux.clock import BootSeconds
from meshray.model.path import Mode, Transport
from meshray.wireguard.config import is_fresh

#: The time from WireGuard's first handshake to the decision that UDP does not pass.
HANDSHAKE_PATIENCE_S = 3.0
#: UDP that fails this soon after its return passes only intermittently: it is not trusted for a time that doubles.
RELAPSE_S = 300.0
#: A relay that is still not connected after this is away as well: the whole network was, and UDP is not to blame.
OUTAGE_S = 5.0
FIRST_HOLD_S, LONGEST_HOLD_S = 60.0, 3600.0
#: The relay is used in place of limited UDP if it carries this many times as much.
TIMES_FASTER = 10.0
#: A decision for or against the relay because of a limit is kept for this long, seconds; it doubles each time until the
#: network changes. A policer's limit is a contract, which seldom changes.
FIRST_LIMIT_HOLD_S, LONGEST_LIMIT_HOLD_S = 3600.0, 8 * 3600.0


@dataclass(frozen=True)
class UdpLimit:
    """A limit of UDP because of which the relay is used.

    Attributes:
        kbit_s: the rate to which UDP is limited.
        since: when it was found, seconds of the boot clock.
        relay_kbit_s: the rate of the relay, at least; None: it is being measured.
    """

    kbit_s: float
    since: float
    relay_kbit_s: float | None = None


@dataclass(frozen=True)
class HubTransport:
    """The tunnel's current transport.

    Attributes:
        mode: the user's choice; only ``auto`` ever changes the transport.
        since: when the current state began, seconds of the boot clock.
        returned: when UDP was last used again; None: never.
        relapses: how often in a row UDP failed soon after that.
        hold_until: UDP is not used again before this time, seconds of the boot clock.
        limit: the relay is used because UDP is limited; None: for another reason, or it is not used.
        limit_hold_s: how long the last decision because of a limit is kept, seconds.
        compare_after: the relay is not compared with UDP again before this time, seconds of the boot clock.
    """

    mode: Mode
    kind: Transport
    since: float
    returned: float | None = None
    relapses: int = 0
    hold_until: float = 0.0
    limit: UdpLimit | None = None
    limit_hold_s: float = 0.0
    compare_after: float = 0.0

    @classmethod
    def start(cls, mode: Mode, now: float) -> HubTransport:
        """Return the initial transport."""
        return cls(mode, Transport.WSS if mode == "wss" else Transport.UDP, now)

    def restart_timeout(self, now: float) -> HubTransport:
        """Return the transport after a change of network: its timeout starts again, and UDP is trusted as at first."""
        return replace(self, since=now, returned=None, relapses=0, hold_until=0.0, limit_hold_s=0.0, compare_after=0.0)

    def may_try_udp(self, now: float) -> bool:
        """Return whether UDP would be used again if it passed."""
        return self.mode == "auto" and self.kind == Transport.WSS and now >= self.hold_until

    def may_compare(self, now: float) -> bool:
        """Return whether the relay would be used if it were much faster."""
        return self.mode == "auto" and self.kind == Transport.UDP and now >= self.compare_after

    def compare(self, limit_kbit_s: float, now: float) -> HubTransport:
        """Return the transport after UDP was found to be limited to this rate: the relay, until `compared`."""
        if not self.may_compare(now):
            return self
        hold_s = min(LONGEST_LIMIT_HOLD_S, 2 * self.limit_hold_s or FIRST_LIMIT_HOLD_S)
        return replace(
            self,
            kind=Transport.WSS,
            since=now,
            hold_until=now + hold_s,
            limit=UdpLimit(limit_kbit_s, now),
            limit_hold_s=hold_s,
            compare_after=now + hold_s,
        )

    def compared(self, relay_kbit_s: float, now: float) -> HubTransport:
        """Return the transport after the relay's rate was measured: UDP again if the relay is not much faster."""
        if self.kind != Transport.WSS or self.limit is None:
            return self
        if relay_kbit_s < TIMES_FASTER * self.limit.kbit_s:
            return self._unlimited(now)
        return replace(self, limit=replace(self.limit, relay_kbit_s=relay_kbit_s))

    def step(
        self,
        last_handshake: BootSeconds | None,
        udp_alive: bool,
        now: BootSeconds,
        *,
        dead: bool = False,
        relay_connected: bool = True,
    ) -> HubTransport:
        """Return the transport after reading the hub's peer.

        Args:
            last_handshake: the last one with the hub, seconds of the boot clock; None if there was none.
            udp_alive: while the relay is in use, data passes by UDP in both directions.
            dead: according to probes no data passes over the transport in use.
            relay_connected: the relay is connected, if it is in use.
        """
        if self.mode != "auto":
            return self
        if self.kind == Transport.WSS:
            if self.limit is not None and (dead or self._relay_fails(now, relay_connected)):
                return self._unlimited(now)
            if self.relapses and not relay_connected and now - self.since >= OUTAGE_S:
                return replace(self, relapses=0, hold_until=0.0)
            if udp_alive and self.may_try_udp(now):
                return replace(self, kind=Transport.UDP, since=now, returned=now, limit=None)
            return self
        return self._relayed(now) if self._is_dead(last_handshake, dead, now) else self

    def _is_dead(self, last_handshake: BootSeconds | None, dead: bool, now: BootSeconds) -> bool:
        return dead or (not is_fresh(last_handshake, now) and now - self.since >= HANDSHAKE_PATIENCE_S)

    def _relay_fails(self, now: float, connected: bool) -> bool:
        """Return whether the relay is not connected although it had the time; limited UDP is better than none."""
        return not connected and now - self.since >= HANDSHAKE_PATIENCE_S

    def _unlimited(self, now: float) -> HubTransport:
        """Return UDP in place of the relay, which was used only because of a limit."""
        return replace(self, kind=Transport.UDP, since=now, limit=None, hold_until=0.0)

    def _relayed(self, now: float) -> HubTransport:
        relapsed = self.returned is not None and now - self.returned < RELAPSE_S
        relapses = self.relapses + 1 if relapsed else 0
        hold_s = min(LONGEST_HOLD_S, FIRST_HOLD_S * 2.0 ** min(relapses - 1, 16)) if relapses else 0.0
        return replace(self, kind=Transport.WSS, since=now, relapses=relapses, hold_until=now + hold_s)
