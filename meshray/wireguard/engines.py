"""The engines: programs that implement WireGuard where the kernel does not, and how each is started.

own    meshray-engine: built from `engine/` beside this file; batches packets (segmentation offload), shipped in wheels
stock  the distribution's wireguard-go, where meshray-engine was not built for this machine

Both are configured through a socket in the same place, where `wg` looks for it.

    >>> engine = find_engine(os.environ)
    >>> engine.start(ManagedProcess(home.pid_file("engine")), "meshray0", home.logs / "engine.log")
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from meshray.defaults import DEFAULT_MTU
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.process import ManagedProcess
from meshray.linux.trusted_files import find_program, require_trusted

#: The folder is compiled into wireguard-go and `wg`; /run/wireguard is the same folder.
SOCKET_FOLDER = Path("/var/run/wireguard")
STOCK = "wireguard-go"
OWN = "meshray-engine"
#: `make engine` puts the program there, and so does a platform's wheel.
BUNDLED = Path(__file__).with_name("engine") / OWN
#: The variable that selects another engine, such as a self-built one.
VARIABLE = "MESHRAY_ENGINE"

TUN = Path("/dev/net/tun")
#: linux/if_tun.h: ioctl TUNSETIFF, flags IFF_TUN | IFF_NO_PI (| IFF_VNET_HDR); struct ifreq is 40 bytes.
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
#: With it the kernel passes up to 64 KiB at once; without it there is no segmentation offload.
_IFF_VNET_HDR = 0x4000
_IFREQ = struct.Struct("16sH22x")


@dataclass(frozen=True)
class Engine:
    """A program that implements WireGuard, and how it is started."""

    program: Path
    sockets: Path = SOCKET_FOLDER

    @property
    def name(self) -> str:
        """The program's name."""
        return self.program.name

    @property
    def is_own(self) -> bool:
        """Whether the engine takes the interface as a descriptor."""
        return self.name != STOCK

    def socket_path(self, name: str) -> Path:
        """Return the path of the socket on which the engine of this interface listens."""
        return self.sockets / f"{name}.sock"

    def start(self, process: ManagedProcess, name: str, log: Path, environ: Mapping[str, str]) -> None:
        """Start the engine for the interface ``name``, which is created; its socket appears a moment later.

        Raises:
            OSError: the interface cannot be created (EBUSY: the name is in use), or the program does not start.
        """
        env = {"PATH": environ.get("PATH", os.defpath), "LOG_LEVEL": "error"}
        if not self.is_own:
            overlay_netns.spawn(process, [str(self.program), "-f", name], sockets=self.sockets, env=env, log=log)
            return
        tun = open_tun(name, offload=True)
        try:
            arguments = ["-tun-fd", str(tun), "-socket", str(self.socket_path(name)), "-mtu", str(DEFAULT_MTU)]
            command = [str(self.program), *arguments]
            # The engine's UDP socket belongs to the machine's own network, whichever namespace the interface is in.
            overlay_netns.run_outside(process.spawn, command, env=env, log=log, keep=(tun,))
        finally:
            os.close(tun)


def find_engine(environ: Mapping[str, str]) -> Engine:
    """Return the preferred engine: MESHRAY_ENGINE, then the one shipped with meshray, then wireguard-go.

    Raises:
        MeshrayError: code ``no_wireguard``; the hint says what to install.
    """
    chosen = environ.get(VARIABLE, "")
    if chosen:
        found = shutil.which(chosen, path=environ.get("PATH", os.defpath))
        if found is None:
            raise MeshrayError("no_wireguard", f"{VARIABLE}={chosen} is not a program", hint=f"unset {VARIABLE}")
        require_trusted(Path(found).absolute(), f"the program of {VARIABLE}")
        return Engine(Path(found))
    if os.access(BUNDLED, os.X_OK):
        return Engine(BUNDLED)
    stock = find_program(STOCK, environ, on_path_only=True)
    if stock is None:
        raise MeshrayError(
            "no_wireguard",
            f"this kernel has no WireGuard, meshray was installed without {OWN}, and there is no {STOCK} either",
            hint=f"modprobe wireguard, or: {install_command()}, or: apt-get install {STOCK}",
        )
    return Engine(stock)


def install_command() -> str:
    """Return the command that installs meshray's own engine into the environment that the user made."""
    from meshray.installation.programs import user_python
    from meshray.installation.reinstall import reinstall_command

    return reinstall_command(user_python())


def open_tun(name: str, *, offload: bool) -> int:
    """Create the TUN interface ``name`` and return its descriptor; closing the last descriptor removes the interface.

    Args:
        name: may contain ``%d``, which the kernel replaces by a number.
        offload: packets have a virtio header and may hold many segments.

    Raises:
        OSError: /dev/net/tun does not exist or is not permitted, or the name is in use (EBUSY).
    """
    descriptor = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    flags = _IFF_TUN_NO_PI | (_IFF_VNET_HDR if offload else 0)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def udp_port_inside(listen_port: int, environ: Mapping[str, str]) -> int | None:
    """Return the UDP port of an engine that must run inside the namespace, 0: any port; None: the engine runs outside.

    Only meshray-engine takes an interface of another namespace; wireguard-go sends from its interface's namespace.

    Raises:
        MeshrayError: as `find_engine`.
    """
    return None if find_engine(environ).is_own else listen_port


def find_engine_of_namespace(home: Home, environ: Mapping[str, str]) -> Engine:
    """Return the engine of a node whose overlay is in a network namespace of its own.

    meshray-engine takes the interface as a descriptor and runs outside, with its UDP socket:

        overlay ── meshray0 ──(descriptor)──► meshray-engine ──► the machine's network

    wireguard-go creates its interface itself, so it runs inside, and pasta forwards its packets:

        overlay ── meshray0 ── wireguard-go ── pasta's interface ──► pasta ──► the machine's network

    Raises:
        MeshrayError: as `find_engine`, and code ``engine_changed`` if the namespace was created for the other kind.
    """
    engine, namespace = find_engine(environ), overlay_netns.entered()
    if namespace is not None and namespace.engine_inside == engine.is_own:
        raise MeshrayError(
            "engine_changed",
            f"the namespaces of this node were created for another engine than {engine.name}",
            hint="meshray down, then meshray up",
        )
    # Only root may write to /run/wireguard, so the socket goes to a folder of the user.
    return replace(engine, sockets=home.run)
