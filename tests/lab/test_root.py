"""A Ray task is a program of the user and must not become root.

The attacks use the environment in which the user installed meshray, the current folder, links, and files that root
writes.

switch wan 203.0.113.0/24
     ┌──────┴──────┐
   head          laptop      sudo ~/ray/bin/meshray …, as the README says
203.0.113.10   203.0.113.20
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import pytest

from tests.lab import user_environment
from tests.lab.cluster import BY_USER, Cluster
from tests.lab.host import USER, USER_UID, Host
from tests.lab.user_environment import ENVIRONMENT, PACKAGES, PROGRAM
from tests.lab.world import World

COPIES = "/usr/local/lib/meshray/"
LINK = "/usr/local/bin/meshray"
#: The attacker's goal.
PROOF = "/root/owned"
ATTACK = f"\nimport os as _os\nif _os.geteuid() == 0: open({PROOF!r}, 'a').write(__name__)\n"


@dataclass(frozen=True)
class Net:
    cluster: Cluster
    head: Host
    laptop: Host

    def sudo(self, *words: str, check: bool = True) -> dict[str, object]:
        """Run `sudo ~/ray/bin/meshray … --json` on the laptop."""
        done = self.laptop.run([PROGRAM, *words, "--json"], env=BY_USER, check=check, deadline_s=120)
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    def agent(self) -> list[str]:
        """Return the command line of the laptop's agent."""
        pid = json.loads(self.laptop.path("/run/meshray/agent.pid").read_text())["pid"]
        return self.laptop.run(["cat", f"/proc/{pid}/cmdline"]).stdout.split("\0")

    def owned(self) -> str:
        """Return what ran as root that should not have; empty: nothing."""
        path = self.laptop.path(PROOF)
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with World("root") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, laptop = world.host("head", wan, "203.0.113.10"), world.host("laptop", wan, "203.0.113.20")
        user_environment.make(laptop)
        yield Net(Cluster.without_ray(head, []), head, laptop)


@pytest.fixture
def joined(net: Net) -> Net:
    if not net.laptop.path("/var/lib/meshray/node.json").exists():
        net.cluster.answers["laptop"] = net.sudo("join", net.cluster.answers["head"]["token"], "--no-ray")
    return net


def infect(laptop: Host) -> None:
    """Change, in a task, every module of the user's meshray, and of the package that a user may install beside it."""
    laptop.shell(
        f"find {PACKAGES}/meshray -name '*.py' -exec sh -c 'cat >> \"$1\" < /tmp/attack' _ {{}} \\;", user=USER
    )


def test_root_runs_a_copy_that_the_user_cannot_change(joined: Net) -> None:
    laptop = joined.laptop
    python, *words = joined.agent()
    assert python.startswith(COPIES)
    assert words[:3] == ["-I", "-m", "meshray.agent"]
    assert (
        laptop.run(["find", COPIES, "(", "!", "-user", "root", "-o", "-perm", "/022", "!", "-type", "l", ")"]).stdout
        == ""
    )
    # It is the program of every user of the machine.
    assert laptop.path(LINK).is_symlink()
    status = laptop.run([LINK, "status", "--json"], user=USER, check=False).json()
    assert status["self"] == "laptop"
    assert status["health"] == []
    checks = laptop.run([LINK, "doctor", "--json"], check=False).json()["checks"]
    assert next(check for check in checks if check["code"] == "install_trusted")["status"] == "ok"


def test_a_task_that_edits_the_users_environment_does_not_become_root(joined: Net) -> None:
    laptop = joined.laptop
    laptop.shell("cat > /tmp/attack", user=USER, stdin=ATTACK)
    infect(laptop)
    # The agent's late imports, triggered by the user whom its control socket admits.
    laptop.run([LINK, "doctor", "--json"], user=USER, check=False)
    laptop.run([LINK, "render", "wireguard"], user=USER, check=False)
    laptop.run([LINK, "down"])
    laptop.run([LINK, "up"])
    assert laptop.can_reach(joined.cluster.ip(joined.head), deadline_s=10)
    assert joined.owned() == ""
    laptop.run(["rm", "-rf", ENVIRONMENT])
    user_environment.make(laptop)


def test_the_current_folder_is_not_imported_from(joined: Net) -> None:
    laptop = joined.laptop
    laptop.shell("mkdir -p /tmp/trap && cat > /tmp/trap/aiohttp.py", user=USER, stdin=ATTACK)
    for name in ("cryptography", "pyroute2", "click", "rich", "json", "meshray"):
        laptop.shell(f"cp /tmp/trap/aiohttp.py /tmp/trap/{name}.py", user=USER)
    laptop.run([LINK, "down"], cwd="/tmp/trap")
    laptop.run([LINK, "up"], cwd="/tmp/trap", env={"PYTHONPATH": "/tmp/trap", "PYTHONSTARTUP": "/tmp/trap/click.py"})
    laptop.run([LINK, "doctor"], cwd="/tmp/trap", check=False)
    assert joined.owned() == ""


def test_programs_of_a_user_on_path_are_skipped(joined: Net) -> None:
    laptop = joined.laptop
    laptop.shell(
        "mkdir -p ~/bin && cat > ~/bin/nft && chmod 755 ~/bin/nft", user=USER, stdin=f"#!/bin/sh\necho x > {PROOF}\n"
    )
    laptop.shell("for name in ip iptables systemctl ufw wg tail; do cp ~/bin/nft ~/bin/$name; done", user=USER)
    path = {"PATH": f"/home/{USER}/bin:{os.defpath}:/usr/sbin:/sbin"}
    laptop.run([LINK, "down"], env=path)
    laptop.run([LINK, "up"], env=path)
    laptop.run([LINK, "doctor", "--bundle", "/root/one.tar.gz"], env=path, check=False)
    assert joined.owned() == ""


def test_rays_program_runs_as_the_user(joined: Net) -> None:
    code = (
        "from meshray.cli.ray_program import _run; from meshray.linux.user import User\n"
        f"print(_run(['/usr/bin/id', '-u'], {{}}, User.by_uid({USER_UID})), end='')"
    )
    python = joined.agent()[0]
    assert joined.laptop.run([python, "-I", "-c", code]).stdout.strip() == str(USER_UID)


def test_the_bundle_does_not_follow_a_users_links(joined: Net) -> None:
    laptop = joined.laptop
    laptop.shell("echo SECRET-OF-ROOT > /root/secret && chmod 600 /root/secret")
    laptop.shell(
        "mkdir -p /tmp/ray/session_1/logs && ln -s session_1 /tmp/ray/session_latest && cd /tmp/ray/session_1/logs && "
        "ln -s /root/secret raylet.out && ln -s /root/secret gcs_server.err && mkfifo monitor.log && "
        "echo fine > raylet.err",
        user=USER,
    )
    laptop.run([LINK, "doctor", "--bundle", "/root/two.tar.gz"], check=False)
    with tarfile.open(fileobj=BytesIO(laptop.path("/root/two.tar.gz").read_bytes())) as archive:
        texts = {member.name: (archive.extractfile(member) or BytesIO()).read() for member in archive}
    assert not any(b"SECRET-OF-ROOT" in text for text in texts.values())
    assert any(name.endswith("ray/raylet.err") and b"fine" in text for name, text in texts.items())


def test_a_users_path_leads_root_nowhere_else(joined: Net) -> None:
    head = joined.head
    head.shell("ln -s /etc/cron.d ~/folder", user=USER)
    refused = head.run(
        ["meshray", "peer", "add", "phone", "--config", f"/home/{USER}/folder/phone", "--json"],
        env=BY_USER,
        check=False,
    )
    assert refused.json()["error"]["code"] == "file_closed"
    assert not head.path("/etc/cron.d/phone").exists()
    head.run(["meshray", "peer", "add", "phone", "--config", f"/home/{USER}/phone.conf"], env=BY_USER)
    about = head.path(f"/home/{USER}/phone.conf").stat()
    assert (about.st_uid, about.st_mode & 0o777) == (USER_UID, 0o600)
    # Where only root writes, root's permissions are used.
    head.run(["meshray", "peer", "add", "router", "--config", "/etc/wireguard-router.conf"], env=BY_USER)
    assert head.path("/etc/wireguard-router.conf").stat().st_uid == 0


def test_a_newer_meshray_replaces_the_copy_and_the_node_stays_the_same(joined: Net) -> None:
    laptop, before = joined.laptop, joined.agent()[0]
    key = laptop.path("/var/lib/meshray/private.key").read_text()
    laptop.shell(f"echo '# newer' >> {PACKAGES}/meshray/errors.py", user=USER)
    up = laptop.run([PROGRAM, "up"], env=BY_USER)
    assert "meshray down, then meshray up" in up.stderr, "the agent that runs is told of"
    joined.sudo("down")
    told = joined.sudo("up")
    after = joined.agent()[0]
    assert after.startswith(COPIES)
    assert after != before
    assert told["node"] == joined.cluster.answers["laptop"]["node"]
    assert laptop.path("/var/lib/meshray/private.key").read_text() == key
    laptop.shell(f"echo '# newest' >> {PACKAGES}/meshray/errors.py", user=USER)
    joined.sudo("down")
    joined.sudo("up")
    assert not laptop.path(before).exists(), "a copy that nothing runs from is removed"


def test_a_user_may_declare_the_environment_trusted(joined: Net) -> None:
    laptop = joined.laptop
    joined.sudo("leave", "--yes")
    token = str(joined.cluster.answers["head"]["token"])
    joined.cluster.answers["laptop"] = joined.sudo("join", token, "--no-ray", "--trust-user-environment")
    assert joined.agent()[0].startswith(str(ENVIRONMENT))
    joined.head.wait_until(
        lambda: laptop.run([LINK, "status", "--json"], check=False).json()["notices"], 10, "status to show it"
    )
    assert laptop.run([LINK, "status"], check=False).returncode == 0
    checks = laptop.run([LINK, "doctor", "--json"], check=False).json()["checks"]
    assert next(check for check in checks if check["code"] == "install_trusted")["status"] == "warn"
    joined.sudo("leave", "--yes")
