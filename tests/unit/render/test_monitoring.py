"""Files for Prometheus and Grafana: what they contain, and that the built dashboard is what its script builds.

Prometheus' and Grafana's own tools check the same files in tests/web/test_render.py.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshray.errors import UsageError
from meshray.render.monitoring import RULES, Member, Monitored, alert_rules, dashboard, queries, scrape_configuration
from meshray.render.yaml_scalars import literal, quoted

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPT = REPOSITORY / "scripts" / "grafana_dashboard.py"
MESH = Monitored(
    "lab", "10.99.0.1", 8266, (Member("head", "10.99.0.1", "head"), Member("gpu-1", "10.99.0.2", "worker"))
)
DISCOVERY = "http://10.99.0.1:20190/sd"


def jobs(text: str) -> dict[str, Any]:
    """Return the jobs of a configuration by name."""
    return {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}


def labelled(job: dict[str, Any], address: str) -> dict[str, str] | None:
    """Return the labels of a target without any, after Prometheus' relabelling; None: the job drops it."""
    labels = {"__address__": address}
    for rule in job["relabel_configs"]:
        value = ";".join(labels.get(name, "") for name in rule.get("source_labels", ()))
        found = re.fullmatch(rule.get("regex", "(.*)"), value)
        if rule.get("action", "replace") == "replace":
            if found:
                labels[rule["target_label"]] = rule["replacement"].replace("$$", "$")
        elif (found is not None) != (rule["action"] == "keep"):
            return None
    return labels


def test_both_jobs_find_their_targets_at_the_head() -> None:
    found = jobs(scrape_configuration(MESH))
    assert sorted(found) == ["meshray", "ray"]
    assert [job["http_sd_configs"][0]["url"] for job in found.values()] == [DISCOVERY, DISCOVERY]
    # Each target belongs to one job.
    for address, owner in {"10.99.0.2:20190": "meshray", "10.99.0.2:20106": "ray", "10.99.0.1:20107": "ray"}.items():
        assert [name for name, job in found.items() if labelled(job, address)] == [owner]
    assert "authorization" not in scrape_configuration(MESH)


def test_a_node_cannot_report_under_another_name() -> None:
    for job in jobs(scrape_configuration(MESH)).values():
        assert "honor_labels" not in job
        assert {"regex": "exported_(mesh|node|role|site)", "action": "labeldrop"} in job["metric_relabel_configs"]
        assert job["sample_limit"] > 0
        assert job["body_size_limit"]


def test_with_rays_token_rays_own_discovery_finds_its_targets() -> None:
    found = jobs(scrape_configuration(MESH, token_file="/etc/prometheus/ray-token"))
    (discovery,) = found["ray"]["http_sd_configs"]
    assert discovery["url"] == "http://10.99.0.1:8266/api/prometheus/sd"
    assert discovery["authorization"] == {"type": "Bearer", "credentials_file": "/etc/prometheus/ray-token"}
    assert found["meshray"]["http_sd_configs"][0]["url"] == DISCOVERY
    assert labelled(found["ray"], "10.99.0.2:43210") == {
        "__address__": "10.99.0.2:43210",
        "mesh": "lab",
        "node": "gpu-1",
        "role": "worker",
    }
    # 10.99.0.20 is not 10.99.0.2.
    assert labelled(found["ray"], "10.99.0.20:43210") == {"__address__": "10.99.0.20:43210", "mesh": "lab"}


def test_the_options_reach_the_configuration() -> None:
    text = scrape_configuration(
        MESH,
        rule_file="/etc/prometheus/my rules.yml",
        alertmanagers=("alerts.lab:9093", "[fd00::1]:9093"),
        interval="1m",
    )
    found = yaml.safe_load(text)
    assert found["global"] == {"scrape_interval": "1m", "evaluation_interval": "1m"}
    assert found["rule_files"] == ["/etc/prometheus/my rules.yml"]
    (managers,) = found["alerting"]["alertmanagers"]
    assert managers["static_configs"] == [{"targets": ["alerts.lab:9093", "[fd00::1]:9093"]}]


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval": "15"},
        {"interval": "0s"},
        {"interval": "15s\nrule_files: [x]"},
        {"alertmanagers": ("localhost",)},
        {"alertmanagers": ('x:1"]\nfoo: [',)},
        {"rule_file": "a\nb"},
        {"token_file": "a\x00b"},
    ],
)
def test_values_that_prometheus_would_misread_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        scrape_configuration(MESH, **wrong)


@pytest.mark.parametrize(
    "name", ['a"b', "$1", "it's", "a: b # c", "\u2028line", "ü", "\\", "\x85\x7f", "{{ x }}", "- x"]
)
def test_no_name_breaks_out_of_its_place(name: str) -> None:
    mesh = Monitored(name, "10.99.0.1", 8265, (Member(name, "10.99.0.2", name),))
    found = labelled(jobs(scrape_configuration(mesh, token_file="t"))["ray"], "10.99.0.2:1")
    assert found == {"__address__": "10.99.0.2:1", "mesh": name, "node": name, "role": name}
    assert yaml.safe_load(quoted(name)) == name
    if name.isprintable():
        assert yaml.safe_load(literal(name)) == name


def test_the_rules_are_those_that_users_expect() -> None:
    groups = yaml.safe_load(alert_rules())["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    assert set(rules) == {
        "RayHeadNodeDown",
        "RayWorkerDown",
        "RayHighMemoryUsage",
        "RayTaskFailures",
        "MeshrayPathRelayed",
        "MeshrayPathLossy",
        "MeshrayNodeDown",
        "MeshrayHandshakeStale",
    }
    assert rules["RayHeadNodeDown"]["for"] == "5m"
    assert rules["RayHighMemoryUsage"]["expr"].endswith("> 0.9")
    assert rules["RayTaskFailures"]["expr"].endswith("> 0.1")
    assert [rule.expr for rule in RULES] == [rules[rule.name]["expr"] for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_measures_what_it_alerts_about_and_names_the_nodes(rule: Any) -> None:
    assert rule.measures
    assert all(measured in rule.expr for measured in rule.measures)
    used = set(re.findall(r"\$labels\.(\w+)", rule.summary + rule.description + rule.command))
    assert "node" in used
    if "Path" in rule.name or "Handshake" in rule.name:
        assert "peer" in used
    assert used <= {"mesh", "node", "peer"}
    assert re.search(r"\bmeshray (doctor|ping|run) ", rule.command)


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.origin)
def test_every_query_keeps_the_names_of_nodes(query: Any) -> None:
    assert "$" not in query.expr.replace('"$1"', ""), "a variable is not replaced"
    assert re.search(r"\bby \(mesh, node\b|\bby \(mesh, node, ", query.expr), query.expr
    assert query.needs_gpu == ("GPU utilization" in query.origin or "GPU memory" in query.origin)


@cache
def contents_of_ray() -> tuple[bytes | mmap.mmap, ...]:
    """Return the files of the installed Ray in which its metrics are defined."""
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent
    files = ["dashboard/modules/reporter/reporter_agent.py", "core/src/ray/raylet/raylet", "_raylet.so"]
    texts: list[bytes | mmap.mmap] = []
    for name in files:
        with (folder / name).open("rb") as file:
            texts.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return tuple(texts)


@pytest.mark.parametrize("name", sorted({name for query in queries() for name in re.findall(r"\bray_\w+", query.expr)}))
def test_rays_metrics_are_those_of_the_installed_ray(name: str) -> None:
    own = name.removeprefix("ray_").encode()
    assert any(text.find(own) >= 0 for text in contents_of_ray()), f"Ray has no metric {name}"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Grafana's SDK needs Python 3.11")
def test_the_dashboard_equals_the_output_of_its_script() -> None:
    spec = importlib.util.spec_from_file_location("grafana_dashboard", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.build() == dashboard(), "run make docs"


def test_the_dashboard_has_what_was_promised() -> None:
    built = json.loads(dashboard())
    panels = {panel["title"]: panel for panel in built["panels"] if panel["type"] != "row"}
    assert {"Nodes", "Paths", "Round trip", "Loss", "Bandwidth by node", "CPU", "Memory", "Object store"} <= set(panels)
    assert len({panel["id"] for panel in built["panels"]}) == len(built["panels"])
    # No panel reads from a fixed data source: the user chooses the Prometheus.
    assert {panel["datasource"]["uid"] for panel in panels.values()} == {"${datasource}"}
    assert [variable["name"] for variable in built["templating"]["list"]] == ["datasource", "mesh", "node"]
