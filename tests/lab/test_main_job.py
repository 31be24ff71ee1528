"""A head and two unreachable workers become one real Ray cluster.

               switch wan 203.0.113.0/24
        ┌─────────────┼──────────────┐
      head         walled           nat    port-keeping NAT: nothing new comes in
  203.0.113.10  203.0.113.20    203.0.113.30
                drops all            │ switch nat-lan 192.168.7.0/24
                inbound            nested
                                192.168.7.10

Real WireGuard, real Ray; the oracles are `wg`, `ip -json`, /proc and Ray itself. The tests share one cluster, in this
order.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY, USER_UID, Host, HostProcess

INTERFACE = "meshray0"
PAIRS = "tests/lab/pairs.py"
#: Longer than the life of a node that looks joined but cannot be dialled: the head's health checks end it after 30-60
#: s. The tests before take about as long.
SETTLED_S = 75
#: Two rounds over all pairs and the pause between them, beside other jobs.
SOAKED_S = 240
NODE_TABLE = """
import json, ray
ray.init("auto", log_to_driver=False)
keep = ("Alive", "NodeManagerAddress", "NodeManagerHostname", "Resources")
print(json.dumps([{name: node[name] for name in keep} for node in ray.nodes()]))
"""


def wireguard_peers(host: Host) -> list[dict[str, Any]]:
    """Return `wg`'s output for the host's peers; none if its engine does not answer, such as one just started."""
    lines = host.run(["wg", "show", INTERFACE, "dump"], check=False).stdout.splitlines()[1:]
    names = ("public_key", "psk", "endpoint", "allowed_ips", "handshake", "rx", "tx", "keepalive")
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]


def processes(host: Host, word: str) -> list[tuple[int, int]]:
    """Return (pid, uid) of other processes whose command line has this word, read from outside."""
    found = []
    for folder in host.path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has just ended.
            if word.encode() in (folder / "cmdline").read_bytes():
                found.append((int(folder.name), folder.stat().st_uid))
    return found


def test_the_workers_cannot_be_reached_from_outside(cluster: Cluster) -> None:
    walled, nested = cluster.workers
    assert not cluster.head.can_reach(walled.address)
    assert not cluster.head.can_reach(nested.address)
    assert not nested.can_reach(walled.address)
    assert walled.can_reach(cluster.head.address)
    assert nested.can_reach(cluster.head.address)


def test_init_and_join_answer_as_documented(cluster: Cluster) -> None:
    head = cluster.answers["head"]
    assert head["schema"] == 1
    assert head["node"]["name"] == "head"
    assert head["ray_address"] == f"{head['node']['ip']}:6379"
    assert head["node"]["ip"] in head["dashboard"]
    for worker in cluster.workers:
        answer = cluster.answers[worker.name]
        assert answer["schema"] == 1
        assert answer["mesh"] == head["mesh"]
        assert answer["node"]["name"] == worker.name
        assert answer["path"] == {"kind": "hub", "transport": "udp"} or answer["path"]["kind"] == "direct"
        assert answer["ray"]["alive"] is True
    assert cluster.answers["nested"]["ray"]["nodes"] == 3


def test_every_host_has_its_address_on_a_wireguard_device(cluster: Cluster) -> None:
    addresses = [cluster.ip(host) for host in cluster.hosts]
    assert len(set(addresses)) == 3
    for host in cluster.hosts:
        (device,) = host.run(["ip", "-json", "-4", "address", "show", INTERFACE]).json()
        assert cluster.ip(host) in [address["local"] for address in device["addr_info"]]
        assert wireguard_peers(host)


def test_wireguard_has_fresh_handshakes_with_the_hub(cluster: Cluster) -> None:
    now = time.time()
    assert len(wireguard_peers(cluster.head)) == 2
    for worker in cluster.workers:
        to_hub = [peer for peer in wireguard_peers(worker) if peer["endpoint"].startswith(str(cluster.head.address))]
        assert len(to_hub) == 1
        assert now - int(to_hub[0]["handshake"]) < 180
        assert int(to_hub[0]["rx"]) > 0


def test_every_pair_pings_over_the_overlay(cluster: Cluster) -> None:
    for source in cluster.hosts:
        for target in cluster.hosts:
            assert source.can_reach(cluster.ip(target), deadline_s=3), f"{source} → {target}"


def test_ray_counts_the_resources_of_all_three(cluster: Cluster) -> None:
    for host in cluster.hosts:
        table = cluster.python(NODE_TABLE, host=host)
        assert sorted(node["NodeManagerAddress"] for node in table) == sorted(map(cluster.ip, cluster.hosts))
        assert all(node["Alive"] for node in table)
        assert [node["Resources"].get("CPU") for node in table] == [1.0] * 3
    assert "3.0 CPU" in cluster.job("ray", "status").stdout


def test_ray_nodes_carry_the_class_of_their_link(cluster: Cluster) -> None:
    labels = cluster.python("import json, ray; ray.init('auto'); print(json.dumps([n['Labels'] for n in ray.nodes()]))")
    classes = {"lt1ms", "lt10ms", "lt50ms", "lt150ms", "ge150ms"}
    assert [label["meshray.io/path"] for label in labels] == ["direct"] * 3
    assert {label["meshray.io/rtt"] for label in labels if "meshray.io/rtt" in label} <= classes
    assert sum("meshray.io/rtt" in label for label in labels) == 2  # The head has no path to itself.
    assert all("meshray.io/site" in label for label in labels if "meshray.io/rtt" in label)


def test_a_driver_under_sudo_runs_as_the_user_of_ray(cluster: Cluster) -> None:
    _, nested = cluster.workers
    done = nested.run(["meshray", "run", "--", "sh", "-c", "id -u; echo $HOME"])
    assert done.stdout.splitlines()[0] == str(USER_UID)
    assert "/root" not in done.stdout


def test_status_shows_every_node_and_the_sum(cluster: Cluster) -> None:
    for host in cluster.hosts:
        status = cluster.meshray(host, "status")
        assert status["self"] == host.name
        assert status["coordinator"]["reachable"] is True
        shown = {node["name"]: node for node in status["nodes"]}
        assert {name: node["ip"] for name, node in shown.items()} == {h.name: cluster.ip(h) for h in cluster.hosts}
        assert all(node["online"] and node["ray"]["alive"] for node in shown.values())
        assert {name for name, node in shown.items() if node["path"]["kind"] == "self"} == {host.name}
        assert all(node["path"]["kind"] in ("hub", "direct", "self") for node in shown.values())
        assert status["totals"]["CPU"] == 3
        assert status["totals"]["object_store_memory"] == pytest.approx(3 * 300 * 2**20, rel=0.01)


def test_ray_runs_as_the_user_who_called_sudo(cluster: Cluster) -> None:
    _, nested = cluster.workers
    rays = processes(nested, "raylet/raylet")
    assert rays
    assert {uid for _, uid in rays} == {USER_UID}
    assert {uid for _, uid in processes(cluster.head, "gcs_server")} == {0}


def test_no_secret_is_in_a_command_line(cluster: Cluster) -> None:
    enrolments = [json.loads(host.path("/var/lib/meshray/node.json").read_text()) for host in cluster.hosts]
    secrets = {
        text
        for enrolment in enrolments
        for name, text in enrolment.items()
        if name in ("credential", "mesh_secret", "ray_token") and text
    }
    assert secrets
    for host in cluster.hosts:
        lines = host.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
        assert not [secret for secret in secrets if secret in lines]


@pytest.fixture(scope="module")
def soak(cluster: Cluster) -> Iterator[HostProcess]:
    """Run deep checks of Ray, wait for longer than a node lives that cannot be dialled, and check again."""
    command = "exec meshray doctor --deep --soak --json > /root/soak.json"
    process = cluster.head.popen(["sh", "-c", command], name="doctor --soak")
    yield process
    process.stop()


@pytest.mark.usefixtures("soak")  # It pauses meanwhile.
@pytest.mark.parametrize("example", sorted((REPOSITORY / "docs/examples").glob("*.py")), ids=lambda path: path.stem)
def test_the_examples_run(cluster: Cluster, example: Path) -> None:
    assert cluster.job(sys.executable, str(example), deadline_s=200).stdout


@pytest.mark.timeout(400)
def test_tasks_actors_and_50_mb_between_every_pair_once_settled(cluster: Cluster) -> None:
    time.sleep(max(0.0, SETTLED_S - (time.monotonic() - cluster.complete_since)))
    result = cluster.job(sys.executable, PAIRS, "--nodes", "3", "--mebibytes", "50", "--json").last_json()
    names = {"head", "walled", "nested"}
    assert set(result["nodes"]) == names
    assert result["tasks"] == {name: name for name in names}
    assert result["actors"] == {name: sorted(names - {name}) for name in names}
    pairs = {(one["from"], one["to"]) for one in result["objects"] if one["intact"]}
    assert pairs == {(a, b) for a in names for b in names if a != b}


def test_the_doctors_first_findings_persist_once_settled(cluster: Cluster, soak: HostProcess) -> None:
    assert soak.wait(SOAKED_S) == 0, soak.output
    answer = json.loads(cluster.head.path("/root/soak.json").read_text())
    assert answer["healthy"]
    for code in ("ray_deep", "ray_soak"):
        pairs = [check["status"] for check in answer["checks"] if check["code"] == code and check["peer"]]
        assert pairs == ["ok"] * 6
