"""`meshray render prometheus|alerts|grafana`: what they ask the agent, print, write and refuse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.examples import BY_COMMAND
from tests.unit.cli.fakes import FakeAgent, type_in

STATUS: Mapping[str, object] = BY_COMMAND["status"].to_json()


def test_the_configuration_names_the_head_of_this_mesh(tmp_path: Path) -> None:
    agent = FakeAgent({"status": STATUS})
    shown = type_in("render", "prometheus", "--alertmanager", "alerts:9093", "--alertmanager", "b:1", agent=agent)
    assert shown.code == 0
    found = yaml.safe_load(shown.out)
    urls = {job["http_sd_configs"][0]["url"] for job in found["scrape_configs"]}
    assert urls == {"http://10.99.0.1:20190/sd"}
    assert found["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["alerts:9093", "b:1"]}]}]
    with_token = type_in("render", "prometheus", "--token-file", "/etc/ray-token", agent=agent)
    assert "type: Bearer" in with_token.out
    assert 'credentials_file: "/etc/ray-token"' in with_token.out
    assert [asked[0] for asked in agent.asked] == ["status", "status"]


def test_without_an_agent_or_a_head_the_error_names_the_next_step() -> None:
    assert type_in("render", "prometheus").code == 5
    outcome = type_in("render", "prometheus", agent=FakeAgent({"status": {**STATUS, "nodes": []}}))
    assert (outcome.code, "has no head yet" in outcome.err) == (1, True)
    outcome = type_in("render", "prometheus", "--interval", "soon", agent=FakeAgent({"status": STATUS}))
    assert (outcome.code, "--interval 15s" in outcome.err) == (2, True)


@pytest.mark.parametrize("kind", ["prometheus", "alerts", "grafana"])
def test_a_file_goes_to_stdout_to_a_file_and_into_json(tmp_path: Path, kind: str) -> None:
    def typed(*words: str) -> tuple[int, str, str]:
        outcome = type_in("render", kind, *words, agent=FakeAgent({"status": STATUS}))
        return outcome.code, outcome.out, outcome.err

    _, shown, _ = typed()
    file = tmp_path / "file"
    assert typed("-o", str(file))[:2] == (0, "")
    assert file.read_text() == shown
    assert json.loads(typed("--json")[1])["text"] == shown
    code, _, error = typed("-o", str(tmp_path))
    assert (code, "cannot be written" in error) == (1, True)


def test_alerts_and_dashboard_need_no_agent() -> None:
    assert yaml.safe_load(type_in("render", "alerts").out)["groups"]
    assert json.loads(type_in("render", "grafana").out)["uid"] == "meshray"
