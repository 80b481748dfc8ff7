"""Names, versions and aliases: changed durably, one change at a time, and read without waiting.

Knows no files and no holds.
"""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from weft.adapters.alias import Alias
from weft.adapters.catalogue import Catalogue, Key
from weft.adapters.database import Database
from weft.adapters.directory import Directory
from weft.adapters.files import Files
from weft.adapters.version import Entry


@dataclass
class Change:
    """One transaction.

    Once it is committed, names, aliases: as it left them   unused: the digests that no name refers
    to any more
    """

    rows: Catalogue
    names: dict[Key, Entry | None] = field(default_factory=dict)
    aliases: dict[Key, Alias | None] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)


class Ledger:
    """A file of names, and the directory of what was committed last.

    lock: guards `directory` and whatever else must fit to it; it is held for moments only and never
    while a disk works, so that readers, who take nothing else, do not wait for a commit. Readers
    see a change before whoever made it hears that it is made, and after it is durable.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file; raises StateInUse where another server has it, OSError."""
        self.lock = threading.Condition()
        self.directory = Directory()
        Files().make_folders(path.parent)
        self._database = Database(path)
        self._catalogue = Catalogue(self._database)
        try:
            self._read(self.directory)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @contextmanager
    def changing(
        self,
        *,
        names: Collection[Key] = (),
        aliases: Collection[Key] = (),
        failures: Collection[str] = (),
    ) -> Iterator[Change]:
        """Commits what is done inside about these names, aliases and digests; then all see it.

        An exception inside, and an OSError of the disk, leave everything as it was.
        """
        with self._database.lock:
            change = Change(self._catalogue)
            with self._database.transaction():
                yield change
                change.names = {key: self._catalogue.entry(key) for key in names}
                change.aliases = {key: self._catalogue.alias(key) for key in aliases}
                failed = {digest: self._catalogue.failure(digest) for digest in failures}
            with self.lock:
                for key, entry in change.names.items():
                    change.unused |= self.directory.set_name(key, entry)
                for key, alias in change.aliases.items():
                    self.directory.set_alias(key, alias)
                for digest, reason in failed.items():
                    self.directory.set_failure(digest, reason)

    def check(self) -> tuple[str, ...]:
        """The invariants that do not hold; empty is healthy."""
        read = Directory()
        with self._database.lock, self.lock:
            self._read(read)
            entries = self.directory.names.values()
            claims = {
                "readers see what was committed": read.names == self.directory.names
                and read.aliases == self.directory.aliases,
                "every name points to one of its versions": all(
                    entry.current in entry.versions for entry in entries
                ),
                "every alias leads to versions": all(
                    self.directory.version((tenant, arm.name), arm.version)
                    for tenant, name in self.directory.aliases
                    for arm in self.directory.ends((tenant, name))
                ),
            }
        return tuple(claim for claim, holds in claims.items() if not holds)

    def _read(self, directory: Directory) -> None:
        for key, entry in self._catalogue.entries():
            directory.set_name(key, entry)
        for key, alias in self._catalogue.aliases():
            directory.set_alias(key, alias)
        directory.failures = self._catalogue.failures()
