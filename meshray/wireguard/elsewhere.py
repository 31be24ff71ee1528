"""The device of a node whose overlay is in a network namespace of its own.

The engine takes the interface as a descriptor and stays outside with its UDP socket; addresses, MTU and what else
belongs to the interface is read and changed by a thread that is inside (`meshray.runtime.inside`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from meshray.errors import MeshrayError
from meshray.runtime import inside
from meshray.settings import Home
from meshray.wireguard.device import DeviceState
from meshray.wireguard.engines import OWN, Engine, find_engine
from meshray.wireguard.plan import Step
from meshray.wireguard.userspace import UserspaceDevice


class DeviceElsewhere:
    """Keeps to `meshray.wireguard.device.Device`."""

    kind = UserspaceDevice.kind

    def __init__(self, name: str, home: Home, environ: Mapping[str, str] = os.environ) -> None:
        self.name = name
        # Where only the person may write: /run/wireguard is root's.
        engine = replace(find_own_engine(environ), sockets=home.run)
        self._device = UserspaceDevice(name, home, engine=engine, environ=environ)

    def read(self) -> DeviceState | None:
        """See `Device.read`."""
        return inside.run(self._device.read)

    def apply(self, steps: Sequence[Step]) -> None:
        """See `Device.apply`."""
        inside.run(self._device.apply, steps)

    def remove(self) -> None:
        """See `Device.remove`."""
        inside.run(self._device.remove)


def find_own_engine(environ: Mapping[str, str]) -> Engine:
    """The engine that takes a descriptor.

    Raises:
        MeshrayError: code ``no_engine``: this meshray came without it.
    """
    engine = find_engine(environ)
    if not engine.is_own:
        raise MeshrayError(
            "no_engine",
            f"without root {OWN} is needed: {engine.name} takes no interface of another network namespace",
            hint="pip install a wheel of meshray for this platform, or in its source: make engine",
        )
    return engine
