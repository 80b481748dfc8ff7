"""Who keeps a version's files from being removed. Knows no queries and no disk."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Self

from weft.adapters.tenancy import TenantContext
from weft.adapters.version import Version


class Hold:
    """A tenant's hold on the version `digest`: its files stay until `release`, or a `with` ends.

    Releasing twice is the same as once.
    """

    def __init__(self, ctx: TenantContext, digest: str, release: "Callable[[Hold], None]") -> None:
        self.ctx = ctx
        self.digest = digest
        self._release = release

    def release(self) -> None:
        """Lets the version go."""
        self._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Upload(Hold):
    """Files that were just stored, to be put under a name. `nbytes` is the weights file's size."""

    def __init__(
        self, ctx: TenantContext, digest: str, nbytes: int, release: Callable[[Hold], None]
    ) -> None:
        super().__init__(ctx, digest, release)
        self.nbytes = nbytes


class Lease(Hold):
    """A request's hold on one version of a name; its `n` children share it.

    report: what loading the version found, JSON
    """

    def __init__(
        self, ctx: TenantContext, version: Version, release: Callable[[Hold], None]
    ) -> None:
        super().__init__(ctx, version.digest, release)
        self.name = version.name
        self.version = version.version
        self.created = version.created
        self.report = version.report

    @property
    def id(self) -> str:
        """How answers call the version: name@version."""
        return f"{self.name}@{self.version}"


class Holds:
    """The holds not yet released, counted by digest. Not thread-safe."""

    def __init__(self) -> None:
        self._holds: set[Hold] = set()
        self._counts: Counter[str] = Counter()

    def add(self, hold: Hold) -> None:
        """Counts a hold from now on."""
        self._holds.add(hold)
        self._counts[hold.digest] += 1

    def remove(self, hold: Hold) -> bool:
        """Counts a hold no longer; returns False where it was not counted any more."""
        if hold not in self._holds:
            return False
        self._holds.remove(hold)
        self._counts[hold.digest] -= 1
        if not self._counts[hold.digest]:
            del self._counts[hold.digest]
        return True

    def __contains__(self, digest: object) -> bool:
        return digest in self._counts

    def __iter__(self) -> Iterator[Hold]:
        return iter(self._holds)
