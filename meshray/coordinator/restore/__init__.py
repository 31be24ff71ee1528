"""Detection of a database that was restored from an older copy, and its completion from the nodes' knowledge."""
