"""A mesh of three nodes with Ray, a laptop outside the mesh, and Prometheus with Alertmanager on the head.

                     switch wan 192.88.99.0/24
       ┌──────────────┬─────────┴────┬──────────────┐
      head         home-nat      office-nat      cafe-nat     home routers: nothing new comes in
   Prometheus    192.168.1.0/24 192.168.2.0/24 192.168.3.0/24
  Alertmanager        │              │              │
                    home          office         laptop       the laptop is not a node; it has the browser

The path home - office is direct.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY, Host, HostProcess
from tests.lab.trouble import silenced
from tests.lab.world import Router, Switch, World

#: The TCP port of the coordinator, and the agents' port for metrics.
PORT, METRICS_PORT = 51888, 20190
#: The ports of the two programs on the head's loopback.
PROMETHEUS_PORT, ALERTMANAGER_PORT = 9090, 9093
_READY_S = 30
#: The packages that a job of the tests installs, for hosts that reach no index.
PACKAGES = REPOSITORY / ".cache/packages"


@dataclass
class WebMesh:
    """The mesh; see the module's docstring."""

    world: World
    wan: Switch
    cluster: Cluster
    routers: dict[str, Router]

    @property
    def head(self) -> Host:
        """The host that runs the coordinator and the Ray head."""
        return self.cluster.head

    @property
    def laptop(self) -> Host:
        """The host outside the mesh."""
        return self.world.hosts["laptop"]

    @property
    def names(self) -> list[str]:
        """The names of the nodes, the head first."""
        return [host.name for host in self.cluster.hosts]

    def host(self, name: str) -> Host:
        """Return the host of this name."""
        return self.world.hosts[name]

    @property
    def url(self) -> str:
        """The address of the page, without a path."""
        return f"https://{self.head.address}:{PORT}"

    def path_kind(self, one: str, other: str) -> str:
        """Return the kind of the path from one node to another, by its status."""
        nodes = self.cluster.meshray(self.host(one), "status", check=False)["nodes"]
        return next(str(node["path"]["kind"]) for node in nodes if node["name"] == other)

    def wait_until_direct(self, one: str = "home", other: str = "office", deadline_s: float = 90) -> None:
        """Wait for the direct path between two workers."""
        self.world.wait_until(
            lambda: self.path_kind(one, other) == self.path_kind(other, one) == "direct",
            deadline_s,
            f"a direct path {one} - {other}",
        )

    @contextmanager
    def without_direct_path(self, one: str = "home", other: str = "office") -> Iterator[None]:
        """Drop at both routers what comes straight from the other; the hub remains reachable."""
        with ExitStack() as cut:
            for here, there in ((one, other), (other, one)):
                cut.enter_context(silenced(self.routers[here].host, str(self.routers[there].host.address)))
            yield

    def get(self, host: Host, url: str, *options: str) -> str:
        """Return the body of a page, by curl on this host; an error of HTTP raises CommandError."""
        return host.run(["curl", "-sS", "--fail-with-body", "--max-time", "20", *options, url]).stdout

    def status_of(self, host: Host, url: str, *options: str) -> int:
        """Return the HTTP status of a page, by curl on this host; 0 without an answer."""
        ask = ["curl", "-sk", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", *options, url]
        return int(host.run(ask, check=False).stdout or 0)

    def metrics(self, name: str) -> str:
        """Return the metrics of a node, as its own agent serves them."""
        host = self.host(name)
        return self.get(host, f"http://{self.cluster.ip(host)}:{METRICS_PORT}/metrics")


def fetch_packages() -> None:
    """Download what the example's job installs."""
    wanted = REPOSITORY / "docs/examples/requests/requirements.txt"
    PACKAGES.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(PACKAGES), "--requirement", str(wanted)]
    subprocess.run(pip, check=True, timeout=120)


@contextmanager
def web_mesh(name: str = "web") -> Iterator[WebMesh]:
    """Create the mesh; it ends with the block."""
    fetch_packages()
    with World(name, keep=[PACKAGES]) as world:
        wan = world.switch("wan", "192.88.99.0/24")
        head = world.host("head", wan, "192.88.99.10")
        routers, hosts = {}, []
        for number, host in enumerate(("home", "office", "laptop"), start=1):
            lan = f"192.168.{number}.0/24"
            routers[host] = world.router(f"{host}-nat", wan, f"192.88.99.{30 + number}", lan=lan)
            hosts.append(world.host(host, routers[host].lan, f"192.168.{number}.10"))
        for node in (head, *hosts):
            node.environment.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(PACKAGES))
        mesh = WebMesh(world, wan, Cluster.start(head, hosts[:2]), routers)
        mesh.wait_until_direct()
        yield mesh


class Monitoring:
    """Prometheus and Alertmanager on the head, with the files that `meshray render` prints."""

    def __init__(self, mesh: WebMesh, prometheus: HostProcess, alertmanager: HostProcess) -> None:
        self._mesh = mesh
        self._processes = (prometheus, alertmanager)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression of PromQL."""
        asked = urllib.parse.urlencode({"query": expression})
        answer = json.loads(self._mesh.get(self._mesh.head, f"{_local(PROMETHEUS_PORT)}/api/v1/query?{asked}"))
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def targets(self) -> list[dict[str, Any]]:
        """Return Prometheus' active targets."""
        answer = json.loads(self._mesh.get(self._mesh.head, f"{_local(PROMETHEUS_PORT)}/api/v1/targets?state=active"))
        return list(answer["data"]["activeTargets"])

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that Alertmanager holds."""
        return list(json.loads(self._mesh.get(self._mesh.head, f"{_local(ALERTMANAGER_PORT)}/api/v2/alerts")))

    def is_ready(self) -> bool:
        """Return whether both answer."""
        urls = (f"{_local(PROMETHEUS_PORT)}/-/ready", f"{_local(ALERTMANAGER_PORT)}/-/ready")
        return all(self._mesh.status_of(self._mesh.head, url) == 200 for url in urls)

    def stop(self) -> None:
        """End both."""
        for process in self._processes:
            process.stop()


@contextmanager
def monitoring(mesh: WebMesh, config: str, rules: str) -> Iterator[Monitoring]:
    """Run both programs on the head, with this scrape configuration and these rules, until the block ends."""
    folder = mesh.head.path("/etc/prometheus-test")
    folder.mkdir(exist_ok=True)
    (folder / "prometheus.yml").write_text(config)
    (folder / "alerts.yml").write_text(rules)
    (folder / "alertmanager.yml").write_text("route: {receiver: none, group_wait: 1s}\nreceivers: [{name: none}]\n")
    inside = "/etc/prometheus-test"
    prometheus = mesh.head.popen(
        [
            "prometheus",
            f"--config.file={inside}/prometheus.yml",
            "--storage.tsdb.path=/var/lib/prometheus-test",
            f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}",
        ],
        name="prometheus",
    )
    alertmanager = mesh.head.popen(
        [
            "prometheus-alertmanager",
            f"--config.file={inside}/alertmanager.yml",
            "--storage.path=/var/lib/alertmanager-test",
            f"--web.listen-address=127.0.0.1:{ALERTMANAGER_PORT}",
            "--cluster.listen-address=",
        ],
        name="alertmanager",
    )
    running = Monitoring(mesh, prometheus, alertmanager)
    try:
        mesh.head.wait_until(running.is_ready, _READY_S, "Prometheus and Alertmanager")
        yield running
    finally:
        running.stop()


def _local(port: int) -> str:
    return f"http://127.0.0.1:{port}"
