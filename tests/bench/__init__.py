"""Benchmarks of speed and size: `make bench`, or `python -m tests.bench NAME…` for some of them. Needs root.

figures.py     the measurements, and whether they meet their targets (pure)
machine.py     the machine of the measurements
report.py      the tables, docs/benchmarks.md, JSON
join.py  agent.py  stream.py  startup.py  enrolments.py  relay.py  paths.py      one benchmark each
crowd.py  node_table.py  wall_time.py                        programs that run inside the hosts of a benchmark

A benchmark is a module with TITLE, HOW (a paragraph for the reader of docs/benchmarks.md) and `measure`.
"""
