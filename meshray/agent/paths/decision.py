"""The path of packets to one other node: through the hub, or direct (pure).

    HUB ──punch──► TRYING ──both hear each other──► DIRECT
     ▲               │  ▲                             │
     └──nothing heard┘  └──silence, or the other side─┘
                            does not hear us

Each side probes the other on the probe addresses, which only the direct path carries. A probe that is answered proves
both directions; each packet reports whether its sender has heard the other lately. A side lets the direct path carry
data while it hears the other *and* is heard, so that the two sides decide alike: a failure of the path in one direction
breaks the round trips of both.

    >>> path = PairPath().punch((endpoint,), now=0.0)
    >>> path = path.answered(peer_hears=True, now=0.1)
    >>> path.carries
    True
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from meshray.model.address import Endpoint
from meshray.model.node import Node

HUB, TRYING, DIRECT = "hub", "trying", "direct"

#: Both sides may request a punch at the same moment: two punches within this time are one, and do not interrupt the
#: handshake under way.
SAME_PUNCH_S = 0.4
#: The time for one candidate: WireGuard's handshake, a probe and its answer over a slow link.
TRIAL_S = 0.9
#: The time after which a silent candidate is sent a second handshake. The first one is lost if the peer does not know
#: of the attempt by then, and where only that peer's handshake can pass a NAT, nothing else ever arrives.
REDIAL_S = 0.4
#: The intervals of probes while trying, while data flows, and while idle. 50 idle peers then cost less than 2 kB/s.
PROBE_TRYING_S = 0.15
PROBE_ACTIVE_S = 0.5
PROBE_IDLE_S = 20.0
#: An answer later than this counts as lost.
PROBE_TIMEOUT_S = 1.0
#: This many lost probes in a row mean that the path has failed.
DEAD_AFTER = 3
#: A path that fell silent is probed a while longer before it is given up: most recover.
LINGER_S = 6.0
#: The pauses between attempts double from the first to the last.
FIRST_RETRY_S, LAST_RETRY_S = 5.0, 300.0


@dataclass(frozen=True)
class PairPath:
    """One side's knowledge of the direct path to one peer. Times are of a monotonic clock, seconds.

    Attributes:
        candidates: possible endpoints of the peer, in the order in which both sides try them.
        attempt: changes when the WireGuard peer must be added again: only then does WireGuard send a handshake at once.
        redialled: it was dialled a second time in this attempt.
        heard: when a probe was last answered over the direct path.
        peer_hears: what the peer reported last.
        lost: unanswered probes in a row.
        failures: failed attempts in a row.
        next_try: the earliest time to request another attempt.
        spread: this pair's factor of all pauses between attempts, so that pairs that failed together are not all
            retried together.
    """

    phase: str = HUB
    candidates: tuple[Endpoint, ...] = ()
    index: int = 0
    attempt: int = 0
    since: float = 0.0
    redialled: bool = False
    heard: float | None = None
    peer_hears: bool = False
    lost: int = 0
    failures: int = 0
    next_try: float = 0.0
    spread: float = 1.0

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint at which the peer is dialled; None while no direct path is tried or used."""
        return self.candidates[self.index] if self.phase != HUB else None

    @property
    def carries(self) -> bool:
        """Whether data takes the direct path."""
        return self.phase == DIRECT

    @property
    def hears(self) -> bool:
        """Whether this side's probes are answered, as reported to the peer."""
        return self.phase != HUB and self.heard is not None and self.lost < DEAD_AFTER

    def wants_punch(self, now: float) -> bool:
        """Return whether to ask the coordinator to let both sides try now."""
        return self.phase == HUB and now >= self.next_try

    def requested(self, now: float) -> PairPath:
        """Return the path after a request to the coordinator; the request is not repeated at once without an answer."""
        return replace(self, next_try=now + self._retry_s())

    def punch(self, candidates: tuple[Endpoint, ...], now: float) -> PairPath:
        """Start trying, as both sides do. A working path does not change, nor does an attempt that has just started."""
        if self.hears or (self.phase == TRYING and candidates == self.candidates and now - self.since < SAME_PUNCH_S):
            return self
        if not candidates:
            return self._back_to_hub(now)
        return replace(
            self, phase=TRYING, candidates=candidates, index=0, attempt=self.attempt + 1, since=now, redialled=False,
            heard=None, peer_hears=False, lost=0,
        )  # fmt: skip

    def answered(self, peer_hears: bool, now: float) -> PairPath:
        """Record that a probe was answered over the direct path."""
        if self.phase == HUB:
            return self
        return replace(self, heard=now, lost=0, peer_hears=peer_hears)._decided(now)

    def pinged(self, peer_hears: bool, now: float) -> PairPath:
        """Record a probe of the peer over the direct path, which reports whether this node reaches the peer."""
        if self.phase == HUB:
            return self
        return replace(self, peer_hears=peer_hears)._decided(now)

    def unanswered(self, now: float, sent: float) -> PairPath:
        """Record that the probe sent at that time was not answered. One older than the last answer changes nothing."""
        if self.phase == HUB or (self.heard is not None and sent <= self.heard):
            return self
        return replace(self, lost=self.lost + 1)._decided(now)

    def peer_left(self, now: float) -> PairPath:
        """Record the peer's message, through the coordinator, that it has left the direct path."""
        return replace(self, peer_hears=False)._decided(now) if self.phase == DIRECT else self

    def let_go(self, now: float) -> PairPath:
        """Go back to the hub because nothing is sent. A pair that could not become direct keeps its pause."""
        if self.phase == HUB:
            return self
        hub = replace(self, phase=HUB, heard=None, peer_hears=False, lost=0, since=now)
        return replace(hub, next_try=now) if self.heard is not None else self._back_to_hub(now)

    @property
    def tick_due(self) -> float:
        """The time of the next change by `tick`; infinity if there is none without another event."""
        if self.phase != TRYING or self.hears:
            return math.inf
        if self.heard is not None:
            return self.since + LINGER_S
        return self.since + (TRIAL_S if self.redialled else REDIAL_S)

    def tick(self, now: float) -> PairPath:
        """Advance the time: go on to the next candidate, or finally back to the hub."""
        if self.phase != TRYING or self.hears:
            return self
        if self.heard is not None:  # It worked, and fell silent.
            return self if now - self.since < LINGER_S else self._back_to_hub(now)
        if now - self.since < TRIAL_S:
            return replace(self, redialled=True) if now - self.since >= REDIAL_S else self
        if self.index + 1 < len(self.candidates):
            return replace(self, index=self.index + 1, attempt=self.attempt + 1, since=now, redialled=False, lost=0)
        return self._back_to_hub(now)

    def network_changed(self, now: float) -> PairPath:
        """Record another address or router: what failed before may work now, and a silent path may have changed."""
        if self.phase == HUB:
            return replace(self, failures=0, next_try=now)
        if self.heard is None or self.hears:
            return self
        return replace(self._back_to_hub(now), failures=0, next_try=now)

    def probe_interval_s(self, active: bool) -> float:
        """Return the interval of the direct path's probes, seconds.

        Args:
            active: data flows to the peer, or should.
        """
        if self.phase == TRYING:
            return PROBE_TRYING_S
        return PROBE_ACTIVE_S if active or self.lost else PROBE_IDLE_S

    def _decided(self, now: float) -> PairPath:
        is_mutual = self.hears and self.peer_hears
        if self.phase == TRYING and is_mutual:
            return replace(self, phase=DIRECT, since=now, failures=0)
        if self.phase == DIRECT and not is_mutual:
            return replace(self, phase=TRYING, since=now)
        return self

    def _back_to_hub(self, now: float) -> PairPath:
        failed = replace(self, phase=HUB, heard=None, peer_hears=False, lost=0, failures=self.failures + 1, since=now)
        return replace(failed, next_try=now + failed._retry_s())

    def _retry_s(self) -> float:
        return self.spread * min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** max(0, min(self.failures, 16) - 1))


def spread_of(one: str, other: str) -> float:
    """Return the factor of a pair's pauses, 0.8 to 1.2: both sides derive the same one from the two nodes' ids."""
    return 0.8 + 0.4 * zlib.crc32("-".join(sorted((one, other))).encode()) / 2**32


def candidates(me: Node, peer: Node) -> tuple[Endpoint, ...]:
    """Return the candidates for the peer, in order.

    Both sides derive the same list of rounds from the same two map entries, each with the other's addresses, so that in
    each round both NATs open towards each other: the same LAN first if both are behind one NAT, then what the hub
    observes, then IPv6, then other private addresses.
    """
    rounds: list[Endpoint] = []
    for ours, theirs in zip(_classes(me, peer), _classes(peer, me), strict=True):
        if ours and theirs:
            rounds += [theirs[n % len(theirs)] for n in range(max(len(ours), len(theirs)))]
    return tuple(rounds)


#: Why an idle pair is not direct: nothing is wrong.
IDLE_REASON = "idle: the direct path is opened when packets flow"


def why_not_direct(me: Node, peer: Node, path: PairPath) -> str:
    """Return why packets to this peer go through the hub, in the field's terms; empty while it is being tried."""
    if path.phase != HUB:
        return ""
    for node in (me, peer):
        if node.seen is None:
            return f"UDP filtered on the side of {node.name}: no hub sees it"
    if not candidates(me, peer):
        return "no candidate: neither side has an address that the other could try"
    for node in (me, peer):
        if _is_remapped(node):
            return f"symmetric NAT on the side of {node.name}: its port changes with the destination"
    if not path.failures:
        return "not tried yet"
    return f"no answer from {', '.join(map(str, path.candidates))}: a firewall drops it"


def _classes(node: Node, other: Node) -> tuple[list[Endpoint], list[Endpoint], list[Endpoint], list[Endpoint]]:
    """Return the node's endpoints in the other's order: near, observed and configured, IPv6, distant private."""
    near, open_, v6, far = [], [], [], []
    together = node.seen is not None and other.seen is not None and node.seen.host == other.seen.host
    hosts = {endpoint.host for endpoint in other.endpoints}
    networks = {_network(endpoint) for endpoint in other.endpoints} - {None}
    for endpoint in node.endpoints:
        ip = endpoint.ip
        if ip is None or (isinstance(ip, IPv4Address) and not _is_inner(ip)):
            open_.append(endpoint)
        elif not isinstance(ip, IPv4Address):
            v6.append(endpoint)
        elif endpoint.host in hosts:
            continue  # Both have this private address: for each it is its own.
        elif together or _network(endpoint) in networks:
            near.append(endpoint)
        else:
            far.append(endpoint)
    if node.seen is not None and node.seen not in (*near, *open_):
        open_.insert(0, node.seen)
    return near, open_, v6, far


#: RFC 1918 and RFC 6598: addresses that mean different machines in different networks.
_INNER = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))


def _is_inner(ip: IPv4Address) -> bool:
    return any(ip in network for network in _INNER)


def _network(endpoint: Endpoint) -> IPv4Network | None:
    """Return the /24 around an address: the usual size of a LAN; a wrong guess costs one round."""
    ip = endpoint.ip
    return IPv4Network((ip, 24), strict=False) if isinstance(ip, IPv4Address) else None


def _is_remapped(node: Node) -> bool:
    """Return whether the NAT changes the port. If so, it may use another port for each destination."""
    ports = {endpoint.port for endpoint in node.endpoints}
    return node.seen is not None and bool(ports) and node.seen.port not in ports
