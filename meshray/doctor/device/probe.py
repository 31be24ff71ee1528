"""Test the requirements of a tunnel, and examine its interface."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from functools import partial
from pathlib import Path

from meshray.doctor.context import Context
from meshray.doctor.deadlines import in_thread
from meshray.doctor.device.facts import DOWN, FOREIGN, KERNEL, MISSING, SILENT, UP, USERSPACE, DeviceFacts
from meshray.errors import MeshrayError
from meshray.linux import overlay_netns
from meshray.wireguard.engines import Engine, find_engine, install_command
from meshray.wireguard.open import check_available, tun_fault

#: linux/capability.h.
_CAP_NET_ADMIN = 12
#: An engine answers within a millisecond.
_ANSWER_S = 3.0


async def measure(context: Context) -> DeviceFacts:
    """Return the facts of this node."""
    has_interface, requirements, interface = await asyncio.gather(
        in_thread(partial(overlay_netns.run, _interface_kind, context.interface)),
        in_thread(_requirements),
        _interface(context),
    )
    engine = await in_thread(partial(_engine, context))
    wireguard, error, fix = await in_thread(partial(_wireguard, context, has_interface))
    state, detail, addresses = interface
    where = overlay_netns.entered()
    uid, net_admin, tun_error, namespaces_error = requirements
    return DeviceFacts(
        is_agent=context.status is not None,
        uid=uid,
        net_admin=net_admin,
        wireguard=wireguard,
        wireguard_error=error,
        wireguard_fix=fix,
        engine=engine.name if engine else "",
        engine_is_stock=engine is not None and not engine.is_own,
        engine_fix=await in_thread(install_command) if engine is not None and not engine.is_own else "",
        carrier=where.internet_helper if where is not None and where.engine_inside else None,
        tun_error=tun_error,
        namespaces_error=namespaces_error,
        interface=context.interface,
        state=state,
        state_detail=detail,
        addresses=addresses,
        expected=str(context.ip or ""),
    )


def _requirements() -> tuple[int, bool | None, str, str | None]:
    uid = os.geteuid()
    return uid, _net_admin(), tun_fault(), None if uid == 0 else _namespaces_error()


def _net_admin() -> bool | None:
    try:
        found = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return bool(int(found[1], 16) >> _CAP_NET_ADMIN & 1) if found else None


def _namespaces_error() -> str:
    """Try to create namespaces: distributions forbid them in ways that no single setting shows."""
    from meshray.runtime.rootless.permission_probe import INTERFACE, find_missing

    if overlay_netns.entered() is not None:  # This process itself is in them.
        return ""
    missing = [item for item in find_missing() if item.what != INTERFACE]
    return ", ".join(f"{item.what} ({os.strerror(item.number)})" for item in missing)


def _engine(context: Context) -> Engine | None:
    try:
        return find_engine(context.environ)
    except MeshrayError:
        return None


def _interface_kind(name: str) -> str:
    """Return the kind of the existing overlay interface; empty: none."""
    from meshray.wireguard.interface import open_interfaces

    with open_interfaces() as interfaces:
        interface = interfaces.find(name)
    return (interface.kind or "other") if interface else ""


def _wireguard(context: Context, interface_kind: str) -> tuple[str, str, str]:
    """Return (device kind, why there is none, its fix). Without an interface, one is created as a test."""
    if interface_kind == "wireguard":
        return KERNEL, "", ""
    try:
        if interface_kind:
            find_engine(context.environ)
            return USERSPACE, "", ""
        return check_available(context.environ), "", ""
    except MeshrayError as error:
        if error.code == "no_tun":  # A separate check reports it.
            return USERSPACE, "", ""
        return "", error.message, error.hint


async def _interface(context: Context) -> tuple[str, str, tuple[str, ...]]:
    """Return (the interface's state, a detail, its addresses)."""
    if context.read_device is None:
        return "", "the agent cannot be asked", ()
    try:
        state = await asyncio.wait_for(in_thread(context.read_device), _ANSWER_S)
    except asyncio.TimeoutError:
        return SILENT, f"nothing within {_ANSWER_S:g} s", ()
    except MeshrayError as error:
        return (FOREIGN if error.code == "foreign_interface" else SILENT), error.message, ()
    if state is None:
        try:
            overlay_netns.run(socket.if_nametoindex, context.interface)
        except OSError:
            return MISSING, "", ()
        return SILENT, "its socket is gone or refuses", ()
    return UP if state.up else DOWN, "", tuple(str(address.ip) for address in state.addresses)
