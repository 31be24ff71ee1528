"""The doctor finds faults and their fixes: checks are data, decided by pure functions over the facts of the nodes.

Each area (device, machine, routes, firewall, control, path, ray, job) has up to three modules:

    probe.py ──► facts.py (plain values, which travel as JSON) ──► checks.py ──► findings ──examine──► report
"""
