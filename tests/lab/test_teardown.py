"""A node that leaves or goes down leaves nothing behind. These tests end the one cluster, so they come last."""

from __future__ import annotations

from tests.lab.cluster import Cluster
from tests.lab.test_main_job import INTERFACE, processes


def test_leave_removes_every_trace(cluster: Cluster) -> None:
    walled, nested = cluster.workers
    cluster.meshray(nested, "leave", "--yes")
    links = [link["ifname"] for link in nested.run(["ip", "-json", "link"]).json()]
    assert sorted(links) == ["eth0", "lo"]
    assert not processes(nested, "raylet")
    assert not processes(nested, "meshray.agent")
    assert not list(nested.path("/var/lib/meshray").glob("**/*.key"))
    assert {node["name"] for node in cluster.meshray(walled, "status", check=False)["nodes"]} == {"head", "walled"}


def test_down_reverts_everything(cluster: Cluster) -> None:
    for host in (cluster.workers[0], cluster.head):
        cluster.meshray(host, "down")
        assert not [link for link in host.run(["ip", "-json", "link"]).json() if link["ifname"] == INTERFACE]
        assert "meshray" not in host.run(["nft", "list", "ruleset"]).stdout
        for word in ("raylet", "gcs_server", "meshray.agent", "meshray.coordinator", "wireguard-go"):
            assert not processes(host, word), word
