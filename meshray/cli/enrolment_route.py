"""Enrolment over another route, for a machine that cannot reach the coordinator's port.

>>> str(parse_via("ssh://ana@head"))
'ssh://ana@head'
>>> str(parse_via("127.0.0.1:40000"))      # an existing forward
'127.0.0.1:40000'
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshray.errors import UnreachableError, UsageError
from meshray.model.address import Endpoint
from meshray.protocol.codec import to_json

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.client.coordinator import Coordinator
    from meshray.model.enrol import EnrolAnswer, EnrolRequest
    from meshray.model.keys import PrivateKey
    from meshray.model.token import Token
    from meshray.node.enrolment import Enrolment
    from meshray.runtime.ssh import SshTarget

_CONNECT_S = 10.0
Json = Mapping[str, object]


@dataclass(frozen=True)
class PostRequest:
    """One POST to the coordinator.

    Attributes:
        prove_with: the private key whose possession the request proves; None if it proves none.
        on_sent: called immediately before the request leaves this machine.
    """

    coordinator: Coordinator
    path: str
    body: Json
    prove_with: PrivateKey | None = None
    on_sent: Callable[[], None] = lambda: None

    async def send(self, stream: socket.socket) -> Json:
        """Send the request over a byte stream to the coordinator's port, and return the answer."""
        return await self.coordinator.call_through(
            stream, "POST", self.path, self.body, self.prove_with, on_sent=self.on_sent
        )


@dataclass(frozen=True)
class SshRoute:
    """The route through this machine's ssh client to the machine of the coordinator."""

    target: SshTarget

    def call(self, app: App, request: PostRequest) -> Json:
        """Return the answer; raises as `Coordinator.request` does, and UnreachableError ``ssh_failed`` quoting ssh."""
        from meshray.linux.user import User
        from meshray.runtime.ssh import SshStream

        port = request.coordinator.endpoints[0].port
        with SshStream(self.target, port, User.invoking(app.environ), app.environ) as stream:
            try:
                return asyncio.run(request.send(stream.socket))
            except UnreachableError as error:
                raise stream.failure() or error from None

    def __str__(self) -> str:
        return str(self.target)


@dataclass(frozen=True)
class ForwardRoute:
    """The route through an existing forward to the coordinator's port."""

    endpoint: Endpoint

    def call(self, app: App, request: PostRequest) -> Json:
        """Return the answer; raises as `Coordinator.request` does."""
        try:
            stream = socket.create_connection((self.endpoint.host, self.endpoint.port), _CONNECT_S)
        except OSError as error:
            raise UnreachableError(
                "coordinator_unreachable",
                f"nothing answers at {self.endpoint}: {error.strerror or error}",
                hint="does the forward lead to the coordinator's port?",
            ) from None
        with stream:
            return asyncio.run(request.send(stream))

    def __str__(self) -> str:
        return str(self.endpoint)


EnrolmentRoute = SshRoute | ForwardRoute


def enrol_via(
    app: App,
    via: EnrolmentRoute,
    token: Token,
    request: EnrolRequest,
    key: PrivateKey,
    *,
    on_sent: Callable[[], None] = lambda: None,
) -> EnrolAnswer:
    """Enrol through this route. The arguments are those of `meshray.client.coordinator.enrol`.

    Raises:
        MeshrayError: as `call` of the route does.
    """
    from meshray.client.coordinator import Coordinator
    from meshray.model.enrol import EnrolAnswer

    coordinator = Coordinator(token.coordinators, token.fingerprint)
    post = PostRequest(coordinator, "/v1/enroll", to_json(request.form()), key, on_sent)
    return EnrolAnswer.from_json(via.call(app, post))


def withdraw_via(app: App, via: EnrolmentRoute, token: Token, key: PrivateKey) -> None:
    """Undo an enrolment whose answer did not arrive; raises as `call` of the route does."""
    from meshray.client.coordinator import WITHDRAW, Coordinator, withdrawal

    coordinator = Coordinator(token.coordinators, token.fingerprint)
    via.call(app, PostRequest(coordinator, WITHDRAW, withdrawal(token, key), key))


def unenrol_via(app: App, via: EnrolmentRoute, enrolment: Enrolment) -> None:
    """Undo the enrolment of a failed join: the coordinator forgets the node, and the token's use does not count."""
    from meshray.client.coordinator import Coordinator

    coordinator = Coordinator(enrolment.coordinators, bytes.fromhex(enrolment.fingerprint), enrolment.credential)
    via.call(app, PostRequest(coordinator, "/v1/leave", {"take_back": True}))


def parse_via(text: str) -> EnrolmentRoute:
    """Parse the option. Raises UsageError if it is neither ``ssh://…`` nor HOST:PORT."""
    from meshray.runtime.ssh import SshTarget

    if "//" in text:
        return SshRoute(SshTarget.parse(text))
    try:
        return ForwardRoute(Endpoint.parse(text))
    except UsageError:
        raise UsageError(
            "bad_via", f"{text[:80]!r} is neither ssh://[USER@]HOST[:PORT] nor HOST:PORT", hint="--via ssh://ana@head"
        ) from None
