"""A Ray job that moves data between all nodes (`--deep`)."""
