"""Ray on this node: its command line and environment, its versions, its processes and its entry in the node table.

command, decide and explain are pure; versions, preflight, state and processes inspect the machine; supervisor combines
them.
"""
