"""The firewalls of a host, one class each: programs that change tables, and programs that manage such tables.

Nft, Iptables      read, open, close, remove, advise Firewalld, Ufw     manages, open, close, advise
"""
