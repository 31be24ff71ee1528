"""The places of nodes: every kind of network of a user, and which pairs of them can communicate directly.

    public      an address of its own, nothing in the way
    easy        behind a home router whose mapping of a port is the same for every destination
    symmetric   behind a router that maps to another port for every destination
    dropping    an address of its own, a host firewall that lets nothing new in
    double      behind a home router behind the provider's (two NATs in a row)
    narrow      behind a home router on a line of 1280 bytes; the second one's routers eat ICMP as well
    no-udp      behind a gateway that lets no UDP out
    only-443    behind a gateway that lets out nothing but TCP to port 443
    proxied     behind a gateway that lets out nothing at all; a proxy with a password runs on it

                             switch wan 192.88.99.0/24
      ┌─────────┬──────────┬──────┴───┬─────────────┬──────────────┬────────────┐
     hub     public-1  dropping-1  easy-1-nat  double-1-carrier  narrow-1-isp  proxied-1-nat…
    (:443)                            │             │ 100.64.1.0/24  │ mtu 1280     │ no way out,
                                 ┌────┴───┐    double-1-nat     narrow-1-nat        │ tinyproxy
                              easy-1     mate       │                │           proxied-1
                                                 double-1         narrow-1

Two of each kind, and a second host in the LAN of the first easy one. Every home has the same LAN, 192.168.1.0/24, as is
common, and every node in it the same address: an address that one node reports may well be another's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Literal

from tests.lab.firewalls import NatKind, Outbound
from tests.lab.host import Host
from tests.lab.proxy import Proxy
from tests.lab.world import Router, Switch, World

Kind = Literal["public", "easy", "symmetric", "dropping", "double", "narrow", "no-udp", "only-443", "proxied"]
KINDS: tuple[Kind, ...] = (
    "public", "easy", "symmetric", "dropping", "double", "narrow", "no-udp", "only-443", "proxied",
)  # fmt: skip
#: It is no longer assigned, and yet counts as a public address, unlike those for documentation.
WAN = "192.88.99.0/24"
HOME_LAN = "192.168.1.0/24"
NARROW_MTU = 1280
_FIRST = "192.168.1.10"

_OUTBOUND: Mapping[Kind, Outbound] = {"no-udp": "no-udp", "only-443": "tcp-443", "proxied": "nothing"}

Way = Literal["direct", "hub"]
Transport = Literal["udp", "wss"]


@dataclass(frozen=True)
class Place:
    """One host and the routers between it and the others.

    Attributes:
        outside: its address in the wan.
        site: equal for hosts that share a LAN.
        routers: those on its path to the wan, the nearest first.
    """

    kind: Kind
    host: Host
    outside: str
    site: str
    routers: tuple[Router, ...] = ()

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.name

    @property
    def has_udp(self) -> bool:
        """Whether its datagrams reach the wan."""
        return self.kind not in ("no-udp", "only-443", "proxied")

    @property
    def transport(self) -> Transport:
        """The transport of its tunnel to the hub."""
        return "udp" if self.has_udp else "wss"

    @property
    def is_open(self) -> bool:
        """Whether it receives packets from hosts to which it has sent none."""
        return self.kind == "public"


@dataclass(frozen=True)
class Internet:
    """A hub that all can reach, and the places by name."""

    hub: Host
    places: Mapping[str, Place]


@dataclass(frozen=True)
class Expected:
    """The expected result for a pair, and the reason."""

    way: Way
    reason: str


def expected(one: Place, other: Place) -> Expected:
    """Return how two places can communicate; the same from both sides."""
    kinds = {one.kind, other.kind}
    if one.site == other.site:
        return Expected("direct", "they share a LAN")
    if not (one.has_udp and other.has_udp):
        blocked = one if not one.has_udp else other
        return Expected("hub", f"{blocked.name} has no UDP")
    if one.is_open or other.is_open:
        return Expected("direct", "one of them can simply be called, and answers to where the call came from")
    if "symmetric" in kinds:
        return Expected(
            "hub",
            "the symmetric side calls from a port that the other cannot know and has not called",
        )
    return Expected("direct", "both call at the same moment, from ports that the hub has seen: each opens its own side")


def dialled(me: Place, other: Place) -> str:
    """Return the address at which one place reaches another directly."""
    return str(other.host.address) if me.site == other.site else other.outside


def every_place(world: World) -> Internet:
    """Create all places: 20 hosts and 18 routers; see the module's docstring."""
    wan = world.switch("wan", WAN)
    hub = world.host("hub", wan, "192.88.99.10")
    places = {}
    for number in (1, 2):
        for kind in KINDS:
            place = _open_place if kind in ("public", "dropping") else _place_behind
            places[f"{kind}-{number}"] = place(world, wan, kind, number)
    easy = places["easy-1"]
    lan = easy.routers[0].lan
    places["mate"] = replace(easy, host=world.host("mate", lan, "192.168.1.11"))
    return Internet(hub, places)


def _outside(kind: Kind, number: int) -> str:
    return f"192.88.99.{10 * (KINDS.index(kind) + 2) + number}"


def _open_place(world: World, wan: Switch, kind: Kind, number: int) -> Place:
    name, address = f"{kind}-{number}", _outside(kind, number)
    host = world.host(name, wan, address)
    if kind == "dropping":
        host.drop_inbound()
    return Place(kind, host, address, site=name)


def _place_behind(world: World, wan: Switch, kind: Kind, number: int) -> Place:
    name, address = f"{kind}-{number}", _outside(kind, number)
    routers: tuple[Router, ...] = ()
    if kind == "double":
        carrier = world.router(f"{name}-carrier", wan, address, lan=f"100.64.{number}.0/24")
        routers = (world.router(f"{name}-nat", carrier.lan, f"100.64.{number}.2", lan=HOME_LAN), carrier)
    elif kind == "narrow":
        inside = IPv4Network(f"192.88.99.{240 + 4 * number}/30")
        line = world.line(f"{name}-isp", wan, address, inside=str(inside), mtu=NARROW_MTU, eats_icmp=number == 2)
        address = str(inside[2])
        routers = (world.router(f"{name}-nat", line, address, lan=HOME_LAN),)
    else:
        nat: NatKind = "symmetric" if kind == "symmetric" else "easy"
        routers = (
            world.router(f"{name}-nat", wan, address, lan=HOME_LAN, kind=nat, outbound=_OUTBOUND.get(kind, "all")),
        )
    host = world.host(name, routers[0].lan, _FIRST)
    if kind == "proxied":
        proxy = Proxy(routers[0].host, str(routers[0].lan.gateway))
        proxy.start()
        host.environment.update(proxy.environment)
    return Place(kind, host, address, site=name, routers=routers)
