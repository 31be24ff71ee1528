"""What the agent does about Ray besides supervising this node's own: the head's node table is kept true.

departed (pure) ──► table_keeper ──► offers
"""
