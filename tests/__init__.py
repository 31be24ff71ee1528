"""The tests, a folder per tier: see `tests.tiers`."""
