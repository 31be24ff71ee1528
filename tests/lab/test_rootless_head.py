"""A head of an ordinary user: the page's proxies and tunnels enter the namespace in which the overlay is.

    switch wan 203.0.113.0/24
      ┌──────┴───────┐
    desk           laptop       desk: ada's head without root, with Ray; the laptop is not a node
203.0.113.10    203.0.113.20
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.cluster import RAY_ARGS, UP_DEADLINE_S
from tests.lab.host import USER, Host, HostProcess, Result
from tests.lab.unprivileged import give_tun
from tests.lab.world import World

DASHBOARD = 8265


@dataclass
class Site:
    """The two machines of the picture."""

    world: World
    desk: Host
    laptop: Host

    def ada(self, *words: str) -> Result:
        """Run ``meshray WORDS`` as ada on the desk."""
        return self.desk.run(["meshray", *words], user=USER, cwd=f"/home/{USER}", deadline_s=UP_DEADLINE_S)

    def forward(self, host: Host, *words: str, user: str = "root") -> HostProcess:
        """Start `meshray forward`, and wait until it listens."""
        process = host.popen(["meshray", "forward", *words, "--json"], name="forward", user=user)
        self.world.wait_until(lambda: '"address"' in process.output, 30, "the forwarded port")
        return process


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with World("rootless-head") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        desk = world.host("desk", wan, "203.0.113.10")
        laptop = world.host("laptop", wan, "203.0.113.20")
        desk.shell("ip route add default via 203.0.113.20")  # Without one, pasta has nothing to offer.
        desk.run(["mkdir", "-p", f"/home/{USER}/.local/share"], user=USER)
        give_tun(desk)
        found = Site(world, desk, laptop)
        found.ada("init", "--json", "--", *RAY_ARGS)
        yield found


def dashboard(host: Host, port: int) -> str:
    return host.run(["curl", "-sS", "--max-time", "20", f"http://127.0.0.1:{port}/"]).stdout


def test_its_user_forwards_a_port_of_the_overlay(site: Site) -> None:
    process = site.forward(site.desk, f"{DASHBOARD}:18265", user=USER)
    assert "Ray Dashboard" in dashboard(site.desk, 18265)
    process.stop()


def test_another_user_gets_no_socket_of_the_overlay(site: Site) -> None:
    code = "import asyncio, sys; from meshray.linux.overlay_sockets import borrow; asyncio.run(borrow(sys.argv[1]))"
    path = f"/home/{USER}/.local/share/meshray/run/overlay.sock"
    refused = site.desk.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "python", "-c", code, path], check=False
    )
    assert refused.returncode != 0
    assert "PermissionError" in refused.stderr


def test_a_pass_leads_through_the_coordinator_into_the_overlay(site: Site) -> None:
    url = site.ada("web", "invite", "laptop", "--use", "--host", "203.0.113.10", "--json").json()["url"]
    site.laptop.run(["sh", "-c", f"umask 077; printf %s '{url}' > /root/invitation"])
    process = site.forward(site.laptop, f"{DASHBOARD}:18265", "--pass", "@/root/invitation")
    assert "Ray Dashboard" in dashboard(site.laptop, 18265)
    process.stop()
    # The session of the same pass, at /ray/: with Ray's token, which the laptop does not have.
    (kept,) = site.laptop.shell("cat /root/.local/state/meshray/sessions/*.json").stdout.strip().splitlines()
    cookie = json.loads(kept)["cookie"]
    ask = ["curl", "-skS", "--max-time", "20", "-H", f"Cookie: {cookie}"]
    answer = site.laptop.run([*ask, "https://203.0.113.10:51888/ray/api/v0/nodes"]).json()
    assert [node["state"] for node in answer["data"]["result"]["result"]] == ["ALIVE"]
