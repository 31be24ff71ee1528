"""The Vagrantfile's machines: their provisioning scripts run as they are, then the commands of its first comment.

    nat ──────────────────── natbox ───────────────────────── head ──────────────────── worker
    192.168.77.20    .77.2 masquerades .56.2       192.168.56.10 192.168.66.10    192.168.66.20
                           lets nothing in                                        drops all inbound

The script that installs meshray needs the machine's network, and runs once for the three machines. The hosts have no
systemd: there `systemctl enable` works on files, and `systemctl restart` runs the unit's command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab import overlay_root
from tests.lab.cluster import RAY_ARGS
from tests.lab.host import REPOSITORY, Host, Result
from tests.lab.leftovers import RunId
from tests.lab.world import World
from tests.tiers import index_misses
from tests.unit.render.test_vagrantfile import excluded, route, scripts

#: The path of root in Debian's boxes.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: All processes of the script end with it.
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
INSTALL_S = 480
COMMAND_S = 120
#: A separate machine for the script: the disk below a tmpfs, except for what the other machines get from it.
BOX = """
set -eu
mount -t tmpfs disk "$1/disk"
cd "$1/disk"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
for folder in /proc /dev; do
    mount --rbind "$folder" "root$folder"
done
rm -f root/etc/resolv.conf
cat /etc/resolv.conf > root/etc/resolv.conf
mount -t tmpfs run root/run
for folder in /opt/meshray /usr/local/bin /vagrant; do
    mkdir -p "root$folder" "$1$folder"
    mount --bind "$1$folder" "root$folder"
done
exec chroot root bash -c "$2"
"""
SYSTEMCTL = """#!/bin/sh
set -eu
case $1 in
    enable) exec /usr/bin/systemctl --root=/ enable "$2" ;;
    restart) exec $(sed -n 's/^ExecStart=//p' "/usr/lib/systemd/system/$2.service") ;;
esac
"""

pytestmark = pytest.mark.timeout(INSTALL_S + 300)


@pytest.fixture(scope="module")
def box() -> Iterator[Path]:
    """Return a folder with the /opt/meshray, /usr/local/bin and /vagrant of the machines with meshray."""
    if missing := index_misses():
        pytest.skip(f"missing: {missing}")
    # A later run removes what remains of a killed one, by this name.
    folder = Path(tempfile.mkdtemp(prefix=f"{RunId.mine()}-vagrant-"))
    try:
        (folder / "disk").mkdir()
        shutil.copytree(REPOSITORY, folder / "vagrant", ignore=shutil.ignore_patterns(*excluded()), symlinks=True)
        folder.chmod(0o755)
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("MESHRAY_", "PYTHON"))}
        done = subprocess.run(
            [*NAMESPACES, "bash", "-c", BOX, "box", folder, scripts()["INSTALL"]],
            env={**environ, "PATH": PATH, "HOME": "/root"},
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Machines:
    """The four machines, provisioned."""

    hosts: dict[str, Host]

    def run(self, name: str, *words: str, check: bool = True) -> Result:
        """Run a command on a machine, as `vagrant ssh` does with sudo."""
        command = overlay_root.command(*words)
        return self.hosts[name].run(command, env={"PATH": PATH}, check=check, deadline_s=COMMAND_S)

    def answer(self, name: str, *words: str) -> dict[str, Any]:
        found = self.run(name, "meshray", words[0], "--json", *words[1:]).json()
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def machines(box: Path) -> Iterator[Machines]:
    with World("vagrant", keep=[box]) as world:
        wan, other, lan = (world.switch(f"v{number}", f"192.168.{number}.0/24") for number in (56, 66, 77))
        hosts = {
            "head": world.host("head", wan, "192.168.56.10"),
            "worker": world.host("worker", other, "192.168.66.20"),
            "natbox": world.host("natbox", wan, "192.168.56.2"),
            "nat": world.host("nat", lan, "192.168.77.20"),
        }
        world.connect(hosts["head"], other, "192.168.66.10", interface="eth1")
        world.connect(hosts["natbox"], lan, "192.168.77.2", interface="eth1")
        made = Machines(hosts)
        for name, host in hosts.items():
            # Settings of the machine's own kernel are not the hosts'.
            host.shell("rm -rf /etc/sysctl.d/* /etc/sysctl.conf")
            folders = ("/opt/meshray", "/usr/local/bin", "/vagrant") if name != "natbox" else ()
            bound = {box / folder.lstrip("/"): folder for folder in folders}
            overlay_root.mount(host, shared=["/run", "/etc"], bound=bound)
            host.shell(f"mount -t tmpfs none {overlay_root.ROOT}/usr/lib/sysctl.d")
            host.run(
                ["install", "-m755", "/dev/stdin", f"{overlay_root.ROOT}/usr/local/sbin/systemctl"], stdin=SYSTEMCTL
            )
        made.run("worker", "bash", "-c", scripts()["DROP_INBOUND"])
        made.run("natbox", "bash", "-c", scripts()["NAT"])
        made.run("nat", "sh", "-c", route())
        yield made


def test_the_scripts_make_three_machines_that_cannot_reach_each_other(machines: Machines) -> None:
    hosts = machines.hosts
    assert hosts["nat"].can_reach("192.168.56.10")
    assert not hosts["head"].can_reach("192.168.77.20")
    assert hosts["worker"].can_reach("192.168.66.10")
    assert not hosts["head"].can_reach("192.168.66.20")
    assert not hosts["nat"].can_reach("192.168.66.20")
    for name in ("worker", "natbox"):
        assert machines.run(name, "/usr/bin/systemctl", "--root=/", "is-enabled", "nftables").stdout == "enabled\n"


def test_the_commands_of_the_vagrantfile_make_one_cluster(machines: Machines) -> None:
    token = machines.answer("head", "init", "--", *RAY_ARGS)["token"]
    for name in ("worker", "nat"):
        machines.answer(name, "join", token, "--", *RAY_ARGS)
    nodes = {node["name"] for node in machines.answer("head", "status")["nodes"]}
    assert nodes == {"head", "worker", "nat"}
    hello = ("meshray", "run", "--", "/opt/meshray/bin/python", "/vagrant/docs/examples/hello.py")
    said = machines.run("head", *hello).stdout
    assert all(f"hello from {name}" in said for name in nodes), said
