"""What each tenant may do and how much of it: keys, roles, quotas, shared adapters.

Values only, complete and checked when they are made; knows no file, no route and no clock.
"""

import hmac
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from hashlib import sha256

from weft.adapters.tenancy import NOBODY, TenantContext
from weft.server.selection import AdapterName

TENANT_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
EVERYBODY = "*"
_KEY_ID = 12


class Role(IntEnum):
    """What a key is for; each role may do what the ones before it may."""

    USE = 1  # ask for answers, look at the tenant's own adapters
    MANAGE = 2  # load, replace and remove them
    ADMIN = 3  # look at the whole server, and act for the tenant that a trusted proxy names


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """How much a tenant may have; None is without a limit.

    requests_per_minute, tokens_per_minute: as they are admitted, a minute's worth at once
    concurrent_requests: choices computed at a time   queued_requests: that may wait for that
    adapters: names   adapter_bytes: of all stored versions' weights
    delta_bytes: on the device, of dense and sparse deltas and of whole parameters in the versions
        that the names point to
    pinned_bytes: on the device, of pinned adapters
    kv_pages: of the KV cache, which no other tenant uses
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    queued_requests: int | None = None
    adapters: int | None = None
    adapter_bytes: int | None = None
    delta_bytes: int | None = None
    pinned_bytes: int | None = None
    kv_pages: int | None = None


NO_QUOTAS = Quotas()


def key_id(digest: bytes) -> str:
    """What people and logs call the key of this SHA-256; tells nothing of it."""
    return digest.hex()[:_KEY_ID]


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, known only by its SHA-256; both times are aware."""

    sha256: bytes
    role: Role
    created: datetime | None = None
    expires: datetime | None = None

    @property
    def id(self) -> str:
        """What people and logs call it."""
        return key_id(self.sha256)

    def expired(self, now: datetime) -> bool:
        """Whether it opens nothing any more."""
        return self.expires is not None and self.expires <= now


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """One tenant.

    default_adapter: words as in `model`, for requests that name nothing   share: who else may use
    an adapter of this tenant, by its name; EVERYBODY is all tenants of the server
    """

    context: TenantContext
    keys: tuple[Key, ...] = ()
    quotas: Quotas = NO_QUOTAS
    default_adapter: str | None = None
    share: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def lets(self, other: TenantContext, name: str) -> bool:
        """Whether another tenant may use this one's adapter `name`."""
        allowed = self.share.get(name, frozenset())
        return other.account in allowed or EVERYBODY in allowed


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request. key_id: see Key; None where no key was asked for"""

    tenant: TenantContext
    role: Role
    key_id: str | None = None


DEFAULT_TENANT = TenantContext("default")
_STRANGER = TenantPolicy(NOBODY)


class Policy:
    """All tenants of a server.

    closed: only those with a key get in, and a proxy can name only tenants that are listed;
    otherwise there is one default tenant, who is everybody or whoever has the one key
    """

    def __init__(self, tenants: Mapping[str, TenantPolicy], *, closed: bool = True) -> None:
        self.tenants = dict(tenants)
        self._closed = closed
        self._needs_key = closed or any(tenant.keys for tenant in tenants.values())
        # Digests are looked up under a secret of this process: how long that takes tells nothing.
        self._secret = secrets.token_bytes(32)
        self._keys = {
            self._blind(key.sha256): (tenant, key)
            for tenant in tenants.values()
            for key in tenant.keys
        }

    @classmethod
    def single(cls, api_key: str | None) -> "Policy":
        """One key for everybody, or none at all; whoever gets in may do everything."""
        keys = (Key(sha256(api_key.encode()).digest(), Role.ADMIN),) if api_key else ()
        return cls({DEFAULT_TENANT.id: TenantPolicy(DEFAULT_TENANT, keys)}, closed=False)

    @property
    def contexts(self) -> tuple[TenantContext, ...]:
        """Every tenant there is."""
        return tuple(tenant.context for tenant in self.tenants.values())

    def of(self, tenant: TenantContext) -> TenantPolicy:
        """A tenant's policy; one without limits for whom a proxy named at an open server."""
        return self.tenants.get(tenant.account) or TenantPolicy(tenant)

    def authenticate(self, api_key: str | None, now: datetime) -> Caller | None:
        """Whose key this is; None where it is nobody's."""
        if not self._needs_key:
            return Caller(DEFAULT_TENANT, Role.ADMIN)
        digest = sha256((api_key or "").encode()).digest()
        tenant, key = self._keys.get(self._blind(digest), (None, None))
        known = hmac.compare_digest(key.sha256 if key else bytes(32), digest)
        if tenant is None or key is None or not known or key.expired(now):
            return None
        return Caller(tenant.context, key.role, key.id)

    def narrowed(self, caller: Caller, header: str) -> Caller | None:
        """The caller as the tenant that a trusted proxy's header names; None where it may not be.

        Only an admin's key can stand for another tenant, and no named tenant is an admin.
        """
        role = min(caller.role, Role.MANAGE)
        if header == caller.tenant.id:
            return Caller(caller.tenant, role, caller.key_id)
        if caller.role < Role.ADMIN:
            return None
        named = self.tenants.get(header)
        if named is not None:
            return Caller(named.context, role, caller.key_id)
        if self._closed or not re.fullmatch(TENANT_ID, header):
            return None
        return Caller(TenantContext(header), role, caller.key_id)

    def called(self, name: str) -> TenantContext | None:
        """Whom an admin means, who may be gone; None where nobody can be called so."""
        known = self.tenants.get(name)
        if known is not None:
            return known.context
        return TenantContext(name) if re.fullmatch(TENANT_ID, name) else None

    def owner(self, tenant: TenantContext, adapter: AdapterName) -> TenantContext:
        """In whose names a tenant's word for an adapter is looked up: its own, or the owner's.

        NOBODY where the owner does not share it, or is no tenant: the same look-up finds nothing.
        """
        if adapter.owner in (None, tenant.account):
            return tenant
        owner = self.tenants.get(adapter.owner or "", _STRANGER)
        return owner.context if owner.lets(tenant, adapter.name) else NOBODY

    def shared_with(self, tenant: TenantContext) -> Iterator[tuple[TenantContext, str]]:
        """The adapters of others that a tenant may use: owner and name."""
        for owner in self.tenants.values():
            if owner.context.id != tenant.account:
                yield from ((owner.context, n) for n in owner.share if owner.lets(tenant, n))

    def _blind(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")
