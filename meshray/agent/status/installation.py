"""Whether others than root can change the meshray that runs here as root, for status."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

from meshray.model.problem import Problem
from meshray.runtime.privileged.boundary import weak_part_here

#: Ray's start is over by then.
LOOK_AFTER_S = 60.0


class Installation:
    """What was found when the agent started.

    Args:
        trusted: the user said that it may be so (`--trust-user-environment`).
    """

    def __init__(self, trusted: bool) -> None:
        self._trusted = trusted
        self._weak = ""

    async def look(self, after: asyncio.Event) -> None:
        """Looks once, when this has happened and the node has had time to start: it takes half a second of the
        processor. The command that started the agent has looked, and the doctor looks when it is asked; what the user
        allowed is shown at once."""
        await after.wait()
        if not self._trusted:
            await asyncio.sleep(LOOK_AFTER_S)
        self._weak = await asyncio.to_thread(weak_part_here)

    def notices(self) -> tuple[str, ...]:
        """What the user chose."""
        if not self._weak or not self._trusted:
            return ()
        return (
            f"meshray runs as root from {sys.prefix}, and others than root can change {self._weak}, as you allowed",
        )

    def complaints(self) -> Iterator[Problem]:
        """What nobody chose."""
        if self._weak and not self._trusted:
            yield Problem(
                "install_trusted",
                f"meshray runs as root from {sys.prefix}, and others than root can change {self._weak}",
                fix="meshray down; meshray up",
            )
