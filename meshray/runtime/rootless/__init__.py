"""A node without root: separate namespaces, which a process of the user holds.

holder ── user, network, pid, mount, ipc namespace: overlay interface, Ray
agent  ── the same user namespace, everything else outside: coordinator, relay, engine with its UDP socket
"""
