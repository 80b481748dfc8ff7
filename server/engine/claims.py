"""Who gives way to whom where the engine is full. Knows no queues; the scheduler acts on it.

What a sequence takes of the engine is its place among those that run or its pages, whichever is the
larger part of all there are (as in dominant resource fairness; Ghodsi et al., NSDI 2011). A tenant
may take from one that holds more, as long as it then holds no more than is left to the other, both
over their weights. So each taking makes them more equal, nobody takes back at once what was taken
from it, and a tenant's only sequence stays. Tokens count first: nobody takes from a tenant that has
been given less.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable

from weft.adapters.tenancy import TenantContext
from weft.server.engine.page_tables import PageTables
from weft.server.engine.sequence import Sequence

_ROUNDING = 1e-9


class Claims:
    """What each tenant holds of the engine in one moment, and who may have it instead.

    A sequence that was preempted before keeps what it has until it has generated as many tokens as
    it had to compute again, and a page's at least: each sequence gives way a bounded number of
    times, and no more is computed twice than is gained.
    """

    def __init__(
        self,
        running: Iterable[Sequence],
        places: int,
        tables: PageTables,
        served: Callable[[TenantContext], float],
    ) -> None:
        """running: by arrival, at most `places`   served: tokens given so far, over the weight"""
        self._running = list(running)
        self._places = places
        self._tables = tables
        self._served = served
        self._by_tenant: defaultdict[str, list[Sequence]] = defaultdict(list)
        self._held: defaultdict[str, float] = defaultdict(float)
        for seq in self._running:
            self._by_tenant[seq.tenant.id].append(seq)
            self._held[seq.tenant.id] += self._part(seq)
        several = (self._held[t] for t, seqs in self._by_tenant.items() if len(seqs) > 1)
        self._most = max(several, default=0.0)

    @property
    def even(self) -> bool:
        """Whether no tenant holds so much that others could take from it."""
        return self._most == 0

    def lets_in(self, claimant: Sequence) -> bool:
        """Whether it can run now, beside all others or in the place of some."""
        is_place = len(self._running) < self._places
        if is_place and self._tables.has_room(claimant, without=()):
            return True
        return bool(self.victims(claimant))

    def victims(self, claimant: Sequence) -> list[Sequence] | None:
        """Who must be preempted so that one that waits can run; None where it must wait.

        Empty where it can run beside all others.
        """
        level = self._held.get(claimant.tenant.id, 0.0) + self._part(claimant)
        if level > self._most:
            return None
        left = self._held.copy()
        victims: list[Sequence] = []
        while True:
            crowded = len(self._running) - len(victims) >= self._places
            if not crowded and self._tables.has_room(claimant, without=victims):
                return victims
            victim = self._furthest_above(claimant, level, left, victims, any_crowd=crowded)
            if victim is None:
                return None
            victims.append(victim)
            left[victim.tenant.id] -= self._part(victim)

    def gives_page(self, seq: Sequence) -> Sequence:
        """Whose pages are freed so that a running one can grow; itself where it has to wait.

        A tenant that nobody is above takes from its own latest arrival first.
        """
        level = self._held[seq.tenant.id] + self._tables.page_part(seq) / seq.tenant.weight
        victim = self._furthest_above(seq, level, self._held, (), any_crowd=False)
        if victim is not None:
            return victim
        own = self._by_tenant[seq.tenant.id]
        if len(own) > 1:
            return own[-1]
        crowd = self._tables.crowd_of(seq)
        return next(s for s in reversed(self._running) if self._tables.crowd_of(s) is crowd)

    def _furthest_above(
        self,
        claimant: Sequence,
        level: float,
        held: dict[str, float],
        gone: Container[Sequence],
        *,
        any_crowd: bool,
    ) -> Sequence | None:
        """The latest arrival of the tenant that holds most, where it may go for the claimant."""
        tenant, crowd_of = claimant.tenant, self._tables.crowd_of
        served, crowd = self._served(tenant), crowd_of(claimant)
        found: Sequence | None = None
        for other, seqs in self._by_tenant.items():
            if other == tenant.id or (found and held[other] <= held[found.tenant.id]):
                continue
            latest = next(
                (
                    seq
                    for seq in reversed(seqs)
                    if seq.generated >= seq.keeps_until
                    and seq not in gone
                    and (any_crowd or crowd_of(seq) is crowd)
                ),
                None,
            )
            if (
                latest is not None
                and served <= self._served(latest.tenant)
                and level <= held[other] - self._part(latest) + _ROUNDING
            ):
                found = latest
        return found

    def _part(self, seq: Sequence) -> float:
        return max(1 / self._places, self._tables.part(seq)) / seq.tenant.weight
