"""Whose load may begin: places are few, and nobody may take them all. Knows no files."""

from collections import Counter, defaultdict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from weft.adapters.tenancy import TenantContext

Load = TypeVar("Load", bound=Hashable)


class Places(Generic[Load]):
    """So many loads at a time, each tenant's in order, the tenant's with fewest first.

    A tenant may take one more place while more are free than it has: alone half of them, and
    however long its loads take, others find a free one (dynamic thresholds; Choudhury and Hahne,
    IEEE/ACM Transactions on Networking, 1998).
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._lines: defaultdict[str, deque[Load]] = defaultdict(deque)  # by who pays
        self._taken: dict[Load, str] = {}

    def wait(self, load: Load, tenant: TenantContext) -> None:
        """Puts a load at the end of its tenant's line."""
        self._lines[tenant.account].append(load)

    def admit(self) -> list[Load]:
        """The loads that may begin now: each has a place until it leaves."""
        admitted = []
        while (account := self._next()) is not None:
            line = self._lines[account]
            load = line.popleft()
            if not line:
                del self._lines[account]
            self._taken[load] = account
            admitted.append(load)
        return admitted

    def leave(self, load: Load) -> None:
        """Gives a load's place back, or lets it wait no more."""
        if self._taken.pop(load, None) is not None:
            return
        for account, line in self._lines.items():
            if load in line:
                line.remove(load)
                if not line:
                    del self._lines[account]
                return

    @property
    def taken(self) -> tuple[Load, ...]:
        """The loads that have a place, longest first."""
        return tuple(self._taken)

    def _next(self) -> str | None:
        has = Counter(self._taken.values())
        free = self._count - len(self._taken)
        fitting = (account for account in self._lines if has[account] < free)
        return min(fitting, key=has.__getitem__, default=None)
