"""A head is restored from a backup that is older than its key: real coordinator, real agents, devices in memory.

The commands themselves are in tests/unit/cli/test_backup.py, and two machines in tests/lab/test_backup.py.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from meshray.cli.commands.lifecycle import restore_map
from meshray.cli.head_backup import adapt, put_in_place, staged
from meshray.coordinator.audit_log import read_log
from meshray.coordinator.server import Server
from meshray.home import Home
from meshray.node.backup_file import Backup
from meshray.node.enrolment import Enrolment, load_private_key
from meshray.node.state_folder import delete_state

from .mesh import Mesh, running_mesh, until
from .test_key_rotation import all_know


async def copied(mesh: Mesh) -> Backup:
    """Return a backup of the running head."""
    home = mesh.server_home
    answer = await mesh.head.agent.state.coordinator.call("POST", "/v1/backup")
    copy = home.state / str(answer["file"])
    assert copy.stat().st_mode & 0o777 == 0o600
    files = {
        path.name: path.read_bytes()
        for path in home.state.iterdir()
        if path.is_file() and not path.name.startswith((".", "coordinator.db", "map"))
    }
    files["coordinator.db"] = copy.read_bytes()
    copy.unlink()
    return Backup(time.time(), "0.1.0", "lab", "head", files)


def restore(home: Home, backup: Backup) -> None:
    delete_state(home)
    home.state.mkdir(mode=0o700, exist_ok=True)
    with staged(home, backup) as stage:
        adapt(stage, Enrolment.load(stage), None, (), backup)
        put_in_place(home, stage)
    restore_map(home)


async def test_nodes_accept_the_older_key_of_a_restored_head(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.join("a")
        await until(mesh.whole, "whole")
        home, backup = mesh.server_home, await copied(mesh)
        old = load_private_key(home)
        for _ in range(2):
            await mesh.head.agent.keys.rotate()
            await until(lambda: all_know(mesh, "head"), "the new key is known")
        await mesh.head.kill()
        await mesh.server.stop()
        await asyncio.to_thread(restore, home, backup)
        assert load_private_key(home) == old
        mesh.server = Server(home, port=mesh.port, hosts=("127.0.0.1",))
        await mesh.server.start()
        mesh.reborn("head").start()
        await until(lambda: all_know(mesh, "head"), "the other node accepts the key of the backup")
        await until(mesh.whole, "whole again")
        log = read_log(home.audit_log)
        assert (log.broken, log.records[-1].event) == ("", "mesh_restored")
