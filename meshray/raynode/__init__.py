"""Ray on this node: its command line and environment (pure), its versions, its process, its place in the node table.

command, decide and explain are pure; versions, preflight, state and processes ask the machine; supervisor joins them.
"""
