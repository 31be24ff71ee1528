"""The labels of a Ray node about its link, so that tasks can request near nodes.

>>> link_labels(3.2, PathKind.DIRECT, Transport.UDP, "lab-2")
{'meshray.io/rtt': 'lt10ms', 'meshray.io/path': 'direct', 'meshray.io/site': 'lab-2'}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from meshray.model.address import Endpoint
from meshray.model.path import PathKind, Transport

RTT_LABEL = "meshray.io/rtt"
PATH_LABEL = "meshray.io/path"
SITE_LABEL = "meshray.io/site"
#: The label of a user: ``--label site=lab-2``.
USER_SITE_LABEL = "site"

#: Upper limits in milliseconds, each with its class.
_RTT_CLASSES = ((1.0, "lt1ms"), (10.0, "lt10ms"), (50.0, "lt50ms"), (150.0, "lt150ms"))
_SLOWEST = "ge150ms"
#: Not `is_private`, which treats documentation and benchmark networks as private.
_PRIVATE = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"))
#: Ray uses Kubernetes' syntax for a label's value.
_LONGEST_VALUE = 63
_NOT_IN_VALUE = re.compile(r"[^A-Za-z0-9_.-]+")


def rtt_class(rtt_ms: float) -> str:
    """Return the class of a round trip in milliseconds: lt1ms, lt10ms, lt50ms, lt150ms or ge150ms."""
    return next((name for bound, name in _RTT_CLASSES if rtt_ms < bound), _SLOWEST)


def link_labels(rtt_ms: float | None, path_kind: PathKind, transport: Transport | None, site: str) -> dict[str, str]:
    """Return the labels of a node.

    Args:
        rtt_ms: round trip to the head, milliseconds; None: not measured, no label.
        path_kind: the kind of the path to the head, see `meshray.model.path`; the head's own is SELF, which counts as
            direct.
        transport: WSS if datagrams to the hub travel in a WebSocket.
        site: see `site_of`; empty: no label.
    """
    labels = {RTT_LABEL: rtt_class(rtt_ms)} if rtt_ms is not None else {}
    if path_kind != PathKind.NONE:
        kind = PathKind.HUB if path_kind == PathKind.HUB else PathKind.DIRECT
        labels[PATH_LABEL] = str(transport if transport == Transport.WSS else kind)
    if site:
        labels[SITE_LABEL] = site
    return labels


def site_of(labels: Mapping[str, str], observed: Endpoint | None) -> str:
    """Return the site, whose nodes are near each other: the user's, else one derived from the observed endpoint.

    Machines behind one NAT share its public address; those that the hub observes with private or IPv6 addresses share
    their network (/24, /64).

    Args:
        observed: the node's endpoint in the hub's WireGuard (or its own public one); None: not known.
    """
    if user_site := labels.get(USER_SITE_LABEL):
        return _as_value(user_site)
    ip = observed.ip if observed is not None else None
    if isinstance(ip, IPv6Address):
        return IPv6Network((ip, 64), strict=False).network_address.exploded[:19].replace(":", "-")
    if isinstance(ip, IPv4Address) and any(ip in network for network in _PRIVATE):
        return _as_value(str(IPv4Network((ip, 24), strict=False)))
    return str(ip) if ip is not None else ""


def _as_value(text: str) -> str:
    return _NOT_IN_VALUE.sub("-", text)[:_LONGEST_VALUE].strip("-_.")
