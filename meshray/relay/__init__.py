"""WireGuard's datagrams inside one TLS WebSocket, for networks in which UDP does not pass.

WireGuard ◄─UDP, loopback─► client ◄─WebSocket, through any proxy─► server ◄─UDP, loopback─► the hub's WireGuard

The relay sees ciphertext only, holds no keys, and forwards to its own hub's WireGuard port and to nothing else.
"""
