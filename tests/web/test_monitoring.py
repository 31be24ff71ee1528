"""A real Prometheus and Alertmanager on the head, with the files that `meshray render` prints."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import pytest

from meshray.render.monitoring import RULES, Rule, queries
from tests.lab.host import REPOSITORY
from tests.printed import printed
from tests.web.mesh import Monitoring, WebMesh, monitoring

#: The head's three exporters of Ray, one of each worker, and three agents.
TARGETS = 8
#: Prometheus looks for new targets, scrapes twice and evaluates the rules, seconds.
SEEN_S = 60
#: The alert must have held for a while before it is sent, seconds.
SENT_S = 150


@pytest.fixture(scope="module")
def watch(mesh: WebMesh) -> Iterator[Monitoring]:
    """Yield both programs."""
    config = mesh.head.run(["meshray", "render", "prometheus", "--interval", "2s"]).stdout
    rules = mesh.head.run(["meshray", "render", "alerts"]).stdout
    with monitoring(mesh, config, rules) as running:
        yield running


def test_every_target_is_up(mesh: WebMesh, watch: Monitoring) -> None:
    def all_up() -> bool:
        return [target["health"] for target in watch.targets()] == ["up"] * TARGETS

    mesh.head.wait_until(all_up, SEEN_S, "eight targets")
    assert {target["labels"]["node"] for target in watch.targets()} == set(mesh.names)
    assert {target["labels"]["job"] for target in watch.targets()} == {"meshray", "ray"}
    shown = mesh.head.shell(printed("monitoring.md", "promtool query instant")).stdout
    assert all(f'{{node="{name}"}} => 1 ' in shown for name in mesh.names), shown
    assert "ALERTS{" not in shown


def test_every_query_of_rules_and_panels_returns_series(mesh: WebMesh, watch: Monitoring) -> None:
    """Ray reports tasks and objects only once there were some."""
    mesh.cluster.job(sys.executable, str(REPOSITORY / "docs/examples/hello.py"))
    for query in queries():
        if not query.needs_gpu:
            mesh.head.wait_until(partial(watch.query, query.expr), SEEN_S, f"{query.origin}: {query.expr}")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_measures_series_with_names(watch: Monitoring, rule: Rule) -> None:
    for expression in rule.measures:
        assert all(one["metric"].get("node") for one in watch.query(expression)), expression


@pytest.mark.timeout(400)
def test_a_lost_direct_path_is_reported_with_both_names(mesh: WebMesh, watch: Monitoring) -> None:
    def reported() -> bool:
        relayed = [one["labels"] for one in watch.alerts() if one["labels"]["alertname"] == "MeshrayPathRelayed"]
        return {(labels["node"], labels["peer"]) for labels in relayed} >= {("home", "office"), ("office", "home")}

    with mesh.without_direct_path():
        mesh.head.wait_until(reported, SENT_S, "MeshrayPathRelayed in Alertmanager")
    mesh.wait_until_direct()
    direct = 'meshray_peer_path_info{node="home", peer="office", kind="direct"} == 1'
    mesh.head.wait_until(lambda: watch.query(direct), SEEN_S, "the direct path in Prometheus")
