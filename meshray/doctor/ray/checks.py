"""Checks of a node's Ray, and of its connections to the others' Ray (pure).

    own_address ─┐
    ray_installed ─► ray_versions ─► ray_running ─► ray_ports ─► ray_token, ray_advertised ─► ray_head_answers
        ─► ray_alive

A fault that would end a node half a minute after it joined (another node cannot dial its raylet) is detected here at
once: every node dials every port that Ray needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshray.doctor.facts import Facts
from meshray.doctor.machine.facts import RAISE_MEMORY
from meshray.doctor.ray.facts import (
    BACKOFF,
    DASHBOARD,
    GCS,
    MISSING,
    OTHER,
    RAYLET,
    RUNNING,
    SAME,
    SILENT,
    STARTING,
    GpuFacts,
    RayFacts,
    TableRow,
    recent_end,
)
from meshray.doctor.ray.gpus import why_uncounted
from meshray.doctor.ray.port_findings import ports_findings
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec
from meshray.model.node import Versions
from meshray.model.ray_end import OUT_OF_MEMORY
from meshray.model.release import PATCH, RAY, TOKEN_RELEASE, ray_difference, release

_OK_STATUS, _REFUSED_STATUS = 200, (401, 403)
_RESTART = "meshray down, then meshray up"
#: The ports that others depend on, and the processes that have them.
_PROCESS_OF = {"GCS": GCS, "node manager": RAYLET, "object manager": RAYLET, "dashboard": DASHBOARD}
#: A key of `meshray.doctor.repairs.REPAIRS`: it stops Ray and starts it again.
_REPAIR = "ray"


def _nodes(facts: Facts) -> Iterator[tuple[str, RayFacts | Finding]]:
    """Return each node that was asked: its facts, or why there is nothing to check."""
    for name, node in sorted(facts.nodes.items()):
        if node.ray is None:
            yield name, Finding(SKIP, "it did not report in time", node=name)
        elif node.ray.why_none:
            yield name, Finding(SKIP, f"no Ray here: {node.ray.why_none}", node=name)
        else:
            yield name, node.ray


def _own_address(facts: Facts) -> Iterable[Finding]:
    for name, ray in _nodes(facts):
        if isinstance(ray, Finding):
            yield ray
        elif ray.address_error is None:
            yield Finding(SKIP, "not tried", node=name)
        elif not ray.address_error:
            yield Finding(OK, f"{ray.ip} answers over TCP in {ray.address_ms:.1f} ms", node=name)
        else:
            yield Finding(
                FAIL,
                f"{name} does not reach its own overlay address {ray.ip} over TCP: {ray.address_error}",
                f"on {name}: ip address show to {ray.ip}; nft list ruleset | grep -n drop (the rules catch lo too)",
                name,
            )


def _ray_installed(facts: Facts) -> Iterable[Finding]:
    for name, ray in _nodes(facts):
        if isinstance(ray, Finding):
            yield ray
        elif ray.external:
            yield Finding(SKIP, "another program starts it (--ray external)", node=name)
        elif ray.install_error is None:
            yield Finding(SKIP, "its Python did not answer in time", node=name)
        elif ray.install_error:
            yield Finding(FAIL, ray.install_error, f"on {name}: {ray.install_fix}", name)
        else:
            yield Finding(OK, f"Ray {ray.ray} on Python {ray.python} ({ray.interpreter})", node=name)


def _ray_versions(facts: Facts) -> Iterable[Finding]:
    head = _head_versions(facts)
    for name, ray in _nodes(facts):
        if isinstance(ray, Finding):
            yield ray
        elif not ray.ray:
            yield Finding(SKIP, "not known what is installed", node=name)
        elif ray.started and ray.started != ray.ray:
            yield Finding(
                FAIL,
                f"Ray {ray.ray} is installed, but {name} started Ray {ray.started}: its new workers are of another Ray",
                f"on {name}: {_RESTART}; or {ray.interpreter} -m pip install 'ray[default]=={ray.started}'",
                name,
                repair=_REPAIR,
            )
        else:
            yield _difference(name, ray, head or Versions(ray=ray.head_ray, python=ray.head_python))


def _difference(name: str, ray: RayFacts, head: Versions) -> Finding:
    own = Versions(ray=ray.ray, python=ray.python)
    text = f"Ray {ray.ray} on Python {ray.python}"
    if not head.ray:
        return Finding(SKIP, f"{text}; the head's are not known", node=name)
    difference = ray_difference(own, head)
    head_text = f"the head has Ray {head.ray} on Python {head.python}"
    if not difference:
        return Finding(OK, f"{text}, as the head", node=name)
    if difference == PATCH:
        return Finding(OK, f"{text}; {head_text}: Ray accepts another patch level", node=name)
    if difference == RAY:
        fix = f"on {name}: {ray.interpreter} -m pip install 'ray[default]=={head.ray}'; {_RESTART}"
        return Finding(FAIL, f"{text}; {head_text}: Ray requires the same version on every node", fix, name)
    fix = f"on {name}: meshray leave, then sudo meshray join --env match TOKEN (on the head: meshray token create)"
    return Finding(FAIL, f"{text}; {head_text}: Ray {head.ray} requires the same Python", fix, name)


def _head_versions(facts: Facts) -> Versions | None:
    for _, ray in _nodes(facts):
        if isinstance(ray, RayFacts) and ray.is_head and ray.ray:
            return Versions(ray=ray.ray, python=ray.python)
    return None


def _ray_running(facts: Facts) -> Iterable[Finding]:
    for name, ray in _nodes(facts):
        if isinstance(ray, Finding):
            yield ray
        elif ray.external:
            yield _external(name, ray)
        else:
            found = _running(name, ray)
            yield _restarted(name, ray, found) if found.status == OK else found


def _restarted(name: str, ray: RayFacts, found: Finding) -> Finding:
    """Return the finding with the trace of a Ray that ended some minutes ago: its tasks and actors ended with it."""
    ended = recent_end(ray.ended_ago_s, ray.ended_because)
    if not ended:
        return found
    fix = f"on {name}: meshray logs ray"
    if "too many open files" in ray.ended_because.lower():
        fix = f"{fix}; raise its limit of open files: LimitNOFILE= in a unit, ulimit -n elsewhere"
    if OUT_OF_MEMORY in ray.ended_because:
        fix = f"{fix}; {RAISE_MEMORY}"
    return Finding(WARN, f"{ended}; {found.evidence}", fix, name)


def _running(name: str, ray: RayFacts) -> Finding:
    fix = f"on {name}: meshray logs ray"
    stopped = [process for process in ray.processes or () if process.stopped]
    if stopped:
        names = ", ".join(f"{process.name} (pid {process.pid})" for process in stopped)
        pids = " ".join(str(process.pid) for process in stopped)
        evidence = f"stopped by a signal, so it answers no requests: {names}"
        return Finding(FAIL, evidence, f"on {name}: kill -CONT {pids}", name, repair=_REPAIR)
    if ray.state == BACKOFF or (ray.state == STARTING and ray.deaths):
        return Finding(FAIL, f"Ray ended {_times(ray.deaths)} and is started again: {ray.error}", fix, name)
    if ray.state not in (STARTING, RUNNING) or ray.processes is None:
        return Finding(SKIP, ray.error or f"supervisor state: {ray.state or 'unknown'}", node=name)
    if any(process.name == RAYLET for process in ray.processes):
        return _answering(name, ray, fix)
    if ray.state == RUNNING:
        return Finding(FAIL, "`ray start` runs, but its raylet has ended", fix, name)
    return Finding(WARN, "Ray is being started" + (f": {ray.error}" if ray.error else ""), fix, name)


def _external(name: str, ray: RayFacts) -> Finding:
    """Check a Ray that another program started, and that was ALIVE when the agent looked."""
    own = {port.what: port for port in ray.ports.get(name, ())}
    closed = next((own[what] for what in _PROCESS_OF if what in own and not own[what].answers), None)
    if closed is not None:
        return Finding(FAIL, f"its {closed.what} is gone: {closed.describe(name)}", _start_again(name, ray), name)
    return Finding(OK, "another program started it, and its ports answer", node=name)


def _start_again(name: str, ray: RayFacts) -> str:
    """Return how Ray is started again on the node."""
    return f"on {name}, start Ray again: {ray.start_line}" if ray.external else f"on {name}: {_RESTART}"


def _answering(name: str, ray: RayFacts, fix: str) -> Finding:
    """Check, for a Ray whose raylet lives, whether the processes answer on which the others depend."""
    own = {port.what: port for port in ray.ports.get(name, ())}
    pids = {process.name: process.pid for process in ray.processes or ()}
    for what, process in _PROCESS_OF.items():
        port = own.get(what)
        if port is None or port.answers or ray.state == STARTING:
            continue
        owner = f"{process} (pid {pids[process]})" if process in pids else process
        if process not in pids:
            return Finding(
                FAIL, f"its {what} has ended: {port.describe(name)}", f"on {name}: {_RESTART}", name, repair=_REPAIR
            )
        fault = "hangs" if port.answer == SILENT else "does not answer"
        return Finding(FAIL, f"{owner} {fault}: {port.describe(name)}", f"{fix}; {_RESTART}", name, repair=_REPAIR)
    if ray.state == STARTING:
        return Finding(WARN, ray.error or "Ray is being started: the head does not list it yet", fix, name)
    slow = f"; {ray.error}" if ray.error else ""
    answer = own.get("node manager")
    text = f" answers on port {answer.port} in {answer.ms:.1f} ms" if answer else " lives"
    return Finding(OK, f"raylet (pid {pids[RAYLET]}){text}{slow}", node=name)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times in a row"


def _ray_ports(facts: Facts) -> Iterable[Finding]:
    answers = {}
    for name, ray in _nodes(facts):
        if isinstance(ray, Finding):
            yield ray
        else:
            answers[name] = {peer: ports for peer, ports in ray.ports.items() if peer != name}
    yield from ports_findings(answers, _without_ray(facts))


def _without_ray(facts: Facts) -> frozenset[str]:
    """Return the nodes on which Ray does not run as it should: a closed port there is not a fault of the path."""
    if facts.status is None:
        return frozenset()
    not_alive = {node.name for node in facts.status.nodes if not node.ray.alive}
    running = {name for name, ray in _nodes(facts) if isinstance(ray, RayFacts) and ray.state == RUNNING}
    return frozenset(not_alive - running)


def _ray_token(facts: Facts) -> Iterable[Finding]:
    for name, ray in _nodes(facts):
        yield ray if isinstance(ray, Finding) else _token(name, ray)


def _token(name: str, ray: RayFacts) -> Finding:
    fix = _start_again(name, ray)
    if release(ray.ray or ray.head_ray) < TOKEN_RELEASE:
        return Finding(SKIP, f"Ray {ray.ray or ray.head_ray} has no tokens", node=name)
    if ray.token_file and ray.token_file != SAME and ray.state in (STARTING, RUNNING):
        what = {MISSING: "does not exist", OTHER: "contains another token than the mesh's"}
        evidence = f"the token file {ray.token_path} {what.get(ray.token_file, ray.token_file)}"
        repair = "" if ray.external else _REPAIR
        return Finding(
            FAIL, f"{evidence}: processes that Ray starts from now on are rejected", fix, name, repair=repair
        )
    if ray.with_token in _REFUSED_STATUS:
        evidence = f"the head's dashboard answers {ray.with_token} to the mesh's Ray token"
        return Finding(
            FAIL, evidence, f"on the head: {_RESTART}; is a Ray running there that meshray did not start?", name
        )
    if ray.without_token == _OK_STATUS:
        evidence = "the head's dashboard answers without a token: Ray's authentication is off"
        return Finding(
            FAIL, evidence, f"on the head: {_RESTART}; is a Ray running there that meshray did not start?", name
        )
    if ray.with_token != _OK_STATUS or ray.without_token not in _REFUSED_STATUS:
        evidence = (
            f"the head's dashboard gave no clear answer (HTTP {ray.with_token or '-'} with, "
            f"{ray.without_token or '-'} without)"
        )
        return Finding(SKIP, evidence, node=name)
    return Finding(OK, f"the dashboard answers 200 with the mesh's token, {ray.without_token} without", node=name)


def _ray_advertised(facts: Facts) -> Iterable[Finding]:
    reporting = [(name, ray) for name, ray in _nodes(facts) if isinstance(ray, RayFacts)]
    yield from (ray for _, ray in _nodes(facts) if isinstance(ray, Finding))
    known = {str(node.ip) for node in facts.status.nodes} if facts.status else set()
    tables = [ray.table for _, ray in sorted(reporting, key=lambda item: not item[1].is_head) if ray.table is not None]
    rows = tables[0] if tables else ()
    unknown: dict[str, list[TableRow]] = {}
    for row in rows:
        if row.ip not in known:
            unknown.setdefault(_node_of_row(row, reporting), []).append(row)
    for name, ray in reporting:
        if name in unknown:
            yield _unknown_node(name, unknown.pop(name), ray.ip)
        elif not tables:
            yield Finding(SKIP, "Ray's node table cannot be asked", node=name)
        else:
            yield _advertised(name, ray, rows)
    for found in unknown.values():
        yield _unknown_node("", found, "")


def _node_of_row(row: TableRow, reporting: list[tuple[str, RayFacts]]) -> str:
    """Return the node of a table row whose address is not in the mesh; empty: not known."""
    for name, ray in reporting:
        if any(own.here and own.ip == row.ip for own in ray.table or ()):
            return name
    return next((name for name, _ in reporting if name == row.name), "")


def _unknown_node(name: str, rows: list[TableRow], ip: str) -> Finding:
    addresses = ", ".join(row.ip for row in rows)
    owner = f" but of {name}" if name else ""
    evidence = f"Ray counts a node at {addresses}, which is not an address of this mesh{owner}"
    fix = f"on {name or 'that machine'}: a second Ray was started by hand: ps -ef | grep raylet, and end it"
    return Finding(FAIL, evidence + (f" ({ip} is the overlay's)" if ip else ""), fix, name)


def _advertised(name: str, ray: RayFacts, rows: tuple[TableRow, ...]) -> Finding:
    own = [row for row in rows if row.ip == ray.ip]
    if not own:
        return Finding(SKIP, f"Ray's table has no living node at {ray.ip}", node=name)
    if len(own) > 1:
        evidence = f"Ray counts {len(own)} nodes at {ray.ip}: one that it has not noticed to be gone, or a second Ray"
        return Finding(WARN, evidence, f"on {name}: ps -ef | grep raylet", name)
    return Finding(OK, f"Ray knows it as {ray.ip}", node=name)


def _ray_gpus(facts: Facts) -> Iterable[Finding]:
    offered = {node.name: node.ray for node in facts.status.nodes} if facts.status else {}
    for name, ray in _nodes(facts):
        state = offered.get(name)
        if isinstance(ray, Finding):
            yield ray
        elif ray.gpus is None or state is None or not state.alive:
            yield Finding(SKIP, "what Ray offers on this node is not known", node=name)
        else:
            yield _gpus(name, ray.gpus, state.resources.get("GPU", 0.0))


def _gpus(name: str, gpus: GpuFacts, counted: float) -> Finding:
    uncounted = why_uncounted(gpus, counted)
    if uncounted is not None:
        return Finding(WARN, uncounted.text, f"on {name}: {uncounted.fix}", name)
    if not gpus.cards:
        return Finding(OK, f"no GPU in the machine; Ray counts {counted:g}", node=name)
    wanted = f", as --num-gpus={gpus.asked} says" if gpus.asked else ""
    return Finding(OK, f"{gpus.cards} in the machine; Ray counts {counted:g}{wanted}", node=name)


_BASE = ("agent_running", "node_answers", "device_up")
_PATH_CHECKS = ("handshake_fresh", "peer_answers", "overlay_admitted", "tcp_port_open")

SPECS: tuple[Spec, ...] = (
    Spec("own_address", "the node's own overlay address", _BASE, _own_address),
    Spec("ray_installed", "the node's Ray", ("agent_running", "node_answers"), _ray_installed),
    Spec("ray_versions", "versions of Ray and Python", (*_BASE, "ray_installed"), _ray_versions),
    Spec(
        "ray_running",
        "Ray on its own node",
        (*_BASE, "own_address", "ray_installed", "ray_versions"),
        _ray_running,
    ),
    Spec(
        "ray_ports",
        "Ray's ports, from the other nodes",
        (*_BASE, *_PATH_CHECKS, "own_address", "ray_installed", "ray_versions", "ray_running"),
        _ray_ports,
    ),
    Spec("ray_token", "Ray's token", (*_BASE, "ray_running"), _ray_token),
    Spec("ray_advertised", "the node's address in Ray", (*_BASE, "ray_running"), _ray_advertised),
    Spec("ray_gpus", "GPUs, as Ray counts them", (*_BASE, "ray_running"), _ray_gpus),
)
