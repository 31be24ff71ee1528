"""How long Ray waits for a node that does not answer, as the environment of every process of Ray. Pure.

    gap ≤ patience     tasks, actor calls, transfers and drivers go on when the path is back
    gap > patience     Ray calls the node dead: its own errors and its own retries, on other nodes

Ray has a dozen timeouts that decide this, in three layers. Each is derived from one number, so that the layers agree:
a connection must never break before Ray has decided about the node, and nothing may wait for ever after it has.

    >>> ray_timeouts(120)["RAY_health_check_timeout_ms"]
    '18000'
"""

from __future__ import annotations

from collections.abc import Mapping

#: Linux sends unacknowledged data again after pauses that double up to this (TCP_RTO_MAX of net/tcp.h), seconds.
_LONGEST_TCP_PAUSE_S = 120
#: What a health check, a report and a busy machine may add, seconds.
_MARGIN_S = 60
#: The health check of Ray's GCS: so many failures in a row, a check every `_CHECK_PERIOD_S` after the last answer.
_CHECKS = 6
_CHECK_PERIOD_S = 3
#: Ray's own defaults where a shorter patience does not need less (ray_config_def.h of Ray 2.60), seconds.
_SUBSCRIBER_S, _FETCH_FAIL_S, _GCS_REQUEST_S, _PULL_S = 300, 600, 60, 60


def ray_timeouts(patience_s: int) -> Mapping[str, str]:
    """Return the environment with which each process of Ray, and each driver, waits for ``patience_s`` seconds.

    docs/design.md explains each value. The same is needed on all nodes: the server's side of a connection closes it as
    well as the client's.
    """
    # A check that gets no answer takes its whole timeout, so this many of them together take the patience. Where the
    # machine refuses the connection each fails at once, and they take 18 s.
    check_ms = round((patience_s / _CHECKS - _CHECK_PERIOD_S + 1) * 1000)
    # TCP_USER_TIMEOUT of both ends (gRFC A18): after a gap of the whole patience, the next try may be two minutes away.
    connection_ms = (patience_s + _LONGEST_TCP_PAUSE_S + _MARGIN_S) * 1000
    return {
        "RAY_health_check_period_ms": str(_CHECK_PERIOD_S * 1000),
        "RAY_health_check_timeout_ms": str(check_ms),
        "RAY_health_check_failure_threshold": str(_CHECKS),
        # A node that was called dead while it was away learns of it by asking; until then it works for nobody.
        "RAY_raylet_liveness_self_check_interval_ms": "5000",
        "RAY_grpc_keepalive_timeout_ms": str(connection_ms),
        "RAY_grpc_client_keepalive_timeout_ms": str(connection_ms),
        # GCS refuses clients that ping more often than this says (grpc_server.cc), and Ray's Python clients do so once
        # a minute (gcs_utils.py).
        "RAY_grpc_client_keepalive_time_ms": "60000",
        # Without a connection to GCS a raylet and a driver give up after this.
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(max(_GCS_REQUEST_S, patience_s)),
        "RAY_gcs_server_request_timeout_seconds": str(max(_GCS_REQUEST_S, patience_s + _MARGIN_S // 2)),
        # gRPC takes it for the time that a new connection may take.
        "RAY_gcs_grpc_min_reconnect_backoff_ms": "2000",
        # How long at most until a call that failed for the connection's sake looks again: Ray's 60 s are a long time
        # after a gap that is over.
        "RAY_core_worker_rpc_server_reconnect_timeout_max_s": "10",
        "RAY_raylet_rpc_server_reconnect_timeout_max_s": "10",
        "RAY_subscriber_timeout_ms": str(max(_SUBSCRIBER_S, patience_s + _LONGEST_TCP_PAUSE_S + _MARGIN_S) * 1000),
        "RAY_fetch_fail_timeout_milliseconds": str(max(_FETCH_FAIL_S, 2 * patience_s + _LONGEST_TCP_PAUSE_S) * 1000),
        "RAY_object_manager_default_chunk_size": str(1024 * 1024),
        # An object that has not come by then is asked for again, and all of it sent a second time (PullManager and
        # PushManager of Ray 2.60). Ray's own 10 s are too short for 1 GB on a line of less than 0.9 Gbit/s.
        "RAY_object_manager_pull_timeout_ms": str(_PULL_S * 1000),
        # Ray Client keeps the session of a driver that lost its connection for so long.
        "RAY_CLIENT_RECONNECT_GRACE_PERIOD": str(patience_s),
    }
