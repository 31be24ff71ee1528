"""`meshray web open --via ssh://…` through a real sshd: the page of a head that only ssh and WireGuard reach.

           switch wan 203.0.113.0/24
     ┌──────────────────┴─────────────────┐
   head                                laptop        it is not a node, and has ssh and a browser
203.0.113.10                        203.0.113.20
lets in UDP 51888 and ssh
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.host import USER, Host, HostProcess
from tests.lab.test_ssh import MESHRAY, ONLY, authorise
from tests.lab.user_environment import allow_sudo
from tests.lab.world import World
from tests.web.browser import chromium
from tests.web.sessions import web

#: Two logins with a start of meshray each, on two slow cores, seconds.
OPEN_S = 60
INTERRUPTED = 130


class Site:
    """The two machines of the picture."""

    def __init__(self, world: World) -> None:
        wan = world.switch("wan", "203.0.113.0/24")
        self.head = world.host("head", wan, "203.0.113.10")
        self.laptop = world.host("laptop", wan, "203.0.113.20")
        authorise(self.head, self.laptop)
        allow_sudo(self.head)
        self.head.shell(ONLY.format(udp="51888"))
        self.head.run(["meshray", "init", "--no-ray", "--json"])

    def open(self, user: str, *options: str) -> tuple[HostProcess, dict[str, Any]]:
        """Start the command, in a process group as a terminal gives it; return it with its answer."""
        target = f"ssh://{user}@{self.head.address}"
        words = ["meshray", "web", "open", "--via", target, "--meshray", MESHRAY, *options, "--json"]
        process = self.laptop.popen(["setsid", *words], name="web-open")
        self.laptop.wait_until(
            lambda: '"url"' in process.output or process.returncode is not None, OPEN_S, "the address of the page"
        )
        assert process.returncode is None, process.output
        return process, next(json.loads(line) for line in process.output.splitlines() if '"url"' in line)

    def level_and_state(self, answer: dict[str, Any]) -> tuple[str, bool]:
        """Return the level of the pass that the head lists for this answer, and whether it is revoked."""
        (entry,) = (one for one in web(self.head, "list")["passes"] if one["expires"] == answer["expires"])
        return entry["level"], entry["revoked"]

    def ssh_processes(self) -> str:
        """Return the ssh clients that run on the laptop, and its connections to sshd."""
        clients = self.laptop.run(["pgrep", "-ax", "ssh"], check=False).stdout
        return clients + self.laptop.run(["ss", "-Htn", "state", "established", "dport = :22"]).stdout


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with World("open-via") as world:
        yield Site(world)


def interrupt_command(host: Host, process: HostProcess) -> None:
    """Interrupt meshray alone."""
    process.send_signal(signal.SIGINT)


def interrupt_terminal(host: Host, process: HostProcess) -> None:
    """Interrupt the whole group, as a terminal does at Ctrl-C."""
    leader = host.run(["pgrep", "-of", "web open --via"]).stdout.strip()
    host.run(["pkill", "-INT", "-g", leader])


def test_without_ssh_the_page_is_out_of_reach(site: Site) -> None:
    ask = ["curl", "-sk", "--max-time", "2", f"https://{site.head.address}:51888/v1/hello"]
    assert site.laptop.run(ask, check=False).returncode != 0


@pytest.mark.parametrize(
    ("user", "interrupt"), [("root", interrupt_command), ("root", interrupt_terminal), (USER, interrupt_terminal)]
)
def test_the_page_opens_and_ctrl_c_ends_ssh(
    site: Site, user: str, interrupt: Callable[[Host, HostProcess], None]
) -> None:
    process, answer = site.open(user, "--use")
    address = str(answer["url"]).partition("/enter#")[0]
    assert address.startswith("https://127.0.0.1:")
    assert site.level_and_state(answer) == ("use", False)
    with chromium(site.laptop) as browser:
        page = browser.new_page(ignore_https_errors=True)
        page.goto(str(answer["url"]))
        page.wait_for_url(f"{address}/", timeout=30_000)
        page.wait_for_selector('#live[data-state="live"]')
        assert page.locator("#rows").get_by_role("link", name="head", exact=True).is_visible()
        assert "ssh" in site.ssh_processes()

        interrupt(site.laptop, process)
        assert process.wait(20) == INTERRUPTED, process.output
        assert "Traceback" not in process.output
        site.laptop.wait_until(lambda: not site.ssh_processes(), 5, "the end of ssh")
        assert site.level_and_state(answer) == ("use", True)
        page.wait_for_selector('#live:not([data-state="live"])')


def test_an_end_of_ssh_is_reported_and_the_pass_revoked(site: Site) -> None:
    process, answer = site.open("root")
    assert site.level_and_state(answer) == ("read", False)
    site.laptop.shell("pkill -x ssh")
    assert process.wait(20) == 5, process.output
    assert json.loads(process.output.splitlines()[-1])["error"]["code"] == "ssh_failed"
    assert site.level_and_state(answer) == ("read", True)
