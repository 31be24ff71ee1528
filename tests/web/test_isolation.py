"""A program of the cluster shares the page's origin: in a real browser it cannot use an administrator's session."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Page, async_playwright

from meshray.coordinator import server as server_module
from meshray.coordinator.connection_limits import ConnectionLimits
from meshray.coordinator.service import Service
from meshray.web.access import Level
from meshray.web.frame import Site
from meshray.web.proxy_headers import Mount, policy
from meshray.web.site import add_site
from tests.mesh.coordinator_harness import Running, running_mesh
from tests.mesh.page_client import invite
from tests.web.browser import ARGUMENTS, LAUNCH_MS

#: A program that a member controls, with the headers that the proxy gives it.
PREFIX = "/test/program"


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(app: web.Application, service: Service, connection_limits: ConnectionLimits) -> Site:
        site = add_site(app, service, connection_limits)

        async def program(request: web.Request) -> web.StreamResponse:
            is_admin = site.access.require(request, Level.READ).level is Level.ADMIN
            mount = Mount(f"https://{request.host}", PREFIX, "http://10.99.0.2:8350")
            response = web.Response(text="<title>program</title>", content_type="text/html")
            response.headers["Content-Security-Policy"] = policy(mount, strict=is_admin)
            return response

        site.add("GET", PREFIX + "/{path:.*}", program, is_program=True)
        return site

    monkeypatch.setattr(server_module, "add_site", add)


@asynccontextmanager
async def program_of(folder: Path) -> AsyncIterator[tuple[Running, Page]]:
    """Yield the program's page in the browser of an administrator."""
    async with running_mesh(folder) as mesh, async_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = await playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS), timeout=LAUNCH_MS)
        page = await (await browser.new_context(ignore_https_errors=True)).new_page()
        url = f"https://127.0.0.1:{mesh.client.port}"
        await page.goto(f"{url}/enter#{await invite(mesh, level='admin')}.00")
        await page.wait_for_url(url + "/")
        await page.goto(f"{url}{PREFIX}/")
        assert await page.title() == "program"
        yield mesh, page
        await browser.close()


#: What a script of the program tries → whether it sees the tokens page. Each returns the text that it got.
ATTACKS = {
    "fetch": "() => fetch('/tokens').then(answer => answer.text(), () => '')",
    "window": """async () => {
        const opened = window.open('/tokens');
        if (!opened) return '';
        await new Promise(done => setTimeout(done, 1500));
        try { return opened.document.documentElement.outerHTML } catch { return '' }
    }""",
    "link": """async () => {
        const link = document.createElement('a');
        link.href = '/tokens'; link.target = 'other'; link.rel = 'opener';
        document.body.append(link);
        link.click();
        await new Promise(done => setTimeout(done, 1500));
        try { return window.open('', 'other').document.documentElement.outerHTML } catch { return '' }
    }""",
    "frame": """async () => {
        const frame = document.createElement('iframe');
        frame.src = '/tokens';
        document.body.append(frame);
        await new Promise(done => setTimeout(done, 1500));
        try { return frame.contentDocument.documentElement.outerHTML } catch { return '' }
    }""",
    "frame that is moved": """async () => {
        const frame = document.createElement('iframe');
        document.body.append(frame);
        frame.contentWindow.location = '/tokens';
        await new Promise(done => setTimeout(done, 1500));
        try { return frame.contentDocument.documentElement.outerHTML } catch { return '' }
    }""",
    "script": """async () => {
        const script = document.createElement('script');
        script.src = '/tokens';
        const ended = new Promise(done => { script.onload = () => done('New token'); script.onerror = () => done('') });
        document.body.append(script);
        return ended;
    }""",
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_program_cannot_read_an_administrators_page(tmp_path: Path, attack: str) -> None:
    async with program_of(tmp_path) as (_, page):
        assert "New token" not in await page.evaluate(ATTACKS[attack])


async def test_a_program_cannot_send_a_form_of_the_page(tmp_path: Path) -> None:
    async with program_of(tmp_path) as (mesh, page):
        before = (await mesh.admin("GET", "/v1/tokens")).body
        await page.evaluate(
            """async () => {
                document.body.innerHTML = '<form method="post" action="/tokens"><input name="uses" value="0"></form>';
                document.forms[0].submit();
                await new Promise(done => setTimeout(done, 1000));
            }"""
        )
        assert (await mesh.admin("GET", "/v1/tokens")).body == before
