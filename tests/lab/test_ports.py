"""Ray on ports that the user has chosen: every node and tool finds them, and they are closed to all others.

          switch wan 203.0.113.0/24
      ┌───────────┬───────────┐
    head       worker      outsider
203.0.113.10 203.0.113.20 203.0.113.99
GCS 6380     metrics 8500
dashboard 8266
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.cluster import RAY_ARGS, UP_DEADLINE_S, Cluster
from tests.lab.host import Host
from tests.lab.scan import open_ports
from tests.lab.world import World

MESH_PORT = 51888
OF_MESH = ("--port=6380", "--dashboard-port=8266", "--ray-client-server-port=10101")
METRICS = 8500
#: A node's own metrics over the overlay, as Prometheus reads them.
SCRAPE = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
TASKS = """
import json, ray
ray.init("auto", log_to_driver=False)
pin = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
where = ray.remote(num_cpus=1)(lambda: ray.util.get_node_ip_address())
nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
places = ray.get([where.options(scheduling_strategy=pin(node, soft=False)).remote() for node in nodes])
print(json.dumps([ray.get_runtime_context().gcs_address, sorted(places)]))
"""
CLIENT = """
import json, os, ray
ray.init(os.environ["RAY_ADDRESS"])
print(json.dumps([os.environ["RAY_ADDRESS"], ray.get(ray.remote(lambda: 6 * 7).remote())]))
"""
HOLD = "import socket, time; s = socket.create_server(('0.0.0.0', 8500)); print('held', flush=True); time.sleep(600)"


@dataclass
class Place:
    cluster: Cluster
    worker: Host
    outsider: Host
    token: str
    refused: dict[str, str]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with World("ports") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        outsider = world.host("outsider", wan, "203.0.113.99")
        cluster = Cluster(head, (worker,))
        cluster.answers["head"] = cluster.meshray(head, "init", "--", *OF_MESH, *RAY_ARGS)
        token = str(cluster.answers["head"]["token"])
        words = (token, "--", f"--metrics-export-port={METRICS}", *RAY_ARGS)
        # First while another program has the port.
        holder = worker.popen([sys.executable, "-c", HOLD], name="holder")
        worker.wait_until(lambda: "held" in holder.output, 10, "a program with the port")
        refused = cluster.meshray(worker, "join", *words, check=False)["error"]
        nodes = head.run(["meshray", "node", "list", "--json"]).json()["nodes"]
        holder.stop()
        cluster.answers["worker"] = cluster.meshray(worker, "join", *words)
        yield Place(cluster, worker, outsider, token, {**refused, "nodes": ",".join(node["name"] for node in nodes)})


def test_a_port_in_use_is_named_before_enrolment(place: Place) -> None:
    assert place.refused["code"] == "port_in_use"
    assert f"Ray's metrics export needs TCP port {METRICS}, which python" in place.refused["message"]
    assert place.refused["nodes"] == "head"


def test_every_answer_names_the_chosen_ports(place: Place) -> None:
    cluster = place.cluster
    for host in cluster.hosts:
        answer = cluster.answers[host.name]
        assert (answer["ray_address"], answer["dashboard"]) == ("10.99.0.1:6380", "http://10.99.0.1:8266")
        status = cluster.meshray(host, "status")
        ports = {node["name"]: node["ray"]["ports"] for node in status["nodes"]}
        assert (ports["head"]["gcs"], ports["worker"]["metrics_export"]) == (6380, METRICS)
        assert status["problems"] == []
        assert cluster.meshray(host, "dashboard")["url"] == "http://10.99.0.1:8266"


def test_tasks_run_on_both_nodes_over_meshray_run(place: Place) -> None:
    for host in place.cluster.hosts:
        gcs, nodes = place.cluster.python(TASKS, host=host)
        assert (gcs, nodes) == ("10.99.0.1:6380", ["10.99.0.1", "10.99.0.2"])


def test_metrics_are_read_from_the_other_node_and_not_from_outside(place: Place) -> None:
    cluster = place.cluster
    url = f"http://{cluster.ip(place.worker)}:{METRICS}/metrics"
    cluster.head.wait_until(
        lambda: "ray_" in cluster.head.run([sys.executable, "-c", SCRAPE, url], check=False).stdout, 30, "metrics"
    )
    assert open_ports(place.outsider, str(cluster.head.address), str(place.worker.address)) == [{MESH_PORT}, set()]


def test_the_doctor_dials_the_chosen_ports_and_finds_nothing(place: Place) -> None:
    done = place.cluster.head.run(["meshray", "doctor", "--json"], check=False, deadline_s=UP_DEADLINE_S)
    failed = [check for check in json.loads(done.stdout)["checks"] if check["status"] == "fail"]
    assert failed == []


def test_a_node_without_ray_drives_through_the_chosen_client_port(place: Place) -> None:
    cluster = place.cluster
    cluster.meshray(place.outsider, "join", place.token, "--no-ray")
    address, answer = cluster.python(CLIENT, host=place.outsider)
    assert (address, answer) == ("ray://10.99.0.1:10101", 42)
