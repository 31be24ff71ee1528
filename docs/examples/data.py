"""Cleans and sums up a table that lies in blocks on all nodes, with Ray Data.

meshray run -- python docs/examples/data.py          (on every node: pip install 'meshray[examples]')

The table is made up: temperatures from 50 weather stations, some of them broken readings.
"""

from __future__ import annotations

from collections import Counter

import ray

try:
    import numpy as np
    import ray.data
    from numpy.typing import NDArray
    from ray.data.aggregate import Count, Max, Mean
except ImportError as missing:
    raise SystemExit(f"{missing}\nThis example needs, on every node: pip install 'meshray[examples]'") from missing

READINGS = 200_000
STATIONS = 50
BLOCKS = 12
#: Every so many-th reading is broken.
BROKEN_EVERY = 97
BROKEN = -999.0

Batch = dict[str, NDArray[np.generic]]


def measure(batch: Batch) -> Batch:
    """Turns reading numbers into readings: a station's mean is its number / 2, and readings swing around it by 5."""
    number = batch["id"].astype(np.int64)
    station = number % STATIONS
    celsius = station / 2 + 5 * np.sin(number)
    node = ray.get_runtime_context().get_node_id()
    return {
        "station": station,
        "celsius": np.where(number % BROKEN_EVERY == 0, BROKEN, celsius),
        "node": np.full(len(number), node),
    }


def plausible(batch: Batch) -> Batch:
    """Without the broken readings."""
    keep = batch["celsius"] != BROKEN
    return {name: column[keep] for name, column in batch.items()}


def main() -> None:
    """Make, clean, group, check."""
    ray.init("auto")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # As many parts as the table has blocks; 200, the default, are for larger tables.
    context.default_hash_shuffle_parallelism = BLOCKS
    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}

    table = ray.data.range(READINGS, override_num_blocks=BLOCKS).map_batches(measure).map_batches(plausible)
    table = table.materialize()
    rows: Counter[str] = Counter()
    for batch in table.select_columns(["node"]).iter_batches(batch_size=None):
        for node, count in zip(*np.unique(batch["node"], return_counts=True), strict=True):
            rows[names[str(node)]] += int(count)
    print(f"{table.count()} good readings, made on: {', '.join(f'{name} {n}' for name, n in sorted(rows.items()))}")

    by_station = table.groupby("station").aggregate(Count(), Mean("celsius"), Max("celsius"))
    summary = sorted(by_station.take_all(), key=lambda row: row["station"])
    for row in summary[:: STATIONS // 5]:
        print(f"station {row['station']:2}: mean {row['mean(celsius)']:5.2f} °C, max {row['max(celsius)']:5.2f} °C")

    assert table.count() == READINGS - len(range(0, READINGS, BROKEN_EVERY))
    assert sum(row["count()"] for row in summary) == table.count()
    assert [row["station"] for row in summary] == list(range(STATIONS))
    assert all(abs(row["mean(celsius)"] - row["station"] / 2) < 0.2 for row in summary)


if __name__ == "__main__":
    main()
