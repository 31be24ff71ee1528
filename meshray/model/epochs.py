"""The secrets that all members share, by epoch, and which epoch a pair of nodes uses (pure).

A new epoch starts when a node is removed. Each node reports the newest epoch that it holds, the map carries that
number, and both ends of a pair compute the same from the same map: the lower of the two.

    a holds 1, 2 ─┐
                  ├─ a-b: epoch 2     a-c: epoch 1 until c has received epoch 2 and reported it
    b holds 1, 2 ─┘
    c holds 1

>>> pair_epoch(2, 1, {1, 2})
1
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from meshray.model.keys import MeshSecret
from meshray.protocol.codec import WireError
from meshray.protocol.connection import Secrets
from meshray.protocol.fields import FIRST_EPOCH, MAX_EPOCH

_NUMBER = re.compile("[1-9][0-9]{0,9}")


@dataclass(frozen=True)
class SharedSecrets:
    """The secrets that one member should hold.

    Attributes:
        mesh: mesh secrets by epoch; the newest is the epoch that the node reports.
        ray: Ray's tokens by epoch: the token of the head's running Ray, and the one for its next start.
        oldest: pairs of nodes with an agent use no older epoch than this.
    """

    mesh: Mapping[int, MeshSecret] = field(repr=False)
    ray: Mapping[int, str] = field(repr=False)
    oldest: int = FIRST_EPOCH

    def __post_init__(self) -> None:
        if not self.mesh or self.newest not in self.ray:
            raise WireError("secrets: the newest epoch is missing")

    @property
    def newest(self) -> int:
        """The newest epoch."""
        return max(self.mesh)

    def message(self) -> Secrets:
        """Return the message that carries them; it is never logged."""
        return Secrets(
            self.oldest,
            {str(epoch): secret.reveal() for epoch, secret in self.mesh.items()},
            {str(epoch): token for epoch, token in self.ray.items()},
        )

    @classmethod
    def of(cls, message: Secrets) -> SharedSecrets:
        """Return the secrets in a message. Raises UsageError or WireError."""
        mesh = {epoch: MeshSecret.parse(text) for epoch, text in by_epoch(message.mesh).items()}
        return cls(mesh, by_epoch(message.ray), message.oldest)


def by_epoch(texts: Mapping[str, str]) -> dict[int, str]:
    """Return the texts of a JSON object by the epoch in each key. Raises WireError."""
    for number in texts:
        if not _NUMBER.fullmatch(number) or int(number) > MAX_EPOCH:
            raise WireError("must be secrets by epoch")
    return {int(number): text for number, text in texts.items()}


def pair_epoch(one: int, other: int, held: Collection[int]) -> int:
    """Return the epoch of a pair.

    Args:
        one, other: the newest epochs that the two nodes hold, as the map shows them.
        held: the epochs that the computing node holds, at least one. If the lower of the two is not among them, it was
            dropped, and the other node is about to report a newer one.
    """
    lower = min(one, other)
    return max((epoch for epoch in held if epoch <= lower), default=min(held))
