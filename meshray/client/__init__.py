"""Clients of the coordinator (HTTPS and WebSockets) and of this machine's agent."""
