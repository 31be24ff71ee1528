"""The chains that drop the overlay: rulesets as users and programs write them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.defaults import METRICS_PORT, PROBE_PORT
from meshray.firewall import own_rules, rules
from meshray.firewall.backends import iptables, nft
from meshray.firewall.opening import Direction, Opening
from meshray.firewall.ruleset import Condition, Packet, Table, holds
from meshray.model.ray_ports import RayPorts

DATA = Path(__file__).parent / "data"
NODE = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=False)
HUB = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=True)


def chain_of(body: str, *, policy: str = "accept", hook: str = "input", more: str = "") -> Table:
    lines = "\n".join(f"\t\t{line.strip()} # handle {number}" for number, line in enumerate(body.splitlines(), 5))
    header = f"type filter hook {hook} priority filter; policy {policy};"
    [table] = nft.parse(f"table inet t {{ # handle 1\n\tchain c {{ # handle 1\n\t\t{header}\n{lines}\n\t}}\n{more}}}\n")
    return table


def holds_back(table: Table, opening: Opening = NODE) -> bool:
    return bool(rules.missing(table, opening))


@pytest.mark.parametrize(
    "body",
    [
        "drop",
        "reject with icmpx admin-prohibited",
        "counter packets 0 bytes 0 reject with tcp reset",
        'log prefix "accept " level info drop',
        "ct state new drop",
        "ct state { new, invalid } drop",
        "ct state vmap { invalid : drop, new : drop }",
        'iifname != "eth0" drop',
        'iifname "meshray*" drop',
        "meta l4proto { tcp, udp } drop",
        "ip saddr 10.0.0.0/8 drop",
        "ip saddr 10.98.0.0-10.100.0.0 drop",
        "tcp dport 6379 drop",
        "tcp dport 20102 drop",
        "tcp dport 10002-19999 drop",
        "tcp dport { 22, 1024-65535 } reject",
        "udp dport 51889 queue to 0",
        "icmp type echo-request drop",
        'iifname "lo" accept\ndrop',
        "ip saddr @friends accept\ndrop",
        "limit rate 5/second accept\ndrop",
        "meta mark 0x1 accept\ndrop",
        'iifname . ip saddr { "meshray0" . 10.99.0.2 } accept\ndrop',
        "tcp flags syn / fin,syn tcp dport 6379 accept\ndrop",
        "ip6 saddr fe80::/10 accept\ndrop",
    ],
)
def test_holds_back(body: str) -> None:
    assert holds_back(chain_of(body))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "accept",
        "ct state invalid drop",
        "ct state established,related accept",
        'iifname "eth0" drop',
        "tcp dport 22 drop",
        "ip saddr @banned drop",
        "ip saddr 192.0.2.0/24 drop",
        "ip saddr != 10.0.0.0/8 drop",
        "limit rate over 10/second drop",
        "icmpv6 type echo-request drop",
        "fib daddr type broadcast drop",
        "meta nfproto ipv6 drop",
        "meta pkttype broadcast drop",
        'iifname "meshray0" accept\ndrop',
        'iifname { "lo", "mesh*" } accept\ndrop',
        "ip saddr 10.0.0.0/8 accept\ndrop",
        "ct state vmap { invalid : drop, established : accept, related : accept }",
        'tcp dport 22 accept comment "drop"',
        "continue",
    ],
)
def test_does_not_hold_back(body: str) -> None:
    assert not holds_back(chain_of(body))


def test_policy_counts_when_no_rule_decides() -> None:
    assert holds_back(chain_of("tcp dport 22 accept", policy="drop"))
    assert not holds_back(chain_of('iifname "meshray0" accept', policy="drop"))


def test_jump_goto_and_return() -> None:
    closed = "\tchain w { # handle 9\n\t\ttcp dport 22 return # handle 10\n\t\tdrop # handle 11\n\t}\n"
    quiet = "\tchain w { # handle 9\n\t\treturn # handle 10\n\t\tdrop # handle 11\n\t}\n"
    assert holds_back(chain_of("jump w\naccept", more=closed))
    assert holds_back(chain_of('iifname vmap { "lo" : accept, "meshray0" : jump w }', more=closed))
    assert not holds_back(chain_of('iifname vmap { "lo" : accept, "eth0" : jump w }', more=closed))
    assert not holds_back(chain_of("jump w\naccept", policy="drop", more=quiet))
    # goto does not return: the policy decides.
    assert holds_back(chain_of("goto w\naccept", policy="drop", more=quiet))
    assert not holds_back(chain_of("jump nowhere\naccept", policy="drop"))


def test_endless_jumps_end() -> None:
    loop = "\tchain w { # handle 9\n\t\tjump w # handle 10\n\t}\n"
    assert holds_back(chain_of("jump w", policy="drop", more=loop))


@pytest.mark.parametrize("hook", ["prerouting", "input", "output", "postrouting"])
def test_every_hook_on_the_path_counts(hook: str) -> None:
    [(_, direction)] = rules.missing(chain_of("drop", hook=hook), NODE)
    assert direction is (Direction.IN if hook in ("prerouting", "input") else Direction.OUT)


def test_forwarding_matters_to_a_hub_only() -> None:
    table = chain_of("", hook="forward", policy="drop")
    assert rules.missing(table, HUB)[0][1] is Direction.THROUGH
    assert not rules.missing(table, NODE)


def test_other_families_and_kinds_of_chains_are_not_touched() -> None:
    text = (
        "table {} t {{ # handle 1\n\tchain c {{ # handle 1\n\t\ttype {} hook input priority 0; policy drop;\n\t}}\n}}\n"
    )
    assert not nft.parse(text.format("ip6", "filter"))
    assert not nft.parse(text.format("bridge", "filter"))
    assert not holds_back(nft.parse(text.format("inet", "nat"))[0])


def test_sets_maps_and_counters_are_stepped_over() -> None:
    [table] = nft.parse(
        "table ip t { # handle 1\n\tset bad { # handle 2\n\t\ttype ipv4_addr\n\t\telements = { 1.2.3.4,\n"
        '\t\t\t     5.6.7.8 comment "}" }\n\t}\n\tcounter x {\n\t\tpackets 0 bytes 0\n\t}\n'
        "\tchain c { # handle 3\n\t\ttype filter hook input priority -1; policy drop;\n\t}\n}\n"
    )
    assert [chain.name for chain in table.chains] == ["c"]
    assert holds_back(table)


def test_our_own_table_is_not_judged() -> None:
    assert not nft.parse(
        "table inet meshray { # handle 1\n\tchain c {\n\t\ttype filter hook input priority -5; policy drop;\n\t}\n}"
    )


def test_ufw_with_its_defaults() -> None:
    table = iptables.parse((DATA / "ufw.txt").read_text())
    assert [(chain.name, direction) for chain, direction in rules.missing(table, HUB)] == [
        ("INPUT", Direction.IN),
        ("FORWARD", Direction.THROUGH),
    ]
    assert not rules.port_is_dropped(table, "tcp", 22, "eth0")
    assert rules.port_is_dropped(table, "tcp", 51888, "eth0")
    assert not rules.port_is_dropped(table, "tcp", 51888, "lo")


def test_firewalld_with_its_defaults() -> None:
    [closed] = nft.parse((DATA / "firewalld.txt").read_text())
    assert {chain.name for chain, _ in rules.missing(closed, HUB)} == {"filter_INPUT", "filter_FORWARD"}
    assert not rules.port_is_dropped(closed, "tcp", 22, "eth0")
    assert rules.port_is_dropped(closed, "udp", 51888, "eth0")
    [trusted] = nft.parse((DATA / "firewalld-trusted.txt").read_text())
    assert not rules.missing(trusted, HUB)


@pytest.mark.parametrize(
    ("rule", "closed"),
    [
        ("-j DROP", True),
        ("-j REJECT --reject-with icmp-port-unreachable", True),
        ("! -i eth0 -j DROP", True),
        ("-i mesh+ -j DROP", True),
        ("-p tcp -m tcp --dport 6000:7000 -j DROP", True),
        ("-p tcp -m multiport --dports 22,6379 -j DROP", True),
        ('-m conntrack --ctstate NEW -m comment --comment "a user\'s -j ACCEPT" -j DROP', True),
        ("-m iprange --src-range 10.99.0.1-10.99.0.9 -j DROP", True),
        ("-g closed", True),
        ("-i eth0 -j DROP", False),
        ("-m conntrack --ctstate INVALID -j DROP", False),
        ("-m set --match-set bad src -j DROP", False),
        ("-m addrtype --dst-type BROADCAST -j DROP", False),
        ("-p tcp -m tcp --tcp-flags FIN,SYN FIN,SYN -j DROP", False),
        ("-m limit --limit 3/min -j LOG --log-prefix DROP", False),
        ("-j MARK --set-xmark 0x1/0x1", False),
    ],
)
def test_iptables_rules(rule: str, closed: bool) -> None:
    table = iptables.parse(
        f"*filter\n:INPUT ACCEPT [1:2]\n:closed - [0:0]\n-A INPUT {rule}\n-A closed -j DROP\nCOMMIT\n"
    )
    assert holds_back(table) is closed


@pytest.mark.parametrize("opening", [NODE, HUB])
@given(st.data())
def test_our_rule_on_top_always_helps(opening: Opening, data: st.DataObject) -> None:
    """What an insertion is for: whatever the chain says, the overlay passes afterwards."""
    lines = st.sampled_from(
        ["drop", "accept", "jump w", "ct state new drop", "tcp dport 6379 drop", "meta mark 1 drop"]
    )
    body = data.draw(st.lists(lines, max_size=5))
    hook, direction = data.draw(
        st.sampled_from([("input", Direction.IN), ("output", Direction.OUT), ("forward", Direction.THROUGH)])
    )
    more = "\tchain w { # handle 9\n\t\tdrop # handle 10\n\t}\n"
    table = chain_of("\n".join([*nft.accept_rules(direction, opening), *body]), policy="drop", hook=hook, more=more)
    assert not holds_back(table, opening)
    assert [rule.comment for _, rule in table.marked(opening.mark)] == [direction.comment(opening)]


@given(st.text())
def test_any_text_is_survived(text: str) -> None:
    nft.parse(f"table inet t {{\n\tchain c {{\n{text} # handle 3\n")
    nft.parse(text)
    nft.parse_rule(text)
    iptables.parse(f":INPUT DROP [0:0]\n-A INPUT {text}\n:{text}\n-A {text}")


LISTINGS = [path.read_text() for path in sorted(DATA.iterdir())]
WORDS = st.sampled_from(
    [
        "{",
        "}",
        '"',
        "'",
        "\\",
        "!",
        "-j",
        "-A ",
        ":",
        "*filter",
        "COMMIT",
        "table inet t {",
        "chain c {",
        "# handle 9",
        "vmap",
        ", :",
        "jump",
        "goto",
        "\n",
        "\r",
        "\x0c",
        "\u2028",
        "ip saddr",
        "-s",
        "--comment",
        "0-",
        "1-x",
        "٣",
    ]
)


@given(st.sampled_from(LISTINGS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 30), WORDS), max_size=5))
def test_a_listing_that_was_changed_is_survived_and_judged(listing: str, changes: list[tuple[float, int, str]]) -> None:
    for share, length, word in changes:
        place = int(share * len(listing))
        listing = listing[:place] + word + listing[place + length :]
    for table in (*nft.parse(listing), iptables.parse(listing)):
        holds_back(table, HUB)
        for chain in table.chains:
            for rule in chain.rules:
                # The removal of any rule can be written.
                assert nft.delete_command(table, chain, rule)
                assert iptables.delete_arguments(rule) or table.family != "iptables"
    nft.own_table_comments(listing)


@pytest.mark.parametrize(
    ("condition", "answer"),
    [
        (Condition("dport", ("ssh",)), None),
        (Condition("dport", ("1-x",)), None),
        (Condition("dport", ("@ports", "6379")), True),
        (Condition("saddr", ("@friends",)), None),
        (Condition("saddr", ("fe80::/10",)), False),
        (Condition("saddr", ("@friends",), negated=True), None),
        (Condition("protocol", ("6",)), True),
        (Condition("protocol", ("@p",)), None),
        (Condition("iif", ("$wan",)), None),
        (Condition("packettype", ("host",)), True),
        (Condition("mark", ("1",)), None),
    ],
)
def test_conditions(condition: Condition, answer: bool | None) -> None:
    assert holds(condition, Packet("meshray0", source=IPv4Address("10.99.0.2"), port=6379)) is answer


def test_the_ports_that_were_chosen_for_ray_count_and_no_others() -> None:
    chosen = replace(NODE, ray=RayPorts.of({"gcs": 6380, "metrics_export": 8500}))
    for port in (6380, 8500):
        drop = chain_of(f"tcp dport {port} drop", hook="output")
        assert holds_back(drop, chosen)
        assert not holds_back(drop)
    assert not holds_back(chain_of("tcp dport 6379 drop", hook="output"), chosen)


def test_members_reach_the_metrics_of_a_node_without_ray() -> None:
    (tcp,) = (rule for rule in own_rules.admitted(NODE, ()) if rule.protocol == "tcp" and rule.ports)
    (udp,) = (rule for rule in own_rules.admitted(NODE, ()) if rule.protocol == "udp")
    assert tcp.ports == ((METRICS_PORT, METRICS_PORT), (PROBE_PORT, PROBE_PORT))
    assert udp.ports == ((PROBE_PORT, PROBE_PORT),)
