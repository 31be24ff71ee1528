"""The messages of the map, each encoded once for all agents that need it at about the same time.

Each node's entry is encoded once, whatever messages it is part of (`meshray.model.node.Node.json`). A whole map is
compressed for agents that accept this; the compressed map is used again, with the change since then, until too much of
it has changed.

>>> messages = MapMessages(Journal(registry.map))
>>> messages.whole(OLDEST)
b'{"type":"map","map":{…},"journal":"…"}'
>>> messages.change(6, OLDEST)
b'{"type":"change","change":{"base":6,"revision":7,…}}'
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from meshray.coordinator.journal import Journal, Past
from meshray.model.enrol import FIELDS_ABILITY, PACKED_ABILITY, RESUME_ABILITY
from meshray.model.meshmap import MeshMap
from meshray.model.node import changed_fields
from meshray.protocol.forms import RemovalsForm

#: Agents that read slowly need changes from many revisions. Each text may be as long as the map: the number that is
#: kept.
MAX_TEXTS = 16
#: Shorter maps are not compressed, bytes.
PACKED_FROM_BYTES = 64 * 1024
#: Level 1 halves the time of level 6 and its result is only a tenth longer: most of an entry is a random key.
_LEVEL = 1
#: A compressed map is replaced when more than this part of its nodes has changed, and more than so many.
_STALE_PART, _STALE_NODES = 0.25, 64


@dataclass(frozen=True)
class Abilities:
    """What an agent accepts, from the header `meshray.model.enrol.MAP_HEADER`.

    Attributes:
        packed: compressed maps, with a change in the form of ``fields``.
        fields: changes with single fields of a node, and without a mark that has not changed.
        journal: the journal of the map that it has; empty: it has none.
        revision: the revision of that map.
    """

    packed: bool = False
    fields: bool = False
    journal: str = ""
    revision: int = 0

    @classmethod
    def of(cls, header: str) -> Abilities:
        """Return the abilities in this header; other words in it are ignored."""
        words = header.split()
        _, _, resume = next((word for word in words if word.startswith(f"{RESUME_ABILITY}=")), "").partition("=")
        journal, _, revision = resume.partition(":")
        is_valid = revision.isascii() and revision.isdigit() and len(revision) < 20
        return cls(
            PACKED_ABILITY in words,
            FIELDS_ABILITY in words,
            journal if is_valid else "",
            int(revision) if is_valid else 0,
        )


#: Those of an agent of the first release.
OLDEST = Abilities()


class _WholeMap(Struct, frozen=True, tag_field="type", tag="map"):
    map: Raw
    journal: str


class _Change(Struct, frozen=True):
    base: int
    revision: int
    nodes: dict[str, Raw | None]
    mark: str | UnsetType
    removals: RemovalsForm | UnsetType
    fields: dict[str, dict[str, object]] | UnsetType = UNSET


class _ChangeMessage(Struct, frozen=True, tag_field="type", tag="change"):
    change: _Change


class _PackedMap(Struct, frozen=True, tag_field="type", tag="packed_map"):
    data: str
    change: _Change


class MapMessages:
    """The messages that lead to the journal's newest map."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._revision = journal.map.revision
        self._texts: dict[tuple[str, int], bytes] = {}
        # The last compressed map, and its revision.
        self._packed: tuple[str, int] | None = None

    def whole(self, abilities: Abilities) -> bytes:
        """Return a message with the whole map."""
        text = self._once("whole", 0, lambda: _whole_map(self.journal))
        if abilities.packed and len(text) >= PACKED_FROM_BYTES:
            text = self._once("packed", 0, lambda: self._packed_map(text))
        return text

    def change(self, base: int, abilities: Abilities) -> bytes | None:
        """Return the change from this revision to the newest; None if the journal does not reach back to it."""
        past = self.journal.since(base)
        if past is None:
            return None
        kind = "fields" if abilities.fields else "nodes"
        return self._once(
            kind, base, lambda: _encoded(_ChangeMessage(_change(self.journal, past, by_fields=abilities.fields)))
        )

    def _once(self, kind: str, base: int, make: Callable[[], bytes]) -> bytes:
        if self._revision != self.journal.map.revision:
            self._revision = self.journal.map.revision
            self._texts.clear()
        key = kind, base
        if key not in self._texts:
            text = make()
            if len(self._texts) >= MAX_TEXTS:
                del self._texts[next(iter(self._texts))]
            self._texts[key] = text
        return self._texts[key]

    def _packed_map(self, text: bytes) -> bytes:
        past = self.journal.since(self._packed[1]) if self._packed is not None else None
        if self._packed is None or past is None or self._is_stale(past):
            packed = base64.b64encode(zlib.compress(text, _LEVEL)).decode()
            self._packed, past = (packed, self._revision), Past.nothing(self.journal.map)
        return _encoded(_PackedMap(self._packed[0], _change(self.journal, past, by_fields=True)))

    def _is_stale(self, past: Past) -> bool:
        return len(past.nodes) > max(_STALE_NODES, _STALE_PART * len(self.journal.map.nodes))


def _whole_map(journal: Journal) -> bytes:
    return _encoded(_WholeMap(Raw(journal.map.encoded()), journal.id))


def _change(journal: Journal, past: Past, *, by_fields: bool) -> _Change:
    mesh_map, nodes, fields = journal.map, dict[str, Raw | None](), dict[str, dict[str, object]]()
    for key, old in past.nodes.items():
        new = mesh_map.nodes.get(key)
        if new is not None and old is not None and by_fields:
            fields[key] = changed_fields(old, new)
        else:
            nodes[key] = Raw(new.json) if new is not None else None
    return _Change(
        past.revision,
        mesh_map.revision,
        nodes,
        UNSET if by_fields and mesh_map.mark == past.mark else mesh_map.mark,
        _removals(mesh_map) if mesh_map.removals != past.removals else UNSET,
        fields or UNSET,
    )


def _removals(mesh_map: MeshMap) -> RemovalsForm | UnsetType:
    return mesh_map.removals.form() if mesh_map.removals is not None else UNSET


def _encoded(message: Struct) -> bytes:
    return msgspec.json.encode(message)
