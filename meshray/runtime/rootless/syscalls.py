"""System calls that Python 3.10 lacks: namespaces, mounts, capabilities. Linux only.

    unshare(NEWUSER | NEWNET)       # unshare(2)
    setns(descriptor, NEWNET)       # setns(2)
    mount("tmpfs", "/dev/shm", "tmpfs")

Each raises OSError with the kernel's error.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from pathlib import Path

#: CLONE_* of linux/sched.h.
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
#: MS_* of linux/mount.h.
NOSUID, NODEV, NOEXEC, BIND, RECURSIVE, SLAVE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x80000
#: The files of /proc/PID/ns, in the order in which they are entered: the user namespace gives the right to the others.
FILES = {"user": NEWUSER, "ipc": NEWIPC, "net": NEWNET, "pid": NEWPID, "mnt": NEWNS}

#: linux/capability.h.
NET_ADMIN, SYS_CHROOT, SYS_PTRACE, SYS_ADMIN = 12, 18, 19, 21
_CAPABILITY_VERSION = 0x20080522
_CAPABILITY_WORDS = struct.Struct("=6I")
#: linux/prctl.h.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_CAP_AMBIENT = 1, 36, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
#: linux/sockios.h; IFF_UP of linux/if.h.
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_UP = 1
_IFREQ = struct.Struct("16sh22x")

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Create new namespaces for this process; a pid namespace is for its children."""
    _check(_libc.unshare(flags))


def unshare_user() -> None:
    """Create a user namespace in which user and group id are the same as outside. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def setns(descriptor: int, kind: int) -> None:
    """Enter a namespace; a network or pid namespace (the latter for children) only in this thread."""
    _check(_libc.setns(descriptor, kind))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """See mount(2)."""
    _check(_libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()))


def die_with_parent(number: int) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0))


def adopt_orphans() -> None:
    """Make descendants whose parent ends children of this process."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def pass_on(*capabilities: int) -> None:
    """Give these capabilities to every program that this thread executes from now on."""
    header, data = _capabilities()
    words = list(_CAPABILITY_WORDS.unpack(data.raw))
    for capability in capabilities:
        words[2 + 3 * (capability // 32)] |= 1 << capability % 32
    changed = ctypes.create_string_buffer(_CAPABILITY_WORDS.pack(*words), _CAPABILITY_WORDS.size)
    _check(_libc.capset(header, changed))
    for capability in capabilities:
        _check(_libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, capability, 0, 0))


def drop_all(*, but: int | None = None) -> None:
    """Drop all capabilities of this thread and of what it executes; keep ``but`` if the thread has it."""
    _check(_libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0))
    header, data = _capabilities()
    words = list(_CAPABILITY_WORDS.unpack(data.raw))
    for index in range(len(words)):
        kept = 1 << but % 32 if but is not None and index // 3 == but // 32 else 0
        words[index] &= kept
    left = ctypes.create_string_buffer(_CAPABILITY_WORDS.pack(*words), _CAPABILITY_WORDS.size)
    _check(_libc.capset(header, left))
    if but is not None:
        pass_on(but)


def _capabilities() -> tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]:
    """Return header and data of capget(2) for this thread: effective, permitted, inheritable; twice 32 bits each."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    data = ctypes.create_string_buffer(_CAPABILITY_WORDS.size)
    _check(_libc.capget(header, data))
    return header, data


def bring_up(interface: str) -> None:
    """Set an interface up in this thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = _IFREQ.pack(interface.encode(), 0)
        flags = _IFREQ.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(interface.encode(), flags | _UP))


def restore_signals() -> None:
    """Restore the signals that Python ignores, for the program that this process becomes; pasta requires it."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
