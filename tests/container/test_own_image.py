"""The image of containers/Dockerfile, run with Docker alone as the guide prints it."""

from __future__ import annotations

from tests.container.conftest import RAY_ARGS, Dock
from tests.printed import printed

READY_S = 150


def test_a_container_joins_with_a_token_in_a_file_and_leaves(dock: Dock, worker_image: str) -> None:
    before = dock.engine.left()
    dock.host.shell("umask 077; cat > /root/token", stdin=dock.token)
    # The image's PATH contains meshray, as that of rayproject/ray does.
    with_path = f"FROM {worker_image}\nENV PATH={dock.path}\n"
    dock.host.run(["docker", "build", "--quiet", "--tag=my/node:1", "-"], stdin=with_path)
    smaller = [("8g", "300m"), ("my/node:1\n", f"my/node:1 join -- {' '.join(RAY_ARGS)}\n")]
    run, look = printed("containers.md", "docker run", *smaller).split("\n\n")
    remove = printed("containers.md", "docker exec node meshray leave")
    dock.host.shell(run, cwd="/root")
    try:
        ready = ["docker", "exec", "node", "meshray", "ready"]
        dock.host.wait_until(lambda: dock.host.run(ready, check=False).returncode == 0, READY_S, "the container's Ray")
        shown = dock.host.shell(f"set -e; {look}").stdout
        assert "gpu-1" in shown
        (node,) = [node for node in dock.nodes() if node["name"] == "gpu-1"]
        assert {"zone": "lab", "disk": "ssd"}.items() <= node["labels"].items()
    except BaseException:
        print(dock.engine.docker("logs", "node", check=False).stdout)
        raise
    finally:
        dock.host.shell(remove, check=False, deadline_s=READY_S)
    assert [node["name"] for node in dock.nodes()] == ["head"]
    assert dock.engine.left() == before
