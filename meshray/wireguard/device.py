"""The protocol of a WireGuard device: read its state, apply steps, and remove it.

device = open_device("meshray0", home)
device.apply(plan(device.read(), desired))
assert plan(device.read(), desired) == ()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from meshray.wireguard.config import DeviceState
from meshray.wireguard.plan import Step


class Device(Protocol):
    """One WireGuard interface. All methods block; call them in a thread.

    Attributes:
        name: the interface's name.
        kind: ``kernel``, ``userspace`` or ``fake``.
    """

    name: str
    kind: str

    def read(self) -> DeviceState | None:
        """Return the current state; None if the device does not exist.

        Raises:
            MeshrayError: code ``foreign_interface`` if meshray did not create the interface of this name.
        """

    def apply(self, steps: Sequence[Step]) -> None:
        """Apply the steps in order; stop at the first that fails.

        Raises:
            MeshrayError: a step failed; the message names the interface, the step and the cause.
        """

    def remove(self) -> None:
        """Remove the device and all that belongs to it; idempotent."""
