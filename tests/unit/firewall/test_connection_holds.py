from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address

from meshray.firewall.connection_holds import ConnectionHolds, hold_script
from meshray.firewall.host_programs import Answer

A, B = IPv4Address("10.99.0.2"), IPv4Address("10.99.0.3")


def test_only_existing_connections_to_silent_nodes_are_held() -> None:
    script = hold_script("meshray0", [B, A])
    assert 'oifname "meshray0" ip daddr { 10.99.0.2, 10.99.0.3 } tcp flags & syn == 0 reject' in script
    assert "icmp type host-unreachable" in script
    assert "policy accept" in script


def test_without_silent_nodes_the_table_is_deleted() -> None:
    assert hold_script("meshray0", []) == "add table ip meshray\ndelete table ip meshray\n"


def test_the_rules_are_written_once_for_each_change() -> None:
    scripts: list[str] = []

    def run(argv: Sequence[str], stdin: str) -> Answer:
        scripts.append(stdin)
        return Answer(0, "", "")

    nodes = ConnectionHolds("meshray0", run=run)
    # Always the first time: an agent that was killed may have left some.
    for silent in ([], [], [A], [A], [A, B], []):
        assert nodes.hold(silent) == ""
    assert scripts == [hold_script("meshray0", silent) for silent in ([], [A], [A, B], [])]


def test_without_nft_the_cause_is_named_and_it_is_tried_again() -> None:
    missing = Answer(127, "", "nft: not found")
    answers = [missing, missing, Answer(0, "", "")]
    nodes = ConnectionHolds("meshray0", run=lambda argv, stdin: answers.pop(0))
    # No node is silent: there is nothing to do, and nothing to report.
    assert nodes.hold([]) == nodes.hold([]) == ""
    assert nodes.hold([A]) == "nft: not found"
    assert nodes.hold([A]) == ""
