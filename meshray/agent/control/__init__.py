"""The agent's control socket: the requests that the command line may send."""
