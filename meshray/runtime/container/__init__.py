"""A node that lives in a container of its own, seen from outside of it.

engine      which Docker engine, and what it says when it cannot
image       which image, what is in it, what must be brought into it
wheels      this very installation as wheels, to be installed in there without a network
plan        what the container gets: its memory, its devices, its names (pure)
record      what is remembered of it outside: container.json
node        made, started, spoken to, stopped and removed
first       the one module that runs inside: its first process
"""
