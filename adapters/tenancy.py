"""On whose behalf a call is made."""

from dataclasses import dataclass

BACKGROUND_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class TenantContext:
    """Proof of authentication; made only by `server.policy`, demanded by registry and engine.

    weight: share of the engine beside others' weights   kv_pages: that are its own; None: it
    shares those that are nobody's
    """

    id: str
    weight: float = 1.0
    kv_pages: int | None = None

    @property
    def account(self) -> str:
        """Who pays: a tenant's work in the background is booked on the tenant."""
        return self.id.partition("/")[0]

    @property
    def background(self) -> "TenantContext":
        """For work of this tenant that can wait: a small share of its own, and no KV in common.

        Its id is one that no tenant can have.
        """
        return TenantContext(f"{self.id}/background", self.weight * BACKGROUND_SHARE, self.kv_pages)


NOBODY = TenantContext("")  # has nothing, so that asking for it is like asking for what is missing
