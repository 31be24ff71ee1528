"""The service that enrols nodes, hands out addresses and publishes the mesh map.

allocation, registry    pure: what is allowed, who gets which address, what changes
store                   the registry's rows in SQLite
ledger                  one change after another, written before it is answered
publisher               the map to every agent, each message serialised once
service, api, link      what is done, what is asked over HTTP, one agent's WebSocket
listener, door, server  one TLS port, bounds on strangers
create                  a new mesh: store, certificate, first node, first token
"""
