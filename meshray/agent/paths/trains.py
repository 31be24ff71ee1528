"""How fast a way is, told by a train of packets (pure): they leave at once, and arrive as far apart as its narrowest
link sends them.

    sender    ▮▮▮▮▮▮▮▮ ──► narrowest link ──► ▮  ▮  ▮  ▮  ▮  ▮  ▮  ▮    receiver
                                              └───── spread ─────┘

    rate = bits after the first packet / spread

It takes a few dozen kilobytes where a download that gets going takes megabytes. It is a sample: other traffic
makes it lower, and a provider that lets short bursts pass makes it higher than a long download.

    train   b"mt" 1 <8 bytes: id> <u16: number> <u16: length of the train> <zeros>     ──►
    report  b"mt" 2 <8 bytes: id> <u32: bytes after the first> <u64: spread, ns>       ◄──
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

#: Inner packets of this size pass on every path.
PACKET_BYTES = 1200
_HEADERS_BYTES = 28
PAYLOAD_BYTES = PACKET_BYTES - _HEADERS_BYTES
#: The first train is short, so that a slow link is not filled; where it took no time to speak of, a longer one follows.
#: Both together: 244 KiB.
SHORT_TRAIN, LONG_TRAIN = 16, 192
#: A spread below this is mostly the noise of clocks and schedulers.
ENOUGH_NS = 4_000_000
#: WireGuard may deliver a whole batch at once; a spread below this tells nothing.
LEAST_NS = 100_000
#: Between two samples of one peer at least.
PAUSE_S = 600.0
ID_BYTES = 8

_TRAIN = struct.Struct("!3s8sHH")
_REPORT = struct.Struct("!3s8sIQ")
_TRAIN_MARK, _REPORT_MARK = b"mt\x01", b"mt\x02"


@dataclass(frozen=True)
class Report:
    """What arrived of a train: bytes after the first packet, and nanoseconds from the first to the last."""

    train: bytes
    arrived_bytes: int
    spread_ns: int

    def to_bytes(self) -> bytes:
        """The datagram."""
        return _REPORT.pack(_REPORT_MARK, self.train, self.arrived_bytes, self.spread_ns)

    @property
    def is_enough(self) -> bool:
        """No longer train is needed."""
        return self.spread_ns >= ENOUGH_NS

    @property
    def mbit_s(self) -> float | None:
        """Megabits of inner packets per second; None where the spread tells nothing."""
        if self.spread_ns < LEAST_NS or not self.arrived_bytes:
            return None
        return round(self.arrived_bytes * 8 * 1000 / self.spread_ns, 2)


@dataclass(frozen=True)
class Car:
    """One packet of a train."""

    train: bytes
    number: int
    length: int

    def to_bytes(self) -> bytes:
        """The datagram."""
        return _TRAIN.pack(_TRAIN_MARK, self.train, self.number, self.length).ljust(PAYLOAD_BYTES, b"\0")

    @property
    def is_last(self) -> bool:
        """The train is complete, but for what was lost."""
        return self.number + 1 == self.length


@dataclass(frozen=True)
class Arrivals:
    """A train on its way in."""

    train: bytes
    first_ns: int
    last_ns: int
    arrived_bytes: int = 0

    def and_one(self, now_ns: int) -> Arrivals:
        """One more packet, by the kernel's clock."""
        # The clock may be set back meanwhile; and who repeats packets for ever has sent no longer train.
        arrived_bytes = min(self.arrived_bytes + PACKET_BYTES, LONG_TRAIN * PACKET_BYTES)
        return replace(self, last_ns=max(now_ns, self.last_ns), arrived_bytes=arrived_bytes)

    def report(self) -> Report:
        """To the sender."""
        return Report(self.train, self.arrived_bytes, self.last_ns - self.first_ns)


def read(data: bytes) -> Car | Report | None:
    """A datagram, None for anything else."""
    if len(data) == _REPORT.size and data.startswith(_REPORT_MARK):
        return Report(*_REPORT.unpack(data)[1:])
    if len(data) == PAYLOAD_BYTES and data.startswith(_TRAIN_MARK):
        car = Car(*_TRAIN.unpack_from(data)[1:])
        return car if car.number < car.length <= LONG_TRAIN else None
    return None


@dataclass(frozen=True)
class Samples:
    """When a peer is to be sampled: once for each new path, and not more often than `PAUSE_S`.

    Attributes:
        last: per peer, the path that was sampled last and when (monotonic seconds).
    """

    last: dict[str, tuple[object, float]] = field(default_factory=dict)

    def is_due(self, peer: str, path: object, now: float) -> bool:
        """Whether this peer's path (anything that is equal for the same path) is to be sampled now."""
        if peer not in self.last:
            return True
        sampled, when = self.last[peer]
        return sampled != path and now - when >= PAUSE_S

    def took(self, peer: str, path: object, now: float) -> Samples:
        """It was sampled, in vain or not."""
        return Samples({**self.last, peer: (path, now)})
