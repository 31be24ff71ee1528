"""A node in a Docker container of its own, seen from outside.

engine      which Docker engine, and the errors that keep it from being used
image       which image, what it contains, what must be added to it
wheels      this very installation as wheels, to be installed in the container without a network
plan        what the container gets: its memory, its devices, its names (pure)
record      what is remembered of it outside: container.json
node        the container: made, started, spoken to, stopped and removed
"""
