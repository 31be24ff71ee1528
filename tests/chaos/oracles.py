"""The state of a mesh according to `ip`, `wg`, `ping`, `nft` and /proc; and the state of a host afterwards.

>>> unreachable({head: "10.99.0.1", worker: "10.99.0.2"})
[]
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tests.lab.host import PRIVATE_FOLDERS, Host

T = TypeVar("T")

INTERFACE = "meshray0"
#: The number of hosts in which commands run at a time.
AT_ONCE = 8
#: Ray's own sessions and logs belong to Ray, and so do its killed processes' files in Python's multiprocessing folders;
#: where every WireGuard has its sockets an empty folder remains.
NOT_OURS = ("/tmp/ray", "/tmp/pymp-", "/run/wireguard ", "faketime_")


def on_each(hosts: Iterable[Host], ask: Callable[[Host], T]) -> dict[Host, T]:
    """Return each host's answer; they are asked concurrently."""
    hosts = list(hosts)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(hosts, pool.map(ask, hosts), strict=True))


def own_address(host: Host) -> str:
    """Return the overlay address in the kernel; empty if there is no device."""
    done = host.run(["ip", "-json", "-4", "address", "show", INTERFACE], check=False)
    found = done.json() if done.returncode == 0 else []
    return next((entry["local"] for link in found for entry in link["addr_info"] if entry["prefixlen"] < 32), "")


def unreachable(addresses: Mapping[Host, str]) -> list[str]:
    """Return the ordered pairs between which no ping comes back."""
    several = " ".join(addresses.values())
    ping = f"for a in {several}; do (ping -n -c 3 -i 0.3 -W 1 $a | grep -q 'bytes from' || echo $a) & done; wait"
    lost = on_each(addresses, lambda host: host.shell(ping).stdout.split())
    return [f"{host.name} → {address}" for host, those in lost.items() for address in those]


def wrong_addresses(addresses: Mapping[Host, str]) -> list[str]:
    """Return nodes whose device has another address than assigned, or one that another node has."""
    seen = on_each(addresses, own_address)
    wrong = [
        f"{host.name} has {seen[host]} and was assigned {assigned}"
        for host, assigned in addresses.items()
        if seen[host] != assigned
    ]
    twice = {address for address in seen.values() if list(seen.values()).count(address) > 1}
    return wrong + [f"{address} twice" for address in twice]


def wrong_peers(hub: Host, members: Iterable[Host]) -> list[str]:
    """Return the superfluous and missing keys of the hub's WireGuard."""
    keys = on_each(members, lambda host: host.run(["wg", "show", INTERFACE, "public-key"]).stdout.strip())
    peers = set(hub.run(["wg", "show", INTERFACE, "peers"]).stdout.split())
    names = {key: host.name for host, key in keys.items()}
    missing = [f"the hub lacks {names[key]}" for key in names.keys() - peers]
    return missing + [f"the hub has a stranger {key}" for key in peers - names.keys()]


def commands(host: Host) -> list[str]:
    """Return the command lines of all processes of a host except its first, read from outside."""
    found = []
    for folder in host.path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has just ended.
            words = (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
            if words and folder.name != "1":
                found.append(words)
    return sorted(found)


def wrong_processes(host: Host, expected: Mapping[str, int]) -> list[str]:
    """Return words of command lines, with the number of processes that must have them."""
    running = commands(host)
    counts = {word: sum(word in line for line in running) for word in expected}
    return [f"{host.name}: {counts[word]} × {word}" for word, number in expected.items() if counts[word] != number]


def traces(host: Host) -> dict[str, Any]:
    """Return everything that a node could leave on its machine: interfaces, routes, rules, processes, files."""
    folders = " ".join(("/etc", *PRIVATE_FOLDERS))
    files = host.shell(f"find {folders} -xdev ! -type s -printf '%p %m %U\\n'").stdout.splitlines()
    return {
        "links": sorted(host.run(["ip", "-brief", "link"]).stdout.splitlines()),
        "addresses": sorted(
            host.shell("ip -brief -4 address; ip -brief -6 address show scope global").stdout.splitlines()
        ),
        "routes": sorted(host.run(["ip", "-4", "route", "show", "table", "all"]).stdout.splitlines()),
        "routes of IPv6": [
            line for line in host.run(["ip", "-6", "route"]).stdout.splitlines() if "fe80::" not in line
        ],
        "policy": host.run(["ip", "rule"]).stdout.splitlines(),
        "rules": host.run(["nft", "list", "ruleset"]).stdout.splitlines(),
        "processes": commands(host),
        "files": sorted(line for line in files if not any(part in line for part in NOT_OURS)),
    }


def left_over(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what exists now and did not before, and the reverse."""
    return [
        f"{kind}: {sign} {line}"
        for kind in before
        for sign, lines in (("+", set(after[kind]) - set(before[kind])), ("-", set(before[kind]) - set(after[kind])))
        for line in sorted(lines)
    ]
