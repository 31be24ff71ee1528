"""Find out once, for the doctor's check, whether users other than root can change meshray."""

from __future__ import annotations

import asyncio

from meshray.runtime.privileged.boundary import untrusted_part

#: Ray's start is over by then.
CHECK_AFTER_S = 60.0


async def check_installation(after: asyncio.Event, *, trusted: bool) -> None:
    """Examine the installation after this event, when the node has had time to start.

    It takes half a second of CPU time. The command that started the agent has examined it, and so does the doctor.

    Args:
        trusted: the user allowed it (`--trust-user-environment`), which status shows immediately.
    """
    await after.wait()
    if not trusted:
        await asyncio.sleep(CHECK_AFTER_S)
    await asyncio.to_thread(untrusted_part)
