"""A node without root, in namespaces of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from meshray.errors import MeshrayError
from meshray.runtime.host import Host

if TYPE_CHECKING:
    from meshray.runtime.base import Console


class Rootless(Host):
    """See `meshray.runtime.base.AgentRuntime`."""

    has_own_network = True

    def preflight(self, console: Console) -> str:
        """Return the engine's name, and how Ray reaches the internet.

        Raises:
            MeshrayError: ``no_namespaces``, ``no_tun`` or ``no_engine``: what is missing, and whom to ask.
        """
        from meshray.runtime.rootless.internet import PASTA, find_helper
        from meshray.runtime.rootless.permission_probe import require_namespaces
        from meshray.wireguard.engines import OWN, find_engine, install_command

        engine = find_engine(self._environ)
        require_namespaces(console.sudo_line())
        helper = find_helper(self._environ)
        if not engine.is_own:
            if helper is None or helper.name != PASTA:
                raise MeshrayError(
                    "no_engine",
                    f"without root {engine.name} needs {PASTA}, which carries its packets out, and that is not "
                    "installed",
                    hint=f"apt-get install passt, or install {OWN}, which needs none: {install_command()}",
                )
            console.warn(
                f"{engine.name} runs inside {PASTA}, which costs throughput; {OWN}, which needs none, is not "
                f"installed: {install_command()}"
            )
        if helper is None:
            console.warn(
                "Ray will have no way to the internet: neither pasta (package passt) nor slirp4netns is installed"
            )
        internet = f", internet through {helper.name}" if helper is not None else ""
        return f"{engine.name}, without root{internet}"

    def enter(self, listen_port: int) -> None:
        """Enter the namespaces, once.

        Raises:
            MeshrayError: ``no_namespace`` or ``no_wireguard``.
        """
        from meshray.linux.files import PASSABLE_FOLDER, make_folder
        from meshray.runtime.rootless.namespace import enter_once
        from meshray.wireguard.engines import udp_port_inside

        make_folder(self._home.run, PASSABLE_FOLDER)
        enter_once(self._home, udp_port_inside(listen_port, self._environ))

    @contextmanager
    def entered(self, listen_port: int) -> Iterator[None]:
        """End the namespaces when the node was taken down, but not when its agent failed: the next agent uses them."""
        from meshray.client.coordinator import RemovedFromMesh
        from meshray.runtime.rootless.namespace import Namespace

        self.enter(listen_port)
        try:
            yield
        except RemovedFromMesh:
            Namespace.end(self._home)
            raise
        Namespace.end(self._home)

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command that enters the namespaces first, if they exist."""
        from meshray.runtime.rootless.namespace import enter_command, read_record

        found = read_record(self._home)
        return list(command) if found is None else enter_command(found.first, list(command))

    async def lost(self) -> None:
        """Wait for the end of the process that holds the namespaces. Raises MeshrayError ``namespace_lost``."""
        from meshray.linux.process import ManagedProcess

        await ManagedProcess(self._home.pid_file("namespace")).wait()
        raise MeshrayError(
            "namespace_lost", "the process that holds this node's namespaces has ended", hint="meshray up"
        )
