"""Names, versions and aliases as rows: the queries of the ledger. Knows no files and no holds.

Callers hold the database's lock, and a transaction where they change something.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from weft.adapters.alias import Alias, Arm, read_arms, text_of
from weft.adapters.database import Database
from weft.adapters.version import Entry, Version

Key = tuple[str, str]
"""A tenant's id and a name of that tenant."""

_NAMES = """SELECT n.tenant, n.name, n.current, n.pinned,
        v.version, v.digest, v.bytes, v.created, v.report, v.retired
    FROM names n JOIN versions v ON v.tenant = n.tenant AND v.name = n.name
    WHERE n.current IS NOT NULL"""
_ALIASES = "SELECT tenant, name, targets, previous, changed FROM aliases"
_KEY = "tenant = ? AND name = ?"


class Catalogue:
    """The tables `names`, `versions`, `failures` and `aliases`."""

    def __init__(self, database: Database) -> None:
        self._rows = database.rows

    # ---- looking

    def entries(self) -> Iterator[tuple[Key, Entry]]:
        """All names that point to a version."""
        rows = self._rows(f"{_NAMES} ORDER BY n.tenant, n.name, v.version")
        for (tenant, name), versions in groupby(rows, lambda row: row[:2]):
            yield (tenant, name), _entry(list(versions))

    def entry(self, key: Key) -> Entry | None:
        """One name; None where it points to nothing."""
        rows = self._rows(f"{_NAMES} AND n.tenant = ? AND n.name = ? ORDER BY v.version", key)
        return _entry(rows) if rows else None

    def aliases(self) -> Iterator[tuple[Key, Alias]]:
        """All aliases."""
        for row in self._rows(_ALIASES):
            yield row[:2], _alias(row)

    def alias(self, key: Key) -> Alias | None:
        """One alias."""
        rows = self._rows(f"{_ALIASES} WHERE {_KEY}", key)
        return _alias(rows[0]) if rows else None

    def failures(self) -> dict[str, str]:
        """Why digests cannot be served."""
        return dict(self._rows("SELECT digest, reason FROM failures"))

    def failure(self, digest: str) -> str | None:
        """Why one digest cannot be served; None where it can."""
        rows = self._rows("SELECT reason FROM failures WHERE digest = ?", (digest,))
        return rows[0][0] if rows else None

    # ---- changing names

    def add(self, key: Key, digest: str, nbytes: int, report: str) -> None:
        """Adds a name's next version and points the name to it."""
        self._retire(key)
        ((number,),) = self._rows(
            """INSERT INTO names (tenant, name, current, last) VALUES (?, ?, 1, 1)
                ON CONFLICT DO UPDATE SET current = last + 1, last = last + 1 RETURNING last""",
            key,
        )
        self._rows(
            """INSERT INTO versions (tenant, name, version, digest, bytes, created, report)
                VALUES (?, ?, ?, ?, ?, ?, ?)""",
            (*key, number, digest, nbytes, time.time(), report),
        )

    def point(self, key: Key, version: int) -> None:
        """Points a name to another of its versions."""
        self._retire(key)
        self._rows(f"UPDATE names SET current = ? WHERE {_KEY}", (version, *key))
        self._rows(
            f"UPDATE versions SET retired = NULL WHERE {_KEY} AND version = ?", (*key, version)
        )

    def pin(self, key: Key, *, pinned: bool) -> None:
        """Records whether a name is pinned."""
        self._rows(f"UPDATE names SET pinned = ? WHERE {_KEY}", (pinned, *key))

    def drop(self, key: Key, version: int) -> None:
        """Removes a version that its name does not point to."""
        self._rows(f"DELETE FROM versions WHERE {_KEY} AND version = ?", (*key, version))
        self._drop_failures()

    def remove(self, key: Key) -> None:
        """Removes a name and its versions; only the last version's number stays."""
        self._rows(f"DELETE FROM versions WHERE {_KEY}", key)
        self._rows(f"UPDATE names SET current = NULL, pinned = 0 WHERE {_KEY}", key)
        self._drop_failures()

    # ---- changing the rest

    def fail(self, digest: str, reason: str) -> None:
        """Records why all versions of a digest cannot be served."""
        self._rows("INSERT OR REPLACE INTO failures VALUES (?, ?)", (digest, reason))

    def heal(self, digest: str) -> None:
        """Records that versions of a digest can be served."""
        self._rows("DELETE FROM failures WHERE digest = ?", (digest,))

    def lead(self, key: Key, arms: Sequence[Arm], previous: Sequence[Arm]) -> None:
        """Makes an alias, or lets it lead elsewhere."""
        values = (*key, text_of(arms), text_of(previous), time.time())
        self._rows("INSERT OR REPLACE INTO aliases VALUES (?, ?, ?, ?, ?)", values)

    def remove_alias(self, key: Key) -> None:
        """Removes an alias."""
        self._rows(f"DELETE FROM aliases WHERE {_KEY}", key)

    # ---- steps of them

    def _retire(self, key: Key) -> None:
        self._rows(
            f"""UPDATE versions SET retired = ? WHERE {_KEY}
                AND version = (SELECT current FROM names WHERE {_KEY})""",
            (time.time(), *key, *key),
        )

    def _drop_failures(self) -> None:
        self._rows(
            """DELETE FROM failures AS f
                WHERE NOT EXISTS (SELECT 1 FROM versions v WHERE v.digest = f.digest)"""
        )


def _entry(rows: list[tuple[Any, ...]]) -> Entry:
    _, name, current, pinned = rows[0][:4]
    versions = {
        number: Version(name, number, digest, nbytes, created, report, retired=retired)
        for *_, number, digest, nbytes, created, report, retired in rows
    }
    return Entry(current, bool(pinned), versions)


def _alias(row: tuple[Any, ...]) -> Alias:
    _, name, targets, previous, changed = row
    return Alias(name, read_arms(targets), read_arms(previous), changed)
