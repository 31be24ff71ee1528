"""This node's WireGuard device: what it should be, and the steps that make it so."""
