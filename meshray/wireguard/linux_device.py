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
from meshray.wireguard.interface import (
    Interface,
    InterfaceTable,
    device_errors,
    foreign_interface,
    mark_of,
    open_interfaces,
)
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
        with device_errors(self.name, "read the device"), open_interfaces() as interfaces:
            interface = self._own_interface(interfaces)
            wireguard = self._read_wireguard() if interface is not None else None
            if interface is None or wireguard is None:
                return None
            addresses = interfaces.addresses(interface)
            routes = interfaces.routes(interface, addresses)
        return DeviceState(
            wireguard.private_key,
            wireguard.listen_port,
            addresses,
            interface.mtu,
            interface.up,
            wireguard.peers,
            routes,
        )

    def _apply(self, steps: Sequence[Step]) -> None:
        with self._changing, open_interfaces() as interfaces:
            for step in steps:
                with device_errors(self.name, step):
                    self._apply_step(interfaces, step)

    def _remove(self) -> None:
        with self._changing, device_errors(self.name, "remove the device"), open_interfaces() as interfaces:
            interface = interfaces.find(self.name)
            if interface is not None and not self._is_ours(interface):
                return
            self._stop()
            left = interfaces.find(self.name)
            if left is not None and left.alias == self._mark:
                interfaces.delete(left)
        release(self.name)

    def _apply_step(self, interfaces: InterfaceTable, step: Step) -> None:
        if isinstance(step, CreateDevice):
            self._own_interface(interfaces)
            self._create(interfaces)
        elif isinstance(step, InterfaceStep):
            interfaces.apply(self._require_interface(interfaces), step)
        else:
            self._configure(interfaces, step)

    def _own_interface(self, interfaces: InterfaceTable) -> Interface | None:
        """Return the interface; None if it does not exist. Raises MeshrayError if meshray did not create it."""
        interface = interfaces.find(self.name)
        if interface is not None and not self._is_ours(interface):
            raise foreign_interface(interface)
        return interface

    def _require_interface(self, interfaces: InterfaceTable) -> Interface:
        interface = self._own_interface(interfaces)
        if interface is None:
            raise MeshrayError("no_device", f"{self.name} has vanished", hint="meshray logs")
        return interface

    @abstractmethod
    def _is_ours(self, interface: Interface) -> bool:
        """Return whether meshray created this interface for this node."""

    @abstractmethod
    def _create(self, interfaces: InterfaceTable) -> None:
        """Create the interface and mark it as ours."""

    @abstractmethod
    def _configure(self, interfaces: InterfaceTable, step: WireGuardStep) -> None:
        """Apply a step that concerns WireGuard itself."""

    @abstractmethod
    def _read_wireguard(self) -> WireGuardState | None:
        """Return the state of WireGuard itself; None if the kernel or the engine does not answer."""

    @abstractmethod
    def _stop(self) -> None:
        """End the engine, if any, before the interface is deleted."""
