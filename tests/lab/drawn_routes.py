"""Drawn faults of the layers route and link: routes, policy rules, interfaces, neighbours and the lines between."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from tests.lab.drawn_fault import DrawnFault, Step
from tests.lab.drawn_rules import AT_THE_HEAD, NO_PING, NO_TCP, ON_THE_PATH
from tests.lab.drawn_stage import FAR_LAN, FAR_NAT, GATEWAY, HEAD, NEAR_LAN, NEAR_NAT
from tests.lab.drawn_verdict import Truth

_GATEWAYS = {"head": GATEWAY, "near": NEAR_LAN, "far": FAR_LAN}
_REFUSALS = ("blackhole", "unreachable", "prohibit")
#: A network on which nobody answers.
_LAN7 = "ip link add lan7 type bridge; ip address add 192.168.77.1/24 dev lan7; ip link set lan7 up"
_OWN_NETWORK = r"no network|no route|unreachable|the route|interface .* is down|default"


def _truth(codes: str, nodes: str, says: str = "", never: str = "") -> Truth:
    return Truth(frozenset(codes.split()), frozenset(nodes.split()), says, never)


def _fault(place: str, what: str, inject: str, heal: str, effect: Step, asked: str, truth: Truth) -> DrawnFault:
    return DrawnFault("route", place, what, (Step(place, inject),), (Step(place, heal),), effect, asked, truth)


def to_outer_addresses() -> Iterator[DrawnFault]:
    """Yield a node's own routes that take away another node's address outside the overlay."""
    for place, width in product(("near", "far"), (32, 24)):
        target = f"{HEAD}/32" if width == 32 else "203.0.113.0/24"
        dead = _GATEWAYS[place].rpartition(".")[0] + ".99"
        ways = {kind: f"{kind} {target}" for kind in _REFUSALS}
        ways |= {"into-the-tunnel": f"{target} dev meshray0", "over-a-dead-gateway": f"{target} via {dead}"}
        for kind, route in ways.items():
            codes = "outer_addresses coordinator_tcp" if "dead" in kind else "outer_addresses"
            yield _fault(
                *(place, f"{kind}-/{width}-for-head", f"ip route add {route}", f"ip route del {route}"),
                Step(place, NO_TCP),
                place,
                _truth(codes, place, r"the route|192\.168\.\d+\.99|gateway"),
            )
    for (worker, outer), kind in product((("near", NEAR_NAT), ("far", FAR_NAT)), (*_REFUSALS, "into-the-tunnel")):
        route = f"{outer} dev meshray0" if kind == "into-the-tunnel" else f"{kind} {outer}"
        yield _fault(
            *("head", f"{kind}-for-{worker}", f"ip route add {route}", f"ip route del {route}"),
            Step(worker, NO_TCP),
            "head",
            _truth("outer_addresses", worker, "the route"),
        )


def to_overlay_addresses() -> Iterator[DrawnFault]:
    """Yield a node's own routes and policy rules that take away the overlay or a peer in it."""
    pairs = (("head", "near"), ("near", "head"), ("near", "far"), ("far", "head"))
    for (place, peer), kind in product(pairs, (*_REFUSALS, "by-the-card")):
        route = f"{{{peer}}} dev eth0" if kind == "by-the-card" else f"{kind} {{{peer}}}"
        yield _fault(
            *(place, f"{kind}-for-overlay-of-{peer}", f"ip route add {route}", f"ip route del {route}"),
            Step(place, NO_PING.format(f"{{{peer}}}")),
            place,
            _truth("overlay_route", place),
        )
    peer_of = {"head": "near", "near": "head", "far": "head"}
    selectors = {"whole-overlay": "to 10.99.0.0/16", "one-peer": "to {peer}", "own-packets": "from {own}"}
    for place, (what, selector), action in product(_GATEWAYS, selectors.items(), (*_REFUSALS, "lookup 107")):
        if what == "own-packets" and action != "lookup 107":
            continue  # The kernel chooses the source address after the route.
        chosen = selector.replace("{peer}", f"{{{peer_of[place]}}}").replace("{own}", f"{{{place}}}")
        rule = f"ip rule add {chosen} {action} priority 90"
        inject = f"{_LAN7}; ip route add default dev lan7 table 107; {rule}" if "107" in action else rule
        ping = f"! ping -nqc1 -W1 -I {{{place}}} {{{peer_of[place]}}}"
        yield _fault(
            *(place, f"rule-{action.replace(' ', '-')}-{what}", inject),
            "ip rule del priority 90; ip link del lan7",
            Step(place, ping),
            place,
            _truth("overlay_route", place),
        )


def by_policy_rules() -> Iterator[DrawnFault]:
    """Yield policy rules that take away another node's address outside the overlay."""
    targets = (("near", HEAD, "head"), ("far", HEAD, "head"), ("head", NEAR_NAT, "near"), ("head", FAR_NAT, "far"))
    for (place, outer, other), action in product(targets, _REFUSALS):
        yield _fault(
            *(place, f"rule-{action}-outer-{other}", f"ip rule add to {outer} {action} priority 90"),
            "ip rule del priority 90",
            Step(place if place != "head" else other, NO_TCP),
            place,
            _truth("outer_addresses", place, "policy rule|the rule|the route"),
        )


def on_routers() -> Iterator[DrawnFault]:
    """Yield routes of the routers, and default routes that are missing."""
    for (worker, outer), kind in product((("near", NEAR_NAT), ("far", FAR_NAT)), _REFUSALS):
        yield _fault(
            *(f"{worker}-nat", f"{kind}-for-head", f"ip route add {kind} {HEAD}", f"ip route del {kind} {HEAD}"),
            Step(worker, NO_TCP),
            worker,
            _truth("coordinator_tcp", worker, ON_THE_PATH),
        )
        yield _fault(
            *("isp", f"{kind}-for-{worker}", f"ip route add {kind} {outer}", f"ip route del {kind} {outer}"),
            Step(worker, NO_TCP),
            worker,
            _truth("coordinator_tcp", worker, rf"{ON_THE_PATH}|{AT_THE_HEAD}"),
        )
    for place, gateway in _GATEWAYS.items():
        # Each node is asked about itself; without a default route nothing outside its LAN is reached.
        yield _fault(
            *(place, "no-default-route", "ip route del default", f"ip route add default via {gateway}"),
            Step("near" if place == "head" else place, NO_TCP),
            place,
            _truth("outer_addresses coordinator_tcp overlay_route", place, _OWN_NETWORK),
        )


def _link(place: str, what: str, inject: str, heal: str, effect: Step, asked: str, truth: Truth) -> DrawnFault:
    return DrawnFault("link", place, what, (Step(place, inject),), (Step(place, heal),), effect, asked, truth)


def links() -> Iterator[DrawnFault]:
    """Yield interfaces that are down, neighbours at wrong addresses, lossy lines and those that eat large packets."""
    for place, gateway in _GATEWAYS.items():
        effect = Step("near" if place == "head" else place, NO_TCP)
        truth = _truth("outer_addresses coordinator_tcp", place, _OWN_NETWORK)
        up = f"ip link set eth0 up; ip route replace default via {gateway}"
        yield _link(place, "card-down", "ip link set eth0 down", up, effect, place, truth)
        wrong = f"ip neigh replace {gateway} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"
        right = f"ip neigh del {gateway} dev eth0; ping -nqc1 -W1 {gateway}"
        truth = _truth("outer_addresses coordinator_tcp", place, rf"{_OWN_NETWORK}|{ON_THE_PATH}|gateway")
        yield _link(place, "gateway-at-a-wrong-mac", wrong, right, effect, place, truth)
    for worker, side in product(("near", "far"), ("wan", "lan")):
        truth = _truth("coordinator_tcp", worker, rf"{ON_THE_PATH}|{_OWN_NETWORK}")
        down, up = f"ip link set {side} down", f"ip link set {side} up"
        yield _link(f"{worker}-nat", f"{side}-down", down, up, Step(worker, NO_TCP), worker, truth)
    yield _link(
        *("isp", "lan-down", "ip link set lan down", "ip link set lan up"),
        Step("near", NO_TCP),
        "near",
        _truth("coordinator_tcp", "near", rf"{AT_THE_HEAD}|{ON_THE_PATH}|is it on"),
    )
    ways = {"out": 'iifname "lan" ', "in": 'iifname "wan" ', "both": ""}
    for worker, (way, match), tenths in product(("near", "far"), ways.items(), (4, 6)):
        lossy = f"{match}meta l4proto udp numgen inc mod 10 < {tenths} drop"
        truth = _truth("path_loss", worker)
        yield _dropping(worker, f"{tenths}0-percent-lost-{way}", lossy, truth, "nft list table ip drawn")
    for worker, (way, match), size in product(("near", "far"), ways.items(), (1100, 1228)):
        large = f"{match}meta l4proto udp meta length > {size} drop"
        ping = "! ping -nqc1 -W1 -M do -s 1180 {head}"
        yield _dropping(worker, f"over-{size}-bytes-eaten-{way}", large, _truth("path_mtu", worker), ping)


def _dropping(worker: str, what: str, rule: str, truth: Truth, effect: str) -> DrawnFault:
    """Return a fault of the line behind this worker's router; the worker's overlay packets show its effect."""
    chain = f"table ip drawn {{ chain c {{\ntype filter hook forward priority -10; policy accept;\n{rule}\n}}; }}"
    host = worker if "ping" in effect else f"{worker}-nat"
    inject, heal = f"nft -f - <<'RULES'\n{chain}\nRULES", "nft delete table ip drawn"
    return _link(f"{worker}-nat", what, inject, heal, Step(host, effect), "head", truth)


ROUTES: tuple[DrawnFault, ...] = (
    *to_outer_addresses(),
    *to_overlay_addresses(),
    *by_policy_rules(),
    *on_routers(),
    *links(),
)
