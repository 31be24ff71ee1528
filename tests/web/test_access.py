"""Access to the page in a real browser, with a coordinator on loopback: the script of /enter, forms, and the policy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from meshray.client.coordinator import Coordinator
from meshray.model.address import Endpoint
from meshray.protocol.codec import convert
from tests.mesh.coordinator_harness import make_mesh
from tests.web.browser import accessibility_faults, chromium

START_S = 20.0
SIZES = ({"width": 1440, "height": 900}, {"width": 390, "height": 844})


@dataclass
class Server:
    """A coordinator process, and a client of the node that runs it."""

    url: str
    admin: Coordinator

    def invite(self, name: str, level: str) -> str:
        """Return the URL of a new pass."""
        body = {"name": name, "level": level, "ttl_s": 3600}
        made = self.call("POST", "/v1/web/passes", body)
        return f"{self.url}/enter#{convert(made['secret'], str)}.{convert(made['fingerprint'], str)}"

    def revoke(self, name: str) -> None:
        self.call("DELETE", f"/v1/web/passes/{name}")

    def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Mapping[str, object]:
        """Return the answer of the API, requested in a thread: this one has the loop of playwright."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(self.admin.call(method, path, body))).result()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mesh")
    home, head, token = make_mesh(folder)
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "meshray.coordinator", "--port", "0", "--listen", "127.0.0.1"],
            env={**os.environ, "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)},
            stdout=file,
            stderr=file,
        )
    try:
        port = port_in(log)
        admin = Coordinator((Endpoint("127.0.0.1", port),), token.fingerprint, head.credential)
        yield Server(f"https://127.0.0.1:{port}", admin)
    finally:
        process.terminate()
        process.wait()


def port_in(log: Path) -> int:
    until = time.monotonic() + START_S
    while (found := re.search(r"listening on port (\d+)", log.read_text())) is None:
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    return int(found[1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextlib.contextmanager
def window(browser: Browser, *, scripts: bool = True) -> Iterator[tuple[BrowserContext, Page, list[str]]]:
    """Yield a browser without cookies, its page, and what the page writes to the console."""
    context = browser.new_context(ignore_https_errors=True, java_script_enabled=scripts)
    page, written = context.new_page(), list[str]()
    page.on("console", lambda message: written.append(message.text))
    page.on("pageerror", lambda error: written.append(str(error)))
    try:
        yield context, page, written
    finally:
        context.close()


def status(page: Page, url: str) -> int:
    answer = page.goto(url)
    assert answer is not None
    return answer.status


def test_a_pass_opens_the_page_in_one_browser_and_leaves_the_address_bar(server: Server, browser: Browser) -> None:
    url = server.invite("ana", "admin")
    with window(browser) as (context, page, written):
        assert status(page, server.url + "/tokens") == 401
        page.goto("about:blank")
        page.goto(url)
        page.wait_for_url(server.url + "/")
        assert url.partition("#")[2].partition(".")[0] not in page.evaluate("location.href + document.referrer")
        (cookie,) = context.cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["secure"]) == ("__Host-meshray", True, True)
        assert cookie["sameSite"] == "Strict"
        assert page.evaluate("document.cookie") == ""
        assert status(page, server.url + "/tokens") == 200
        assert [line for line in written if "Content Security Policy" in line] == []
        with window(browser) as (_, second, _):
            second.goto(url)
            second.wait_for_selector("[role=alert]")
            assert "not accepted" in second.inner_text("[role=alert]")
            assert status(second, server.url + "/tokens") == 401
        server.revoke("ana")
        assert status(page, server.url + "/tokens") == 401
        assert context.cookies() == []


def test_without_scripts_the_url_is_pasted(server: Server, browser: Browser) -> None:
    with window(browser, scripts=False) as (_, page, _):
        page.goto(server.url + "/enter")
        page.fill("#pass", server.invite("bob", "admin"))
        page.keyboard.press("Enter")
        page.wait_for_url(server.url + "/")
        assert status(page, server.url + "/tokens") == 200


def test_an_administrator_makes_and_revokes_a_token(server: Server, browser: Browser) -> None:
    with window(browser) as (_, page, written):
        page.goto(server.invite("carl", "admin"))
        page.wait_for_url(server.url + "/")
        page.goto(server.url + "/tokens")
        page.click("text=Make a token")
        assert page.inner_text("[role=status] pre").startswith("sudo meshray join meshray1_")
        token_id = page.inner_text("[role=status] h2").removeprefix("Token ")
        page.click(f"tr:has-text('{token_id}') button")
        page.wait_for_selector(f"tr:has-text('{token_id}') >> text=revoked")
        assert [line for line in written if "Content Security Policy" in line] == []


def test_a_page_of_the_same_machine_cannot_use_the_session(server: Server, browser: Browser) -> None:
    """Check another origin of the same site: the browser sends the cookie there, whatever SameSite says."""
    with window(browser) as (_, page, _):
        page.goto(server.invite("eve", "admin"))
        page.wait_for_url(server.url + "/")
        before = server.call("GET", "/v1/tokens")
        page.route("https://127.0.0.1:1/", lambda route: route.fulfill(body="<title>attacker</title>"))
        page.goto("https://127.0.0.1:1/")
        read = f"fetch('{server.url}/tokens', {{credentials: 'include'}}).then(r => r.text()).catch(e => 'refused')"
        assert page.evaluate(read) == "refused"
        form = f"""() => {{
            const form = document.createElement("form");
            form.method = "post";
            form.action = "{server.url}/tokens";
            form.innerHTML = '<input name="uses" value="0"><input name="ttl_s" value="0">';
            document.body.append(form);
            form.submit();
        }}"""
        page.evaluate(form)
        page.wait_for_selector("text=does not come from a page of this coordinator")
        assert server.call("GET", "/v1/tokens") == before


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size["width"]))
def test_the_pages_of_access_are_accessible_and_fit(server: Server, browser: Browser, size: dict[str, int]) -> None:
    with window(browser) as (_, page, _):
        page.set_viewport_size({"width": size["width"], "height": size["height"]})
        faults = []
        for path in ("/", "/enter"):
            page.goto(server.url + path)
            faults += [path, *accessibility_faults(page)]
        page.goto("about:blank")
        page.goto(server.invite(f"dan-{size['width']}", "admin"))
        page.wait_for_url(server.url + "/")
        page.goto(server.url + "/tokens")
        faults += accessibility_faults(page)
        assert faults == ["/", "/enter"]
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size["width"]))
def test_the_page_of_tokens_in_use_is_accessible_and_fits(
    server: Server, browser: Browser, size: dict[str, int], scheme: Literal["light", "dark"]
) -> None:
    """Check the new token with its command, and the lists with valid and with revoked entries."""
    name = f"eva-{size['width']}-{scheme}"
    with window(browser) as (_, page, _):
        page.set_viewport_size({"width": size["width"], "height": size["height"]})
        page.emulate_media(color_scheme=scheme)
        page.goto(server.invite(name, "admin"))
        page.wait_for_url(server.url + "/")
        server.invite(f"{name}-revoked", "read")
        page.goto(server.url + "/tokens")

        def check() -> None:
            assert accessibility_faults(page) == []
            assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")

        page.click("text=Make a token")
        page.wait_for_selector("[role=status]")
        check()
        page.click(f"tr:has-text('{name}-revoked') button")
        page.wait_for_selector(f"tr:has-text('{name}-revoked') >> text=/^revoked$/")
        check()
