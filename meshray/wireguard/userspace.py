"""WireGuard as a process: an engine on a TUN interface, driven through its socket.

    device = UserspaceDevice("meshray0", home, engine=find_engine(os.environ))

The engine does not end with the agent: it runs in its own session, is found again through its
pid file, and carries packets while no agent runs. Addresses, MTU and up belong to the interface (`interface`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.process import ManagedProcess
from meshray.wireguard import uapi
from meshray.wireguard.config import WireGuardState
from meshray.wireguard.engine_socket import EngineSocket
from meshray.wireguard.engines import Engine
from meshray.wireguard.interface import Interface, InterfaceTable
from meshray.wireguard.linux_device import LinuxDevice
from meshray.wireguard.plan import SetUp, Step, WireGuardStep
from meshray.wireguard.unmanaged import keep_unmanaged

#: The time from an engine's start to its socket, seconds. Usually it takes 10 to 50 ms; the rest is for busy machines.
_START_S = 10.0
_POLL_S = 0.01
#: The limit for a connection to the socket that an engine left behind, seconds.
_CONNECT_S = 5.0
#: The limit for an engine's end, seconds. It ends at once on SIGTERM.
_STOP_S = 3.0


class UserspaceDevice(LinuxDevice):
    """An engine as a `meshray.wireguard.device.Device`."""

    kind = "userspace"

    def __init__(self, name: str, home: Home, *, engine: Engine, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__(name, home)
        self._program = engine
        self._environ = environ
        self._log = home.logs / "engine.log"
        self._engine = ManagedProcess(home.pid_file("engine"))
        self._socket = EngineSocket(self.socket_path, require_owner=self._require_owner)

    @property
    def socket_path(self) -> Path:
        """The path of the engine's socket."""
        return self._program.socket_path(self.name)

    def _remove(self) -> None:
        super()._remove()
        self._remove_stale_socket()

    def _is_ours(self, interface: Interface) -> bool:
        return interface.alias == self._mark or self._engine.pid is not None

    def _create(self, interfaces: InterfaceTable) -> None:
        self._engine.stop_blocking(_STOP_S)
        self._refuse_other_engine()
        if overlay_netns.entered() is None:  # elsewhere no network manager sees the interface
            keep_unmanaged(self.name)
        self.socket_path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self._program.start(self._engine, self.name, self._log, self._environ)
            self._wait(
                lambda: interfaces.find(self.name) is not None and self._read_wireguard() is not None, "to start"
            )
            interface = interfaces.find(self.name)
            if interface is None:
                raise MeshrayError(
                    "engine_failed", f"{self.name} vanished while it was being created", hint=f"see {self._log}"
                )
            interfaces.set_alias(interface, self._mark)
        except BaseException:
            self._engine.stop_blocking(_STOP_S)
            raise

    def _apply_step(self, interfaces: InterfaceTable, step: Step) -> None:
        super()._apply_step(interfaces, step)
        if isinstance(step, SetUp):
            # The engine learns of it through netlink. Until it has bound a port (any port so far), it would silently
            # accept a port that is in use.
            self._wait(lambda: uapi.parse(self._socket.read()).listen_port != 0, "to bind its UDP port")

    def _configure(self, _: InterfaceTable, step: WireGuardStep) -> None:
        uapi.check(self._socket.query(uapi.request(step)))

    def _read_wireguard(self) -> WireGuardState | None:
        """Read the engine's state. One of our engines that does not answer counts as missing: it is replaced."""
        try:
            return uapi.parse(self._socket.read())
        except (FileNotFoundError, ConnectionError):
            return None

    def _stop(self) -> None:
        # An engine whose pid file was lost ends with its interface.
        self._socket.close()
        self._engine.stop_blocking(_STOP_S)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_S
        while not condition():
            if self._engine.pid is None:
                raise MeshrayError("engine_failed", f"{self._program.name} ended: {self._last_log_line()}")
            if time.monotonic() > deadline:
                raise MeshrayError("engine_failed", f"{self._program.name} took more than {_START_S:.0f} s {what}")
            time.sleep(_POLL_S)

    def _last_log_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return lines[-1][:300]
        return "its log is empty"

    def _require_owner(self, server: int) -> None:
        """Check the engine's namespace: the socket's name does not identify it, so the engine may be another host's."""
        own_pid = self._engine.pid
        if own_pid is not None and server != own_pid:
            raise self._other_engine()

    def _refuse_other_engine(self) -> None:
        with contextlib.suppress(FileNotFoundError, ConnectionError):
            self._socket.query(uapi.READ)
            raise self._other_engine()

    def _other_engine(self) -> MeshrayError:
        return MeshrayError(
            "foreign_interface",
            f"{self.socket_path} belongs to a WireGuard engine that meshray did not start; meshray does not use it",
            hint=f"find it with: ss -xlp src {self.socket_path}",
        )

    def _remove_stale_socket(self) -> None:
        """Remove the socket that an engine leaves behind when it is killed."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_CONNECT_S)
            try:
                connection.connect(str(self.socket_path))
            except ConnectionRefusedError:
                self.socket_path.unlink(missing_ok=True)
            except OSError:
                pass
