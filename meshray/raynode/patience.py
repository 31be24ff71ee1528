"""The environment that determines how long Ray waits for an unresponsive node (pure).

    outage ≤ patience     tasks, actor calls, transfers and drivers continue when the path is back
    outage > patience     Ray considers the node dead, with its usual errors and retries on other nodes

Ray has a dozen timeouts for this, in three layers. All are derived from one number, so that the layers agree: a
connection must not break before Ray has decided about the node, and nothing may wait forever afterwards.

    >>> ray_timeouts(120)["RAY_health_check_timeout_ms"]
    '19000'
"""

from __future__ import annotations

from collections.abc import Mapping

#: Linux retransmits after pauses that double up to this value (TCP_RTO_MAX of net/tcp.h), seconds.
_LONGEST_TCP_PAUSE_S = 120
#: The time that a health check, a report and a busy machine may add, seconds.
_MARGIN_S = 60
#: The health check of Ray's GCS: the number of successive failures, and the pause after the last answer, seconds.
_CHECKS = 6
_CHECK_PERIOD_S = 3
#: The time until a path that is back carries packets (a handshake every 5 s, then the next retransmission), and the
#: pause before the first check, seconds.
_RECOVERY_S = 12
#: Ray's defaults, the lower limits for a short patience (ray_config_def.h of Ray 2.60), seconds.
_SUBSCRIBER_S, _FETCH_FAIL_S, _GCS_REQUEST_S, _PULL_S = 300, 600, 60, 60


def ray_timeouts(patience_s: int) -> Mapping[str, str]:
    """Return the environment with which all processes of Ray, and drivers, wait for ``patience_s`` seconds.

    docs/design.md explains each value. All nodes need the same values, because both ends of a connection can close it.
    """
    # An unanswered check takes its whole timeout, so all checks together take the patience and the time until a path
    # that is back carries packets. If the machine refuses the connection each check fails at once, and all of them
    # take 18 s.
    check_ms = round((patience_s / _CHECKS - _CHECK_PERIOD_S + _RECOVERY_S / _CHECKS) * 1000)
    # TCP_USER_TIMEOUT of both ends (gRFC A18): after an outage of the whole patience, the next retransmission may be
    # two minutes away.
    connection_ms = (patience_s + _LONGEST_TCP_PAUSE_S + _MARGIN_S) * 1000
    return {
        "RAY_health_check_period_ms": str(_CHECK_PERIOD_S * 1000),
        "RAY_health_check_timeout_ms": str(check_ms),
        "RAY_health_check_failure_threshold": str(_CHECKS),
        # A node that was declared dead during an outage notices only when it asks.
        "RAY_raylet_liveness_self_check_interval_ms": "5000",
        "RAY_grpc_keepalive_timeout_ms": str(connection_ms),
        "RAY_grpc_client_keepalive_timeout_ms": str(connection_ms),
        # GCS refuses clients that ping more often (grpc_server.cc), and Ray's Python clients ping once a minute
        # (gcs_utils.py).
        "RAY_grpc_client_keepalive_time_ms": "60000",
        # The time without a connection to GCS after which a raylet and a driver give up.
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(max(_GCS_REQUEST_S, patience_s)),
        "RAY_gcs_server_request_timeout_seconds": str(max(_GCS_REQUEST_S, patience_s + _MARGIN_S // 2)),
        # gRPC also uses this as the timeout of a new connection.
        "RAY_gcs_grpc_min_reconnect_backoff_ms": "2000",
        # The longest time until a call that failed with its connection is retried. Ray's default of 60 s would be a
        # long delay after an outage.
        "RAY_core_worker_rpc_server_reconnect_timeout_max_s": "10",
        "RAY_raylet_rpc_server_reconnect_timeout_max_s": "10",
        "RAY_subscriber_timeout_ms": str(max(_SUBSCRIBER_S, patience_s + _LONGEST_TCP_PAUSE_S + _MARGIN_S) * 1000),
        "RAY_fetch_fail_timeout_milliseconds": str(max(_FETCH_FAIL_S, 2 * patience_s + _LONGEST_TCP_PAUSE_S) * 1000),
        "RAY_object_manager_default_chunk_size": str(1024 * 1024),
        # An object that has not arrived by then is requested again and sent a second time (PullManager and PushManager
        # of Ray 2.60). Ray's default of 10 s is too short for 1 GB at less than 0.9 Gbit/s.
        "RAY_object_manager_pull_timeout_ms": str(_PULL_S * 1000),
        # How long Ray Client keeps the session of a driver that lost its connection.
        "RAY_CLIENT_RECONNECT_GRACE_PERIOD": str(patience_s),
    }
