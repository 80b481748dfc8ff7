"""What names and aliases lead to, in memory, so that nobody who asks waits for a disk.

Holds what was committed last and knows nothing of how that is done. Not thread-safe.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from weft.adapters.alias import Alias, Arm
from weft.adapters.catalogue import Key
from weft.adapters.tenancy import TenantContext
from weft.adapters.version import Entry, Version

Value = TypeVar("Value", Entry, Alias)


class Table(dict[Key, Value]):
    """Values by tenant and name, and each tenant's names in order."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[str, list[str]] = {}

    def change(self, key: Key, value: Value | None) -> None:
        """Sets a value, or removes it."""
        tenant, name = key
        names = self._names.setdefault(tenant, [])
        if value is None:
            if self.pop(key, None) is not None:
                del names[bisect_left(names, name)]
        else:
            if key not in self:
                insort(names, name)
            self[key] = value

    def page(self, ctx: TenantContext, after: str = "", limit: int | None = None) -> list[str]:
        """At most `limit` of a tenant's names in order, those that come after `after`."""
        names = self._names.get(ctx.id, [])
        begin = bisect_right(names, after)
        return names[begin : None if limit is None else begin + limit]

    def of(self, ctx: TenantContext) -> Iterator[Value]:
        """A tenant's values, in the order of their names."""
        return (self[ctx.id, name] for name in self._names.get(ctx.id, ()))

    def beside(self, key: Key) -> int:
        """How many values the tenant of a key has."""
        return len(self._names.get(key[0], ()))


class Directory:
    """names, aliases: as committed   failures: why digests cannot be served"""

    def __init__(self) -> None:
        self.names: Table[Entry] = Table()
        self.aliases: Table[Alias] = Table()
        self.failures: dict[str, str] = {}
        self._named: dict[str, list[Key]] = {}
        self._pinned: Counter[str] = Counter()
        self._pointing: dict[Key, dict[str, Alias]] = {}

    # ---- looking

    def version(self, key: Key, version: int | None = None) -> Version | None:
        """A name's version, the current one by default, with what failed about it."""
        entry = self.names.get(key)
        number = version if version is not None or entry is None else entry.current
        found = entry.versions.get(number) if entry and number is not None else None
        return found and self.told(found)

    def told(self, version: Version) -> Version:
        """A version with why it cannot be served, if so."""
        reason = self.failures.get(version.digest)
        return version if reason is None else replace(version, failed=reason)

    def follow(self, key: Key, choice: str) -> Arm:
        """The name, and maybe the version, that a name or alias leads to.

        choice: whose way it is where an alias splits; see `Alias.arm`
        """
        tenant, name = key
        arm = Arm(name, None, 1.0)
        while arm.version is None and (alias := self.aliases.get((tenant, arm.name))):
            arm = alias.arm(choice)
        return arm

    def ends(self, key: Key) -> Iterator[Arm]:
        """All that `follow` can say of a name or alias."""
        alias = self.aliases.get(key)
        if alias is None:
            yield Arm(key[1], None, 1.0)
            return
        for arm in alias.arms:
            yield from [arm] if arm.version is not None else self.ends((key[0], arm.name))

    def pointing(self, key: Key) -> Iterator[tuple[Alias, Arm]]:
        """The tenant's aliases that lead straight to a name, and how."""
        for alias in self._pointing.get(key, {}).values():
            yield from ((alias, arm) for arm in alias.arms if arm.name == key[1])

    def kept(self, key: Key) -> set[int | None]:
        """The versions of a name that aliases lead to, or did before their last change."""
        return {
            arm.version
            for alias in self._pointing.get(key, {}).values()
            for arm in alias.arms + alias.previous
            if arm.name == key[1]
        }

    def has(self, digest: str) -> bool:
        """Whether any version is of this digest."""
        return digest in self._named

    def digests(self) -> set[str]:
        """The digests of all versions."""
        return set(self._named)

    def named(self, digest: str) -> tuple[Key, ...]:
        """The names that have a version of this digest, in order."""
        return tuple(sorted(self._named.get(digest, ())))

    def pinned(self) -> set[str]:
        """The digests that pinned names point to."""
        return set(self._pinned)

    def is_pinned(self, digest: str) -> bool:
        """Whether a pinned name points to a digest."""
        return digest in self._pinned

    # ---- changing

    def set_name(self, key: Key, entry: Entry | None) -> set[str]:
        """A name is so now, or is no more; returns the digests that no name refers to any more."""
        before = self.names.get(key)
        self.names.change(key, entry)
        gone, now = _digests(before), _digests(entry)
        for digest in now - gone:
            self._named.setdefault(digest, []).append(key)
        for digest in gone - now:
            self._named[digest].remove(key)
            if not self._named[digest]:
                del self._named[digest]
        _count(self._pinned, _pinned(entry), _pinned(before))
        unused = {digest for digest in gone if digest not in self._named}
        for digest in unused:
            self.failures.pop(digest, None)
        return unused

    def set_alias(self, key: Key, alias: Alias | None) -> None:
        """An alias leads so now, or is no more."""
        tenant, name = key
        before = self.aliases.get(key)
        if before is not None:
            for arm in before.arms + before.previous:
                self._pointing.get((tenant, arm.name), {}).pop(name, None)
        if alias is not None:
            for arm in alias.arms + alias.previous:
                self._pointing.setdefault((tenant, arm.name), {})[name] = alias
        self.aliases.change(key, alias)

    def set_failure(self, digest: str, reason: str | None) -> None:
        """A digest cannot be served, or can again."""
        if reason is None:
            self.failures.pop(digest, None)
        elif self.has(digest):
            self.failures[digest] = reason


def _digests(entry: Entry | None) -> set[str]:
    return {version.digest for version in entry.versions.values()} if entry else set()


def _pinned(entry: Entry | None) -> list[str]:
    return [entry.versions[entry.current].digest] if entry and entry.pinned else []


def _count(counts: Counter[str], more: list[str], fewer: list[str]) -> None:
    """Counts in time proportional to what changed; what comes to zero goes."""
    counts.update(more)
    counts.subtract(fewer)
    for digest in fewer:
        if not counts[digest]:
            del counts[digest]
