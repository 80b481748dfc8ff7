"""On whose behalf a call is made."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TenantContext:
    """Proof of authentication; made only by `server.tenants`, demanded by registry and engine."""

    id: str
    weight: float = 1.0
