"""The topologies of tests/containerlab, and how the runner without containerlab reads and deploys them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from tests.containerlab import runner, schema
from tests.containerlab.topology import DEFAULT_MTU, End, Link, Topology, UnsupportedError, read
from tests.lab.firewalls import DROP_INBOUND, NatKind, Outbound, nat_rules

FOLDER = Path(__file__).parents[1] / "containerlab"
FILES = sorted(FOLDER.glob("*.clab.yml"))
SMALL = """
name: small
topology:
  defaults: {kind: linux, image: i, network-mode: none, privileged: false, restart-policy: "no", cap-add: [NET_ADMIN]}
  nodes:
    one: {entrypoint: python -m first, cmd: "join --label 'a b'", env: {N: 1}, cap-add: [NET_RAW], binds: [f:/f:ro]}
    two: {exec: ["sh -c 'ip link; true'"], sysctls: {net.ipv4.ip_forward: 1}, devices: [/dev/net/tun], shm-size: 1gb}
  links:
    - endpoints: ["one:eth1", "two:eth1"]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "f").touch()
    path = tmp_path / "small.clab.yml"
    path.write_text(SMALL)
    return path


class Engine:
    """Records commands; one of them may fail."""

    def __init__(self, failing: str = "") -> None:
        self.commands: list[str] = []
        self._failing = failing

    def __call__(self, words: Sequence[str]) -> str:
        self.commands.append(" ".join(words))
        if self._failing and self._failing in self.commands[-1]:
            raise RuntimeError(self.commands[-1])
        return f"10{words[-1][-3:]}\n" if words[1] == "inspect" else ""


def test_a_file_is_read_as_containerlab_reads_it(small: Path) -> None:
    topology = read(small)
    one, two = topology.nodes.values()
    assert (one.container, one.entrypoint) == ("clab-small-one", ("python", "-m", "first"))
    assert one.cmd == ("join", "--label", "a b")
    assert one.cap_add == ("NET_ADMIN", "NET_RAW")
    assert one.binds == (f"{small.parent / 'f'}:/f:ro",)
    assert one.env == {"N": "1"}
    assert two.exec == (("sh", "-c", "ip link; true"),)
    assert two.sysctls == {"net.ipv4.ip_forward": "1"}
    assert topology.links == (Link((End("one", "eth1"), End("two", "eth1")), DEFAULT_MTU),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small", "name: small\nmgmt: {network: x}", "mgmt"),
        ("kind: linux", "kind: nokia_srlinux", "kind"),
        ("network-mode: none, ", "", "network-mode is None"),
        ("privileged: false, ", "", "privileged is None"),
        ("image: i", "image: i, startup-config: c", "startup-config"),
        ("image: i", "image: ${IMAGE}", "variable"),
        ("f:/f:ro", "g:/f:ro", "does not exist"),
        ("two:eth1", "three:eth1", "three:eth1 is at a node that does not exist"),
        ("two:eth1", "one:eth1", "one:eth1 is used twice"),
        ('two:eth1"]', 'two:eth1"]\n      vars: {}', "vars"),
    ],
)
def test_what_only_containerlab_can_deploy_is_refused(small: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    small.write_text(SMALL.replace(old, new))
    with pytest.raises(UnsupportedError, match=message.replace("$", "")):
        read(small)


def test_a_container_is_created_with_all_that_the_file_gives_it(small: Path) -> None:
    one, two = map(runner.create_command, read(small).nodes.values())
    assert one == [
        *("docker", "create", "--name=clab-small-one", "--hostname=one", "--network=none"),
        *("--cap-add=NET_ADMIN", "--cap-add=NET_RAW", "--env=N=1", f"--volume={small.parent / 'f'}:/f:ro"),
        *("--entrypoint=python", "i", "-m", "first", "join", "--label", "a b"),
    ]
    assert two[5:] == [
        *("--cap-add=NET_ADMIN", "--device=/dev/net/tun", "--sysctl=net.ipv4.ip_forward=1", "--shm-size=1gb", "i"),
    ]


def test_containers_start_before_they_are_connected_and_run_commands_after_that(small: Path) -> None:
    engine = Engine()
    runner.deploy(read(small), engine)
    assert engine.commands[2:] == [
        *("docker start clab-small-one", "docker start clab-small-two"),
        *(f"docker inspect --format={{{{.State.Pid}}}} clab-small-{name}" for name in ("one", "two")),
        f"ip link add name eth1 mtu {DEFAULT_MTU} netns 10one type veth peer name eth1 mtu {DEFAULT_MTU} netns 10two",
        "nsenter --target=10one --net -- ip link set eth1 up",
        "nsenter --target=10two --net -- ip link set eth1 up",
        "docker exec clab-small-two sh -c ip link; true",
    ]


@pytest.mark.parametrize("step", ["docker create", "docker start", "docker inspect", "ip link add", "docker exec"])
def test_a_failed_deployment_leaves_no_container(small: Path, step: str) -> None:
    engine = Engine(step)
    with pytest.raises(RuntimeError, match=step):
        runner.deploy(read(small), engine)
    assert engine.commands[-1] == "docker rm --force --volumes clab-small-one clab-small-two"


def test_the_command_reports_a_file_that_it_cannot_deploy(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write_text(SMALL.replace("kind: linux", "kind: bridge"))
    assert runner.main(["deploy", str(small)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {small}: node one: kind is 'bridge'; without containerlab")
    assert runner.main(["deploy", str(small.parent / "none")]) == 1
    assert runner.main(["redeploy", str(small)]) == 2


@pytest.mark.parametrize(
    ("name", "kind", "outbound"),
    [("nat", "easy", "all"), ("nat-symmetric", "symmetric", "all"), ("nat-no-udp", "easy", "no-udp")],
)
def test_routers_have_the_rules_of_the_lab(name: str, kind: NatKind, outbound: Outbound) -> None:
    rules = (FOLDER / f"rules/{name}.nft").read_text()
    assert rules.strip() == nat_rules(kind, outbound, wan="eth1", lan="eth2").strip()


def test_firewalls_have_the_rules_of_the_lab() -> None:
    assert (FOLDER / "rules/drop-inbound.nft").read_text() in DROP_INBOUND["nft"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_topologies_are_consistent(file: Path) -> None:
    topology = read(file)
    assert file.name == f"{topology.name}.clab.yml"
    # Any other MTU than that of the internet would be a test of something else.
    assert {link.mtu for link in topology.links} == {1500}
    connected = {end for link in topology.links for end in link.ends}
    assert {end.node for end in connected} == set(topology.nodes)
    assert configured(topology) == connected
    for one, other in (link.ends for link in topology.links if "wan" not in {end.node for end in link.ends}):
        assert addresses(topology)[one].network == addresses(topology)[other].network
    on_wan = [
        addresses(topology)[end]
        for link in topology.links
        for end in link.ends
        if link.ends[0].node == "wan" and end.node != "wan"
    ]
    assert len({address.network for address in on_wan}) == 1
    assert len(set(on_wan)) == len(on_wan) >= 3


def addresses(topology: Topology) -> dict[End, IPv4Interface]:
    """Return the address that each interface is given."""
    return {
        End(node.name, words[5]): IPv4Interface(words[3])
        for node in topology.nodes.values()
        for words in node.exec
        if words[:3] == ("ip", "address", "add")
    }


def configured(topology: Topology) -> set[End]:
    """Return the interfaces with an address, and the ports of switches."""
    ports = {
        End(node.name, words[3])
        for node in topology.nodes.values()
        for words in node.exec
        if words[:3] == ("ip", "link", "set") and "master" in words
    }
    return ports | set(addresses(topology))


def test_another_schema_than_the_expected_one_is_refused() -> None:
    with pytest.raises(schema.SchemaError, match=schema.VERSION):
        schema.checked(b"{}")
