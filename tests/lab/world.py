"""A small internet on one machine: hosts, switches and NAT routers, made of namespaces and removed without a trace.

               switch wan 203.0.113.0/24
          ┌───────────┴──────────┐
        head                   nat-b      a router: new packets from wan are dropped
     203.0.113.10           203.0.113.30
                                 │ switch nat-b-lan 192.168.7.0/24
                                 b
                            192.168.7.10

    with World("one-nat") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        nat = world.router("nat-b", wan, "203.0.113.30", lan="192.168.7.0/24", kind="easy")
        b = world.host("b", nat.lan, "192.168.7.10")
        assert b.can_reach(head.address)
        assert not head.can_reach(b.address)

All bridges are in one namespace, nothing is ever created in the machine's own network, and there is no connection to
the outside. Needs root.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from types import FrameType, TracebackType
from typing import ClassVar, TypeVar

from tests.lab.firewalls import EAT_ICMP, NatKind, Outbound, nat_rules
from tests.lab.host import CommandError, Host
from tests.lab.leftovers import RunId, sweep
from tests.lab.waiting import wait_until

T = TypeVar("T")


@dataclass(frozen=True)
class Switch:
    """One Ethernet segment.

    Attributes:
        bridge: the name of its interface.
        gateway: the default gateway of hosts on it; None: there is none.
        mtu: the MTU of all connected interfaces, bytes.
        eats_icmp: its routers silently drop packets that are too large for it.
    """

    name: str
    network: IPv4Network
    bridge: str
    gateway: IPv4Address | None = None
    mtu: int = 1500
    eats_icmp: bool = False


@dataclass(frozen=True)
class Router:
    """A NAT router: a host between two switches (its address is the outer one), and the switch behind it."""

    host: Host
    lan: Switch
    kind: NatKind


class World:
    """Create hosts and the networks between them; everything ends with the `with` block, however that ends.

    Attributes:
        hosts: by name, routers included.

    Args:
        keep: further folders of the machine that hosts see inside their private ones.
    """

    #: The running worlds, so that their logs can be shown.
    standing: ClassVar[list[World]] = []

    def __init__(self, name: str, *, keep: Sequence[Path] = ()) -> None:
        self.name = name
        self._keep = keep
        self.hosts: dict[str, Host] = {}
        self._id = f"{RunId.mine()}-{name}"
        self._folder: Path | None = None
        self._cables: Host | None = None
        self._ports = self._switches = 0
        self._sigterm: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> World:
        sweep()
        if threading.current_thread() is threading.main_thread():
            self._sigterm = signal.signal(signal.SIGTERM, _end_like_ctrl_c)
        World.standing.append(self)
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=f"{self._id}-"))
            self._cables = self._new_host("cables")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After Ctrl-C the logs are not needed; the text of a DeadlineError contains them.
        if isinstance(error, Exception):
            print(self.logs(), file=sys.stderr)
        self.end()

    def switch(self, name: str, network: str, *, gateway: str = "") -> Switch:
        """Create a switch; hosts on it have a default route if a gateway is given."""
        self._switches += 1
        bridge = f"switch{self._switches}"  # The kernel allows 15 characters.
        self._cable(f"link add {bridge} type bridge\nlink set {bridge} up\n")
        return Switch(name, IPv4Network(network), bridge, IPv4Address(gateway) if gateway else None)

    def host(self, name: str, switch: Switch, address: str) -> Host:
        """Create a host with this address on this switch (interface eth0)."""
        host = self._add_host(name)
        self.connect(host, switch, address, interface="eth0")
        return host

    def connect(self, host: Host, switch: Switch, address: str, *, interface: str) -> None:
        """Connect a host to a (further) switch."""
        own = IPv4Interface(f"{address}/{switch.network.prefixlen}")
        self._ports += 1
        port = f"port{self._ports}"
        self._cable(
            f"link add {port} mtu {switch.mtu} type veth peer name {interface} mtu {switch.mtu} netns {host.pid}\n"
            f"link set {port} master {switch.bridge} up\n"
        )
        lines = [f"address add {own} dev {interface}", f"link set {interface} up"]
        if switch.gateway:
            lines.append(f"route add default via {switch.gateway}")
        host.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")
        if host.address.is_unspecified:
            host.address = own.ip

    def unplug(self, host: Host, interface: str) -> None:
        """Disconnect a host from a switch permanently: the interface is gone, like a removed network card."""
        host.run(["ip", "link", "delete", interface])

    def line(self, name: str, wan: Switch, address: str, *, inside: str, mtu: int, eats_icmp: bool = False) -> Switch:
        """Create a part of the wan's own addresses behind a narrower link, and the provider's router before it.

        The hosts of the wan need no route: the provider's router answers for the addresses behind it.
        """
        host = self._add_host(name)
        behind = replace(self.switch(f"{name}-line", inside), mtu=mtu, eats_icmp=eats_icmp)
        gateway = behind.network[1]
        self.connect(host, wan, address, interface="wan")
        self.connect(host, behind, str(gateway), interface="lan")
        host.shell("echo 1 | tee /proc/sys/net/ipv4/ip_forward > /proc/sys/net/ipv4/conf/wan/proxy_arp")
        if eats_icmp:
            host.run(["nft", "-f", "-"], stdin=EAT_ICMP)
        return replace(behind, gateway=gateway)

    def router(
        self,
        name: str,
        wan: Switch,
        address: str,
        *,
        lan: str,
        kind: NatKind = "easy",
        outbound: Outbound = "all",
    ) -> Router:
        """Create a router (interfaces wan and lan) with a new switch behind it, on which it has the first address."""
        host = self._add_host(name)
        inside = IPv4Network(lan)
        gateway = str(inside[1])
        behind = self.switch(f"{name}-lan", lan, gateway=gateway)
        self.connect(host, wan, address, interface="wan")
        # The router itself does not use its own gateway.
        self.connect(host, replace(behind, gateway=None), gateway, interface="lan")
        host.shell("echo 1 > /proc/sys/net/ipv4/ip_forward")
        host.run(["nft", "-f", "-"], stdin=nat_rules(kind, outbound) + (EAT_ICMP if wan.eats_icmp else ""))
        return Router(host, behind, kind)

    def wait_until(self, condition: Callable[[], T], deadline_s: float, what: str) -> T:
        """Call `waiting.wait_until`, and show every host's logs on failure."""
        return wait_until(condition, deadline_s, what, evidence=self.logs)

    def logs(self) -> str:
        """Return the logs of all hosts."""
        return "\n".join(filter(None, (host.logs() for host in self.hosts.values())))

    def end(self) -> None:
        """End all hosts and remove their folders. Idempotent."""
        for host in [*self.hosts.values(), *filter(None, [self._cables])]:
            host.end()
        self.hosts.clear()
        self._cables = None
        if self._folder:
            shutil.rmtree(self._folder)
            self._folder = None
        if self._sigterm is not None:
            signal.signal(signal.SIGTERM, self._sigterm)
            self._sigterm = None
        if self in World.standing:
            World.standing.remove(self)

    def _add_host(self, name: str) -> Host:
        if name in self.hosts:
            raise ValueError(f"{self.name} already has a host {name}")
        self.hosts[name] = self._new_host(name)
        return self.hosts[name]

    def _new_host(self, name: str) -> Host:
        if self._folder is None:
            raise RuntimeError(f"world {self.name} does not stand: use it in a with statement")
        folder = self._folder / name
        folder.mkdir()
        return Host(name, self._id, folder, self._keep)

    def _cable(self, lines: str) -> None:
        assert self._cables
        # Only the network namespace is entered: `netns PID` is then read as a process id of this machine.
        command = ["nsenter", f"--target={self._cables.pid}", "--net", "--", "ip", "-batch", "-"]
        done = subprocess.run(command, input=lines, text=True, capture_output=True, check=False, timeout=30)
        if done.returncode:
            raise CommandError(f"{done.stderr}{lines}")


def _end_like_ctrl_c(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
