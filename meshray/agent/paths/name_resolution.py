"""Background resolution of DNS names in endpoints.

    device loop, paths ──address()──► what is known now (never waits)
                                         │ unknown or old
                                         ▼
                                      lookups, few at once for each node ──found──► the device is looked at again

Nodes choose their endpoints themselves, and thus the names and how slowly they resolve. A node's names delay no other
peer than its own.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from meshray.linux.dns import addresses
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

#: The number of names of one node that are resolved. A new one replaces a name that was not needed for this long,
#: seconds.
NAMES_PER_NODE = 4
UNUSED_S = 60.0
#: The number of concurrent lookups, for all nodes together.
MOST_AT_ONCE = 16
#: An address is looked up again after this, seconds; the old one is used until the new answer arrives.
FRESH_S = 30.0
#: The pause after a failure; it doubles.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


@dataclass(frozen=True)
class _Name:
    """The state of one name.

    Attributes:
        needed: when it was last requested.
        ip: the address to dial; None: none is known.
        due: when to look it up again.
        failures: failed lookups in a row.
    """

    needed: float
    ip: Address | None = None
    due: float = 0.0
    failures: int = 0


class Names:
    """The names in the endpoints of other nodes.

    Args:
        tasks: the tasks to which lookups are added.
        usable: returns the address that WireGuard should dial; None if it must not dial it.
        found: called with a node's id when the address of one of its names changes.
        at_once: the number of concurrent lookups per node.
        look_up: returns a name's addresses, best first; raises OSError.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        tasks: Tasks,
        usable: Callable[[Address], Address | None],
        found: Callable[[str], None],
        *,
        at_once: int = 1,
        look_up: Callable[[str], Awaitable[Sequence[Address]]] = addresses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._usable = usable
        self._found = found
        self._at_once = at_once
        self._look_up = look_up
        self._clock = clock
        self._tasks = tasks
        self._names: dict[str, dict[str, _Name]] = {}
        self._waiting: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._running: set[tuple[str, str]] = set()

    def address(self, node_id: str, endpoint: Endpoint) -> Endpoint | None:
        """Return the endpoint of this node with an address in place of a name; None if unknown or not allowed.

        It never waits: an unknown name is looked up in the background.
        """
        ip = endpoint.ip if endpoint.ip is not None else self._cached_ip(node_id, endpoint.host.lower())
        usable = self._usable(ip) if ip is not None else None
        return Endpoint(str(usable), endpoint.port) if usable is not None else None

    def prepare(self, node_id: str, endpoints: Iterable[Endpoint]) -> None:
        """Look up the names among these endpoints, which will be dialled soon."""
        for endpoint in endpoints:
            self.address(node_id, endpoint)

    def keep(self, node_ids: Collection[str]) -> None:
        """Forget all other nodes."""
        for node_id in [node_id for node_id in self._names if node_id not in node_ids]:
            del self._names[node_id]

    def network_changed(self) -> None:
        """Look up all names again when they are next needed: another network may resolve them differently."""
        for names in self._names.values():
            for host, name in names.items():
                names[host] = replace(name, due=0.0, failures=0)

    def _cached_ip(self, node_id: str, host: str) -> Address | None:
        now, names = self._clock(), self._names.setdefault(node_id, {})
        if host not in names and len(names) >= NAMES_PER_NODE:
            oldest = min(names, key=lambda known: names[known].needed)
            if now - names[oldest].needed < UNUSED_S:
                return None
            del names[oldest]
            self._waiting.pop((node_id, oldest), None)
        name = names[host] = replace(names.get(host, _Name(now)), needed=now)
        if now >= name.due and (node_id, host) not in self._running:
            self._waiting[node_id, host] = None
            self._start()
        return name.ip

    def _start(self) -> None:
        """Start waiting lookups in order of arrival, within the limits."""
        for node_id, host in list(self._waiting):
            if len(self._running) >= MOST_AT_ONCE:
                return
            if sum(1 for running, _ in self._running if running == node_id) >= self._at_once:
                continue
            del self._waiting[node_id, host]
            self._running.add((node_id, host))
            self._tasks.start(self._resolve(node_id, host), f"lookup of {host}")

    async def _resolve(self, node_id: str, host: str) -> None:
        try:
            found: Sequence[Address] = await self._look_up(host)
        except OSError:
            found = ()
        finally:
            self._running.discard((node_id, host))
        self._store(node_id, host, next((ip for ip in map(self._usable, found) if ip is not None), None))
        self._start()

    def _store(self, node_id: str, host: str, ip: Address | None) -> None:
        before = self._names.get(node_id, {}).get(host)
        if before is None:  # It was forgotten meanwhile.
            return
        now = self._clock()
        if ip is None:
            if not before.failures:
                log.warning("the name %s in a node's endpoint does not resolve", host)
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(before.failures, 16))
            self._names[node_id][host] = replace(before, due=now + pause_s, failures=before.failures + 1)
            return
        self._names[node_id][host] = _Name(before.needed, ip, now + FRESH_S)
        if ip != before.ip:
            self._found(node_id)
