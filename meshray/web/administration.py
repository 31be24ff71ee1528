"""The pages of an administrator: tokens, passes, and the removal of a node."""

from __future__ import annotations

import logging
from datetime import datetime, timezone

from aiohttp import web

from meshray.coordinator.locking import require_lock
from meshray.coordinator.records import PassRecord, TokenRecord
from meshray.errors import RefusedError, UsageError
from meshray.model.enrol import parse_roles
from meshray.model.node import COORDINATOR
from meshray.web.access import Level
from meshray.web.frame import Site, form_of

#: The lifetimes of a new token that the page offers, seconds; 0: it never expires.
LIFETIMES = {3600: "1 hour", 86400: "1 day", 7 * 86400: "7 days", 0: "no limit"}
MAX_USES = 1_000_000

_log = logging.getLogger(__name__)


class _Administration:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._service = site.service

    async def tokens(self, request: web.Request) -> web.StreamResponse:
        return self._tokens(request)

    async def create_token(self, request: web.Request) -> web.StreamResponse:
        form = await form_of(request)
        require_lock(self._service.settings.mesh, None)
        uses, ttl_s = _number(form, "uses", MAX_USES), _number(form, "ttl_s", max(LIFETIMES))
        token, record = await self._service.tokens.create(
            uses=uses,
            ttl_s=ttl_s,
            ephemeral="ephemeral" in form,
            roles=parse_roles([role for role in ("hub",) if role in form]),
        )
        self._note(request, "token_created", token=record.id, uses=uses, roles=" ".join(sorted(record.roles)))
        return self._tokens(request, made=token.encode(), made_id=record.id)

    async def revoke_token(self, request: web.Request) -> web.StreamResponse:
        record = await self._service.tokens.revoke(request.match_info["id"])
        self._note(request, "token_revoked", token=record.id)
        return _to_tokens()

    async def revoke_pass(self, request: web.Request) -> web.StreamResponse:
        made = await self._service.passes.revoke(request.match_info["id"])
        self._note(request, "pass_revoked", pass_id=made.id, name=made.name)
        return _to_tokens()

    async def confirm_removal(self, request: web.Request) -> web.StreamResponse:
        return self._removal(request, request.match_info["name"])

    async def remove_node(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if (await form_of(request)).get("confirm") != name:
            return self._removal(request, name)
        member, rotation = await self._service.remove_named(name)
        self._note(request, "node_removed", str(member.node.name))
        return self._site.page(
            request,
            "removed.html",
            name=str(member.node.name),
            rotation=rotation,
            has_lock=self._service.settings.mesh.lock is not None,
        )

    def _note(self, request: web.Request, event: str, node: str = "", **details: object) -> None:
        """Write a line into the coordinator's log and a record into the audit log."""
        session = self._site.access.require(request, Level.ADMIN)
        _log.info("%s on the page: %s %s %s", session.name, event, node, details)
        self._service.audit.note(event, by=session.audit_name, source=request.remote or "", node=node, **details)

    def _removal(self, request: web.Request, name: str) -> web.Response:
        member = self._service.member_named(name)
        if COORDINATOR in member.node.roles:
            raise RefusedError(
                "node_is_coordinator",
                f"{member.node.name} runs the coordinator of this mesh and cannot be removed",
                hint=f"to end the whole mesh, on {member.node.name}: meshray leave",
            )
        return self._site.page(request, "removal.html", node=member.node)

    def _tokens(self, request: web.Request, made: str = "", made_id: str = "") -> web.Response:
        now = self._service.passes.now()
        tokens = sorted(self._service.tokens.all(), key=lambda token: token.created, reverse=True)
        passes = sorted(self._service.passes.all(), key=lambda known: known.created, reverse=True)
        return self._site.page(
            request,
            "tokens.html",
            made=made,
            made_id=made_id,
            has_lock=self._service.settings.mesh.lock is not None,
            lifetimes=LIFETIMES,
            tokens=[(token, _state_of_token(token, now), _time(token.expires)) for token in tokens],
            passes=[(known, _state_of_pass(known, now), _time(known.expires)) for known in passes],
        )


def add(site: Site) -> None:
    """Add these pages to the site."""
    pages = _Administration(site)
    site.add("GET", "/tokens", pages.tokens, read=Level.ADMIN)
    site.add("POST", "/tokens", pages.create_token)
    site.add("POST", "/tokens/{id}/revoke", pages.revoke_token)
    site.add("POST", "/passes/{id}/revoke", pages.revoke_pass)
    site.add("GET", "/nodes/{name}/remove", pages.confirm_removal, read=Level.ADMIN)
    site.add("POST", "/nodes/{name}/remove", pages.remove_node)


def _to_tokens() -> web.Response:
    return web.Response(status=303, headers={"Location": "/tokens"})


def _number(form: dict[str, str], name: str, most: int) -> int:
    text = form.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= most):
        raise UsageError("form_invalid", f"{name} is not a number from 0 to {most}")
    return int(text)


def _state_of_token(token: TokenRecord, now: float) -> str:
    """Return why a token admits no further node; empty if it does."""
    if token.revoked:
        return "revoked"
    if token.expires is not None and now >= token.expires:
        return "expired"
    return "used up" if token.is_spent else ""


def _state_of_pass(known: PassRecord, now: float) -> str:
    """Return why neither the pass nor its session works; empty if one does."""
    if known.revoked is not None:
        return "revoked"
    return "expired" if now >= known.expires else ""


def _time(at: float | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
