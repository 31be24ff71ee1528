"""The interface of every host firewall, and the values that it takes and returns.

A `Backend` is a program that changes tables: nft or one of the iptables. A `Manager` is a program that writes tables
through a backend (firewalld, ufw): it may write them again at any time, so users change them with the manager's own
commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from meshray.firewall.closing import Closed, Ranges
from meshray.firewall.host_programs import Answer
from meshray.firewall.opening import Direction, Opening
from meshray.firewall.ruleset import Chain, Rule, Table
from meshray.model.node import HUB_FORWARDS
from meshray.model.problem import Problem

_EFFECTS = {
    Direction.IN: "lets the overlay in",
    Direction.OUT: "lets the overlay out",
    Direction.THROUGH: "forwards within the overlay",
}
#: The names of fail2ban's tables and chains begin with these.
_FAIL2BAN = ("f2b-", "fail2ban")
_FIX = "meshray doctor"


@dataclass(frozen=True)
class Change:
    """The changes to make in a table.

    Attributes:
        gone: our rules to remove.
        missing: base chains that must let the overlay pass.
        members: the TCP ports that members reach; see `Closed.members`.
    """

    gone: Sequence[tuple[Chain, Rule]]
    missing: Sequence[tuple[Chain, Direction]]
    opening: Opening
    members: Ranges | None


@dataclass
class Outcome:
    """The changes that were made, as log lines, and those that failed."""

    log: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class Backend(Protocol):
    """A program that changes tables."""

    @property
    def name(self) -> str:
        """The program's name."""

    def place(self, table: Table, chain: Chain) -> str:
        """Return the chain as this program names it."""

    def describe(self, rule: Rule) -> str:
        """Return a rule as this program names it, for a sentence."""

    def open(self, host_table: HostTable, change: Change) -> Outcome:
        """Add our accepts to chains that drop the overlay, and remove our outdated rules."""

    def remove(self, host_table: HostTable, rules: Sequence[tuple[Chain, Rule]]) -> Outcome:
        """Remove these rules of ours."""

    def close(self, opening: Opening, closed: Closed) -> tuple[list[str], str]:
        """Close ports to all but the overlay; return what changed, and the reason if it failed."""

    def advise_port(self, table: Table, chain: Chain, protocol: str, port: int) -> list[str]:
        """Return the commands that open a port in this chain, for a user to run."""

    def advise_address(self, table: Table, chain: Chain, address: str, *, inward: bool) -> list[str]:
        """Return the commands that let packets from (or to) one outside address pass this chain, for a user to run."""

    def advise_overlay(
        self, table: Table, chain: Chain, direction: Direction, opening: Opening, members: Ranges | None
    ) -> list[str]:
        """Return the commands that let the overlay pass this chain, for a user to run."""


class Manager:
    """A program that writes tables through a backend. Its default methods let the backend act on the table."""

    @property
    def accepts_all(self) -> bool:
        """Whether the program accepts everything on the interface because meshray asked it to."""
        return False

    def manages(self, table: Table) -> bool:
        """Return whether this program wrote the table."""
        raise NotImplementedError

    def open(self, interface: str, *, dropped: bool) -> list[str]:
        """Let the overlay pass by the program's own means, if it has any; return what changed.

        Args:
            dropped: one of its tables drops packets of the overlay.
        """
        del interface, dropped
        return []

    def close(self, interface: str) -> list[str]:
        """Undo what `open` did; return what changed."""
        del interface
        return []

    def advise_port(self, protocol: str, port: int) -> list[str]:
        """Return the commands that open a port, for a user to run."""
        raise NotImplementedError

    def advise_overlay(self, interface: str) -> list[str]:
        """Return the commands that let the overlay pass, for a user to run; [] if the backend's commands apply."""
        del interface
        return []


@dataclass(frozen=True)
class HostTable:
    """A table, the backend that changes it, and the program that manages it, if any."""

    table: Table
    backend: Backend
    manager: Manager | None = None

    def label(self, chain: Chain) -> str:
        """The table's name in log lines: ``nft inet filter input``, ``iptables-nft DOCKER-USER``."""
        return f"{self.backend.name} {self.backend.place(self.table, chain)}"

    def advise_port(self, chain: Chain, protocol: str, port: int) -> list[str]:
        """Return the commands that open a port in this chain, for a user to run."""
        if self.manager is not None:
            return self.manager.advise_port(protocol, port)
        return self.backend.advise_port(self.table, chain, protocol, port)

    def advise_address(self, chain: Chain, address: str, *, inward: bool) -> list[str]:
        """Return the commands that let packets from (or to) one outside address pass, for a user to run."""
        if self.table.name.startswith(_FAIL2BAN) or chain.name.startswith(_FAIL2BAN):
            return [f"fail2ban-client unban {address}"]
        return self.backend.advise_address(self.table, chain, address, inward=inward)

    def advise_overlay(self, chain: Chain, direction: Direction, opening: Opening, members: Ranges | None) -> list[str]:
        """Return the commands that let the overlay pass this chain, for a user to run."""
        managed = self.manager.advise_overlay(opening.interface) if self.manager is not None else []
        return managed or self.backend.advise_overlay(self.table, chain, direction, opening, members)

    def opened(self, chain: Chain, direction: Direction) -> str:
        """Return the log line for an accept that was added."""
        return f"{self.label(chain)}: {_EFFECTS[direction]}"

    def removed(self, chain: Chain) -> str:
        """Return the log line for a rule that was removed."""
        return f"{self.label(chain)}: rule removed"

    def note_removal(self, outcome: Outcome, chain: Chain, answer: Answer) -> None:
        """Add the result of one rule's removal to the outcome."""
        if answer.ok:
            outcome.log.append(self.removed(chain))
        else:
            outcome.problems.append(self.not_removed(chain, answer.cause))

    def still_drops(self, chain: Chain, direction: Direction, interface: str, cause: str) -> Problem:
        """Return the problem that an accept could not be added.

        firewalld, for example, lets no other program change its rules from version 2.1 on, so a user must choose the
        zone.
        """
        commands = self.manager.advise_overlay(interface) if self.manager is not None else []
        advice = f" ({'; '.join(commands)})" if commands else ""
        code = HUB_FORWARDS if direction is Direction.THROUGH else "overlay_admitted"
        return Problem(code, f"{self.label(chain)} still drops the overlay: {cause}{advice}", fix=_FIX)

    def not_removed(self, chain: Chain, cause: str) -> Problem:
        """Return the problem that a rule could not be removed."""
        return Problem(
            "overlay_admitted", f"a rule of meshray could not be removed from {self.label(chain)}: {cause}", fix=_FIX
        )
