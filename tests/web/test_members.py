"""Access to the page over the real overlay, with passes of the command line, from nodes and from outside."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.host import Host
from tests.web.mesh import PORT, WebMesh

#: A path that exists in no release: 404 with a session, 401 without.
NOTHING = "/no-such-page"


def entered(mesh: WebMesh, host: Host, url: str) -> str:
    """Exchange the pass of a URL on this host, and return the cookie."""
    address, _, fragment = url.partition("/enter#")
    shown = mesh.get(
        host,
        f"{address}/enter",
        *("-k", "-D", "-", "-o", "/dev/null", "-H", f"Origin: {address}"),
        *("--data-urlencode", f"pass={fragment.partition('.')[0]}"),
    )
    cookies = [line.partition(":")[2] for line in shown.splitlines() if line.lower().startswith("set-cookie:")]
    assert cookies, shown
    return cookies[0].strip().partition(";")[0]


def web(host: Host, *words: str) -> dict[str, Any]:
    """Return the answer of `meshray web … --json` on this host."""
    answer = json.loads(host.run(["meshray", "web", *words, "--json"]).stdout)
    assert isinstance(answer, dict)
    return answer


def test_a_member_reads_over_the_overlay_and_its_dashboard_needs_a_link(mesh: WebMesh) -> None:
    inside = f"https://{mesh.cluster.ip(mesh.head)}:{PORT}"
    home = mesh.host("home")
    assert mesh.status_of(home, inside + NOTHING) == 404
    assert mesh.status_of(home, inside + "/tokens") == 403
    assert mesh.status_of(home, inside + "/ray/") == 401
    # The coordinator's other address is not the overlay's, and a name that leads there could be another site's.
    assert mesh.status_of(home, mesh.url + NOTHING) == 401
    assert mesh.status_of(home, inside + NOTHING, "-H", "Host: elsewhere.example") == 401
    # The head itself, over its own address.
    assert mesh.status_of(mesh.head, inside + NOTHING) == 404


def test_a_nodes_link_is_for_one_browser(mesh: WebMesh) -> None:
    home = mesh.host("home")
    opened = web(home, "open")
    assert opened["level"] == "use"
    cookie = entered(mesh, home, str(opened["url"]))
    address = str(opened["url"]).partition("/enter#")[0]
    assert mesh.status_of(home, address + NOTHING, "-H", f"Cookie: {cookie}") == 404
    assert mesh.status_of(home, address + "/tokens", "-H", f"Cookie: {cookie}") == 403
    opened = web(mesh.head, "open")
    assert opened["level"] == "admin"
    cookie = entered(mesh, mesh.head, str(opened["url"]))
    address = str(opened["url"]).partition("/enter#")[0]
    assert mesh.status_of(mesh.head, address + "/tokens", "-H", f"Cookie: {cookie}") == 200


def test_the_laptop_is_invited_and_its_pass_revoked(mesh: WebMesh) -> None:
    invited = web(mesh.head, "invite", "laptop", "--ttl", "1h")
    url = str(invited["url"])
    assert url.startswith(f"{mesh.url}/enter#")
    shown = mesh.laptop.run(
        ["sh", "-c", f"openssl s_client -connect {mesh.head.address}:{PORT} </dev/null 2>/dev/null | "
         "openssl x509 -noout -fingerprint -sha256"]
    ).stdout  # fmt: skip
    assert shown.strip().endswith("=" + str(invited["fingerprint"]))
    cookie = entered(mesh, mesh.laptop, url)
    assert mesh.status_of(mesh.laptop, mesh.url + NOTHING, "-H", f"Cookie: {cookie}") == 404
    listed = web(mesh.head, "list")["passes"]
    assert [entry["used"] is not None for entry in listed if entry["name"] == "laptop"] == [True]
    assert url.partition("#")[2].partition(".")[0] not in json.dumps(listed)
    web(mesh.head, "revoke", "laptop")
    assert mesh.status_of(mesh.laptop, mesh.url + NOTHING, "-H", f"Cookie: {cookie}") == 401
