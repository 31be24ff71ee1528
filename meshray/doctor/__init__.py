"""What is wrong and how to fix it: checks as data, decided by pure functions over what the nodes see.

Each area (device, machine, routes, firewall, control, path, ray, job) has up to three modules:

    probe.py ──► facts.py (plain values, which travel as JSON) ──► checks.py ──► findings ──examine──► report
"""
