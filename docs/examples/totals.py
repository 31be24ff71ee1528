"""Add up the resources of all nodes: CPUs, GPUs, memory and object store.

meshray run -- python docs/examples/totals.py

`meshray status --json` has the same sums in "totals", without a driver.
"""

from __future__ import annotations

import ray

UNITS = {"CPU": (1, ""), "GPU": (1, ""), "memory": (2**30, " GiB"), "object_store_memory": (2**30, " GiB")}


def main() -> None:
    """Print a line per node and the sums; they must be those of Ray's own cluster view."""
    ray.init("auto")
    totals = dict.fromkeys(UNITS, 0.0)
    for node in sorted(
        (node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeManagerAddress"])
    ):
        offered = {name: node["Resources"].get(name, 0.0) for name in UNITS}
        print(f"{node['NodeName']:20}", ", ".join(shown(name, amount) for name, amount in offered.items()))
        for name, amount in offered.items():
            totals[name] += amount
    print(f"{'total':20}", ", ".join(shown(name, amount) for name, amount in totals.items()))
    for name, amount in totals.items():
        assert abs(amount - ray.cluster_resources().get(name, 0.0)) < 1, name


def shown(name: str, amount: float) -> str:
    """Return an amount with its unit."""
    divisor, unit = UNITS[name]
    return f"{name} {amount / divisor:.4g}{unit}"


if __name__ == "__main__":
    main()
