"""WireGuard's datagrams inside one TLS WebSocket, for networks that block UDP.

    WireGuard ◄─UDP, loopback─► client ◄─WebSocket, through any proxy─► server ◄─UDP, loopback─► the hub's WireGuard

The relay sees only ciphertext, holds no keys, and forwards only to its own hub's WireGuard port.
"""
