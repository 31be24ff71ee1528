"""The check of the clocks: which one is wrong, from the differences of all nodes to the coordinator's clock (pure).

A difference alone does not show which of the two clocks is wrong. If several nodes differ by the same amount, the
coordinator's is; so it is if a time service keeps the node's clock and none keeps the coordinator's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

from meshray.doctor.facts import Facts
from meshray.doctor.hypotheses import Hypothesis, given, weigh
from meshray.doctor.machine.facts import MachineFacts
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec, fix_on
from meshray.wireguard.config import REJECT_AFTER_S

#: Half a second of it comes from the coordinator's answer, which has whole seconds.
CLOCK_WARN_S = 2.0
#: If a clock is set back further, no key remains valid, and a handshake whose time is not newer than the last one's is
#: rejected (WireGuard's whitepaper, section 5.1).
CLOCK_FAIL_S = REJECT_AFTER_S
_SET = "timedatectl set-ntp true (or: chronyc makestep)"


def _clock(facts: Facts) -> Iterable[Finding]:
    here = facts.here
    clocks = {
        name: node.host.machine
        for name, node in facts.nodes.items()
        if node.host is not None and node.host.machine is not None
    }
    offsets = {name: one.clock_offset_s for name, one in clocks.items() if one.clock_offset_s is not None}
    reference = next((name for name, one in clocks.items() if one.clock_is_reference), "")
    if reference and _all_differ_alike(offsets):
        yield _of_reference(clocks, offsets, reference, here)
        return
    for name in facts.nodes:
        if name not in clocks:
            yield Finding(SKIP, "it was not determined in time", node=name)
        elif name not in offsets:
            why = clocks[name].clock_unknown or "the coordinator's time is not known"
            yield Finding(SKIP, why, node=name)
        elif abs(offsets[name]) <= CLOCK_WARN_S:
            yield Finding(OK, f"within {CLOCK_WARN_S:.0f} s of the coordinator's", node=name)
        else:
            yield _of_node(clocks, offsets, name, reference, here)


def _all_differ_alike(offsets: Mapping[str, float]) -> bool:
    """Return whether at least two nodes differ from the coordinator's clock, and not from each other."""
    return (
        len(offsets) > 1
        and all(abs(offset) > CLOCK_WARN_S for offset in offsets.values())
        and all(abs(one - other) <= CLOCK_WARN_S for one, other in combinations(offsets.values(), 2))
    )


def _of_reference(
    clocks: Mapping[str, MachineFacts], offsets: Mapping[str, float], reference: str, here: str
) -> Finding:
    """Return the finding about the coordinator's clock, which the clocks of all other nodes contradict."""
    offset = max(offsets.values(), key=abs)
    names = ", ".join(list(offsets)[:3]) + (f" and {len(offsets) - 3} more" if len(offsets) > 3 else "")
    observed = f"{abs(offset):.0f} s {'behind' if offset > 0 else 'ahead of'} the clocks of {names}, which agree"
    return weigh(
        observed,
        (
            Hypothesis(
                "the coordinator's clock is wrong",
                fix_on(reference, _SET, here),
                supported=given(
                    (True, f"{len(offsets)} clocks agree"),
                    (clocks[reference].clock_synchronised is False, "no time service keeps it"),
                ),
            ),
            Hypothesis("those clocks are all wrong", f"on each of them: {_SET}"),
        ),
        node=reference,
        status=_severity(offset),
    )


def _of_node(
    clocks: Mapping[str, MachineFacts], offsets: Mapping[str, float], name: str, reference: str, here: str
) -> Finding:
    """Return the finding about one node's clock, or about the coordinator's if the evidence is against that one."""
    offset = offsets[name]
    agreeing = [other for other, one in offsets.items() if other != name and abs(one) <= CLOCK_WARN_S]
    kept, reference_kept = (clocks[one].clock_synchronised if one in clocks else None for one in (name, reference))
    observed = f"{abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the coordinator's"
    if abs(offset) >= CLOCK_FAIL_S:
        observed += f" ({_consequence(offset)})"
    own = Hypothesis(
        "this node's clock is wrong",
        fix_on(name, _SET, here),
        supported=given(
            (True, "the coordinator's is the mesh's clock"),
            (bool(agreeing), f"{', '.join(agreeing[:3])} agree with the coordinator's"),
            (
                kept is False and bool(reference_kept),
                "a time service keeps the coordinator's clock, none keeps this one",
            ),
        ),
    )
    other = Hypothesis(
        "the coordinator's clock is wrong",
        f"on {reference or 'the head'}: {_SET}",
        supported=given(
            (bool(kept), "a time service keeps this node's clock"),
            (bool(kept) and reference_kept is False, "none keeps the coordinator's"),
        ),
        against=given((bool(agreeing), f"{', '.join(agreeing[:3])} agree with it")),
        node=reference,
    )
    return weigh(
        observed,
        (own, other),
        node=name,
        status=_severity(offset),
        distinguish=f"on {name} and on {reference or 'the head'}: timedatectl shows which clock a time service keeps",
    )


def _severity(offset: float) -> str:
    return FAIL if abs(offset) >= CLOCK_FAIL_S else WARN


def _consequence(offset: float) -> str:
    if offset > 0:
        return (
            "once it is set right, WireGuard's peers refuse this node's handshakes for that long, and certificates and "
            "tokens seem expired here"
        )
    return (
        "certificates are not yet valid here, and if it was set back, WireGuard's peers refuse this node's handshakes "
        "for that long"
    )


SPEC = Spec("clock", "the clock, against the coordinator's", (), _clock)
