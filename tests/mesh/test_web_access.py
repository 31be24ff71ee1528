"""Access to the coordinator's page: a real coordinator over TLS, and clients that behave as browsers do."""

from __future__ import annotations

from pathlib import Path

from .coordinator_harness import running_mesh
from .page_client import Browser, invite


async def test_without_a_session_every_path_gives_401_and_nothing_else(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        page = await Browser(mesh.client).call("GET", "/")
        assert page.status == 401
        assert mesh.head.map.mesh.name not in page.text


async def test_the_first_browser_binds_a_pass(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        secret = await invite(mesh)
        first, second = Browser(mesh.client), Browser(mesh.client)
        assert (await first.enter(secret)).status == 303
        assert (await first.call("GET", "/nothing")).status == 404
        assert (await second.enter(secret)).status == 403
        assert (await second.call("GET", "/nothing")).status == 401
