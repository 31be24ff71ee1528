"""Chaos: seeded trouble, several kinds at a time, and after each group checks by oracles that are not our code.

`make test` runs each kind once, with order and victims from the seed; MESHRAY_CHAOS_SEED=N repeats a run, and
MESHRAY_CHAOS_S=600 continues for ten minutes.
"""
