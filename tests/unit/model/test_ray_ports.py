"""The ports that a user may choose for Ray, and those that are refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from meshray.errors import UsageError
from meshray.model.ray_ports import (
    AUTOSCALER_METRIC_PORT,
    DASHBOARD_METRIC_PORT,
    RayPorts,
    check_ports,
    choice_hint,
    ports_of_mesh,
    ports_of_node,
    take_ports,
)
from meshray.protocol.codec import WireError

DEFAULT = RayPorts()


def test_no_default_is_used_twice_or_by_the_kernel() -> None:
    single = [*DEFAULT.open_ports(head=True), *DEFAULT.overlay_ports(head=True)]
    assert len(set(single)) == len(single)
    assert not set(single) & set(DEFAULT.workers)
    # The kernel assigns ports to outgoing connections from there on.
    assert max(single) < 32768
    check_ports({}, head=True, own=(51888,))


def test_the_open_ports_are_the_configured_ports() -> None:
    for head in (True, False):
        named = set(DEFAULT.to_json(head=head).values()) - {DEFAULT.min_worker, DEFAULT.max_worker}
        fixed = {DASHBOARD_METRIC_PORT, AUTOSCALER_METRIC_PORT} if head else set()
        assert {*DEFAULT.open_ports(head=head), *DEFAULT.overlay_ports(head=head)} == named | fixed


def test_ports_are_taken_out_of_the_arguments_however_they_are_written() -> None:
    words = ("--port", "6380", "--resources", '{"a": 1}', "--dashboard_port=8266", "--port=6381", "--num-cpus=2")
    assert take_ports(words) == ({"gcs": 6381, "dashboard": 8266}, ("--resources", '{"a": 1}', "--num-cpus=2"))


@pytest.mark.parametrize("value", ["", "http", "80", "0", "-1", "65536", "8500.0", "٨٥٠٠", "1" * 5000])
def test_an_invalid_port_is_refused_by_the_option(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        take_ports([f"--metrics-export-port={value}"])
    assert caught.value.code == "bad_port"
    assert caught.value.message.startswith("--metrics-export-port ")
    assert caught.value.message.endswith("is not a port: a number from 1024 to 65535")
    assert len(caught.value.message) < 200


def test_an_option_at_the_end_lacks_its_port() -> None:
    with pytest.raises(UsageError, match="--port '' is not a port"):
        take_ports(["--port"])


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"metrics_export": 20101}, "--metrics-export-port and --node-manager-port would both have port 20101"),
        ({"node_manager": 8500, "metrics_export": 8500}, "would both have port 8500"),
        ({"gcs": 8265}, "--port and --dashboard-port would both have port 8265"),
        ({"metrics_export": 20107}, "--metrics-export-port and Ray's dashboard metrics would both"),
        ({"metrics_export": 51888}, "--metrics-export-port and meshray itself would both have port 51888"),
        ({"metrics_export": 10500}, "port 10500, which is one of the worker ports, 10002 to 19999"),
        ({"ray_client_server": 10101, "min_worker": 10002}, "port 10101, which is one of the worker ports"),
        ({"min_worker": 20000, "max_worker": 20200}, "which is one of the worker ports, 20000 to 20200"),
        ({"min_worker": 50000, "max_worker": 60000}, "the worker ports, 50000 to 60000, hold port 51888"),
        ({"min_worker": 30000}, "--min-worker-port 30000 is not below --max-worker-port 19999"),
        ({"max_worker": 10002}, "--min-worker-port 10002 is not below --max-worker-port 10002"),
    ],
)
def test_ports_that_clash_are_named_and_others_offered(chosen: Mapping[str, int], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_ports(chosen, head=True, own=(51888,))
    assert caught.value.code == "ports_clash"
    assert told in caught.value.message
    # A suggested port works in place of the chosen one.
    offered, rest = take_ports(caught.value.hint.removeprefix("-- ").split())
    assert rest == ()
    check_ports({**({} if "min_worker" in offered else chosen), **offered}, head=True, own=(51888,))


def test_a_worker_has_no_ports_of_a_head_to_clash_with() -> None:
    check_ports({"metrics_export": 6379}, head=False)
    with pytest.raises(UsageError):
        check_ports({"metrics_export": 6379}, head=True)


def test_a_mesh_port_among_the_default_worker_ports_does_not_clash() -> None:
    check_ports({"metrics_export": 8500}, head=True, own=(15000,))


def test_the_worker_ports_begin_behind_the_client_server_unless_they_are_chosen() -> None:
    check_ports({"ray_client_server": 10101}, head=True)
    assert RayPorts.of({"ray_client_server": 10101}).workers == range(10102, 20000)
    assert RayPorts.of({"ray_client_server": 9001}).workers == range(10002, 20000)
    assert RayPorts.of({"ray_client_server": 10101, "min_worker": 11000}).workers == range(11000, 20000)
    # A worker's own choice counts, whatever the mesh has: it has no client server.
    assert RayPorts.of({"ray_client_server": 10101, "max_worker": 10050}).workers == range(10002, 10051)


def test_the_offered_ports_are_free() -> None:
    ports = RayPorts.of({"metrics_export": 20200, "min_worker": 20202, "max_worker": 20210})
    assert choice_hint("--port", ports, {20201}) == "-- --port=20211"
    assert choice_hint("--port", RayPorts.of({"min_worker": 1024, "max_worker": 65535})).startswith("-- --min-worker")


def test_only_known_ports_of_the_right_scope_come_from_outside() -> None:
    chosen = {"gcs": 6380, "metrics_export": 8500, "later": 1}
    assert ports_of_mesh(chosen) == {"gcs": 6380}
    assert ports_of_node(chosen) == {"metrics_export": 8500}
    assert ports_of_mesh({}) == {}
    for bad in (22, 70000, True, "8500", None):
        with pytest.raises(WireError):
            ports_of_mesh({"gcs": bad})


def test_differences_from_the_defaults_are_known() -> None:
    assert RayPorts.of({"metrics_export": 8500, "gcs": 6379}).changed(head=True) == {"metrics_export": 8500}
    assert RayPorts.of({"gcs": 6380}).changed(head=False) == {}
