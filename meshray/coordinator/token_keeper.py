"""Create, list and revoke tokens, and check whether a given one is accepted.

>>> tokens = TokenKeeper(ledger, mesh_id, fingerprint, endpoints, wall)
>>> token, record = await tokens.create(uses=1, ttl_s=86400, ephemeral=False)
"""

from __future__ import annotations

from collections.abc import Callable

from meshray.coordinator.admission import token_of
from meshray.coordinator.records import TokenRecord
from meshray.coordinator.registry_writer import Ledger
from meshray.coordinator.replacement import bound
from meshray.model.address import Endpoint, NodeName
from meshray.model.enrol import EnrolRequest
from meshray.model.token import Token, hash_secret, new_secret, new_token_id
from meshray.protocol.api import PresentedToken


class TokenKeeper:
    """The tokens of one mesh.

    Args:
        fingerprint: SHA-256 of the coordinator's certificate.
        endpoints: returns the current endpoints of the coordinator.
        wall: unix seconds by which tokens expire.
    """

    def __init__(
        self,
        ledger: Ledger,
        mesh_id: str,
        fingerprint: bytes,
        *,
        endpoints: Callable[[], tuple[Endpoint, ...]],
        wall: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._mesh_id = mesh_id
        self._fingerprint = fingerprint
        self._endpoints = endpoints
        self._wall = wall

    def require(self, request: EnrolRequest | PresentedToken) -> None:
        """Raise RefusedError unless the token is one of this mesh that may still be used, if only by its own node."""
        registry = self._ledger.registry
        token_of(request, registry.mesh, registry.tokens, self._wall())

    async def create(
        self,
        *,
        uses: int,
        ttl_s: int,
        ephemeral: bool,
        roles: frozenset[str] = frozenset(),
        name: NodeName | None = None,
        replace_node: bool = False,
    ) -> tuple[Token, TokenRecord]:
        """Create a token. Raises as `bound` does.

        Args:
            uses: 0: any number of nodes.
            ttl_s: seconds; 0: it never expires.
            roles: the roles that it grants.
            name: the name of the node that will join with it; None: the joining machine chooses.
            replace_node: it replaces the node that has this name now.
        """
        secret, now = new_secret(), self._wall()
        expires = now + ttl_s if ttl_s else None
        new_record = TokenRecord(
            new_token_id(), hash_secret(secret), uses, 0, expires, ephemeral, now, roles=roles, name=name
        )
        record = await self._ledger.change(lambda registry: bound(registry, new_record, replace_node=replace_node))
        return Token(self._mesh_id, self._endpoints(), self._fingerprint, record.id, secret), record

    async def revoke(self, token_id: str) -> TokenRecord:
        """Revoke a token. Raises as `Registry.revoke_token` does."""
        return await self._ledger.change(lambda registry: registry.revoke_token(token_id))

    def all(self) -> list[TokenRecord]:
        """Return all tokens ever created, the oldest first."""
        return sorted(self._ledger.registry.tokens.values(), key=lambda token: token.created)
