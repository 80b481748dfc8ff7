"""Who owns which KV page: reference counts, free pages, and unreferenced pages kept for reuse.

Knows no sequences and no tensors; what a page holds is an opaque key and the tokens it stands for.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """What a full page holds: `key` names all that its KV depends on, `tokens` are its own."""

    key: bytes
    tokens: tuple[int, ...]


class PagePool:
    """Some of the KV cache's pages; never page 0, so that padding can write there.

    A page is free, referenced, or cached: unreferenced, but found again by its content until it is
    needed for something else (least recently released first).
    """

    def __init__(self, pages: Iterable[int]) -> None:
        self._references = dict.fromkeys(pages, 0)
        self._free = deque(self._references)
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._content: dict[int, Content] = {}
        self._page_of: dict[bytes, int] = {}

    @property
    def total(self) -> int:
        """Pages of this pool."""
        return len(self._references)

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Unreferenced pages that can still be shared."""
        return len(self._cached)

    @property
    def available(self) -> int:
        """How many pages `take` can give."""
        return len(self._free) + len(self._cached)

    @property
    def referenced(self) -> dict[int, int]:
        """Owners of each page that has any."""
        return {page: count for page, count in self._references.items() if count}

    def take(self, count: int) -> list[int]:
        """Takes `count` pages with one reference each; at most `available`, else ValueError."""
        if count > self.available:
            raise ValueError(f"{count} pages wanted, {self.available} available")
        pages = [self._free.popleft() if self._free else self._evict() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def receive(self, pages: Sequence[int]) -> None:
        """Makes these pages, which no other pool has, part of this one."""
        self._references |= dict.fromkeys(pages, 0)
        self._free.extend(pages)

    def give_up(self, count: int) -> list[int]:
        """Makes `count` pages no part of this pool any more; at most `available`."""
        pages = self.take(count)
        for page in pages:
            del self._references[page]
        return pages

    def find(self, content: Content) -> int | None:
        """The page that holds exactly this, referenced or cached; None if there is none."""
        page = self._page_of.get(content.key)
        if page is None or self._content[page].tokens != content.tokens:
            return None
        return page

    def idle(self, pages: Iterable[int]) -> int:
        """How many of `pages` nobody references, so that sharing them takes from `available`."""
        return sum(self._references[page] == 0 for page in pages)

    def freed_by(self, released: Iterable[int]) -> set[int]:
        """Which pages nobody would reference if these references were dropped."""
        counts = Counter(released)
        return {page for page, count in counts.items() if self._references[page] == count}

    def share(self, pages: Iterable[int]) -> None:
        """Adds a reference to each of these found pages."""
        for page in pages:
            if self._references[page] == 0:
                del self._cached[page]
            self._references[page] += 1

    def publish(self, page: int, content: Content) -> None:
        """Lets a referenced, full page be shared. The first page with a key keeps it."""
        if content.key not in self._page_of:
            self._content[page] = content
            self._page_of[content.key] = page

    def withdraw(self, pages: Iterable[int]) -> None:
        """Lets these referenced pages, of which only their owner knows, be found no more."""
        for page in pages:
            del self._page_of[self._content.pop(page).key]

    def release(self, pages: Iterable[int]) -> None:
        """Drops one reference of each page, the last first: a prefix outlives what follows it."""
        for page in reversed(list(pages)):
            if self._references[page] == 0:
                raise ValueError(f"page {page} released more often than referenced")
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._content:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def check(self) -> tuple[str, ...]:
        """The broken invariants; empty when sound."""
        referenced = self.referenced.keys()
        free, cached = set(self._free), set(self._cached)
        broken = {
            "pages: free + referenced + cached = total": len(referenced) + self.available
            == self.total,
            "pages: each in one set": not (
                free & cached or free & referenced or cached & referenced
            )
            and len(free) == len(self._free),
            "pages: page 0 is never given out": 0 not in free | cached | referenced,
            "pages: no negative references": min(self._references.values(), default=0) >= 0,
            "pages: cached pages have content": cached <= self._content.keys(),
            "pages: free pages have none": not free & self._content.keys(),
            "pages: key and page are one to one": {
                content.key: page for page, content in self._content.items()
            }
            == self._page_of,
        }
        return tuple(name for name, holds in broken.items() if not holds)

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        del self._page_of[self._content.pop(page).key]
        return page
