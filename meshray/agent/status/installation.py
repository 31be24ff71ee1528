"""Whether others than root can change the meshray that runs here as root: found out once, for the doctor's check."""

from __future__ import annotations

import asyncio

from meshray.runtime.privileged.boundary import weak_part_here

#: Ray's start is over by then.
LOOK_AFTER_S = 60.0


async def look_at_installation(after: asyncio.Event, *, trusted: bool) -> None:
    """Examine the installation when this has happened and the node has had time to start.

    It takes half a second of the processor. The command that started the agent has examined it, and the doctor does
    when it is asked.

    Args:
        trusted: the user allowed it (`--trust-user-environment`), which status shows at once.
    """
    await after.wait()
    if not trusted:
        await asyncio.sleep(LOOK_AFTER_S)
    await asyncio.to_thread(weak_part_here)
