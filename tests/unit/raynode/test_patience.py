from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshray.protocol.fields import MAX_PATIENCE_S, MIN_PATIENCE_S
from meshray.raynode.command import client_environment, ray_environment
from meshray.raynode.patience import ray_timeouts
from tests.unit.raynode.test_command import HEAD, RAY, WORKER

PATIENCE = st.integers(MIN_PATIENCE_S, MAX_PATIENCE_S)
#: TCP_RTO_MAX of Linux, seconds.
LONGEST_TCP_PAUSE_S = 120


@given(PATIENCE)
def test_ray_calls_a_silent_node_dead_when_the_patience_ends_and_not_before(patience_s: int) -> None:
    found = ray_timeouts(patience_s)
    checks = int(found["RAY_health_check_failure_threshold"])
    each_s = (int(found["RAY_health_check_period_ms"]) + int(found["RAY_health_check_timeout_ms"])) / 1000
    # The path that comes back after the patience needs up to 8 s until it carries packets.
    assert patience_s + 8 <= checks * each_s <= patience_s + 15
    assert int(found["RAY_health_check_timeout_ms"]) > 0


@given(PATIENCE)
def test_no_connection_breaks_before_ray_has_decided(patience_s: int) -> None:
    found = ray_timeouts(patience_s)
    for end in ("RAY_grpc_keepalive_timeout_ms", "RAY_grpc_client_keepalive_timeout_ms", "RAY_subscriber_timeout_ms"):
        assert int(found[end]) / 1000 > patience_s + LONGEST_TCP_PAUSE_S
    assert int(found["RAY_gcs_server_request_timeout_seconds"]) >= patience_s
    assert int(found["RAY_gcs_rpc_server_reconnect_timeout_s"]) >= patience_s
    assert int(found["RAY_CLIENT_RECONNECT_GRACE_PERIOD"]) == patience_s


def test_heads_workers_and_drivers_wait_alike() -> None:
    expected = ray_timeouts(WORKER.patience_s).items()
    for environment in (ray_environment(RAY, HEAD, {}), ray_environment(RAY, WORKER, {}), client_environment(WORKER)):
        assert expected <= environment.items()
