"""What the coordinator does, whoever asks and by whatever protocol.

>>> service = Service(Store.open(home.database), fingerprint)
>>> answer = await service.enrol(request)
>>> member = service.member_with(answer.credential)
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from meshray import __version__
from meshray.coordinator.admission import token_of
from meshray.coordinator.asking import Asking, Gathered
from meshray.coordinator.environment import environment_of, locked
from meshray.coordinator.ledger import Ledger
from meshray.coordinator.publisher import CLOSE_NOT_ACCEPTED, Outbox, Publisher
from meshray.coordinator.records import Member, TokenRecord
from meshray.coordinator.recovery import SETTLE_S, Recovery
from meshray.coordinator.rotation import rotated
from meshray.coordinator.store import Store
from meshray.coordinator.ticket import Seal
from meshray.errors import MeshrayError, RefusedError
from meshray.model.address import Endpoint, NodeName
from meshray.model.enrol import EnrolAnswer, EnrolRequest
from meshray.model.environment import Environment, ShownToken
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import COORDINATOR, STATIC, Node, Versions
from meshray.model.proof import FIELD, is_proven
from meshray.model.question import Answer
from meshray.model.token import Token, hash_secret, new_secret, new_token_id
from meshray.runtime.knock import knock

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StaticPeer:
    """What a device needs that has only wg-quick. Its key is made here, told once and not kept."""

    node: Node
    private_key: PrivateKey
    hub: Node
    preshared_key: PresharedKey


class Service:
    """One mesh's coordinator, without the network.

    Args:
        fingerprint: SHA-256 of the certificate, for new tokens.
        seal: by which it knows its own tickets.
        clock: unix seconds, by which addresses rest and absent nodes are waited for: it should not be set.
        wall: unix seconds by which tokens expire; the same clock where none is given.
        settle_s: see `meshray.coordinator.recovery`.
    """

    def __init__(
        self,
        store: Store,
        fingerprint: bytes,
        seal: Seal,
        clock: Callable[[], float],
        wall: Callable[[], float] | None = None,
        *,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.settings = store.settings()
        self._store = store
        self._fingerprint = fingerprint
        self._clock, self._wall = clock, wall or clock
        self._knocking: set[str] = set()
        self._told_restored = ""
        #: With which nodes prove their keys; good as long as this process.
        self._proof_key = PrivateKey.generate()
        self._cut_off: list[Callable[[str], None]] = []
        registry = store.load().restarted(clock())
        self._publisher = Publisher(registry.map, self._map)
        self._asking = Asking(self._publisher)
        self._ledger = Ledger(registry, store.apply, on_change=self._publisher.changed)
        self.recovery = Recovery(self._ledger, seal, clock, settle_s=settle_s)

    async def close(self) -> None:
        """Ends every connection and closes the store, once nothing is being written any more."""
        self._publisher.close()
        await self._ledger.close()
        self._store.close()

    def disconnect_all(self) -> None:
        """Tells every agent that the coordinator ends."""
        self._publisher.close()

    def on_removed(self, cut_off: Callable[[str], None]) -> None:
        """Has this called with the id of every node that is removed, before whoever removed it is answered."""
        self._cut_off.append(cut_off)

    def hello(self) -> dict[str, object]:
        """What anybody may know."""
        mesh = self.settings.mesh
        proof_key = str(self._proof_key.public())
        return {"mesh": mesh.id, "name": mesh.name, "version": __version__, "proof_key": proof_key}

    def require_proof(self, key: PublicKey, path: str, body: Mapping[str, object]) -> None:
        """Raises RefusedError unless the request proves that its sender has the private half of this key."""
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
                hint="try again, if the coordinator was just started; each machine joins with a key of its own",
            )

    def member_with(self, credential: str) -> Member | None:
        """Whose credential this is; None where nobody's."""
        return self._ledger.registry.by_credential.get(hash_secret(credential))

    # Nodes

    async def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        """A machine becomes a node. Raises as `Registry.enrol` does, or MeshrayError version_mismatch, store_failed."""
        from meshray.raynode.versions import compare

        await self.recovery.settled()
        credential = new_secret()
        credential_hash, node_id = hash_secret(credential), secrets.token_hex(8)
        member = await self._ledger.change(
            lambda registry: registry.enrol(
                request,
                node_id=node_id,
                credential_hash=credential_hash,
                compare=compare,
                now=self._clock(),
                wall=self._wall(),
            )
        )
        _log.info("%s enrolled as %s with token %s", member.node.name, member.node.ip, request.token_id)
        return EnrolAnswer(
            member.node.id,
            credential,
            self.settings.mesh_secret,
            self.settings.ray_token,
            self._map(),
            ticket=self.recovery.ticket(member),
        )

    def environment(self, shown: ShownToken | None = None) -> Environment:
        """What a node is to have that matches the head.

        Args:
            shown: by a machine that is no node yet; it stays as good as it was.

        Raises:
            RefusedError: the token is not accepted.
        """
        registry = self._ledger.registry
        if shown is not None:
            token_of(shown, registry.mesh, registry.tokens, self._wall())
        return environment_of(registry)

    async def lock(self, requirements: str) -> None:
        """Records what belongs to the head's environment beside Ray."""
        await self._ledger.change(lambda registry: locked(registry, requirements))

    async def remove(self, node_id: str, *, take_back: bool = False) -> Member:
        """Takes the node out of the mesh and ends its connection. Arguments and errors as of `Registry.remove`."""
        member = await self._ledger.change(
            lambda registry: registry.remove(node_id, self._clock(), take_back=take_back)
        )
        self._say_goodbye(member)
        return member

    async def remove_named(self, name: str) -> Member:
        """The same, by name."""
        return await self.remove(self._ledger.registry.named(name).node.id)

    async def rotate(self, node_id: str, key: PublicKey) -> Member:
        """The node has another key from now on. Raises as `rotated` does."""
        member = await self._ledger.change(lambda registry: rotated(registry, node_id, key))
        _log.info("the key of %s is %s now", member.node.name, key)
        return member

    async def rename(self, name: str, new: NodeName) -> Member:
        """Raises as `Registry.rename` does."""
        return await self._ledger.change(lambda registry: registry.rename(name, new))

    async def drain(self, name: str, drained: bool) -> Member:
        """Raises as `Registry.drain` does."""
        return await self._ledger.change(lambda registry: registry.drain(name, drained))

    async def add_static(self, name: NodeName) -> StaticPeer:
        """A device without an agent, behind the first hub. Raises as `Registry.add_static` does."""
        hub = next(iter(self._ledger.registry.map.hubs), None)
        if hub is None:
            raise MeshrayError("no_hub", "this mesh has no hub that a static peer could use", hint="meshray node list")
        await self.recovery.settled()
        key = PrivateKey.generate()
        public, node_id = key.public(), secrets.token_hex(8)
        member = await self._ledger.change(lambda registry: registry.add_static(name, public, node_id, self._clock()))
        return StaticPeer(member.node, key, hub, self.settings.mesh_secret.preshared_key(public, hub.public_key))

    async def knock(self, member: Member, endpoint: Endpoint, word: str) -> None:
        """Sends a packet to an endpoint of the node, which listens whether it arrives.

        Raises:
            RefusedError: ``not_your_endpoint``: nobody makes the coordinator send packets to others.
            MeshrayError: ``busy``: it knocks there now. ``endpoint_unusable``: no such name, or no route.
        """
        if endpoint not in member.advertised:
            raise RefusedError(
                "not_your_endpoint",
                f"{endpoint} is no endpoint that {member.node.name} enrolled with",
                hint="--endpoint",
            )
        if member.node.id in self._knocking:
            raise MeshrayError("busy", "the coordinator knocks at this node already", hint="try again in a second")
        self._knocking.add(member.node.id)
        try:
            await knock(endpoint, word)
        except OSError as error:
            raise MeshrayError(
                "endpoint_unusable",
                f"the coordinator cannot send to {endpoint}: {error.strerror or error}",
                hint="--endpoint HOST:PORT with an address that the others can use",
            ) from None
        finally:
            self._knocking.discard(member.node.id)

    def members(self) -> list[Member]:
        """Everybody, in the order of their addresses."""
        return sorted(self._ledger.registry.members.values(), key=lambda member: member.node.ip)

    @property
    def revision(self) -> int:
        """Of the map, now."""
        return self._ledger.registry.revision

    async def collect(self) -> None:
        """Removes the ephemeral nodes that stayed away too long; to be called every few seconds."""
        self.tell_restored()
        for member in await self._ledger.change(lambda registry: registry.collect(self._clock())):
            self._say_goodbye(member)

    def _say_goodbye(self, member: Member) -> None:
        _log.info("%s (%s) was removed", member.node.name, member.node.ip)
        self._publisher.kick(member.node.id, CLOSE_NOT_ACCEPTED, "this node was removed from the mesh")
        for cut_off in self._cut_off:
            cut_off(member.node.id)

    # Agents

    def tell_ticket(self, node_id: str, shown: str = "") -> None:
        """Gives a connected node the ticket that it is to keep, unless the one that it showed is as good."""
        member = self._ledger.registry.members.get(node_id)
        ticket = self.recovery.news(member, shown) if member is not None else ""
        if ticket:
            self._publisher.tell(node_id, {"type": "ticket", "ticket": ticket})

    def tell_restored(self, node_id: str = "") -> None:
        """Tells the coordinator's own node what its status is to say of a restore, where that is new.

        Args:
            node_id: whose agent has just connected, and was told nothing yet.
        """
        own, text = self._own_node().id, self.recovery.report()
        if text != ("" if node_id == own else self._told_restored):
            self._publisher.tell(own, {"type": "restored", "text": text})
            self._told_restored = text

    async def connect(self, node_id: str) -> Outbox:
        """The node's agent is here; the newest connection wins. Raises UnknownError where the node is gone."""
        outbox = self._publisher.join(node_id)
        try:
            await self._ledger.change(lambda registry: registry.connected(node_id), durable=False)
        except BaseException:
            self._publisher.leave(node_id, outbox)
            raise
        return outbox

    async def disconnect(self, node_id: str, outbox: Outbox) -> None:
        """The connection ended."""
        if self._publisher.leave(node_id, outbox):
            self._asking.gone(node_id)
            await self._ledger.change(lambda registry: registry.disconnected(node_id, self._clock()), durable=False)

    async def taken_down(self, node_id: str) -> None:
        """The agent will end because a person wants it. Raises UnknownError."""
        await self._ledger.change(lambda registry: registry.taken_down(node_id), durable=False)

    async def map_arrived(self, node_id: str) -> None:
        """The agent received the whole map."""
        await self._ledger.change(lambda registry: registry.got_map(node_id), durable=False)

    async def reported(
        self, node_id: str, versions: Versions, endpoints: tuple[Endpoint, ...], hubs: tuple[str, ...] = ()
    ) -> None:
        """What the agent says of itself. Raises UnknownError."""
        await self._ledger.change(lambda registry: registry.reported(node_id, versions, endpoints, hubs), durable=False)

    async def saw(self, hub_id: str, seen: Mapping[str, Endpoint | None]) -> None:
        """Where a hub's WireGuard sees the nodes. Raises UnknownError."""
        await self._ledger.change(lambda registry: registry.saw(hub_id, seen), durable=False)

    def punch(self, node_id: str, others: Iterable[str]) -> None:
        """Lets the node and each of the others try the direct way, at the same moment."""
        for other in others:
            if self._publisher.is_connected(node_id) and self._publisher.is_connected(other):
                self._publisher.tell(node_id, {"type": "punch", "node": other})
                self._publisher.tell(other, {"type": "punch", "node": node_id})

    def left_direct(self, node_id: str, other: str) -> None:
        """Tells the other that this node went back from the direct way to the hub."""
        self._publisher.tell(other, {"type": "left", "node": node_id})

    async def ask(self, asker: Member, names: Iterable[str], op: str, timeout_s: float) -> Gathered:
        """Asks the agents of these nodes, or of all others where none is named.

        Raises:
            UnknownError: there is no node of one of these names.
            MeshrayError: as `Asking.ask` does.
        """
        registry = self._ledger.registry
        asked = [registry.named(name) for name in names] or registry.members.values()
        nodes = [member.node for member in asked if member.node.id != asker.node.id]
        return await self._asking.ask({node.id: node.name for node in nodes if STATIC not in node.roles}, op, timeout_s)

    def answered(self, node_id: str, answer: Answer) -> None:
        """What an agent says to a question."""
        self._asking.take(node_id, answer)

    async def ray_started(self, node_id: str, instance: str) -> None:
        """Ray's head has another instance. Raises UnknownError."""
        await self._ledger.change(lambda registry: registry.ray_started(node_id, instance), durable=False)

    # Tokens

    async def create_token(self, *, uses: int, ttl_s: int, ephemeral: bool) -> tuple[Token, TokenRecord]:
        """A new token. ``uses`` 0: any number of nodes; ``ttl_s`` 0: never expires."""
        secret, now = new_secret(), self._wall()
        expires = now + ttl_s if ttl_s else None
        record = TokenRecord(new_token_id(), hash_secret(secret), uses, 0, expires, ephemeral, now)
        await self._ledger.change(lambda registry: registry.add_token(record))
        token = Token(self.settings.mesh.id, self._endpoints(), self._fingerprint, record.id, secret)
        return token, record

    async def revoke_token(self, token_id: str) -> TokenRecord:
        """Raises as `Registry.revoke_token` does."""
        return await self._ledger.change(lambda registry: registry.revoke_token(token_id))

    def tokens(self) -> list[TokenRecord]:
        """All that were ever made, oldest first."""
        return sorted(self._ledger.registry.tokens.values(), key=lambda token: token.created)

    def require_admin(self, member: Member) -> None:
        """Raises RefusedError not_admin unless this is the node that runs the coordinator."""
        if COORDINATOR not in member.node.roles:
            own = self._own_node()
            raise RefusedError(
                "not_admin", f"only {own.name}, which runs the coordinator, may do this", hint=f"run it on {own.name}"
            )

    def _map(self) -> MeshMap:
        return self.recovery.sealed(self._ledger.registry.map)

    def _own_node(self) -> Node:
        own = self._ledger.registry.map.coordinator
        if own is None:
            raise MeshrayError("store_corrupt", "the store names no node that runs the coordinator")
        return own

    def _endpoints(self) -> tuple[Endpoint, ...]:
        return self._own_node().endpoints
