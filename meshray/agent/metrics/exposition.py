"""The text of one scrape, in Prometheus' format 0.0.4 (pure).

Series of a pair have the names of both nodes, so that a rule can name them. They exist only for paths in use: their
number grows with a node's peers, not with the mesh.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from meshray.agent.metrics.figures import Figures, PeerFigures
from meshray.agent.metrics.text_format import COUNTER, GAUGE, Family

_NODE = ("mesh", "node")
_PAIR = (*_NODE, "peer")


def metrics_text(figures: Figures) -> str:
    """Return the text of all series of a node."""
    families = (*_of_node(figures), *_of_peers(figures), *_of_engine(figures))
    return "".join(family.text() for family in families)


def _of_node(figures: Figures) -> Iterator[Family]:
    node_labels = (figures.mesh, figures.node)
    names = (*_NODE, "ip", "roles", "version", "site")
    info = Family("meshray_node_info", GAUGE, "This node; always 1.", names)
    info.add((*node_labels, figures.ip, ",".join(figures.roles), figures.version, figures.site), 1)
    yield info
    if figures.ray_alive is not None:
        yield _gauge(
            "meshray_ray_alive", "Whether the head's Ray lists this node as ALIVE.", node_labels, figures.ray_alive
        )
    yield _gauge(
        "meshray_coordinator_reachable",
        "Whether this node is connected to the coordinator.",
        node_labels,
        figures.coordinator_reachable,
    )
    yield _counter(
        "meshray_coordinator_connects",
        "How often this node's agent connected to the coordinator since it was started.",
        node_labels,
        figures.connections,
    )
    yield _gauge(
        "meshray_map_revision", "The revision of this node's map of the mesh.", node_labels, figures.map_revision
    )
    if (usage := figures.agent_usage) is not None:
        memory, time = "Resident memory of the agent's process.", "Processor time of the agent's process."
        yield _gauge("meshray_agent_resident_memory_bytes", memory, node_labels, usage.resident_bytes)
        yield _counter("meshray_agent_cpu_seconds", time, node_labels, usage.cpu_seconds)


def _of_peers(figures: Figures) -> Iterator[Family]:
    node_labels, peers = (figures.mesh, figures.node), figures.peers
    path = Family(
        "meshray_peer_path_info",
        GAUGE,
        "The path to the peer, always 1; kind is direct or hub, transport udp or wss.",
        (*_PAIR, "kind", "transport"),
    )
    for peer in peers:
        path.add((*node_labels, peer.peer, str(peer.kind), str(peer.transport or "")), 1)
    yield path
    rtt, loss = "Median round trip to the peer over the overlay.", "Share of the last probes without an answer, 0 to 1."
    yield _pairs(GAUGE, "meshray_peer_rtt_seconds", rtt, node_labels, ((peer, peer.rtt_s) for peer in peers))
    yield _pairs(GAUGE, "meshray_peer_loss_ratio", loss, node_labels, ((peer, peer.loss) for peer in peers))
    yield _pairs(
        COUNTER,
        "meshray_peer_receive_bytes",
        "Bytes received from the WireGuard peer; those of relayed pairs count for the hub.",
        node_labels,
        ((peer, peer.receive_bytes) for peer in peers),
    )
    yield _pairs(
        COUNTER,
        "meshray_peer_transmit_bytes",
        "Bytes sent to the WireGuard peer; those of relayed pairs count for the hub.",
        node_labels,
        ((peer, peer.transmit_bytes) for peer in peers),
    )
    yield _pairs(
        GAUGE,
        "meshray_peer_last_handshake_seconds",
        "When the last handshake with the WireGuard peer was, in unix time.",
        node_labels,
        ((peer, peer.last_handshake) for peer in peers),
    )


def _of_engine(figures: Figures) -> Iterator[Family]:
    node_labels, names = (figures.mesh, figures.node, figures.engine), (*_NODE, "engine")
    if (usage := figures.engine_usage) is not None:
        memory, time = "Resident memory of the WireGuard engine.", "Processor time of the WireGuard engine."
        yield _gauge("meshray_engine_resident_memory_bytes", memory, node_labels, usage.resident_bytes, names)
        yield _counter("meshray_engine_cpu_seconds", time, node_labels, usage.cpu_seconds, names)
    if (udp := figures.udp) is not None:
        waiting = "Bytes of datagrams that wait for WireGuard in its UDP socket."
        lost = "Datagrams that the kernel dropped because WireGuard's UDP socket was full."
        yield _gauge("meshray_engine_udp_receive_queue_bytes", waiting, node_labels, udp.received_bytes, names)
        yield _counter("meshray_engine_udp_receive_drops", lost, node_labels, udp.dropped, names)
    if (interface := figures.interface) is not None:
        for name, description, value in (
            ("receive_bytes", "Bytes that the overlay's interface received.", interface.received_bytes),
            ("transmit_bytes", "Bytes that the overlay's interface sent.", interface.sent_bytes),
            ("receive_errors", "Packets with errors that the overlay's interface received.", interface.receive_errors),
            ("transmit_errors", "Packets that the overlay's interface failed to send.", interface.send_errors),
            ("receive_drops", "Received packets that the overlay's interface dropped.", interface.receive_drops),
            (
                "transmit_drops",
                "Packets to send that the overlay's interface dropped.",
                interface.send_drops,
            ),
        ):
            yield _counter(f"meshray_engine_interface_{name}", description, node_labels, value, names)


def _gauge(name: str, description: str, labels: Sequence[str], value: float, names: Sequence[str] = _NODE) -> Family:
    family = Family(name, GAUGE, description, names)
    family.add(labels, value)
    return family


def _counter(name: str, description: str, labels: Sequence[str], value: float, names: Sequence[str] = _NODE) -> Family:
    family = Family(name, COUNTER, description, names)
    family.add(labels, value)
    return family


def _pairs(
    kind: str,
    name: str,
    description: str,
    node_labels: Sequence[str],
    values: Iterable[tuple[PeerFigures, float | None]],
) -> Family:
    """Return a family with one series for each peer whose value is known."""
    family = Family(name, kind, description, _PAIR)
    for peer, value in values:
        if value is not None:
            family.add((*node_labels, peer.peer), value)
    return family
