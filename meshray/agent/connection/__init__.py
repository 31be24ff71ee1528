"""The agent's connection to the coordinator: it receives the map and sends what this node knows."""
