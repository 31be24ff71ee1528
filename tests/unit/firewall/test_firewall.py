"""apply, apply again, remove: on hosts with one program or another, with and without permissions."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from meshray.firewall import Firewall, Opening, open_port_commands
from meshray.firewall.host_programs import Answer, run_program
from meshray.firewall.kernel_state import KernelState
from tests.unit.firewall.fake_host import FakeHost

NETWORK = IPv4Network("10.99.0.0/16")
HUB = Opening("meshray0", NETWORK, forwards=True)
NODE = Opening("meshray0", NETWORK, forwards=False)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for interface, value in (("default", "0"), ("meshray0", "0"), ("eth0", "0")):
        conf = tmp_path / "sys/net/ipv4/conf" / interface
        conf.mkdir(parents=True)
        (conf / "forwarding").write_text(f"{value}\n")
    (tmp_path / "net").mkdir()
    (tmp_path / "net/ip_tables_names").write_text("")
    (tmp_path / "net/route").write_text("Iface\tDestination\neth0\t00000000\t0101A8C0\n")
    return tmp_path


def texts(firewall: Firewall) -> list[str]:
    return [problem.text for problem in firewall.problems()]


def forwarding(proc: Path) -> str:
    return (proc / "sys/net/ipv4/conf/meshray0/forwarding").read_text().strip()


def closed_host() -> FakeHost:
    host = FakeHost({"nft"})
    host.nft("inet", "filter", "input", "ct state invalid drop", policy="drop")
    host.nft("inet", "filter", "forward", hook="forward", policy="drop")
    return host


def test_applied_once_is_applied(proc: Path) -> None:
    host = closed_host()
    before = host.listing()
    firewall = Firewall(HUB, run=host, proc=proc)
    assert firewall.apply() == [
        "nft: table inet meshray in place",
        "nft inet filter input: lets the overlay in",
        "nft inet filter forward: forwards within the overlay",
        "forwarding on meshray0 is on",
    ]
    assert forwarding(proc) == "1"
    changes = host.changes
    assert firewall.apply() == []
    assert host.changes == changes

    assert firewall.remove()
    assert host.listing() == before
    assert forwarding(proc) == "0"
    assert firewall.remove() == []
    assert firewall.problems() == []


def test_another_network_replaces_the_rules(proc: Path) -> None:
    host = closed_host()
    Firewall(HUB, run=host, proc=proc).apply()
    Firewall(Opening("meshray0", IPv4Network("10.50.0.0/16"), forwards=False), run=host, proc=proc).apply()
    assert "10.99." not in host.listing()
    assert "10.50.0.0/16" in host.listing()
    assert "through" not in host.listing()
    assert forwarding(proc) == "0"


def test_an_ineffective_rule_is_replaced(proc: Path) -> None:
    host = closed_host()
    firewall = Firewall(NODE, run=host, proc=proc)
    firewall.apply()
    chain = host.tables["inet", "filter"]["input"]
    chain.rules.insert(0, (99, "ct state new drop"))
    assert firewall.apply() == ["nft inet filter input: rule removed", "nft inet filter input: lets the overlay in"]
    assert [handle for handle, _ in chain.rules].index(99) == 1
    assert firewall.apply() == []


def test_open_ports_are_not_touched(proc: Path) -> None:
    host = FakeHost({"nft"})
    host.nft("inet", "filter", "input", 'iifname "meshray0" accept', policy="drop")
    before = host.listing()
    assert Firewall(NODE, run=host, proc=proc).apply() == ["nft: table inet meshray in place"]
    assert host.listing().startswith(before.rstrip("\n"))


def test_our_table_is_created_again_after_a_flush(proc: Path) -> None:
    host = closed_host()
    firewall = Firewall(HUB, run=host, proc=proc)
    firewall.apply()
    host.tables["inet", "meshray"]["forward"].rules.pop()
    assert firewall.apply() == ["nft: table inet meshray in place"]
    assert len(host.tables["inet", "meshray"]["forward"].rules) == 3


def test_old_nft_without_terse_listing(proc: Path) -> None:
    host = FakeHost({"nft"}, old_nft=True)
    host.nft("inet", "filter", "input", policy="drop")
    assert "nft inet filter input: lets the overlay in" in Firewall(NODE, run=host, proc=proc).apply()


def legacy_host(proc: Path, *programs: str) -> FakeHost:
    (proc / "net/ip_tables_names").write_text("filter\nnat\n")
    host = FakeHost(programs)
    host.iptables["iptables-legacy"] = {
        "INPUT": ("DROP", ["-i lo -j ACCEPT"]),
        "FORWARD": ("DROP", ["-j DOCKER-USER"]),
        "DOCKER-USER": ("-", ["-j RETURN"]),
        "OUTPUT": ("ACCEPT", []),
    }
    return host


def test_legacy_beside_nft(proc: Path) -> None:
    host = legacy_host(proc, "nft", "iptables-nft", "iptables-legacy")
    before = repr(host.iptables)
    firewall = Firewall(HUB, run=host, proc=proc)
    firewall.apply()
    chains = host.iptables["iptables-legacy"]
    assert chains["INPUT"][1][0].endswith("-j ACCEPT")
    assert len(chains["FORWARD"][1]) == 1  # Docker's own chain for this has it.
    assert "-i meshray0 -o meshray0" in chains["DOCKER-USER"][1][0]
    assert firewall.apply() == []
    firewall.remove()
    assert repr(host.iptables) == before


@pytest.mark.parametrize("chain", ["INPUT", "DOCKER-USER"])
def test_an_ineffective_legacy_rule(proc: Path, chain: str) -> None:
    host = legacy_host(proc, "nft", "iptables-legacy")
    firewall = Firewall(HUB, run=host, proc=proc)
    firewall.apply()
    rules = host.iptables["iptables-legacy"][chain][1]
    rules.insert(0, "-j DROP")
    count = len(rules)
    assert firewall.apply()
    assert (len(rules), rules.index("-j DROP")) == (count, 1)
    assert firewall.apply() == []


def test_legacy_alone_guards_the_hub(proc: Path) -> None:
    host = legacy_host(proc, "iptables-legacy")
    before = repr(host.iptables)
    firewall = Firewall(HUB, run=host, proc=proc)
    firewall.apply()
    forward = host.iptables["iptables-legacy"]["FORWARD"][1]
    assert [rule.split()[-1] for rule in forward[:3]] == ["ACCEPT", "DROP", "DROP"]
    assert forwarding(proc) == "1"
    assert firewall.apply() == []

    forward.insert(0, "-i eth0 -j ACCEPT")
    assert firewall.apply() == ["iptables-legacy FORWARD: only overlay to overlay is forwarded"]
    assert forward.index("-i eth0 -j ACCEPT") == 3
    del forward[3]

    # It is no longer a hub: the guard is removed with the forwarding.
    Firewall(NODE, run=host, proc=proc).apply()
    assert "guard" not in repr(host.iptables["iptables-legacy"]["FORWARD"])
    assert forwarding(proc) == "0"
    firewall.remove()
    assert repr(host.iptables) == before


def test_legacy_is_not_queried_without_a_table(proc: Path) -> None:
    """QueryBroker would make one."""
    ack = []
    host = FakeHost({"nft", "iptables-legacy"})

    def run(argv: list[str], stdin: str) -> Answer:
        ack.append(argv)
        return host(argv, stdin)

    Firewall(HUB, run=run, proc=proc).apply()  # type: ignore[arg-type]
    assert not [argv for argv in ack if "legacy" in argv[0] and "--version" not in argv]


def test_tables_of_iptables_nft_are_changed_through_it(proc: Path) -> None:
    host = FakeHost({"nft", "iptables"})
    host.nft("ip", "filter", "INPUT", policy="drop")
    host.iptables["iptables"] = {"INPUT": ("DROP", [])}
    assert "iptables INPUT: lets the overlay in" in Firewall(NODE, run=host, proc=proc).apply()
    assert not host.tables["ip", "filter"]["INPUT"].rules


def test_tables_of_iptables_nft_without_that_program(proc: Path) -> None:
    host = FakeHost({"nft"})
    host.nft("ip", "filter", "INPUT", policy="drop")
    assert "nft ip filter INPUT: lets the overlay in" in Firewall(NODE, run=host, proc=proc).apply()


def test_a_users_own_table_ip_filter_is_nfts(proc: Path) -> None:
    host = FakeHost({"nft", "iptables-nft"})
    host.nft("ip", "filter", "input", policy="drop")
    assert "nft ip filter input: lets the overlay in" in Firewall(NODE, run=host, proc=proc).apply()


def firewalld_host() -> FakeHost:
    host = FakeHost({"nft", "firewall-cmd"})
    host.nft("inet", "firewalld", "filter_INPUT", "jump zones", "reject with icmpx admin-prohibited")
    host.nft("inet", "firewalld", "zones", "goto public", hook="")
    host.nft("inet", "firewalld", "trusted", "accept", hook="")
    host.nft("inet", "firewalld", "public", "tcp dport 22 accept", hook="")
    return host


def test_firewalld_gets_the_interface_into_its_zone(proc: Path) -> None:
    host = firewalld_host()
    host.owned = {"firewalld"}
    before = host.listing()
    firewall = Firewall(NODE, run=host, proc=proc)
    assert firewall.apply()[0] == "firewalld: meshray0 is in the trusted zone"
    assert firewall.apply() == []
    assert firewall.problems() == []
    assert firewall.remove()[0] == "firewalld: meshray0 is out of the trusted zone"
    assert host.listing() == before


def test_firewalld_zone_for_good_stays(proc: Path) -> None:
    host = firewalld_host()
    host.permanent = {"meshray0"}
    firewall = Firewall(NODE, run=host, proc=proc)
    firewall.apply()
    firewall.remove()
    assert host.zones == {"meshray0": "trusted"}


def test_firewalld_that_does_not_answer(proc: Path) -> None:
    host = firewalld_host()
    host.programs.remove("firewall-cmd")
    firewall = Firewall(NODE, run=host, proc=proc)
    assert "nft inet firewalld filter_INPUT: lets the overlay in" in firewall.apply()
    host.owned = {"firewalld"}
    host.tables["inet", "firewalld"]["filter_INPUT"].rules.pop(0)
    firewall.apply()
    assert texts(firewall) == [
        "nft inet firewalld filter_INPUT still drops the overlay: "
        "/dev/stdin:1:1-9: Error: Could not process rule: Operation not permitted "
        "(firewall-cmd --zone=trusted --change-interface=meshray0)"
    ]


def test_without_rights_nothing_is_claimed(proc: Path) -> None:
    firewall = Firewall(HUB, run=FakeHost({"nft", "iptables-nft"}, root=False), proc=proc)
    assert firewall.apply() == []
    assert "the host's nftables rules cannot be read: Operation not permitted (you must be root)" in texts(firewall)
    assert forwarding(proc) == "0"


def test_a_hub_that_cannot_be_guarded_does_not_forward(proc: Path) -> None:
    (proc / "sys/net/ipv4/conf/meshray0/forwarding").write_text("1")
    firewall = Firewall(HUB, run=FakeHost(set()), proc=proc)
    assert firewall.apply() == ["forwarding on meshray0 is off"]
    assert "neither nft nor iptables" in texts(firewall)[0]


def test_a_kernel_without_nftables_is_a_host_without_nft(proc: Path) -> None:
    def run(argv: object, stdin: str) -> Answer:
        return Answer(1, "", "netlink: Error: cache initialization failed: Protocol not supported\n")

    firewall = Firewall(NODE, run=run, proc=proc)
    assert firewall.apply() == []
    assert firewall.problems() == []


def test_a_switch_that_cannot_be_set_is_reported(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: KernelState, interface: str, value: str) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(KernelState, "set_forwarding", refuse)
    firewall = Firewall(HUB, run=FakeHost({"nft"}), proc=proc)
    assert firewall.apply() == ["nft: table inet meshray in place"]
    assert texts(firewall) == ["forwarding on meshray0 cannot be switched on: Read-only file system"]
    (problem,) = firewall.problems()
    assert problem.code == "hub_forwards" and "sysctl -w net.ipv4.conf.meshray0.forwarding=1" in problem.fix


def test_ports(proc: Path) -> None:
    host = closed_host()
    host.tables["inet", "filter"]["input"].rules.append((90, 'iifname "eth0" udp dport 51888 accept'))
    assert open_port_commands(51888, run=host, proc=proc) == [
        "nft insert rule inet filter input tcp dport 51888 accept"
    ]
    assert open_port_commands(51888, run=FakeHost({"nft"}), proc=proc) == []
    assert open_port_commands(51888, run=firewalld_host(), proc=proc)[:2] == [
        "firewall-cmd --add-port=51888/udp",
        "firewall-cmd --permanent --add-port=51888/udp",
    ]
    legacy = legacy_host(proc, "iptables-legacy")
    assert open_port_commands(51888, run=legacy, proc=proc) == [
        "iptables-legacy -I INPUT -p udp --dport 51888 -j ACCEPT",
        "iptables-legacy -I INPUT -p tcp --dport 51888 -j ACCEPT",
    ]


def test_missing_and_failing_programs_are_reported() -> None:
    assert run_program(["meshray-no-such-program"]).missing
    assert run_program(["/"]).missing
    assert run_program(["cat"], "hello") == Answer(0, "hello", "")
    assert run_program(["sh", "-c", "echo '# Warning' >&2; echo no >&2; exit 3"]).cause == "no"
    assert run_program(["false"]).cause == "exit status 1"
