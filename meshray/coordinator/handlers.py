"""The coordinator's HTTP API: the functions that answer `meshray.coordinator.api_routes`, and errors as JSON.

An error is {"schema": 1, "error": {"code", "message", "hint"}, "exit_code": N}.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware
from msgspec import UNSET

from meshray.coordinator.agent_connection import serve_agent
from meshray.coordinator.api_answers import come_again, failure, success
from meshray.coordinator.api_requests import (
    MAX_BODY_BYTES,
    bearer_credential,
    credential_of,
    log_failure,
    not_accepted,
    read_body,
    read_form,
    require_websocket,
    route_path,
    too_large,
)
from meshray.coordinator.api_routes import ROUTES, Caller, Route
from meshray.coordinator.arrivals import Arrivals
from meshray.coordinator.connection_limits import ConnectionLimits
from meshray.coordinator.figures import Figures, coordinator_text
from meshray.coordinator.locking import require_lock
from meshray.coordinator.openapi import describe
from meshray.coordinator.order_socket import Giver, serve_order
from meshray.coordinator.own_agent import require_askable
from meshray.coordinator.records import Member
from meshray.coordinator.request_limits import RequestLimits
from meshray.coordinator.service import Service
from meshray.coordinator.wheel_socket import serve_wheel
from meshray.errors import MeshrayError, RefusedError, UsageError
from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Attestation, parse_signature
from meshray.model.enrol import EnrolRequest, parse_roles
from meshray.model.keys import PublicKey, VerifyKey
from meshray.model.node import COORDINATOR, Node
from meshray.model.permission_level import Level
from meshray.protocol import api, passes
from meshray.protocol.codec import WireError, convert, optional
from meshray.protocol.connection import ROTATE_KEY
from meshray.relay.server import Relay

#: More concurrent requests than this without a known credential, or of members, are asked to retry: see
#: `meshray.coordinator.request_limits`. `meshray.coordinator.connection_limits` counts WebSockets instead.
MAX_REQUESTS = 512

#: Everything below is the API's; all other paths are the page's.
API_PATH = "/v1/"
#: The paths of WebSockets.
_SOCKETS = frozenset(route.path for route in ROUTES if route.is_socket)

F = TypeVar("F")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(service: Service, connection_limits: ConnectionLimits, relay: Relay, wheels: Path) -> web.Application:
    """Return the application that answers for this service.

    Args:
        wheels: the folder of the wheels that nodes may fetch.
    """
    figures = Figures()
    handlers = _Api(service, connection_limits, relay, figures, wheels)
    app = web.Application(
        middlewares=[_ApiMiddleware(service, connection_limits, figures).middleware], client_max_size=MAX_BODY_BYTES
    )
    app.add_routes([web.route(route.method, route.path, handlers.answering(route)) for route in ROUTES])
    return app


class _ApiMiddleware:
    """Turn errors into JSON, and keep a connection open only after a successful request."""

    def __init__(self, service: Service, connection_limits: ConnectionLimits, figures: Figures) -> None:
        self._service = service
        self._connection_limits = connection_limits
        self._figures = figures
        self._limits = RequestLimits(MAX_REQUESTS)

    @property
    def middleware(self) -> Middleware:
        """Handle a request, as aiohttp's middleware."""

        @web.middleware
        async def answer(request: web.Request, handler: _Handler) -> web.StreamResponse:
            if not request.path.startswith(API_PATH):
                # The page has its own errors, limits and connections: `meshray.web.site`.
                return await handler(request)
            response = await self._answer(request, handler)
            if isinstance(response, web.WebSocketResponse):
                self._connection_limits.expect_end(request.protocol)
            elif response.status < 400:
                self._connection_limits.expect_another(request.protocol)
            else:
                response.force_close()
                self._connection_limits.expect_end(request.protocol)
            return response

        return answer

    async def _answer(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        member = self._service.member_with(bearer_credential(request))
        try:
            if request.path in _SOCKETS:
                return await handler(request)
            node_id, is_admin = (member.node.id, COORDINATOR in member.node.roles) if member else ("", False)
            with (
                self._limits.taking(node_id, is_admin=is_admin),
                self._figures.timed(request.method, route_path(request)),
            ):
                self._connection_limits.recognise(request.protocol, node_id)
                return await handler(request)
        except MeshrayError as error:
            self._figures.refused(error.code)
            return failure(error)
        except web.HTTPRequestEntityTooLarge:
            self._figures.refused("request_too_large")
            return failure(too_large())
        except web.HTTPException as error:
            code = (error.reason or "failed").lower().replace(" ", "_")
            self._figures.refused(code)
            message = f"{request.method} {request.path[:200]!r}: {error.reason}"
            answer = failure(UsageError(code, message), error.status)
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]  # RFC 9110, section 15.5.6
            return answer
        except Exception as error:
            # The cause is logged here: an unauthenticated client must not learn it.
            log_failure(request, error)
            hint = "on the head: meshray logs"
            return failure(MeshrayError("internal_error", "the coordinator failed to process this request", hint=hint))


class _Api:
    def __init__(
        self, service: Service, connection_limits: ConnectionLimits, relay: Relay, figures: Figures, wheels: Path
    ) -> None:
        self._service = service
        self._connection_limits = connection_limits
        self._relay = relay
        self._figures = figures
        self._wheels = wheels
        self._arrivals = Arrivals()
        # Every client may request it as often as it likes.
        self._description = json.dumps(describe()).encode()

    def answering(self, route: Route) -> _Handler:
        """Return the handler of this route: its function, called only for callers who may call it."""
        handler: _Handler = getattr(self, route.name)

        async def answer(request: web.Request) -> web.StreamResponse:
            if route.caller is Caller.ADMIN:
                self._service.require_admin(self._member(request))
            return await handler(request)

        return answer

    async def hello(self, request: web.Request) -> web.StreamResponse:
        answer = self._service.hello()
        if "Authorization" in request.headers:
            # A client with a credential learns whether it is valid, and the map's revision if so.
            member = self._service.member_with(credential_of(request))
            revision = self._service.revision if member is not None else None
            answer = msgspec.structs.replace(answer, accepted=member is not None, revision=revision)
        return success(answer)

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._description, content_type="application/json")

    async def enrol(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        enrolment = EnrolRequest.from_json(body)
        self._service.tokens.require(enrolment)
        self._connection_limits.trust(request.protocol)
        self._service.require_proof(enrolment.public_key, "/v1/enroll", body)
        answer = await self._service.enrol(enrolment)
        self._figures.enrolments += 1
        node, roles = answer.map.nodes[answer.node_id], sorted(enrolment.roles)
        about = {"token": enrolment.token_id, "ip": node.ip, "roles": " ".join(roles)}
        self._audit(request, "node_enrolled", node.name, by=f"token {enrolment.token_id}", **about)
        return success(replace(answer, observed=request.remote or "").form())

    async def withdraw(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        form = convert(body, api.WithdrawForm)
        key = PublicKey.parse(form.public_key)
        self._service.tokens.require(form)
        self._service.require_proof(key, "/v1/withdraw", body)
        withdrawn = await self._service.withdraw(form, key)
        if withdrawn:
            self._audit(request, "enrolment_withdrawn", by=f"token {form.token_id}", token=form.token_id)
        return success(api.Withdrawn(withdrawn))

    async def environment(self, request: web.Request) -> web.StreamResponse:
        self._member(request)
        return success(self._service.environment().form())

    async def show_environment(self, request: web.Request) -> web.StreamResponse:
        return success(self._service.environment(await read_form(request, api.PresentedToken)).form())

    async def lock_environment(self, request: web.Request) -> web.StreamResponse:
        await self._service.lock((await read_form(request, api.LockEnvironment)).requirements)
        self._audit(request, "environment_locked")
        return success(self._service.environment().form())

    async def agent(self, request: web.Request) -> web.StreamResponse:
        credential = credential_of(request)
        require_websocket(request)
        hold = partial(self._connection_limits.hold, request.protocol, kind="agent")
        if node_id := self._service.identify(credential, request.headers):
            seconds = None if self._service.is_hub(node_id) else self._arrivals.retry_after_s()
            if seconds is not None:
                return come_again(seconds)
            hold(node_id)
        with self._arrivals.entering() as served:
            return await serve_agent(self._service, request, credential, hold, served)

    async def relay(self, request: web.Request) -> web.StreamResponse:
        credential, member = credential_of(request), self._member(request)
        require_websocket(request)
        self._connection_limits.hold(request.protocol, member.node.id, "relay")
        await asyncio.sleep(self._service.budgets.connection_wait_s(member.node.id, "relay"))
        return await self._relay.serve(
            request, member.node.id, lambda: self._service.member_with(credential) is not None
        )

    async def order(self, request: web.Request) -> web.StreamResponse:
        member = self._member(request)
        require_websocket(request)
        self._connection_limits.hold(request.protocol, member.node.id, "order")
        refusal = None
        try:
            self._service.require_admin(member)
        except RefusedError as error:
            refusal = error
        by = f"root on {member.node.name}"
        return await serve_order(self._service, request, Giver(by, request.remote or "", member.node.id, refusal))

    async def wheel(self, request: web.Request) -> web.StreamResponse:
        member = self._member(request)
        require_websocket(request)
        self._connection_limits.hold(request.protocol, member.node.id, "wheel")
        return await serve_wheel(self._wheels, request)

    async def rotate(self, request: web.Request) -> web.StreamResponse:
        member, body = self._member(request), await read_body(request)
        form = convert(body, api.RotateKey)
        key = PublicKey.parse(form.public_key)
        self._service.require_proof(key, "/v1/rotate", body)
        await self._service.rotate(member.node.id, key, optional(Attestation.of, form.attestation))
        return success(api.KeyRotated(str(key), self._service.revision))

    async def leave(self, request: web.Request) -> web.StreamResponse:
        node = self._member(request).node
        form = await read_form(request, api.Leave) if request.can_read_body else api.Leave()
        await self._service.remove(node.id, take_back=form.take_back)
        self._audit(request, "node_left", node.name, by=f"root on {node.name}")
        return success(api.Done())

    async def reach(self, request: web.Request) -> web.StreamResponse:
        member, form = self._member(request), await read_form(request, api.Reach)
        await self._service.reach.probe(member, Endpoint.parse(form.endpoint), form.word)
        return success(api.Done())

    async def create_token(self, request: web.Request) -> web.StreamResponse:
        form = await read_form(request, api.NewToken)
        require_lock(self._service.settings.mesh, optional(VerifyKey.parse, form.lock))
        token, record = await self._service.tokens.create(
            uses=form.uses,
            ttl_s=form.ttl_s,
            ephemeral=form.ephemeral,
            roles=parse_roles(form.roles),
            name=optional(NodeName.parse, form.name),
            replace_node=form.replace,
        )
        entry = record.form()
        roles = " ".join(entry.roles)
        self._audit(request, "token_created", token=entry.id, uses=entry.uses, roles=roles, name=record.name)
        return success(
            api.CreatedToken(
                token=token.encode(),
                id=entry.id,
                uses=entry.uses,
                expires=entry.expires,
                port=self._service.settings.port,
                roles=entry.roles,
                name=entry.name,
                replace=entry.replace,
            )
        )

    async def list_tokens(self, request: web.Request) -> web.StreamResponse:
        return success(api.Tokens(tuple(token.form() for token in self._service.tokens.all())))

    async def revoke_token(self, request: web.Request) -> web.StreamResponse:
        revoked = (await self._service.tokens.revoke(request.match_info["id"])).form()
        self._audit(request, "token_revoked", token=revoked.id)
        return success(revoked)

    async def list_nodes(self, request: web.Request) -> web.StreamResponse:
        removals, lock = self._service.removals(), self._service.settings.mesh.lock
        return success(
            api.Nodes(
                mesh=self._service.settings.mesh.id,
                revision=self._service.revision,
                nodes=tuple(member.form() for member in self._service.members()),
                restored=self._service.recovery.restored(),
                lock=str(lock) if lock is not None else UNSET,
                removals=removals.form() if removals is not None else UNSET,
            )
        )

    async def remove_node(self, request: web.Request) -> web.StreamResponse:
        form = await read_form(request, api.RemoveNode) if request.can_read_body else api.RemoveNode()
        signed = optional(lambda removal: (removal.epoch, parse_signature(removal.signature)), form.removal)
        member, rotation = await self._service.remove_named(request.match_info["name"], signed)
        self._audit(request, "node_removed", member.node.name)
        is_locked = self._service.settings.mesh.lock is not None and signed is None
        return success(api.NodeRemoved(*_named(member.node), rotation, is_locked or UNSET))

    async def rotate_secrets(self, request: web.Request) -> web.StreamResponse:
        rotation = await self._service.secrets.rotate()
        self._audit(request, "secrets_rotated", epoch=rotation.epoch)
        return success(rotation)

    async def change_node(self, request: web.Request) -> web.StreamResponse:
        form, name = await read_form(request, api.ChangeNode), request.match_info["name"]
        if (form.name is UNSET) == (form.drained is UNSET):
            raise WireError("a change of a node needs either name or drained")
        if form.name is not UNSET:
            member = await self._service.rename(name, NodeName.parse(form.name))
            self._audit(request, "node_renamed", name, name=member.node.name)
        else:
            member = await self._service.drain(name, form.drained is True)
            self._audit(request, "node_drained" if member.node.drained else "node_undrained", name)
        return success(api.NodeChanged(*_named(member.node), member.node.drained))

    async def add_peer(self, request: web.Request) -> web.StreamResponse:
        form = await read_form(request, api.AddPeer)
        name, mesh = NodeName.parse(form.name), self._service.settings.mesh
        require_lock(mesh, optional(VerifyKey.parse, form.lock))
        peer = await self._service.add_static(name)
        self._audit(request, "peer_added", peer.node.name, ip=peer.node.ip)
        hub = api.PeerHub(
            *_named(peer.hub),
            str(peer.hub.public_key),
            tuple(map(str, peer.hub.endpoints)),
            peer.preshared_key.reveal(),
        )
        return success(
            api.PeerAdded(
                *_named(peer.node),
                mesh=mesh.id,
                private_key=peer.private_key.reveal(),
                public_key=str(peer.node.public_key),
                network=str(mesh.network),
                hub=hub,
            )
        )

    async def sign_peer(self, request: web.Request) -> web.StreamResponse:
        attestation = Attestation.of((await read_form(request, api.SignPeer)).attestation)
        member = await self._service.sign_static(request.match_info["name"], attestation)
        self._audit(request, "peer_signed", member.node.name)
        return success(api.Named(*_named(member.node)))

    async def advertise(self, request: web.Request) -> web.StreamResponse:
        endpoints = tuple(map(Endpoint.parse, (await read_form(request, api.Endpoints)).endpoints))
        node = await self._service.advertise(endpoints)
        self._audit(request, "address_advertised", node.name, endpoints=" ".join(map(str, endpoints)))
        return success(api.Endpoints(tuple(map(str, node.endpoints))))

    async def copy_store(self, request: web.Request) -> web.StreamResponse:
        name = await self._service.copy_store()
        self._audit(request, "backup_created")
        return success(api.StoreCopy(name))

    async def create_pass(self, request: web.Request) -> web.StreamResponse:
        form = await read_form(request, passes.NewPass)
        secret, record = await self._service.passes.create(form.name, Level.of(form.level), form.ttl_s)
        location = (self._endpoints(), self._service.settings.port, self._service.fingerprint.hex())
        about = {"pass_id": record.id, "name": record.name, "level": record.level.word}
        self._audit(request, "pass_created", **about)
        return success(passes.CreatedPass(secret, record.id, record.name, record.level.word, record.expires, *location))

    async def list_passes(self, request: web.Request) -> web.StreamResponse:
        return success(passes.Passes(tuple(record.form() for record in self._service.passes.all())))

    async def revoke_pass(self, request: web.Request) -> web.StreamResponse:
        record = await self._service.passes.revoke(request.match_info["pass"])
        self._audit(request, "pass_revoked", pass_id=record.id, name=record.name)
        return success(record.form())

    async def open_session(self, request: web.Request) -> web.StreamResponse:
        node = self._member(request).node
        secret, level, expires = self._service.passes.create_link(node)
        self._audit(request, "link_created", by=f"root on {node.name}", level=level.word)
        location = (self._endpoints(), self._service.settings.port, self._service.fingerprint.hex())
        return success(passes.CreatedLink(secret, level.word, expires, *location))

    async def ask(self, request: web.Request) -> web.StreamResponse:
        member, form = self._member(request), await read_form(request, api.AskForm)
        require_askable(form.op)
        if form.op == ROTATE_KEY:
            self._audit(request, "key_rotation_ordered", " ".join(form.nodes))
        gathered = await self._service.ask(member, form.nodes, form.op, form.timeout_s)
        return success(api.Gathered(gathered.answers, gathered.silent, gathered.connections))

    def _audit(self, request: web.Request, event: str, node: str = "", *, by: str = "", **details: object) -> None:
        """Record what was done; ``by``: empty for the node that runs the coordinator."""
        by = by or f"root on {self._service.own_node().name}"
        self._service.audit.note(event, by=by, source=request.remote or "", node=node, **details)

    def _endpoints(self) -> tuple[str, ...]:
        return tuple(map(str, self._service.own_node().endpoints))

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        nodes = [member.node for member in self._service.members()]
        text = coordinator_text(
            self._figures,
            mesh=str(self._service.settings.mesh.name),
            connected=sum(node.online for node in nodes),
            nodes=len(nodes),
            revision=self._service.revision,
        )
        return success(api.MetricsText(text))

    def _member(self, request: web.Request) -> Member:
        member = self._service.member_with(credential_of(request))
        if member is None:
            raise not_accepted()
        return member


def _named(node: Node) -> tuple[str, str]:
    return node.name, str(node.ip)
