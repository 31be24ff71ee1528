"""Passes, sessions and forwarded ports of the page, by the commands that a user runs on hosts of the lab.

cookie = enter(mesh.laptop, invite(mesh, "ana"))
mesh.get(mesh.laptop, f"{mesh.url}/matrix", *using(cookie))
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab.host import Host
from tests.web.mesh import WebMesh

#: The time from the command to a port that accepts connections, on two slow cores, seconds.
_FORWARDED_S = 30


def web(host: Host, *words: str) -> dict[str, Any]:
    """Return the answer of `meshray web … --json` on this host."""
    answer = json.loads(host.run(["meshray", "web", *words, "--json"]).stdout)
    assert isinstance(answer, dict)
    return answer


def invite(mesh: WebMesh, name: str, *options: str) -> str:
    """Return the URL of a new pass."""
    return str(web(mesh.head, "invite", name, "--host", str(mesh.head.address), *options)["url"])


def enter(host: Host, url: str) -> str:
    """Exchange the pass of a URL on this host, and return the cookie."""
    address, _, fragment = url.partition("/enter#")
    shown = host.run(
        [
            *("curl", "-sSk", "--fail-with-body", "--max-time", "20", "-D", "-", "-o", "/dev/null"),
            *("-H", f"Origin: {address}", "--data-urlencode", f"pass={fragment.partition('.')[0]}", f"{address}/enter"),
        ]
    ).stdout
    cookies = [line.partition(":")[2] for line in shown.splitlines() if line.lower().startswith("set-cookie:")]
    assert cookies, shown
    return cookies[0].strip().partition(";")[0]


def using(cookie: str) -> tuple[str, ...]:
    """Return curl's options for a request with this cookie, whose certificate is not checked."""
    return ("-k", "-H", f"Cookie: {cookie}")


@contextmanager
def forward(host: Host, *words: str) -> Iterator[dict[str, Any]]:
    """Run `meshray forward …` on this host, and yield its answer once the port accepts connections."""
    process = host.popen(["meshray", "forward", *words, "--json"], name="forward")
    try:
        host.wait_until(lambda: '"address"' in process.output, _FORWARDED_S, "the forwarded port")
        answer = json.loads(process.output.splitlines()[-1])
        assert isinstance(answer, dict)
        yield answer
    finally:
        process.stop()


@contextmanager
def forward_with_pass(mesh: WebMesh, host: Host, name: str, *words: str) -> Iterator[dict[str, Any]]:
    """Run `meshray forward …` on a host outside the mesh, with a new pass of this name."""
    file = f"/root/{name}"
    host.shell(f"umask 077; cat > {file}", stdin=invite(mesh, name, "--use"))
    with forward(host, *words, "--pass", f"@{file}") as answer:
        yield answer
