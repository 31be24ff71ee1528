"""Findings about Ray's ports of one node from another, and which node is at fault if they do not answer (pure).

    >>> [finding.node for finding in ports_findings({"a": {"c": dropped}, "b": {"c": dropped}})]
    ['c']

If no node reaches it, the node itself is at fault; if one node reaches none, that one is; otherwise the fault is
between two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshray.doctor.ray.facts import FOREIGN, REFUSED, SILENT, PortAnswer
from meshray.doctor.report import FAIL, OK, SKIP, Finding


def ports_findings(
    answers: Mapping[str, Mapping[str, tuple[PortAnswer, ...]]], without_ray: frozenset[str] = frozenset()
) -> Iterator[Finding]:
    """Return a finding for each node that none reaches, each that reaches none, each other pair, and for no fault.

    Args:
        answers: the ports, by the node that dialled and the node that was dialled.
        without_ray: nodes on which closed ports are expected; another check reports them.
    """
    failing = {
        (source, target): [port for port in ports if not _is_expected(port, target in without_ray)]
        for source, peers in answers.items()
        for target, ports in peers.items()
    }
    for source, peers in answers.items():
        if not peers:
            yield Finding(SKIP, "there is no other node with Ray to dial", node=source)
        elif not any(failing[source, target] for target in peers):
            slowest = max((port.ms for ports in peers.values() for port in ports), default=0.0)
            number = sum(len(ports) for ports in peers.values())
            evidence = f"{number} ports of {', '.join(sorted(peers))} answer, the slowest in {slowest:.0f} ms"
            yield Finding(OK, evidence, node=source)
    failing = {pair: ports for pair, ports in failing.items() if ports}
    for target in sorted({target for _, target in failing}):
        callers = [source for source, peers in answers.items() if target in peers]
        own_failures = {source: failing[source, target] for source in callers if (source, target) in failing}
        if len(callers) > 1 and len(own_failures) == len(callers):
            yield _unreachable(target, own_failures)
            failing = {pair: ports for pair, ports in failing.items() if pair[1] != target}
    for source in sorted({source for source, _ in failing}):
        own_failures = {target: ports for (caller, target), ports in failing.items() if caller == source}
        if len(own_failures) > 1 and len(own_failures) == len(answers[source]):
            yield _isolated(source, own_failures)
        else:
            yield from (_between(source, target, ports) for target, ports in sorted(own_failures.items()))


def _is_expected(port: PortAnswer, without_ray: bool) -> bool:
    return port.answers or (without_ray and port.answer in (REFUSED, FOREIGN))


def _unreachable(target: str, answers: Mapping[str, list[PortAnswer]]) -> Finding:
    ports = next(iter(answers.values()))
    return Finding(FAIL, f"from {', '.join(sorted(answers))}: {_describe(target, ports)}", _fix(target, ports), target)


def _isolated(source: str, answers: Mapping[str, list[PortAnswer]]) -> Finding:
    target, ports = next(iter(sorted(answers.items())))
    evidence = f"from {source} to {', '.join(sorted(answers))}, first {_describe(target, ports)}"
    return Finding(FAIL, evidence, f"on {source}: what it sends is dropped: nft list ruleset | grep -n drop", source)


def _between(source: str, target: str, ports: list[PortAnswer]) -> Finding:
    return Finding(FAIL, f"from {source}: {_describe(target, ports)}", _fix(target, ports), source, target)


def _describe(target: str, ports: list[PortAnswer]) -> str:
    more = [f"{port.what} {port.port}" for port in ports[1:]]
    return ports[0].describe(target) + (f"; neither do {', '.join(more)}" if more else "")


def _fix(target: str, ports: list[PortAnswer]) -> str:
    if ports[0].answer == SILENT:
        return f"on {target}: its Ray hangs: meshray doctor; meshray logs ray"
    if ports[0].answer == FOREIGN:
        return f"on {target}: ss -ltnp 'sport = :{ports[0].port}' names the program that has the port"
    return (
        f"on {target}: allow what arrives over the overlay: nft list ruleset | grep -nE 'drop|reject'; meshray status"
    )
