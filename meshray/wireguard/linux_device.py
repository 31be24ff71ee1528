"""The common part of WireGuard in the kernel and in an engine: the interface, its owner, and its removal.

It acts where the overlay is (`meshray.linux.overlay_netns`): on a node without root, a thread in the overlay's network
namespace runs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from threading import Lock

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.wireguard.config import DeviceState, WireGuardState
from meshray.wireguard.link import Link, LinkTable, explained, foreign_interface, links, mark_of
from meshray.wireguard.plan import CreateDevice, InterfaceStep, Step, WireGuardStep
from meshray.wireguard.unmanaged import release


class LinuxDevice(ABC):
    """A `meshray.wireguard.device.Device` on this machine. Its subclasses configure and read WireGuard."""

    kind: str

    def __init__(self, name: str, home: Home) -> None:
        self.name = name
        self._mark = mark_of(home)
        # A repair may remove the interface while the agent's loop would create a missing one.
        self._changing = Lock()

    def read(self) -> DeviceState | None:
        """See `Device.read`."""
        return overlay_netns.run(self._read)

    def apply(self, steps: Sequence[Step]) -> None:
        """See `Device.apply`."""
        if steps:
            overlay_netns.run(self._apply, steps)

    def remove(self) -> None:
        """See `Device.remove`."""
        overlay_netns.run(self._remove)

    def _read(self) -> DeviceState | None:
        with explained(self.name, "read the device"), links() as table:
            link = self._own_link(table)
            wireguard = self._read_wireguard() if link is not None else None
            if link is None or wireguard is None:
                return None
            addresses = table.addresses(link)
            routes = table.routes(link, addresses)
        return DeviceState(
            wireguard.private_key, wireguard.listen_port, addresses, link.mtu, link.up, wireguard.peers, routes
        )

    def _apply(self, steps: Sequence[Step]) -> None:
        with self._changing, links() as table:
            for step in steps:
                with explained(self.name, step):
                    self._take(table, step)

    def _remove(self) -> None:
        with self._changing, explained(self.name, "remove the device"), links() as table:
            link = table.find(self.name)
            if link is not None and not self._is_ours(link):
                return
            self._stop()
            left = table.find(self.name)
            if left is not None and left.alias == self._mark:
                table.delete(left)
        release(self.name)

    def _take(self, table: LinkTable, step: Step) -> None:
        if isinstance(step, CreateDevice):
            self._own_link(table)
            self._create(table)
        elif isinstance(step, InterfaceStep):
            table.take(self._present_link(table), step)
        else:
            self._configure(table, step)

    def _own_link(self, table: LinkTable) -> Link | None:
        """Return the interface; None if it does not exist. Raises MeshrayError if meshray did not create it."""
        link = table.find(self.name)
        if link is not None and not self._is_ours(link):
            raise foreign_interface(link)
        return link

    def _present_link(self, table: LinkTable) -> Link:
        link = self._own_link(table)
        if link is None:
            raise MeshrayError("no_device", f"{self.name} has vanished", hint="meshray logs")
        return link

    @abstractmethod
    def _is_ours(self, link: Link) -> bool:
        """Return whether meshray created this interface for this node."""

    @abstractmethod
    def _create(self, table: LinkTable) -> None:
        """Create the interface and mark it as ours."""

    @abstractmethod
    def _configure(self, table: LinkTable, step: WireGuardStep) -> None:
        """Take a step that concerns WireGuard itself."""

    @abstractmethod
    def _read_wireguard(self) -> WireGuardState | None:
        """Return the state of WireGuard itself; None if the kernel or the engine does not answer."""

    @abstractmethod
    def _stop(self) -> None:
        """End the engine, if any, before the interface is deleted."""
