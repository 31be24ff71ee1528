"""Hosts, switches, NAT routers and firewalls made of namespaces, and the tests on them.

world.py      builds the network of a test or the demo
host.py       one host: run commands in it, read its files, wait for something on it
firewalls.py  the rules of routers and firewalled hosts, as text
proxy.py      an HTTP proxy with a password
places.py     a host in every kind of network, and which pairs of them can talk directly
trouble.py    faults of a network in use; conversation.py: a connection that must survive them
init.py       the first process of every host
leftovers.py  removes what a killed run has left behind
waiting.py    conditions with deadlines
"""
