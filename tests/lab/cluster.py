"""The commands with which a user creates a cluster, for tests and benchmarks.

with World("mine") as world:
    hosts = one_of_each(world)
    cluster = Cluster.start(hosts.head, hosts.workers)
    cluster.python("import ray; ray.init('auto'); print(len(ray.nodes()))")
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.lab.host import REPOSITORY, USER, USER_UID, Host, Result

#: Options that keep three Rays small enough for one machine.
RAY_ARGS = ("--num-cpus=1", f"--object-store-memory={300 * 2**20}")
#: The time from the command to a working node, on two slow cores, seconds.
UP_DEADLINE_S = 120
#: Without Ray, joining waits more than it computes.
JOINS_AT_ONCE = 4
#: The variables with which sudo reports its caller.
BY_USER = {"SUDO_USER": USER, "SUDO_UID": str(USER_UID), "SUDO_GID": str(USER_UID)}


@dataclass
class Cluster:
    """A head and its workers.

    Attributes:
        answers: the answers of `init --json` and `join --json`, by host name.
        users: the users who run Ray, if not root, by host name.
        complete_since: when the last worker was up, by the monotonic clock.
    """

    head: Host
    workers: tuple[Host, ...]
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    complete_since: float = 0
    users: dict[str, str] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        head: Host,
        workers: Sequence[Host],
        *,
        ray_args: Sequence[str] = RAY_ARGS,
        through_sudo: Sequence[Host] = (),
    ) -> Cluster:
        """Run `meshray init` on the head, and `meshray join` on one worker after the other.

        Args:
            through_sudo: the hosts on which an ordinary user runs `sudo meshray …`.
        """
        cluster = cls(head, tuple(workers), users={host.name: USER for host in through_sudo})
        of_host = {host.name: BY_USER for host in through_sudo}
        cluster.answers[head.name] = cluster.meshray(head, "init", "--", *ray_args, env=of_host.get(head.name))
        token = cluster.answers[head.name]["token"]
        for worker in workers:
            answer = cluster.meshray(worker, "join", token, "--", *ray_args, env=of_host.get(worker.name))
            cluster.answers[worker.name] = answer
        cluster.complete_since = time.monotonic()
        return cluster

    @classmethod
    def without_ray(
        cls, head: Host, workers: Sequence[Host], *, init: Sequence[str] = (), join: Sequence[str] = ()
    ) -> Cluster:
        """Return a mesh without Ray, whose workers join a few at a time.

        Args:
            init: further options of `meshray init`, and of each `meshray join`.
        """
        cluster = cls(head, tuple(workers))
        cluster.answers[head.name] = cluster.meshray(head, "init", "--no-ray", *init)
        token = cluster.answers[head.name]["token"]
        with ThreadPoolExecutor(JOINS_AT_ONCE) as pool:
            answer = pool.map(lambda worker: cluster.meshray(worker, "join", token, "--no-ray", *join), workers)
            cluster.answers.update(zip((worker.name for worker in workers), answer, strict=True))
        cluster.complete_since = time.monotonic()
        return cluster

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts, the head first."""
        return (self.head, *self.workers)

    def ip(self, host: Host) -> str:
        """Return the overlay address of the host."""
        return str(self.answers[host.name]["node"]["ip"])

    def meshray(
        self, host: Host, command: str, *arguments: str, env: Mapping[str, str] | None = None, check: bool = True
    ) -> dict[str, Any]:
        """Return the answer of `meshray COMMAND --json …`."""
        done = host.run(["meshray", command, "--json", *arguments], env=env, check=check, deadline_s=UP_DEADLINE_S)
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    def job(self, *argv: str, host: Host | None = None, deadline_s: float = 300) -> Result:
        """Run `meshray run -- …` on the head or another node, as the user who runs Ray there, in this checkout.

        A driver of another user would leave folders in Ray's session in which Ray's own workers cannot write.
        """
        host = host or self.head
        return host.run(
            ["meshray", "run", "--", *argv],
            user=self.users.get(host.name, "root"),
            cwd=REPOSITORY,
            deadline_s=deadline_s,
        )

    def python(self, code: str, *, host: Host | None = None) -> Any:
        """Return the one line that a piece of Python, run by `job`, prints, read as JSON."""
        return self.job("python", "-c", code, host=host).last_json()


def enrolment(host: Host) -> dict[str, Any]:
    """Return the stored enrolment of the node on this host."""
    value = json.loads(host.path("/var/lib/meshray/node.json").read_text())
    assert isinstance(value, dict)
    return value
