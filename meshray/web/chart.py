"""The chart of a node's bandwidth during the last hour, as paths of SVG (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshray.coordinator.observations import Rate
from meshray.web import numbers

#: The time that the chart shows, seconds; its size in units of its own, which the page stretches.
SPAN_S = 3600.0
WIDTH, HEIGHT = 720, 120
#: Points further apart than this are not connected: the node did not report in between, seconds.
_GAP_S = 95.0
_TOP = 8.0


@dataclass(frozen=True)
class Chart:
    """The chart.

    Attributes:
        received, sent, received_area, grid: paths of SVG.
        peak, now_received, now_sent: bytes per second.
        words: the chart in one sentence.
    """

    received: str
    sent: str
    received_area: str
    grid: str
    peak: float
    now_received: float
    now_sent: float
    start_label: str
    words: str
    width: int = WIDTH
    height: int = HEIGHT


def chart(rates: Sequence[Rate], now: float) -> Chart | None:
    """Return the chart of these rates; None without any."""
    shown = [rate for rate in rates if rate.at > now - SPAN_S]
    if not shown:
        return None
    peak = max(max(rate.rx_bytes_s, rate.tx_bytes_s) for rate in shown)
    scale = (HEIGHT - _TOP) / peak if peak > 0 else 0.0
    # The time axis moves in steps, so that the chart of an idle node does not change every second.
    right = max(shown[-1].at + 30.0, now // 30 * 30)

    def points(values: Sequence[float]) -> list[list[tuple[float, float]]]:
        runs: list[list[tuple[float, float]]] = []
        for index, (rate, value) in enumerate(zip(shown, values, strict=True)):
            if not index or rate.at - shown[index - 1].at > _GAP_S:
                runs.append([])
            x = WIDTH * (1 - (right - rate.at) / SPAN_S)
            runs[-1].append((round(max(0.0, x), 1), round(HEIGHT - 1 - value * scale, 1)))
        return runs

    received = points([rate.rx_bytes_s for rate in shown])
    sent = points([rate.tx_bytes_s for rate in shown])
    last = shown[-1]
    minutes = max(1, round((right - shown[0].at) / 60))
    words = (
        f"Bandwidth of the last {minutes} min: received {numbers.rate(last.rx_bytes_s)} now, "
        f"sent {numbers.rate(last.tx_bytes_s)} now, peak {numbers.rate(peak)}."
    )
    return Chart(
        " ".join(map(_line, received)),
        " ".join(map(_line, sent)),
        " ".join(map(_area, received)),
        " ".join(f"M0 {y} H{WIDTH}" for y in (HEIGHT * 0.25, HEIGHT * 0.5, HEIGHT * 0.75)),
        peak,
        last.rx_bytes_s,
        last.tx_bytes_s,
        "1 h ago",
        words,
    )


def _line(run: Sequence[tuple[float, float]]) -> str:
    if len(run) == 1:  # A single point is visible as a short line.
        run = [run[0], (run[0][0] + 3, run[0][1])]
    return "M" + " L".join(f"{x} {y}" for x, y in run)


def _area(run: Sequence[tuple[float, float]]) -> str:
    return f"{_line(run)} V{HEIGHT} H{run[0][0]} Z" if len(run) > 1 else ""
