"""Access to the page over the real overlay, with passes of the command line, from nodes and from outside."""

from __future__ import annotations

import json

from tests.web.mesh import PORT, WebMesh
from tests.web.sessions import enter, using, web

#: A path that exists in no release: 404 with a session, 401 without.
NOTHING = "/no-such-page"


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
    cookie = enter(home, str(opened["url"]))
    address = str(opened["url"]).partition("/enter#")[0]
    assert mesh.status_of(home, address + NOTHING, *using(cookie)) == 404
    assert mesh.status_of(home, address + "/tokens", *using(cookie)) == 403
    opened = web(mesh.head, "open")
    assert opened["level"] == "admin"
    cookie = enter(mesh.head, str(opened["url"]))
    address = str(opened["url"]).partition("/enter#")[0]
    assert mesh.status_of(mesh.head, address + "/tokens", *using(cookie)) == 200


def test_the_laptop_is_invited_and_its_pass_revoked(mesh: WebMesh) -> None:
    invited = web(mesh.head, "invite", "laptop", "--ttl", "1h")
    url = str(invited["url"])
    assert url.startswith(f"{mesh.url}/enter#")
    shown = mesh.laptop.run(
        ["sh", "-c", f"openssl s_client -connect {mesh.head.address}:{PORT} </dev/null 2>/dev/null | "
         "openssl x509 -noout -fingerprint -sha256"]
    ).stdout  # fmt: skip
    assert shown.strip().endswith("=" + str(invited["fingerprint"]))
    cookie = enter(mesh.laptop, url)
    assert mesh.status_of(mesh.laptop, mesh.url + NOTHING, *using(cookie)) == 404
    listed = web(mesh.head, "list")["passes"]
    assert [entry["used"] is not None for entry in listed if entry["name"] == "laptop"] == [True]
    assert url.partition("#")[2].partition(".")[0] not in json.dumps(listed)
    web(mesh.head, "revoke", "laptop")
    assert mesh.status_of(mesh.laptop, mesh.url + NOTHING, *using(cookie)) == 401
