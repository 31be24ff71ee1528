"""The operations of the coordinator, independent of the client and its protocol.

>>> service = Service(open_store(home), fingerprint)
>>> answer = await service.enrol(request)
>>> member = service.member_with(answer.credential)
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from meshray import __version__
from meshray.coordinator import secret_epochs
from meshray.coordinator.audit_log import AuditLog
from meshray.coordinator.budgets import Budgets
from meshray.coordinator.endpoint_probes import Reach
from meshray.coordinator.head_environment import environment_of, locked, options_reported
from meshray.coordinator.map_messages import Abilities
from meshray.coordinator.node_faults import Faults
from meshray.coordinator.notices import Notices
from meshray.coordinator.observations import Observations
from meshray.coordinator.order_broker import OrderBroker
from meshray.coordinator.own_agent import OwnAgent
from meshray.coordinator.passes import PassKeeper
from meshray.coordinator.publisher import Outbox, Publisher
from meshray.coordinator.query_broker import Gathered, QueryBroker
from meshray.coordinator.records import Member, SecretEpoch, StaticPeer
from meshray.coordinator.registry import Outcome, Registry
from meshray.coordinator.registry_writer import Ledger
from meshray.coordinator.replacement import Replaced, without_replaced
from meshray.coordinator.restore.recovery import SETTLE_S, Recovery
from meshray.coordinator.restore.ticket import Seal
from meshray.coordinator.rotation import rotated
from meshray.coordinator.secrets_keeper import SecretsKeeper
from meshray.coordinator.signatures import attested, learned, removed, signed_static
from meshray.coordinator.store import Store
from meshray.coordinator.token_keeper import TokenKeeper
from meshray.coordinator.withdrawal import withdrawn
from meshray.errors import MeshrayError, RefusedError
from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Attestation, Removals
from meshray.model.enrol import EnrolAnswer, EnrolRequest
from meshray.model.environment import Environment
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import COORDINATOR, HUB, STATIC, Node, Versions
from meshray.model.proof import FIELD, is_proven
from meshray.model.token import hash_secret, new_secret
from meshray.protocol.api import HelloForm, PresentedToken, Rotation
from meshray.protocol.connection import CLOSE_NOT_ACCEPTED, Answer, Restored, Ticket

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Service:
    """One mesh's coordinator, without the network.

    Args:
        fingerprint: SHA-256 of the certificate, for new tokens.
        seal: identifies its own tickets.
        audit: the log of what administrators and nodes do.
        clock: unix seconds for the cool-down of addresses and the deadlines of absent nodes; it should never be set.
        wall: unix seconds by which tokens expire; the same clock if omitted.
        settle_s: see `meshray.coordinator.restore.recovery`.
    """

    def __init__(
        self,
        store: Store,
        fingerprint: bytes,
        seal: Seal,
        clock: Callable[[], float],
        wall: Callable[[], float] | None = None,
        *,
        audit: AuditLog,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.settings = store.settings()
        self.fingerprint = fingerprint
        self.audit = audit
        self._store = store
        self._clock, self._wall = clock, wall or clock
        self._published_restored = ""
        #: The key with which nodes prove their own; valid for the life of this process.
        self._proof_key = PrivateKey.generate()
        self._on_removed: list[Callable[[str], None]] = []
        registry = store.load().restarted(clock())
        self._publisher = Publisher(registry.map, self._map)
        self._queries = QueryBroker(self._publisher)
        self.orders = OrderBroker(self._publisher)
        self._ledger = Ledger(registry, store.apply, on_change=self._publisher.changed)
        self.recovery = Recovery(self._ledger, seal, clock, settle_s=settle_s)
        self.faults = Faults(self._ledger, self._publisher, clock)
        self.secrets = SecretsKeeper(self._ledger, self._publisher, clock)
        mesh_id, endpoints = self.settings.mesh.id, lambda: self.own_node().endpoints
        self.tokens = TokenKeeper(self._ledger, mesh_id, fingerprint, endpoints=endpoints, wall=self._wall)
        self.passes = PassKeeper(self._ledger, self._wall)
        self.reach = Reach(self.settings.mesh.network)
        self.observations = Observations(self.has_node, self._wall)
        self.own_agent = OwnAgent(self._queries, self.own_node)
        self._on_removed += [self.faults.forget, self.passes.forget_node, self.observations.forget]
        self.budgets = Budgets(clock, lambda: len(self._ledger.registry.members))
        self.notices = Notices(self._publisher, self.budgets)

    async def close(self) -> None:
        """End every connection, and close the store once all writes are done."""
        self._publisher.close()
        await self.reach.close()
        await self._ledger.close()
        self._store.close()

    async def copy_store(self) -> str:
        """Write a copy of the store beside it, and return the name of its file. Raises MeshrayError store_failed."""
        return (await self._ledger.between_writes(self._store.copy)).name

    def disconnect_all(self) -> None:
        """Inform every agent that the coordinator ends."""
        self._publisher.close()

    def on_removed(self, cut_off: Callable[[str], None]) -> None:
        """Register a function that is called with the id of every removed node, before the removal is answered."""
        self._on_removed.append(cut_off)

    def hello(self) -> HelloForm:
        """Return what every client may know."""
        mesh = self.settings.mesh
        return HelloForm(mesh.id, mesh.name, __version__, str(self._proof_key.public()))

    def require_proof(self, key: PublicKey, path: str, body: Mapping[str, object]) -> None:
        """Raise RefusedError unless the request proves that its sender has the private half of this key."""
        if FIELD not in body:
            raise RefusedError(
                "proof_missing",
                "this request does not prove that its sender has the private half of the key that it names: "
                "that machine's meshray is too old for this mesh",
                hint=f"install meshray {__version__} or later there",
            )
        if not is_proven(self._proof_key, key, path, body):
            raise RefusedError(
                "proof_wrong",
                "the proof that the sender has the private half of the key that it names is wrong",
                hint="try again, if the coordinator was just started; each machine joins with its own key",
            )

    def member_with(self, credential: str) -> Member | None:
        """Return the member with this credential; None if there is none."""
        return self._ledger.registry.with_credential(hash_secret(credential))

    def identify(self, credential: str, headers: Mapping[str, str]) -> str:
        """Return the id of the node with this credential; empty for an unknown one.

        It comes from the database, or from the ticket in the headers of an agent's request. Whether the node is a
        member is checked elsewhere.
        """
        member = self.member_with(credential)
        return member.node.id if member is not None else self.recovery.ticket_holder(credential, headers)

    async def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        """Enrol a machine as a node, replacing another one if its token requires it.

        Raises as `Registry.enrol` and `without_replaced` do, or MeshrayError version_mismatch, store_failed.
        """
        from meshray.raynode.versions import compare

        if not self.budgets.may_enrol(request.token_id):
            raise MeshrayError("busy", "too many nodes enrol with this token", hint="try again in a minute")
        await self.recovery.settled()
        credential = new_secret()
        credential_hash, node_id = hash_secret(credential), secrets.token_hex(8)
        fresh = self.secrets.fresh()

        def step(registry: Registry) -> Outcome[tuple[Member, SecretEpoch, Replaced | None]]:
            now, wall = self._clock(), self._wall()
            registry, removal_rows, replaced = without_replaced(registry, request, fresh, now=now, wall=wall)
            registry, rows, member = registry.enrol(
                request,
                node_id=node_id,
                credential_hash=credential_hash,
                compare=compare,
                now=now,
                wall=wall,
                address=replaced.member.node.ip if replaced is not None else None,
            )
            registry, more, member = secret_epochs.enrolled(registry, member, follows=request.follows_epochs)
            return registry, (*removal_rows, *rows, *more), (member, secret_epochs.newest(registry), replaced)

        member, epoch, replaced = await self._ledger.change(step)
        if replaced is not None:
            self._end_connections(replaced.member)
            if replaced.rotation.started:
                self.secrets.announce(replaced.rotation)
        _log.info("%s enrolled as %s with token %s", member.node.name, member.node.ip, request.token_id)
        return EnrolAnswer(
            member.node.id,
            credential,
            epoch.mesh_secret,
            epoch.ray_token,
            self._ledger.registry.short_map(member.node.id) if request.short_map else self._map(),
            ticket=self.recovery.ticket(member),
            secret_epoch=epoch.number,
        )

    async def withdraw(self, token: PresentedToken, key: PublicKey) -> bool:
        """Undo the enrolment with this key, whose answer did not arrive; return whether there was one.

        Raises:
            RefusedError: the token is not accepted.
        """
        self.tokens.require(token)
        await self.recovery.settled()
        member = await self._ledger.change(lambda registry: withdrawn(registry, token.token_id, key, self._clock()))
        if member is not None:
            self._end_connections(member)
        return member is not None

    def environment(self, token: PresentedToken | None = None) -> Environment:
        """Return the environment that matches the head.

        Args:
            token: that of a machine that is not a node yet; its uses do not change.

        Raises:
            RefusedError: the token is not accepted.
        """
        if token is not None:
            self.tokens.require(token)
        return environment_of(self._ledger.registry)

    async def lock(self, requirements: str) -> None:
        """Record the requirements of the head's environment beside Ray."""
        await self._ledger.change(lambda registry: locked(registry, requirements))

    async def remove(self, node_id: str, *, take_back: bool = False) -> Member:
        """Remove the node from the mesh and end its connection. Arguments and errors as of `Registry.remove`."""
        member = await self._ledger.change(
            lambda registry: registry.remove(node_id, self._clock(), take_back=take_back)
        )
        self._end_connections(member)
        return member

    async def remove_named(self, name: str, signed: tuple[int, bytes] | None = None) -> tuple[Member, Rotation]:
        """Remove a node that the others no longer trust: they get new secrets. Raises as `Registry.remove` does.

        Args:
            signed: the lock's epoch and signature of the removal. Raises as `removed` does.
        """
        node_id = self._ledger.registry.named(name).node.id
        if signed is None:
            member, rotation = await self.secrets.remove(node_id)
        else:
            member, rotation = await self.secrets.remove(
                node_id, lambda registry, now: removed(registry, name, *signed, now)
            )
        self._end_connections(member)
        return member, rotation

    def member_named(self, name: str) -> Member:
        """Return the member with this name. Raises UnknownError, code ``node_unknown``."""
        return self._ledger.registry.named(name)

    def removals(self) -> Removals | None:
        """Return the removals signed by the lock."""
        return self._ledger.registry.removals

    async def rotate(self, node_id: str, key: PublicKey, signature: Attestation | None = None) -> Member:
        """Set the node's key. Arguments and errors as of `rotated`."""
        if not self.budgets.may_rotate(node_id):
            raise MeshrayError("busy", "this node's key was changed too often", hint="try again in a minute")
        member = await self._ledger.change(lambda registry: rotated(registry, node_id, key, signature))
        _log.info("the key of %s is %s now", member.node.name, key)
        return member

    async def rename(self, name: str, new: NodeName) -> Member:
        """Rename a node. Raises as `Registry.rename` does."""
        return await self._ledger.change(lambda registry: registry.rename(name, new))

    async def drain(self, name: str, drained: bool) -> Member:
        """Drain a node, or end that. Raises as `Registry.drain` does."""
        return await self._ledger.change(lambda registry: registry.drain(name, drained))

    async def add_static(self, name: NodeName) -> StaticPeer:
        """Add a device without an agent, behind the first hub. Raises as `Registry.add_static` does."""
        hub = next(iter(self.map.hubs), None)
        if hub is None:
            raise MeshrayError("no_hub", "this mesh has no hub that a static peer could use", hint="meshray node list")
        await self.recovery.settled()
        key = PrivateKey.generate()
        public, node_id = key.public(), secrets.token_hex(8)

        def step(registry: Registry) -> Outcome[tuple[Member, PresharedKey]]:
            registry, rows, member = registry.add_static(name, public, node_id, self._clock())
            registry, more, member = secret_epochs.enrolled(registry, member, follows=False)
            return registry, (*rows, *more), (member, secret_epochs.static_key(registry, public, hub.public_key))

        member, preshared_key = await self._ledger.change(step)
        return StaticPeer(member.node, key, hub, preshared_key)

    def members(self) -> list[Member]:
        """Return all members, in the order of their addresses."""
        return sorted(self._ledger.registry.members.values(), key=lambda member: member.node.ip)

    @property
    def map(self) -> MeshMap:
        """Return the current map, made once for each state of the registry."""
        return self._ledger.registry.map

    @property
    def revision(self) -> int:
        """Return the current revision of the map."""
        return self._ledger.registry.revision

    async def collect(self) -> None:
        """Remove the ephemeral nodes that stayed away too long; to be called every few seconds."""
        self.publish_restored()
        self.passes.sweep()
        await self.faults.settle()
        await self.secrets.settle()
        registry = self._ledger.registry
        self.budgets.retain(registry.members, registry.tokens, registry.passes)
        for member in await self._ledger.change(lambda registry: registry.collect(self._clock())):
            self._end_connections(member)
            self.audit.note("node_removed", by="the coordinator", node=member.node.name, reason="ephemeral, away")
        await self.audit.sync()

    def _end_connections(self, member: Member) -> None:
        _log.info("%s (%s) was removed", member.node.name, member.node.ip)
        self._publisher.disconnect(member.node.id, CLOSE_NOT_ACCEPTED, "this node was removed from the mesh")
        for cut_off in self._on_removed:
            cut_off(member.node.id)

    def send_ticket(self, node_id: str, held: str = "") -> None:
        """Send a connected node its ticket, unless the one that it has is as good."""
        member = self._ledger.registry.members.get(node_id)
        ticket = self.recovery.ticket_update(member, held) if member is not None else ""
        if ticket:
            self._publisher.notify(node_id, Ticket(ticket))

    def publish_restored(self, node_id: str = "") -> None:
        """Send the coordinator's own node the report of a restore for its status, if it changed.

        Args:
            node_id: the node whose agent has just connected, and has received nothing yet.
        """
        own, text = self.own_node().id, self.recovery.report()
        if text != ("" if node_id == own else self._published_restored):
            self._publisher.notify(own, Restored(text))
            self._published_restored = text

    async def connect(self, node_id: str, instance: str, address: str, abilities: Abilities) -> Outbox:
        """Connect the node's agent; the newest connection wins. Raises UnknownError if the node was removed.

        Args:
            instance, address: those of the agent, see `meshray.coordinator.node_faults`; abilities: see `Abilities`.
        """
        takes_over = self._publisher.is_connected(node_id)
        outbox = self._publisher.join(node_id, instance, abilities)
        try:
            await self._report(node_id, lambda registry: registry.connected(node_id))
            await self.faults.connected(node_id, instance, address, takes_over=takes_over)
        except BaseException:
            self._publisher.leave(node_id, outbox)
            raise
        return outbox

    async def disconnect(self, node_id: str, outbox: Outbox, *, ended: bool = False) -> None:
        """Disconnect the agent; ``ended``: its machine closed the connection without a goodbye."""
        if self._publisher.leave(node_id, outbox):
            self._queries.disconnected(node_id)
            self.orders.disconnected(node_id)
            await self._report(node_id, lambda registry: registry.disconnected(node_id, self._clock(), ended=ended))

    async def taken_down(self, node_id: str) -> None:
        """Record that the agent will end because a user requested it. Raises UnknownError."""
        await self._ledger.change(lambda registry: registry.taken_down(node_id), durable=False)

    async def map_received(self, node_id: str) -> None:
        """Record that the agent received the whole map."""
        await self._ledger.change(lambda registry: registry.map_received(node_id), durable=False)

    async def reported(
        self,
        node_id: str,
        versions: Versions,
        endpoints: tuple[Endpoint, ...],
        hubs: tuple[str, ...] = (),
        reached: Endpoint | None = None,
    ) -> None:
        """Record the agent's report about itself. Arguments and errors as of `Registry.reported`."""
        await self._report(node_id, lambda registry: registry.reported(node_id, versions, endpoints, hubs, reached))

    async def report_faults(self, node_id: str, faults: Mapping[str, str]) -> None:
        """Record the faults of the agent's node. Raises UnknownError."""
        if await self.faults.reported(node_id, faults):
            self._charge(node_id, 1)

    async def report_epoch(self, node_id: str, epoch: int | None) -> None:
        """Record the newest epoch that the agent holds; None: its meshray does not know epochs. Raises UnknownError."""
        if await self._report(node_id, lambda registry: secret_epochs.reported(registry, node_id, epoch)):
            self.secrets.send(node_id)

    async def report_options(self, node_id: str, ports: Mapping[str, int], *, no_remote: bool) -> None:
        """Record options of the node. Arguments and errors as of `options_reported`."""
        await self._report(node_id, lambda registry: options_reported(registry, node_id, ports, no_remote=no_remote))

    def report_wait_s(self, node_id: str) -> float:
        """Return the seconds that the next report of this node must wait."""
        return self.budgets.changes_wait_s(node_id, is_hub=self.is_hub(node_id))

    def has_node(self, node_id: str) -> bool:
        """Return whether there is such a node."""
        return node_id in self._ledger.registry.members

    async def attested(self, node_id: str, attestation: Attestation) -> None:
        """Record the identity's signature of the node's key. Raises UnknownError."""
        await self._report(node_id, lambda registry: attested(registry, node_id, attestation))

    async def learn(self, removals: Removals) -> None:
        """Record removals that a node knows and this coordinator has forgotten, if the lock signed them."""
        await self._ledger.change(lambda registry: learned(registry, removals), durable=False)

    async def sign_static(self, name: str, attestation: Attestation) -> Member:
        """Record the signature of a static peer's key. Raises as `signed_static` does."""
        return await self._ledger.change(lambda registry: signed_static(registry, name, attestation))

    async def advertise(self, endpoints: tuple[Endpoint, ...]) -> Node:
        """Add addresses at which others reach this machine; return its node. Raises as `Registry.advertise` does."""
        own = self.own_node().id
        member = await self._ledger.change(lambda registry: registry.advertise(own, endpoints))
        return member.node

    async def endpoints_observed(self, hub_id: str, observed: Mapping[str, Endpoint | None]) -> None:
        """Record the nodes' endpoints observed by a hub. Raises UnknownError."""
        await self._report(hub_id, lambda registry: registry.endpoints_observed(hub_id, observed))

    async def silence_reported(self, node_id: str, silence: Mapping[str, str]) -> None:
        """Record the coordinator's node's results for the others over the overlay. Raises UnknownError."""
        await self._report(node_id, lambda registry: registry.silence_reported(node_id, silence))

    async def ask(self, asker: Member, names: Iterable[str], op: str, timeout_s: float) -> Gathered:
        """Ask the agents of these nodes, or of all others if none is named.

        Raises:
            UnknownError: one of these names is not a node.
            MeshrayError: as `QueryBroker.ask` does.
        """
        registry = self._ledger.registry
        nodes = [member.node for member in ([registry.named(name) for name in names] or registry.members.values())]
        agents = {node.id: node.name for node in nodes if node.id != asker.node.id and STATIC not in node.roles}
        return await self._queries.ask(agents, op, timeout_s)

    def answered(self, node_id: str, answer: Answer) -> None:
        """Record an agent's answer to a question."""
        self._queries.take(node_id, answer)

    async def ray_started(self, node_id: str, instance: str) -> None:
        """Record another instance of Ray's head. Raises UnknownError."""
        await self._report(node_id, lambda registry: registry.ray_started(node_id, instance))

    def require_admin(self, member: Member) -> None:
        """Raise RefusedError not_admin unless this is the node that runs the coordinator."""
        if COORDINATOR not in member.node.roles:
            own = self.own_node()
            raise RefusedError(
                "not_admin", f"only {own.name}, which runs the coordinator, may do this", hint=f"run it on {own.name}"
            )

    async def _report(self, node_id: str, step: Callable[[Registry], Outcome[T]]) -> T:
        """Apply a step caused by a node, and charge the node for what others receive; return the step's answer."""

        def counted(registry: Registry) -> Outcome[tuple[int, T]]:
            changed, rows, answer = step(registry)
            # One revision for each entry of the map that changed.
            return changed, rows, (changed.revision - registry.revision, answer)

        changes, answer = await self._ledger.change(counted, durable=False)
        self._charge(node_id, changes)
        return answer

    def _charge(self, node_id: str, changes: int) -> None:
        if changes and self.has_node(node_id):
            self.budgets.charge_changes(node_id, changes, is_hub=self.is_hub(node_id))

    def is_hub(self, node_id: str) -> bool:
        """Return whether the node is a hub or runs the coordinator."""
        member = self._ledger.registry.members.get(node_id)
        return member is not None and bool(member.node.roles & {HUB, COORDINATOR})

    def _map(self) -> MeshMap:
        return self.recovery.sealed(self.map)

    def own_node(self) -> Node:
        """Return the node that runs the coordinator. Raises MeshrayError store_corrupt."""
        own = self.map.coordinator
        if own is None:
            raise MeshrayError("store_corrupt", "the store names no node that runs the coordinator")
        return own
