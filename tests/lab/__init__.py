"""Hosts, switches, NAT routers and firewalls out of namespaces, and what is tested on them.

world.py      what a test or the demo builds its network with
host.py       one host: run commands in it, read its files, wait for something on it
firewalls.py  the rules of routers and firewalled hosts, as text
proxy.py      an HTTP proxy with a password
places.py     a host in every kind of network, and which pairs of them can talk directly
trouble.py    what happens to a network in use; conversation.py: what must live through it
init.py       the first process of every host
leftovers.py  what a killed run may have left behind
waiting.py    conditions with deadlines
"""
