"""Sign-in and sign-out: /enter takes the pass in the URL's fragment, which browsers do not send; /signout ends it.

    https://HEAD:51888/enter#PASS.FINGERPRINT ──script──► POST /enter (pass=PASS) ──► cookie, then /

Without JavaScript, the user pastes the pass into a form.
"""

from __future__ import annotations

from aiohttp import web

from meshray.web.access import Level, forget_cookie, set_cookie
from meshray.web.frame import Site, form_of


class _SignIn:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def show(self, request: web.Request) -> web.StreamResponse:
        return self._site.page(request, "enter.html", refused=False)

    async def enter(self, request: web.Request) -> web.StreamResponse:
        # A user may paste the whole URL.
        shown = (await form_of(request)).get("pass", "").strip().rpartition("#")[2].partition(".")[0]
        cookie = await self._site.access.exchange(request, shown)
        if cookie is None:
            return self._site.page(request, "enter.html", 403, refused=True)
        response = _to("/")
        set_cookie(response, cookie, self._site.service.passes.now())
        return response

    async def sign_out(self, request: web.Request) -> web.StreamResponse:
        await self._site.access.sign_out(request)
        response = _to("/enter")
        forget_cookie(response)
        return response


def add(site: Site) -> None:
    """Add these pages to the site."""
    pages = _SignIn(site)
    site.add("GET", "/enter", pages.show, is_public=True)
    site.add("POST", "/enter", pages.enter, is_public=True)
    site.add("POST", "/signout", pages.sign_out, write=Level.READ, needs_cookie=True)


def _to(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})
