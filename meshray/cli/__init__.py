"""What a user types. Commands ask, act and return frozen results; `output` shows them.

main ──► commands/… ──► results ──► output (for people) or envelope (for scripts)
"""
