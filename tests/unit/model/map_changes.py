"""The change from one map to another, for tests of what applies it; the coordinator makes its changes by a journal."""

from __future__ import annotations

from meshray.model.meshmap import MapChange, MeshMap, changed_nodes


def diff(old: MeshMap, new: MeshMap) -> MapChange:
    """Return the change from ``old`` to ``new``."""
    changed = {key: new.nodes.get(key) for key in changed_nodes(old, new)}
    removals = new.removals if new.removals != old.removals else None
    return MapChange(old.revision, new.revision, changed, new.mark, removals)
