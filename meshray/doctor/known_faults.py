"""The faults that status and the parts of a node already know, as checks (pure).

    one_identity ─► the coordinator, the paths, Ray    two machines use one node's identity
    node_identity                                      a node's entry in the map is not signed
    hub_forwards ─► one_way … peer_answers             a hub does not forward between nodes
    reported                                           problems that no other check covers

`add_reported` adds a part's failure to the check of the same code, if that check itself found nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshray.doctor.facts import Facts
from meshray.doctor.path.facts import PeerFacts
from meshray.doctor.path.pair_facts import nodes_with_paths, pairs
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec, fix_on
from meshray.model.node import HUB_FORWARDS, NODE_IDENTITY, ONE_IDENTITY
from meshray.model.path import PathKind
from meshray.model.problem import Problem

#: It is reported for some minutes after a restore, although nothing is broken any longer.
_RESTORED = "coordinator_restored"
#: The checks of these codes examine more than the parts that report them.
_MORE_THOROUGH = frozenset({"ray_running"})


def problems_with(facts: Facts, code: str) -> dict[str, Problem]:
    """Return what any node reports under this code, by the node that it concerns."""
    found = {
        problem.node or "": problem for problem in (facts.status.health if facts.status else ()) if problem.code == code
    }
    for name, node in facts.nodes.items():
        found.update({problem.node or name: problem for problem in node.complaints if problem.code == code})
    return found


def add_reported(code: str, found: list[Finding], facts: Facts) -> list[Finding]:
    """Return the check's findings, and the failures that a node's parts report under its code.

    Such a failure counts only if the check itself has no finding about that node.
    """
    if code in _MORE_THOROUGH:
        return found
    for name, node in facts.nodes.items():
        problem = next((one for one in node.complaints if one.code == code), None)
        if problem is None or any(name in finding.concerns and finding.status in (FAIL, WARN) for finding in found):
            continue
        found = [finding for finding in found if finding.concerns != {name}]
        found.append(Finding(FAIL, problem.text, fix_on(name, problem.fix, facts.here), name))
    return found


def _one_identity(facts: Facts) -> Iterable[Finding]:
    shared = problems_with(facts, ONE_IDENTITY)
    for name, problem in shared.items():
        yield Finding(FAIL, problem.text, problem.fix, name)
    for name in facts.nodes:
        if name not in shared:
            yield Finding(OK, "one machine uses it", node=name)


def _node_identity(facts: Facts) -> Iterable[Finding]:
    refused = problems_with(facts, NODE_IDENTITY)
    for name, problem in refused.items():
        yield Finding(FAIL, problem.text, problem.fix, name)
    unsigned: dict[str, list[str]] = {}
    for observer, node in facts.nodes.items():
        for name in node.control.unsigned if node.control is not None else ():
            unsigned.setdefault(name, []).append(observer)
    for name in unsigned:
        if name not in refused:
            fix = f"on {name}: pip install -U meshray, then meshray down; meshray up"
            yield Finding(WARN, "no identity signs its key: its meshray is of an earlier release", fix, name)
    for name in facts.nodes:
        if name not in refused and name not in unsigned:
            yield Finding(OK, "its identity signs its key", node=name)


def _hub_forwards(facts: Facts) -> Iterable[Finding]:
    known = problems_with(facts, HUB_FORWARDS)
    for name, problem in known.items():
        own = facts.nodes[name].complaints if name in facts.nodes else ()
        fix = fix_on(name, problem.fix, facts.here) if problem in own else problem.fix
        yield Finding(FAIL, problem.text, fix, name, repair="firewall" if problem in own else "")
    for name, path in nodes_with_paths(facts):
        if path.is_hub and name not in known:
            yield from _of_hub(facts, name)


def _of_hub(facts: Facts, hub: str) -> Iterator[Finding]:
    host = facts.nodes[hub].host
    firewall = host.firewall if host is not None else None
    if firewall is not None and firewall.forwarding == "0":
        fix = fix_on(hub, f"sysctl -w net.ipv4.conf.{firewall.interface}.forwarding=1", facts.here)
        text = f"forwarding on {firewall.interface} is off: nothing passes from node to node"
        yield Finding(FAIL, text, fix, hub, repair="firewall")
        return
    passing, lost = _through(facts, hub)
    if lost and not passing:
        pair_names = ", ".join(f"{name} and {peer}" for name, peer in lost[:3])
        text = f"nothing passes between {pair_names} through {hub}, although each of them reaches {hub}"
        fix = "nft list ruleset; tc filter show dev meshray0: what drops packets from the overlay to the overlay?"
        yield Finding(FAIL, text, fix_on(hub, fix, facts.here), hub)
    elif passing:
        yield Finding(OK, f"{passing} pairs pass through it", node=hub)
    elif firewall is None:
        yield Finding(SKIP, "it was not determined in time", node=hub)
    else:
        yield Finding(OK, "the switch is on, and no pair needs it now", node=hub)


def _through(facts: Facts, hub: str) -> tuple[int, list[tuple[str, str]]]:
    """Return the number of ordered pairs through the hub, and those that fail although both nodes reach it."""
    silent: set[tuple[str, str]] = set()
    passing = 0
    for name, peer, observed in pairs(facts):
        if observed.kind != PathKind.HUB or not observed.sent or hub in (name, peer):
            continue
        if not _leads_through(facts, name, hub, observed):
            continue
        if observed.answers:
            passing += 1
        elif not observed.received_probe and _reaches(facts, name, hub) and _reaches(facts, peer, hub):
            silent.add((name, peer))
    return passing, sorted(pair for pair in silent if pair[::-1] in silent and pair[0] < pair[1])


def _leads_through(facts: Facts, name: str, hub: str, observed: PeerFacts) -> bool:
    """Return whether these packets are sent to this hub."""
    peer_facts = _facts_of_peer(facts, name, hub)
    return peer_facts is not None and peer_facts.endpoint == observed.endpoint


def _reaches(facts: Facts, name: str, hub: str) -> bool:
    peer_facts = _facts_of_peer(facts, name, hub)
    return peer_facts is not None and peer_facts.received > 0


def _facts_of_peer(facts: Facts, name: str, hub: str) -> PeerFacts | None:
    path = facts.nodes[name].path if name in facts.nodes else None
    return path.peers.get(hub) if path is not None else None


def reported(covered: Iterable[str]) -> Spec:
    """Return the check of faults under codes that no other check has.

    Args:
        covered: the codes of all other checks.
    """
    others = frozenset(covered)

    def run(facts: Facts) -> Iterable[Finding]:
        for name, node in facts.nodes.items():
            for problem in node.complaints:
                if problem.code not in others:
                    status = WARN if problem.code == _RESTORED else FAIL
                    yield Finding(status, problem.text, fix_on(name, problem.fix, facts.here), name)

    return Spec("reported", "other problems", ("agent_running",), run)


IDENTITY = Spec("one_identity", "the node's identity, used by one machine", ("agent_running",), _one_identity)
NODES = Spec(NODE_IDENTITY, "the nodes' signed identities", ("agent_running",), _node_identity)
FORWARDS = Spec(
    HUB_FORWARDS,
    "forwarding on the hub",
    ("agent_running", "device_up", "overlay_admitted", "guard"),
    _hub_forwards,
)
