"""The node's report about its paths to the coordinator: what it contains, when it is sent, and the task that sends it.

    device, map changed ──► shape: kinds, transports, ports ──changed──► send at once
    every CHECK_S ────────► numbers: rtt, loss, bytes ───────noticeably─► send
    every AT_LEAST_S ──────────────────────────────────────────────────► send

The coordinator only shows the reports; nothing else depends on them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

from meshray.agent.status.node_site import site_of_node
from meshray.agent.status.snapshot import Sources, current_path
from meshray.agent.status.used_paths import UsedPath, UsedPaths
from meshray.defaults import METRICS_PORT
from meshray.linux import overlay_netns
from meshray.linux.interface_counters import interface_counters
from meshray.model.meshmap import MeshMap
from meshray.protocol.connection import LONGEST_REASON, MOST_PATHS, PathReport, ReportedPath
from meshray.protocol.fields import MAX_ITEMS
from meshray.raynode.listeners import ListeningSocket
from meshray.wireguard.config import DeviceState

#: The interval at which the task looks for a change of a path's kind, seconds. Changes within it are one report.
TICK_S = 0.5
#: The interval at which it compares the numbers, and the longest time between two reports, seconds.
CHECK_S = 5.0
AT_LEAST_S = 60.0
#: A number changed noticeably if it changed by this share, and by this much: milliseconds, and bytes per second.
_SHARE = 0.2
_LEAST_RTT_MS, _LEAST_BYTES_S = 0.5, 10_000.0
#: The same for the share of lost probes.
_LEAST_LOSS = 0.02


@dataclass(frozen=True)
class Sent:
    """The last report, when it was sent (monotonic seconds), and the bandwidth that it implied (bytes per second)."""

    report: PathReport
    at: float
    bytes_s: float = 0.0


def is_due(report: PathReport, last: Sent | None, now: float, workers: Collection[int] = ()) -> bool:
    """Return whether this report should be sent now (pure).

    Args:
        last: None: nothing was sent over this connection yet.
        workers: ports of Ray's workers, which come and go with tasks.
    """
    if last is None or now - last.at >= AT_LEAST_S or shape(report, workers) != shape(last.report, workers):
        return True
    if now - last.at < CHECK_S:
        return False
    return report.listens != last.report.listens or _differs(report, last, now)


def shape(report: PathReport, workers: Collection[int] = ()) -> object:
    """Return the part of a report whose change is sent at once."""
    listens = [port for port in report.listens if port not in workers]
    paths = {node_id: (path.kind, path.transport) for node_id, path in report.paths.items()}
    return report.site, report.key_since, listens, paths


def sent_now(report: PathReport, last: Sent | None, now: float) -> Sent:
    """Return the record of a report that is sent now (pure)."""
    return Sent(report, now, _bytes_s(report, last, now) if last is not None and now > last.at else 0.0)


def ports_from_overlay(
    heard: Iterable[ListeningSocket], own: IPv4Address, workers: Collection[int] = ()
) -> tuple[int, ...]:
    """Return the ports on which Ray's programs accept connections to this overlay address (pure).

    If they are too many for a report, ports of Ray's workers are left out first.
    """
    accepting = {"0.0.0.0", str(own)}  # noqa: S104 - compared, not bound
    ports = {
        found.port
        for found in heard
        if found.of_ray and (found.address in accepting or (found.address == "::" and not found.only_ipv6))
    }
    ports.discard(METRICS_PORT)
    chosen = sorted(ports, key=lambda port: (port in workers, port))[:MAX_ITEMS]
    return tuple(sorted(chosen))


def report_of(
    used: Sequence[UsedPath],
    *,
    site: str,
    key_since: float | None,
    listens: tuple[int, ...],
    counters: tuple[int, int],
) -> PathReport:
    """Return the report (pure). Arguments as the fields of `PathReport`."""
    return PathReport(
        site=site[:64],
        key_since=key_since,
        listens=listens,
        rx_bytes=counters[0],
        tx_bytes=counters[1],
        paths={
            node.id: ReportedPath(
                path.kind, path.transport, path.rtt_ms, path.loss, path.mtu, path.reason[:LONGEST_REASON]
            )
            for node, path in used[:MOST_PATHS]
        },
    )


class PathReporter:
    """The task that sends the reports.

    Args:
        key_since: returns when the node's key was created, unix seconds.
        guarded: returns the port guard's last look at the listening sockets; None: there is no guard here.
    """

    def __init__(
        self,
        sources: Sources,
        used: UsedPaths,
        key_since: Callable[[], float | None],
        guarded: Callable[[], Sequence[ListeningSocket] | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = sources
        self._used = used
        self._key_since = key_since
        self._guarded = guarded
        self._clock = clock
        self._sent: Sent | None = None
        self._connections = 0
        self._compared_at = 0.0
        self._last_input: tuple[DeviceState | None, MeshMap | None, tuple[int, ...]] = (None, None, ())

    async def run(self) -> None:
        """Send what is due, until cancelled."""
        while True:
            if self._sources.connection.is_open:
                await self._check()
            await asyncio.sleep(TICK_S)

    async def _check(self) -> None:
        state, connection, now = self._sources.state, self._sources.connection, self._clock()
        if connection.opened != self._connections:
            # Another process of the coordinator may answer, which knows nothing yet.
            self._connections, self._sent = connection.opened, None
        is_interval_over = self._sent is None or now - self._compared_at >= CHECK_S
        guarded = self._guarded()
        if guarded is None and is_interval_over:
            guarded = await asyncio.to_thread(overlay_netns.run, self._sources.parts.listening)
        workers = state.map.ports_of(state.me).workers
        listens = ports_from_overlay(guarded, state.me.ip, workers) if guarded is not None else self._last_input[2]
        # The state's values are replaced, never modified.
        device, mesh_map, ports = self._last_input
        if not is_interval_over and state.device is device and state.map is mesh_map and listens == ports:
            return
        self._last_input = state.device, state.map, listens
        self._compared_at = now if is_interval_over else self._compared_at
        report = self._report(listens)
        if is_due(report, self._sent, now, workers):
            self._sent = sent_now(report, self._sent, now)
            await connection.send(report)

    def _report(self, listens: tuple[int, ...]) -> PathReport:
        state = self._sources.state
        return report_of(
            self._used.current(self._sources.paths.in_use(), state.device, partial(current_path, self._sources)),
            site=site_of_node(state),
            key_since=self._key_since(),
            listens=listens,
            counters=device_bytes(self._sources, state.device),
        )


def device_bytes(sources: Sources, device: DeviceState | None) -> tuple[int, int]:
    """Return the bytes that the overlay's interface received and sent."""
    counters = overlay_netns.run(interface_counters, sources.parts.device.name)
    if counters is not None:
        return counters.received_bytes, counters.sent_bytes
    peers = device.peers.values() if device is not None else ()
    return sum(peer.rx_bytes for peer in peers), sum(peer.tx_bytes for peer in peers)


def _differs(report: PathReport, last: Sent, now: float) -> bool:
    """Return whether a number changed noticeably."""
    for node_id, path in report.paths.items():
        before = last.report.paths[node_id]
        if _differs_noticeably(path.rtt_ms, before.rtt_ms, _LEAST_RTT_MS):
            return True
        if _differs_noticeably(path.loss, before.loss, _LEAST_LOSS):
            return True
        if (path.mtu, path.reason) != (before.mtu, before.reason):
            return True
    return _differs_noticeably(_bytes_s(report, last, now), last.bytes_s, _LEAST_BYTES_S)


def _differs_noticeably(value: float | None, before: float | None, least: float) -> bool:
    if value is None or before is None:
        return value is not before
    return abs(value - before) > max(least, _SHARE * before)


def _bytes_s(report: PathReport, last: Sent, now: float) -> float:
    moved = report.rx_bytes + report.tx_bytes - last.report.rx_bytes - last.report.tx_bytes
    return max(0.0, moved / (now - last.at))
