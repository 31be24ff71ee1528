"""Two hosts connected by tailscaled, with a control server and without the internet.

The server is Tailscale's own test server, on the head. A daemon does not start before it has a relay (DERP), so that
server includes one; the packets of the benchmark must not pass it.
"""

from __future__ import annotations

import json

from tests.bench.other_engines import TAILSCALE_MODULE
from tests.lab.host import Host

DEVICE = "tailscale0"
#: Text that only the daemon's command line contains.
COMMAND_LINE = f"--tun\0{DEVICE}\0"
_CONTROL_PORT, _PORT = 8080, 41641
_SOCKET, _STATE = "/tmp/tailscaled.sock", "/tmp/tailscale"
_UP_S, _PING_S, _PINGS = 60, 3, 10
#: The daemon would also use the other tunnels between the hosts.
_ONLY_ETH0 = f"""
table inet bench-tailscale {{
    chain in {{
        type filter hook input priority 0
        udp dport {_PORT} iifname != "eth0" drop
    }}
}}
"""


def start(head: Host, worker: Host) -> str:
    """Connect both hosts; return the head's address in that network.

    Raises:
        RuntimeError: packets do not pass a TUN interface, or not the direct path.
    """
    head.popen([TAILSCALE_MODULE.place / "control", str(head.address), str(_CONTROL_PORT)], name="control")
    head.wait_until(lambda: head.run(["ss", "-Htln", "sport", "=", str(_CONTROL_PORT)]).stdout, 20, "control")
    daemon = [str(TAILSCALE_MODULE.place / "tailscaled"), "--no-logs-no-support", "--tun", DEVICE]
    daemon += ["--socket", _SOCKET, "--statedir", _STATE, "--port", str(_PORT)]
    for host in (head, worker):
        host.run(["nft", "-f", "-"], stdin=_ONLY_ETH0)
        host.popen(daemon)
        host.wait_until(host.path(_SOCKET).exists, 20, "tailscaled")
        options = ["--login-server", f"http://{head.address}:{_CONTROL_PORT}", "--hostname", host.name]
        _command(host, "up", *options, "--accept-dns=false", f"--timeout={_UP_S}s")
    ip = _command(head, "ip", "-4").strip()
    worker.wait_until(lambda: worker.can_reach(ip), 30, "tailscaled's tunnel")
    require_direct(head, worker)
    return ip


def require_direct(head: Host, worker: Host) -> None:
    """Raise RuntimeError unless packets to the head pass a TUN interface and UDP to the head's own address."""
    ip = _command(head, "ip", "-4").strip()
    pings = _command(worker, "ping", "--until-direct", f"--timeout={_PING_S}s", f"--c={_PINGS}", ip)
    status = json.loads(_command(worker, "status", "--json"))
    used = [peer["CurAddr"] for peer in status["Peer"].values() if ip in peer["TailscaleIPs"]]
    if used != [f"{head.address}:{_PORT}"]:
        raise RuntimeError(f"tailscaled has no direct path: {pings[-200:]}")
    if not status["TUN"]:
        raise RuntimeError("tailscaled runs without a TUN interface")


def _command(host: Host, *words: str) -> str:
    """Run a command of Tailscale's command line in the host, and return its output."""
    command = [str(TAILSCALE_MODULE.place / "tailscaled"), "--socket", _SOCKET, *words]
    return host.run(command, env={"TS_BE_CLI": "1"}, deadline_s=_UP_S + 20).stdout
