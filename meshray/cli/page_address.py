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

from meshray.cli.web_results import PageAddress
from meshray.errors import MeshrayError, UnreachableError
from meshray.model.address import Endpoint

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.protocol.passes import MadeLink, MadePass
    from meshray.runtime.ssh import Answered, SshTarget

#: A command on the other machine that its user runs without sudo.
_SCRIPT = 'p=$(command -v "$1" || command -v "$HOME/.local/bin/$1") || exit 127; shift; exec "$p" "$@"'


@dataclass(frozen=True)
class ViaRequest:
    """The wish to open the page through ssh.

    Attributes:
        program: the name or path of meshray on the other machine.
        level, ttl_s: those of the pass.
    """

    target: SshTarget
    program: str
    level: str
    ttl_s: int


def address_of(made: MadePass | MadeLink, endpoint: Endpoint) -> PageAddress:
    """Return the address of the page at this endpoint, with the secret."""
    from meshray.protocol.passes import MadeLink

    url = f"https://{endpoint}/enter#{made.secret}.{made.fingerprint}"
    shown = as_browsers_show(made.fingerprint)
    if isinstance(made, MadeLink):
        return PageAddress(url, made.level, made.expires, shown)
    return PageAddress(url, made.level, made.expires, shown, id=made.id, name=made.name, port=made.port)


def as_browsers_show(fingerprint: str) -> str:
    """Return a hexadecimal fingerprint in upper case with colons.

    >>> as_browsers_show("ab01")
    'AB:01'
    """
    return ":".join(fingerprint[n : n + 2] for n in range(0, len(fingerprint), 2)).upper()


def explain(app: App, result: PageAddress) -> None:
    """Explain the browser's warning on stderr, in two lines, so that stdout has the URL alone."""
    app.note("The browser warns once, because the coordinator signs its certificate itself. Continue only if the")
    app.note(f"certificate's SHA-256 fingerprint is {result.fingerprint}")


def open_here(app: App, *, no_open: bool) -> PageAddress:
    """Return the address with a link for a browser of this node's user, and open it if there is a browser.

    Raises:
        UnreachableError: the coordinator cannot be reached.
    """
    from meshray.cli.browser import has_browser, open_secretly
    from meshray.protocol.codec import convert
    from meshray.protocol.passes import MadeLink

    made = convert(app.api("POST", "/v1/web/session"), MadeLink)
    endpoints = [Endpoint.parse(text) for text in made.endpoints]
    if made.level == "admin":
        endpoints.append(Endpoint("127.0.0.1", made.port))
    endpoint = asyncio.run(_answering(endpoints, bytes.fromhex(made.fingerprint)))
    result = address_of(made, endpoint)
    explain(app, result)
    if not (no_open or app.as_json) and has_browser(app):
        # The file stays: the browser may read it late, and its secret works once, for two minutes.
        open_secretly(app, result.url)
    return result


def open_via(app: App, request: ViaRequest, *, no_open: bool) -> int:
    """Forward the page from the head to this machine's loopback until the user interrupts, with a pass made there.

    Raises:
        UnreachableError: ``ssh_failed``, with ssh's own message.
        MeshrayError: the error of `meshray web invite` there; no_meshray_there.
    """
    from meshray.cli import output
    from meshray.cli.browser import has_browser, open_secretly
    from meshray.linux.user import User
    from meshray.protocol.codec import convert
    from meshray.runtime.ssh import SshForward

    invited = _invite_there(app, request)
    try:
        port = convert(invited["port"], int)
        with SshForward(request.target, port, User.invoking(app.environ), app.environ) as forward:
            forward.wait_open()
            fragment = convert(invited["url"], str).rpartition("#")[2]
            here = Endpoint("127.0.0.1", forward.port)
            asyncio.run(_answering([here], bytes.fromhex(fragment.rpartition(".")[2])))
            result = PageAddress(
                f"https://{here}/enter#{fragment}",
                convert(invited["level"], str),
                convert(invited["expires"], float),
                convert(invited["fingerprint"], str),
            )
            explain(app, result)
            output.show(app, result)
            file = None if no_open or app.as_json or not has_browser(app) else open_secretly(app, result.url)
            try:
                raise forward.ended()
            finally:
                if file is not None:
                    file.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(MeshrayError):
            _run_there(app, request, ["web", "revoke", convert(invited["id"], str), "--json"])


def _invite_there(app: App, request: ViaRequest) -> Mapping[str, object]:
    """Return the answer of `meshray web invite` on the other machine."""
    name = f"ssh-{secrets.token_hex(4)}"
    flag = [] if request.level == "read" else [f"--{request.level}"]
    return _run_there(app, request, ["web", "invite", name, "--ttl", f"{request.ttl_s}s", *flag, "--json"])


def _run_there(app: App, request: ViaRequest, arguments: Sequence[str]) -> Mapping[str, object]:
    """Run meshray there as the user of ssh, and if that user may not ask the agent, with sudo."""
    import shlex

    from meshray.cli.push import answer_of, there

    plain = shlex.join(["sh", "-c", _SCRIPT, "sh", request.program, *arguments])
    try:
        return answer_of(request.target, request.program, _ssh(app, request.target, plain))
    except UnreachableError:
        raise
    except MeshrayError as error:
        try:
            with_sudo = _ssh(app, request.target, there(request.program, arguments))
            return answer_of(request.target, request.program, with_sudo)
        except MeshrayError:
            raise error from None


def _ssh(app: App, target: SshTarget, command: str) -> Answered:
    from meshray.linux.user import User
    from meshray.runtime.ssh import run_there

    user = User.invoking(app.environ)
    return run_there(target, command, stdin="", user=user, on_line=lambda line: None, environ=app.environ)


async def _answering(endpoints: Sequence[Endpoint], fingerprint: bytes) -> Endpoint:
    """Return the first of these endpoints at which the coordinator with this certificate answers."""
    from meshray.client.coordinator import Coordinator
    from meshray.client.dialer import race

    async def hello(endpoint: Endpoint) -> Endpoint:
        await Coordinator((endpoint,), fingerprint).call("GET", "/v1/hello")
        return endpoint

    return await race(endpoints, hello, stagger_s=0.2)
