"""The commands that open a port on this host, for a user to run: meshray never opens ports to the world itself."""

from __future__ import annotations

from pathlib import Path

from meshray.firewall import rules
from meshray.firewall.host_firewalls import HostFirewalls
from meshray.firewall.host_programs import Run, run_program
from meshray.firewall.kernel_state import KernelState
from meshray.firewall.ruleset import Chain, Table


def open_port_commands(port: int, *, run: Run = run_program, proc: Path = Path("/proc")) -> list[str]:
    """Return the commands that accept UDP and TCP on this port; [] where nothing drops them. Reading the rules needs
    root."""
    kernel = KernelState(proc)
    host = HostFirewalls(run, kernel)
    uplink = kernel.uplink()
    commands: list[str] = []
    for host_table in host.tables(host.listing()):
        for protocol in ("udp", "tcp"):
            if rules.port_is_dropped(host_table.table, protocol, port, uplink):
                commands += host_table.advise_port(_input_chain(host_table.table), protocol, port)
    return list(dict.fromkeys(commands))


def _input_chain(table: Table) -> Chain:
    return next((chain for chain in table.chains if chain.hook == "input"), Chain("input", "input", "", ()))
