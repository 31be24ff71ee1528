"""What the holder of a session of the coordinator's page may do."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

_Word = Literal["read", "use", "admin"]
_WORDS: tuple[_Word, ...] = ("read", "use", "admin")


class Level(IntEnum):
    """The permission of a pass or a session; each level includes the lower ones.

    >>> Level.of("use") > Level.READ
    True
    """

    #: Every page, and GET and HEAD of the proxied programs.
    READ = 1
    #: Every method and WebSockets of the proxied programs, and connections to TCP ports of nodes.
    USE = 2
    #: Tokens, passes, removals of nodes, and orders to nodes except upgrades.
    ADMIN = 3

    @property
    def word(self) -> _Word:
        """The name in the API and on pages."""
        return _WORDS[self - 1]

    @classmethod
    def of(cls, word: _Word) -> Level:
        """Return the level of this name."""
        return cls(_WORDS.index(word) + 1)
