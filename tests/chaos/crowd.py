"""A mesh of many nodes without Ray, and what happens to them.

           switch wan 192.88.99.0/24
  ┌────────┬────────┬──────┴─────┬───────────────┐
head     node-01  node-02  …  node-14           nat   a home router: nothing new comes in
.10       .21       .22         .34              │.30  switch nat-lan 192.168.1.0/24
                                         node-15 … node-20

  crowd = Crowd.build(world, plan)
  crowd.join(crowd.idle()[:3])
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.chaos.oracles import unreachable, wrong_addresses, wrong_peers, wrong_processes
from tests.chaos.plan import Plan
from tests.lab.cluster import JOINS_AT_ONCE, UP_DEADLINE_S
from tests.lab.host import CommandError, Host
from tests.lab.waiting import wait_until
from tests.lab.world import Router, World

OPEN, NESTED = 14, 6
STATE = "/var/lib/meshray"
#: After trouble the mesh recovers within this time without a user, seconds; half of it is Python's start.
WHOLE_S = 150
#: An ephemeral node that was killed is removed within a minute, plus the time of the queries on two slow cores.
REMOVED_S = 70
#: Checks of the doctor that measure time: with all nodes of a mesh on two cores they measure those. `ping` tests every
#: pair as well.
OF_LOAD = {
    "path_loss", "path_mtu", "one_way", "udp_in", "udp_out", "nat_kind", "mapping_lifetime", "transports",
    "peer_answers", "coordinator_tcp", "websocket_upgrade", "proxy_works", "node_answers",
}  # fmt: skip
AGENT = {"-m meshray.agent": 1}
COORDINATOR = {"-m meshray.coordinator": 1}


def meshray(host: Host, *words: str) -> dict[str, Any]:
    """Return a command's answer; raise CommandError if it fails."""
    answer = host.run(["meshray", *words, "--json"], deadline_s=UP_DEADLINE_S).json()
    assert isinstance(answer, dict)
    return answer


def refused(host: Host, *words: str) -> str:
    """Return the error's code of a command that must fail."""
    done = host.run(["meshray", *words, "--json"], check=False, deadline_s=UP_DEADLINE_S)
    assert done.returncode != 0, f"{words} on {host.name} must fail: {done.stdout}"
    assert "Traceback" not in done.stderr
    return str(json.loads(done.stdout)["error"]["code"])


def pid_of(host: Host, part: str) -> int:
    """Return the process that runs as this part of the node; 0 if there is none."""
    try:
        pid = int(json.loads(host.path(f"/run/meshray/{part}.pid").read_text())["pid"])
    except (FileNotFoundError, json.JSONDecodeError):
        return 0
    return pid if host.path(f"/proc/{pid}").exists() else 0


def kill(host: Host, part: str) -> None:
    """Send SIGKILL to a running part of the node."""
    pid = wait_until(lambda: pid_of(host, part), 30, f"a process of {part} on {host.name}", evidence=host.logs)
    host.run(["kill", f"-{int(signal.SIGKILL)}", str(pid)])


def listen_port(host: Host) -> int:
    """Return its WireGuard port; 0 if its engine was just killed."""
    shown = host.run(["wg", "show", "meshray0", "listen-port"], check=False)
    return int(shown.stdout) if shown.returncode == 0 else 0


@dataclass
class Crowd:
    """The hosts, and their addresses.

    Attributes:
        members: the address that each enrolled host was assigned.
        ephemeral: the members that leave when their agent ends.
        vanishing: names of ephemeral nodes whose agent was killed, which the coordinator removes in a minute.
        fresh: hosts that have not joined yet, in the order in which they will.
        restored: whether the coordinator's database was restored.
    """

    world: World
    plan: Plan
    head: Host
    nodes: tuple[Host, ...]
    nat: Router
    token: str = ""
    members: dict[Host, str] = field(default_factory=dict)
    ephemeral: set[Host] = field(default_factory=set)
    vanishing: dict[Host, float] = field(default_factory=dict)
    fresh: list[Host] = field(default_factory=list)
    restored: bool = False

    @classmethod
    def build(cls, world: World, plan: Plan) -> Crowd:
        """Create a mesh of the head alone, whose state is on a separate disk."""
        wan = world.switch("wan", "192.88.99.0/24")
        head = world.host("head", wan, "192.88.99.10")
        nat = world.router("nat", wan, "192.88.99.30", lan="192.168.1.0/24")
        places = [(wan, f"192.88.99.{40 + n}") for n in range(OPEN)]
        places += [(nat.lan, f"192.168.1.{10 + n}") for n in range(NESTED)]
        nodes = tuple(world.host(f"node-{n:02}", *place) for n, place in enumerate(places, 1))
        for host in (head, *nodes):
            # A file system with files open for writing cannot be made read-only, so the logs are on another one.
            host.shell(
                f"mkdir -p {STATE} && mount -t tmpfs -o size=64m,mode=700 tmpfs {STATE} && mkdir -m 700 {STATE}/log"
            )
            host.shell(f"mount -t tmpfs -o mode=700 tmpfs {STATE}/log")
        return cls(world, plan, head, nodes, nat, fresh=plan.random.sample(nodes, len(nodes)))

    def begin(self) -> None:
        """Run `meshray init`."""
        made = meshray(self.head, "init", "--no-ray")
        self.token, self.members = made["token"], {self.head: made["node"]["ip"]}

    def newcomers(self, number: int) -> list[Host]:
        """Return hosts that will join: those that never did come first."""
        hosts = [host for host in self.nodes if host not in self.members and host not in self.vanishing]
        again = self._shuffled(host for host in hosts if host not in self.fresh)
        chosen, self.fresh = [*self.fresh, *again][:number], self.fresh[number:]
        return chosen

    def living(self) -> list[Host]:
        """Return the nodes except the head, in an order from the seed."""
        return self._shuffled(host for host in self.members if host is not self.head)

    def _shuffled(self, hosts: Iterable[Host]) -> list[Host]:
        several = list(hosts)
        return self.plan.random.sample(several, len(several))

    # ---- users' actions

    def join(self, hosts: Sequence[Host], *, ephemeral: Iterable[Host] = ()) -> None:
        """Run `meshray join` on each, several at a time; a host that got an address is a member from then on."""
        chosen = set(ephemeral)

        def one(host: Host) -> str:
            options = ["--ephemeral"] if host in chosen else []
            return str(meshray(host, "join", "--no-ray", *options, self.token)["node"]["ip"])

        with ThreadPoolExecutor(JOINS_AT_ONCE) as pool:
            self.members.update(zip(hosts, pool.map(one, hosts), strict=True))
        self.ephemeral |= chosen

    def leave(self, hosts: Sequence[Host]) -> None:
        """Run `meshray leave` on each."""
        with ThreadPoolExecutor(JOINS_AT_ONCE) as pool:
            list(pool.map(lambda host: meshray(host, "leave", "--yes"), hosts))
        for host in hosts:
            del self.members[host]
            self.ephemeral.discard(host)

    def again(self, hosts: Sequence[Host]) -> None:
        """Start another agent where one was killed, as systemd does."""
        with ThreadPoolExecutor(JOINS_AT_ONCE) as pool:
            list(pool.map(lambda host: meshray(host, "up"), hosts))

    def answering(self, *hosts: Host) -> None:
        """Wait until the coordinator and these agents answer."""
        for host, words in (self.head, ["node", "list"]), *((host, ["status"]) for host in hosts):
            asks = partial(host.run, ["meshray", *words, "--json"], check=False)
            what = f"an answer to meshray {' '.join(words)} on {host.name}"
            # Reported problems are not an error here.
            wait_until(lambda asks=asks: "error" not in asks().json(), WHOLE_S, what, evidence=host.logs)  # type: ignore[misc]

    def vanish(self, host: Host) -> None:
        """Kill an ephemeral node's agent, which nothing starts again."""
        kill(host, "agent")
        self.vanishing[host] = time.monotonic()
        del self.members[host]
        self.ephemeral.discard(host)

    # ---- checks

    def wrong(self) -> list[str]:
        """Return everything that is wrong, the cheap checks first; empty if the mesh is whole."""
        members = self.members
        return (
            self._wrong_list()
            or wrong_addresses(members)
            or self._wrong_status()
            or wrong_peers(self.head, [host for host in members if host is not self.head])
            or unreachable(members)
            or [line for host in members for line in wrong_processes(host, AGENT)]
            or wrong_processes(self.head, COORDINATOR)
        )

    def whole(self, what: str) -> float:
        """Wait until the mesh is whole and the doctor agrees; return the seconds that it took."""
        begun, seen = time.monotonic(), list[str]()

        def look() -> bool:
            try:
                seen[:] = self.wrong() or self.unhealthy()
            except CommandError as error:  # An agent that was just killed.
                seen[:] = [str(error)]
            self.plan.note(seen)
            return not seen

        def evidence() -> str:
            return "\n".join([*seen, *self.plan.reported, self.world.logs()])

        wait_until(
            look, WHOLE_S, f"a whole mesh after {what} (seed {self.plan.seed})", evidence=evidence, longest_pause_s=2.0
        )
        return time.monotonic() - begun

    def unhealthy(self) -> list[str]:
        """Return the failed checks of the doctor, on the head."""
        answer = self.head.run(["meshray", "doctor", "--json"], check=False, deadline_s=UP_DEADLINE_S).json()
        return [
            f"{check['code']} {check['node']} {check.get('peer')}: {check['evidence']}"
            for check in answer["checks"]
            if check["status"] == "fail" and check["code"] not in OF_LOAD
        ]

    def listed(self) -> dict[str, str]:
        """Return the coordinator's own list: address by name."""
        return {node["name"]: node["ip"] for node in meshray(self.head, "node", "list")["nodes"]}

    def _wrong_list(self) -> list[str]:
        self.vanished()
        listed = self.listed()
        known = {host.name: ip for host, ip in self.members.items()}
        late = {host.name for host, since in self.vanishing.items() if time.monotonic() - since < REMOVED_S}
        lost = [f"{name} was enrolled and is not listed" for name in known.keys() - listed.keys()]
        many = [f"{name} is listed and should not be" for name in listed.keys() - known.keys() - late]
        other = [
            f"{name}: listed {listed[name]}, assigned {ip}" for name, ip in known.items() if listed.get(name, ip) != ip
        ]
        return lost + many + other

    def vanished(self) -> bool:
        """Return whether every ephemeral node whose agent was killed is removed; clean up the hosts of those."""
        listed = self.listed()
        for host in [host for host in self.vanishing if host.name not in listed]:
            meshray(host, "leave", "--yes")
            del self.vanishing[host]
        return not self.vanishing

    def _wrong_status(self) -> list[str]:
        for host in (self.head, *self.living()[:1]):
            status = json.loads(host.run(["meshray", "status", "--json"], check=False).stdout)
            problems = [p for p in status.get("problems", [str(status)]) if not (self.restored and "older copy" in p)]
            away = [n["name"] for n in status.get("nodes", []) if not n["online"] and not self._vanishes(n["name"])]
            if problems or away:
                return [f"{host.name}: {problems}, away {away}"]
        return []

    def _vanishes(self, name: str) -> bool:
        return any(host.name == name for host in self.vanishing)
