"""Paths between nodes: UDP, NAT, loss, MTU."""
