"""The paths of packets to the other nodes, and their MTU.

    traffic ─────► demand                which pairs are contacted directly
    candidates ──► pairs ──► decision    directly, one pair at a time
    hub_monitor ─► hubs                  through a hub, which of them; on hubs hub_dialback, observed_endpoints, rebinds
    carrier ─────► transport             to the hub: UDP, or the relay
    prober                               round trips, which all of them use
    path_mtu ────► mtu
    silence_watch ─► silence · silent_nodes
    paths                                all of these, combined for the agent

The modules that decide (demand, due_times, decision, hubs, transport, observed_endpoints, rebinds, silence, live_peer)
are pure; the others query, send and measure time.
"""
