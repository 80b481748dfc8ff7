"""What the audit log says of each change: who, what, on whose behalf, with which result."""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from weft.adapters.holds import Hold, Lease
from weft.adapters.tenancy import TenantContext
from weft.adapters.version import Version
from weft.server.audit.journal import Journal
from weft.server.policy import Caller

log = logging.getLogger("weft.audit")
OK = "ok"
ACTIONS = {
    ("PUT", "/v1/adapters/{name}"): "adapter.load",
    ("DELETE", "/v1/adapters/{name}"): "adapter.remove",
    ("POST", "/v1/adapters/{name}/rollback"): "adapter.rollback",
    ("POST", "/v1/adapters/{name}/pin"): "adapter.pin",
    ("POST", "/v1/adapters/{name}/unpin"): "adapter.unpin",
    ("POST", "/v1/load_lora_adapter"): "adapter.load",
    ("POST", "/v1/unload_lora_adapter"): "adapter.remove",
    ("PUT", "/v1/aliases/{name}"): "alias.set",
    ("DELETE", "/v1/aliases/{name}"): "alias.remove",
    ("POST", "/v1/aliases/{name}/promote"): "alias.promote",
    ("POST", "/v1/aliases/{name}/rollback"): "alias.rollback",
}
"""What is written of requests, by method and route; whether they were answered or refused."""
Fields = Mapping[str, object]


@dataclass
class Entry:
    """One request's change, told more of as it goes on.

    facts: `name`, `version`, `digest` and whatever else there is to say
    """

    action: str
    caller: Caller
    request_id: str
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, object]:
        """What the log says of it, without how it ended."""
        caller = self.caller
        return {
            "event": self.action,
            "tenant": caller.tenant.id,
            "key": caller.key_id,
            "role": caller.role.name.lower(),
            "request": self.request_id,
            **self.facts,
        }


class Audit:
    """Writes events, in the order in which they are told, in a thread of its own.

    failures: events that the disk did not take; what they tell of was done all the same
    """

    def __init__(self, path: Path) -> None:
        """Opens the log and tells that the server starts; raises JournalInvalid, OSError."""
        self.failures = 0
        self._journal = Journal(path)
        self._thread = ThreadPoolExecutor(1, "audit")
        if self._journal.cut:
            self.tell("audit.mended", {"bytes_cut": self._journal.cut})
        self.tell("server.start")

    async def record(self, entry: Entry, result: str) -> None:
        """Writes how a request's change ended; it is on the disk when this returns."""
        await asyncio.wrap_future(self._thread.submit(self._write, entry.fields, result))

    def tell(self, event: str, facts: Fields | None = None, result: str = OK) -> None:
        """Writes, soon, what the server did by itself. facts: with `tenant`, if it is about one"""
        fields = {"event": event, "tenant": None, "role": "server", **(facts or {})}
        self._thread.submit(self._write, fields, result)

    def withdrawn(self, hold: Hold, reason: str) -> None:
        """A version was found damaged, and is not served any more."""
        facts: dict[str, object] = {"tenant": hold.ctx.id}
        if isinstance(hold, Lease):
            facts |= {"name": hold.name, "version": hold.version}
        self.tell("adapter.withdraw", facts | {"digest": hold.digest, "reason": reason})

    def pruned(self, ctx: TenantContext, version: Version) -> None:
        """An old version was removed, as retention says."""
        facts = {"name": version.name, "version": version.version, "digest": version.digest}
        self.tell("adapter.prune", {"tenant": ctx.id, **facts})

    def close(self) -> None:
        """Tells that the server stops, and closes the log."""
        self.tell("server.stop")
        self._thread.shutdown()
        self._journal.close()

    def _write(self, fields: Fields, result: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            self._journal.append({"time": now, **fields, "result": result})
        except OSError as error:
            self.failures += 1
            log.error("an event is missing in the audit log: %s", error)
