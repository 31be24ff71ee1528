"""A node with root, directly on this machine, as a service (`meshray.runtime.agent_service`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `meshray status` does not wait for protocols
    from meshray.home import Home
    from meshray.runtime.base import Answer, Command, Console


class Host:
    """See `meshray.runtime.base.AgentRuntime`."""

    has_own_network = False

    def __init__(self, home: Home, environ: Mapping[str, str]) -> None:
        self._home = home
        self._environ = environ

    def container(self) -> None:
        """There is none."""

    def up(self, command: Command, console: Console) -> Answer:
        """See `Runtime.up`."""
        return command.run()

    def down(self, command: Command, console: Console) -> Answer:
        """See `Runtime.down`."""
        return command.run()

    def leave(self, command: Command, console: Console, *, yes: bool) -> Answer:
        """See `Runtime.leave`."""
        return command.run()

    def preflight(self, console: Console) -> str:
        """Return ``kernel WireGuard`` or the engine's name."""
        from meshray.runtime.preflight import check_wireguard

        return check_wireguard(self._environ)

    def enter(self, listen_port: int) -> None:
        """Do nothing: the agent runs in the machine's own namespaces."""

    @contextmanager
    def entered(self, listen_port: int) -> Iterator[None]:
        """Enter, as `enter` does."""
        self.enter(listen_port)
        yield

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command itself."""
        return list(command)

    async def lost(self) -> None:
        """Wait forever."""
        import asyncio

        await asyncio.Event().wait()
