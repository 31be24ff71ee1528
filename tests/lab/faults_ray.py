"""Faults of Ray, on a cluster of a head, `walled` and `nested` (`tests.lab.topologies.one_of_each`).

The doctor runs on the head, which every node answers.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.lab.cluster import Cluster
from tests.lab.faults import Fault
from tests.lab.host import Host

INTERFACE = "meshray0"
#: A table of the fault: the host's other tables do not change.
TABLE = "broken"
GCS, NODE_MANAGER, OBJECT_MANAGER = 6379, 20101, 20102
#: The time from a killed Ray to its supervisor's report.
NOTICED_S = 60
TOKEN = "/run/meshray/ray_token"
#: Takes the port as soon as it is free, and keeps it.
_GRAB = """
import socket, time
grabber = socket.socket()
grabber.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
while True:
    try:
        grabber.bind(("0.0.0.0", {port}))
        break
    except OSError:
        time.sleep(0.01)
grabber.listen()
time.sleep(3600)
"""


def host_of(cluster: Cluster, name: str) -> Host:
    return next(host for host in cluster.hosts if host.name == name)


def pids(host: Host, word: str) -> list[int]:
    """Return the processes whose command line has this word, read from outside."""
    found = []
    for folder in host.path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has just ended.
            if word.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def signalled(name: str, word: str, signal: str) -> Callable[[Cluster], None]:
    def send(cluster: Cluster) -> None:
        host = host_of(cluster, name)
        for pid in pids(host, word):
            host.run(["kill", f"-{signal}", str(pid)], check=False)

    return send


def dropped(name: str, rule: str) -> Callable[[Cluster], None]:
    """Silently drop the packets that the rule matches on their way into the host.

    All packets are without a mark, but a reader of the rule cannot know that: the agent overrules a plain drop.
    """

    def drop(cluster: Cluster) -> None:
        host = host_of(cluster, name)
        text = rule.format(ip=cluster.ip(host), **{other.name: cluster.ip(other) for other in cluster.hosts})
        rules = f"""
        table inet {TABLE} {{
            chain input {{
                type filter hook input priority -5; policy accept;
                meta mark 0 {text} drop
            }}
        }}
        """
        host.run(["nft", "-f", "-"], stdin=rules)

    return drop


def accepted(name: str) -> Callable[[Cluster], None]:
    def heal(cluster: Cluster) -> None:
        host_of(cluster, name).run(["nft", "delete", "table", "inet", TABLE], check=False)

    return heal


def _site_packages(host: Host) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(host.run([sys.executable, "-c", code]).stdout.strip())


def _hide_ray(cluster: Cluster) -> None:
    host = host_of(cluster, "nested")
    host.run(["mount", "-t", "tmpfs", "none", str(_site_packages(host) / "ray")])
    signalled("nested", "raylet/raylet", "KILL")(cluster)


def _show_ray(cluster: Cluster) -> None:
    host = host_of(cluster, "nested")
    host.run(["umount", "-l", str(_site_packages(host) / "ray")], check=False)


def _record(host: Host) -> Path:
    """Return Ray's own record of its version."""
    (record,) = [folder / "METADATA" for folder in _site_packages(host).glob("ray-*.dist-info")]
    return record


def _report_another_version(cluster: Cluster) -> None:
    host = host_of(cluster, "walled")
    record = _record(host)
    lines = ["Version: 2.59.1" if line.startswith("Version: ") else line for line in record.read_text().splitlines()]
    host.path("/tmp/METADATA").write_text("\n".join(lines) + "\n")
    host.run(["mount", "--bind", "/tmp/METADATA", str(record)])


def _report_the_version(cluster: Cluster) -> None:
    host = host_of(cluster, "walled")
    host.run(["umount", "-l", str(_record(host))], check=False)


def _alter_token(cluster: Cluster) -> None:
    file = host_of(cluster, "walled").path(TOKEN)
    text = file.read_text()
    file.write_text(text[:-4] + text[-4:][::-1] + "0")


def _restore_token(cluster: Cluster) -> None:
    # The same token is on every node of the mesh.
    host_of(cluster, "walled").path(TOKEN).write_text(cluster.head.path(TOKEN).read_text())


def _take_port(cluster: Cluster) -> None:
    host = host_of(cluster, "walled")
    host.popen([sys.executable, "-c", _GRAB.format(port=NODE_MANAGER)], name="grabber")
    signalled("walled", "raylet/raylet", "KILL")(cluster)
    host.wait_until(partial(_complains, host, f"port {NODE_MANAGER}"), NOTICED_S, "Ray's supervisor names the port")


def _complains(host: Host, words: str) -> bool:
    done = host.run(["meshray", "status", "--json"], check=False)
    return any(words in problem for problem in json.loads(done.stdout)["problems"])


def _give_port_back(cluster: Cluster) -> None:
    signalled("walled", "grabber.bind", "KILL")(cluster)


def _of_ray(
    name: str, node: str, code: str, inject: Callable[[Cluster], None], heal: Callable[[Cluster], None]
) -> Fault[Cluster]:
    return Fault(name, "ray", inject, heal, code, node, asked="head")


def _stopped(name: str, node: str, word: str) -> Fault[Cluster]:
    return _of_ray(name, node, "ray_running", signalled(node, word, "STOP"), signalled(node, word, "CONT"))


def _closed(name: str, node: str, rule: str, code: str = "ray_ports") -> Fault[Cluster]:
    return _of_ray(name, node, code, dropped(node, rule), accepted(node))


FAULTS: tuple[Fault[Cluster], ...] = (
    _stopped("raylet-stopped", "walled", "raylet/raylet"),
    _stopped("gcs-stopped", "head", "gcs/gcs_server"),
    _stopped("dashboard-stopped", "head", "dashboard/dashboard.py"),
    _closed("gcs-dropped", "head", f"iifname {INTERFACE} tcp dport {GCS}"),
    _closed("object-manager-dropped", "walled", f"iifname {INTERFACE} tcp dport {OBJECT_MANAGER}"),
    _closed("node-manager-dropped", "nested", f"iifname {INTERFACE} tcp dport {NODE_MANAGER}"),
    _closed("worker-ports-dropped", "nested", f"iifname {INTERFACE} tcp dport 10002-19999"),
    _closed("own-address-dropped", "nested", "iifname lo ip daddr {ip} tcp flags & (syn | ack) == syn", "own_address"),
    _of_ray("token-altered", "walled", "ray_token", _alter_token, _restore_token),
    _of_ray("another-ray-installed", "walled", "ray_versions", _report_another_version, _report_the_version),
    _of_ray("ray-removed", "nested", "ray_installed", _hide_ray, _show_ray),
    _of_ray("port-taken", "walled", "ray_running", _take_port, _give_port_back),
)
