"""Which old versions of a name need not be kept. Knows no storage and no clock."""

from dataclasses import dataclass

from weft.adapters.version import Entry, Version


@dataclass(frozen=True, slots=True)
class Retention:
    """A rule for old versions; who uses one, or points to it, is not its business.

    count: how many of the newest versions stay, the current one among them
    seconds: how long a version stays after another took its place; None: for ever
    """

    count: int
    seconds: float | None = None

    def surplus(self, entry: Entry, now: float) -> list[Version]:
        """The versions beyond the rule, the oldest first; never the current one.

        now: seconds since 1970
        """
        versions = list(entry.versions.values())
        newest = {version.version for version in versions[-self.count :]}
        return [
            version
            for version in versions
            if version.version != entry.current
            and (version.version not in newest or self._is_old(version, now))
        ]

    def _is_old(self, version: Version, now: float) -> bool:
        return (
            self.seconds is not None
            and version.retired is not None
            and now - version.retired > self.seconds
        )
