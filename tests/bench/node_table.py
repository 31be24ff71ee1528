"""Watch the node table of a Ray head and report when a node becomes ALIVE in it.

    python -m tests.bench.node_table 10.99.0.1:6379

It prints a line of JSON for every node that is new and ALIVE: {"ip", "at"}, by the monotonic clock of the machine. It
asks the GCS itself, which takes a millisecond: the dashboard would keep a core busy.
"""

from __future__ import annotations

import json
import sys
import time

from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo

POLL_S = 0.02


def main() -> None:
    """Run the program; see the module's docstring."""
    gcs = GcsClient(address=sys.argv[1])
    seen: set[object] = set()
    while True:
        for node_id, node in gcs.get_all_node_info(timeout=10).items():
            if node.state == GcsNodeInfo.ALIVE and node_id not in seen:
                seen.add(node_id)
                print(json.dumps({"ip": node.node_manager_address, "at": time.monotonic()}), flush=True)
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
