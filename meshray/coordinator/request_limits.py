"""Limits for concurrent requests: separate ones without a credential, of members, and of the admin.

Requests without a known credential compete with one another, and never with a member's. No other requests use the
admin's share, so that the admin can act while the coordinator is flooded.

>>> limits = RequestLimits(most=512)
>>> with limits.taking(""):                 # RequestLimits.taking raises MeshrayError busy where there are too many
...     ...
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from meshray.errors import MeshrayError

#: The concurrent requests of one member. Its agent and its user's commands need a handful.
MAX_OF_MEMBER = 32
#: The concurrent requests of the admin, who runs many commands at once in scripts.
MAX_OF_ADMIN = 128


class RequestLimits:
    """The counters of the requests in progress.

    Args:
        most: the limit for all without a known credential, and for all members but the admin.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._unauthenticated = 0
        self._members = 0
        self._of: Counter[str] = Counter()

    @contextlib.contextmanager
    def taking(self, node_id: str, *, is_admin: bool = False) -> Iterator[None]:
        """Count one request while it is in progress.

        Args:
            node_id: the member whose credential it has; empty: no member's.

        Raises:
            MeshrayError: ``busy``.
        """
        if not node_id:
            _require(self._unauthenticated < self.most, "the coordinator is overloaded")
            self._unauthenticated += 1
            try:
                yield
            finally:
                self._unauthenticated -= 1
            return
        most = MAX_OF_ADMIN if is_admin else MAX_OF_MEMBER
        _require(self._of[node_id] < most, f"this node has {most} requests in progress")
        _require(is_admin or self._members < self.most, "the coordinator is overloaded")
        self._of[node_id] += 1
        self._members += not is_admin
        try:
            yield
        finally:
            self._members -= not is_admin
            self._of[node_id] -= 1
            if not self._of[node_id]:
                del self._of[node_id]


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise MeshrayError("busy", message, hint="try again in a minute")
