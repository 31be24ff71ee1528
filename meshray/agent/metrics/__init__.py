"""The agent's metrics for Prometheus, at the node's overlay address."""
