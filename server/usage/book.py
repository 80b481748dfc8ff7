"""Usage by hour in a file of its own, so that no change of the registry waits for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from weft.adapters.database import Database
from weft.adapters.tenancy import TenantContext
from weft.server.usage.counts import Counts
from weft.server.usage.meter import Row

_FORMATS = (
    """
CREATE TABLE usage (
    hour    INTEGER NOT NULL,  -- its first second since 1970
    tenant  TEXT NOT NULL,
    adapter TEXT NOT NULL,
    digest  TEXT NOT NULL,
    requests          INTEGER NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    cached_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    byte_seconds      REAL NOT NULL,
    PRIMARY KEY (hour, tenant, adapter, digest)
) WITHOUT ROWID;
""",
)
_NUMBERS = tuple(Counts.__dataclass_fields__)
_ADD = (
    f"INSERT INTO usage VALUES (?, ?, ?, ?, {', '.join('?' for _ in _NUMBERS)}) "
    "ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{number} = {number} + excluded.{number}" for number in _NUMBERS)
)
_READ = (
    "SELECT hour - hour % :width AS bucket, tenant, adapter, digest, "
    + ", ".join(f"SUM({number})" for number in _NUMBERS)
    + " FROM usage WHERE hour >= MAX(:start, :bucket) AND hour < :end"
    " AND (:tenant IS NULL OR tenant = :tenant) AND (:adapter IS NULL OR adapter = :adapter)"
    " GROUP BY bucket, tenant, adapter, digest"
    " HAVING (bucket, tenant, adapter, digest) > (:bucket, :after, :name, :digest)"
    " ORDER BY bucket, tenant, adapter, digest LIMIT :limit"
)


class Place(NamedTuple):
    """Where a row stands in the order of all."""

    bucket: int
    tenant: str
    adapter: str
    digest: str


FIRST = Place(-1, "", "", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to read. start, end: seconds since 1970, the first of a bucket; end is left out

    width: of a bucket, seconds   of: whose; None for all   adapter: only it   after: rows up to
    there are left out   limit: of rows
    """

    start: int
    end: int
    width: int
    of: TenantContext | None = None
    adapter: str | None = None
    after: Place = FIRST
    limit: int = 1000


class UsageBook:
    """The file. Each call waits for the disk, and raises OSError where that fails."""

    def __init__(self, path: Path) -> None:
        """Opens it; raises StateInUse where another server has it."""
        self._database = Database(path, _FORMATS)

    def add(self, rows: Mapping[Row, Counts], oldest: int) -> None:
        """Adds numbers durably, all or none, and forgets hours that began before `oldest`."""
        with self._database.transaction():
            for (hour, key), counts in rows.items():
                self._database.rows(_ADD, (hour, *key, *counts.values))
            self._database.rows("DELETE FROM usage WHERE hour < ?", (oldest,))

    def read(self, query: Query) -> list[tuple[Place, Counts]]:
        """Rows in order: bucket, tenant, adapter, digest."""
        after = query.after
        values: dict[str, Any] = {
            "start": query.start,
            "end": query.end,
            "width": query.width,
            "tenant": query.of and query.of.account,
            "adapter": query.adapter,
            "bucket": after.bucket,
            "after": after.tenant,
            "name": after.adapter,
            "digest": after.digest,
            "limit": query.limit,
        }
        found = self._database.rows(_READ, values)
        return [(Place(*row[:4]), Counts(*row[4:])) for row in found]

    def close(self) -> None:
        """Closes the file."""
        self._database.close()
