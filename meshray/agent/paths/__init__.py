"""How packets reach the other nodes, and how large they may be.

    candidates ──► pairs ──► decision    directly, one pair at a time
    hub_monitor ─► hubs                  through a hub, which of them; on hubs hub_dialback, observed_endpoints, rebinds
    carrier ─────► transport             to the hub: UDP, or the relay
    prober                               round trips, which all of them ask for
    path_mtu ────► mtu
    silence_watch ─► silence · silent_nodes
    paths                                all of these, put together for the agent

What decides (decision, hubs, transport, observed_endpoints, rebinds, silence, live_peer) is pure; the others
ask, send and keep the time.
"""
