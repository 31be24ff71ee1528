"""The kernel on which the other tests of this folder rely: WireGuard by its own tools, without meshray."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from tests.lab.leftovers import sweep
from tests.vm.conftest import REPORTS_FD, TEMPORARY


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout


def wg(namespace: str, *arguments: str, stdin: str = "") -> str:
    argv = ["ip", "netns", "exec", namespace, "wg", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True, input=stdin, timeout=60).stdout


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Create two network namespaces with one cable between them: 192.0.2.1 and 192.0.2.2."""
    names = ("vm-left", "vm-right")
    for name in names:
        ip("netns", "add", name)
    try:
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "eth0", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def test_two_devices_made_by_hand_reach_each_other(hosts: tuple[str, str]) -> None:
    keys = {name: wg(name, "genkey").strip() for name in hosts}
    public = {name: wg(name, "pubkey", stdin=keys[name]).strip() for name in hosts}
    for number, (name, other) in enumerate(zip(hosts, reversed(hosts), strict=True), 1):
        ip("-n", name, "link", "add", "wg0", "type", "wireguard")
        wg(name, "set", "wg0", "listen-port", "51888", "private-key", "/dev/stdin", stdin=keys[name])
        peer = ["allowed-ips", f"10.99.0.{3 - number}/32", "endpoint", f"192.0.2.{3 - number}:51888"]
        wg(name, "set", "wg0", "peer", public[other], *peer)
        ip("-n", name, "address", "add", f"10.99.0.{number}/24", "dev", "wg0")
        ip("-n", name, "link", "set", "wg0", "up")
    kind = json.loads(ip("-n", hosts[0], "-json", "-d", "link", "show", "wg0"))[0]["linkinfo"]["info_kind"]
    assert kind == "wireguard"
    ip("netns", "exec", hosts[0], "ping", "-c", "3", "-W", "5", "10.99.0.2")


@pytest.mark.skipif(REPORTS_FD not in os.environ, reason="concerns a guest")
def test_the_guest_leaves_the_runs_of_the_machine_outside_alone() -> None:
    assert tempfile.gettempdir() == TEMPORARY
    assert sweep() == []
