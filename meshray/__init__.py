"""meshray: one real Ray cluster out of machines that cannot reach each other.

    meshray init              on the head
    meshray join <token>      on every worker

The way of the data, in the order of the folders that it passes:
token → coordinator (enrol, registry, map) → agent (desired device) → wireguard (plan, apply) →
firewall → raynode → doctor and status.
"""

__version__ = "0.1.0"
