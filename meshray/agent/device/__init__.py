"""This node's WireGuard device: its desired state, and the steps that establish it."""
