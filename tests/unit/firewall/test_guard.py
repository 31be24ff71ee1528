"""Ray's ports are closed by our own table, by iptables, or reported as open."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from meshray.firewall import Closed, Firewall, GuardState, Opening, guard_state
from meshray.firewall.closing import IPV4, IPV6
from meshray.firewall.host_programs import Answer
from tests.unit.firewall.fake_host import FakeHost

NODE = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=False)
HUB = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=True)
CLOSED = Closed(
    ((6379, 6379), (10002, 19999)),
    ((IPV4, ((41234, 41234),)), (IPV6, ((41234, 41234),))),
    (("192.168.1.1", ((10500, 10500),)),),
)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """IPv6 exists; the interface does not yet."""
    (tmp_path / "net").mkdir()
    for name in ("ip_tables_names", "if_inet6"):
        (tmp_path / "net" / name).write_text("")
    return tmp_path


def test_one_call_of_nft_closes_them(proc: Path) -> None:
    host = FakeHost({"nft"})
    firewall = Firewall(NODE, run=host, proc=proc)
    assert firewall.close(CLOSED) == [
        "nft: table inet meshray in place, TCP 6379, 10002-19999, 41234, 41234 closed to all but the overlay"
    ]
    assert host.changes == 1
    rules = [rule.rsplit(" comment")[0] for _, rule in host.tables["inet", "meshray"]["input"].rules]
    outside = 'iifname != { "lo", "meshray0" }'
    assert rules == [
        'iifname "meshray0" ip daddr != 10.99.0.0/16 drop',
        'iifname "meshray0" meta nfproto ipv6 drop',
        f"{outside} ip daddr 10.99.0.0/16 drop",
        f"{outside} meta nfproto ipv4 tcp dport {{ 41234 }} drop",
        f"{outside} meta nfproto ipv6 tcp dport {{ 41234 }} drop",
        f"{outside} ip daddr 192.168.1.1 tcp dport {{ 10500 }} accept",
        f"{outside} tcp dport {{ 6379, 10002-19999 }} tcp flags & (fin | syn | rst | ack) == syn drop",
    ]
    assert guard_state("meshray0", run=host, proc=proc) == GuardState("nft", "")
    assert firewall.apply() == []
    assert firewall.problems() == []


def test_other_ports_replace_the_table(proc: Path) -> None:
    host = FakeHost({"nft"})
    firewall = Firewall(NODE, run=host, proc=proc)
    firewall.close(CLOSED)
    firewall.close(Closed(((7000, 7000),)))
    listing = host.listing()
    assert "7000" in listing
    assert "6379" not in listing
    assert firewall.apply() == []
    # The next agent knows nothing of them, and adds its own.
    assert Firewall(NODE, run=host, proc=proc).apply() == ["nft: table inet meshray in place"]
    assert "7000" not in host.listing()


def test_without_ports_to_close_there_is_no_guard(proc: Path) -> None:
    host = FakeHost({"nft"})
    Firewall(NODE, run=host, proc=proc).apply()
    assert guard_state("meshray0", run=host, proc=proc) == GuardState("", "no rule of meshray closes them")


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_iptables_alone(proc: Path, variant: str) -> None:
    host = FakeHost({f"iptables-{variant}", f"ip6tables-{variant}"})
    host.iptables[f"iptables-{variant}"] = {"INPUT": ("ACCEPT", ["-j DOCKER"]), "DOCKER": ("-", [])}
    (proc / "net/ip_tables_names").write_text("filter\n")
    firewall = Firewall(NODE, run=host, proc=proc)
    assert len(firewall.close(CLOSED)) == 2
    for program, version in ((f"iptables-{variant}", 4), (f"ip6tables-{variant}", 6)):
        chains = host.iptables[program]
        assert chains["INPUT"][1][0].endswith("-j MESHRAY-INPUT")
        assert chains["MESHRAY-INPUT"][1] == [
            "'!' -d 10.99.0.0/16 -i meshray0 -j DROP" if version == 4 else "-i meshray0 -j DROP",
            "-i lo -j RETURN",
            "-i meshray0 -j RETURN",
            *(["-d 10.99.0.0/16 -j DROP"] if version == 4 else []),
            "-p tcp -m tcp --dport 41234:41234 -j DROP",
            *(["-d 192.168.1.1 -p tcp -m tcp --dport 10500:10500 -j RETURN"] if version == 4 else []),
            "-p tcp -m tcp --dport 6379:6379 --syn -j DROP",
            "-p tcp -m tcp --dport 10002:19999 --syn -j DROP",
        ]
    assert guard_state("meshray0", run=host, proc=proc) == GuardState("iptables", "")
    assert firewall.apply() == []

    # Other rules first, then another program inserts a rule before ours, then one empties the chain.
    assert len(firewall.close(Closed(((7000, 7000),)))) == 2
    rules = host.iptables[f"iptables-{variant}"]
    assert [rule for rule in rules["INPUT"][1] if "MESHRAY" in rule] == rules["INPUT"][1][:1]
    rules["INPUT"][1].insert(0, "-i eth0 -j ACCEPT")
    assert firewall.apply() == [f"iptables-{variant} MESHRAY-INPUT: in place"]
    rules = host.iptables[f"iptables-{variant}"]
    assert rules["INPUT"][1].index("-i eth0 -j ACCEPT") == 1
    rules["MESHRAY-INPUT"][1].clear()
    assert firewall.apply() == [f"iptables-{variant} MESHRAY-INPUT: in place"]
    assert firewall.problems() == []

    assert firewall.remove()
    assert "MESHRAY" not in repr(host.iptables)
    assert host.iptables[f"iptables-{variant}"]["INPUT"][1] == ["-i eth0 -j ACCEPT", "-j DOCKER"]
    assert firewall.remove() == []


def test_a_missing_program_is_reported(proc: Path) -> None:
    host = FakeHost(set())
    firewall = Firewall(NODE, run=host, proc=proc)
    assert firewall.close(CLOSED) == []
    output = (
        "Ray's ports are open to every network that this machine is in: "
        "neither nft nor iptables is installed (apt-get install nftables)"
    )
    assert [problem.text for problem in firewall.problems()] == [output]
    assert firewall.apply() == []
    assert [problem.text for problem in firewall.problems()] == [output]
    assert guard_state("meshray0", run=host, proc=proc) == GuardState("", output.partition(": ")[2])
    # As soon as there is one, it is used.
    host.programs.add("nft")
    assert firewall.apply() == ["nft: table inet meshray in place"]
    assert firewall.problems() == []


def test_without_ip6tables(proc: Path) -> None:
    host = FakeHost({"iptables-nft"})
    firewall = Firewall(NODE, run=host, proc=proc)
    assert firewall.close(CLOSED) == ["iptables-nft MESHRAY-INPUT: in place"]
    assert [problem.text for problem in firewall.problems()] == [
        "Ray's ports are open to every IPv6 network that this machine is in: ip6tables-nft-save: not found"
    ]
    assert guard_state("meshray0", run=host, proc=proc) == GuardState(
        "iptables", "not for IPv6: ip6tables-nft-save: not found"
    )
    (proc / "net/if_inet6").unlink()
    assert firewall.apply() == []
    assert firewall.problems() == []
    assert guard_state("meshray0", run=host, proc=proc) == GuardState("iptables", "")


def test_nft_that_refuses_leaves_it_to_iptables(proc: Path) -> None:
    host = FakeHost({"nft", "iptables-nft", "ip6tables-nft"})
    host.owned = {"meshray"}
    firewall = Firewall(NODE, run=host, proc=proc)
    in_place = ["iptables-nft MESHRAY-INPUT: in place", "ip6tables-nft MESHRAY-INPUT: in place"]
    assert firewall.close(CLOSED) == in_place
    # A repeated check acts in the same way.
    host.iptables.clear()
    assert firewall.apply() == in_place
    assert firewall.unguarded == ""


def test_a_hub_whose_nft_refuses_stays_guarded_by_iptables(proc: Path) -> None:
    host = FakeHost({"nft", "iptables-nft", "ip6tables-nft"})
    host.nft("ip", "filter", "FORWARD", hook="forward")
    host.owned = {"meshray"}
    firewall = Firewall(HUB, run=host, proc=proc)
    assert "iptables-nft FORWARD: only overlay to overlay is forwarded" in firewall.apply()
    for _ in range(2):
        assert firewall.apply() == []
        assert len(host.iptables["iptables-nft"]["FORWARD"][1]) == 3


def test_an_existing_but_unusable_candidate_is_skipped(proc: Path) -> None:
    """A kernel without nf_tables: nft and iptables-nft print their versions and fail, iptables-legacy works."""
    host = FakeHost({"nft", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"})
    host.broken = {"nft", "iptables-nft", "ip6tables-nft"}
    firewall = Firewall(NODE, run=host, proc=proc)
    assert firewall.close(CLOSED) == [
        "iptables-legacy MESHRAY-INPUT: in place",
        "ip6tables-legacy MESHRAY-INPUT: in place",
    ]
    assert (firewall.unguarded, firewall.problems()) == ("", [])
    (proc / "net/ip_tables_names").write_text("filter\n")
    assert firewall.apply() == []
    assert firewall.problems() == []
    assert guard_state("meshray0", run=host, proc=proc) == GuardState("iptables", "")

    host.broken |= {"iptables-legacy", "ip6tables-legacy"}
    firewall.close(CLOSED)
    assert "Ray's ports are open to every network that this machine is in" in firewall.unguarded
    assert "iptables-legacy" in firewall.unguarded
    firewall.apply()
    assert "iptables-legacy" in firewall.unguarded


def test_missing_rights_are_reported(proc: Path) -> None:
    def run(argv: object, stdin: str) -> Answer:
        return host(argv, stdin)  # type: ignore[arg-type]

    host = FakeHost({"nft", "iptables-nft", "ip6tables-nft"}, root=False)
    firewall = Firewall(NODE, run=run, proc=proc)
    assert firewall.close(CLOSED) == []
    assert "every network that this machine is in: nft: Operation not permitted" in firewall.unguarded
    state = guard_state("meshray0", run=run, proc=proc)
    assert state.how == ""
    assert "Operation not permitted" in state.why
