"""The pinned identities of the other nodes, on disk. They filter the coordinator's map before it reaches the device.

    received map ──► each node is judged (`meshray.model.lock`) ──► admitted map: peers, hubs, head, status
                          │        ▲
                          └► pins.json

The received map is kept only because later changes apply to it, and because the cache contains it.

>>> pins = Pins.load(home, node_id, StateWriter(home))
>>> agent.map = pins.admit(mesh_map)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec import UNSET, Struct, UnsetType, structs

from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.linux.files import make_folder, write_atomically
from meshray.model.attestation import PRIVILEGED, Removals
from meshray.model.keys import VerifyKey
from meshray.model.lock import Judgement, Pin, Rules, judge
from meshray.model.meshmap import MeshMap
from meshray.model.node import COORDINATOR, NODE_IDENTITY, STATIC, Node
from meshray.model.problem import Problem
from meshray.node.state_writer import StateWriter
from meshray.protocol.codec import WireError, decode, encode, optional
from meshray.protocol.fields import Key, MeshName, Seconds
from meshray.protocol.forms import PinForm, RemovalsForm

log = logging.getLogger(__name__)

#: How long a notice is shown about a new hub, or a node with the name of an earlier one, seconds.
NOTICE_S = 86400.0
#: The maximum number of remembered nodes that have left.
MOST_GONE = 1000
#: The maximum number of removals in a message to the coordinator, which has at most 64 KiB.
MOST_REPORTED = 1000
#: The maximum number of names in one sentence.
MOST_NAMED = 5


@dataclass(frozen=True)
class KnownNode:
    """A node that a map has contained.

    Attributes:
        since: when the node first appeared, unix seconds; 0 if it was in the first map.
        gone: when the node disappeared from the map, unix seconds; 0 if it is in the map.
        replaces: whether another node with this name or address was known before, except ephemeral ones that left.
        ephemeral: whether the node was ephemeral when it first appeared. A coordinator that lies cannot declare a known
            node ephemeral later, to replace it without a notice.
    """

    pin: Pin
    name: str
    since: float = 0.0
    gone: float = 0.0
    replaces: bool = False
    ephemeral: bool = False

    def form(self) -> _KnownNodeForm:
        """Return the form in pins.json."""
        pin = structs.asdict(self.pin.form())
        return _KnownNodeForm(
            **pin,
            name=self.name,
            since=self.since,
            gone=self.gone,
            replaces=self.replaces,
            ephemeral=self.ephemeral,
        )

    @classmethod
    def of(cls, form: _KnownNodeForm) -> KnownNode:
        """Return the value of this form. Raises UsageError or WireError."""
        return cls(Pin.of(form), form.name, form.since, form.gone, form.replaces, form.ephemeral)


class _KnownNodeForm(PinForm, frozen=True, kw_only=True):
    name: MeshName
    since: Seconds = 0.0
    gone: Seconds = 0.0
    replaces: bool = False
    ephemeral: bool = False


class _File(Struct):
    nodes: dict[str, _KnownNodeForm] = {}
    hubs: dict[str, Seconds] = {}
    lock: Key | UnsetType = UNSET
    removals: RemovalsForm | UnsetType = UNSET


class Pins:
    """The identities that one node knows.

    Args:
        node_id: this node's id; the admitted map always contains it.
        files: writes pins.json, now or when the disk can be written.
        wall: returns the time, unix seconds.
    """

    def __init__(self, home: Home, node_id: str, files: StateWriter, wall: Callable[[], float] = time.time) -> None:
        self._home = home
        self._files = files
        self._node_id = node_id
        self._wall = wall
        self._known: dict[str, KnownNode] = {}
        self._lock: VerifyKey | None = None
        self._removals: Removals | None = None
        #: Whether a map was admitted before; later nodes are new.
        self._has_admitted = False
        self._rules = Rules("")
        self._judged: dict[str, tuple[object, Judgement]] = {}
        self._faults: tuple[Problem, ...] = ()
        self._unsigned: tuple[str, ...] = ()
        #: When each node became a hub, as `KnownNode.since`.
        self._hubs: dict[str, float] = {}
        self._new_hubs: tuple[str, ...] = ()

    @classmethod
    def load(cls, home: Home, node_id: str, files: StateWriter) -> Pins:
        """Read pins.json. Without the file, no node is known.

        Raises:
            MeshrayError: ``state_damaged`` (the file is kept).
        """
        pins = cls(home, node_id, files)
        try:
            pins._read(decode(home.pins.read_bytes(), _File))
        except FileNotFoundError:
            pass
        except (UsageError, WireError, OSError) as error:
            raise MeshrayError(
                "state_damaged",
                f"{home.pins}, which has the identities of the other nodes, is damaged: {error}",
                hint="restore it from a backup; or trust the other nodes on first use again: "
                f"mv {home.pins} {home.pins}.damaged; meshray up",
            ) from None
        return pins

    def _read(self, kept: _File) -> None:
        self._lock, self._removals = optional(VerifyKey.parse, kept.lock), optional(Removals.of, kept.removals)
        self._known = {key: KnownNode.of(form) for key, form in kept.nodes.items()}
        self._hubs = kept.hubs
        self._has_admitted = True

    def admit(self, received: MeshMap) -> MeshMap:
        """Return the admitted map, after storing the new pins.

        Args:
            received: the map from the coordinator or from the cache.
        """
        before = dict(self._known), dict(self._hubs), self._removals, self._has_admitted
        rules = self._rules_of(received)
        if rules != self._rules:
            self._rules, self._judged = rules, {}
        judged = {key: self._judge(node, received) for key, node in received.nodes.items()}
        self._forget_absent(received)
        used = received
        if any(judgement.fault for judgement in judged.values()):
            used = replace(received, nodes=dict(self._used(received, judged)))
        self._update_reports(received, judged, used)
        self._has_admitted = True
        if before != (self._known, self._hubs, self._removals, True):
            self._files.write("the record of the others' identities", self._save)
        return used

    def problems(self) -> tuple[Problem, ...]:
        """Return the problems of the last map: the changes that were refused."""
        return self._faults

    def newer_removals(self, received: MeshMap) -> Removals | None:
        """Return the removals if the coordinator's list is older, because its database is an older copy.

        Return None if there is nothing to report, or the list exceeds one message.
        """
        known = self._removals
        if known is None or len(known.identities) > MOST_REPORTED:
            return None
        return known if received.removals is None or received.removals.epoch < known.epoch else None

    @property
    def unsigned(self) -> tuple[str, ...]:
        """The names of admitted nodes whose keys no identity signs."""
        return self._unsigned

    def notices(self) -> Iterator[str]:
        """Yield recent changes as sentences for the user."""
        if self._new_hubs:
            yield f"new hubs, which read what they forward: {_abridged(self._new_hubs)}"
        known = (one for one in self._known.values() if one.replaces and not one.gone and self._is_new(one.since))
        others = [f"{one.name} ({one.pin.ip}) since {_when(one.since)}" for one in known]
        if others:
            yield f"other identities than those of the earlier nodes of that name or address: {_abridged(others)}"
        if self._unsigned:
            yield f"no identity signs the keys of {_abridged(self._unsigned)}: their meshray is of an earlier release"

    def _is_new(self, since: float) -> bool:
        return bool(since) and 0 <= self._wall() - since < NOTICE_S

    # ---- implementation

    def _rules_of(self, received: MeshMap) -> Rules:
        if not self._has_admitted:
            self._lock = received.mesh.lock
        lock, mesh_id, removals = self._lock, received.mesh.id, received.removals
        if (
            lock is not None
            and removals is not None
            and removals.epoch > self._epoch
            and removals.is_signed(lock, mesh_id)
        ):
            self._removals = removals
        rules = Rules(mesh_id, lock, self._removals.identities if self._removals else frozenset(), self._epoch)
        # The coordinator's node signs the static peers, so it is judged first.
        for node in received.with_role(COORDINATOR):
            judgement = judge(node, self._pin(node.id), rules)
            if judgement.roles is not None and COORDINATOR in judgement.roles and judgement.pin is not None:
                return replace(rules, coordinator=judgement.pin.identity)
        return rules

    @property
    def _epoch(self) -> int:
        return self._removals.epoch if self._removals is not None else 0

    def _pin(self, node_id: str) -> Pin | None:
        known = self._known.get(node_id)
        return known.pin if known is not None else None

    def _judge(self, node: Node, received: MeshMap) -> Judgement:
        facts = (node.public_key, node.ip, node.roles, node.attestation)
        last = self._judged.get(node.id)
        if last is not None and last[0] == facts:
            judgement = last[1]
        else:
            judgement = judge(node, self._pin(node.id), self._rules)
            self._judged[node.id] = facts, judgement
            if judgement.fault:
                log.error("%s (%s): %s", node.name, node.ip, judgement.fault)
        if judgement.pin is not None:
            self._store_pin(node, judgement.pin, received)
        return judgement

    def _store_pin(self, node: Node, pin: Pin, received: MeshMap) -> None:
        known = self._known.get(node.id)
        if known is None:
            since = self._wall() if self._has_admitted else 0.0
            # Pods and jobs replace each other all the time, at the same addresses or under the same names.
            others = (
                other for key, other in self._known.items() if since and (key in received.nodes or not other.ephemeral)
            )
            replaces = any(other.name == node.name or other.pin.ip == pin.ip for other in others)
            self._known[node.id] = KnownNode(pin, str(node.name), since, replaces=replaces, ephemeral=node.ephemeral)
        elif (known.pin, known.name, known.gone) != (pin, node.name, 0.0):
            self._known[node.id] = replace(known, pin=pin, name=str(node.name), gone=0.0)

    def _forget_absent(self, received: MeshMap) -> None:
        for key, known in self._known.items():
            if key not in received.nodes and not known.gone:
                self._known[key] = replace(known, gone=self._wall())
        self._judged = {key: judged for key, judged in self._judged.items() if key in received.nodes}
        gone = sorted((known.gone, key) for key, known in self._known.items() if known.gone)
        for _, key in gone[: max(0, len(gone) - MOST_GONE)]:
            del self._known[key]

    def _used(self, received: MeshMap, judged: Mapping[str, Judgement]) -> Iterator[tuple[str, Node]]:
        """Yield the admitted nodes. A node with the key or address of another admitted node is refused."""
        taken: set[object] = set()
        for key in sorted(received.nodes, key=lambda key: (key != self._node_id, not judged[key].fault)):
            node = received.nodes[key]
            used = self._own(node, judged[key]) if key == self._node_id else judged[key].applied(node)
            if used is not None and not taken & {used.public_key, used.ip}:
                taken |= {used.public_key, used.ip}
                yield key, used

    def _own(self, node: Node, judgement: Judgement) -> Node:
        """Return this node's own entry as received, because it knows its own key. Only its roles are judged."""
        roles = judgement.roles
        if roles is None:
            roles = node.roles - PRIVILEGED if self._lock is not None else node.roles
        return node if roles == node.roles else replace(node, roles=roles)

    def _update_reports(self, received: MeshMap, judged: Mapping[str, Judgement], used: MeshMap) -> None:
        since = self._wall() if self._has_admitted else 0.0
        self._hubs = {hub.id: self._hubs.get(hub.id, since) for hub in used.hubs}
        self._new_hubs = tuple(
            f"{hub.name} ({hub.ip}) since {_when(self._hubs[hub.id])}"
            for hub in used.hubs
            if self._is_new(self._hubs[hub.id])
        )
        self._faults = tuple(
            _refused(node, judged[key].fault) for key, node in received.nodes.items() if judged[key].fault
        )
        if received.mesh.lock != self._lock:
            text = "the coordinator reports another lock than the one that this node knows; it was refused"
            self._faults = (*self._faults, Problem(NODE_IDENTITY, text, fix="check the coordinator's machine"))
        self._unsigned = tuple(
            str(node.name)
            for key, node in received.nodes.items()
            if judged[key].pin is None and judged[key].roles is not None and STATIC not in node.roles
        )

    def _save(self) -> None:
        make_folder(self._home.state)
        kept = _File(
            {key: known.form() for key, known in self._known.items()},
            self._hubs,
            str(self._lock) if self._lock is not None else UNSET,
            self._removals.form() if self._removals is not None else UNSET,
        )
        write_atomically(self._home.pins, encode(kept))


def _refused(node: Node, fault: str) -> Problem:
    return Problem(
        NODE_IDENTITY,
        f"{node.name} ({node.ip}): {fault}; that was refused",
        str(node.name),
        f"is {node.name} one of yours? there: meshray down; meshray up; if not: meshray node rm {node.name}, and "
        "check the coordinator's machine",
    )


def _when(since: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(since))


def _abridged(texts: Sequence[str]) -> str:
    return ", ".join(texts[:MOST_NAMED]) + (f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else "")
