"""Which pages each running sequence owns or shares. Knows no turns, no adapters and no tensors."""

from collections import Counter
from collections.abc import Iterable

from weft.server.engine.pages import PagePool
from weft.server.engine.prefix_cache import PrefixCache, PrefixRoot
from weft.server.engine.sequence import Sequence


class PageTables:
    """Gives sequences pages for all their positions, shared ones where the prefix is known.

    num_pages: pages of the pools, page 0 included   page_size: positions in a page
    prefix_queries, prefix_hits: tokens looked up, and found, at admissions so far
    """

    def __init__(self, num_pages: int, page_size: int, root: PrefixRoot | None) -> None:
        """Without a `root` only what adapters bring is shared."""
        self.pool = PagePool(num_pages)
        self.prefixes = PrefixCache(self.pool, page_size, root)
        self.page_size = page_size
        self.prefix_queries = 0
        self.prefix_hits = 0

    def could_hold(self, positions: int) -> bool:
        """Whether a sequence of so many positions fits if it has everything for itself."""
        return self._pages_for(positions) <= self.pool.total

    def admit(self, seq: Sequence, spare: int) -> bool:
        """Gives `seq` pages for all its positions and says in it what is computed already.

        What its adapter brings counts as computed, and can be shared at once: the next step begins
        with copying it. False, and nothing taken, unless `spare` pages stay available for others
        to grow into.
        """
        shared = self.prefixes.find(seq)
        fresh = self._pages_for(seq.length) - len(shared)
        if self.pool.available - self.pool.idle(shared) - fresh < spare:
            return False
        self.pool.share(shared)
        seq.pages = shared + self.pool.take(fresh)
        seq.published = len(shared)
        found = len(shared) * self.page_size
        seq.computed = max(found, seq.traits.prefix)
        seq.uncopied = seq.computed - found
        self.prefixes.publish(seq)
        self.prefix_queries += len(seq.tokens)
        self.prefix_hits += max(found - seq.lead, 0)
        return True

    def grow(self, seq: Sequence) -> bool:
        """Makes the pages cover the sequence's newest position; False if none is available."""
        if seq.length > len(seq.pages) * self.page_size:
            if not self.pool.available:
                return False
            seq.pages += self.pool.take(1)
        return True

    def release(self, seq: Sequence) -> None:
        """Takes all pages back; what was published can be found until it is overwritten."""
        self.pool.release(seq.pages)
        seq.pages = []
        seq.published = seq.computed = seq.uncopied = 0

    def check(self, live: Iterable[Sequence]) -> tuple[str, ...]:
        """The broken invariants; empty when sound."""
        owned = Counter(page for seq in live for page in seq.pages)
        broken = {
            "pages: referenced by exactly the live sequences": owned == self.pool.referenced,
            "pages: cover what is computed": all(
                seq.computed <= len(seq.pages) * self.page_size for seq in live
            ),
        }
        return self.pool.check() + tuple(name for name, holds in broken.items() if not holds)

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self.page_size)
