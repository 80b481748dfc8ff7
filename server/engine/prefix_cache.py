"""Which computed pages a new sequence may start from. Knows pages by what they hold only."""

import hashlib
import hmac
from array import array
from dataclasses import dataclass

from weft.server.engine.pages import Content, PagePool
from weft.server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PrefixRoot:
    """What all pages of this engine depend on; tenants and adapters are added per sequence.

    secret: never leaves the server, so that keys cannot be computed outside it
    """

    secret: bytes
    base_digest: str
    kv_dtype: str

    def key(self, tenant: str, adapter: str | None) -> bytes:
        """The key before the first page: equal only for equal tenant, base, adapter and dtype."""
        fields = (tenant, self.base_digest, adapter or "", self.kv_dtype)
        encoded = (field.encode() for field in fields)
        message = b"".join(len(field).to_bytes(4, "little") + field for field in encoded)
        return hmac.digest(self.secret, message, "sha256")


class PrefixCache:
    """Finds and publishes full pages by a chained SHA-256 over tokens, and compares the tokens."""

    def __init__(self, pool: PagePool, page_size: int, root: PrefixRoot | None) -> None:
        """Without a `root` nothing is shared."""
        self._pool = pool
        self._page_size = page_size
        self._root = root

    @property
    def enabled(self) -> bool:
        """Whether anything is ever shared."""
        return self._root is not None

    def find(self, seq: Sequence) -> list[int]:
        """The pages that hold the longest known prefix of `seq`, its last token left out.

        At least one token is left to compute. A sequence that wants log-probabilities of its prompt
        starts from nothing, because they come out of computing it.
        """
        pages: list[int] = []
        if self._root is None or (seq.sampling.prompt_logprobs is not None and not seq.generated):
            return pages
        for index in range((len(seq.tokens) - 1) // self._page_size):
            page = self._pool.find(self._content(self._root, seq, index))
            if page is None:
                break
            pages.append(page)
        return pages

    def publish(self, seq: Sequence) -> None:
        """Lets others start from the pages that `seq` has filled since the last call."""
        if self._root is None:
            return
        for index in range(seq.published, seq.computed // self._page_size):
            self._pool.publish(seq.pages[index], self._content(self._root, seq, index))
            seq.published = index + 1

    def _content(self, root: PrefixRoot, seq: Sequence, index: int) -> Content:
        """What page `index` of `seq` holds; asked for in the order of the pages."""
        contents = seq.contents
        if index == len(contents):
            start = index * self._page_size
            tokens = tuple(seq.tokens[start : start + self._page_size])
            parent = contents[-1].key if contents else root.key(seq.tenant.id, seq.adapter)
            key = hashlib.sha256(parent + array("q", tokens).tobytes()).digest()
            contents.append(Content(key, tokens))
        return contents[index]
