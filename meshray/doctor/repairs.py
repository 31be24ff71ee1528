"""The repairs that meshray can make on the machine on which it runs, as data. A finding names one by its key.

>>> REPAIRS["firewall"].what
'put the firewall rules of meshray in place again'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from meshray.doctor.report import FAIL, WARN
from meshray.protocol.doctor import Check

#: What carries out a repair: the agent, on request, or the command line, where an agent may be missing.
AGENT = "agent"
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Repair:
    """A repair that is safe, because it concerns only what meshray created.

    Attributes:
        what: what it does, as in the question to the user.
        by: `AGENT` or `COMMAND_LINE`.
        interrupts: what is interrupted meanwhile; empty: nothing.
    """

    what: str
    by: str
    interrupts: str = ""


REPAIRS: Mapping[str, Repair] = {
    "agent": Repair("start the agent (one that does not answer is ended first)", COMMAND_LINE),
    "map": Repair("put the damaged map aside, so that it is fetched again, and start the agent", COMMAND_LINE),
    "device": Repair("create the overlay's interface again", AGENT, "the overlay, for a few seconds"),
    "routes": Repair("put the overlay's routes in place again", AGENT),
    "firewall": Repair("put the firewall rules of meshray in place again", AGENT),
    "ray": Repair("start this node's Ray again", AGENT, "what Ray runs on this node"),
}


def planned(checks: Iterable[Check], node: str) -> Sequence[str]:
    """Return the keys of the repairs that these checks request, the cause's first.

    Args:
        node: this machine's name; other machines are not repaired from here.
    """
    keys = [
        check.repair
        for check in checks
        if check.repair and check.status in (FAIL, WARN) and (check.node or node) == node
    ]
    return [key for key in dict.fromkeys(keys) if key in REPAIRS]
