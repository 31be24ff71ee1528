"""How packets reach the other nodes, and how large and fast they may be.

    candidates ──► pairs ──► decision     directly, one pair at a time
    hubkeeper ───► hubs ──┐               through a hub, which of them; outward, sightings, rebinds on hubs themselves
    carrier ─────► transport              to the hub: UDP, or the relay
    prober                                round trips, which all of them ask for
    mtukeeper ───► mtu · sampler ──► throughput ──► trains

What decides (decision, hubs, transport, trains, sightings, rebinds) is pure; the others ask, send and tell the time.
"""
