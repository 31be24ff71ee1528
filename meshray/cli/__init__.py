"""The command line. Commands query, act and return frozen results; `output` shows them.

main ──► commands/… ──► results ──► output (for users) or envelope (for scripts)
"""
