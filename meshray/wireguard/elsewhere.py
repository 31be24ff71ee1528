"""The device of a node whose overlay is in a network namespace of its own.

The own engine takes the interface as a descriptor and stays outside with its UDP socket:

    overlay ── meshray0 ──(descriptor)──► meshray-engine ──► the machine's network

The stock one makes its interface itself, so it runs inside, and pasta carries what it sends:

    overlay ── meshray0 ── wireguard-go ── pasta's interface ──► pasta ──► the machine's network

Addresses, MTU and what else belongs to the interface is read and changed by a thread that is inside
(`meshray.linux.overlay_netns`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.wireguard.config import DeviceState
from meshray.wireguard.engines import Engine, find_engine
from meshray.wireguard.plan import Step
from meshray.wireguard.userspace import UserspaceDevice


class DeviceElsewhere:
    """Keeps to `meshray.wireguard.device.Device`."""

    kind = UserspaceDevice.kind

    def __init__(self, name: str, home: Home, environ: Mapping[str, str] = os.environ) -> None:
        self.name = name
        self._device = UserspaceDevice(name, home, engine=_find(home, environ), environ=environ)

    def read(self) -> DeviceState | None:
        """See `Device.read`."""
        return overlay_netns.run(self._device.read)

    def apply(self, steps: Sequence[Step]) -> None:
        """See `Device.apply`."""
        overlay_netns.run(self._device.apply, steps)

    def remove(self) -> None:
        """See `Device.remove`."""
        overlay_netns.run(self._device.remove)


def udp_port_inside(listen_port: int, environ: Mapping[str, str]) -> int | None:
    """On which UDP port an engine that must be inside will listen, 0: on any; None: the engine stays outside.

    Only the own one takes an interface of another namespace; the stock one sends from where its interface is.

    Raises:
        MeshrayError: as `find_engine`.
    """
    return None if find_engine(environ).is_own else listen_port


def _find(home: Home, environ: Mapping[str, str]) -> Engine:
    engine, where = find_engine(environ), overlay_netns.entered()
    if where is not None and where.engine_inside == engine.is_own:
        raise MeshrayError(
            "engine_changed",
            f"the namespaces of this node were made for another engine than {engine.name}",
            hint="meshray down, then meshray up",
        )
    # Where only the user may write: /run/wireguard is root's.
    return replace(engine, sockets=home.run)
