"""Who is calling: an API key to a TenantContext. Knows no routes and no adapters."""

import hmac
import re
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from weft.adapters.tenancy import TenantContext
from weft.server.errors import ApiError, ErrorCode

DEFAULT_TENANT = TenantContext("default")
BACKGROUND_SHARE = 0.1
_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
TenantId = Annotated[str, Field(pattern=f"^{_ID}$")]
_BEARER = re.compile(r"Bearer +(\S+)", re.IGNORECASE)


def background(tenant: TenantContext) -> TenantContext:
    """A tenant's work that can wait: it has a small share of its own and shares no KV with others.

    Its id is one that no tenant can have, so what it computes is not booked on the tenant's own.
    """
    return TenantContext(f"{tenant.id}/background", tenant.weight * BACKGROUND_SHARE)


class TenantsInvalid(ValueError):
    """A tenants file that cannot be used; the message names the tenant and field at fault."""


class _Tenant(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key_sha256: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]
    weight: float = Field(1.0, gt=0, le=1000)


class Tenants:
    """The keys that open this server, each belonging to one tenant.

    `keys` maps the SHA-256 of a key to its tenant. Without any, every caller is the default tenant.
    """

    def __init__(self, keys: Mapping[bytes, TenantContext] | None = None) -> None:
        self._keys = dict(keys or {})

    @classmethod
    def single(cls, api_key: str | None) -> "Tenants":
        """One key for everybody, or none at all."""
        return cls({sha256(api_key.encode()).digest(): DEFAULT_TENANT} if api_key else {})

    @classmethod
    def read(cls, path: Path) -> "Tenants":
        """A TOML file: a table for each tenant with `key_sha256 = [...]` and `weight`.

        Raises TenantsInvalid.
        """
        try:
            content = tomllib.loads(path.read_text())
            tenants = TypeAdapter(dict[TenantId, _Tenant]).validate_python(content)
        except OSError as error:
            raise TenantsInvalid(f"{path}: {error.strerror}") from None
        except ValidationError as error:
            detail = error.errors()[0]
            where = ".".join(str(part) for part in detail["loc"])
            raise TenantsInvalid(f"{path}: {where}: {detail['msg']}") from None
        except ValueError as error:
            raise TenantsInvalid(f"{path}: {error}") from None
        keys: dict[bytes, TenantContext] = {}
        for name, tenant in tenants.items():
            for key in map(bytes.fromhex, tenant.key_sha256):
                if key in keys:
                    raise TenantsInvalid(f"{path}: {name}: a key that {keys[key].id} has too")
                keys[key] = TenantContext(name, tenant.weight)
        if not keys:
            raise TenantsInvalid(f"{path}: no tenant has a key")
        return cls(keys)

    @property
    def contexts(self) -> tuple[TenantContext, ...]:
        """Every tenant there is."""
        return tuple(dict.fromkeys(self._keys.values())) or (DEFAULT_TENANT,)

    def authenticate(self, authorization: str | None) -> TenantContext:
        """The tenant whose key the Authorization header carries; raises ApiError."""
        if not self._keys:
            return DEFAULT_TENANT
        match = _BEARER.fullmatch(authorization or "")
        digest = sha256(match[1].encode() if match else b"").digest()
        # Every key is compared, so that the time taken tells nothing of which one was near.
        found = [tenant for key, tenant in self._keys.items() if hmac.compare_digest(key, digest)]
        if not match or not found:
            raise ApiError(ErrorCode.INVALID_API_KEY)
        return found[0]

    def narrow(self, tenant: TenantContext, named: str) -> TenantContext:
        """The tenant that a trusted proxy names, for a key that is nobody's in particular.

        Raises ApiError where the key is another tenant's.
        """
        if named == tenant.id:
            return tenant
        if tenant != DEFAULT_TENANT or not re.fullmatch(_ID, named):
            raise ApiError(
                ErrorCode.FORBIDDEN, values={"reason": "the key is not the named tenant's"}
            )
        return TenantContext(named)
