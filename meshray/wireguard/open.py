"""Picks the WireGuard device for this machine: the kernel's where it has one, else wireguard-go.

    >>> open_device("meshray0", home).kind
    'userspace'

MESHRAY_WIREGUARD=kernel or =userspace forces one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

from meshray.errors import MeshrayError, UsageError
from meshray.runtime.lean import lean_pyroute2
from meshray.runtime.process import ManagedProcess
from meshray.settings import Home
from meshray.wireguard.device import Device
from meshray.wireguard.kernel import LINK_KIND, KernelDevice
from meshray.wireguard.link import links
from meshray.wireguard.userspace import UserspaceDevice

KERNEL, USERSPACE = "kernel", "userspace"
VARIABLE = "MESHRAY_WIREGUARD"
ENGINE = "wireguard-go"
_TUN = Path("/dev/net/tun")
#: linux/if_tun.h: ioctl TUNSETIFF, flags IFF_TUN | IFF_NO_PI; struct ifreq is 40 bytes.
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_IFREQ = struct.Struct("16sH22x")


def open_device(name: str, home: Home, environ: Mapping[str, str] = os.environ) -> Device:
    """The device ``name``; nothing is made yet. One that meshray made before is found again.

    Raises:
        MeshrayError: code ``no_wireguard``, ``no_tun`` or ``not_root``; the hint says what to install or load.
        UsageError: MESHRAY_WIREGUARD holds another word.
    """
    # What runs goes on running: a module that was loaded meanwhile is no reason to drop every connection.
    running = _forced(environ) is None and ManagedProcess(home.pid_file("engine")).pid is not None
    if running or check_available(environ) == USERSPACE:
        return UserspaceDevice(name, home, engine=_engine(environ), environ=environ)
    return KernelDevice(name, home)


def check_available(environ: Mapping[str, str] = os.environ) -> str:
    """``kernel`` or ``userspace``, after trying it out; leaves nothing behind.

    Raises:
        MeshrayError: as `open_device`.
    """
    forced = _forced(environ)
    if forced != USERSPACE and _kernel_has_wireguard():
        return KERNEL
    if forced == KERNEL:
        raise MeshrayError("no_wireguard", "this kernel has no WireGuard", hint="modprobe wireguard")
    _engine(environ)
    _try_tun()
    return USERSPACE


def _forced(environ: Mapping[str, str]) -> str | None:
    word = environ.get(VARIABLE, "")
    if word not in ("", KERNEL, USERSPACE):
        raise UsageError(
            "bad_setting", f"{VARIABLE} is {word!r}", hint=f"{VARIABLE}={KERNEL} or {VARIABLE}={USERSPACE}"
        )
    return word or None


def _engine(environ: Mapping[str, str]) -> Path:
    found = shutil.which(ENGINE, path=environ.get("PATH", os.defpath))
    if found is None:
        raise MeshrayError(
            "no_wireguard",
            f"neither this kernel nor {ENGINE} offers WireGuard here",
            hint=f"modprobe wireguard, or: apt-get install {ENGINE}",
        )
    return Path(found)


def _kernel_has_wireguard() -> bool:
    """The only sure test is to make one: a module may be missing, blocked, or of another kernel."""
    lean_pyroute2()
    from pyroute2.netlink.exceptions import NetlinkError

    name = f"mray{os.getpid() & 0xFFFFFF:x}"
    with links() as table:
        try:
            table.create(name, LINK_KIND)
        except NetlinkError as error:
            if error.code in (errno.EPERM, errno.EACCES):
                raise _not_root("make a network interface") from None
            return False
        made = table.find(name)
        if made is not None:
            table.delete(made)
    return True


def _try_tun() -> None:
    try:
        handle = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _no_tun("is missing", "modprobe tun; in a container: --device /dev/net/tun --cap-add NET_ADMIN") from None
    except PermissionError:
        raise _not_root(f"open {_TUN}") from None
    except OSError as error:
        raise _no_tun(f"does not open: {error.strerror}", "modprobe tun") from None
    try:
        # Not persistent: the interface is gone when the descriptor is closed.
        fcntl.ioctl(handle, _TUNSETIFF, _IFREQ.pack(b"mray%d", _IFF_TUN_NO_PI))
    except PermissionError:
        raise _not_root("make a TUN interface") from None
    except OSError as error:
        raise _no_tun(f"makes no interface: {error.strerror}", "modprobe tun") from None
    finally:
        os.close(handle)


def _no_tun(what: str, hint: str) -> MeshrayError:
    return MeshrayError("no_tun", f"no WireGuard in this kernel, and {_TUN} {what}", hint=hint)


def _not_root(what: str) -> MeshrayError:
    return MeshrayError(
        "not_root", f"only root may {what}", hint="run meshray with sudo; in a container: --cap-add NET_ADMIN"
    )
