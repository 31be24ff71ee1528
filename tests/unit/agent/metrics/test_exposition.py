"""The series of one scrape, read back by Prometheus' own parser and by promtool."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from meshray.agent.metrics.exposition import metrics_text
from meshray.agent.metrics.figures import Figures, PeerFigures
from meshray.agent.metrics.text_format import COUNTER, GAUGE, Family
from meshray.coordinator.figures import BUCKETS_S, OTHER, coordinator_text
from meshray.coordinator.figures import Figures as CoordinatorFigures
from meshray.linux.interface_counters import InterfaceCounters
from meshray.linux.process_usage import ProcessUsage
from meshray.linux.udp_queue import UdpQueue
from meshray.model.path import PathKind, Transport

DIRECT = PeerFigures("gpu-2", PathKind.DIRECT, Transport.UDP, 0.0021, 0.0, 100, 200, 1_700_000_000.0)
RELAYED = PeerFigures("gpu-3", PathKind.HUB, Transport.WSS, 0.05, 0.25)
FIGURES = Figures(
    mesh="lab",
    node="gpu-1",
    ip="10.99.0.2",
    roles=("hub", "worker"),
    version="0.1.0",
    site="lab-2",
    peers=(DIRECT, RELAYED),
    ray_alive=True,
    coordinator_reachable=True,
    connections=2,
    map_revision=7,
    agent_usage=ProcessUsage(57_000_000, 1.5),
    engine="userspace",
    engine_usage=ProcessUsage(20_000_000, 2.5),
    interface=InterfaceCounters(1, 2, 3, 4, 5, 6),
    udp=UdpQueue(0, 7),
)


def series(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return the values by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type != "unknown", family.name
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def of(mesh: str = "lab", node: str = "gpu-1", **labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"mesh": mesh, "node": node, **labels}.items()))


def test_every_series_names_the_mesh_and_both_ends() -> None:
    found = series(metrics_text(FIGURES))
    info = of(ip="10.99.0.2", roles="hub,worker", version="0.1.0", site="lab-2")
    assert found["meshray_node_info"] == {info: 1.0}
    assert found["meshray_peer_path_info"] == {
        of(peer="gpu-2", kind="direct", transport="udp"): 1.0,
        of(peer="gpu-3", kind="hub", transport="wss"): 1.0,
    }
    assert found["meshray_peer_rtt_seconds"] == {of(peer="gpu-2"): 0.0021, of(peer="gpu-3"): 0.05}
    assert found["meshray_peer_loss_ratio"] == {of(peer="gpu-2"): 0.0, of(peer="gpu-3"): 0.25}
    # What a relayed pair sends is counted for the hub, so that no byte is counted twice.
    assert found["meshray_peer_receive_bytes_total"] == {of(peer="gpu-2"): 100.0}
    assert found["meshray_peer_transmit_bytes_total"] == {of(peer="gpu-2"): 200.0}
    assert found["meshray_peer_last_handshake_seconds"] == {of(peer="gpu-2"): 1_700_000_000.0}
    assert found["meshray_ray_alive"] == {of(): 1.0}
    assert found["meshray_engine_resident_memory_bytes"] == {of(engine="userspace"): 20_000_000.0}
    assert found["meshray_engine_udp_receive_drops_total"] == {of(engine="userspace"): 7.0}
    assert found["meshray_engine_interface_transmit_drops_total"] == {of(engine="userspace"): 6.0}
    assert found["meshray_agent_resident_memory_bytes"] == {of(): 57_000_000.0}


def test_unknown_values_have_no_series() -> None:
    text = metrics_text(
        replace(
            FIGURES,
            peers=(PeerFigures("gpu-2", PathKind.DIRECT, Transport.UDP),),
            ray_alive=None,
            engine_usage=None,
            interface=None,
            udp=None,
            agent_usage=None,
        )
    )
    names = series(text).keys()
    assert "meshray_peer_path_info" in names
    assert not {name for name in names if name.startswith(("meshray_engine", "meshray_ray", "meshray_agent"))}
    assert "meshray_peer_rtt_seconds" not in names


def test_names_are_escaped() -> None:
    hostile = 'x"} 1\nmeshray_ray_alive{node="other"} 0\\'
    found = series(metrics_text(replace(FIGURES, site=hostile)))
    assert [dict(labels)["site"] for labels in found["meshray_node_info"]] == [hostile]
    assert found["meshray_ray_alive"] == {of(): 1.0}


@given(
    kind=st.sampled_from((GAUGE, COUNTER)),
    description=st.text(min_size=1),
    label=st.text(),
    value=st.floats(min_value=0, max_value=999_999, allow_subnormal=False),
)
def test_the_text_is_that_of_the_library(kind: str, description: str, label: str, value: float) -> None:
    family = Family("meshray_test", kind, description, ("mesh", "node"))
    family.add(("lab", label), value)
    of_library = (CounterMetricFamily if kind == COUNTER else GaugeMetricFamily)(
        "meshray_test", description, labels=("mesh", "node")
    )
    of_library.add_metric(("lab", label), value)
    registry = CollectorRegistry(auto_describe=False)
    registry.collect = lambda: iter([of_library])  # type: ignore[method-assign]
    assert family.text().encode(errors="surrogatepass") == generate_latest(registry)


def coordinator() -> str:
    figures = CoordinatorFigures()
    figures.enrolments = 3
    for route in ("/v1/nodes", "/v1/nodes", "/v1/enroll"):
        with figures.timed("GET", route):
            pass
    figures.refused("not_admin")
    return coordinator_text(figures, mesh="lab", connected=2, nodes=3, revision=9)


def test_the_coordinators_series() -> None:
    found, lab = series(coordinator()), (("mesh", "lab"),)
    assert found["meshray_coordinator_enrolments_total"] == {lab: 3.0}
    assert found["meshray_coordinator_links"] == {lab: 2.0}
    assert found["meshray_coordinator_map_revision"] == {lab: 9.0}
    assert found["meshray_coordinator_refused_requests_total"] == {(("code", "not_admin"), *lab): 1.0}
    counts = found["meshray_coordinator_request_duration_seconds_count"]
    assert {dict(labels)["route"]: count for labels, count in counts.items()} == {"/v1/nodes": 2.0, "/v1/enroll": 1.0}
    buckets = found["meshray_coordinator_request_duration_seconds_bucket"]
    assert len(buckets) == 2 * (len(BUCKETS_S) + 1)


def test_names_are_bounded() -> None:
    figures = CoordinatorFigures()
    for number in range(1000):
        figures.refused(f"code-{number}")
        with figures.timed("GET", f"/{number}"):
            pass
    assert len(figures.refusals) < 200 and figures.refusals[OTHER] > 800
    assert len(figures.durations) < 200


def test_promtool_accepts_both_texts() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    text = metrics_text(FIGURES) + coordinator()
    checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
