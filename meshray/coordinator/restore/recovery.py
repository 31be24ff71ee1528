"""The coordinator's actions when a node knows more than its database: `meshray.coordinator.restore.compare`, applied.

An enrolment waits for the agent of the coordinator's own machine, which comes first and has the whole map, so that a
new node never gets the address of a node in that map. The wait is limited: that agent may be away for long.

>>> recovery = Recovery(ledger, Seal.from_pem(pem), clock)
>>> member = await recovery.admit(credential, headers, recall)         # RefusedError if it was removed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone

from meshray.coordinator.records import Member, SecretEpoch
from meshray.coordinator.registry import Registry
from meshray.coordinator.registry_writer import Ledger
from meshray.coordinator.restore.compare import Evidence, hold_addresses, readmitted, recall, record_mark, verdict
from meshray.coordinator.restore.lineage import Mark
from meshray.coordinator.restore.ticket import Seal, Ticket, open_mark, open_ticket, sealed_mark, sealed_ticket
from meshray.coordinator.secret_epochs import newest, superseded
from meshray.errors import MeshrayError, RefusedError
from meshray.model.enrol import MARK_HEADER, TICKET_HEADER
from meshray.model.meshmap import MeshMap
from meshray.model.node import COORDINATOR, STATIC, Node
from meshray.model.token import hash_secret
from meshray.protocol.api import Restored

#: Enrolments wait for the agent on the coordinator's machine for at most this long after the start, seconds.
SETTLE_S = 3.0
#: The status of the coordinator's node reports a restore for this long, seconds; `meshray node list` always does.
REPORT_S = 600.0

_log = logging.getLogger(__name__)
Recall = Callable[[], Awaitable[list[Node]]]


class MembershipUnknown(MeshrayError):
    """This coordinator does not know the node, and cannot know whether it should."""

    def __init__(self) -> None:
        super().__init__(
            "coordinator_behind",
            "the coordinator was restored from an older copy and does not know this node",
            hint="the node continues to work; on the head: meshray node list, and: meshray token create",
        )


class Recovery:
    """Compare the nodes' knowledge with the database.

    Args:
        clock: unix seconds.
        settle_s: how long enrolments wait for the agent on the coordinator's machine.
    """

    def __init__(self, ledger: Ledger, seal: Seal, clock: Callable[[], float], *, settle_s: float = SETTLE_S) -> None:
        self._ledger = ledger
        self._seal = seal
        self._clock = clock
        self._began = clock()
        self._settled = asyncio.Event()
        self._settle_until = time.monotonic() + settle_s
        # Two lost maps at the same time would be compared with the same members.
        self._lock = asyncio.Lock()

    def sealed(self, mesh_map: MeshMap) -> MeshMap:
        """Return the map that nodes receive, with its sealed mark.

        The mark changes only with a write: it holds the highest revision that this write allows, not the map's own.
        """
        mark = self._mark(max(mesh_map.revision, self._ledger.registry.reserved))
        return replace(mesh_map, mark=sealed_mark(self._seal, mark)) if mark.serial else mesh_map

    def ticket(self, member: Member) -> str:
        """Return the node's ticket; empty for the coordinator's own node, which is in every copy."""
        if COORDINATOR in member.node.roles:
            return ""
        registry = self._ledger.registry
        return sealed_ticket(self._seal, Ticket.of(member, self._mark(registry.revision)))

    def ticket_update(self, member: Member, ticket_text: str) -> str:
        """Return a new ticket for the node; empty if the one that it has is as good."""
        held = open_ticket(self._seal, ticket_text) if ticket_text else None
        mark = self._ledger.registry.lineage.mark(0)
        # A ticket of an earlier run is sufficient while there is only one past; a second restore may have another.
        is_current = held == Ticket.of(member, mark) and held.mark.timeline == mark.timeline
        return "" if is_current else self.ticket(member)

    def ticket_holder(self, credential: str, headers: Mapping[str, str]) -> str:
        """Return the id of the node whose valid ticket comes with this credential; empty if there is none."""
        text = headers.get(TICKET_HEADER, "")
        ticket = open_ticket(self._seal, text) if text else None
        return ticket.node_id if ticket is not None and ticket.credential_hash == hash_secret(credential) else ""

    async def settled(self) -> None:
        """Return when the agent on the coordinator's machine has sent its map, or the time for it is over."""
        left = self._settle_until - time.monotonic()
        if left > 0 and not self._settled.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._settled.wait(), left)

    async def admit(self, credential: str, headers: Mapping[str, str], fetch_map: Recall) -> Member:
        """Return the member whose agent connects, after comparing its knowledge with the database.

        Args:
            fetch_map: requests the agent's whole map.

        Raises:
            RefusedError: ``credential_unknown``: it is no longer a member, as this coordinator knows for certain.
            MembershipUnknown: it is not a member, and this coordinator cannot know whether it should be.
            MeshrayError: store_failed, network_full.
        """
        mark_text, text = headers.get(MARK_HEADER, ""), headers.get(TICKET_HEADER, "")
        mark = open_mark(self._seal, mark_text) if mark_text else None
        if mark is not None:
            await self._supersede_epoch(mark)
        credential_hash = hash_secret(credential)
        member = self._member(credential_hash)
        try:
            if member is not None and COORDINATOR in member.node.roles:
                await self._compare(member, mark, fetch_map)
                return member
        finally:
            if member is not None and COORDINATOR in member.node.roles:
                self._settled.set()
        if member is not None and (mark is None or self._lineage_contains(mark)):
            return member
        # The map of the coordinator's machine comes first: it is trusted completely.
        await self.settled()
        member = self._member(credential_hash) or await self._readmit(credential_hash, mark, mark_text, text)
        await self._compare(member, mark, fetch_map)
        return member

    def restored(self) -> Restored | None:
        """Return the last time that the database turned out to be an older copy."""
        return self._ledger.registry.lineage.restored

    def report(self) -> str:
        """Return one sentence on a recent restore, for the status of the coordinator's node; empty without one."""
        restored, now = self.restored(), self._clock()
        if restored is None or not 0 <= now - restored.at < REPORT_S:
            return ""
        return describe(restored, self._ledger.registry)

    def _mark(self, revision: int) -> Mark:
        registry = self._ledger.registry
        return replace(registry.lineage.mark(revision), epoch=newest(registry).number)

    async def _supersede_epoch(self, mark: Mark) -> None:
        """Start an epoch of the mesh's secrets above one that this database has lost."""
        if mark.epoch > newest(self._ledger.registry).number:
            fresh = SecretEpoch.make(mark.epoch, self._clock())
            if await self._ledger.change(lambda registry: superseded(registry, mark.epoch, fresh)):
                _log.warning("epoch %d of the mesh's secrets is lost; a new one began", mark.epoch)

    def _member(self, credential_hash: str) -> Member | None:
        return self._ledger.registry.with_credential(credential_hash)

    def _lineage_contains(self, mark: Mark) -> bool:
        return self._ledger.registry.lineage.contains(mark)

    async def _readmit(self, credential_hash: str, mark: Mark | None, mark_text: str, text: str) -> Member:
        ticket = open_ticket(self._seal, text) if text else None
        has_unreadable = bool((text and ticket is None) or (mark_text and mark is None))
        found = verdict(self._ledger.registry, Evidence(ticket, mark, has_unreadable), credential_hash)
        if found == "removed":
            raise RefusedError("credential_unknown", "this node was removed from the mesh", hint="meshray leave")
        if found != "member" or ticket is None:
            if mark is not None and mark_text:
                await self._record_mark(mark)
            raise MembershipUnknown
        member = await self._ledger.change(lambda registry: readmitted(registry, ticket, self._clock()))
        _log.warning("%s (%s) is a member again, by its ticket", member.node.name, member.node.ip)
        if member.node.ip != ticket.ip:
            _log.error("%s had %s, which is another node's now", member.node.name, ticket.ip)
        return member

    async def _compare(self, member: Member, mark: Mark | None, fetch_map: Recall) -> None:
        async with self._lock:
            own = COORDINATOR in member.node.roles
            lineage = self._ledger.registry.lineage
            if mark is None or lineage.contains(mark) or (lineage.is_known(mark) and not own):
                return
            nodes = await fetch_map()
            if own:
                restored = await self._ledger.change(
                    lambda registry: recall(registry, nodes, mark, self._clock(), began=self._began)
                )
                _log.error("%s", describe(restored, self._ledger.registry))
                return
            await self._record_mark(mark)
            known = set(self._ledger.registry.members)
            unknown = [node for node in nodes if node.id not in known]
            await self._ledger.change(lambda registry: hold_addresses(registry, unknown, self._clock()))

    async def _record_mark(self, mark: Mark) -> None:
        if await self._ledger.change(lambda registry: record_mark(registry, mark, self._clock())):
            restored = self.restored()
            if restored is not None:
                _log.error("%s", describe(restored, self._ledger.registry))


def describe(restored: Restored, registry: Registry) -> str:
    """Return, as one line, what a restore changed and what is still missing."""
    noticed = datetime.fromtimestamp(restored.at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    parts = [f"the coordinator's database is an older copy (noticed {noticed})"]
    if restored.added:
        parts.append(f"put back: {', '.join(restored.added)}")
    if restored.removed:
        parts.append(f"removed again: {', '.join(restored.removed)}")
    awaited = [
        str(member.node.name)
        for member in registry.members.values()
        if not member.credential_hash and STATIC not in member.node.roles
    ]
    if awaited:
        parts.append(f"not yet back: {', '.join(awaited)}")
    parts.append("tokens made since that copy are lost, and those spent or revoked since then work again")
    parts.append("passes for the page from before were revoked")
    return "; ".join(parts)
