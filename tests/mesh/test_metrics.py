"""A scrape of real agents beside a real coordinator."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshray.errors import RefusedError
from tests.mesh.mesh import Member, running_mesh, until


def check_with_promtool(text: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is not None:
        check = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
        assert (check.returncode, check.stdout + check.stderr) == (0, "")


async def scraped(member: Member) -> tuple[str, dict[str, list[dict[str, str]]]]:
    """Return the text, and the labels of each series by name."""
    page = await member.agent._metrics.metrics()
    text = page.body.decode()
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return text, found


async def test_the_head_serves_its_own_series_and_the_coordinators(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        one = await mesh.join("a")
        await until(mesh.whole, "all see all")
        with pytest.raises(RefusedError):
            await one.agent.state.coordinator.call("GET", "/v1/metrics")
        one.agent.state.wake()
        mesh.head.agent.state.wake()
        await until(
            lambda: all(
                member.agent.state.device is not None
                and all(peer.last_handshake for peer in member.agent.state.device.peers.values())
                for member in (one, mesh.head)
            ),
            "the handshake is seen",
        )
        text, found = await scraped(mesh.head)
        assert [labels["peer"] for labels in found["meshray_peer_path_info"]] == ["a"]
        assert found["meshray_coordinator_enrolments_total"] and found["meshray_coordinator_map_revision"]
        assert {"code": "not_admin", "mesh": found["meshray_node_info"][0]["mesh"]} in found[
            "meshray_coordinator_refused_requests_total"
        ]
        routes = {labels["route"] for labels in found["meshray_coordinator_request_duration_seconds_count"]}
        assert "/v1/enroll" in routes and "/v1/agent" not in routes
        _, of_worker = await scraped(one)
        paths = of_worker["meshray_peer_path_info"]
        assert [(labels["peer"], labels["kind"]) for labels in paths] == [("head", "direct")]
        assert not [name for name in of_worker if name.startswith("meshray_coordinator_enrol")]
        secrets = (mesh.head.agent.state.enrolment.credential, mesh.head.agent.state.enrolment.ray_token)
        assert not [secret for secret in secrets if secret in text]
        await asyncio.to_thread(check_with_promtool, text)


async def test_scrapes_at_once_are_one_and_a_lost_coordinator_costs_only_its_series(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await until(lambda: mesh.head.agent.connection.is_open, "connected")
        pages = await asyncio.gather(*(mesh.head.agent._metrics.metrics() for _ in range(20)))
        assert len({id(page) for page in pages}) == 1
        await mesh.server.stop()
        await asyncio.sleep(1.1)
        _, found = await scraped(mesh.head)
        assert found["meshray_node_info"]
        assert "meshray_coordinator_enrolments_total" not in found
        await mesh.restart_coordinator()


async def test_the_discovery_lists_every_node(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        one = await mesh.join("a")
        await until(mesh.whole, "all see all")
        page = await mesh.head.agent._metrics.targets()
        assert page.content_type == "application/json"
        groups = json.loads(page.body)
        assert [group["labels"]["node"] for group in groups] == ["head", "a"]
        assert groups[1]["targets"] == [f"{one.agent.state.me.ip}:20190"]
