"""A raylet that is starting finds its dashboard agent's port in its file, written completely and by its user."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshray.linux.user import User
from meshray.raynode import agent_port
from meshray.raynode.processes import Family

NODE_ID = "ab" * 28
ME = User.by_uid(os.geteuid())


@contextmanager
def ray_start(folder: Path, *options: str) -> Iterator[Family]:
    """A process with a child named raylet that has these options."""
    raylet = folder / "raylet"
    raylet.write_text("#!/bin/sh\necho up\nread line\n")
    raylet.chmod(0o755)
    leader = subprocess.Popen(
        ["sh", "-c", 'exec 3<&0; "$@" <&3 & wait', "sh", str(raylet), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert leader.stdin and leader.stdout
    try:
        assert leader.stdout.readline() == "up\n"
        yield Family(leader.pid)
    finally:
        leader.stdin.close()
        leader.wait(5)
        leader.stdout.close()


def test_the_file_is_written_once_and_the_agents_own_is_left_alone(tmp_path: Path) -> None:
    session = tmp_path / "session"
    session.mkdir()
    file = session / f"dashboard_agent_listen_port_{NODE_ID}"
    with ray_start(tmp_path, f"--session_dir={session}", f"--node_id={NODE_ID}", "--head") as family:
        assert agent_port.write_port(family.raylets(), 20105, ME)
        assert file.read_text() == "20105"
        file.write_text("20199")
        assert agent_port.write_port(family.raylets(), 20105, ME)
    assert [path.name for path in session.iterdir()] == [file.name]
    assert file.read_text() == "20199"


def test_there_is_nothing_to_write_without_a_raylet_and_for_another_kind_of_ray(tmp_path: Path) -> None:
    assert not agent_port.write_port([], 20105, ME)
    assert not agent_port.write_port([2**22 + 1], 20105, ME), "it has ended meanwhile"
    with ray_start(tmp_path, "--node_manager_port=20101") as family:
        assert agent_port.write_port(family.raylets(), 20105, ME)


def test_a_name_that_a_raylet_made_up_leads_nowhere(tmp_path: Path) -> None:
    with ray_start(tmp_path, f"--session_dir={tmp_path}", "--node_id=/../../x") as family:
        assert agent_port.write_port(family.raylets(), 20105, ME)
    assert [path.name for path in tmp_path.iterdir()] == ["raylet"]


def test_a_missing_session_folder_is_retried(tmp_path: Path) -> None:
    with ray_start(tmp_path, f"--session_dir={tmp_path}/later", f"--node_id={NODE_ID}") as family:
        assert not agent_port.write_port(family.raylets(), 20105, ME)
