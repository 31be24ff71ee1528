"""What an agent knows at one moment, put together for `meshray.agent.status.report`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from meshray.agent.agent import Agent
from meshray.agent.paths.samples import Measured
from meshray.agent.status.report import Snapshot, live_peer_towards, path_to
from meshray.defaults import DEFAULT_MTU
from meshray.linux.clock import boot_s
from meshray.model.address import Endpoint
from meshray.model.node import HUB_FORWARDS, STATIC
from meshray.model.problem import Problem
from meshray.model.ray_state import RayState
from meshray.protocol.fields import MAX_ITEMS


def snapshot_of(agent: Agent, table: Mapping[IPv4Address, RayState] | None) -> Snapshot:
    """All that this node knows now; ``table`` is Ray's node table, which the caller has asked for."""
    prober, ray = agent.parts.prober, agent.parts.ray
    if table is not None:
        agent.offers.look({ip: state.resources for ip, state in table.items() if state.alive}, agent.map)
    return Snapshot(
        me=agent.me,
        mesh_map=agent.map,
        device=agent.device_state,
        measured=prober.measured if prober is not None else lambda peer: Measured(),
        ray=table,
        expects_ray=expects_ray(agent),
        coordinator_reachable=agent.link.is_open,
        complaints=tuple(complaints_of(agent)),
        notices=(
            *agent.installation.notices(),
            *agent.pins.notices(),
            *(agent.gpus.notices(ray.now, table.get(agent.me.ip)) if ray is not None and table is not None else ()),
        ),
        open=agent.enrolment.open,
        unguarded=agent.enrolment.unguarded,
        environment=tuple(agent.enrolment.environment.names),
        now=boot_s(),
        wall_clock=time.time(),
        changed=agent.standing.since,
        silent_s=agent.silence.silent_s if agent.silence is not None else lambda node: None,
        mtu=agent.mtus.mtu if agent.mtus is not None else lambda ip: DEFAULT_MTU,
        throughput=agent.sampler.mbit_s,
        last_offer=agent.offers.last,
        why_not_direct=agent.pairs.why_not_direct if agent.pairs is not None else lambda node: "",
    )


def summary_of(agent: Agent, table: Mapping[IPv4Address, RayState] | None) -> dict[str, object]:
    """What ``init --json`` and ``join --json`` tell of a node that is up; ``table`` is Ray's node table."""
    me, head = agent.me, agent.map.head
    path = path_to(snapshot_of(agent, None), head or agent.map.hubs[0])
    return {
        "mesh": agent.map.mesh.name,
        "node": {"name": me.name, "ip": str(me.ip)},
        "path": {"kind": path.kind, "transport": path.transport},
        "ray": {
            "alive": bool(table and me.ip in table and table[me.ip].alive),
            "nodes": sum(1 for node in table.values() if node.alive) if table else 0,
        },
        "ray_address": str(agent.map.gcs) if head and table else None,
        "dashboard": f"http://{agent.map.dashboard}" if head and table else None,
        **({"local": agent.parts.forwards.urls()} if agent.parts.forwards is not None else {}),
    }


def complaints_of(agent: Agent) -> Iterator[Problem]:
    """What the parts of this node could not do."""
    firewall, ray, me = agent.parts.firewall, agent.parts.ray, str(agent.me.name)
    agent.files.try_again()
    of_firewall = firewall.problems() if firewall is not None else ()
    for problem in (*of_firewall, *agent.files.problems(), *agent.membership.complaints()):
        yield replace(problem, node=me)
    yield from agent.pins.problems()
    if ray is not None and ray.failure:
        yield Problem("ray_running", ray.failure, me, "meshray logs ray")
    yield from (replace(problem, node=me) for problem in agent.installation.complaints())
    for contested in agent.route_repairs.complaints(boot_s()):
        yield Problem("overlay_route", contested, me, "meshray doctor")


def expects_ray(agent: Agent) -> bool:
    """Whether the mesh runs Ray, as far as this node can know."""
    head = agent.map.head
    return agent.parts.ray is not None or bool(agent.parts.ray_table and head and head.versions.ray)


def ray_nodes(agent: Agent) -> list[str]:
    """The names of the nodes on which Ray is meant to run now."""
    if not expects_ray(agent):
        return []
    nodes = agent.map.nodes.values()
    return [node.name for node in nodes if node.versions.ray and node.online and not node.drained]


def hello_of(agent: Agent, endpoints: Iterable[Endpoint]) -> Mapping[str, object]:
    """What this node says of itself, besides its versions: where it may be reached, the hubs that it can use, what
    is wrong with it that the others must know, where it reached the coordinator, its epoch of the mesh's secrets, the
    ports that it chose for its Ray."""
    firewall = agent.parts.firewall
    problems = firewall.problems() if firewall is not None and agent.is_hub else ()
    faults = {problem.code: problem.text for problem in problems if problem.code == HUB_FORWARDS}
    me, own = agent.told.nodes[agent.enrolment.node_id], agent.keys.private.public()
    # While another key is under way, that key's signature travels with it.
    signs = agent.identity is not None and me.public_key == own
    removals = agent.pins.newer_removals(agent.told)
    return {
        **({"removals": removals.to_json()} if removals is not None else {}),
        **({"attestation": agent.identity.signature_of(me).to_json()} if agent.identity is not None and signs else {}),
        "endpoints": [str(endpoint) for endpoint in endpoints],
        "hubs": list(agent.hubs.usable[:MAX_ITEMS]),
        "faults": faults,
        "reached": str(agent.link.outside) if agent.link.outside is not None else "",
        "secret_epoch": agent.enrolment.secret_epoch,
        **({"ray_ports": dict(ports)} if (ports := agent.enrolment.ray_ports) else {}),
    }


def peers_online(agent: Agent) -> list[IPv4Address]:
    """The overlay addresses of the other nodes whose agents are there."""
    return [
        node.ip
        for node in agent.map.nodes.values()
        if node.online and STATIC not in node.roles and node.id != agent.enrolment.node_id
    ]


def ways_of(agent: Agent) -> list[tuple[IPv4Address, Endpoint | None]]:
    """Every peer that can be heard, with the endpoint that its packets are sent to."""
    snapshot, online = snapshot_of(agent, None), set(peers_online(agent))
    nodes = [node for node in agent.map.nodes.values() if node.ip in online]
    peers = [(node.ip, live_peer_towards(snapshot, node)[0]) for node in nodes]
    return [(ip, peer.config.endpoint) for ip, peer in peers if peer is not None]


def peers_to_probe(agent: Agent) -> list[IPv4Address]:
    """Those whose way for data is probed by its own; a direct way is probed in `pairs`."""
    nodes, pairs = agent.map.nodes.values(), agent.pairs
    direct = {node.ip for node in nodes if pairs is not None and pairs.path(node).carries}
    return [ip for ip in peers_online(agent) if ip not in direct]
