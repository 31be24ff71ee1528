"""Ask the kernel which route it chooses for an address, and what made it choose that one."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyroute2.iproute.linux import IPRoute

#: RTM_F_LOOKUP_TABLE and RTM_F_FIB_MATCH of linux/rtnetlink.h: answer with the route itself, and its table.
_WITH_ROUTE = 0x1000 | 0x2000
#: The kernel's own rules: local, main, default.
OWN_PRIORITIES = (0, 32766, 32767)
_REFUSALS = {errno.EINVAL: "blackhole", errno.EACCES: "prohibit", errno.EHOSTUNREACH: "unreachable"}
#: FR_ACT_UNREACHABLE of linux/fib_rules.h. Such a rule and the lack of any route have the same error.
_UNREACHABLE_RULE = 7
NO_ROUTE = "no route"


@dataclass(frozen=True)
class Chosen:
    """The kernel's choice.

    Attributes:
        index: of the interface by which packets leave; 0: they are refused, as in ``refused``.
        refused: ``blackhole``, ``prohibit`` or ``unreachable``; `NO_ROUTE` if none matches.
        network: the destination of the chosen route, with its ``table`` (number); empty: not known, or none matches.
        rule: the policy rule that led there; empty: one of the kernel's own.
        gateway: the router to which packets are handed; empty: the address is on the interface's own network.
    """

    index: int = 0
    refused: str = ""
    network: str = ""
    table: int = 0
    rule: str = ""
    gateway: str = ""


def look_up(netlink: IPRoute, target: IPv4Address, source: IPv4Address | None = None) -> Chosen | None:
    """Query `ip route get TARGET from SOURCE`; None if this machine does not have the source address."""
    from pyroute2.netlink.exceptions import NetlinkError

    from_source = {} if source is None else {"src": str(source)}
    try:
        (answer,) = netlink.route("get", dst=str(target), flags=_WITH_ROUTE, **from_source)
    except NetlinkError as error:
        if source is not None and error.code == errno.EINVAL and not _has_address(netlink, source):
            return None
        network, table = _refusing(netlink, target)
        return Chosen(0, _refusal(netlink, error.code), network, table)
    network = f"{answer.get_attr('RTA_DST') or '0.0.0.0'}/{answer['dst_len']}"  # noqa: S104 - the default route
    table = int(answer.get_attr("RTA_TABLE") or answer["table"])
    index, gateway = int(answer.get_attr("RTA_OIF") or 0), str(answer.get_attr("RTA_GATEWAY") or "")
    return Chosen(index, "", network, table, _rule_to(netlink, table), gateway)


def _refusal(netlink: IPRoute, code: int) -> str:
    if code != errno.ENETUNREACH:
        return _REFUSALS.get(code, "unreachable")
    by_rule = any(rule["action"] == _UNREACHABLE_RULE for rule in netlink.get_rules(family=socket.AF_INET))
    return "unreachable" if by_rule else NO_ROUTE


def _has_address(netlink: IPRoute, address: IPv4Address) -> bool:
    return any(message.get_attr("IFA_LOCAL") == str(address) for message in netlink.get_addr(family=socket.AF_INET))


def _refusing(netlink: IPRoute, target: IPv4Address) -> tuple[str, int]:
    """Return the longest matching route that refuses: (network, table), or nothing: then a rule refuses."""
    unicast_or_local = (1, 2, 3)
    found = []
    for message in netlink.get_routes(family=socket.AF_INET):
        network = IPv4Network(f"{message.get_attr('RTA_DST') or '0.0.0.0'}/{message['dst_len']}")  # noqa: S104
        if message["type"] not in unicast_or_local and target in network:
            found.append((network.prefixlen, str(network), int(message.get_attr("RTA_TABLE") or message["table"])))
    return max(found)[1:] if found else ("", 0)


def _rule_to(netlink: IPRoute, table: int) -> str:
    """Return the first rule of a user that leads to this table, as `ip rule add` accepts it."""
    for rule in netlink.get_rules(family=socket.AF_INET):
        priority = rule.get_attr("FRA_PRIORITY") or 0
        if priority not in OWN_PRIORITIES and (rule.get_attr("FRA_TABLE") or rule["table"]) == table:
            source, target, mark = (rule.get_attr(name) for name in ("FRA_SRC", "FRA_DST", "FRA_FWMARK"))
            words = [f"from {source}/{rule['src_len']}" if source else "from all"]
            words += [f"to {target}/{rule['dst_len']}"] if target else []
            words += [f"fwmark {mark:#x}"] if mark else []
            return " ".join([*words, f"lookup {table} priority {priority}"])
    return ""
