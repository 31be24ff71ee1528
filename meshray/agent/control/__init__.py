"""The agent's control socket: what the command line may ask."""
