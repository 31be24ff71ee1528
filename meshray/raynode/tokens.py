"""Ray's token, which changes with the head's next start, on all nodes at once.

Each start of the head's Ray has an instance id, which the map carries. The id contains the epoch of the token of that
start, so every node uses that token while that Ray runs.

>>> epoch_of(new_instance(3))
3
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from meshray.protocol.fields import FIRST_EPOCH, MAX_EPOCH

_EPOCH = re.compile("-([1-9][0-9]{0,9})")


def new_instance(epoch: int) -> str:
    """Return an id for a start of the head's Ray with the token of this epoch."""
    # Ids of the first epoch have the form that every version of meshray knows.
    return secrets.token_hex(8) + (f"-{epoch}" if epoch != FIRST_EPOCH else "")


def instance_of(node_id: str, epoch: int) -> str:
    """Return the id of a start of the head's Ray that another program made, from Ray's own id of the head's node."""
    return node_id[:16].ljust(16, "0") + (f"-{epoch}" if epoch != FIRST_EPOCH else "")


def epoch_of(instance: str) -> int:
    """Return the epoch of the token of this instance."""
    found = _EPOCH.fullmatch(instance[16:])
    return int(found[1]) if found is not None and int(found[1]) <= MAX_EPOCH else FIRST_EPOCH


class RayTokens:
    """The tokens of a node, by epoch."""

    def __init__(self, tokens: Mapping[int, str]) -> None:
        self._tokens = dict(tokens)

    def __repr__(self) -> str:
        return f"RayTokens({sorted(self._tokens)})"

    def replace(self, tokens: Mapping[int, str]) -> None:
        """Replace all tokens."""
        self._tokens = dict(tokens)

    @property
    def newest(self) -> int:
        """The epoch of the token for the next start of the head's Ray."""
        return max(self._tokens)

    def of_epoch(self, epoch: int) -> str | None:
        """Return the token of this epoch, or None if it was not received yet."""
        return self._tokens.get(epoch)

    def epoch_with(self, token: str) -> tuple[int, str] | None:
        """Return the epoch that has this token, with the token; None if none has it."""
        return next(((epoch, held) for epoch, held in self._tokens.items() if held == token), None)

    def of(self, instance: str) -> str | None:
        """Return the token of this instance, the newest if the instance is empty, or None if it was not received
        yet."""
        return self._tokens.get(epoch_of(instance) if instance else self.newest)
