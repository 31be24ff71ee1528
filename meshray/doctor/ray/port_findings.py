"""Findings about Ray's ports of one node from another, and which node is at fault if they do not answer (pure).

    >>> [finding.node for finding in ports_findings({"a": {"c": dropped}, "b": {"c": dropped}})]
    ['c']

If no node reaches it, the node itself is at fault; if one node reaches none, that one is; otherwise the fault is
between two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshray.doctor.ray.facts import FOREIGN, REFUSED, SILENT, PortSeen
from meshray.doctor.report import FAIL, OK, SKIP, Finding


def ports_findings(
    seen: Mapping[str, Mapping[str, tuple[PortSeen, ...]]], without_ray: frozenset[str] = frozenset()
) -> Iterator[Finding]:
    """Return a finding for each node that none reaches, each that reaches none, each other pair, and for no fault.

    Args:
        seen: the ports, by the node that dialled and the node that was dialled.
        without_ray: nodes on which closed ports are expected; another check reports them.
    """
    bad = {
        (source, target): [port for port in ports if not _is_fine(port, target in without_ray)]
        for source, peers in seen.items()
        for target, ports in peers.items()
    }
    for source, peers in seen.items():
        if not peers:
            yield Finding(SKIP, "there is no other node with Ray to dial", node=source)
        elif not any(bad[source, target] for target in peers):
            slowest = max((port.ms for ports in peers.values() for port in ports), default=0.0)
            number = sum(len(ports) for ports in peers.values())
            told = f"{number} ports of {', '.join(sorted(peers))} answer, the slowest in {slowest:.0f} ms"
            yield Finding(OK, told, node=source)
    bad = {pair: ports for pair, ports in bad.items() if ports}
    for target in sorted({target for _, target in bad}):
        callers = [source for source, peers in seen.items() if target in peers]
        mine = {source: bad[source, target] for source in callers if (source, target) in bad}
        if len(callers) > 1 and len(mine) == len(callers):
            yield _nobody_reaches(target, mine)
            bad = {pair: ports for pair, ports in bad.items() if pair[1] != target}
    for source in sorted({source for source, _ in bad}):
        mine = {target: ports for (caller, target), ports in bad.items() if caller == source}
        if len(mine) > 1 and len(mine) == len(seen[source]):
            yield _reaches_nobody(source, mine)
        else:
            yield from (_between(source, target, ports) for target, ports in sorted(mine.items()))


def _is_fine(port: PortSeen, without_ray: bool) -> bool:
    return port.answers or (without_ray and port.answer in (REFUSED, FOREIGN))


def _nobody_reaches(target: str, seen: Mapping[str, list[PortSeen]]) -> Finding:
    told = next(iter(seen.values()))
    return Finding(FAIL, f"from {', '.join(sorted(seen))}: {_told(target, told)}", _fix(target, told), target)


def _reaches_nobody(source: str, seen: Mapping[str, list[PortSeen]]) -> Finding:
    target, ports = next(iter(sorted(seen.items())))
    told = f"from {source} to {', '.join(sorted(seen))}, first {_told(target, ports)}"
    return Finding(FAIL, told, f"on {source}: what it sends is dropped: nft list ruleset | grep -n drop", source)


def _between(source: str, target: str, ports: list[PortSeen]) -> Finding:
    return Finding(FAIL, f"from {source}: {_told(target, ports)}", _fix(target, ports), source, target)


def _told(target: str, ports: list[PortSeen]) -> str:
    more = [f"{port.what} {port.port}" for port in ports[1:]]
    return ports[0].told(target) + (f"; neither do {', '.join(more)}" if more else "")


def _fix(target: str, ports: list[PortSeen]) -> str:
    if ports[0].answer == SILENT:
        return f"on {target}: its Ray hangs: meshray doctor; meshray logs ray"
    if ports[0].answer == FOREIGN:
        return f"on {target}: ss -ltnp 'sport = :{ports[0].port}' names the program that has the port"
    return (
        f"on {target}: allow what arrives over the overlay: nft list ruleset | grep -nE 'drop|reject'; meshray status"
    )
