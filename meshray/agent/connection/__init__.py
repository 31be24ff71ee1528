"""The agent's connection to the coordinator: the map comes in, what this node knows goes out."""
