"""The agent's work for Ray beside supervising this node's own: it keeps the head's node table correct.

departed (pure) ──► table_keeper ──► offers
"""
