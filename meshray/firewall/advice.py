"""Which commands open a port on this host, for a user to run: meshray does not open ports to the world by itself.

>>> commands_for("ufw", "udp", 51888)
['ufw allow 51888/udp']
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from meshray.firewall import rules
from meshray.firewall.backends import Backends, HeldTable
from meshray.firewall.programs import Proc, Run, run_program


def open_port_commands(port: int, *, run: Run = run_program, proc: Path = Path("/proc")) -> list[str]:
    """The commands that let UDP and TCP of this port in; [] where nothing drops them. Needs root to see the rules."""
    kernel = Proc(proc)
    host = Backends(run, kernel)
    uplink = kernel.uplink()
    commands: list[str] = []
    for held in host.tables(host.nft_listing()):
        for protocol in ("udp", "tcp"):
            if rules.port_is_dropped(held.table, protocol, port, uplink):
                commands += commands_for(manager(held), protocol, port, _chain(held))
    return list(dict.fromkeys(commands))


#: How the sentence begins that the switch cannot be set.
SWITCH = "forwarding on "


def forwarding_fix(interface: str, value: str) -> str:
    """What sets the interface's forwarding switch where meshray may not: in a container /proc/sys is read-only."""
    switch = f"net.ipv4.conf.{interface}.forwarding={value}"
    return (
        f"mount -o remount,bind,rw /proc/sys && sysctl -w {switch} "
        "(in a container: start it again with --sysctl net.ipv4.ip_forward=1)"
    )


def manager(held: HeldTable) -> str:
    """Whose words a user uses to change this table: ufw, firewalld, nft, or an iptables program."""
    if held.is_firewalld:
        return "firewalld"
    return "ufw" if held.table.chain("ufw-user-input") else held.owner


def _chain(held: HeldTable) -> str:
    first = next((chain.name for chain in held.table.chains if chain.hook == "input"), "input")
    return f"{held.table.family} {held.table.name} {first}"


_COMMANDS: dict[str, Callable[[str, int, str], list[str]]] = {
    "ufw": lambda protocol, port, _: [f"ufw allow {port}/{protocol}"],
    "firewalld": lambda protocol, port, _: [
        f"firewall-cmd --add-port={port}/{protocol}",
        f"firewall-cmd --permanent --add-port={port}/{protocol}",
    ],
    "nft": lambda protocol, port, chain: [f"nft insert rule {chain} {protocol} dport {port} accept"],
}


def commands_for(program: str, protocol: str, port: int, chain: str = "inet filter input") -> list[str]:
    """The commands in the words of ufw, firewalld, nft, or else of the iptables program named.

    Args:
        chain: of nft with family and table; of iptables with ``-t TABLE`` where that is not filter.
    """
    known = _COMMANDS.get(program)
    if known:
        return known(protocol, port, chain)
    table, _, name = chain.rpartition(" ")
    at = f"{table} -I {name}" if table.startswith("-t ") else "-I INPUT"
    return [f"{program} {at} -p {protocol} --dport {port} -j ACCEPT"]
