"""The protocol of a WireGuard device: read its state, apply steps, and remove it.

device = open_device("meshray0", home)
device.apply(plan(device.read(), desired))     # now it is as desired
assert plan(device.read(), desired) == ()      # and a second time there is nothing to do
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from meshray.wireguard.config import DeviceState
from meshray.wireguard.plan import Step


class Device(Protocol):
    """One WireGuard interface. All methods block; call them in a thread.

    Attributes:
        name: of the interface.
        kind: ``kernel``, ``userspace`` or ``fake``.
    """

    name: str
    kind: str

    def read(self) -> DeviceState | None:
        """The present state, None where there is no such device.

        Raises:
            MeshrayError: code ``foreign_interface`` where the name belongs to something that meshray did not make.
        """

    def apply(self, steps: Sequence[Step]) -> None:
        """Takes the steps in turn and stops at the first that fails.

        Raises:
            MeshrayError: names the interface, the step and the cause.
        """

    def remove(self) -> None:
        """Removes the device and all that belongs to it; nothing happens where there is none."""
