"""The address of the coordinator's page with the secret of one browser, and how this machine reaches it.

    https://HEAD:51888/enter#PASS.FINGERPRINT

A browser does not send what follows the number sign: the page's own script reads it. `meshray forward` trusts only the
certificate with this fingerprint.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.errors import MeshrayError, UnreachableError
from meshray.model.address import Endpoint
from meshray.protocol.codec import convert
from meshray.protocol.web_answers import WebInvite, WebOpen

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.protocol.passes import CreatedLink, CreatedPass
    from meshray.runtime.ssh import CommandResult, SshTarget

#: A command on the other machine that its user runs without sudo.
_SCRIPT = 'p=$(command -v "$1" || command -v "$HOME/.local/bin/$1") || exit 127; shift; exec "$p" "$@"'


@dataclass(frozen=True)
class RemotePageRequest:
    """A request to open the page through ssh.

    Attributes:
        program: the name or path of meshray on the other machine.
        level, ttl_s: the level and lifetime of the pass.
    """

    target: SshTarget
    program: str
    level: str
    ttl_s: int


@dataclass(frozen=True)
class InviteResult(Result[WebInvite]):
    """``web invite``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the URL alone on its line, so that it can be copied or piped; `explain` writes to stderr."""
        return self.answer.url


@dataclass(frozen=True)
class OpenResult(Result[WebOpen]):
    """``web open``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the URL alone on its line, as for ``web invite``."""
        return self.answer.url


def url_of(made: CreatedPass | CreatedLink, endpoint: Endpoint) -> str:
    """Return the address of the page at this endpoint, with the secret."""
    return f"https://{endpoint}/enter#{made.secret}.{made.fingerprint}"


def as_browsers_show(fingerprint: str) -> str:
    """Return a hexadecimal fingerprint in upper case with colons.

    >>> as_browsers_show("ab01")
    'AB:01'
    """
    return ":".join(fingerprint[n : n + 2] for n in range(0, len(fingerprint), 2)).upper()


def explain(app: App, fingerprint: str) -> None:
    """Explain the browser's warning on stderr, in two lines, so that stdout has the URL alone."""
    app.note("The browser warns once, because the coordinator signs its certificate itself. Continue only if the")
    app.note(f"certificate's SHA-256 fingerprint is {fingerprint}")


def open_here(app: App, *, no_open: bool) -> OpenResult:
    """Return the address with a link for a browser of this node's user, and open it if there is a browser.

    Raises:
        UnreachableError: the coordinator cannot be reached.
    """
    from meshray.cli.browser import has_browser, open_with_secret
    from meshray.protocol.passes import CreatedLink

    made = convert(app.api("POST", "/v1/web/session"), CreatedLink)
    endpoints = [Endpoint.parse(text) for text in made.endpoints]
    if made.level == "admin":
        endpoints.append(Endpoint("127.0.0.1", made.port))
    endpoint = asyncio.run(_answering(endpoints, bytes.fromhex(made.fingerprint)))
    fingerprint = as_browsers_show(made.fingerprint)
    answer = WebOpen(url=url_of(made, endpoint), level=made.level, expires=made.expires, fingerprint=fingerprint)
    explain(app, fingerprint)
    if not (no_open or app.as_json) and has_browser(app):
        # The file stays: the browser may read it late, and its secret works once, for two minutes.
        open_with_secret(app, answer.url)
    return OpenResult(answer)


def open_via(app: App, request: RemotePageRequest, *, no_open: bool) -> int:
    """Create a pass on the head, and forward the page to this machine's loopback until the user interrupts.

    Raises:
        UnreachableError: ``ssh_failed``, with ssh's own message.
        MeshrayError: the error of `meshray web invite` there; no_meshray_there.
    """
    from meshray.cli import output
    from meshray.cli.browser import has_browser, open_with_secret
    from meshray.linux.user import User
    from meshray.runtime.ssh import SshForward

    invited = _invite_remotely(app, request)
    try:
        with SshForward(request.target, invited.port, User.invoking(app.environ), app.environ) as forward:
            forward.wait_open()
            fragment = invited.url.rpartition("#")[2]
            here = Endpoint("127.0.0.1", forward.port)
            asyncio.run(_answering([here], bytes.fromhex(fragment.rpartition(".")[2])))
            url = f"https://{here}/enter#{fragment}"
            answer = WebOpen(url=url, level=invited.level, expires=invited.expires, fingerprint=invited.fingerprint)
            explain(app, answer.fingerprint)
            output.show(app, OpenResult(answer))
            file = None if no_open or app.as_json or not has_browser(app) else open_with_secret(app, url)
            try:
                raise forward.ended()
            finally:
                if file is not None:
                    file.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(MeshrayError):
            _run_remotely(app, request, ["web", "revoke", invited.id, "--json"])


def _invite_remotely(app: App, request: RemotePageRequest) -> WebInvite:
    """Return the answer of `meshray web invite` on the other machine."""
    name = f"ssh-{secrets.token_hex(4)}"
    flag = [] if request.level == "read" else [f"--{request.level}"]
    words = ["web", "invite", name, "--ttl", f"{request.ttl_s}s", *flag, "--json"]
    return convert(_run_remotely(app, request, words), WebInvite)


def _run_remotely(app: App, request: RemotePageRequest, arguments: Sequence[str]) -> Mapping[str, object]:
    """Run meshray on the other machine as the user of ssh, and with sudo if that user may not use the agent."""
    import shlex

    from meshray.cli.remote_join import read_answer, remote_command

    plain = shlex.join(["sh", "-c", _SCRIPT, "sh", request.program, *arguments])
    try:
        return read_answer(request.target, request.program, _ssh(app, request.target, plain))
    except UnreachableError:
        raise
    except MeshrayError as error:
        try:
            with_sudo = _ssh(app, request.target, remote_command(request.program, arguments))
            return read_answer(request.target, request.program, with_sudo)
        except MeshrayError:
            raise error from None


def _ssh(app: App, target: SshTarget, command: str) -> CommandResult:
    from meshray.linux.user import User
    from meshray.runtime.ssh import run_remote

    user = User.invoking(app.environ)
    return run_remote(target, command, stdin="", user=user, on_line=lambda line: None, environ=app.environ)


async def _answering(endpoints: Sequence[Endpoint], fingerprint: bytes) -> Endpoint:
    """Return the first of these endpoints at which the coordinator with this certificate answers."""
    from meshray.client.coordinator import Coordinator
    from meshray.client.dialer import race

    async def hello(endpoint: Endpoint) -> Endpoint:
        await Coordinator((endpoint,), fingerprint).call("GET", "/v1/hello")
        return endpoint

    return await race(endpoints, hello, stagger_s=0.2)
