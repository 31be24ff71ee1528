"""The commands that open a port on this host, for a user to run: meshray never opens ports to the world itself."""

from __future__ import annotations

from pathlib import Path

from meshray.firewall import rules
from meshray.firewall.host_access import Proc, Run, run_program
from meshray.firewall.host_firewalls import Host
from meshray.firewall.ruleset import Chain, Table


def open_port_commands(port: int, *, run: Run = run_program, proc: Path = Path("/proc")) -> list[str]:
    """Return the commands that accept UDP and TCP on this port; [] where nothing drops them. Reading the rules needs
    root."""
    kernel = Proc(proc)
    host = Host(run, kernel)
    uplink = kernel.uplink()
    commands: list[str] = []
    for held in host.tables(host.listing()):
        for protocol in ("udp", "tcp"):
            if rules.port_is_dropped(held.table, protocol, port, uplink):
                commands += held.advise_port(_input_chain(held.table), protocol, port)
    return list(dict.fromkeys(commands))


def _input_chain(table: Table) -> Chain:
    return next((chain for chain in table.chains if chain.hook == "input"), Chain("input", "input", "", ()))
