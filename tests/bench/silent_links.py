"""Many members without a device: enrolled, online, and never answering, like machines behind strict firewalls.

    TOKEN=meshray1_… python -m tests.bench.silent_links --first 0 --count 300

It prints ``online`` when the connection of each is open. They report endpoints at which nothing listens. They receive
the coordinator's messages and drop them. It ends with SIGTERM or with its host.
"""

from __future__ import annotations

import argparse
import asyncio
import os

from meshray import __version__
from meshray.client.coordinator import Connection, Coordinator
from meshray.linux.tasks import Tasks
from meshray.model.node import Versions
from meshray.model.token import Token
from meshray.protocol.connection import Hello
from tests.bench.crowd import Machine

#: The number of members that enrol at the same time.
AT_ONCE = 8
#: An address of the lab's network that no host has.
NOBODY = "203.0.113.250"


async def enter(number: int, token: Token, free: asyncio.Semaphore) -> Connection:
    """Enrol one member and bring it online."""
    async with free:
        answer = await Machine.named(f"silent-{number}", token).enrol(token)
        link = await Coordinator(token.coordinators, token.fingerprint, answer.credential).open_connection()
        await link.send(Hello(Versions(__version__).form(), endpoints=(f"{NOBODY}:{20000 + number}",)))
        return link


async def follow(link: Connection) -> None:
    """Receive and drop all messages."""
    async for _ in link.socket:
        pass


async def main() -> None:
    """Run the program; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    token, free = Token.parse(os.environ["TOKEN"]), asyncio.Semaphore(AT_ONCE)
    tasks = Tasks()

    async def member(number: int) -> None:
        tasks.start(follow(await enter(number, token, free)), f"member {number}")

    await asyncio.gather(*(member(options.first + number) for number in range(options.count)))
    print("online", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
