"""Looks at the machine itself."""

from __future__ import annotations

from meshray.doctor.host import HostFacts
from meshray.doctor.probes.context import Context


async def look(context: Context) -> HostFacts:
    """The facts of this node, within a few seconds; what could not be found out keeps its default."""
    return HostFacts()
