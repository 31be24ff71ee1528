"""What `meshray render` prints for Prometheus and Grafana, checked by their own tools."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from meshray.render.monitoring import (
    RULES,
    Member,
    Monitored,
    Rule,
    alert_rules,
    dashboard,
    queries,
    scrape_configuration,
)
from tests.web import dashboard_types

MESH = Monitored(
    "lab", "10.99.0.1", 8265, (Member("head", "10.99.0.1", "head"), Member("gpu-1", "10.99.0.2", "worker"))
)
ALERTS = Path(__file__).parent / "alerts"
#: The oldest and the newest Grafana for which the dashboard is meant.
GRAFANA = ("11.6.0", "13.2.3")


def promtool(*words: str | Path, folder: Path) -> str:
    """Return what promtool prints; a failure shows it."""
    done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("token_file", ["", "ray-token"], ids=["discovery of the head", "discovery of Ray"])
def test_prometheus_accepts_the_configuration(tmp_path: Path, token_file: str) -> None:
    (tmp_path / "prometheus.yml").write_text(scrape_configuration(MESH, token_file=token_file))
    (tmp_path / "alerts.yml").write_text(alert_rules())
    (tmp_path / "ray-token").write_text("secret\n")
    assert "1 rule files found" in promtool("check", "config", "prometheus.yml", folder=tmp_path)


def test_prometheus_accepts_the_rules(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(alert_rules())
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "alerts.yml", folder=tmp_path)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_an_alert_fires_when_it_should_and_names_the_nodes(tmp_path: Path, rule: Rule) -> None:
    (tmp_path / "alerts.yml").write_text(alert_rules())
    shutil.copy(ALERTS / f"{rule.name}.yml", tmp_path / "test.yml")
    assert "SUCCESS" in promtool("test", "rules", "test.yml", folder=tmp_path)


def test_every_alert_has_its_test() -> None:
    assert sorted(file.stem for file in ALERTS.glob("*.yml")) == sorted(rule.name for rule in RULES)


def test_prometheus_accepts_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query.expr} for number, query in enumerate(queries())]
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", "queries.yml", folder=tmp_path)


@pytest.mark.skipif(shutil.which("npm") is None, reason="missing: npm")
@pytest.mark.parametrize("version", GRAFANA)
def test_the_dashboard_has_the_types_of_grafana(tmp_path: Path, version: str) -> None:
    folder = dashboard_types.schema(version)
    assert dashboard_types.faults(json.loads(dashboard()), folder, tmp_path) == ""


@pytest.mark.skipif(shutil.which("npm") is None, reason="missing: npm")
def test_a_wrong_dashboard_is_found(tmp_path: Path) -> None:
    wrong = json.loads(dashboard())
    wrong["panels"][1]["options"]["cellHeight"] = "huge"
    assert "'\"huge\"' is not assignable" in dashboard_types.faults(
        wrong, dashboard_types.schema(GRAFANA[-1]), tmp_path
    )
