"""Every rule that drops a port or the overlay is reported, also in tables that meshray does not change."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from meshray.firewall.inspect import Flow, read_host_rules
from meshray.firewall.opening import Opening
from tests.unit.firewall.fake_host import FakeHost

OPENING = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=False)


def proc(tmp_path: Path, legacy: str = "") -> Path:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/ip_tables_names").write_text(legacy)
    return tmp_path


def test_an_open_host_has_no_obstacle(tmp_path: Path) -> None:
    host = FakeHost(programs={"nft"})
    host.nft("inet", "filter", "input", "udp dport 51888 accept", policy="drop")
    view = read_host_rules(host, proc(tmp_path))
    assert view.of_port("udp", 51888, "eth0") == []
    assert not view.problems


def test_policy_and_rule_are_distinguished(tmp_path: Path) -> None:
    host = FakeHost(programs={"nft"})
    host.nft("inet", "filter", "input", policy="drop")
    host.nft("ip", "raw", "PREROUTING", "udp dport 51888 drop", hook="prerouting")
    by_policy, by_rule = read_host_rules(host, proc(tmp_path)).of_port("udp", 51888, "eth0")
    assert (by_policy.where, by_policy.commands) == (
        "nft inet filter input",
        ("nft insert rule inet filter input udp dport 51888 accept",),
    )
    assert "policy is drop" in by_policy.cause
    assert by_rule.where == "nft ip raw PREROUTING"
    assert "handle" in by_rule.cause


def test_an_ingress_chain_concerns_its_own_card_only(tmp_path: Path) -> None:
    host = FakeHost(programs={"nft"})
    host.nft("netdev", "early", "c", "udp dport 51888 drop")
    host.tables["netdev", "early"][
        "c"
    ].header = 'type filter hook ingress devices = { eth1, "eth0" } priority -500; policy accept;'
    view = read_host_rules(host, proc(tmp_path))
    assert [found.where for found in view.of_port("udp", 51888, "eth0")] == ["nft netdev early c"]
    assert view.of_port("udp", 51888, "eth2") == []
    assert view.of_port("tcp", 51888, "eth0") == []


def test_a_rule_that_drops_the_overlay_is_named_with_the_command(tmp_path: Path) -> None:
    host = FakeHost(programs={"nft"})
    host.nft("inet", "strict", "out", 'oifname "meshray0" tcp dport 6379 drop', hook="output")
    (found,) = read_host_rules(host, proc(tmp_path)).of_overlay(OPENING)
    assert found.where == "nft inet strict out"
    assert "TCP port 6379 out by meshray0" in found.cause
    assert found.commands[0].startswith('nft \'insert rule inet strict out oifname "meshray0"')


def test_what_drops_one_port_of_the_overlay_is_named(tmp_path: Path) -> None:
    host = FakeHost(programs={"nft"})
    host.nft("inet", "strict", "in", 'iifname "meshray0" tcp dport 20190 drop', hook="input")
    host.nft("inet", "other", "in", 'iifname "meshray0" tcp dport 8000 drop', hook="input")
    host.nft("inet", "other", "out", 'oifname "meshray0" tcp dport 20190 drop', hook="output")
    host_rules = read_host_rules(host, proc(tmp_path))
    (found,) = host_rules.of_overlay_port(OPENING, 20190)
    assert found.where == "nft inet strict in"
    assert "TCP port 20190 in from meshray0" in found.cause
    (command,) = found.commands
    assert command.startswith('nft \'insert rule inet strict in iifname "meshray0" ip saddr 10.99.0.0/16')
    assert "tcp dport { 20190, 51889 } " in command
    assert host_rules.of_overlay_port(OPENING, 20191) == []


def test_without_root_nothing_is_claimed(tmp_path: Path) -> None:
    view = read_host_rules(FakeHost(programs={"nft"}, root=False), proc(tmp_path))
    assert view.problems


def test_without_any_program_nothing_is_claimed(tmp_path: Path) -> None:
    view = read_host_rules(FakeHost(programs=()), proc(tmp_path))
    assert view.problems == ["neither nft nor iptables is installed to read the host's rules"]


HEAD = IPv4Address("203.0.113.10")
TO_HEAD = Flow(HEAD, "tcp", 51888)
#: /proc/net/route of a machine whose default route leads out by eth0.
ROUTES = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window\neth0 00000000 0107A8C0 0003" + " 0" * 6


def by_eth0(tmp_path: Path) -> Path:
    (proc(tmp_path) / "net/route").write_text(ROUTES)
    return tmp_path


@pytest.mark.parametrize(
    ("rule", "hook", "flow", "drops"),
    [
        ("tcp dport 51888 drop", "output", TO_HEAD, True),
        ("tcp dport 51888 drop", "output", Flow(HEAD, "udp", 51888, 51888), False),
        ("tcp dport 443 drop", "output", TO_HEAD, False),
        ("ip saddr 203.0.113.10 tcp sport 51888 drop", "input", TO_HEAD, True),
        ("ip saddr 203.0.113.10 tcp sport 443 drop", "input", TO_HEAD, False),
        # A rule for all sources does not explain why one of them is not answered.
        ("tcp sport 51888 drop", "input", TO_HEAD, False),
        # The other end dials this port: its first packet comes in, and answers go out.
        ("ip saddr 203.0.113.10 tcp dport 51888 drop", "input", Flow(HEAD, "tcp", own_port=51888), True),
        ("tcp dport 51888 drop", "output", Flow(HEAD, "tcp", own_port=51888), False),
    ],
)
def test_rules_that_drop_packets_to_an_address_or_from_it_alone(
    tmp_path: Path, rule: str, hook: str, flow: Flow, drops: bool
) -> None:
    host = FakeHost(programs={"nft"})
    host.nft("ip", "own", "c", rule, hook=hook)
    found = read_host_rules(host, by_eth0(tmp_path)).of_address(flow, lambda table, name, address: False)
    assert bool(found) is drops


def test_answers_to_what_a_rule_let_in_may_leave_a_host_that_drops_all_else(tmp_path: Path) -> None:
    host = FakeHost(programs={"nft"})
    host.nft("ip", "own", "out", "ct state established accept", hook="output", policy="drop")
    rules = read_host_rules(host, by_eth0(tmp_path))
    assert not rules.of_address(Flow(HEAD, "tcp", own_port=51888), lambda table, name, address: False)
    assert rules.of_address(TO_HEAD, lambda table, name, address: False)


def test_a_port_whose_packets_are_sent_elsewhere(tmp_path: Path) -> None:
    host = FakeHost(programs={"nft"})
    host.nft("ip", "proxy", "c", 'iifname "eth0" tcp dport 51888 redirect to :9', hook="prerouting")
    host.tables["ip", "proxy"]["c"].header = "type nat hook prerouting priority dstnat; policy accept;"
    rules = read_host_rules(host, by_eth0(tmp_path))
    (found,) = rules.diversions_of_port("tcp", 51888)
    assert "redirect to :9" in found
    assert rules.diversions_of_port("udp", 51888) == []
    assert rules.diversions(TO_HEAD) == []
    assert rules.diversions(Flow(HEAD, "tcp", own_port=51888))
