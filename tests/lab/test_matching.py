"""A worker with another Python than the head's runs Ray from an environment that matches the head's.

        switch wan 192.88.99.0/24
      ┌────────┴────────┐
     head             other     meshray on another Python, with a Ray of its own there
    (hub)

uv is real. A host has no internet: uv installs from its cache there; see `test_environments`.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.lab.cluster import RAY_ARGS, Cluster
from tests.lab.host import Host
from tests.lab.test_environments import BESIDE, OWN, Ground, ground
from tests.lab.world import World

__all__ = ["ground"]

#: The findings of a task on a node: its Python, the recorded package, and the location of its Ray.
SEEN = """
import json, ray
ray.init("auto", log_to_driver=False)

@ray.remote(num_cpus=0.1)
def look():
    import platform, iniconfig
    return platform.python_version(), ray.__file__

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeManagerHostname"] == "other"]
print(json.dumps(ray.get(look.options(scheduling_strategy=On(nodes[0]["NodeID"], soft=False)).remote())))
"""


def test_a_worker_of_another_python_matches_the_head(ground: Ground) -> None:
    with World("test-environments") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        head, other = world.host("head", wan, "192.88.99.10"), world.host("other", wan, "192.88.99.20")
        if ground.copied is not None:
            # It searches its library where it was copied from.
            other.run(["mkdir", "-p", ground.copied.parent])
            other.run(["ln", "-s", ground.folder / "python", ground.copied])
        cluster = Cluster.start(head, [])
        token = cluster.answers["head"]["token"]
        refused = join(other, ground, token, check=False)["error"]
        assert (refused["code"], refused["hint"]) == ("version_mismatch", "meshray join --env match TOKEN")
        locked = head.run(["meshray", "env", "lock", "--json", "--from", "-"], stdin=BESIDE).json()
        assert locked["requirements"] == [BESIDE]

        answer = join(other, ground, token, "--env", "match", more=["--", *RAY_ARGS])
        folder = Path(answer["env"]["path"])
        assert answer["env"]["built"]
        assert folder.parent == ground.folder / "cache/meshray/envs"
        assert seen(cluster, folder) == OWN

        meshray(other, ground, "down")
        up = other.run([ground.meshray, "up"], env=ground.environ, deadline_s=120)
        assert "already built" in up.stderr
        assert seen(cluster, folder) == OWN


def seen(cluster: Cluster, folder: Path) -> str:
    """Return the Python of a task on the worker, whose Ray must be in the environment."""
    python, ray = cluster.python(SEEN)
    assert Path(ray).is_relative_to(folder)
    return str(python)


def meshray(host: Host, ground: Ground, *words: str, check: bool = True) -> dict[str, object]:
    done = host.run([ground.meshray, *words, "--json"], env=ground.environ, deadline_s=120, check=check)
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def join(
    host: Host, ground: Ground, token: str, *options: str, more: list[str] | None = None, check: bool = True
) -> dict[str, dict[str, str]]:
    words = [str(ground.meshray), "join", "--json", *options, token, *(more or [])]
    done = host.run(words, env=ground.environ, deadline_s=120, check=check)
    assert done.stdout, done.stderr
    answer: dict[str, dict[str, str]] = json.loads(done.stdout)
    return answer
