"""A node that cannot run in a container causes one message with the fix, and nothing remains of the attempt."""

from __future__ import annotations

import pytest

from tests.container.conftest import BRIDGES, Dock


@pytest.mark.parametrize(
    ("options", "exit_code", "code"),
    [
        (["--image=nowhere.invalid/none:1"], 1, None),
        (["--image=shell"], 1, "image_unusable"),
        (["--image=plain"], 1, "image_without_ray"),
        (["--image=base", "--bridge=green"], 1, "docker_refused"),
        (["--image=base", "--volume=/nothing/here:/data"], 2, "bad_volume"),
        (["--image=base", "--hub", "--endpoint=203.0.113.20:1"], 2, "hub_in_container"),
    ],
)
def test_a_join_that_cannot_be_leaves_nothing(
    dock: Dock, bad_images: None, options: list[str], exit_code: int, code: str | None
) -> None:
    before = dock.engine.left()
    done = dock.meshray("none", "join", "--runtime=docker", "--json", *options, "-", stdin=dock.token, check=False)
    error = done.json()["error"]
    assert (done.returncode, error["code"]) == (exit_code, code or error["code"])
    assert error["hint"]
    assert "Traceback" not in done.stderr
    assert dock.engine.left() == before
    assert not dock.host.path("/root/none").exists()


def test_without_an_engine_the_command_that_starts_one_is_named(dock: Dock) -> None:
    words = ["meshray", "join", "--runtime=docker", "--json", "-"]
    done = dock.host.run(
        words,
        env={"MESHRAY_HOME": "/root/none", "DOCKER_HOST": "unix:///run/no-such.sock"},
        stdin=dock.token,
        check=False,
    )
    assert (done.returncode, done.json()["error"]["code"]) == (5, "docker_not_running")
    assert not dock.host.path("/root/none").exists()


def test_the_networks_of_the_tests_are_all_that_there_is(dock: Dock) -> None:
    assert dock.engine.left()["networks"] == sorted(BRIDGES)
