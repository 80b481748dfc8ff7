"""Names and versions as rows: the queries of the registry. Knows no files and no holds.

Callers hold the database's lock, and a transaction where they change something.
"""

import time
from dataclasses import dataclass

from weft.adapters.database import Database
from weft.adapters.tenancy import TenantContext

_VERSION = "v.name, v.version, v.digest, v.bytes, v.created, v.report, v.failed"
_CURRENT = """names n JOIN versions v
    ON v.tenant = n.tenant AND v.name = n.name AND v.version = n.current"""


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable version of a name. `failed` is why it cannot be served; None is ready.

    bytes: of the weights file   created: seconds since 1970   report: what loading it found, JSON
    """

    name: str
    version: int
    digest: str
    bytes: int
    created: float
    report: str
    failed: str | None

    @property
    def id(self) -> str:
        """How requests and answers call it: name@version."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name: the version it points to, whether it is pinned, how many versions it has."""

    current: Version
    pinned: bool
    versions: int


class Catalogue:
    """The tables `names` and `versions`."""

    def __init__(self, database: Database) -> None:
        self._rows = database.rows

    # ---- looking

    def entries(
        self, ctx: TenantContext, after: str = "", limit: int = -1, name: str | None = None
    ) -> list[Entry]:
        """The tenant's names in order, those after `after`, or only `name`."""
        rows = self._rows(
            f"""SELECT {_VERSION}, n.pinned, (SELECT COUNT(*) FROM versions o
                    WHERE o.tenant = n.tenant AND o.name = n.name)
                FROM {_CURRENT}
                WHERE n.tenant = ?1 AND {"n.name > ?2" if name is None else "n.name = ?2"}
                ORDER BY n.name LIMIT ?3""",
            (ctx.id, after if name is None else name, limit),
        )
        return [Entry(Version(*row[:-2]), bool(row[-2]), row[-1]) for row in rows]

    def current(self, ctx: TenantContext, name: str) -> Version | None:
        """The version that a name points to."""
        rows = self._rows(
            f"SELECT {_VERSION} FROM {_CURRENT} WHERE n.tenant = ? AND n.name = ?", (ctx.id, name)
        )
        return Version(*rows[0]) if rows else None

    def version(self, ctx: TenantContext, name: str, version: int) -> Version | None:
        """One version of a name."""
        rows = self._rows(
            f"SELECT {_VERSION} FROM versions v WHERE tenant = ? AND name = ? AND version = ?",
            (ctx.id, name, version),
        )
        return Version(*rows[0]) if rows else None

    def versions(self, ctx: TenantContext, name: str) -> list[Version]:
        """All versions of a name, the oldest first."""
        rows = self._rows(
            f"SELECT {_VERSION} FROM versions v WHERE tenant = ? AND name = ? ORDER BY version",
            (ctx.id, name),
        )
        return [Version(*row) for row in rows]

    def has(self, digest: str) -> bool:
        """Whether any version is of this digest."""
        return bool(self._rows("SELECT 1 FROM versions WHERE digest = ? LIMIT 1", (digest,)))

    def digests(self, *, failed: bool) -> set[str]:
        """The digests of all versions that failed, or that did not."""
        rows = self._rows(
            "SELECT DISTINCT digest FROM versions WHERE (failed IS NOT NULL) = ?", (failed,)
        )
        return {digest for (digest,) in rows}

    def pinned(self) -> set[str]:
        """The digests that pinned names point to."""
        rows = self._rows(f"SELECT DISTINCT v.digest FROM {_CURRENT} WHERE n.pinned")
        return {digest for (digest,) in rows}

    def dangling(self) -> bool:
        """Whether a name points to a version that does not exist."""
        return bool(
            self._rows(
                """SELECT 1 FROM names n LEFT JOIN versions v
                    ON v.tenant = n.tenant AND v.name = n.name AND v.version = n.current
                    WHERE n.current IS NOT NULL AND v.version IS NULL LIMIT 1"""
            )
        )

    # ---- changing

    def add(self, ctx: TenantContext, name: str, digest: str, nbytes: int, report: str) -> None:
        """Adds a name's next version and points the name to it."""
        ((number,),) = self._rows(
            """INSERT INTO names (tenant, name, current, last) VALUES (?, ?, 1, 1)
                ON CONFLICT DO UPDATE SET current = last + 1, last = last + 1 RETURNING last""",
            (ctx.id, name),
        )
        self._rows(
            "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            (ctx.id, name, number, digest, nbytes, time.time(), report),
        )

    def point(self, ctx: TenantContext, name: str, version: int) -> None:
        """Points a name to another of its versions."""
        self._rows(
            "UPDATE names SET current = ? WHERE tenant = ? AND name = ?", (version, ctx.id, name)
        )

    def pin(self, ctx: TenantContext, name: str, *, pinned: bool) -> None:
        """Records whether a name is pinned."""
        self._rows(
            "UPDATE names SET pinned = ? WHERE tenant = ? AND name = ?", (pinned, ctx.id, name)
        )

    def mark(self, digest: str, failed: str | None) -> None:
        """Records why all versions of a digest cannot be served, or that they can."""
        self._rows("UPDATE versions SET failed = ? WHERE digest = ?", (failed, digest))

    def remove(self, ctx: TenantContext, name: str) -> None:
        """Removes a name and its versions; only the last version's number stays."""
        key = (ctx.id, name)
        self._rows("DELETE FROM versions WHERE tenant = ? AND name = ?", key)
        self._rows("UPDATE names SET current = NULL, pinned = 0 WHERE tenant = ? AND name = ?", key)
