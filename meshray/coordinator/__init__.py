"""The service that enrols nodes, assigns addresses and publishes the mesh map.

allocation, registry    pure: what is allowed, which node gets which address, what changes
store, sqlite_store     the registry's rows on disk
ledger                  one change after another, written before its request is answered
publisher               the map to every agent, each message serialised once
service, handlers       the operations, and their requests over HTTP
agent_connection        one agent's WebSocket
listener, server        one TLS port
connection_limits       limits for unauthenticated connections
create                  a new mesh: store, certificate, first node, first token
"""
