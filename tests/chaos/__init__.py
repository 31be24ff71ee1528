"""Chaos: seeded trouble, several kinds at a time, and after each group of them oracles that are not our code.

`make test` runs each kind once, in an order and with victims that the seed gives; MESHRAY_CHAOS_SEED=N repeats a run,
MESHRAY_CHAOS_S=600 goes on for ten minutes.
"""
