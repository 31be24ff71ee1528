"""The agent's work for Ray beside supervising this node's own: it keeps the head's node table correct.

dead_entries (pure) ──► table_keeper ──► last_resources
"""
