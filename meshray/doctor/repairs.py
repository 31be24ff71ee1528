"""What meshray can mend by itself on the machine on which it is asked, as data. A finding names one by its key.

>>> REPAIRS["firewall"].what
'put the firewall rules of meshray in place again'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from meshray.doctor.report import FAIL, WARN
from meshray.protocol.doctor import Check

#: Who carries a repair out: the agent, which is asked, or the command line, where there may be no agent.
AGENT = "agent"
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Repair:
    """One thing that is safe to do, because it concerns only what meshray made.

    Attributes:
        what: is done, as the user is asked.
        by: `AGENT` or `COMMAND_LINE`.
        interrupts: what stands still meanwhile; empty: nothing.
    """

    what: str
    by: str
    interrupts: str = ""


REPAIRS: Mapping[str, Repair] = {
    "agent": Repair("start the agent (one that does not answer is ended first)", COMMAND_LINE),
    "map": Repair("put the damaged map aside, so that it is fetched again, and start the agent", COMMAND_LINE),
    "device": Repair("make the overlay's interface anew", AGENT, "the overlay, for a few seconds"),
    "routes": Repair("put the overlay's routes in place again", AGENT),
    "firewall": Repair("put the firewall rules of meshray in place again", AGENT),
    "ray": Repair("start this node's Ray again", AGENT, "what Ray runs on this node"),
}


def planned(checks: Iterable[Check], node: str) -> Sequence[str]:
    """Return the keys of the repairs that these checks ask for, the cause's first.

    Args:
        node: this machine's name; repairs of other machines are not made from here.
    """
    keys = [
        check.repair
        for check in checks
        if check.repair and check.status in (FAIL, WARN) and (check.node or node) == node
    ]
    return [key for key in dict.fromkeys(keys) if key in REPAIRS]
