"""What a name's versions are. Knows no storage."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable version of a name. `failed` is why it cannot be served; None is ready.

    bytes: of the weights file   created: seconds since 1970   report: what loading it found, JSON
    retired: when another version took its place last, seconds since 1970; None for the current one
    """

    name: str
    version: int
    digest: str
    bytes: int
    created: float
    report: str
    failed: str | None = None
    retired: float | None = None

    @property
    def id(self) -> str:
        """How requests and answers call it: name@version."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name: which of its versions it points to, whether it is pinned, all versions by number.

    Versions come in ascending order; none of them says here whether it failed.
    """

    current: int
    pinned: bool
    versions: Mapping[int, Version]
