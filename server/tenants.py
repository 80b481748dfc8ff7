"""Who is calling: an API key to a tenant, by the policy of the moment. Knows no routes."""

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from weft.adapters.tenancy import TenantContext
from weft.server.errors import ApiError, ErrorCode
from weft.server.policy import DEFAULT_TENANT, Caller, Policy
from weft.server.settings import Settings
from weft.server.tenants_file import TenantsInvalid, read_tenants

__all__ = ["DEFAULT_TENANT", "Tenants", "TenantsInvalid"]

log = logging.getLogger("weft.tenants")
_BEARER = re.compile(r"Bearer +(\S+)", re.IGNORECASE)


class _State(NamedTuple):
    """What differs once a file was edited or replaced."""

    inode: int
    modified: int
    size: int


class Tenants:
    """The policy in force: one for the server's life, or what a file says now.

    reloads, refusals: how often a changed file came into force, and was refused
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.reloads = 0
        self.refusals = 0
        self.valid = True
        self._path: Path | None = None
        self._seen: _State | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings say; raises TenantsInvalid."""
        if settings.tenants is not None:
            return cls.read(settings.tenants)
        key = settings.api_key.get_secret_value() if settings.api_key else None
        return cls(Policy.single(key))

    @classmethod
    def read(cls, path: Path) -> Self:
        """As a file says, now and whenever it changes; raises TenantsInvalid."""
        seen = _state(path)
        tenants = cls(read_tenants(path))
        tenants._path, tenants._seen = path, seen
        return tenants

    @property
    def contexts(self) -> tuple[TenantContext, ...]:
        """Every tenant there is."""
        return self.policy.contexts

    def authenticate(self, authorization: str | None) -> Caller:
        """Whose key the Authorization header carries; raises ApiError."""
        match = _BEARER.fullmatch(authorization or "")
        caller = self.policy.authenticate(match[1] if match else None, datetime.now(UTC))
        if caller is None:
            raise ApiError(ErrorCode.INVALID_API_KEY)
        return caller

    def narrow(self, caller: Caller, header: str) -> Caller:
        """The caller as the tenant that a trusted proxy's header names; raises ApiError."""
        narrowed = self.policy.narrowed(caller, header)
        if narrowed is None:
            values = {"reason": "the key is not the named tenant's"}
            raise ApiError(ErrorCode.FORBIDDEN, values=values)
        return narrowed

    def refresh(self, check: Callable[[Policy], None] = lambda _: None) -> bool:
        """Takes over the file if it changed since the last look; returns whether it did.

        A file that cannot be used, or that `check` refuses with TenantsInvalid, changes nothing
        and is told in the log, once.
        """
        if self._path is None or (state := _state(self._path)) == self._seen:
            return False
        self._seen = state
        try:
            policy = read_tenants(self._path)
            check(policy)
        except TenantsInvalid as error:
            self.refusals += 1
            self.valid = False
            for line in error.lines:
                log.error("the tenants stay as they were: %s", line)
            return False
        self.policy = policy
        self.reloads += 1
        self.valid = True
        log.info("%s: %d tenants are in force", self._path, len(policy.tenants))
        return True


def _state(path: Path) -> _State | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return _State(found.st_ino, found.st_mtime_ns, found.st_size)
