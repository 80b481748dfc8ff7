"""Which pages each running sequence owns or shares. Knows no turns, no adapters and no tensors.

A tenant with pages of its own has a pool of its own: what others do neither fills it nor evicts
from it, and is not seen in it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from weft.adapters.tenancy import TenantContext
from weft.server.engine.pages import PagePool
from weft.server.engine.prefix_cache import PrefixCache, PrefixRoot
from weft.server.engine.sequence import Sequence

# Those without pages of their own, and the server's own checks, keep one page of so many.
COMMON_SHARE = 8


class Partition:
    """A pool of pages, what can be found in it, and how many sequences run in it."""

    def __init__(self, pages: Iterable[int], page_size: int, root: PrefixRoot | None) -> None:
        self.pool = PagePool(pages)
        self.prefixes = PrefixCache(self.pool, page_size, root)
        self.running = 0

    def known(self, seq: Sequence) -> tuple[list[int], list[int]]:
        """The first pages of `seq`: those that can be shared, and then those kept for it alone."""
        shared = self.prefixes.find(seq)
        return shared, self.prefixes.kept(seq, len(shared))


class PageTables:
    """Gives sequences pages for all their positions, shared ones where the prefix is known.

    num_pages: pages of the KV cache, page 0 included   page_size: positions in a page
    prefix_queries, prefix_hits: tokens looked up, and found, at admissions so far
    """

    def __init__(self, num_pages: int, page_size: int, root: PrefixRoot | None) -> None:
        """Without a `root` only what adapters bring is shared."""
        if num_pages < 2:
            raise ValueError("a KV cache needs page 0 for padding and at least one page beside it")
        self.page_size = page_size
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._root = root
        self._pages = range(1, num_pages)
        self._common = Partition(self._pages, page_size, root)
        self._own: dict[str, Partition] = {}  # by account
        self._places: dict[Sequence, Partition] = {}  # of those that run

    @property
    def reuses_prompts(self) -> bool:
        """Whether a sequence may start from the pages of another one's prompt."""
        return self._root is not None

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return sum(pool.free for pool in self._pools)

    @property
    def cached(self) -> int:
        """Unreferenced pages that can still be shared."""
        return sum(pool.cached for pool in self._pools)

    @property
    def total(self) -> int:
        """All pages but page 0."""
        return sum(pool.total for pool in self._pools)

    @property
    def referenced(self) -> dict[int, int]:
        """Owners of each page that has any."""
        return {page: count for pool in self._pools for page, count in pool.referenced.items()}

    def could_hold(self, tenant: TenantContext, positions: int) -> bool:
        """Whether a sequence of so many positions fits if it has all that is the tenant's."""
        return self._pages_for(positions) <= self._of(tenant).pool.total

    def crowd_of(self, seq: Sequence) -> object:
        """Sequences of equal crowds compete for pages, others never do."""
        return self._of(seq.tenant)

    def part(self, seq: Sequence) -> float:
        """How much of all pages that it could have a sequence needs, shared ones included."""
        return self._pages_for(seq.length) * self.page_part(seq)

    def page_part(self, seq: Sequence) -> float:
        """How much of all pages that a sequence could have one page is."""
        return 1 / self._of(seq.tenant).pool.total

    def has_room(self, seq: Sequence, without: Iterable[Sequence]) -> bool:
        """Whether `admit` would succeed if these running ones had given back what they hold."""
        partition = self._of(seq.tenant)
        gone = [other for other in without if self._places[other] is partition]
        shared, kept = partition.known(seq)
        known = shared + kept
        freed = partition.pool.freed_by(page for other in gone for page in other.pages)
        available = partition.pool.available + len(freed)
        idle = partition.pool.idle(known) + len(freed.intersection(known))
        fresh = self._pages_for(seq.length) - len(known)
        return available - idle - fresh >= partition.running - len(gone)

    def admit(self, seq: Sequence) -> bool:
        """Gives `seq` pages for all its positions and says in it what is computed already.

        What is brought to it counts as computed: its next step begins with copying it, and only
        then can it be shared. False, and nothing taken, unless a page stays available for each
        running sequence of the same pages to grow into.
        """
        partition = self._of(seq.tenant)
        pool = partition.pool
        shared, kept = partition.known(seq)
        known = shared + kept
        fresh = self._pages_for(seq.length) - len(known)
        if pool.available - pool.idle(known) - fresh < partition.running:
            return False
        pool.share(known)
        pool.withdraw(kept)
        seq.pages = known + pool.take(fresh)
        seq.published = len(shared)
        found = len(known) * self.page_size
        if kept:
            found = min(found, seq.saved)
        seq.computed = max(found, seq.brought)
        seq.uncopied = seq.computed - found
        partition.running += 1
        self._places[seq] = partition
        self.prefix_queries += len(seq.tokens)
        self.prefix_hits += max(len(shared) * self.page_size - seq.lead, 0)
        return True

    def publish(self, seq: Sequence) -> None:
        """Lets others start from the pages that a running sequence has filled."""
        self._places[seq].prefixes.publish(seq)

    def grow(self, seq: Sequence) -> bool:
        """Makes the pages cover the sequence's newest position; False if none is available."""
        if seq.length > len(seq.pages) * self.page_size:
            pool = self._places[seq].pool
            if not pool.available:
                return False
            seq.pages += pool.take(1)
        return True

    def stretch(self, seq: Sequence, positions: int) -> int:
        """Makes room behind the newest position, for as many of these as there are spare pages for.

        As in `admit`, a page stays available for each running sequence. What is not used is there
        for later positions.
        """
        partition = self._places[seq]
        missing = self._pages_for(seq.length + positions) - len(seq.pages)
        spare = partition.pool.available - partition.running
        if missing > 0 and spare > 0:
            seq.pages += partition.pool.take(min(missing, spare))
        return min(positions, len(seq.pages) * self.page_size - seq.length)

    def release(self, seq: Sequence, *, keep: bool = False) -> None:
        """Takes all pages back; what was published can be found until it is overwritten.

        keep: it will come again, and finds until then all that was computed
        """
        partition = self._places.pop(seq)
        if keep:
            partition.prefixes.keep(seq)
        partition.pool.release(seq.pages)
        partition.running -= 1
        seq.pages = []
        seq.published = seq.computed = seq.uncopied = 0

    # ---- who has pages of its own

    def parts(self, tenants: Iterable[TenantContext]) -> dict[str, int]:
        """The `kv_pages` of those tenants that have some; where there are fewer, a part of them."""
        wanted = {tenant.account: tenant.kv_pages for tenant in tenants if tenant.kv_pages}
        most = self.total - max(1, self.total // COMMON_SHARE)
        asked = sum(wanted.values())
        if asked <= most:
            return wanted
        return {account: pages * most // asked for account, pages in wanted.items()}

    @property
    def reserved(self) -> dict[str, int]:
        """How many pages each account has of its own, if any."""
        return {account: own.pool.total for account, own in self._own.items()}

    def reserve(self, wanted: Mapping[str, int]) -> None:
        """From now on these accounts have so many pages for themselves; nothing may be running.

        Pages of those that had as many before stay as they are, with what can be found in them.
        """
        if self._places:
            raise ValueError("pages change hands only where nothing runs")
        for account in [a for a, own in self._own.items() if wanted.get(a) != own.pool.total]:
            pool = self._own.pop(account).pool
            self._common.pool.receive(pool.give_up(pool.total))
        for account in wanted.keys() - self._own.keys():
            pages = self._common.pool.give_up(wanted[account])
            self._own[account] = Partition(pages, self.page_size, self._root)

    def clear(self) -> None:
        """Takes all pages back from everybody, and what could be found in them; parts stay."""
        wanted = self.reserved
        self._places.clear()
        self._own.clear()
        self._common = Partition(self._pages, self.page_size, self._root)
        self.reserve(wanted)

    def check(self, live: Iterable[Sequence]) -> tuple[str, ...]:
        """The broken invariants; empty when sound."""
        live = list(live)
        owned = Counter(page for seq in live for page in seq.pages)
        everybody = [*self._own.values(), self._common]
        broken = {
            "pages: referenced by exactly the live sequences": owned == self.referenced,
            "pages: cover what is computed": all(
                seq.computed <= len(seq.pages) * self.page_size for seq in live
            ),
            "pages: nothing is shared before it is computed": all(
                seq.published * self.page_size <= seq.computed < seq.length for seq in self._places
            ),
            "pages: each sequence in its tenant's": all(
                self._of(seq.tenant) is partition for seq, partition in self._places.items()
            ),
            "pages: running sequences are counted": all(
                partition.running == sum(p is partition for p in self._places.values())
                for partition in everybody
            ),
        }
        found = (name for partition in everybody for name in partition.pool.check())
        return (*found, *(name for name, holds in broken.items() if not holds))

    @property
    def _pools(self) -> Iterator[PagePool]:
        return (partition.pool for partition in (*self._own.values(), self._common))

    def _of(self, tenant: TenantContext) -> Partition:
        return self._own.get(tenant.account, self._common)

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self.page_size)
