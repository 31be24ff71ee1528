"""Notices from one agent to another, which change nothing that is stored and may be lost.

>>> notices.punch("n2", ["n3"])
"""

from __future__ import annotations

from collections.abc import Iterable

from meshray.coordinator.budgets import Budgets
from meshray.coordinator.publisher import Publisher
from meshray.protocol.connection import Left, Punch


class Notices:
    """The notices of one mesh, limited by the budget of the sending node."""

    def __init__(self, publisher: Publisher, budgets: Budgets) -> None:
        self._publisher = publisher
        self._budgets = budgets

    def punch(self, node_id: str, others: Iterable[str]) -> None:
        """Let the node and each of the others try the direct path at the same moment."""
        for other in dict.fromkeys(others):
            both_connected = self._publisher.is_connected(node_id) and self._publisher.is_connected(other)
            if both_connected and other != node_id and self._budgets.may_notify(node_id):
                self._publisher.notify(node_id, Punch(other), is_notice=True)
                self._publisher.notify(other, Punch(node_id), is_notice=True)

    def left_direct(self, node_id: str, other: str) -> None:
        """Inform the other node that this node went back from the direct path to the hub."""
        if self._publisher.is_connected(other) and self._budgets.may_notify(node_id):
            self._publisher.notify(other, Left(node_id), is_notice=True)
