"""What went wrong with an interface, in words that a person can act on."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from meshray.errors import MeshrayError
from meshray.settings import Home
from meshray.wireguard.link import Link, explained, foreign_interface, mark_of
from meshray.wireguard.plan import SetListenPort


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.EADDRINUSE, "in use"), "port_in_use", "UDP port 51888 is in use by another program"),
        (NetlinkError(errno.EADDRINUSE), "port_in_use", "UDP port 51888 is in use by another program"),
        (PermissionError(errno.EPERM, ""), "not_root", "meshray0: cannot listen on UDP port 51888: root is needed"),
        (
            NetlinkError(errno.ENOBUFS),
            "device_failed",
            "meshray0: cannot listen on UDP port 51888: No buffer space available",
        ),
        (ValueError("odd"), "device_failed", "meshray0: cannot listen on UDP port 51888: odd"),
        (MeshrayError("engine_failed", "wireguard-go ended"), "engine_failed", "wireguard-go ended"),
    ],
)
def test_a_failure_names_interface_step_and_cause(error: Exception, code: str, message: str) -> None:
    with pytest.raises(MeshrayError) as raised, explained("meshray0", SetListenPort(51888)):
        raise error
    assert (raised.value.code, raised.value.message) == (code, message)


def test_a_foreign_interface_is_named_by_kind_and_owner() -> None:
    by_hand = Link("meshray0", 7, "tun", "", 1420, up=True)
    assert "meshray0 is a tun interface not made by meshray" in foreign_interface(by_hand).message
    alias = mark_of(Home(Path("/other"), Path("/run/other")))
    assert "of /other" in foreign_interface(Link("meshray0", 7, "", alias, 1420, up=True)).message


def test_a_mark_fits_into_an_alias() -> None:
    assert len(mark_of(Home(Path("/" + "a" * 400), Path("/run"))).encode()) == 255
    assert len(mark_of(Home(Path("/" + "ä" * 400), Path("/run"))).encode()) <= 255
