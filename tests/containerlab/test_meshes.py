"""A real Ray cluster on each topology of this folder, whatever deployed it; commands run by `docker exec`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.containerlab.machine import Container, Deployer
from tests.containerlab.topology import read
from tests.lab.waiting import wait_until

FOLDER = Path(__file__).parent
#: Small nodes start faster.
RAY_ARGS = ("--", "--num-cpus=1", "--object-store-memory=150000000")
#: The time for `init` and `join` with Ray, and for a job over all nodes, seconds.
UP_S = 150
JOB_S = 300
#: The time until a pair has its final path, seconds.
PATH_S = 60


@dataclass(frozen=True)
class Lab:
    """A deployed topology."""

    nodes: dict[str, Container]

    def __getitem__(self, name: str) -> Container:
        return self.nodes[name]

    def up(self, name: str, *words: str) -> dict[str, Any]:
        """Return the answer of `meshray init` or `join` on this node."""
        return self[name].meshray(*words, deadline_s=UP_S)

    def exchange(self, *names: str) -> None:
        """Move an object between every ordered pair of these Ray nodes, as a job on the head."""
        options = (f"--nodes={len(names)}", "--mebibytes=4", "--json")
        done = self["head"].run("meshray", "run", "--", "python", "/pairs.py", *options, deadline_s=JOB_S).last_json()
        assert sorted(done["nodes"]) == sorted(names)
        assert len(done["objects"]) == len(names) * (len(names) - 1)
        assert all(one["intact"] for one in done["objects"])

    def path(self, name: str, peer: str) -> dict[str, Any]:
        """Return the path of a node to a peer, from its status."""
        nodes = self[name].meshray("status", check=False)["nodes"]
        found = next(node["path"] for node in nodes if node["name"] == peer)
        assert isinstance(found, dict)
        return found

    def logs(self) -> str:
        """Return the logs of all containers and of their nodes."""
        texts = []
        for name, node in self.nodes.items():
            first = node.host.run(["docker", "logs", "--tail=40", node.name], check=False)
            agent = node.run("sh", "-c", "tail -n 40 /var/lib/meshray/log/*.log", check=False)
            texts.append(f"{name}:\n{first.stdout}{first.stderr}{agent.stdout}")
        return "\n".join(texts)


@contextmanager
def deployed(deployer: Deployer, file: str) -> Iterator[Lab]:
    """Deploy a topology; at the end its containers are gone."""
    path = FOLDER / file
    topology = read(path)
    deployer.deploy(path, topology)
    lab = Lab({name: Container(deployer.host, node.container) for name, node in topology.nodes.items()})
    try:
        yield lab
    except Exception:
        print(lab.logs())
        raise
    finally:
        deployer.destroy(path, topology)
    listed = deployer.host.run(["docker", "ps", "--all", "--format={{.Names}}"]).stdout.split()
    assert not {node.container for node in topology.nodes.values()} & set(listed)


def until(condition: Callable[[], bool], what: str, lab: Lab) -> None:
    wait_until(condition, PATH_S, what, evidence=lab.logs)


def test_a_firewalled_worker_and_one_behind_a_nat(deployer: Deployer) -> None:
    with deployed(deployer, "one-of-each.clab.yml") as lab:
        # The topology is as drawn: workers can open connections to the head, and nothing else is possible.
        assert lab["walled"].can_reach("203.0.113.10")
        assert lab["nested"].can_reach("203.0.113.10")
        assert not lab["head"].can_reach("203.0.113.20")
        assert not lab["nested"].can_reach("203.0.113.20")
        assert not lab["head"].can_reach("192.168.7.10")

        made = lab.up("head", "init", *RAY_ARGS)
        joined = [lab.up(name, "join", made["token"], *RAY_ARGS) for name in ("walled", "nested")]
        assert [answer["ray"] for answer in joined] == [{"alive": True, "nodes": 2}, {"alive": True, "nodes": 3}]
        lab.exchange("head", "walled", "nested")
        until(lambda: lab.path("walled", "nested")["kind"] == "direct", "the direct path of the workers", lab)
        assert lab["walled"].can_reach(joined[1]["node"]["ip"])


def test_a_firewalled_head_with_a_public_hub_and_two_nats(deployer: Deployer) -> None:
    with deployed(deployer, "public-hub.clab.yml") as lab:
        assert not lab["hub"].can_reach("203.0.113.20")
        assert not lab["a"].can_reach("203.0.113.20")
        assert lab["a"].can_reach("203.0.113.10")
        assert lab["b"].can_reach("203.0.113.10")

        made = lab.up("hub", "init", "--hub-only")
        head = lab.up("head", "join", "--head", made["token"], *RAY_ARGS)
        assert head["ray"] == {"alive": True, "nodes": 1}
        workers = {name: lab.up(name, "join", made["token"], *RAY_ARGS) for name in ("a", "b")}
        assert workers["b"]["ray"] == {"alive": True, "nodes": 3}
        lab.exchange("head", "a", "b")
        roles = {node["name"]: node["role"] for node in lab["hub"].meshray("status")["nodes"]}
        assert roles == {"hub": "hub", "head": "head", "a": "worker", "b": "worker"}
        # No mapping of the symmetric NAT can be learned, and the firewall lets nothing new in.
        until(lambda: lab.path("b", "a")["kind"] == "hub", "the path of the workers over the hub", lab)
        assert lab["b"].can_reach(workers["a"]["node"]["ip"])


def test_a_worker_whose_udp_is_blocked(deployer: Deployer) -> None:
    with deployed(deployer, "udp-blocked.clab.yml") as lab:
        made = lab.up("head", "init", *RAY_ARGS)
        opened = lab.up("open", "join", made["token"], *RAY_ARGS)
        blocked = lab.up("blocked", "join", made["token"], *RAY_ARGS)
        assert (opened["path"]["transport"], blocked["path"]["transport"]) == ("udp", "wss")
        assert blocked["ray"] == {"alive": True, "nodes": 3}
        lab.exchange("head", "open", "blocked")
        until(lambda: lab.path("open", "head")["transport"] == "udp", "UDP for the others", lab)
        assert lab.path("blocked", "head")["transport"] == "wss"
        assert lab["blocked"].can_reach(opened["node"]["ip"])
