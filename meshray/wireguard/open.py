"""Choose the WireGuard device for this machine: the kernel's if it has one, else an engine's (see `engines`).

    >>> open_device("meshray0", home).kind
    'userspace'

MESHRAY_WIREGUARD=kernel or =userspace forces one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.process import ManagedProcess
from meshray.wireguard.device import Device
from meshray.wireguard.engines import TUN, find_engine, find_engine_of_namespace, open_tun
from meshray.wireguard.interface import open_interfaces
from meshray.wireguard.kernel import INTERFACE_KIND, KernelDevice
from meshray.wireguard.userspace import UserspaceDevice

KERNEL, USERSPACE = "kernel", "userspace"
VARIABLE = "MESHRAY_WIREGUARD"


def open_device(name: str, home: Home, environ: Mapping[str, str] = os.environ) -> Device:
    """Return the device ``name``, without creating it. A device that meshray created before is used again.

    Raises:
        MeshrayError: code ``no_wireguard``, ``no_tun`` or ``not_root``; the hint says what to install or load.
        UsageError: MESHRAY_WIREGUARD has another value.
    """
    if overlay_netns.entered() is not None:
        return UserspaceDevice(name, home, engine=find_engine_of_namespace(home, environ), environ=environ)
    # A running device stays: a module that was loaded meanwhile must not drop every connection.
    running = _forced(environ) is None and ManagedProcess(home.pid_file("engine")).pid is not None
    if running or check_available(environ) == USERSPACE:
        return UserspaceDevice(name, home, engine=find_engine(environ), environ=environ)
    return KernelDevice(name, home)


def check_available(environ: Mapping[str, str] = os.environ) -> str:
    """Return ``kernel`` or ``userspace``, whichever a test run showed to work; nothing remains of the test.

    Raises:
        MeshrayError: as `open_device`.
    """
    forced = _forced(environ)
    if forced != USERSPACE and _kernel_has_wireguard():
        return KERNEL
    if forced == KERNEL:
        raise MeshrayError("no_wireguard", "this kernel has no WireGuard", hint="modprobe wireguard")
    find_engine(environ)
    _try_tun()
    return USERSPACE


def _forced(environ: Mapping[str, str]) -> str | None:
    word = environ.get(VARIABLE, "")
    if word not in ("", KERNEL, USERSPACE):
        raise UsageError(
            "bad_setting", f"{VARIABLE} is {word!r}", hint=f"{VARIABLE}={KERNEL} or {VARIABLE}={USERSPACE}"
        )
    return word or None


def _kernel_has_wireguard() -> bool:
    """Try to create a device. No other test is reliable: a module may be missing, blocked, or of another kernel."""
    name = f"mray{os.getpid() & 0xFFFFFF:x}"
    with open_interfaces() as interfaces:
        try:
            interfaces.create(name, INTERFACE_KIND)
        except PermissionError:
            raise _not_permitted("create a network interface") from None
        except OSError:
            return False
        interface = interfaces.find(name)
        if interface is not None:
            interfaces.delete(interface)
    return True


def tun_fault() -> str:
    """Return why /dev/net/tun cannot be opened, as the end of a sentence; empty if it can. Creates no interface."""
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    return ""


def _try_tun() -> None:
    try:
        os.close(open_tun("mray%d", offload=False))
    except FileNotFoundError:
        raise _no_tun("is missing") from None
    except PermissionError:
        if fault := tun_fault():
            raise _no_tun(fault) from None
        raise _not_permitted(f"create an interface with {TUN}") from None
    except OSError as error:
        raise _no_tun(f"cannot create an interface: {error.strerror}") from None


def _no_tun(what: str) -> MeshrayError:
    return MeshrayError(
        "no_tun",
        f"no WireGuard in this kernel, and {TUN} {what}",
        hint="modprobe tun; in a container: --device /dev/net/tun --cap-add NET_ADMIN; in a pod: render it with --tun",
    )


def _not_permitted(what: str) -> MeshrayError:
    """Return the error for a user without the right, or for root in a container without it."""
    if os.geteuid() != 0:
        return MeshrayError(
            "not_root", f"only root may {what}", hint="run meshray with sudo; in a container: --cap-add NET_ADMIN"
        )
    return MeshrayError(
        "not_root",
        f"root lacks the capability NET_ADMIN here, so it may not {what}",
        hint="in a container: --cap-add NET_ADMIN; in a pod: securityContext.capabilities.add: [NET_ADMIN]",
    )
