"""Test whether a node is reachable from outside: the coordinator sends to the node's endpoints of its enrolment.

A node chooses its endpoints itself, so this must reveal nothing but what arrives there: neither the answer nor its time
depends on where the packets go, what a name resolves to, or whether there is a route.

>>> reach = Reach(network)
>>> await reach.probe(member, endpoint, word)
"""

from __future__ import annotations

import asyncio
import logging
import socket
from ipaddress import IPv4Address, IPv6Address

from meshray.coordinator.records import Member
from meshray.errors import MeshrayError, RefusedError
from meshray.linux.dns import addresses
from meshray.linux.reachability import PROBES_S, send_probes
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.model.endpoints import reachable_ip

_log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

#: Every answer comes after this time, seconds; by then an address has received all its packets.
ANSWER_S = PROBES_S + 0.1


class Reach:
    """The test packets of one coordinator.

    Args:
        network: the overlay, whose addresses are never tested.
    """

    def __init__(self, network: OverlayNetwork) -> None:
        self._network = network
        self._waiting: set[str] = set()
        self._sending: set[str] = set()
        self._tasks = Tasks()

    async def close(self) -> None:
        """Stop sending."""
        await self._tasks.close()

    async def probe(self, member: Member, endpoint: Endpoint, word: str) -> None:
        """Send a few packets to an endpoint of the node, which listens for them.

        Raises:
            RefusedError: ``not_your_endpoint``: no node can make the coordinator send packets to another.
            MeshrayError: ``busy``: a test of it is running. ``endpoint_unusable``: the address cannot be another
                machine's.
        """
        node_id = member.node.id
        if endpoint not in member.advertised:
            raise RefusedError(
                "not_your_endpoint",
                f"{endpoint} is not an endpoint that {member.node.name} enrolled with",
                hint="--endpoint",
            )
        if endpoint.ip is not None and other_machine(endpoint.ip, self._network) is None:
            raise MeshrayError(
                "endpoint_unusable",
                f"{endpoint} cannot be the address of another machine than the coordinator's",
                hint="--endpoint HOST:PORT with an address that the others can use",
            )
        if node_id in self._waiting:
            raise MeshrayError("busy", "the coordinator is checking this node already", hint="try again in a second")
        self._waiting.add(node_id)
        try:
            # The lookup of a name may still be running from the last time.
            if node_id not in self._sending:
                self._sending.add(node_id)
                self._tasks.start(self._send(node_id, endpoint, word), f"probe of {node_id}")
            await asyncio.sleep(ANSWER_S)
        finally:
            self._waiting.discard(node_id)

    async def _send(self, node_id: str, endpoint: Endpoint, word: str) -> None:
        try:
            found = [endpoint.ip] if endpoint.ip is not None else await addresses(endpoint.host)
            usable = next((ip for ip in (other_machine(ip, self._network) for ip in found) if ip is not None), None)
            if usable is not None:
                await send_probes(usable, endpoint.port, word)
        except OSError as error:
            _log.info("node %s: %s cannot be reached: %s", node_id, endpoint, error.strerror or error)
        finally:
            self._sending.discard(node_id)


def other_machine(ip: Address, network: OverlayNetwork) -> Address | None:
    """Return the address in its plain form if it may be another machine's; see `reachable_ip`.

    None for the addresses of this machine's interfaces as well.
    """
    plain = reachable_ip(ip, network)
    return None if plain is None or _is_own(plain) else plain


def _is_own(ip: Address) -> bool:
    """Return whether the address is this machine's: the kernel uses such an address itself as the source."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as udp:
            udp.connect((str(ip), 9))
            return bool(udp.getsockname()[0] == str(ip))
    except OSError:  # No route: nothing will be sent.
        return False
