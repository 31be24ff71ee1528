"""meshray: one real Ray cluster out of machines that cannot reach each other.

    meshray init              on the head
    meshray join <token>      on every worker

The flow of data through the folders:
token → coordinator (enrol, registry, map) → agent (desired device) → wireguard (plan, apply) →
firewall → raynode → doctor and status.
"""

__version__ = "0.1.0"
