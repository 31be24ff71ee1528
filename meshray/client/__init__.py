"""Ways to ask: the coordinator over HTTPS and WebSockets, and the agent of this machine."""
