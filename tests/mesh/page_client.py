"""A browser's side of the coordinator's page, without a browser: cookies, Origin and the CSRF token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import SimpleCookie

import aiohttp

from meshray.web.access import COOKIE

from .coordinator_harness import Client, Running


@dataclass
class Page:
    status: int
    headers: Mapping[str, str]
    text: str


class Browser:
    """One browser.

    Attributes:
        cookie: the session's secret; empty: none.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.cookie = ""
        self.origin = f"https://127.0.0.1:{client.port}"

    def headers(self, method: str) -> dict[str, str]:
        """Return what a browser adds to a request of a page of this host."""
        headers = {"Cookie": f"{COOKIE}={self.cookie}"} if self.cookie else {}
        return headers if method in ("GET", "HEAD") else {**headers, "Origin": self.origin}

    async def call(
        self,
        method: str,
        path: str,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Page:
        """Send one request, without following a redirection."""
        async with self.client.session.request(
            method,
            self.origin + path,
            data=dict(form) if form is not None else None,
            headers={**self.headers(method), **(headers or {})},
            ssl=self.client.pin,
            allow_redirects=False,
        ) as response:
            text = await response.text()
            for morsel in SimpleCookie(response.headers.get("Set-Cookie", "")).values():
                self.cookie = morsel.value
            return Page(response.status, response.headers, text)

    async def stream(self, path: str) -> aiohttp.ClientResponse:
        """Open a stream, whose end the caller awaits."""
        return await self.client.session.get(self.origin + path, headers=self.headers("GET"), ssl=self.client.pin)

    async def enter(self, secret: str) -> Page:
        """Exchange a pass for a session, as the script of /enter does."""
        return await self.call("POST", "/enter", {"pass": secret})

    async def csrf(self, path: str) -> str:
        """Return the CSRF token in the forms of a page."""
        page = await self.call("GET", path)
        found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
        assert found is not None, page.text
        return found[1]


async def invite(mesh: Running, name: str = "ana", level: str = "read", ttl_s: int = 3600) -> str:
    """Return the secret of a new pass."""
    reply = await mesh.admin("POST", "/v1/web/passes", {"name": name, "level": level, "ttl_s": ttl_s})
    assert reply.status == 200, reply.body
    return str(reply.body["secret"])


async def browser_of(mesh: Running, name: str = "ana", level: str = "read") -> Browser:
    """Return a browser that has opened the page with a new pass."""
    browser = Browser(mesh.client)
    page = await browser.enter(await invite(mesh, name, level))
    assert (page.status, page.headers["Location"]) == (303, "/")
    return browser
