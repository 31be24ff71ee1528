"""User-data that a real cloud-init applies: a worker joins at its first boot, before and after its head is up.

           switch wan 203.0.113.0/24
     ┌────────────────┴────────────────┐
   head                              worker
203.0.113.10                      203.0.113.20
        both: an overlay of the machine's disk and of cloud-init's package, a NoCloud seed
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshray.render.cloud_init import FirstBoot, cloud_init
from tests import cloud_init_programs
from tests.lab import overlay_root
from tests.lab.host import REPOSITORY, Host, HostProcess
from tests.lab.test_ssh import MESHRAY, answer
from tests.lab.world import World

pytestmark = pytest.mark.skipif(bool(cloud_init_programs.missing()), reason=f"missing: {cloud_init_programs.missing()}")

#: cloud-init's services, in the order in which systemd starts them.
BOOT = """
set -e
for stage in 'init --local' init 'modules --mode=config' 'modules --mode=final'; do
    cloud-init $stage
done
"""
#: This checkout, its environment and its interpreter.
OWN = sorted({str(REPOSITORY), sys.prefix, sys.base_prefix})
#: Where the host has its own files.
SHARED = ("/run", "/tmp", "/etc", "/var/lib", "/var/log", "/root", "/home")
SEED = "/var/lib/cloud/seed/nocloud"
#: cloud-init must not change the accounts, the mirrors or the keys of the machine.
CONFIGURATION = """
datasource_list: [NoCloud]
users: []
disable_root: false
cloud_init_modules: [write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
"""
BOOT_DEADLINE_S = 180


@pytest.fixture
def world() -> Iterator[World]:
    cloud_init_programs.make()
    with World("cloud-init", keep=[cloud_init_programs.CACHE]) as world:
        wan = world.switch("wan", "203.0.113.0/24")
        world.host("head", wan, "203.0.113.10")
        world.host("worker", wan, "203.0.113.20")
        yield world


def boot(host: Host, user_data: str) -> HostProcess:
    """Start the first boot of the host with this user-data."""
    files = {
        f"{SEED}/meta-data": f"instance-id: {host.name}-1\nlocal-hostname: {host.name}\n",
        f"{SEED}/user-data": user_data,
        "/etc/cloud/cloud.cfg": CONFIGURATION,
    }
    host.shell(f"mkdir -p {SEED} /etc/cloud; rm -rf /etc/cloud/cloud.cfg.d")
    for path, text in files.items():
        host.run(["sh", "-c", 'cat > "$0"', path], stdin=text)
    overlay_root.mount(host, shared=[*SHARED, *OWN], usr=cloud_init_programs.PLACE / "usr")
    return host.popen(overlay_root.command("sh", "-c", BOOT), name="boot")


def user_data(head: Host, *words: str, token: str = "") -> str:
    render = ["meshray", "render", "cloud-init", *words, "--no-ray", "--meshray", MESHRAY]
    return head.run(render, stdin=token).stdout


def test_cloud_init_finds_no_fault_in_the_schema(tmp_path: Path) -> None:
    cloud_init_programs.make()
    for role in ("head", "worker"):
        file = tmp_path / f"{role}.yaml"
        file.write_text(cloud_init(FirstBoot(head=role == "head", token="meshray1_AbC", name="gpu-1")))
        done = cloud_init_programs.run("schema", "--config-file", file)
        assert done.returncode == 0, done.stdout + done.stderr
    file.write_text(file.read_text().replace("owner: root:root", "owner: 7"))
    assert cloud_init_programs.run("schema", "--config-file", file).returncode == 1


def test_a_worker_joins_at_its_first_boot(world: World) -> None:
    head, worker = world.hosts["head"], world.hosts["worker"]
    started = boot(head, user_data(head, "--role", "head", "--name", "head"))
    assert started.wait(BOOT_DEADLINE_S) == 0, started.output
    token = head.run(["meshray", "token", "create", "--name", "gpu-1", "--ttl", "1h"]).stdout
    joining = boot(worker, user_data(head, "-", "--name", "gpu-1", token=token))
    assert joining.wait(BOOT_DEADLINE_S) == 0, joining.output
    nodes = {node["name"]: node for node in answer(head, "node", "list")["nodes"]}
    assert set(nodes) == {"head", "gpu-1"}, joining.output
    assert head.can_reach(nodes["gpu-1"]["ip"])
    assert not worker.path("/etc/meshray/token").exists()


def test_a_worker_waits_for_a_head_that_is_not_up(world: World) -> None:
    head, worker = world.hosts["head"], world.hosts["worker"]
    answer(head, "init", "--no-ray")
    token = head.run(["meshray", "token", "create", "--name", "gpu-1"]).stdout
    answer(head, "down")
    joining = boot(worker, user_data(head, "-", "--name", "gpu-1", token=token))
    worker.wait_until(lambda: "coordinator" in joining.output or "answer" in joining.output, 90, "the first attempt")
    assert joining.returncode is None
    assert worker.path("/etc/meshray/token").exists()
    answer(head, "up")
    assert joining.wait(BOOT_DEADLINE_S) == 0, joining.output
    assert {node["name"] for node in answer(head, "node", "list")["nodes"]} == {"head", "gpu-1"}
