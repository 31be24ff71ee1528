"""Cleanup after a killed agent: Ray, coordinator, tunnel, firewall rules.

A running agent takes these down itself. This module is for a node whose agent was killed (kill -9, out of memory).

>>> clear(home)
['Ray', 'tunnel']
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Network

from meshray.defaults import INTERFACE
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux.process import ManagedProcess
from meshray.node.state_folder import NAMESPACE_FILES

log = logging.getLogger(__name__)

#: `ray start --block` ends its processes within this, seconds.
_RAY_GRACE_S = 15.0


def clear(home: Home) -> list[str]:
    """End everything of this node that still runs, and return its names. A failed step does not stop the others.

    Raises:
        MeshrayError: the first failure.
    """
    if not home.state.exists() and not home.run.exists():
        return []  # an ephemeral node whose agent left and removed everything
    # Ray must not be started by another program after the firewall rules are gone.
    home.ray_environment.unlink(missing_ok=True)
    if _holds_namespaces(home):
        return _clear_namespaces(home)
    steps: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("Ray", lambda: _ray(home)),
        ("firewall rules", lambda: _firewall(home)),
        ("coordinator", lambda: _process(home, "coordinator")),
        ("tunnel", lambda: _tunnel(home)),
    )
    cleared, failure = [], None
    for name, step in steps:
        try:
            if step():
                cleared.append(name)
        except MeshrayError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return cleared


def _holds_namespaces(home: Home) -> bool:
    """Return whether this is a node without root: its run folder has this file until it leaves."""
    return (home.run / NAMESPACE_FILES[1]).exists()


def _clear_namespaces(home: Home) -> list[str]:
    """End a node without root. Ray gets a signal before its namespaces end. There are no firewall rules."""
    from meshray.runtime.rootless.namespace import Namespace

    steps = (
        ("Ray", _ray),
        ("coordinator", lambda home: _process(home, "coordinator")),
        ("tunnel", lambda home: _process(home, "engine")),
        ("namespaces", Namespace.end),
    )
    return [name for name, step in steps if step(home)]


def _process(home: Home, name: str) -> bool:
    process = ManagedProcess(home.pid_file(name))
    if process.pid is None:
        return False
    process.stop_blocking(grace_s=5)
    return True


def _ray(home: Home) -> bool:
    from meshray.raynode.processes import Family

    process = ManagedProcess(home.pid_file("ray"))
    pid = process.pid
    if pid is None:
        return False
    family = Family(pid)
    family.scan()  # find the processes that would become orphans
    process.stop_blocking(_RAY_GRACE_S)
    family.kill()
    return True


def _tunnel(home: Home) -> bool:
    from meshray.wireguard.open import open_device

    device = open_device(INTERFACE, home)
    if device.read() is None:
        return False
    device.remove()
    return True


def _firewall(home: Home) -> bool:
    from meshray.firewall import Firewall, Opening
    from meshray.node.map_cache import load_map

    try:
        network = load_map(home).mesh.network.cidr
    except MeshrayError:
        # meshray's rules are identified by their comments; the network only determines what they admit.
        network = IPv4Network("10.99.0.0/16")
    return bool(Firewall(Opening(INTERFACE, network, forwards=True)).remove())
