"""A database that was put back from an older copy: recognised, and completed from what the nodes know."""
