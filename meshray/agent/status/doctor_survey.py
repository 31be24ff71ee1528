"""The survey for the doctor: the agent's own knowledge, the probes of this node, and the surveys of the other nodes.

Only the coordinator's node asks the other nodes.

    survey_mesh ──┬► survey: status, and each group of facts of this node
                  ├► POST /v1/ask ──► the other agents ──► survey there
                  └► machines whose agents are not connected: do they answer?
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address

from meshray.agent.paths.prober import Prober
from meshray.agent.paths.samples import Measured
from meshray.agent.state import NodeState
from meshray.agent.status.snapshot import Sources, measured_by, ray_nodes, snapshot_of
from meshray.agent.status.status_builder import build_status
from meshray.doctor import host_probe
from meshray.doctor.context import Context, Counters
from meshray.doctor.control import probe as control
from meshray.doctor.deadlines import in_time
from meshray.doctor.facts import Facts, NodeFacts, decode
from meshray.doctor.path import probe as path
from meshray.doctor.ray import probe as ray
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.clock import boot_s
from meshray.model.keys import PublicKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import STATIC, Node
from meshray.model.ray_state import RayState
from meshray.node.enrolment import Enrolment
from meshray.protocol.api import Gathered
from meshray.protocol.codec import convert
from meshray.protocol.connection import SURVEY
from meshray.protocol.status import Status
from meshray.wireguard.device import Device

#: The timeout for each peer.
PING_S = 1.5
#: A probe that is not answered by then is repeated, seconds.
_SOON_S = 0.4
#: The timeout for each group of facts: the user waits for all nodes.
GROUP_S = 6.0

#: All agents answer within this: a survey takes at most `PING_S` and `GROUP_S`, on a machine that may be busy.
QUERY_S = 10


async def survey_mesh(sources: Sources, table: Mapping[IPv4Address, RayState] | None) -> Facts:
    """Return everything that this node can find out; ``table`` is Ray's node table."""
    (status, own_facts), others, heard = await asyncio.gather(
        survey(sources, table), _others(sources), _answering_machines(sources)
    )
    # Those that are connected and answer nothing: is it the agent alone, or the machine?
    peers = own_facts.path.peers if own_facts.path is not None else {}
    silent = [node for node in sources.state.others if str(node.name) in others.silent and node.online]
    probed = {name for name, peer in peers.items() if peer.sent}
    heard |= {str(node.name) for node in silent} & {name for name, peer in peers.items() if peer.answers}
    heard |= await _answering([node for node in silent if str(node.name) not in probed])
    return Facts(
        status=status,
        ray_nodes=frozenset(ray_nodes(sources)),
        nodes={own_facts.name: own_facts, **others.nodes},
        silent=others.silent,
        connections=others.connections,
        answering_machines=heard,
        not_queried=others.not_queried,
    )


async def _others(sources: Sources) -> Facts:
    if not sources.state.enrolment.hosts_coordinator:
        return Facts(not_queried="only the node that runs the coordinator asks the others")
    try:
        answer = await sources.state.coordinator.call("POST", "/v1/ask", {"op": SURVEY, "timeout_s": QUERY_S})
    except MeshrayError as error:
        return Facts(not_queried=f"the others could not be asked: {error.message}")
    gathered = convert(answer, Gathered)
    nodes = {name: decode(NodeFacts, facts) for name, facts in gathered.answers.items()}
    return Facts(nodes=nodes, silent=gathered.silent, connections=gathered.connections, not_queried="")


async def _answering_machines(sources: Sources) -> frozenset[str]:
    """Return the nodes without a connected agent whose machines answer over the overlay."""
    if sources.parts.prober is None:
        return frozenset()
    return await _answering([node for node in sources.state.others if not node.online and STATIC not in node.roles])


async def _answering(nodes: Sequence[Node]) -> frozenset[str]:
    """Return the names of those whose machines answer over the overlay."""
    live = await asyncio.gather(*(overlay_netns.machine_answers(node.ip, PING_S) for node in nodes))
    return frozenset(str(node.name) for node, answers in zip(nodes, live, strict=True) if answers)


async def survey(sources: Sources, table: Mapping[IPv4Address, RayState] | None) -> tuple[Status, NodeFacts]:
    """Return this node's status of the mesh and the results of its probes; ``table`` is Ray's node table."""
    await _retry_firewall(sources)
    # Only fresh answers count: losses before the request are not faults of this moment.
    fresh, known = await _probed(sources), measured_by(sources)
    snapshot = snapshot_of(sources, table)
    status = build_status(replace(snapshot, measured=lambda ip: fresh[ip] if ip in fresh else known(ip)))
    context = _context(sources, status)
    groups = await asyncio.gather(
        in_time(host_probe.measure(context), GROUP_S),
        in_time(path.measure(context), GROUP_S),
        in_time(control.measure(context), GROUP_S),
        in_time(ray.measure(context), GROUP_S),
    )
    return status, NodeFacts(sources.state.me.name, *groups, complaints=snapshot.complaints)


async def _retry_firewall(sources: Sources) -> None:
    """Retry what the firewall could not do: a failure that is over must not be reported."""
    firewall = sources.parts.firewall
    if firewall is not None and firewall.problems():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(firewall.apply), PING_S)


async def _probed(sources: Sources) -> Mapping[IPv4Address, Measured]:
    """Probe every connected peer now."""
    prober, peers = sources.parts.prober, sources.paths.peers_online()
    if prober is None:
        return {}
    return dict(zip(peers, await asyncio.gather(*(_probe_once(prober, ip) for ip in peers)), strict=True))


async def _probe_once(prober: Prober, ip: IPv4Address) -> Measured:
    """Probe a peer now: once if it answers soon, else twice more, since a packet may be lost."""
    answered = asyncio.Event()

    async def first() -> float | None:
        rtt_ms = await prober.probe(ip, PING_S)
        if rtt_ms is not None:
            answered.set()
        return rtt_ms

    async def more() -> list[float | None]:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(answered.wait(), _SOON_S)
            return []
        return list(await asyncio.gather(*(prober.probe(ip, PING_S - _SOON_S) for _ in range(2))))

    rtt_ms, others = await asyncio.gather(first(), more())
    return Measured((rtt_ms,) if rtt_ms is not None else others)


def context_of(home: Home, enrolment: Enrolment, mesh_map: MeshMap | None) -> Context:
    """Return what the probes need of a node's files, without what its agent knows."""
    me = mesh_map.nodes.get(enrolment.node_id) if mesh_map is not None else None
    return Context(
        home,
        name=me.name if me is not None else enrolment.name,
        ip=me.ip if me is not None else None,
        mesh_port=enrolment.mesh_port,
        listen_port=enrolment.listen_port,
        hosts_coordinator=enrolment.hosts_coordinator,
        coordinators=enrolment.coordinators,
        trusts_user_environment=enrolment.trust_user_environment,
        fingerprint=bytes.fromhex(enrolment.fingerprint),
        credential=enrolment.credential,
        transport=enrolment.transport,
        open_ports=enrolment.open_ports,
        open_all=enrolment.open_all,
        unguarded=enrolment.unguarded,
        mesh_map=mesh_map,
    )


def _context(sources: Sources, status: Status) -> Context:
    state, parts, paths = sources.state, sources.parts, sources.paths
    device, mesh_map = state.device, state.map
    names = {node.public_key: str(node.name) for node in mesh_map.nodes.values()}
    endpoints = {
        names[key]: str(peer.config.endpoint)
        for key, peer in (device.peers if device else {}).items()
        if key in names and peer.config.endpoint is not None
    }
    prober = parts.prober
    ray = parts.ray.now if parts.ray is not None else None
    dials = ((hub.name, paths.hubs.dialled(hub.id)) for hub in mesh_map.hubs)
    limit = paths.carrier.limit
    dialled = {str(name): str(endpoint) for name, endpoint in dials if endpoint is not None}
    return replace(
        context_of(state.home, state.enrolment, mesh_map),
        interface=parts.device.name,
        listen_port=device.listen_port if device else 0,
        is_hub=state.is_hub,
        rules_due=parts.firewall is None or parts.firewall.applied,
        foreign_ports=parts.firewall.foreign if parts.firewall is not None else frozenset(),
        map_of=lambda revision, patience_s: _map_of(state, revision, patience_s),
        status=status,
        device=device,
        read_device=parts.device.read,
        peer_endpoints=endpoints,
        ray_plan=ray.plan if ray else None,
        ray=ray,
        no_ray_reason="" if ray else parts.no_ray_reason,
        installation=ray.installation if ray else None,
        user=ray.user if ray else None,
        dialled=dialled,
        rebinds=paths.rebinds.ages(time.monotonic()),
        round_trip=prober.probe if prober is not None else None,
        echo=(lambda ip, timeout_s, size: prober.round_trip(ip, timeout_s, size=size)) if prober is not None else None,
        counters=lambda: _counters(parts.device, names),
        mtu_measured=paths.is_measured,
        contested_routes=sources.reconciler.contested_routes(),
        probe_age_s=prober.heard_ago_s if prober is not None else lambda ip: None,
        unanswered=prober.unanswered_s if prober is not None else lambda ip: None,
        only_handshakes=paths.carrier.only_handshakes,
        udp_limit_kbit_s=limit.kbit_s if limit is not None else None,
        udp_limit_age_s=round(boot_s() - limit.since, 1) if limit is not None else None,
        relay_kbit_s=limit.relay_kbit_s if limit is not None else None,
    )


async def _counters(device: Device, names: Mapping[PublicKey, str]) -> Mapping[str, Counters]:
    observed = await asyncio.to_thread(device.read)
    peers = observed.peers.items() if observed is not None else ()
    return {names[key]: Counters(peer.rx_bytes, peer.tx_bytes) for key, peer in peers if key in names}


async def _map_of(state: NodeState, revision: int, patience_s: float) -> int:
    """Wait for the map with that revision or a later one, or for the timeout; return its revision."""

    async def wait_for_map() -> None:
        while state.map.revision < revision:
            await state.map_changed.wait()

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(wait_for_map(), patience_s)
    return state.map.revision
