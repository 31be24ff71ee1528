"""The networks that several tests share.

one_of_each: the network of `make demo`.

               switch wan 203.0.113.0/24
        ┌─────────────┼──────────────┐
      head         walled           nat    port-keeping NAT: nothing new comes in
  203.0.113.10  203.0.113.20    203.0.113.30
                drops all            │ switch nat-lan 192.168.7.0/24
                inbound            nested
                                192.168.7.10

    with World("demo") as world:
        cluster = one_of_each(world)
        cluster.head.run(["meshray", "init"])

ten: the network on which the doctor's time is measured.

            switch wan 203.0.113.0/24
  ┌─────────┬──────┴─┬─────────────┬────────────┐
head    n1 … n4    nat-a         nat-s        nat-u
 .10    .21 … .24   .30           .40          .50
                  easy│      symmetric│      no UDP│
                  n5, n6          n7, n8        n9
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.firewalls import FirewallKind, NatKind
from tests.lab.host import Host
from tests.lab.world import Switch, World


@dataclass(frozen=True)
class OneOfEach:
    """A reachable head, a worker whose firewall drops inbound packets, and a worker behind a NAT.

    Attributes:
        wan, lan: the switches of the picture.
    """

    head: Host
    walled: Host
    nested: Host
    wan: Switch
    lan: Switch

    @property
    def workers(self) -> tuple[Host, Host]:
        """All hosts but the head."""
        return (self.walled, self.nested)

    @property
    def nodes(self) -> tuple[Host, Host, Host]:
        """The hosts, the head first."""
        return (self.head, *self.workers)


def one_of_each(world: World, *, firewall: FirewallKind = "nft", nat: NatKind = "easy") -> OneOfEach:
    """Create this network; see the module's docstring."""
    wan = world.switch("wan", "203.0.113.0/24")
    head = world.host("head", wan, "203.0.113.10")
    walled = world.host("walled", wan, "203.0.113.20")
    walled.drop_inbound(firewall)
    router = world.router("nat", wan, "203.0.113.30", lan="192.168.7.0/24", kind=nat)
    nested = world.host("nested", router.lan, "192.168.7.10")
    return OneOfEach(head, walled, nested, wan, router.lan)


def ten(world: World) -> tuple[Host, ...]:
    """Create the head and nine workers, n1 first; see the module's docstring."""
    wan = world.switch("wan", "203.0.113.0/24")
    hosts = [world.host("head", wan, "203.0.113.10")]
    hosts += [world.host(f"n{number}", wan, f"203.0.113.2{number}") for number in range(1, 5)]
    easy = world.router("nat-a", wan, "203.0.113.30", lan="192.168.7.0/24")
    symmetric = world.router("nat-s", wan, "203.0.113.40", lan="192.168.8.0/24", kind="symmetric")
    no_udp = world.router("nat-u", wan, "203.0.113.50", lan="192.168.9.0/24", outbound="no-udp")
    for number, router in ((5, easy), (6, easy), (7, symmetric), (8, symmetric), (9, no_udp)):
        hosts.append(world.host(f"n{number}", router.lan, str(router.lan.network[10 + number])))
    return tuple(hosts)
