"""Whose turn it is: first come, first served inside a tenant; the least served tenant first.

Virtual token counters (Sheng et al., OSDI 2024): each tenant has a counter of computed tokens over
its weight. A tenant that comes back after a pause is lifted to the level of the others: idle time
saves up no credit. Knows no pages and no adapters.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import attrgetter

from weft.adapters.tenancy import TenantContext
from weft.server.engine.sequence import Sequence

_arrival = attrgetter("arrival")


class FairQueue:
    """The sequences that could run, by tenant, and what each tenant has been given so far."""

    def __init__(self) -> None:
        self._queues: dict[str, list[Sequence]] = {}
        self._counters: defaultdict[str, float] = defaultdict(float)
        self._level = 0.0  # counter of the last tenant whose queue ran empty

    def __iter__(self) -> Iterator[Sequence]:
        return (seq for queue in self._queues.values() for seq in queue)

    def __bool__(self) -> bool:
        return bool(self._queues)

    def push(self, seq: Sequence) -> None:
        """Queues a sequence by its arrival, before later ones of its tenant."""
        tenant = seq.tenant.id
        if tenant not in self._queues:
            others = (self._counters[other] for other in self._queues)
            self._counters[tenant] = max(self._counters[tenant], min(others, default=self._level))
            self._queues[tenant] = []
        insort(self._queues[tenant], seq, key=_arrival)

    def remove(self, seq: Sequence) -> None:
        """Takes a queued sequence out."""
        tenant = seq.tenant.id
        queue = self._queues[tenant]
        del queue[bisect_left(queue, seq.arrival, key=_arrival)]
        if not queue:
            del self._queues[tenant]
            self._level = self._counters[tenant]

    def clear(self) -> None:
        """Nobody waits any more; what each tenant has been given stays counted."""
        self._queues.clear()

    def charge(self, seq: Sequence, stop: int) -> None:
        """Books the computing of `seq` up to position `stop`; nothing is paid for twice."""
        fresh = stop - max(seq.computed, seq.charged)
        if fresh > 0:
            self._counters[seq.tenant.id] += fresh / seq.tenant.weight
            seq.charged = stop

    def served(self, tenant: TenantContext) -> float:
        """The tokens that a tenant has been given, over its weight; only differences tell."""
        return self._counters[tenant.id]

    def firsts(self) -> list[Sequence]:
        """The first of each tenant's queue, the least served tenant's first."""
        return sorted((queue[0] for queue in self._queues.values()), key=self._rank)

    def least_served(
        self, begun: Iterable[Sequence], may_begin: Callable[[Sequence], bool]
    ) -> Sequence | None:
        """Of `begun` and the queued: the next one of the tenant that has been given least.

        Of a tenant's own, and of equal tenants, the one that arrived first. A tenant whose first in
        the queue may not begin has none there.
        """
        queued = filter(may_begin, (queue[0] for queue in self._queues.values()))
        return min(chain(begun, queued), key=self._rank, default=None)

    def _rank(self, seq: Sequence) -> tuple[float, int]:
        return self._counters[seq.tenant.id], seq.arrival
