"""The first contact of a join: an address that is silent is asked longer, because its machine may be busy.

Thirty machines that join at once keep a coordinator with one core busy for longer than a timeout that suits an agent,
which retries anyway. An address that refuses, or has no route, fails at once.

>>> await race_patiently(endpoints, hello, lambda words: progress.stage("enrol", "run", words))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from meshray.client.dialer import CONNECT_TIMEOUT_S, TimedOutError, race
from meshray.model.address import Endpoint

#: The timeouts of the attempts, seconds. The first is short, so that the user soon learns of a wrong address. Others
#: are longer, because a busy machine has to begin again with each attempt.
TIMEOUTS_S = (CONNECT_TIMEOUT_S, 10.0, 15.0)

T = TypeVar("T")


async def race_patiently(
    endpoints: Sequence[Endpoint], attempt: Callable[[Endpoint], Awaitable[T]], on_wait: Callable[[str], None]
) -> T:
    """Return the result of the first successful attempt, as `race` does, after several rounds if need be.

    Args:
        on_wait: called after each round in which an address was silent, with the state in a few words.

    Raises:
        TimedOutError: at least one address was silent for all of `TIMEOUTS_S`.
        MeshrayError: as `race` does.
    """
    waited_s = 0.0
    for timeout_s in TIMEOUTS_S[:-1]:
        try:
            return await race(endpoints, attempt, timeout_s=timeout_s, waited_s=waited_s)
        except TimedOutError as error:
            waited_s += timeout_s
            on_wait(f"{error.message}; retrying for {sum(TIMEOUTS_S) - waited_s:.0f} s")
    return await race(endpoints, attempt, timeout_s=TIMEOUTS_S[-1], waited_s=waited_s)
