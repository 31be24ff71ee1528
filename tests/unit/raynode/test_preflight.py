from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.errors import MeshrayError
from meshray.linux.sockets import LISTEN, Socket, parse_table
from meshray.linux.user import User
from meshray.model.ray_ports import RayPorts
from meshray.raynode.command import RayPlan
from meshray.raynode.preflight import check_head, check_readable, conflict, require_free
from tests.unit.raynode.test_command import HEAD, RAY, WORKER

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = "00000000:00000000 00:00000000 00000000     0        0"
NOBODY = User("nobody", 65534, 65534, (65534,), Path("/"))


def table(*sockets: tuple[str, int, str]) -> Iterator[Socket]:
    """Return a /proc/net/tcp of (address, port, state)."""
    lines = (f"   0: {ip}:{port:04X} 00000000:0000 {state} {REST} 77 1\n" for ip, port, state in sockets)
    return parse_table(HEADER + "".join(lines), LISTEN)


def conflict_of(plan: RayPlan, listeners: Iterator[Socket]) -> Socket | None:
    return conflict(plan.ports, listeners, head=plan.head, node_ip=plan.node_ip)


def test_only_listening_sockets_count() -> None:
    assert list(table(("0100007F", 6379, "0A"), ("0100007F", 6379, "01"))) == [
        Socket(6379, "127.0.0.1", "0.0.0.0", "77")
    ]


@pytest.mark.parametrize(
    ("address", "shown"), [("00000000", "0.0.0.0"), ("0100007F", "127.0.0.1"), ("0100630A", "10.99.0.1")]
)
def test_a_port_on_all_addresses_conflicts_with_any_listener(address: str, shown: str) -> None:
    assert conflict_of(HEAD, table((address, 6379, "0A"))) == Socket(6379, shown, "0.0.0.0", "77")


def test_a_port_on_the_overlay_does_not_conflict_with_other_addresses() -> None:
    assert conflict_of(HEAD, table(("0100007F", 8265, "0A"))) is None
    assert conflict_of(HEAD, table(("0100630A", 8265, "0A"))) is not None
    assert conflict_of(HEAD, table(("00000000", 8265, "0A"))) is not None
    assert conflict_of(HEAD, table(("0" * 32, 8265, "0A"))) is not None


def test_a_port_on_the_loopback_conflicts_with_a_listener_there() -> None:
    for port, plan in ((10001, HEAD), (20105, HEAD), (20105, WORKER)):
        assert conflict_of(plan, table(("0100007F", port, "0A"))) is not None
        assert conflict_of(plan, table(("0200007F", port, "0A"))) is None
    assert conflict_of(WORKER, table(("0100007F", 10001, "0A"))) is None
    assert conflict_of(HEAD, table(("0100007F", 20103, "0A"))) is None


def test_a_worker_does_not_need_the_ports_of_a_head() -> None:
    assert conflict_of(WORKER, table(("00000000", 6379, "0A"), ("00000000", 8265, "0A"))) is None


def test_a_chosen_port_counts_and_its_default_no_longer() -> None:
    plan = replace(WORKER, ports=RayPorts.of({"metrics_export": 8500}))
    assert conflict_of(plan, table(("00000000", 20106, "0A"))) is None
    assert conflict_of(plan, table(("0100007F", 8500, "0A"))) == Socket(8500, "127.0.0.1", "0.0.0.0", "77")


def test_before_there_is_an_overlay_address_only_a_listener_on_all_addresses_has_its_ports() -> None:
    assert conflict(RayPorts(), table(("0100630A", 20105, "0A")), head=False, node_ip=None) is None
    assert conflict(RayPorts(), table(("00000000", 20105, "0A")), head=False, node_ip=None) is not None


def test_a_port_in_use_is_reported_with_its_owner_purpose_and_alternative() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(MeshrayError) as caught:
            require_free(RayPorts.of({"metrics_export": port}), head=False)
    holder = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
    assert caught.value.code == "port_in_use"
    assert caught.value.message == f"Ray's metrics export needs TCP port {port}, which {holder} has"
    assert caught.value.hint.startswith(
        f"end {holder}; or choose another port at init or join: -- --metrics-export-port="
    )


def test_a_head_without_the_dashboards_packages_is_refused() -> None:
    check_head(RAY)
    with pytest.raises(MeshrayError, match="aiohttp_cors") as caught:
        check_head(replace(RAY, missing=("aiohttp_cors",)))
    assert "ray[default]==2.60.0" in caught.value.hint


def test_an_inaccessible_folder_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    file = closed / "token"
    file.write_text("secret")
    for folder in file.parents:
        if (
            folder.stat().st_uid == os.geteuid()
            and folder != Path(tempfile.gettempdir())
            and folder.is_relative_to(tempfile.gettempdir())
        ):
            folder.chmod(0o711)
    file.chmod(0o604)
    check_readable(file, NOBODY)
    closed.chmod(0o700)
    with pytest.raises(MeshrayError) as caught:
        check_readable(file, NOBODY)
    assert f"{closed} keeps others out" in caught.value.message
    assert caught.value.hint == f"chmod o+x {closed}"
